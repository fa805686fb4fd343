"""Write the model as Hugging Face safetensors, one file or several with an index, one file's tensors in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_rlpr.weights.hf_tensors import INDEX


def plan_files(manifest: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_file_bytes: int) -> dict[str, str]:
    """Tensor name -> file name, filling files in the manifest's order. A tensor larger than a file gets its own."""
    files: list[list[str]] = [[]]
    size = 0
    for name, shape in manifest.items():
        nbytes = prod(shape) * dtype.itemsize
        if files[-1] and size + nbytes > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += nbytes
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

    on_written: called with the bytes of every file that is on disk. Where several ranks export, one rank calls this
    and the others run through their streams.
    """
    file_of = plan_files(manifest, dtype, max_file_bytes)
    waiting: dict[str, torch.Tensor] = {}
    current = ""

    def write() -> None:
        if not waiting:
            return
        save_file({name: tensor.cpu() for name, tensor in waiting.items()}, folder / current, metadata={"format": "pt"})
        if on_written is not None:
            on_written(sum(tensor.nbytes for tensor in waiting.values()))
        waiting.clear()

    for name, tensor in tensors:
        if file_of[name] != current:
            write()
            current = file_of[name]
        waiting[name] = tensor
    write()
    if len(set(file_of.values())) > 1:
        total = sum(prod(shape) for shape in manifest.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
