"""The layout changes nothing: scores, losses and gradients of the actor, its sharded head, and what a checkpoint goes
on with."""

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
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

pytestmark = pytest.mark.distributed

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))
from layout_cases import CASES, SAVED_AFTER, TEMPERATURE, UPDATES, requests  # noqa: E402

LAYOUTS = [name for name in CASES if name != "bf16"]
MODELS = ("llama tied", "qwen2 untied with biases", "gemma2 with windows and soft caps", "qwen3")


def save_models(folder: Path) -> Path:
    """Four families; the vocabulary of 131 needs padding under TP2. Heads of 32 use vLLM's attention kernel, heads of
    16 plain blocks."""
    sizes: dict[str, Any] = {
        "vocab_size": 131,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    models: dict[str, PreTrainedModel] = {
        MODELS[0]: LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)),
        MODELS[1]: Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=False)),
        MODELS[2]: Gemma2ForCausalLM(
            Gemma2Config(
                **sizes,
                head_dim=32,
                query_pre_attn_scalar=16,
                sliding_window=12,
                attn_logit_softcapping=4.0,
                final_logit_softcapping=6.0,
            )
        ),
        MODELS[3]: Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=32)),
    }
    for name, parameter in models[MODELS[1]].named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def report(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("work")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (work / "output").open("w") as output:
        command = [sys.executable, str(PROGRAMS / "actor_layouts.py"), str(models), str(work)]
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, timeout=240, env=environment, check=False
        ).returncode
    text = (work / "output").read_text()
    assert code == 0, text[-4000:]
    return json.loads(text.rpartition("RESULT ")[2])


@pytest.fixture(scope="module")
def policy(report: dict[str, Any]) -> dict[str, Any]:
    return report["policy"]


def flat(rows: list[list[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(row) for row in rows])


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_those_of_transformers_in_double_precision(policy: dict[str, Any], models: Path, model: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(models / model, dtype=torch.float64, attn_implementation="eager")
    log_probs, entropies = [], []
    for request in requests(reference.config.vocab_size):
        with torch.no_grad():
            logits = reference(torch.tensor([request.token_ids])).logits[0]
        rows = (logits[request.start - 1 : request.stop - 1] / TEMPERATURE).log_softmax(-1)
        log_probs += rows.gather(1, torch.tensor(request.token_ids[request.start : request.stop])[:, None])[
            :, 0
        ].tolist()
        entropies += (-(rows.exp() * rows).sum(-1)).tolist()
    np.testing.assert_allclose(flat(policy["1 process"][model]["log_probs"]), log_probs, atol=1e-5, rtol=0)
    np.testing.assert_allclose(flat(policy["1 process"][model]["entropies"]), entropies, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_do_not_depend_on_the_layout(policy: dict[str, Any], layout: str, model: str) -> None:
    found, alone = policy[layout][model], policy["1 process"][model]
    for part in ("log_probs", "entropies"):
        np.testing.assert_allclose(flat(found[part]), flat(alone[part]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_do_not_depend_on_the_layout(policy: dict[str, Any], layout: str, model: str) -> None:
    found, alone = policy[layout][model], policy["1 process"][model]
    assert len(found["loss"]) == UPDATES
    for part in ("loss", "grad_norm", "entropy", "clip_fraction", "kl_to_old"):
        np.testing.assert_allclose(found[part], alone[part], rtol=1e-4, err_msg=part)


@pytest.mark.parametrize("model", MODELS)
def test_the_updates_of_the_comparison_change_the_policy(policy: dict[str, Any], model: str) -> None:
    alone = policy["1 process"][model]
    assert all(after < before for before, after in zip(alone["loss"], alone["loss"][1:], strict=False))
    assert min(alone["grad_norm"]) > 0.1
    assert np.abs(flat(alone["after"]) - flat(alone["log_probs"])).max() > 0.1
    assert 0 < alone["clip_fraction"][1] < 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_request_is_scored_as_among_others(policy: dict[str, Any], layout: str, model: str) -> None:
    assert policy[layout][model]["one_request"] < 1e-5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_sequence_is_trained_on_alike(policy: dict[str, Any], layout: str, model: str) -> None:
    """One data-parallel rank of two then has nothing to do, but its part of every collective."""
    found, alone = policy[layout][model]["one_sequence"], policy["1 process"][model]["one_sequence"]
    for part in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[part], alone[part], rtol=1e-3, err_msg=part)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_goes_on_in_another_layout(policy: dict[str, Any], layout: str, model: str) -> None:
    resumed, uninterrupted = policy[layout][model]["resumed"], policy["1 process"][model]
    for part in ("loss", "grad_norm", "entropy", "kl_to_old"):
        np.testing.assert_allclose(resumed[part], uninterrupted[part][SAVED_AFTER:], rtol=1e-4, err_msg=part)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["1 process", "bf16"])
def test_a_checkpoint_goes_on_exactly_in_the_same_layout(policy: dict[str, Any], layout: str, model: str) -> None:
    assert CASES[layout].goes_on_from == layout
    found = policy[layout][model]
    assert found["resumed"] == {
        part: values[SAVED_AFTER:] for part, values in found.items() if part in found["resumed"]
    }


def test_saving_leaves_no_process_behind(policy: dict[str, Any]) -> None:
    assert {facts["processes_left_by_saving"] for models in policy.values() for facts in models.values()} == {0}


@pytest.mark.parametrize("model", MODELS)
def test_bf16_stays_near_fp32(policy: dict[str, Any], model: str) -> None:
    rounded, exact = policy["bf16"][model], policy["1 process"][model]
    gap = np.abs(flat(rounded["log_probs"]) - flat(exact["log_probs"]))
    assert gap.mean() < 0.03
    assert gap.max() < 0.2
    assert rounded["loss"][0] == pytest.approx(exact["loss"][0], rel=1e-2)
    assert rounded["grad_norm"][0] == pytest.approx(exact["grad_norm"][0], rel=5e-2)
    assert rounded["loss"][-1] < rounded["loss"][0]


@pytest.mark.parametrize("ranks", ["1", "2", "4"])
def test_the_sharded_head_equals_full_logits_with_their_gradients(report: dict[str, Any], ranks: str) -> None:
    for rank, vocabularies in enumerate(report["head"][ranks]):
        for vocabulary, distances in vocabularies.items():
            assert distances.pop("padding gradient") == 0.0, f"rank {rank}, vocabulary {vocabulary}"
            assert max(distances.values()) < 1e-5, f"rank {rank}, vocabulary {vocabulary}: {distances}"
