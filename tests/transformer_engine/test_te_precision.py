"""Every precision of the policy: it learns, resumes bit for bit, and nobody sees its padding or its FP8 bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fp8_policies import MODELS, PRECISIONS, checkpoints, log_probs, make_policy, requests, update, write_models
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
from megatron.core.extensions.transformer_engine import TELayerNormColumnParallelLinear, TERowParallelLinear
from megatron.core.fp8_utils import is_float8tensor
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_rlpr.actor import fp8
from megatron_rlpr.actor.delayed_scaling import uncalibrated
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.types import FloatArray
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_megatron import load_megatron_checkpoint

RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
STORED = tuple(name for name, keys in PRECISIONS.items() if keys.get("fp8_param"))
SCORED_IN_FP8 = tuple(n for n, keys in PRECISIONS.items() if "fp8" in keys and keys.get("fp8_scoring") != "bf16")
WANTED = requests()
CASES = [*(("dense", name) for name in PRECISIONS), *(("experts", n) for n in ("bf16", *RECIPES[:3], *STORED[2:3]))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


def weights(policy: MegatronPolicy) -> dict[str, torch.Tensor]:
    """Megatron's fp32 ones or, where it keeps none, the model's."""
    named = (pair for chunk in policy.chunks for pair in chunk.named_parameters())
    kept = {name: (weight, getattr(weight, "main_param", None)) for name, weight in named}
    return {name: (weight if master is None else master).detach().clone() for name, (weight, master) in kept.items()}


@pytest.mark.parametrize(("model", "precision"), CASES)
def test_eight_updates_raise_what_is_rewarded_and_go_on_bit_for_bit(
    models: Path, tmp_path: Path, model: str, precision: str
) -> None:
    policy, store = make_policy(models / model, precision), checkpoints(tmp_path, models / model)
    scores = [log_probs(policy, WANTED)]
    for step in range(1, 9):
        update(policy, WANTED, scores[-1])
        scores.append(log_probs(policy, WANTED))
        if step == 4:
            store.save(step, policy, {})
    means = [float(score.mean()) for score in scores]
    assert means == sorted(means), "a score after an update must be of the new weights"
    assert means[-1] > means[0] + 0.5
    resumed = make_policy(models / model, precision)
    store.load(4, resumed)
    for score in scores[4:8]:
        assert np.array_equal(log_probs(resumed, WANTED), score)
        update(resumed, WANTED, score)
    assert np.array_equal(log_probs(resumed, WANTED), scores[8])
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(policy).items())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_are_near_those_of_transformers(models: Path, precision: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(models / "dense", dtype=torch.float32)
    wanted = []
    for request in WANTED:
        with torch.no_grad():
            logits = reference(torch.tensor([request.token_ids])).logits[0].log_softmax(-1)
        rows = torch.arange(request.start - 1, request.stop - 1)
        wanted.append(logits[rows, torch.tensor(request.token_ids[request.start : request.stop])].numpy())
    error = np.abs(log_probs(make_policy(models / "dense", precision), WANTED) - np.concatenate(wanted)).max()
    assert error < (0.05 if precision in SCORED_IN_FP8 or precision in STORED else 0.005)
    assert error > 0.005 or precision not in SCORED_IN_FP8, "this is not FP8"


@pytest.mark.parametrize("recipe", RECIPES)
def test_scoring_between_updates_changes_no_update(models: Path, recipe: str) -> None:
    """What scoring leaves behind, copies of weights above all, must not reach a gradient."""
    alone, scored = (make_policy(models / "dense", recipe) for _ in range(2))
    old = log_probs(scored, WANTED)
    for _ in range(3):
        log_probs(scored, WANTED)
        results = [update(policy, WANTED, old) for policy in (alone, scored)]
    assert results[0] == results[1]
    assert all(torch.equal(weight, weights(scored)[name]) for name, weight in weights(alone).items())


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("model", MODELS)
def test_odd_token_counts_are_padded_and_padding_changes_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, model: str
) -> None:
    policy, odd = make_policy(models / model, recipe), [requests(3, longer) for longer in (0, 2, 5)]
    gradients: list[list[float]] = []
    scores: list[list[FloatArray]] = []
    for tokens in (fp8.RECIPES[recipe].tokens, 256):
        monkeypatch.setitem(fp8.RECIPES, recipe, replace(fp8.RECIPES[recipe], tokens=tokens))
        scores.append([log_probs(policy, wanted) for wanted in odd])
        results = [update(policy, wanted, old, lr=0.0) for wanted, old in zip(odd, scores[0], strict=True)]
        gradients.append([result.grad_norm for result in results])
    assert all(map(np.array_equal, *scores))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_padding_is_zero_wherever_values_are_scaled(models: Path, model: str) -> None:
    """Biases included, which make something of zeros."""
    policy, seen = make_policy(models / model, "blockwise"), []
    for module in policy.chunks[0].modules():
        if isinstance(module, TELayerNormColumnParallelLinear | TERowParallelLinear):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    tokens = 10 + sum(len(request.token_ids) - 11 for request in WANTED) - 3 + 1  # the prompt once, no last tokens
    update(policy, WANTED, log_probs(policy, WANTED))
    assert len(seen) >= 2 * 2 * 2
    for values in seen:
        rows = values[:, 0].abs().amax(1)
        assert len(rows) == 128
        assert rows[:tokens].min() > 0
        assert rows[tokens:].max() == 0


def test_the_first_gradient_of_delayed_scaling_is_calibrated(models: Path) -> None:
    """Of a token in a batch of a hundred million, which scales of 1 would round to zero."""
    first, second = (
        [update(policy, WANTED, part_of_batch=1e-6).grad_norm * 1e6 for _ in range(2)]
        for policy in (make_policy(models / "dense", precision) for precision in ("bf16", "delayed"))
    )
    assert second == pytest.approx(first, rel=0.05)


@pytest.mark.parametrize("precision", ["delayed", "delayed, recompute, longest history"])
def test_delayed_scaling_is_calibrated_once(models: Path, precision: str) -> None:
    """A history of one step, the default, is empty again behind every update."""
    policy = make_policy(models / "dense", precision)
    assert uncalibrated(policy.chunks)
    for _ in range(2):
        update(policy, WANTED)
        assert not uncalibrated(policy.chunks)


def test_scores_in_bf16_are_those_of_a_policy_without_fp8(models: Path) -> None:
    plain = log_probs(make_policy(models / "dense", "bf16"), WANTED)
    for precision in ("delayed", "blockwise, scored in bf16"):
        assert np.array_equal(log_probs(make_policy(models / "dense", precision), WANTED), plain)


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("converted", [False, True])
def test_masters_of_fp8_weights_are_the_loaded_ones_unrounded(
    models: Path, tmp_path: Path, precision: str, converted: bool
) -> None:
    plain = make_policy(models / "dense", "bf16")
    policy = make_policy(models / "dense", precision)
    if converted:
        checkpoints(tmp_path, models / "dense").save(1, plain, {})
        with torch.no_grad():
            for weight in policy.chunks[0].parameters():
                weight.copy_(torch.zeros(weight.shape))
        policy.weights_changed()
        shape = model_shape(HfFolder(models / "dense").config())
        load_megatron_checkpoint(policy.chunks, shape, tmp_path / "step_000001")
        policy.weights_changed()
    stored_in_fp8 = 0
    for (name, weight), reference in zip(
        policy.chunks[0].named_parameters(), plain.chunks[0].parameters(), strict=True
    ):
        stored_in_fp8 += is_float8tensor(weight)
        # A checkpoint and bf16 layers hold bf16 values; the folder's are fp32.
        wanted = reference.detach().float()
        assert torch.equal(weight.main_param.view(wanted.shape).bfloat16().float(), wanted), name
    assert stored_in_fp8 == 8


@pytest.mark.parametrize("precision", STORED)
def test_fp8_weights_are_exported_in_bf16(models: Path, precision: str) -> None:
    policy = make_policy(models / "experts", precision)
    shape = model_shape(HfFolder(models / "experts").config())
    reference = load_file(models / "experts" / "model.safetensors")
    exporter = WeightExporter(policy.chunks, shape, bucket_mb=1)
    assert exporter.dtype == torch.bfloat16
    for name, tensor in exporter:
        assert (type(tensor), tensor.dtype) == (torch.Tensor, torch.bfloat16), name
        error = (tensor.float() - reference[name]).norm() / reference[name].norm()
        assert error < 0.04, name


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("bf16", "mxfp8, FP8 weights"),
        ("delayed", "bf16"),
        ("bf16", "delayed"),
        ("tensorwise, FP8 weights", "blockwise, FP8 weights"),
        ("blockwise, FP8 weights", "bf16"),
    ],
)
def test_precisions_share_one_form_of_checkpoint(models: Path, tmp_path: Path, saved: str, loaded: str) -> None:
    distributed = {"use_distributed_optimizer": True}
    first, store = make_policy(models / "dense", saved, **distributed), checkpoints(tmp_path, models / "dense")
    update(first, WANTED)
    store.save(1, first, {})
    stored = load_sharded_metadata(str(tmp_path / "step_000001" / "megatron"))
    assert not [key for key in stored if "_extra_state" in key], "these are pickled"
    second = make_policy(models / "dense", loaded, **distributed)
    store.load(1, second)
    if saved not in STORED:
        for name, weight in weights(first).items():
            assert torch.equal(weight.flatten(), weights(second)[name].flatten()), name
    scores = log_probs(second, WANTED)
    update(second, WANTED, scores, lr=0.0)
    assert np.array_equal(log_probs(second, WANTED), scores), "weights must be the optimizer's, rounded once"


def test_averages_in_bf16_train_nearly_as_those_in_fp32(models: Path, tmp_path: Path) -> None:
    """From clipped gradients; and a checkpoint of either optimizer is of one form, which the other goes on from."""
    found: dict[str, FloatArray] = {}
    store = checkpoints(tmp_path, models / "dense")
    for name in ("bf16, averages too", "bf16"):
        policy = make_policy(models / "dense", name, use_distributed_optimizer=True, clip_grad=0.1)
        for step in range(1, 4):
            if step == 3 and name == "bf16":
                store.load(2, policy)
            assert update(policy, WANTED).grad_norm > 0.1
            if step == 2 and name != "bf16":
                store.save(2, policy, {})
        found[name] = log_probs(policy, WANTED)
        kinds = {t.dtype for of in policy.optimizer.optimizer.state.values() for n, t in of.items() if "exp_avg" in n}
        assert kinds == {torch.float32 if name == "bf16" else torch.bfloat16}
    start = log_probs(make_policy(models / "dense", "bf16"), WANTED)
    gap = np.abs(found["bf16"] - found["bf16, averages too"]).mean()
    assert gap < 0.05 * np.abs(found["bf16"] - start).mean()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_summed_in_fp32(models: Path, precision: str) -> None:
    policy = make_policy(models / "dense", precision)
    assert {weight.main_grad.dtype for weight in policy.chunks[0].parameters()} == {torch.float32}
