"""Whole updates of the reference's actor on a toy language model.

The reference scales every micro-batch's loss by a number that does not depend on its size (Q1). So two things are
asserted: with that scale put in by hand as sequence weights, our loss gives its metrics, gradients and parameters; with
our own weights the gradient is that of the mini-batch's token mean, however the mini-batch is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from corrections import correction
from golden_files import load

from megatron_rlpr.actor.policy_gradient import STATISTICS, LossTerms, RowValues, policy_gradient
from megatron_rlpr.algorithm.aggregation import row_weights
from megatron_rlpr.types import TrainSequence

FILE = "actor_update.json"
LEARNING_RATE = float(re.findall(r"SGD lr ([\d.]+)", load(FILE)["model"])[0])
METRICS_OF_THE_REFERENCE = (
    4  # Q1: the number of entries of its metrics dictionary replaces the micro-batch's number of rows
)

Split = list[list[int]]
runs = pytest.mark.parametrize("run", [pytest.param(run, id=run["name"]) for run in load(FILE)["runs"]])


class ToyModel:
    """h_t = mean of the embeddings of the valid tokens up to t; logits = head @ h_t."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.emb = torch.tensor(run["init_params"]["emb"], requires_grad=True)
        self.head = torch.tensor(run["init_params"]["head"], requires_grad=True)
        self.temperature = run["temperature"]
        self.tokens = torch.tensor(run["input_ids"])
        self.valid = torch.tensor(run["attention_mask"])
        self.prompt = run["prompt_len"]

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.emb, self.head]

    def response_rows(self) -> torch.Tensor:
        """fp32 [rows, response, 2]: log-prob and entropy of every response position."""
        valid = self.valid[..., None].float()
        hidden = (self.emb[self.tokens] * valid).cumsum(1) / valid.cumsum(1).clamp(min=1)
        log_probs = torch.log_softmax(hidden[:, self.prompt - 1 : -1] @ self.head.T / self.temperature, dim=-1)
        target = log_probs.gather(-1, self.tokens[:, self.prompt :, None])[..., 0]
        return torch.stack([target, -(log_probs.exp() * log_probs).sum(-1)], dim=-1)


