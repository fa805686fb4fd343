"""What cannot work is refused before any process group starts: one line each, which names the key and the fix.

pure         combinations of keys, and the number of processes; touches no disk and imports no torch
pipeline     how layers are dealt to pipeline stages, and to the parts of each
machine      what must be here: files and folders, CUDA, Transformer Engine, a judge that can be asked
descriptors  whether a rank may open as many files and sockets as it needs
model        whether the model folder is complete, supported, and fits layout and lengths
engine       how the engines are made, and whether the model can run in them
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_rlpr.config.checks import pure
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError


def check(config: Config, world_size: int) -> None:
    """Raise UserError for the first thing in config that cannot work on world_size processes of this machine.

    Starts nothing and changes nothing.
    """
    _raise_first(_refusals(config, world_size))


def check_policy(config: Config, world_size: int) -> None:
    """As `check`, for tools that build a policy alone: model.path, its weights, the actor's layout and precision."""
    _raise_first(_policy_refusals(config, world_size))


def _raise_first(refusals: Iterator[str]) -> None:
    try:
        for refusal in refusals:
            raise UserError(refusal)
    except OSError as error:  # a folder that may not be entered, a disk that fails
        raise UserError(f"{error.filename or 'a file of this configuration'} cannot be read: {error}") from error


def _refusals(config: Config, world_size: int) -> Iterator[str]:
    """One sentence each, in order; what is checked later may rely on everything before."""
    yield from pure.refusals(config, world_size)
    from megatron_rlpr.config.checks import descriptors, machine, model  # slow to import, not needed to refuse keys

    yield from descriptors.refusals(config, world_size)
    yield from machine.refusals(config, world_size)
    yield from model.refusals(config)


def _policy_refusals(config: Config, world_size: int) -> Iterator[str]:
    yield from pure.policy_refusals(config, world_size)
    from megatron_rlpr.config.checks import machine, model

    yield from machine.policy_refusals(config)
    yield from model.policy_refusals(config)
