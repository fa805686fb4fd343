"""The policy as Hugging Face folders, one beside each checkpoint of a run, complete or absent.

<folder>/step_000040/   config, tokenizer, generation config and chat template of the model the run began with; its own
weights
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder, record_dtype
from megatron_rlpr.weights.save_hf import save_hf_weights

_NAME = re.compile(r"step_(\d{6,})")
_MAX_FILE_BYTES = 5 * 10**9


class HfExport:
    """The folders of one run. All ranks call `save` together; the first one writes."""

    def __init__(self, folder: Path, exporter: WeightExporter, model: Path, keep_last: int) -> None:
        """model: Hugging Face folder the run began with."""
        self._folder = folder
        self._exporter = exporter
        self._model = model
        self._keep_last = keep_last

    def save(self, step: int) -> Path:
        """Write the folder of `step`, then remove those of later steps, which are made again, and those beyond
        keep_last."""
        target = self._folder / f"step_{step:06d}"
        stream = self._exporter.stream()
        try:
            if dist.get_rank() == 0:
                self._write(target, stream)
        finally:
            for _ in stream:  # the other ranks' gathers wait for this one, whatever happened here
                continue
        return target

    def _write(self, target: Path, stream: Iterator[tuple[str, torch.Tensor]]) -> None:
        partial = self._folder / f".partial_{target.name}"
        for unfinished in self._folder.glob(".partial_*"):
            shutil.rmtree(unfinished)
        partial.mkdir(parents=True)
        HfFolder(self._model).copy_companions(partial)
        record_dtype(partial, self._exporter.dtype)
        save_hf_weights(stream, self._exporter.manifest(), self._exporter.dtype, partial, _MAX_FILE_BYTES)
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        steps = {int(m.group(1)): path for path in self._folder.iterdir() if (m := _NAME.fullmatch(path.name))}
        this = int(target.name.removeprefix("step_"))
        kept = sorted(step for step in steps if step <= this)[-self._keep_last :]
        for step, path in steps.items():
            if step not in kept:
                shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Force the files and their names to disk, so that the rename cannot arrive before them."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
