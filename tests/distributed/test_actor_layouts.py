"""The layout changes nothing: scores, losses and gradients of the actor, dense or with experts spread over ranks, its
sharded head, and what a checkpoint goes on with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program_report import PROGRAMS, report_of
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

pytestmark = pytest.mark.distributed

sys.path.insert(0, str(PROGRAMS))
from layout_cases import CASES, SAVED_AFTER, TEMPERATURE, UPDATES, requests  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 131,  # needs padding under TP2
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
DENSE = SIZES | {"num_hidden_layers": 4, "intermediate_size": 96}
EXPERTS = SIZES | {"num_hidden_layers": 2}
ONE_KEY_HEAD = DENSE | {"num_hidden_layers": 2, "num_key_value_heads": 1}
# Heads of 32 use vLLM's attention kernel, heads of 16 plain blocks. Few tokens and many experts: some experts get no
# token of a micro-batch.
MODELS: dict[str, dict[str, PreTrainedConfig]] = {
    "dense": {
        "llama tied": LlamaConfig(**DENSE, tie_word_embeddings=True),
        "qwen2 untied with biases": Qwen2Config(**DENSE, tie_word_embeddings=False),
        "gemma2 with windows and soft caps": Gemma2Config(
            **DENSE,
            head_dim=32,
            query_pre_attn_scalar=16,
            sliding_window=12,
            attn_logit_softcapping=4.0,
            final_logit_softcapping=6.0,
        ),
        "qwen3": Qwen3Config(**DENSE, head_dim=32),
    },
    "experts": {
        "mixtral": MixtralConfig(**EXPERTS, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2),
        "qwen3_moe": Qwen3MoeConfig(
            **EXPERTS, moe_intermediate_size=24, num_experts=32, num_experts_per_tok=3, norm_topk_prob=False
        ),
    },
    "one key head": {
        "qwen2 with one key head": Qwen2Config(**ONE_KEY_HEAD),
        "qwen3 with one key head": Qwen3Config(**ONE_KEY_HEAD, head_dim=32),
    },
}
KIND = {model: kind for kind, models in MODELS.items() for model in models}
LAID_OUT = [
    (layout, model)
    for model, kind in KIND.items()
    for layout, case in CASES[kind].items()
    if layout != "bf16" and (not case.models or model in case.models)
]

each_model = pytest.mark.parametrize("model", KIND)
in_each_layout = pytest.mark.parametrize(("layout", "model"), LAID_OUT)

Facts = dict[tuple[str, str], dict[str, Any]]
"""What the first rank saw, by layout and model."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind, configs in MODELS.items():
        torch.manual_seed(0)
        models = {name: AutoModelForCausalLM.from_config(c, dtype=torch.float32) for name, c in configs.items()}
        for name, model in models.items():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias"):
                    torch.nn.init.normal_(parameter)
                if parameter_name.endswith("mlp.gate.weight"):
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(folder / kind / name)
    return folder


