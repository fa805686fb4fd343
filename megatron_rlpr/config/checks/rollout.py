"""Where engines run: what the two placements need, and which keys only one of them knows."""

from __future__ import annotations

from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError

_RAY_ONLY = (
    "rollout.engines",
    "rollout.pipeline",
    "rollout.cpus_per_engine",
    "rollout.engine_timeout_s",
    "rollout.ray_address",
    "weights.transport",
)


def check(config: Config, world_size: int) -> None:
    """Raise UserError when the engines cannot be placed as asked."""
    if config.rollout.placement == "ray":
        _check_ray(config)
    else:
        _check_colocated(config, world_size)


def _check_colocated(config: Config, world_size: int) -> None:
    for name in _RAY_ONLY:
        key = all_keys()[name]
        value = getattr(getattr(config, name.split(".")[0]), key.name)
        if value != key.default:
            raise UserError(
                f"{name}={value} has no effect with rollout.placement=colocated: set rollout.placement=ray or remove it"
            )
    size = config.rollout.tensor_parallel_size
    if world_size % size:
        raise UserError(
            f"rollout.tensor_parallel_size={size} does not divide the {world_size} processes: every engine needs the "
            "same number of ranks"
        )


def _check_ray(config: Config) -> None:
    rollout = config.rollout
    if rollout.replay:
        raise UserError(
            f"rollout.placement=ray with rollout.replay={rollout.replay}: stored rollouts need no engines, remove one "
            "of the two"
        )
    if rollout.pipeline and not config.algorithm.importance_cap:
        raise UserError(
            "rollout.pipeline=1 trains on responses of older weights, which needs importance sampling: set "
            "algorithm.importance_cap, e.g. 2"
        )
    if rollout.pipeline and not config.filter.cache_regenerate:
        raise UserError(
            "rollout.pipeline=1 with filter.cache_regenerate=false: carried groups could fill a step whose round is "
            "under way already; set filter.cache_regenerate=true or rollout.pipeline=0"
        )
