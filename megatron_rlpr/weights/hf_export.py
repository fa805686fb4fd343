"""The policy as Hugging Face folders beside a run's checkpoints: its weights, all else of the model it began with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.save_hf import save_hf_weights

_MAX_FILE_BYTES = 5 * 10**9


class HfExport:
    """The folders of one run. All ranks call `save` together; the first one writes."""

    def __init__(self, folder: Path, exporter: WeightExporter, model: Path, keep_last: int) -> None:
        """model: Hugging Face folder the run began with."""
        self._folders = StepFolders(folder, keep_last=keep_last)
        self._exporter = exporter
        self._model = HfFolder(model)

    def save(self, step: int) -> Path:
        """Write the folder of `step`, then remove those beyond keep_last and of later steps, which are made again."""
        stream = iter(self._exporter)
        try:
            if dist.get_rank() == 0:
                self._write(step, stream)
        finally:
            for _ in stream:  # the other ranks' gathers wait for this one, whatever happened here
                continue
        return self._folders.path(step)

    def _write(self, step: int, stream: Iterator[tuple[str, torch.Tensor]]) -> None:
        with self._folders.writing(step):
            partial = self._folders.begin(step)
            self._model.copy_companions(partial, self._exporter.dtype)
            save_hf_weights(stream, self._exporter.manifest(), self._exporter.dtype, partial, _MAX_FILE_BYTES)
            self._folders.finish(step)
        self._folders.forget_after(step)
