"""Whether a rank may have as many files and sockets open as this run needs."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_rlpr.actor.group_sizes import group_sizes
from megatron_rlpr.config.schema import Config
from megatron_rlpr.system.descriptors import most_allowed, of_groups
from megatron_rlpr.system.shares import node_shape

_OTHERS = 512
"""What else a rank opens: the engine and its compiler, CUDA, graders, checkpoints, logs, with room to spare: on
a CPU whole runs of 1, 2 and 4 ranks had 171, 186 and 214 open at most, groups included."""
_GROUPS_OF_ENGINE = 6
"""vLLM's groups: tensor, pipeline, context (two kinds), data and expert parallel."""


def needed(config: Config, world_size: int) -> int:
    """Files and sockets that a rank of a run has open at once; on a GPU, too, every group has a mesh of gloo's."""
    if world_size == 1:
        return _OTHERS
    sizes, rollout = group_sizes(config.actor, world_size), config.rollout
    sizes += [world_size, node_shape(0, world_size)[1]]  # our own: of rollouts, and of a node that stores them
    if rollout.placement == "colocated" and (config.data.val_files or not rollout.replay):
        engine = rollout.tensor_parallel_size * rollout.data_parallel_size
        # Each of vLLM's groups is two: for devices (gloo's without CUDA), and for the host.
        sizes += 2 * [world_size, *[engine] * _GROUPS_OF_ENGINE]
    return _OTHERS + of_groups(sizes) + world_size  # the first rank's store has a connection to every one


def refusals(config: Config, world_size: int) -> Iterator[str]:
    """One sentence where the system allows fewer than a rank needs."""
    asked, allowed = needed(config, world_size), most_allowed()
    if asked > allowed:
        yield (
            f"a rank of {world_size} opens up to {asked} files and sockets (groups of ranks are connected each with "
            f"each), and this system allows a process {allowed:.0f}: raise the hard limit on every host (ulimit -Hn "
            f"{asked}, LimitNOFILE={asked} in a systemd unit, docker run --ulimit nofile={asked}, slurm's "
            "PropagateResourceLimits), or start fewer ranks"
        )
