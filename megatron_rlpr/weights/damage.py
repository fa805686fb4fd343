"""What goes wrong while a checkpoint is read, as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint import CheckpointException

from megatron_rlpr.system.quoting import reason
from megatron_rlpr.types import UserError


@contextlib.contextmanager
def damage_named(path: Path, fix: str) -> Iterator[None]:
    """Around the loading of a checkpoint: what goes wrong becomes a UserError that names the folder and the fix."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, UnpicklingError, CheckpointingException, CheckpointException) as error:
        raise UserError(f"{path} is damaged ({_reason(error)}): {fix}") from error


def _reason(error: BaseException) -> str:
    """One line; torch wraps what went wrong on each rank."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, UnpicklingError):
        return "a file of it is cut or foreign"  # torch's own text advises to load it unsafely
    return reason(error)
