"""This project's side of a benchmark: the policy on one process, and what its work costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.costs import cost_model
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.packing import plan
from megatron_rlpr.types import ScoreRequest
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights
from megatron_rlpr.weights.shape import ModelShape


@dataclass(frozen=True)
class BenchPolicy:
    """A policy with the shape and the settings it was built with."""

    policy: MegatronPolicy
    shape: ModelShape
    actor: ActorConfig

    def work(self, requests: list[ScoreRequest]) -> tuple[int, float, float]:
        """(distinct tokens, FLOPs of linear layers and head, FLOPs of attention) of a forward over these requests."""
        costs = cost_model(self.shape)
        packed = plan(requests, self.actor.max_tokens_per_micro_batch, 1, self.actor.share_prefixes, costs)
        trees = packed.for_rank(0)
        tokens = sum(tree.num_tokens for tree in trees)
        pairs = sum(tree.attention_pairs for tree in trees)
        rows = sum(tree.head_rows for tree in trees)
        return tokens, costs.flops(tokens, 0, rows), costs.flops(0, pairs, 0)


def load(folder: Path, actor: ActorConfig, trainable: bool) -> BenchPolicy:
    """The policy with this folder's weights, on one process."""
    layout = parallel.initialize(actor, seed=1)
    shape = model_shape(HfFolder(folder).config())
    policy = MegatronPolicy(shape, actor, layout, temperature=1.0, trainable=trainable)
    load_hf_weights(policy.chunks, shape, folder)
    policy.weights_changed()
    return BenchPolicy(policy, shape, actor)