@pytest.fixture(scope="module")
def report(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("work")
    return report_of("actor_layouts.py", work, models, work, timeout_s=2400)


@pytest.fixture(scope="module")
def policy(report: dict[str, Any]) -> Facts:
    return {
        (layout, model): facts
        for layouts in report["policy"].values()
        for layout, models in layouts.items()
        for model, facts in models.items()
    }


def flat(rows: list[list[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(row) for row in rows])


@each_model
def test_scores_are_those_of_transformers_in_double_precision(policy: Facts, models: Path, model: str) -> None:
    # The grouped matrix product of experts takes no double precision.
    options = {"experts_implementation": "eager"} if KIND[model] == "experts" else {"attn_implementation": "eager"}
    reference = AutoModelForCausalLM.from_pretrained(models / KIND[model] / model, dtype=torch.float64, **options)
    log_probs, entropies = [], []
    for request in requests(reference.config.vocab_size):
        with torch.no_grad():
            logits = reference(torch.tensor([request.token_ids])).logits[0]
        rows = (logits[request.start - 1 : request.stop - 1] / TEMPERATURE).log_softmax(-1)
        targets = torch.tensor(request.token_ids[request.start : request.stop])
        log_probs += rows.gather(1, targets[:, None])[:, 0].tolist()
        entropies += (-(rows.exp() * rows).sum(-1)).tolist()
    np.testing.assert_allclose(flat(policy["1 process", model]["log_probs"]), log_probs, atol=1e-5, rtol=0)
    np.testing.assert_allclose(flat(policy["1 process", model]["entropies"]), entropies, atol=1e-5, rtol=0)


@in_each_layout
def test_what_was_loaded_is_exported_bit_for_bit(policy: Facts, layout: str, model: str) -> None:
    assert policy[layout, model]["export_difference"] == 0.0


@in_each_layout
def test_scores_do_not_depend_on_the_layout(policy: Facts, layout: str, model: str) -> None:
    found, alone = policy[layout, model], policy["1 process", model]
    for part in ("log_probs", "entropies"):
        np.testing.assert_allclose(flat(found[part]), flat(alone[part]), atol=1e-5, rtol=0)


@in_each_layout
def test_every_micro_batch_is_reported_with_how_many_there_are(policy: Facts, layout: str, model: str) -> None:
    pieces = policy[layout, model]["pieces"]
    assert [total for _, total in pieces] == [len(pieces)] * len(pieces)
    assert all(0 < tokens <= 160 for tokens, _ in pieces)


@in_each_layout
def test_losses_and_gradients_do_not_depend_on_the_layout(policy: Facts, layout: str, model: str) -> None:
    found, alone = policy[layout, model], policy["1 process", model]
    assert len(found["loss"]) == UPDATES
    for part in ("loss", "grad_norm", "entropy", "clip_fraction", "kl_to_old"):
        np.testing.assert_allclose(found[part], alone[part], rtol=1e-4, err_msg=part)


@in_each_layout
def test_updated_weights_do_not_depend_on_the_layout(policy: Facts, layout: str, model: str) -> None:
    found, alone = (load_file(policy[name, model]["weights"]) for name in (layout, "1 process"))
    assert found.keys() == alone.keys()
    for name, weight in alone.items():
        np.testing.assert_allclose(found[name], weight, atol=1e-5, rtol=0, err_msg=name)


@each_model
def test_the_updates_of_the_comparison_change_the_policy(policy: Facts, models: Path, model: str) -> None:
    alone = policy["1 process", model]
    assert all(after < before for before, after in zip(alone["loss"], alone["loss"][1:], strict=False))
    assert min(alone["grad_norm"]) > 0.1
    assert np.abs(flat(alone["after"]) - flat(alone["log_probs"])).max() > 0.1
    started, ended = (
        load_file(file) for file in (models / KIND[model] / model / "model.safetensors", alone["weights"])
    )
    moved = {name for name in ended if (ended[name] - started[name]).abs().max() > 1e-4}
    assert {name for name in ended.keys() - moved if ".experts." not in name} == set()  # some experts get no token
    assert len(moved) > len(ended) / 2
    assert 0 < alone["clip_fraction"][1] < 1


@in_each_layout
def test_a_single_request_is_scored_as_among_others(policy: Facts, layout: str, model: str) -> None:
    assert policy[layout, model]["one_request"] < 1e-5


@in_each_layout
def test_a_single_sequence_is_trained_on_alike(policy: Facts, layout: str, model: str) -> None:
    """One data-parallel rank of two then has nothing to do, but its part of every collective: serving its experts."""
    found, alone = policy[layout, model]["one_sequence"], policy["1 process", model]["one_sequence"]
    for part in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[part], alone[part], rtol=1e-3, err_msg=part)


@in_each_layout
def test_a_checkpoint_goes_on_in_another_layout(policy: Facts, layout: str, model: str) -> None:
    resumed, uninterrupted = policy[layout, model]["resumed"], policy["1 process", model]
    for part in ("loss", "grad_norm", "entropy", "kl_to_old"):
        np.testing.assert_allclose(resumed[part], uninterrupted[part][SAVED_AFTER:], rtol=1e-4, err_msg=part)


EXACT = [
    (layout, model)
    for layout in ("1 process", "bf16", "DP2, distributed optimizer")
    for model in CASES["dense"][layout].models or MODELS["dense"]
]


@pytest.mark.parametrize(("layout", "model"), EXACT)
def test_a_checkpoint_goes_on_exactly_in_the_same_layout(policy: Facts, layout: str, model: str) -> None:
    assert CASES["dense"][layout].goes_on_from == layout
    found = policy[layout, model]
    uninterrupted = {part: values[SAVED_AFTER:] for part, values in found.items() if part in found["resumed"]}
    assert found["resumed"] == uninterrupted


def test_saving_leaves_no_process_behind(policy: Facts) -> None:
    assert {facts["processes_left_by_saving"] for facts in policy.values()} == {0}


@pytest.mark.parametrize("model", MODELS["dense"])
def test_bf16_stays_near_fp32(policy: Facts, model: str) -> None:
    rounded, exact = policy["bf16", model], policy["1 process", model]
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
