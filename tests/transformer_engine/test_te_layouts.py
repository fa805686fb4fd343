"""Layouts of Transformer Engine's layers, with its optimizer, against one process that has neither: in fp32 the same.

Tensor, sequence, pipeline, expert and data parallelism, recompute, and a checkpoint that was saved by the own layers
and PyTorch's Adam.
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
from te_layouts import OWN, SHARDED
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "distributed"))
from test_actor_layouts import MODELS as ALL_MODELS  # noqa: E402
from test_actor_layouts import SAVED_AFTER, flat  # noqa: E402

NAMES = {
    "dense": ("llama tied", "qwen2 untied with biases", "gemma2 with windows and soft caps"),
    "experts": ("mixtral", "qwen3_moe"),
}
LAYOUTS = {
    "dense": ("1 process", "TP2 + SP", "PP2, full recompute", SHARDED),
    "experts": ("1 process", "TP2 + SP", "EP2"),
}
LAID_OUT = [(kind, layout, model) for kind, names in NAMES.items() for layout in LAYOUTS[kind] for model in names]
in_each_layout = pytest.mark.parametrize(("kind", "layout", "model"), LAID_OUT)
Facts = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""What the first rank saw, by kind, layout and model."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for kind, names in NAMES.items():
        for name in names:
            model = AutoModelForCausalLM.from_config(ALL_MODELS[kind][name], dtype=torch.float32)
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith(("bias", "mlp.gate.weight")):
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(folder / kind / name)
    return folder


@pytest.fixture(scope="module")
def facts(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    work = tmp_path_factory.mktemp("work")
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "PYTHONWARNINGS": "ignore"}
    found: Facts = {"dense": {}, "experts": {}}
    for which in ("own", "te"):
        command = [sys.executable, str(HERE / "te_layouts.py"), str(models), str(work), which]
        run = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | settings
        )
        assert run.returncode == 0, run.stdout[-4000:]
        for kind, layouts in json.loads(run.stdout.rpartition("RESULT ")[2]).items():
            found[kind] |= layouts
    return found


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
def test_a_checkpoint_of_the_own_layers_goes_on(facts: Facts, kind: str, layout: str, model: str) -> None:
    resumed, own = facts[kind][layout][model]["resumed"], facts[kind][OWN][model]
    for part in ("loss", "grad_norm", "entropy", "kl_to_old"):
        np.testing.assert_allclose(resumed[part], own[part][SAVED_AFTER:], rtol=1e-4, err_msg=part)


@pytest.mark.parametrize("model", NAMES["dense"])
def test_the_distributed_optimizer_goes_on_from_its_own_checkpoint(facts: Facts, model: str) -> None:
    found = facts["dense"][SHARDED][model]
    assert found["resumed"]["loss"] == found["loss"][SAVED_AFTER:]
