"""Every metric a run writes, with its meaning; docs/metrics.md is made from this table.

python -m megatron_rlpr.tracking.metric_names > docs/metrics.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

STEP_METRICS: dict[str, str] = {
    "step": "training step, counted from 1",
    "epoch": "pass over the training prompts, counted from 0",
    "reward/mean": "mean final reward of the responses the step trained on",
    "reward/std_per_group": "standard deviation of the final rewards within a prompt's group, mean over groups",
    "reward/reference_probability": "mean probability of the reference answer after the response's reasoning",
    "reward/base_probability": "mean probability of the reference answer with no reasoning",
    "reward/format": "share of responses with the right tags",
    "reward/repetition": "mean repetition penalty (0 or -1 a response)",
    "reward/accuracy": "share of responses graded right, where a grader ran",
    "reward/ungraded": (
        "responses of this process's run so far that the graders reached no verdict on (time limit, crash): wrong"
    ),
    "reward/splice_valid": "share of responses into which the reference answer could be spliced",
    "final_reward_dist/final_reward{bin}": (
        "share of the final rewards below 0 (<0), at 0 (=0), in each tenth of (0, 1), at 1 (=1) and above 1 (>1)"
    ),
    "filter/threshold": "lower bound of the filter in this step; 0 while it does not act",
    "filter/kept_fraction": "groups kept / groups generated, over all rounds of the step",
    "filter/rate": "share of the groups of the step's last round that were dropped",
    "filter/lower_rate": "share of them below the lower bound",
    "filter/upper_rate": "share of them above filter.accuracy_upper_bound",
    "filter/rounds": "generate-and-filter rounds the step took",
    "filter/cached_prompts": "surplus prompts kept for later steps",
    "filter/flat_groups": "share of trained groups whose rewards are all equal, so that they have no advantage",
    "response_length/mean": "mean tokens of a response, the end-of-sequence token included",
    "response_length/max": "tokens of the longest response",
    "response_length/min": "tokens of the shortest response",
    "response_length/truncated_fraction": "share of responses cut at data.max_response_length",
    "think_length/{end}": "mean, max, min tokens of the reasoning; 0 in a response with wrong tags",
    "answer_length/{end}": "mean, max, min tokens between the answer tags; 0 in a response with wrong tags",
    "reasoning/length": "mean tokens of the reasoning of responses with the right tags",
    "reasoning/share": "mean share of such a response's tokens that are reasoning",
    "reasoning/gain": (
        "mean reference probability minus that of the same policy with the reasoning left out, over responses the "
        "reference answer was spliced into (tracking.reasoning_gain)"
    ),
    "reasoning/probability_without": "mean reference probability of these with the reasoning left out: the tags alone",
    "prompt_length/mean": "mean tokens of a prompt",
    "prompt_length/max": "tokens of the longest prompt",
    "actor/loss": "value of the whole loss: policy gradient, entropy bonus and KL",
    "actor/entropy": "mean entropy of the policy at the response tokens, in nats",
    "actor/ppo_kl": "mean of old minus new log-probability over the response tokens",
    "actor/grad_norm": "global L2 norm of the gradient before clipping",
    "actor/clip_fraction": "share of response tokens whose probability ratio was clipped",
    "actor/lr": "learning rate of the step",
    "actor/optimizer_steps": "optimizer steps taken in this training step",
    "actor/skipped_steps": "optimizer steps skipped because the gradient was not finite",
    "actor/shared_token_fraction": "share of the tokens that prefix sharing did not have to compute",
    "rollout/log_prob_gap": "mean absolute difference of the engine's and the actor's log-prob of a token",
    "rollout/log_prob_gap_max": "largest such difference",
    "rollout/engines_replaced": "engines of this process's run so far that died, hung or failed and were started anew",
    "tokens/s": "prompt and response tokens of the step's generated sequences divided by time/step",
    "tokens/s_rollout": "response tokens generated a second while generating",
    "tokens/s_update": "distinct tokens trained on a second while updating",
    "time/rollout": "seconds spent generating",
    "time/score": "seconds spent scoring",
    "time/reward": "seconds spent on rewards besides the forward pass",
    "time/update": "seconds spent in the policy's update",
    "time/hand_over": "seconds to give the engines the new weights, with offload and wake",
    "time/sleep": "seconds until the engines had given their memory up (rollout.sleep)",
    "time/wake": "seconds until they had it back: for the weights before a hand-over, for the cache after it",
    "time/offload": "seconds until what actor.offload names was on the host, and gradient buffers were released",
    "time/restore": "seconds to bring it back; on a GPU the copies go on while the update begins",
    "weights/hand_overs_repeated": "hand-overs of this process so far that failed and were repeated with new engines",
    "weights/bytes_received": (
        "most bytes of weights that a rank got from other ranks for the step's hand-over, whole tensors or slices"
    ),
    "weights/bytes_sent": "bytes of the step's hand-over that went to a worker of an engine, the most of all "
    "(weights.delta=true)",
    "weights/delta_density": (
        "share of the weights that the step's hand-over changed; 1: they went whole, since an engine was new, say"
    ),
    "time/step": "seconds of the whole step, checkpoint and validation apart",
    "memory/peak_gb": "peak resident memory of the first rank's process so far, in GB (1e9 bytes)",
    "memory/peak_all_ranks_gb": "sum of the ranks' peak resident memories so far, in GB",
    "memory/offloaded_gb": "bytes that the first rank's actor moved to the host in the step, in GB (actor.offload)",
    "memory/restored_gb": "bytes that came back",
    "memory/released_gb": "bytes of gradient buffers that were released without a copy",
    "memory/device_in_use_asleep_gb": (
        "memory in use on the first rank's GPU when its engine fell asleep, in GB: growth over the steps is a leak"
    ),
    "memory/peak_device_gb": "peak memory allocated on the first rank's GPU so far, in GB",
}

REQUIRED: tuple[str, ...] = (
    "reward/mean",
    "reward/reference_probability",
    "reward/base_probability",
    "reward/format",
    "reward/repetition",
    "filter/threshold",
    "filter/kept_fraction",
    "response_length/mean",
    "actor/loss",
    "actor/entropy",
    "actor/grad_norm",
    "actor/clip_fraction",
    "actor/lr",
    "rollout/log_prob_gap",
    "tokens/s",
    "time/rollout",
    "time/score",
    "time/update",
    "time/hand_over",
    "time/step",
)
"""Metrics that every line of metrics.jsonl has besides step, when the step trained on something."""

VALIDATION_METRICS: dict[str, str] = {
    "step": "training step after which the validation ran; 0: before training",
    "val/{set}/{strategy}/reward": "mean final reward over the prompts",
    "val/{set}/{strategy}/reference_probability": "mean reference probability",
    "val/{set}/{strategy}/format": "share of responses with the right tags",
    "val/{set}/{strategy}/accuracy": "share of responses graded right (mean of a prompt's samples first)",
    "val/{set}/{strategy}/accuracy_low": "lower end of its 95% interval (Wilson; of several samples by prompt)",
    "val/{set}/{strategy}/accuracy_high": "upper end",
    "val/{set}/{strategy}/pass@{k}": "unbiased estimate of the chance that one of k responses to a prompt is right",
    "val/{set}/{strategy}/response_length": "mean tokens of a response",
    "val/{set}/{strategy}/judge_turned": "share of responses the judge turned from wrong to right, if any",
    "val/{set}/{strategy}/judge_failures": "responses the judge gave no verdict on: the rules' stands",
    "val/{set}/{strategy}/judge_failures/{cause}": (
        "those of one cause, such as status_429, time_limit (of an answer), no_time_left (for the validation), given_up"
    ),
    "val_{strategy}/test_acc/{source}": "the reference's name: mean accuracy over the prompts of a data source",
    "val_{strategy}/test_acc_low/{source}": "lower end of its 95% interval",
    "val_{strategy}/test_acc_high/{source}": "upper end",
    "val_{strategy}/mean_acc/{group}": (
        "mean accuracy over the sets of general reasoning (general), of mathematics (maths), or over all sets (all); "
        "where there are at least two"
    ),
    "val_{strategy}/mean_acc_low/{group}": "lower end of its 95% interval",
    "val_{strategy}/mean_acc_high/{group}": "upper end",
    "val_mean_{strategy}/test_acc/{mean}": (
        "the reference's means over the general benchmarks; only where data sources name a prompt style"
    ),
    "val_mean/test_acc/{mean}": "the same over the best of both strategies",
}


def _matches(pattern: str, name: str) -> bool:
    """Whether {source} (any text) and other words in braces (text without a slash) can stand for what the name has."""
    parts = re.split(r"(\{\w+\})", pattern)
    texts = {"{source}": ".+"}
    form = "".join(texts.get(part, "[^/]+") if part.startswith("{") else re.escape(part) for part in parts)
    return re.fullmatch(form, name) is not None


def meaning(name: str) -> str | None:
    """What a metric of a step or of a validation is; None where no table here explains it."""
    known = STEP_METRICS | VALIDATION_METRICS
    return next((text for pattern, text in known.items() if _matches(pattern, name)), None)


def undocumented(names: Iterable[str]) -> list[str]:
    """Those of the names that no table here explains."""
    return [name for name in names if meaning(name) is None]


def document() -> str:
    """The text of docs/metrics.md."""

    def table(metrics: dict[str, str]) -> str:
        return "\n".join(
            ["| name | meaning |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in metrics.items())]
        )

    required = ", ".join(f"`{name}`" for name in REQUIRED)
    return f"""\
