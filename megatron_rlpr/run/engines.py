"""Where a run's rollouts come from, and what it asks them for in training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from megatron_rlpr.actor.parallel import Layout
from megatron_rlpr.config.checks.engine import engine_settings
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.prompt_source import PromptSource
from megatron_rlpr.rollout.engine import Rollouts
from megatron_rlpr.rollout.owned import Decode
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.pipeline import RolloutPipeline
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.replay import ReplayRollouts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.colocated import ColocatedRollouts
from megatron_rlpr.rollout.vllm.engine import VllmEngine
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import Prompt, UserError
from megatron_rlpr.weights.engine_slices import why_whole
from megatron_rlpr.weights.shape import ModelShape
from megatron_rlpr.weights.transports.choice import Transports
from megatron_rlpr.weights.transports.lane import Lane


def rollouts(config: Config, console: Console, clock: Clock, decode: Decode) -> Rollouts:
    """A store's rollouts, or those of the engines that this starts, here or in Ray. Collective.

    decode: as engines do it.

    Those that sleep do so at once: what comes before the first hand-over (base probabilities, a checkpoint) may take
    the memory.
    """
    if config.rollout.replay:
        return ReplayRollouts(config.rollout.replay, Shares.of_world().size)
    if config.rollout.placement == "ray":
        with console.phase(f"starting {config.rollout.engines} vLLM engines in Ray"):
            return RayRollouts(partial(_pool, config, console), partial(_lane, config), decode)
    with console.phase("starting vLLM"):
        settings, deal = engine_settings(config), config.rollout.deal
        as_there_is_room = deal == "outstanding_tokens" or (deal == "auto" and torch.cuda.is_available())
        colocated = ColocatedRollouts(VllmEngine(settings), clock, settings.max_num_seqs if as_there_is_room else None)
        colocated.sleep()
        return colocated


def _pool(config: Config, console: Console) -> EnginePool:
    """Connect this process, the first rank, to Ray and start the engines."""
    rollout, settings = config.rollout, engine_settings(config)
    ray_cluster.connect(rollout.ray_address, cpus=rollout.engines * settings.threads)
    return EnginePool(rollout.engines, settings, timeout_s=rollout.engine_timeout_s, on_event=console.message)


def _lane(config: Config, address: str) -> Lane:
    """For weights from this rank to engines in Ray."""
    weights = config.weights
    transports = Transports(weights.transport, address, weights.bucket_mb * 2**20, config.rollout.engine_timeout_s)
    return Lane(transports, weights.delta)


def shared_slices(config: Config, source: Rollouts, shape: ModelShape, layout: Layout, console: Console) -> int:
    """Ranks of an engine of which each gets its slices of the weights; 1: whole tensors. Collective; says why.

    UserError with weights.sharded=true where they cannot.
    """
    wanted, size = config.weights.sharded, config.rollout.tensor_parallel_size
    if wanted == "false":
        reason = "weights.sharded=false"
    elif not isinstance(source, ColocatedRollouts | RayRollouts):
        reason = "there is no engine"
    else:
        reason = why_whole(shape, size, layout.world_size // layout.pipeline_size) or source.why_whole()
    if reason and wanted == "true":
        raise UserError(f"weights.sharded=true, but engines get whole tensors ({reason}): set it to auto")
    kind = f"whole tensors: {reason}" if reason else f"a slice of each tensor for each of an engine's {size} ranks"
    console.message(f"hand-over of {kind}")
    return 1 if reason else size


def pipeline(config: Config, source: Rollouts, prompts: PromptSource, last_step: int) -> RolloutPipeline | None:
    """One round of generation ahead of training, where that is asked for (rollout.pipeline=1)."""
    if not config.rollout.pipeline or not isinstance(source, RayRollouts):
        return None
    return RolloutPipeline(source, prompts, partial(training_request, config), last_step)


def training_request(config: Config, prompts: Sequence[Prompt], step: int) -> RolloutRequest:
    """What training asks for these prompts in a step."""
    rollout = config.rollout
    sampling = SamplingSettings(rollout.temperature, rollout.top_p, rollout.top_k, config.data.max_response_length)
    return RolloutRequest(prompts, rollout.n, step, config.trainer.seed, sampling)
