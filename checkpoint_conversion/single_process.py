"""A world of one process that needs no GPU, as both conversions are, and how far they have come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from megatron_rlpr.actor import parallel
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.dtypes import dtype_name


@contextmanager
def one_process(dtype: torch.dtype) -> Iterator[ActorConfig]:
    """Megatron's process groups for a world of this process alone; they end with the block."""
    actor = ActorConfig(dtype=dtype_name(dtype))  # type: ignore[arg-type]
    parallel.initialize(actor, seed=0)
    try:
        yield actor
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextmanager
def byte_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; the callable advances it by a number of bytes."""
    size = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn(what), BarColumn(), *size, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)
