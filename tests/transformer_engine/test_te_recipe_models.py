"""The models of examples/recipes on Transformer Engine's layers, in outline: `weights` has a place for every parameter.

On the meta device, with the groups of the recipe's tensor-parallel size although there is one process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fp8_recipes import RECIPES
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.transformer_config import TransformerConfig
from te_on_cpu import pretend_gpu
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rlpr.actor.model import tree_policy
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.weights.architectures import model_shape, parameter_table
from megatron_rlpr.weights.local_parameters import local_parameters

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
"""Of the recipes, and of the folders with their models' config.json; two layers of each are built."""


real_config = tree_policy.transformer_config


def without_memory(*arguments: Any) -> TransformerConfig:
    """Transformer Engine makes parameters where it is told to, whatever PyTorch's default device is."""
    config = real_config(*arguments)
    config.use_cpu_initialization, config.init_model_with_meta_device, config.perform_initialization = (
        False,
        True,
        False,
    )
    return config


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("fp8_recipe", ["", *RECIPES])
def test_every_parameter_has_its_place(recipe: str, fp8_recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`local_parameters` raises for a name that is not in the table, and for another shape than the table gives."""
    settings: dict[str, Any] = yaml.safe_load((FOLDER / f"{recipe}.yaml").read_text())["actor"]
    if fp8_recipe:
        pretend_gpu(fp8_recipe)
        settings |= {"fp8": "hybrid", "fp8_recipe": fp8_recipe}
    settings |= {"pipeline_model_parallel_size": 1, "expert_model_parallel_size": 1}
    hf_config = json.loads((FOLDER / "models" / recipe / "config.json").read_text())
    actor, shape = ActorConfig(**settings), model_shape(hf_config | {"num_hidden_layers": 2})
    ranks = actor.tensor_model_parallel_size
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks, create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    monkeypatch.setattr(tree_policy, "transformer_config", without_memory)
    with torch.device("meta"):
        (model,) = tree_policy.build_chunks(shape, actor)
    found = local_parameters([model], shape)
    assert type(model.decoder.layers[0].self_attention.linear_proj).__mro__[1].__name__.startswith("TE")
    assert [parameter.mapping for parameter in found] == [m for m in parameter_table(shape) if not m.is_copy]