# Metrics

Made from `megatron_rlpr/tracking/metric_names.py`: `python -m megatron_rlpr.tracking.metric_names > docs/metrics.md`.

## Every step: `runs/<name>/metrics.jsonl`

One JSON object a training step, the same numbers in Weights & Biases and TensorBoard. A number that is not finite is
written as `null`. A run that resumes at step k first removes the lines after k, so the file reads like that of a run
that never stopped. Means are over the responses (or groups) of all data-parallel ranks.

In every step that trained on something: `step`, {required}.

{table(STEP_METRICS)}

## Every validation: `runs/<name>/validation.jsonl`

One JSON object a validation. `{{set}}` is the name of the file without its ending, `{{strategy}}` greedy or sampling.

{table(VALIDATION_METRICS)}

## At the end: `runs/<name>/summary.json`

The first and the last validation side by side, on the same prompts with the same decoding: for `reward`, `format` and
`accuracy` the mean with its 95% interval (`low`, `high`), and under `difference` the mean paired difference with its
interval, the two-sided p-value of the sign test, and whether the two intervals are disjoint. Besides `steps`,
`wall_time_s` and `peak_memory_gb`. `collapse_warnings`: measure, step, value at the start and then, for every warning
of the collapse alarm (`tracking.collapse_*`). `judge`: what the judge did in the last validation, by set and strategy,
under the names above; empty without one.
"""


if __name__ == "__main__":
    sys.stdout.write(document())
