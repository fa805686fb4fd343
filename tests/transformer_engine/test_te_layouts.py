"""Layouts of Transformer Engine's layers, with its optimizer, against one process that has neither: in fp32 the same.

Tensor, sequence, pipeline, expert and data parallelism, recompute, and a checkpoint that was saved by the own layers
and PyTorch's Adam. And every FP8 recipe in layouts: the same where its scales are, else off by no more than FP8 itself.
"""

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
from te_layouts import INTERLEAVED, OVERLAPPED, OWN, PP2_AGAIN, RECIPES, SHARDED
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedConfig, Qwen2Config

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "distributed"))
from test_actor_layouts import MODELS as ALL_MODELS  # noqa: E402
from test_actor_layouts import SAVED_AFTER, flat  # noqa: E402

NAMES = {
    "dense": ("llama tied", "qwen2 untied with biases", "gemma2 with windows and soft caps"),
    "experts": ("mixtral", "qwen3_moe"),
}
LAYOUTS = {
    "dense": ("1 process", "TP2 + SP", PP2_AGAIN, SHARDED),
    "experts": ("1 process", "TP2 + SP", "EP2"),
}
LAID_OUT = [(kind, layout, model) for kind, names in NAMES.items() for layout in LAYOUTS[kind] for model in names]
LAID_OUT.append(("dense", OVERLAPPED, "llama tied"))
# Shards of two ranks end where blocks of 128 do.
FP8_SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
}
FP8_MODELS: dict[str, dict[str, PreTrainedConfig]] = {
    "dense": {"qwen2": Qwen2Config(**FP8_SIZES)},
    "experts": {"mixtral": MixtralConfig(**FP8_SIZES, num_local_experts=4, num_experts_per_tok=2)},
}
in_each_layout = pytest.mark.parametrize(("kind", "layout", "model"), LAID_OUT)
Facts = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""What the first rank saw, by kind, layout and model."""


def save(models: dict[str, dict[str, PreTrainedConfig]], folder: Path) -> Path:
    torch.manual_seed(0)
    for kind, configs in models.items():
        for name, config in configs.items():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith(("bias", "mlp.gate.weight")):
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(folder / kind / name)
    return folder


def run(which: str, models: Path, work: Path) -> Facts:
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(HERE / "te_layouts.py"), str(models), str(work), which]
    program = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | settings
    )
    assert program.returncode == 0, program.stdout[-4000:]
    found: Facts = json.loads(program.stdout.rpartition("RESULT ")[2])
    return found


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    chosen = {kind: {name: ALL_MODELS[kind][name] for name in names} for kind, names in NAMES.items()}
    models, work = save(chosen, tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("work")
    own = run("own", models, work)
    return {kind: own[kind] | layouts for kind, layouts in run("te", models, work).items()}


@pytest.fixture(scope="module")
def in_fp8(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return run("fp8", save(FP8_MODELS, tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("work"))


@in_each_layout
def test_scores_are_those_of_the_own_layers(facts: Facts, kind: str, layout: str, model: str) -> None:
    found, own = facts[kind][layout][model], facts[kind][OWN][model]
    for part in ("log_probs", "entropies"):
        np.testing.assert_allclose(flat(found[part]), flat(own[part]), atol=1e-5, rtol=0)
    assert found["one_request"] < 1e-5


@in_each_layout
def test_updates_are_those_of_the_own_layers(facts: Facts, kind: str, layout: str, model: str) -> None:
    found, own = facts[kind][layout][model], facts[kind][OWN][model]
    for part in ("loss", "grad_norm", "entropy", "kl_to_old"):
        np.testing.assert_allclose(found[part], own[part], rtol=1e-4, err_msg=part)
        np.testing.assert_allclose(found["one_sequence"][part], own["one_sequence"][part], rtol=1e-3, err_msg=part)
    assert np.abs(flat(found["after"]) - flat(found["log_probs"])).max() > 0.1


@in_each_layout
def test_a_checkpoint_goes_on(facts: Facts, kind: str, layout: str, model: str) -> None:
    resumed, own = facts[kind][layout][model]["resumed"], facts[kind][OWN][model]
    for part in ("loss", "grad_norm", "entropy", "kl_to_old"):
        np.testing.assert_allclose(resumed[part], own[part][SAVED_AFTER:], rtol=1e-4, err_msg=part)


@pytest.mark.parametrize("model", NAMES["dense"])
def test_the_distributed_optimizer_goes_on_exactly(facts: Facts, model: str) -> None:
    found = facts["dense"][SHARDED][model]
    assert found["resumed"]["loss"] == found["loss"][SAVED_AFTER:]


@pytest.mark.parametrize("recipe", ["", *RECIPES])
def test_stages_and_recompute_change_no_bit_of_fp8(in_fp8: Facts, recipe: str) -> None:
    staged = PP2_AGAIN if recipe == "delayed" else INTERLEAVED
    found, alone = (in_fp8["dense"][layout]["qwen2"][recipe] for layout in (staged, "1 process"))
    assert found["log_probs"] == alone["log_probs"]
    assert found["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("recipe", ["", "delayed", "blockwise", "mxfp8"])
def test_tensor_parallel_ranks_scale_as_one_process(in_fp8: Facts, recipe: str) -> None:
    """Blocks are the same in shards; delayed scaling takes its maxima over all of them."""
    found, alone = (in_fp8["dense"][layout]["qwen2"][recipe] for layout in ("TP2 + SP", "1 process"))
    np.testing.assert_allclose(flat(found["log_probs"]), flat(alone["log_probs"]), atol=1e-5, rtol=0)
    assert found["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("recipe", ["", "blockwise", "mxfp8"])
def test_other_sequences_in_a_micro_batch_change_no_score(in_fp8: Facts, recipe: str) -> None:
    """Spread experts come with data-parallel ranks, which pack other micro-batches."""
    found, alone = (in_fp8["experts"][layout]["mixtral"][recipe] for layout in ("EP2", "1 process"))
    np.testing.assert_allclose(flat(found["log_probs"]), flat(alone["log_probs"]), atol=1e-5, rtol=0)
    assert found["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-2 if recipe else 1e-5)


@pytest.mark.parametrize(
    ("recipe", "kind", "layout"),
    [("tensorwise", "dense", "TP2 + SP"), ("tensorwise", "experts", "EP2"), ("delayed", "experts", "EP2")],
)
def test_scales_of_whole_tensors_depend_on_what_a_rank_has(in_fp8: Facts, recipe: str, kind: str, layout: str) -> None:
    """Its shard, its micro-batches: scores then differ between layouts, by about the error of FP8 itself."""
    (model,) = FP8_MODELS[kind]
    by_layout = in_fp8[kind]
    found, alone, exact = (
        flat(facts["log_probs"])
        for facts in (by_layout[layout][model][recipe], *(by_layout["1 process"][model][r] for r in (recipe, "")))
    )
    of_fp8 = np.abs(alone - exact).mean()
    assert 0.01 < of_fp8 < 0.1
    assert 0.01 < np.abs(found - alone).mean() < 1.5 * of_fp8
    assert np.abs(found - exact).mean() < 1.5 * of_fp8
