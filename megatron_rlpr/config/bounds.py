"""The range of every number in the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError


@dataclass(frozen=True)
class Bounds:
    """Allowed values: low <= x <= high, without the ends where they are open, and those in `also`."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    also: tuple[float, ...] = ()

    def hold(self, value: float) -> bool:
        if value in self.also:
            return True
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        below = self.high is None or value < self.high or (value == self.high and not self.high_open)
        return above and below

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"{'greater than' if self.low_open else 'at least'} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'less than' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(parts) + "".join(f", or {value:g}" for value in self.also)


ANY = Bounds()
POSITIVE = Bounds(low=0, low_open=True)
AT_LEAST_ZERO = Bounds(low=0)
AT_LEAST_ONE = Bounds(low=1)
SHARE = Bounds(low=0, high=1)
POSITIVE_SHARE = Bounds(low=0, high=1, low_open=True)
BELOW_ONE = Bounds(low=0, high=1, high_open=True)

BOUNDS = {
    "data.train_batch_size": AT_LEAST_ONE,
    "data.max_prompt_length": AT_LEAST_ONE,
    "data.val_max_prompt_length": AT_LEAST_ONE,
    "data.max_response_length": AT_LEAST_ONE,
    "data.seed": AT_LEAST_ZERO,
    "rollout.n": AT_LEAST_ONE,
    "rollout.temperature": POSITIVE,
    "rollout.top_p": POSITIVE_SHARE,
    "rollout.top_k": Bounds(low=1, also=(-1,)),
    "rollout.engines": AT_LEAST_ONE,
    "rollout.tensor_parallel_size": AT_LEAST_ONE,
    "rollout.pipeline": Bounds(low=0, high=1),
    "rollout.cpus_per_engine": AT_LEAST_ONE,
    "rollout.engine_timeout_s": AT_LEAST_ONE,
    "rollout.max_num_seqs": AT_LEAST_ONE,
    "rollout.kv_cache_gb": POSITIVE,
    "rollout.gpu_memory_utilization": POSITIVE_SHARE,
    "reward.format_coefficient": Bounds(low=0, high=1, also=(-1,)),
    "reward.repetition_penalty_max_repetitions_limit": AT_LEAST_ONE,
    "reward.pr_weight": AT_LEAST_ZERO,
    "reward.vr_weight": AT_LEAST_ZERO,
    "filter.ema_ratio": SHARE,
    "filter.ema_start_step": AT_LEAST_ONE,
    "filter.start_step": AT_LEAST_ONE,
    "filter.std_filter_beta": AT_LEAST_ZERO,
    "filter.accuracy_lower_bound": ANY,
    "filter.accuracy_upper_bound": ANY,
    "filter.max_rounds": AT_LEAST_ONE,
    "algorithm.clip_ratio_low": BELOW_ONE,
    "algorithm.clip_ratio_high": AT_LEAST_ZERO,
    "algorithm.clip_ratio_dual": Bounds(low=1, low_open=True, also=(0,)),
    "algorithm.importance_cap": AT_LEAST_ZERO,
    "algorithm.entropy_coeff": ANY,
    "algorithm.kl_loss_coef": AT_LEAST_ZERO,
    "algorithm.kl_target": POSITIVE,
    "algorithm.kl_horizon": POSITIVE,
    "algorithm.gamma": SHARE,
    "actor.tensor_model_parallel_size": AT_LEAST_ONE,
    "actor.pipeline_model_parallel_size": AT_LEAST_ONE,
    "actor.context_parallel_size": AT_LEAST_ONE,
    "actor.expert_model_parallel_size": AT_LEAST_ONE,
    "actor.ppo_mini_batch_size": AT_LEAST_ZERO,
    "actor.max_tokens_per_micro_batch": AT_LEAST_ONE,
    "actor.head_chunk_rows": AT_LEAST_ONE,
    "actor.lr": AT_LEAST_ZERO,
    "actor.lr_warmup_steps": AT_LEAST_ZERO,
    "actor.min_lr": AT_LEAST_ZERO,
    "actor.weight_decay": AT_LEAST_ZERO,
    "actor.adam_beta1": BELOW_ONE,
    "actor.adam_beta2": BELOW_ONE,
    "actor.adam_eps": POSITIVE,
    "actor.clip_grad": AT_LEAST_ZERO,
    "actor.recompute_num_layers": AT_LEAST_ONE,
    "weights.bucket_mb": AT_LEAST_ONE,
    "evaluation.n": AT_LEAST_ZERO,
    "evaluation.temperature": AT_LEAST_ZERO,
    "evaluation.top_p": POSITIVE_SHARE,
    "evaluation.seed": AT_LEAST_ZERO,
    "evaluation.max_prompts": AT_LEAST_ZERO,
    "trainer.total_training_steps": AT_LEAST_ZERO,
    "trainer.total_epochs": AT_LEAST_ONE,
    "trainer.seed": AT_LEAST_ZERO,
    "trainer.save_freq": Bounds(low=-1),
    "trainer.keep_last": AT_LEAST_ONE,
    "trainer.test_freq": AT_LEAST_ZERO,
    "trainer.threads_per_rank": AT_LEAST_ZERO,
    "trainer.collective_timeout_s": AT_LEAST_ONE,
}


def check(config: Config) -> None:
    """Raise UserError for the first number that lies outside its range."""
    for full_name, bounds in BOUNDS.items():
        key = all_keys()[full_name]
        value = getattr(getattr(config, key.section), key.name)
        if not bounds.hold(value):
            raise UserError(f"{full_name}={value} must be {bounds}: {key.meaning}")
