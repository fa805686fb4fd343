"""The one reader of Hugging Face model folders: configuration, tokenizer, safetensors, and the files beside them.

Nothing is read before it is asked for: `config` opens config.json, `weight_files` at most the index, `stored` the
safetensors' headers, `read` the piece that is wanted. Every fault is a UserError that names the file and the fix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_rlpr.system.dtypes import all_finite, dtype_name
from megatron_rlpr.types import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

EMBEDDING = "model.embed_tokens.weight"
OUTPUT_HEAD = "lm_head.weight"
"""The output head's name, under which folders of models with tied embeddings may store the embedding again."""

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Stored dtypes that can be weights, by their names in safetensors."""

_COMPANIONS = (
    *("config.json", "generation_config.json", "LICENSE*", "chat_template.jinja", "chat_template.json"),
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "additional_chat_templates/*.jinja"),
)
_FETCH = "fetch the model again"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and what it looks like."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class HfFolder:
    """A model's folder. Making it reads nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def config(self) -> dict[str, Any]:
        """config.json."""
        if not self.path.is_dir():
            holds = "config.json, the tokenizer and *.safetensors"
            raise UserError(f"there is no model folder {self.path}: name a Hugging Face folder with {holds}")
        file = self.path / "config.json"
        if not file.is_file():
            raise UserError(f"{self.path} holds no config.json: it is no Hugging Face model folder")
        return _json_object(file)

    def generation_config(self) -> dict[str, Any] | None:
        """generation_config.json; None when there is none."""
        file = self.path / "generation_config.json"
        return _json_object(file) if file.is_file() else None

    def check_companions(self) -> None:
        """Raise UserError for a file beside the weights that is cut: each *.json must hold a JSON object."""
        for file in self.companions():
            if file.suffix == ".json":
                _json_object(file)

    def check_tokenizer(self) -> None:
        """Raise UserError unless there is a fast tokenizer."""
        if not (self.path / "tokenizer.json").is_file():
            save = "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            raise UserError(f"{self.path} holds no tokenizer.json: a fast tokenizer is needed; save one with {save}")

    def weight_files(self) -> list[Path]:
        """The safetensors that hold the weights: those of the index, else model.safetensors, else all there are."""
        if (self.path / INDEX).is_file():
            if (self.path / SINGLE).is_file() and set(self._index().values()) != {SINGLE}:
                fault = f"{self.path} holds {SINGLE} and {INDEX} of other files, and programs differ in which they read"
                raise UserError(f"{fault}: remove those that do not belong to the model")
            names = sorted(set(self._index().values()))
            missing = [name for name in names if not (self.path / name).is_file()]
            if missing:
                lacks = f"lacks {len(missing)} of {len(names)} weight files, e.g. {missing[0]}"
                raise UserError(f"{self.path} {lacks}, which {INDEX} names: {_FETCH}")
            return [self.path / name for name in names]
        single = self.path / SINGLE
        files = [single] if single.is_file() else sorted(self.path.glob("*.safetensors"))
        if not files:
            pickled = sorted(path.name for ending in ("bin", "pt", "pth") for path in self.path.glob(f"*.{ending}"))
            fix = f"pickled weights ({pickled[0]}) can run code, save them as safetensors" if pickled else _FETCH
            raise UserError(f"{self.path} holds no *.safetensors: {fix}")
        return files

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor by name, from the headers of all weight files, which must agree with the index."""
        found: dict[str, StoredTensor] = {}
        for file in self.weight_files():
            for name, tensor in _header(file).items():
                if name in found:
                    raise UserError(f"{file} holds {name}, and so does {found[name].file.name}: {_FETCH}")
                found[name] = tensor
        for name, place in self._index().items() if (self.path / INDEX).is_file() else ():
            if name not in found or found[name].file.name != place:
                raise UserError(f"{self.path / INDEX} says that {name} is in {place}, but it is not: {_FETCH}")
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight; rotary tables, which old folders store, are none."""
        return {name: tensor.shape for name, tensor in self.stored.items() if not name.endswith("rotary_emb.inv_freq")}

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: frozenset[str] = frozenset()) -> None:
        """Raise UserError unless the weights have exactly these names and shapes. ignored: names that may be there."""
        missing = [name for name in expected if name not in self.stored]
        if missing:
            example = f"{missing[0]} of shape {list(expected[missing[0]])}"
            raise UserError(f"{self.path}: {len(missing)} tensors are missing, e.g. {example}")
        extra = [name for name in self.shapes() if name not in expected and name not in ignored]
        if extra:
            found = self.stored[extra[0]]
            fault = f"{len(extra)} tensors have no place in the model of config.json"
            raise UserError(f"{found.file}: {fault}, e.g. {extra[0]} of shape {list(found.shape)}")
        for name, shape in expected.items():
            found = self.stored[name]
            if found.shape != shape:
                sizes = f"{list(found.shape)}, the model of config.json needs {list(shape)}"
                raise UserError(f"{found.file}: {name} has shape {sizes}")

    def read(self, name: str, dim: int | None = None, start: int = 0, stop: int = 0) -> torch.Tensor:
        """One tensor, or its part [start, stop) along dimension 0 or 1. UserError for values that are no numbers."""
        file = self.stored[name].file
        try:
            with safe_open(file, framework="pt") as tensors:
                view = tensors.get_slice(name)
                part = view[:] if dim is None else view[start:stop] if dim == 0 else view[:, start:stop]
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{file}: cannot read {name} ({error}): {_FETCH}") from error
        values = torch.as_tensor(part)
        if not all_finite(values):
            raise UserError(f"{file}: {name} holds NaN, infinite values or some beyond bfloat16's range: {_FETCH}")
        return values

    def widest_dtype(self) -> torch.dtype:
        """The narrowest of float32 and bfloat16 that holds every stored value exactly."""
        found = {tensor.dtype for tensor in self.stored.values()}
        return torch.bfloat16 if found == {torch.bfloat16} else torch.float32

    def companions(self) -> list[Path]:
        """What belongs to the model beside its weights: configuration, tokenizer, templates, licence."""
        return sorted({path for pattern in _COMPANIONS for path in self.path.glob(pattern) if path.is_file()})

    def copy_companions(self, target: Path, dtype: torch.dtype | None = None) -> None:
        """Copy them into a folder, which is made when it is missing.

        dtype: of the weights that come beside them: config.json names it, since transformers loads them accordingly.
        """
        target.mkdir(parents=True, exist_ok=True)
        for path in self.companions():
            copy = target / path.relative_to(self.path)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        if dtype is not None:
            config = HfFolder(target).config()
            field = "torch_dtype" if "torch_dtype" in config else "dtype"
            if config.get(field) != dtype_name(dtype):
                text = json.dumps({**config, field: dtype_name(dtype)}, indent=2) + "\n"
                (target / "config.json").write_text(text, encoding="utf-8")

    def _index(self) -> dict[str, str]:
        file = self.path / INDEX
        names = _json_object(file).get("weight_map")
        if not isinstance(names, dict):
            expected = "expected a 'weight_map' of tensor names and files"
            raise UserError(f"{file} is no safetensors index: {expected}; {_FETCH}")
        outside = [name for name in names.values() if not isinstance(name, str) or Path(name).name != name]
        if not names or outside:
            raise UserError(f"{file}: weight_map must name files of this folder, found {outside[:3] or 'none'}")
        return names


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): {_FETCH}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object, found a {type(content).__name__}")
    return content


def _header(file: Path) -> dict[str, StoredTensor]:
    found = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                view = tensors.get_slice(name)
                dtype = view.get_dtype()
                if dtype not in STORED_DTYPES:
                    raise UserError(f"{file}: {name} is stored as {dtype}; supported are {', '.join(STORED_DTYPES)}")
                found[name] = StoredTensor(file, tuple(view.get_shape()), STORED_DTYPES[dtype])
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is no complete safetensors file ({error}): {_FETCH}") from error
    return found
