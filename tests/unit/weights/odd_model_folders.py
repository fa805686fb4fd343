"""Tiny sound model folders of every family, and the damage that is done to them."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

from megatron_rlpr.weights.hf_folder import INDEX, SINGLE

SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama_tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, sliding_window=4, query_pre_attn_scalar=32),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2),
}

Damage = Callable[[Path, random.Random], str]
"""Changes a folder; returns what it did to what. Raises when an earlier damage leaves nothing to be damaged so."""
Tensors = dict[str, torch.Tensor]


def write_families(parent: Path) -> Path:
    """Write one sound folder a family into the folder, which is returned."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    letters = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for number, (name, config) in enumerate(FAMILIES.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(parent / name)
        tokenizer.save_pretrained(parent / name)
    return parent


# --- config.json

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 3, 7, 64, 10_000_000, 10**12, 10**400),
    *(0.5, 1.0, -0.5, 1e-30, 1e30, float("nan"), float("inf"), "", "2", "silu", "gelu", "\x00"),
    *([], [2], [None], ["full_attention"] * 2, {}, {"a": 1}, {"rope_type": "linear"}),
]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROTARY: list[Any] = [
    {"rope_type": "default", "rope_theta": 5e3},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    LLAMA3,
    {**LLAMA3, "original_max_position_embeddings": 8, "rope_theta": 1e3},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_theta": 2e3},
    {"type": "default"},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
]
OTHER_FIELDS = (
    *("rope_theta", "rope_scaling", "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window"),
    *("layer_types", "partial_rotary_factor", "quantization_config", "auto_map", "torch_dtype", "use_cache"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "hidden_activation", "hidden_act"),
    *("num_local_experts", "num_experts", "id2label", "pad_token_id", "transformers_version", "max_window_layers"),
)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def odd_field(folder: Path, dice: random.Random) -> str:
    file = folder / "config.json"
    field, value = dice.choice([*sorted(json.loads(file.read_text())), *OTHER_FIELDS]), dice.choice(ODD_VALUES)
    edit(file, lambda config: config.update({field: value}))
    return f"config.json: {field}={value!r:.40}"


def missing_field(folder: Path, dice: random.Random) -> str:
    file = folder / "config.json"
    field = dice.choice(sorted(json.loads(file.read_text())))
    edit(file, lambda config: config.pop(field))
    return f"config.json: no {field}"


def other_rotary(folder: Path, dice: random.Random) -> str:
    field, value = dice.choice(["rope_parameters", "rope_scaling"]), dice.choice(ROTARY)
    edit(folder / "config.json", lambda config: config.update({field: value}))
    return f"config.json: {field}={value}"


def other_size(folder: Path, dice: random.Random) -> str:
    fields = [name for name, value in json.loads((folder / "config.json").read_text()).items() if type(value) is int]
    field, factor = dice.choice(fields), dice.choice([0.5, 2, 1.1, 1000])
    edit(folder / "config.json", lambda config: config.update({field: int(config[field] * factor)}))
    return f"config.json: {field} x {factor}"


def tied_or_not(folder: Path, _: random.Random) -> str:
    edit(folder / "config.json", lambda config: config.update(tie_word_embeddings=not config["tie_word_embeddings"]))
    return "config.json: tie_word_embeddings turned round"


def other_family(folder: Path, dice: random.Random) -> str:
    name, kind = dice.choice([("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2"), ("XForCausalLM", "x")])
    fields = {"architectures": [name], **({"model_type": kind} if dice.random() < 0.5 else {})}
    edit(folder / "config.json", lambda config: config.update(fields))
    return f"config.json: {fields}"


# --- one weight file


def single(damage: Callable[[Tensors, str, random.Random], Any]) -> Damage:
    """A damage of one tensor of a folder with one weight file."""

    def apply(folder: Path, dice: random.Random) -> str:
        tensors = load_file(folder / SINGLE)
        name = dice.choice(sorted(tensors))
        damage(tensors, name, dice)
        save_file(tensors, folder / SINGLE, {"format": "pt"})
        return f"{damage.__name__} {name}"

    return apply


