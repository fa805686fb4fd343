"""The safetensors of a Hugging Face folder by name; reads only the pieces that are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron_rlpr.types import UserError

INDEX = "model.safetensors.index.json"

TIED_HEAD = "lm_head.weight"
"""The output head's name, under which folders of models with tied embeddings may store the embedding again."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Stored dtypes that can be weights."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and what it looks like."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class HfTensors:
    """The tensors of a folder, one file or several with an index. Opening it reads the files' headers only."""

    def __init__(self, folder: str | Path) -> None:
        """Raises UserError when there are no weights, a file is missing or broken, or the index names what is not
        there."""
        self.folder = Path(folder)
        self.stored: dict[str, StoredTensor] = {}
        for file in self._files():
            self.stored.update(_header(file))
        self._check_index()

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: frozenset[str] = frozenset()) -> None:
        """Raise UserError unless the folder holds exactly these names with these shapes.

        ignored: names that may be there as well. Rotary tables, which old folders store, are always ignored.
        """
        missing = [name for name in expected if name not in self.stored]
        if missing:
            raise UserError(
                f"{self.folder}: {len(missing)} tensors are missing, e.g. {missing[0]} of shape "
                f"{list(expected[missing[0]])}"
            )
        extra = [
            n for n in self.stored if n not in expected and n not in ignored and not n.endswith("rotary_emb.inv_freq")
        ]
        if extra:
            found = self.stored[extra[0]]
            example = f"{extra[0]} of shape {list(found.shape)}"
            raise UserError(
                f"{found.file}: {len(extra)} tensors have no place in the model of config.json, e.g. {example}"
            )
        for name, shape in expected.items():
            found = self.stored[name]
            if found.shape != shape:
                raise UserError(
                    f"{found.file}: {name} has shape {list(found.shape)}, the model of config.json needs {list(shape)}"
                )

    def read(self, name: str, dim: int | None = None, start: int = 0, stop: int = 0) -> torch.Tensor:
        """One tensor, or its part [start, stop) along dimension 0 or 1."""
        stored = self.stored[name]
        try:
            with safe_open(stored.file, framework="pt") as tensors:
                view = tensors.get_slice(name)
                part = view[:] if dim is None else view[start:stop] if dim == 0 else view[:, start:stop]
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{stored.file}: cannot read {name} ({error}): fetch the model again") from error
        return torch.as_tensor(part)

    def widest_dtype(self) -> torch.dtype:
        """The narrowest of float32 and bfloat16 that holds every stored value exactly."""
        found = {t.dtype for t in self.stored.values()}
        return torch.bfloat16 if found == {torch.bfloat16} else torch.float32

    def _files(self) -> list[Path]:
        if (self.folder / INDEX).is_file():
            files = sorted({self.folder / name for name in self._index().values()})
            for file in files:
                if not file.is_file():
                    raise UserError(f"{self.folder}: {file.name} is missing, {INDEX} names it: fetch the model again")
            return files
        single = self.folder / "model.safetensors"
        files = [single] if single.is_file() else sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"{self.folder} holds no *.safetensors: name a folder with safetensors (pickled weights are not read)"
            )
        return files

    def _index(self) -> dict[str, str]:
        file = self.folder / INDEX
        try:
            names = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
            outside = [n for n in names.values() if Path(n).name != n]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is no safetensors index: expected a 'weight_map' of names; fetch the model again"
            ) from error
        if not names or outside:
            raise UserError(f"{file}: weight_map must name files of this folder, found {outside or 'none'}")
        return dict(names)

    def _check_index(self) -> None:
        if not (self.folder / INDEX).is_file():
            return
        for name, file in self._index().items():
            if name not in self.stored or self.stored[name].file.name != file:
                raise UserError(
                    f"{self.folder / INDEX} says that {name} is in {file}, but it is not: fetch the model again"
                )


def _header(file: Path) -> dict[str, StoredTensor]:
    found = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                view = tensors.get_slice(name)
                if view.get_dtype() not in DTYPES:
                    raise UserError(
                        f"{file}: {name} is stored as {view.get_dtype()}; supported are {', '.join(DTYPES)}"
                    )
                found[name] = StoredTensor(file, tuple(view.get_shape()), DTYPES[view.get_dtype()])
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is no complete safetensors file ({error}): fetch the model again") from error
    return found
