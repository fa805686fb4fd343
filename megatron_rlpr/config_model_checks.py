"""Whether the model folder is complete, of a supported architecture, and divisible by the parallel layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_rlpr.config import Config
from megatron_rlpr.types import UserError


def check(config: Config) -> None:
    """Raise UserError when model.path cannot be trained with this configuration."""
    hf = read_hf_config(config.model.path)
    _check_tokenizer(config.model.path)
    _check_safetensors(config.model.path)
    _check_architecture(config.model.path, hf)
    _check_tensor_parallel(config, hf)
    _check_pipeline_parallel(config, hf)
    _check_lengths(config, hf)
    _check_fp8_shapes(config, hf)


def read_hf_config(path: str) -> dict[str, Any]:
    """config.json of a Hugging Face folder. Raises UserError when the folder or the file is missing or broken."""
    if not path:
        raise UserError("model.path is empty: name the Hugging Face folder of the policy, model.path=models/smollm2-135m")
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"model.path={path} is a file: name the folder that holds config.json, the tokenizer and the safetensors")
    if not folder.is_dir():
        raise UserError(f"model.path: there is no folder {path}; python -m tools.fetch_model puts a model into a local folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path={path} holds no config.json: it is no Hugging Face model folder")
    try:
        hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(hf, dict):
        raise UserError(f"{folder / 'config.json'}: expected a JSON object")
    return hf


def _check_tokenizer(path: str) -> None:
    if not (Path(path) / "tokenizer.json").is_file():
        raise UserError(
            f"model.path={path} holds no tokenizer.json: a fast tokenizer is needed; save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )


def _check_safetensors(path: str) -> None:
    folder = Path(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is no safetensors index: expected a JSON object with a 'weight_map'") from error
        missing = sorted(shard for shard in shards if not (folder / str(shard)).is_file())
        if missing:
            raise UserError(f"model.path={path} lacks {len(missing)} of {len(shards)} weight files, e.g. {missing[0]}: fetch it again")
    elif not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        hint = "pickled weights (*.bin) are not read for safety: save them as safetensors" if pickled else "fetch the model again"
        raise UserError(f"model.path={path} holds no *.safetensors: {hint}")


def _check_architecture(path: str, hf: Mapping[str, Any]) -> None:
    from megatron_rlpr.weights.architectures import SUPPORTED  # here, so that reading a recipe does not import torch

    names = hf.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in SUPPORTED:
        raise UserError(f"model.path={path}: architecture {name} is not supported; supported are {', '.join(SUPPORTED)}")


def _number(path: str, hf: Mapping[str, Any], name: str) -> int:
    value = hf.get(name)
    if type(value) is not int or value < 1:
        raise UserError(f"{Path(path) / 'config.json'}: expected '{name}' to be a positive integer, got {value!r}")
    return value


def _check_tensor_parallel(config: Config, hf: Mapping[str, Any]) -> None:
    path = config.model.path
    heads = _number(path, hf, "num_attention_heads")
    key_value_heads = _number(path, hf, "num_key_value_heads") if hf.get("num_key_value_heads") is not None else heads
    # The vocabulary is not among them: the actor and the engine pad it to a multiple of the ranks.
    counts = {
        "attention heads": heads,
        "key/value heads": key_value_heads,
        "feed-forward columns": _number(path, hf, "intermediate_size"),
    }
    for key, size in (
        ("actor.tensor_model_parallel_size", config.actor.tensor_model_parallel_size),
        ("rollout.tensor_parallel_size", config.rollout.tensor_parallel_size),
    ):
        for what, count in counts.items():
            if count % size:
                possible = ", ".join(str(n) for n in range(1, heads + 1) if all(c % n == 0 for c in counts.values()))
                raise UserError(f"{key}={size} does not divide the {count} {what} of {path}: possible are {possible}")


def _check_pipeline_parallel(config: Config, hf: Mapping[str, Any]) -> None:
    stages, layers = config.actor.pipeline_model_parallel_size, _number(config.model.path, hf, "num_hidden_layers")
    if layers % stages:
        possible = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
        raise UserError(
            f"actor.pipeline_model_parallel_size={stages} does not divide the {layers} layers of {config.model.path}: "
            f"possible are {possible}"
        )


def _check_lengths(config: Config, hf: Mapping[str, Any]) -> None:
    limit = _number(config.model.path, hf, "max_position_embeddings")
    kinds = [("data.max_prompt_length", config.data.max_prompt_length)]
    if config.data.val_files:
        kinds.append(("data.val_max_prompt_length", config.data.val_max_prompt_length))
    for key, prompt in kinds:
        longest = prompt + config.data.max_response_length
        if longest > limit:
            raise UserError(
                f"{key}={prompt} + data.max_response_length={config.data.max_response_length} = {longest} tokens, but {config.model.path} "
                f"has positions for {limit} (max_position_embeddings): lower them"
            )


def _check_fp8_shapes(config: Config, hf: Mapping[str, Any]) -> None:
    """FP8 matrix multiplications need sizes that are multiples of 16; MXFP8 scales blocks of 32 values."""
    if not config.actor.fp8:
        return
    block = 32 if config.actor.fp8_recipe == "mxfp8" else 16
    tensor = config.actor.tensor_model_parallel_size
    hidden, ffn = _number(config.model.path, hf, "hidden_size"), _number(config.model.path, hf, "intermediate_size") // tensor
    for what, size in (("hidden size", hidden), (f"feed-forward size / {tensor} ranks", ffn)):
        if size % block:
            raise UserError(
                f"actor.fp8_recipe={config.actor.fp8_recipe} needs multiples of {block}, but the {what} of {config.model.path} is {size}: "
                "lower actor.tensor_model_parallel_size or choose another recipe"
            )
