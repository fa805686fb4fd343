"""Weights that are not exactly the engine's never reach it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE, save_llama

from megatron_rlpr.rollout.vllm.weight_update import (
    VerifiedStream,
    check_manifest,
    required_weights,
)
from megatron_rlpr.weights.hf_folder import OUTPUT_HEAD
from megatron_rlpr.weights.receiver import WeightHandoverError

SHAPES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6), st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=8
)


def tensors_of(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, torch.Tensor]]:
    return [(name, torch.zeros(shape)) for name, shape in shapes.items()]


def test_a_tied_head_and_stored_rotary_tables_are_not_required(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model", seed=0, tied=True)
    more = {OUTPUT_HEAD: torch.zeros(VOCAB_SIZE, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors")
    required, tied = required_weights(folder)
    assert tied
    assert OUTPUT_HEAD not in required
    assert not [name for name in required if "rotary" in name]
    assert required["model.embed_tokens.weight"] == (VOCAB_SIZE, 64)


def test_an_untied_head_is_required(tmp_path: Path) -> None:
    required, tied = required_weights(save_llama(tmp_path / "model", seed=0, tied=False))
    assert not tied
    assert required[OUTPUT_HEAD] == (VOCAB_SIZE, 64)


@given(SHAPES)
def test_an_equal_manifest_is_accepted(shapes: dict) -> None:
    check_manifest({name: list(shape) for name, shape in shapes.items()}, shapes, tied_head=False)


@given(SHAPES, st.data())
def test_one_error_names_every_kind_of_difference(shapes: dict, data: st.DataObject) -> None:
    lost, bent = data.draw(st.permutations(sorted(shapes)))[:2] if len(shapes) > 1 else (next(iter(shapes)), None)
    manifest = {name: shape for name, shape in shapes.items() if name != lost} | {"surplus": (1,)}
    if bent is not None:
        manifest[bent] = (*manifest[bent], 5)
    with pytest.raises(WeightHandoverError) as error:
        check_manifest(manifest, shapes, tied_head=False)
    message = str(error.value)
    assert f"missing: {lost}" in message
    assert "unexpected: surplus" in message
    if bent is not None:
        assert f"{bent} is {list(manifest[bent])}, expected {list(shapes[bent])}" in message


def test_a_long_list_of_faults_is_shortened() -> None:
    with pytest.raises(WeightHandoverError, match=r"missing: w0, w1, w2, w3, w4 and 3 more$"):
        check_manifest({}, {f"w{i}": (1,) for i in range(8)}, tied_head=False)


def test_the_head_of_a_tied_model_may_be_announced() -> None:
    check_manifest({"a": (1,), OUTPUT_HEAD: (2,)}, {"a": (1,)}, tied_head=True)
    with pytest.raises(WeightHandoverError, match=f"unexpected: {OUTPUT_HEAD}"):
        check_manifest({"a": (1,), OUTPUT_HEAD: (2,)}, {"a": (1,)}, tied_head=False)


@given(SHAPES, st.data())
def test_a_good_stream_passes_in_any_order_without_skipped_names(shapes: dict, data: st.DataObject) -> None:
    sent = data.draw(st.permutations(tensors_of(shapes)))
    skip = frozenset(data.draw(st.sets(st.sampled_from(sorted(shapes)))))
    stream = VerifiedStream(shapes, sent, skip)
    assert [name for name, _ in stream] == [name for name, _ in sent if name not in skip]
    assert stream.failure is None


@given(SHAPES, st.sampled_from(["surplus", "twice", "shape", "missing"]), st.data())
def test_a_fault_stops_what_passes_but_the_source_is_consumed(shapes: dict, kind: str, data: st.DataObject) -> None:
    sent = tensors_of(shapes)
    at = data.draw(st.integers(0, len(sent) - 1))
    name, tensor = sent[at]
    if kind == "surplus":
        sent.insert(at, ("surplus", tensor))
    elif kind == "twice":
        sent.insert(at + 1, (name, tensor))
    elif kind == "shape":
        sent[at] = (name, torch.zeros(*tensor.shape, 2))
    else:
        del sent[at]
    source = iter(sent)
    stream = VerifiedStream(shapes, source, frozenset())
    passed = [name for name, _ in stream]
    assert isinstance(stream.failure, WeightHandoverError)
    assert ("surplus" if kind == "surplus" else name) in str(stream.failure)
    assert passed == [name for name, _ in sent[: at + (kind == "twice")]] or kind == "missing"
    assert next(source, None) is None


@given(SHAPES, st.data())
def test_a_source_that_breaks_ends_the_stream_without_an_exception(shapes: dict, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(shapes)))

    def breaking() -> object:
        yield from tensors_of(shapes)[:at]
        raise OSError("the exporter went away")

    stream = VerifiedStream(shapes, breaking(), frozenset())
    assert len(list(stream)) == at
    assert isinstance(stream.failure, OSError)
