"""Write the model as Hugging Face safetensors, one file or several with an index, one tensor in memory at a time.

The format (https://huggingface.co/docs/safetensors): the length of a JSON header as 8 little-endian bytes, the header,
which gives dtype, shape and place of every tensor, then their bytes without gaps. Names and shapes are known
beforehand, so the header is written first and the tensors follow as they come.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path

import torch

from megatron_rlpr.weights.buckets import in_buckets
from megatron_rlpr.weights.hf_folder import INDEX, STORED_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_ALIGNMENT = 8  # of the first tensor, for readers that map the file


def plan_files(
    manifest: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    max_file_bytes: int,
    parts: Sequence[Sequence[str]] | None = None,
) -> dict[str, str]:
    """Tensor name -> file name, filling files in order. A tensor larger than a file gets its own.

    parts: all names of the manifest in the order they are written, one list for each rank that writes files of its own;
    None: the manifest's order, by one rank.
    """
    nbytes = lambda name: prod(manifest[name]) * dtype.itemsize  # noqa: E731
    files = [names for part in parts or [list(manifest)] for names in in_buckets(part, nbytes, max_file_bytes)]
    if len(files) == 1:
        return dict.fromkeys(files[0], "model.safetensors")
    return {name: f"model-{i:05}-of-{len(files):05}.safetensors" for i, names in enumerate(files, 1) for name in names}


def save_hf_weights(
    tensors: Iterable[tuple[str, torch.Tensor]],
    manifest: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    folder: Path,
    max_file_bytes: int,
    on_written: Callable[[int], None] | None = None,
) -> None:
    """Write the stream of an exporter (its tensors in the manifest's order) into an existing folder.

    on_written: called with the bytes of every tensor that was written. Raises ValueError when the stream is not what
    the manifest announces.
    """
    file_of = plan_files(manifest, dtype, max_file_bytes)
    write_files(tensors, file_of, manifest, dtype, folder, on_written)
    write_index(file_of, manifest, dtype, folder)


def write_files(
    tensors: Iterable[tuple[str, torch.Tensor]],
    file_of: Mapping[str, str],
    manifest: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    folder: Path,
    on_written: Callable[[int], None] | None = None,
) -> None:
    """Write the files that a stream fills: file_of names its tensors in order. Otherwise as `save_hf_weights`."""
    source = iter(tensors)
    for file, names in groupby(file_of, key=file_of.__getitem__):
        in_file = list(names)
        with (folder / file).open("wb") as out:
            out.write(_header(in_file, manifest, dtype))
            for name in in_file:
                nbytes = out.write(_raw_bytes(name, next(source, None), manifest[name], dtype))
                if on_written is not None:
                    on_written(nbytes)
            out.flush()
            os.fsync(out.fileno())
    extra = next(source, None)
    if extra is not None:
        raise ValueError(f"the stream goes on with {extra[0]}, which was not announced")


def write_index(
    file_of: Mapping[str, str], manifest: Mapping[str, tuple[int, ...]], dtype: torch.dtype, folder: Path
) -> None:
    """Write the index of a model in several files; one in one file has none."""
    if len(set(file_of.values())) > 1:
        total = sum(prod(shape) for shape in manifest.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": dict(file_of)}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(names: Sequence[str], manifest: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        stop = start + prod(manifest[name]) * dtype.itemsize
        entries[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(manifest[name]), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _raw_bytes(
    name: str, found: tuple[str, torch.Tensor] | None, shape: tuple[int, ...], dtype: torch.dtype
) -> memoryview:
    """The tensor's bytes in row-major order, after checking that it is the one that was announced."""
    if found is None:
        raise ValueError(f"the stream ends before {name}")
    tensor = found[1]
    if found[0] != name or tuple(tensor.shape) != shape or tensor.dtype != dtype:
        brings = f"{found[0]} {list(tensor.shape)} in {tensor.dtype}"
        raise ValueError(f"expected {name} {list(shape)} in {dtype}, the stream brings {brings}")
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
