"""What lies on the host while engines generate comes back bit for bit, and nothing that needs it meets it away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from checkpoint_conversion.single_process import one_process
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.host_copies import HostCopies
from megatron_rlpr.actor.memory import resident
from megatron_rlpr.actor.parallel import Layout
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.types import ScoreRequest, TrainSequence
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights

TERMS = LossTerms(clip_low=0.2, clip_high=0.27, dual_clip=0.0, entropy_coeff=0.01, kl_coef=0.0, kl_type="low_var_kl")
TOKENS = tuple(range(30, 54))
SCORED = ScoreRequest(TOKENS, 8, 24)
LAYOUT = Layout(0, 1, 0, 1, 0, 1, 0, 1)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    with one_process(DTYPES[request.param]):
        yield request.param


def policy(model: Path, dtype: str, offload: str, trainable: bool = True, clock: Clock | None = None) -> MegatronPolicy:
    actor = ActorConfig(dtype=dtype, max_tokens_per_micro_batch=64, head_chunk_rows=8, offload=offload)  # type: ignore[arg-type]
    shape = model_shape(HfFolder(model).config())
    made = MegatronPolicy(shape, actor, LAYOUT, 1.0, trainable, clock)
    load_hf_weights(made.chunks, shape, model)
    made.weights_changed()
    return made


def train(one: MegatronPolicy) -> tuple[float, float]:
    rows = SCORED.stop - SCORED.start
    old = np.linspace(-5, -3, rows, dtype=np.float32)
    advantages = np.linspace(-1, 1, rows, dtype=np.float32)
    result = one.update([TrainSequence(TOKENS, SCORED.start, SCORED.stop, old, advantages)], [1 / rows], TERMS, lr=1e-2)
    return result.loss, result.grad_norm


def everything(one: MegatronPolicy) -> list[torch.Tensor]:
    """Weights, fp32 shards and moments."""
    assert one.optimizer is not None
    adam = one.optimizer.optimizer
    masters = [tensor for group in adam.param_groups for tensor in group["params"]]
    moments = [value for state in adam.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return [tensor.detach() for tensor in (*one.chunks[0].parameters(), *masters, *moments)]


def gradients(one: MegatronPolicy) -> list[torch.Tensor]:
    return [buffer.grad_data for chunk in one._callables for buffer in chunk.buffers]  # type: ignore[attr-defined]


@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_training_with_memory_lent_between_the_steps_equals_training_without(
    model: Path, dtype: str, offload: str
) -> None:
    plain, lent = policy(model, dtype, "none"), policy(model, dtype, offload)
    for _ in range(3):
        plain.memory.offload()
        lent.memory.offload()
        assert train(lent) == train(plain)
    lent.memory.restore()
    assert all(map(torch.equal, everything(lent), everything(plain)))
    assert plain.memory.take_moved().offloaded == 0


@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_while_it_is_away_its_storages_are_empty(model: Path, dtype: str, offload: str) -> None:
    one = policy(model, dtype, offload)
    train(one)
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in everything(one)}.values())
    weights = [parameter.detach() for parameter in one.chunks[0].parameters()]
    one.memory.offload()
    assert not any(map(resident, gradients(one)))
    assert [resident(weight) for weight in weights] == [offload != "all"] * len(weights)
    states = everything(one)[len(weights) :]
    stepped_in_place = len(weights) if dtype == "float32" else 0
    assert not any(map(resident, states[stepped_in_place:]))
    moved = one.memory.take_moved()
    left = sum({w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights if resident(w)}.values())
    assert (moved.offloaded, moved.restored) == (held - left, 0)
    one.memory.offload()
    assert one.memory.take_moved().offloaded == 0, "what is away stays"
    one.memory.restore()
    assert one.memory.take_moved().restored == held - left
    assert all(map(resident, (*everything(one), *gradients(one))))
    assert not any(gradient.any() for gradient in gradients(one))


def test_every_use_brings_back_what_it_needs(model: Path, dtype: str, tmp_path: Path) -> None:
    """Each of these would be a segmentation fault otherwise."""
    plain, lent = policy(model, dtype, "none"), policy(model, dtype, "all")
    shape = model_shape(HfFolder(model).config())
    stores = {one: CheckpointStore(tmp_path / name, shape, keep_last=1) for name, one in (("a", plain), ("b", lent))}
    uses: dict[str, Callable[[MegatronPolicy], Any]] = {
        "update": train,
        "score": lambda one: one.score([SCORED])[0].log_probs.tolist(),
        "check_weights": lambda one: one.check_weights("lost"),
        "weights_changed": lambda one: one.weights_changed(),
        "masters_changed": lambda one: one.masters_changed(),
        "save": lambda one: stores[one].save(1, one, {}).name,
        "load": lambda one: stores[one].load(1, one),
        "update again": train,
    }
    for name, use in uses.items():
        lent.memory.offload()
        assert use(lent) == use(plain), name
    lent.memory.restore()
    assert all(map(torch.equal, everything(lent), everything(plain)))


def test_a_hand_over_reads_weights_that_are_away(model: Path, dtype: str) -> None:
    plain, lent = policy(model, dtype, "none"), policy(model, dtype, "all")
    shape = model_shape(HfFolder(model).config())
    exporter = WeightExporter(lent.chunks, shape, 1, lent.memory.weight)
    expected = dict(WeightExporter(plain.chunks, shape, 1))
    lent.memory.offload()
    exported = dict(exporter)
    assert not any(resident(parameter) for parameter in lent.chunks[0].parameters())
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())


def test_a_reference_policy_lies_on_the_host_between_uses(model: Path, dtype: str) -> None:
    clock = Clock()
    reference, plain = policy(model, dtype, "all", False, clock), policy(model, dtype, "none", False)
    for _ in range(2):
        reference.memory.offload()
        assert not any(resident(parameter) for parameter in reference.chunks[0].parameters())
        assert reference.score([SCORED])[0].log_probs.tolist() == plain.score([SCORED])[0].log_probs.tolist()
    assert clock.order == ["offload", "restore"] * 2


@given(sizes=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 2**16))
def test_views_of_a_storage_that_was_away_hold_what_they_held(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    bases = [torch.randn(size) for size in sizes]
    views = [base[start:] for base in bases for start in range(min(3, len(base)))] + bases
    before = [view.clone() for view in views]
    copies = HostCopies(torch.device("cpu"))
    assert copies.offload(views) == sum(base.nbytes for base in bases)
    assert not any(map(resident, views))
    assert all(map(torch.equal, map(copies.values, views), before))
    copies.restore()
    assert copies.nbytes == 0
    assert all(map(torch.equal, views, before))
