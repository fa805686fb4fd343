"""Spreading experts over ranks changes nothing: scores, losses, gradients, and what a checkpoint goes on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

pytestmark = pytest.mark.distributed

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))
from layout_cases import EXPERT_CASES, SAVED_AFTER, TEMPERATURE, UPDATES, requests  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
# Few tokens and many experts: some experts get no token of a micro-batch.
MODELS: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=24, num_experts=32, num_experts_per_tok=3, norm_topk_prob=False
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, config in MODELS.items():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("mlp.gate.weight"):
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def policy(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("work")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(PROGRAMS / "expert_layouts.py"), str(models), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.rpartition("RESULT ")[2])
    return found


def flat(rows: list[list[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(row) for row in rows])


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_those_of_transformers_in_double_precision(policy: dict[str, Any], models: Path, model: str) -> None:
    # The grouped matrix product of experts takes no double precision.
    reference = AutoModelForCausalLM.from_pretrained(
        models / model, dtype=torch.float64, experts_implementation="eager"
    )
    log_probs: list[float] = []
    for request in requests(reference.config.vocab_size):
        with torch.no_grad():
            logits = reference(torch.tensor([request.token_ids])).logits[0]
        rows = (logits[request.start - 1 : request.stop - 1] / TEMPERATURE).log_softmax(-1)
        log_probs += rows.gather(1, torch.tensor(request.token_ids[request.start : request.stop])[:, None])[
            :, 0
        ].tolist()
    np.testing.assert_allclose(flat(policy["1 process"][model]["log_probs"]), log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", EXPERT_CASES)
def test_scores_do_not_depend_on_where_the_experts_are(policy: dict[str, Any], layout: str, model: str) -> None:
    found, alone = policy[layout][model], policy["1 process"][model]
    for part in ("log_probs", "entropies"):
        np.testing.assert_allclose(flat(found[part]), flat(alone[part]), atol=1e-5, rtol=0)
    assert found["one_request"] < 1e-5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", EXPERT_CASES)
def test_losses_and_gradients_do_not_depend_on_where_the_experts_are(
    policy: dict[str, Any], layout: str, model: str
) -> None:
    found, alone = policy[layout][model], policy["1 process"][model]
    assert len(found["loss"]) == UPDATES
    for part in ("loss", "grad_norm", "entropy", "clip_fraction", "kl_to_old"):
        np.testing.assert_allclose(found[part], alone[part], rtol=1e-4, err_msg=part)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", EXPERT_CASES)
def test_a_rank_without_sequences_serves_its_experts_to_the_others(
    policy: dict[str, Any], layout: str, model: str
) -> None:
    found, alone = policy[layout][model]["one_sequence"], policy["1 process"][model]["one_sequence"]
    for part in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[part], alone[part], rtol=1e-3, err_msg=part)


@pytest.mark.parametrize("model", MODELS)
def test_the_updates_of_the_comparison_change_the_policy(policy: dict[str, Any], model: str) -> None:
    alone = policy["1 process"][model]
    assert all(after < before for before, after in zip(alone["loss"], alone["loss"][1:], strict=False))
    assert min(alone["grad_norm"]) > 0.1
    assert np.abs(flat(alone["after"]) - flat(alone["log_probs"])).max() > 0.1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", EXPERT_CASES)
def test_a_checkpoint_goes_on_with_experts_spread_otherwise(policy: dict[str, Any], layout: str, model: str) -> None:
    resumed, uninterrupted = policy[layout][model]["resumed"], policy["1 process"][model]
    for part in ("loss", "grad_norm", "entropy", "kl_to_old"):
        np.testing.assert_allclose(resumed[part], uninterrupted[part][SAVED_AFTER:], rtol=1e-4, err_msg=part)