def no_number(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors[name].view(-1)[dice.randrange(tensors[name].numel())] = dice.choice([float("nan"), float("inf"), -3.4e38])


def dropped(tensors: Tensors, name: str, dice: random.Random) -> None:
    del tensors[name]


def renamed(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors[dice.choice([f"model.{name}", name.removeprefix("model."), name + "_", name.upper()])] = tensors.pop(name)


def turned(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors[name] = tensors[name].t().contiguous()


def reshaped(tensors: Tensors, name: str, dice: random.Random) -> None:
    whole = tensors[name]
    tensors[name] = dice.choice([whole.flatten(), whole[None], whole[:-1].clone(), whole[:0].clone()])


def stored_as(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors[name] = tensors[name].to(dice.choice([torch.bfloat16, torch.float16, torch.float64, torch.int8]))


def bias_beside(tensors: Tensors, name: str, dice: random.Random) -> None:
    projection = dice.choice("qkvo")
    size = 64 if projection in "qo" else 32
    tensors[f"model.layers.{dice.randrange(2)}.self_attn.{projection}_proj.bias"] = torch.full((size,), 0.5)


def other_head(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors["lm_head.weight"] = torch.randn(272, 64)


def head_again(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def rotary_table(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(16)


def third_layer(tensors: Tensors, name: str, dice: random.Random) -> None:
    tensors.update({k.replace("layers.1.", "layers.2."): v.clone() for k, v in tensors.items() if "layers.1." in k})


# --- any file


def some_file(folder: Path, dice: random.Random, pattern: str = "*") -> Path:
    return dice.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))


def cut_file(folder: Path, dice: random.Random) -> str:
    file = some_file(folder, dice)
    content = file.read_bytes()
    file.write_bytes(content[: dice.choice([0, 1, 7, len(content) // 2, len(content) - 1])])
    return f"{file.name} cut"


def garbled_file(folder: Path, dice: random.Random) -> str:
    """Of a weight file the header: nobody can see that weights have changed."""
    file = some_file(folder, dice, dice.choice(["*.json", "*.jinja", "*.safetensors"]))
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[:8], "little") + 8 if file.suffix == ".safetensors" else len(content)
    for _ in range(2):
        content[dice.randrange(size)] = dice.randrange(256)
    file.write_bytes(content)
    return f"{file.name} garbled"


def no_file(folder: Path, dice: random.Random) -> str:
    file = some_file(folder, dice)
    file.unlink()
    if dice.random() < 0.3:
        file.mkdir()
        return f"{file.name} is a folder"
    return f"no {file.name}"


def other_json(folder: Path, dice: random.Random) -> str:
    file = some_file(folder, dice, "*.json")
    text = dice.choice(["[" * 100_000, "null", "[]", "3", '"x"', "{}", '{"a":' * 50_000, "\ufeff{}"])
    file.write_text(text)
    return f"{file.name} holds {text:.10}"


def strangers(folder: Path, dice: random.Random) -> str:
    names = ("pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin", "adapter_model.safetensors")
    name = dice.choice([*names, "consolidated.safetensors", "README.md", "modeling_x.py"])
    (folder / name).write_bytes(dice.choice([b"", b"\x80\x04", b"{}"]))
    return f"{name} beside"


# --- several weight files


def split(folder: Path, dice: random.Random) -> dict[str, Any]:
    """Write the weights into two files with an index too; returns its map."""
    tensors = load_file(folder / SINGLE)
    place = {name: f"model-0000{dice.randrange(2) + 1}-of-00002.safetensors" for name in tensors}
    for file in sorted(set(place.values())):
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file, {"format": "pt"})
    write_index(folder, place)
    return place


def write_index(folder: Path, place: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))


def sharded(folder: Path, dice: random.Random) -> str:
    place = split(folder, dice)
    (folder / SINGLE).unlink()
    name, files = dice.choice(sorted(place)), sorted(set(place.values()))
    kinds = ("sound", "no index", "index lacks", "index misplaces", "no shard", "index odd", "twice", "extra")
    match kind := dice.choice(kinds):
        case "no index":
            (folder / INDEX).unlink()
        case "index lacks":
            write_index(folder, {key: file for key, file in place.items() if key != name})
        case "index misplaces":
            write_index(folder, {**place, name: next(file for file in files if file != place[name])})
        case "no shard":
            (folder / dice.choice(files)).unlink()
        case "index odd":
            write_index(folder, {**place, name: dice.choice([None, 3, "", "../x", "/etc/x", "x.safetensors", ["a"]])})
        case "twice" | "extra":
            file = dice.choice(files)
            tensors = load_file(folder / file)
            elsewhere = sorted(key for key in place if place[key] != file)
            tensors["model.extra" if kind == "extra" else dice.choice(elsewhere)] = torch.randn(272, 64)
            save_file(tensors, folder / file, {"format": "pt"})
    return f"shards: {kind} {name}"


def single_beside_shards(folder: Path, dice: random.Random) -> str:
    split(folder, dice)
    single(lambda tensors, name, _: tensors.update({name: tensors[name] * 3}))(folder, dice)
    return "another model.safetensors beside shards"


def index_of_the_single(folder: Path, _: random.Random) -> str:
    write_index(folder, dict.fromkeys(load_file(folder / SINGLE), SINGLE))
    return "index of model.safetensors"


# --- tokenizer and generation


def odd_tokenizer(folder: Path, dice: random.Random) -> str:
    file = folder / dice.choice(["tokenizer_config.json", "tokenizer.json", "generation_config.json"])
    added = ("eos_token", "eos_token_id", "chat_template", "tokenizer_class", "auto_map")
    key, value = dice.choice([*sorted(json.loads(file.read_text())), *added]), dice.choice(ODD_VALUES)
    edit(file, lambda content: content.update({key: value}))
    return f"{file.name}: {key}={value!r:.40}"


def eos_beyond(folder: Path, dice: random.Random) -> str:
    value = dice.choice([272, [5, 272], -1, "</s>", [[1]], 1.5, [True], 2**70])
    edit(folder / "generation_config.json", lambda content: content.update(eos_token_id=value))
    return f"generation_config.json: eos_token_id={value}"


HARMLESS: tuple[Damage, ...] = (single(rotary_table), index_of_the_single, strangers)
DAMAGES: tuple[Damage, ...] = (
    *(odd_field, odd_field, odd_field, missing_field, other_rotary, other_size, tied_or_not, other_family),
    *map(single, (no_number, dropped, renamed, turned, reshaped, stored_as, bias_beside, third_layer)),
    *(single(other_head), single(head_again), cut_file, garbled_file, garbled_file, no_file, other_json),
    *(sharded, sharded, sharded, single_beside_shards, odd_tokenizer, odd_tokenizer, eos_beyond, *HARMLESS),
)


def damaged(folder: Path, damages: Sequence[Damage], dice: random.Random) -> list[str]:
    """Damage the folder; returns what was done."""
    cannot = (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError, StopIteration, SafetensorError)
    done = []
    for damage in damages:
        with contextlib.suppress(*cannot, RuntimeError, RecursionError):
            done.append(damage(folder, dice))
    return done