class Update:
    """One run of the reference, replayed with this project's loss."""

    def __init__(self, run: dict[str, Any]) -> None:
        config = run["config"]
        self.run = run
        self.model = ToyModel(run)
        self.mask = self.model.valid[:, self.model.prompt :].bool()
        self.tokens = self.mask.sum(1).tolist()
        self.mini_size = config["ppo_mini_batch_size"]
        self.terms = LossTerms(
            config.get("clip_ratio_low", config["clip_ratio"]),
            config.get("clip_ratio_high", config["clip_ratio"]),
            0.0,
            config["entropy_coeff"],
            config["kl_loss_coef"] if config["use_kl_loss"] else 0.0,
            config["kl_loss_type"],
        )

    @property
    def mini_batches(self) -> list[list[int]]:
        rows = range(len(self.tokens))
        return [list(rows[start : start + self.mini_size]) for start in rows[:: self.mini_size]]

    def reference_scale(self) -> float:
        """The factor the reference puts on every micro-batch's mean loss."""
        config = self.run["config"]
        if config["use_dynamic_bsz"]:
            return METRICS_OF_THE_REFERENCE / self.mini_size
        return config["ppo_micro_batch_size_per_gpu"] / self.mini_size

    def loss(
        self, rows: Sequence[int], weights: Sequence[float], terms: LossTerms | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of some sequences with the given weights, and its statistics."""
        values = RowValues.of([self._sequence(row) for row in rows], weights)
        outputs = torch.cat([self.model.response_rows()[row][self.mask[row]] for row in rows])
        loss, statistics = policy_gradient(outputs, values, terms or self.terms)
        return loss, dict(zip(STATISTICS, statistics.tolist(), strict=True))

    def _sequence(self, row: int) -> TrainSequence:
        start, count = self.model.prompt, self.tokens[row]
        valid = self.mask[row].numpy()
        old, advantages, reference = (
            np.array(self.run[name][row], dtype=np.float32)[valid]
            for name in ("old_log_probs", "advantages", "ref_log_prob")
        )
        ids = tuple(self.run["input_ids"][row])
        return TrainSequence(ids, start, start + count, old, advantages, reference if self.terms.kl_coef else None)

    def metrics(self, micro_batch: Sequence[int]) -> dict[str, float]:
        """The reference's means over one micro-batch's tokens, under its metric names."""
        count = sum(self.tokens[row] for row in micro_batch)
        only_policy = replace(self.terms, entropy_coeff=0.0, kl_coef=0.0)
        _, sums = self.loss(micro_batch, [1.0] * len(micro_batch), only_policy)
        names = {
            "actor/entropy_loss": "entropy",
            "actor/pg_loss": "loss",
            "actor/pg_clipfrac": "clipped",
            "actor/ppo_kl": "kl_to_old",
        }
        return {name: sums[ours] / count for name, ours in names.items()}

    def kl(self, micro_batch: Sequence[int]) -> float:
        """Mean token KL of one micro-batch."""
        count = sum(self.tokens[row] for row in micro_batch)
        ones = [1.0] * len(micro_batch)
        with_kl, without = (
            self.loss(micro_batch, ones, replace(self.terms, kl_coef=weight))[0].item() for weight in (1.0, 0.0)
        )
        return (with_kl - without) / count

    def split_of_the_reference(self, step: int) -> Split:
        """The micro-batches of a step, recovered as the split of its rows that explains the recorded entropies."""
        recorded = self.run["metrics"]["actor/entropy_loss"]
        count = len(recorded) // len(self.mini_batches)
        wanted = recorded[step * count : (step + 1) * count]
        for split in splits(self.mini_batches[step], count):
            if [self.metrics(micro_batch)["actor/entropy_loss"] for micro_batch in split] == pytest.approx(
                wanted, abs=1e-5
            ):
                return split
        raise AssertionError(f"no split of rows {self.mini_batches[step]} has the recorded entropies {wanted}")

    def gradients(self, micro_batches: Split, weights: Sequence[float]) -> list[torch.Tensor]:
        """Accumulated over micro-batches; weights[row] is a sequence's weight."""
        total = sum(self.loss(micro_batch, [weights[row] for row in micro_batch])[0] for micro_batch in micro_batches)
        return list(torch.autograd.grad(total, self.model.parameters))


def splits(rows: Sequence[int], count: int) -> Iterator[Split]:
    """Every way to deal rows to `count` non-empty micro-batches."""
    for assignment in product(range(count), repeat=len(rows)):
        if set(assignment) == set(range(count)):
            yield [
                [row for row, where in zip(rows, assignment, strict=True) if where == micro] for micro in range(count)
            ]


@runs
def test_log_probs_and_entropies_divide_the_logits_by_the_temperature(run: dict[str, Any]) -> None:
    model = ToyModel(run)
    mask = model.valid[:, model.prompt :].bool()
    rows = model.response_rows().detach()[mask]
    torch.testing.assert_close(rows[:, 0], torch.tensor(run["log_prob_at_init"])[mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows[:, 1], torch.tensor(run["entropy_at_init"])[mask], rtol=1e-5, atol=1e-5)


@runs
def test_with_the_reference_scale_the_update_is_the_reference_update(run: dict[str, Any]) -> None:
    update = Update(run)
    for step, recorded in enumerate(run["optimizer_steps"]):
        split = update.split_of_the_reference(step)
        for name, values in (
            (name, values) for name, values in run["metrics"].items() if name in update.metrics(split[0])
        ):
            wanted = values[step * len(split) : (step + 1) * len(split)]
            assert [update.metrics(micro_batch)[name] for micro_batch in split] == pytest.approx(wanted, abs=2e-5), name
        last_kl = update.kl(split[-1]) if update.terms.kl_coef else None

        weights = [0.0] * len(update.tokens)
        for micro_batch in split:
            for row in micro_batch:
                weights[row] = update.reference_scale() / sum(update.tokens[other] for other in micro_batch)
        for parameter, gradient in zip(update.model.parameters, update.gradients(split, weights), strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(update.model.parameters, run["config"]["grad_clip"])
        assert norm.item() == pytest.approx(run["metrics"]["actor/grad_norm"][step], rel=1e-4)
        for parameter, name in zip(update.model.parameters, ("emb", "head"), strict=True):
            torch.testing.assert_close(
                parameter.grad, torch.tensor(recorded["clipped_grads"][name]), rtol=1e-4, atol=1e-5
            )
            with torch.no_grad():
                parameter -= LEARNING_RATE * parameter.grad

    if last_kl is not None:
        assert last_kl == pytest.approx(run["metrics"]["actor/kl_loss"], rel=1e-4)
    torch.testing.assert_close(
        update.model.emb.detach(), torch.tensor(run["final_params"]["emb"]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        update.model.head.detach(), torch.tensor(run["final_params"]["head"]), rtol=1e-4, atol=1e-5
    )


@runs
def test_with_our_weights_the_update_is_the_token_mean_however_it_is_cut(run: dict[str, Any]) -> None:
    assert correction(FILE, run["name"]), "the reference's scale is wrong in every run (Q1)"
    update = Update(run)
    rows, split = update.mini_batches[0], update.split_of_the_reference(0)
    shares = [sum(update.tokens[row] for row in micro_batch) for micro_batch in split]
    right = [torch.zeros_like(parameter) for parameter in update.model.parameters]
    for micro_batch, share in zip(split, shares, strict=True):
        mean_gradients = update.gradients([micro_batch], [1.0 / share] * len(update.tokens))
        right = [total + share / sum(shares) * part for total, part in zip(right, mean_gradients, strict=True)]

    by_row = dict(zip(rows, row_weights([update.tokens[row] for row in rows], "token-mean", 0), strict=True))
    weights = [float(by_row.get(row, 0.0)) for row in range(len(update.tokens))]
    for count in range(1, len(rows) + 1):
        for other_split in splits(rows, count):
            for gradient, expected in zip(update.gradients(other_split, weights), right, strict=True):
                torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
