"""Validation settings, accuracies per data source and their means are the reference's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from golden_files import load

from megatron_rlpr.config.schema import EvaluationConfig
from megatron_rlpr.data.dataset import samples_per_prompt
from megatron_rlpr.evaluation.validation_metrics import general_means, reference_metrics


def runs() -> Iterator[Any]:
    for number, run in enumerate(load("validation_metrics.json")["runs"]):
        yield pytest.param(run, id=f"{number}-{run['strategy']}{''.join(run['data_source_suffixes'])}")


def calls(run: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(validation set, strategy, rows) of every call of the reference's reward manager, in order."""
    parsed = []
    for call in run["reward_calls"]:
        name, strategy, _ = call["name"].removeprefix("EXP-").rsplit("-", 2)
        parsed.append((name.removesuffix("_parquet"), strategy, call["rows"]))
    return parsed


@pytest.mark.parametrize("run", runs())
def test_responses_are_sampled_as_by_the_reference(run: dict[str, Any]) -> None:
    for (name, strategy, rows), asked in zip(calls(run), run["generation_meta_info"], strict=True):
        assert asked["n"] == (samples_per_prompt(name) if strategy == "sampling" else 1)
        assert rows % asked["n"] == 0
        assert asked["do_sample"] == (strategy == "sampling")
        if strategy == "sampling":
            assert asked["seed"] == EvaluationConfig().seed
            assert asked["top_p"] == (run["val_top_p"] or EvaluationConfig().top_p)


@pytest.mark.parametrize("run", runs())
def test_accuracies_are_means_over_all_responses(run: dict[str, Any]) -> None:
    accuracies: dict[str, dict[str, list[float]]] = {}
    for number, (name, strategy, rows) in enumerate(calls(run), start=1):
        accuracies.setdefault(strategy, {})[name] = [float((7 * row + number) % 3 == 0) for row in range(rows)]
    if len(run["data_source_suffixes"]) == 1:
        suffix = run["data_source_suffixes"][0]
        named = {
            strategy: {name + suffix: values for name, values in sets.items()} for strategy, sets in accuracies.items()
        }
        assert reference_metrics(named) == pytest.approx(run["metrics"])
        return
    # which row belongs to which of the file's data sources is not stored: their means must lie around the mean of all
    # rows
    for key, value in reference_metrics(accuracies).items():
        parts = [
            run["metrics"][key + suffix] for suffix in run["data_source_suffixes"] if key + suffix in run["metrics"]
        ]
        assert min(parts) - 1e-9 <= value <= max(parts) + 1e-9


@pytest.mark.parametrize("run", runs())
def test_means_over_the_general_sets_are_the_references(run: dict[str, Any]) -> None:
    accuracies: dict[str, dict[str, float]] = {}
    for key, value in run["metrics"].items():
        family, _, source = key.split("/", 2)
        if not family.startswith("val_mean"):
            accuracies.setdefault(family.removeprefix("val_"), {})[source] = value
    means = {key: value for key, value in run["metrics"].items() if key.startswith("val_mean")}
    assert general_means(accuracies) == pytest.approx(means)
