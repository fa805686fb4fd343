"""The parts of a run, as `run.build` makes them and the trainer uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.algorithm.kl import KLController
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.prompt_source import PromptSource
from megatron_rlpr.evaluation.schedule import ValidationSchedule
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.reward.scoring import GroupScorer
from megatron_rlpr.rollout.engine import Rollouts
from megatron_rlpr.rollout.ray.pipeline import RolloutPipeline
from megatron_rlpr.rollout.writing import RolloutWriter
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.tracking.collapse_alarm import CollapseAlarm
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.tracking.tracker import Tracker
from megatron_rlpr.weights.handover import HandOver
from megatron_rlpr.weights.hf_export import HfExport


@dataclass(frozen=True)
class RunParts:
    """Everything a trainer needs.

    reference: the initial policy, where a KL to it counts. pipeline: where rollouts run one round ahead. prompt_sets:
    by name, the prompts whose base probabilities the rewards of this run need. fingerprints: see `run.continuity`.
    resume_step: the finished step the run goes on after, 0 for a new one. lock: keeps other runs out of the
    folder (first rank).
    """

    config: Config
    folder: RunFolder
    tokenizer: Any
    policy: MegatronPolicy
    reference: MegatronPolicy | None
    kl_controller: KLController
    rollouts: Rollouts
    shares: Shares
    writer: RolloutWriter
    pipeline: RolloutPipeline | None
    graders: GraderPool
    scorer: GroupScorer
    prompt_sets: Mapping[str, PromptSet]
    prompts: PromptSource
    fingerprints: Mapping[str, str]
    std_filter: StdFilter
    hand_over: HandOver
    validation: ValidationSchedule
    checkpoints: CheckpointStore
    hf_export: HfExport | None
    resume_step: int
    tracker: Tracker
    collapse_alarm: CollapseAlarm
    console: Console
    clock: Clock
    total_steps: int
    lock: IO[str] | None
