"""The policy as Hugging Face folders beside a run's checkpoints: its weights, all else of the model it began with.

Every pipeline stage writes the files of its own layers: no weight leaves its stage.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch.distributed as dist

from megatron_rlpr.system.decisions import first_rank_decides, gather_or_raise
from megatron_rlpr.system.disk import writing
from megatron_rlpr.system.step_folders import StepFolders
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.save_hf import plan_files, write_files, write_index

_MAX_FILE_BYTES = 5 * 10**9


class HfExport:
    """The folders of one run. All ranks call `save` together; the first one of every stage writes."""

    def __init__(self, folder: Path, exporter: WeightExporter, model: Path, keep_last: int) -> None:
        """model: Hugging Face folder the run began with."""
        self._folders = StepFolders(folder, keep_last=keep_last)
        self._exporter = exporter
        self._model = HfFolder(model)
        self._file_of = plan_files(exporter.manifest(), exporter.dtype, _MAX_FILE_BYTES, exporter.names_of_stages())

    def save(self, step: int) -> Path:
        """Write the folder of `step`, then remove those beyond keep_last and of later steps, which are made again.

        What a rank cannot write is raised on all of them and leaves nothing behind.
        """
        with self._folders.writing(step) if dist.get_rank() == 0 else nullcontext():
            first_rank_decides(lambda: self._begin(step))
            gather_or_raise(lambda: self._write_stage(step), dist.group.WORLD, "writing the Hugging Face folder")
            return first_rank_decides(lambda: self._finish(step))

    def _begin(self, step: int) -> None:
        with writing(self._folders.path(step)):
            partial = self._folders.begin(step)
            self._model.copy_companions(partial, self._exporter.dtype)

    def _write_stage(self, step: int) -> None:
        exporter, partial = self._exporter, self._folders.unfinished(step)
        stream = exporter.of_stage()
        try:
            if exporter.is_first_of_stage:
                mine = {name: self._file_of[name] for name in exporter.names_of_stages()[exporter.stage]}
                with writing(partial):
                    write_files(stream, mine, exporter.manifest(), exporter.dtype, partial)
        finally:
            for _ in stream:  # the stage's other ranks wait for this one, whatever happened here
                continue

    def _finish(self, step: int) -> Path:
        exporter = self._exporter
        write_index(self._file_of, exporter.manifest(), exporter.dtype, self._folders.unfinished(step))
        written = self._folders.finish(step)
        self._folders.forget_after(step)
        return written
