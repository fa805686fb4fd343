"""What one rank writes of a checkpoint: planned with the others, copied to the host, written now or by a thread.

A thread, and no process of its own: one that is forked out of a process with CUDA, NCCL, engines and Ray can wait for
ever for a lock that nobody holds any more, and it outlives a rank that is killed and goes on writing where the next
start begins. The thread holds a copy on the host of what the rank writes, which what is trained meanwhile does not
reach. Writing and SHA-256 leave Python to the other threads.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from megatron_rlpr.system import sealed_folder
from megatron_rlpr.system.decisions import gather_or_raise
from megatron_rlpr.weights.plan_check import planned_quickly


class CheckpointShare:
    """This rank's files in the folder of a checkpoint. All ranks make one together and finish it together."""

    def __init__(self, entries: dict[str, Any], folder: Path, in_background: bool) -> None:
        """Plan, copy to the host, and write, or begin to. Of what data-parallel ranks share each writes a part.

        entries: the sharded state. folder: an empty one. Raises RankError on all ranks when one cannot copy its part.
        """
        _collect_write_results_here()
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        strategy = FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy(), group)
        self._folder = folder
        self._sums: dict[str, str] = {}
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        with planned_quickly():
            self._request = dist_checkpointing.save(
                entries, str(folder), strategy, async_sharded_save=True, async_strategy="mcore"
            )
        gather_or_raise(lambda: self._copy(in_background), dist.group.WORLD, "copying the checkpoint to the host")
        if in_background:
            self._thread = threading.Thread(target=self.write, name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self.write()

    @property
    def written(self) -> bool:
        """Whether this rank is done, well or not; see `finish`."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> dict[str, str]:
        """Wait for all ranks and write what says where everything is. The sums of all ranks' files. Collective.

        Raises torch's CheckpointException, or RankError, when a rank could not write.
        """
        if self._thread is not None:
            self._thread.join()
        for finalize in self._request.finalize_fns:
            finalize()

        def mine() -> dict[str, str]:
            if self._error is not None:
                raise self._error
            return self._sums

        of_ranks = gather_or_raise(mine, dist.group.WORLD, "writing the checkpoint")
        return {name: value for sums in of_ranks for name, value in sums.items()}

    def _copy(self, in_background: bool) -> None:
        """Put the tensors to be written on the host, one after the other in the place of those they are copies of."""
        if self._request.preload_fn is None:
            return
        (buckets, *_) = self._request.preload_fn.args
        for number, (path, name, (objects, tensors)) in enumerate(buckets):
            for place, (item, tensor) in enumerate(tensors):
                on_host = tensor.to("cpu", non_blocking=True)
                if in_background and on_host is tensor:
                    on_host = tensor.clone()
                tensors[place] = (item, on_host)
            buckets[number] = (path, name, (objects, tensors))
        torch.cuda.synchronize()

    def write(self) -> None:
        """Write this rank's files, or leave for `finish` why it could not. Called once, by this class."""
        if self._request.async_fn is None:
            return  # other ranks write all that this one holds
        try:
            self._request.async_fn(*self._request.async_fn_args)  # leaves its errors where `finish` finds them
            for path, name, _ in self._request.async_fn_args[1]:
                if Path(path).is_file():
                    self._sums[f"{self._folder.name}/{name}"] = sealed_folder.sha256(Path(path))
        except BaseException as error:
            self._error = error


def _collect_write_results_here() -> None:
    """Keep Megatron from starting a manager process in every rank to collect its writers' results.

    It is made for writers in processes of their own. That process imports torch (seconds, 250 MB), lives as long as the
    run, and would outlive a rank that is killed.
    """
    filesystem_async._results_queue = queue.Queue()
