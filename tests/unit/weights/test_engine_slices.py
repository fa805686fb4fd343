"""An engine's ranks get slices that together are the whole tensors, and a large model's hand-over moves little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.weights.architectures import hf_manifest, model_shape, parameter_table
from megatron_rlpr.weights.engine_slices import WHOLE, EngineRank, slices_of, why_whole
from megatron_rlpr.weights.export_plan import ExportPlan
from megatron_rlpr.weights.shape import ModelShape
from tools.bench.handover_plan import HANDOVERS, Sizes, bytes_of_ranks

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 16,
    "vocab_size": 130,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}


def shape_of(**changes: Any) -> ModelShape:
    return model_shape(LLAMA | changes)


def engine_slices(shape: ModelShape, engine: EngineRank) -> dict[str, Any]:
    return {cut.name: cut for m in parameter_table(shape) if not m.is_copy for cut in slices_of(m, engine)}


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.integers(1, 300))
@settings(max_examples=12, deadline=None)
def test_the_slices_of_all_ranks_are_the_whole_tensors(size: int, kv_heads: int, vocab: int) -> None:
    shape = shape_of(num_key_value_heads=kv_heads, vocab_size=vocab)
    ranks = [engine_slices(shape, EngineRank(rank, size)) for rank in range(size)]
    for name, full in hf_manifest(shape).items():
        tensor = torch.arange(torch.Size(full).numel()).view(full)
        cuts = [rank[name] for rank in ranks]
        distinct = [cut for at, cut in enumerate(cuts) if at == 0 or cut != cuts[at - 1]]
        assert [tuple(cut.of(tensor).shape) for cut in cuts] == [cut.shape for cut in cuts]
        assert torch.equal(torch.cat([cut.of(tensor) for cut in distinct], distinct[0].dim or 0), tensor)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.data())
@settings(max_examples=12, deadline=None)
def test_shards_become_slices_whether_a_rank_is_alone_or_not(
    tensor: int, size: int, kv_heads: int, data: st.DataObject
) -> None:
    shape = shape_of(num_key_value_heads=kv_heads, vocab_size=data.draw(st.sampled_from([128, 130])))
    rank = data.draw(st.integers(0, size - 1))
    plan = ExportPlan(parameter_table(shape), tensor, tensor, EngineRank(rank, size))
    for index, mapping in enumerate(plan.table):
        hf = {t.name: torch.randn(t.shape) for t in mapping.hf}

        def read(name: str, dim: int | None, start: int, stop: int, hf: dict[str, torch.Tensor] = hf) -> torch.Tensor:
            return hf[name] if dim is None else hf[name].narrow(dim, start, stop - start)

        own = rank if plan.alone(index) and tensor == size else 0
        held = [own] if plan.alone(index) else range(tensor)
        shards = [mapping.shard(read, holder, tensor) for holder in held]
        if plan.alone(index):
            slices = plan.to_slices(index, shards)
        else:
            parts = [plan.cut_out(index, shard, source, [rank]) for source, shard in enumerate(shards)]
            shapes = [[tuple(part.shape) for part in of_source] for of_source in parts]
            assert shapes == [plan.travelling(index, source, [rank]) for source in range(tensor)]
            if mapping.cuts(tensor)[1] == 1:
                moved = sum(part.numel() for of_source in parts for part in of_source)
                assert moved == plan.slices_numel(index), "only what is needed"
            slices = plan.put_together(index, parts, [rank])
        for tensor_of, cut, found in zip(mapping.hf, plan.slices(index), slices, strict=True):
            assert torch.equal(found, cut.of(hf[tensor_of.name]))
        if not plan.alone(index) and size > 1:
            both = [0, size - 1]
            parts = [plan.cut_out(index, shard, source, both) for source, shard in enumerate(shards)]
            full = plan.put_together(index, parts, both)
            for at in both:
                for tensor_of, cut, found in zip(mapping.hf, plan.slices(index, at), full, strict=True):
                    assert torch.equal(cut.of(found), cut.of(hf[tensor_of.name]))


def test_equal_sizes_need_nothing_from_other_tensor_parallel_ranks() -> None:
    table = parameter_table(shape_of(vocab_size=128))
    equal, unequal = (ExportPlan(table, tensor, tensor, EngineRank(0, 2)) for tensor in (2, 4))
    assert all(equal.alone(index) for index in range(len(table)))
    assert not all(unequal.alone(index) for index in range(len(table)))
    padded = ExportPlan(parameter_table(shape_of(vocab_size=130)), 2, 2, EngineRank(0, 2))
    assert not padded.alone(0), "an engine cuts 192 rows, Megatron 130"


def test_what_cannot_be_cut_is_said() -> None:
    shape = shape_of()
    assert why_whole(shape, 1, 4) == "an engine of one rank holds them"
    assert why_whole(shape, 4, 6) == "its 4 ranks do not divide the 6 of a pipeline stage"
    assert why_whole(shape, 3, 6) == "3 ranks do not share 8 heads with 2 key/value heads"
    assert why_whole(replace(shape, ffn_hidden_size=9), 2, 2).startswith("2 ranks do not share dimension 0 of model.la")
    assert why_whole(shape, 4, 4) == ""


def test_a_rank_of_72b_receives_less_than_its_engine_keeps() -> None:
    sizes = Sizes(tensor=8, pipeline=8, data=1)
    ranks = bytes_of_ranks("qwen2.5-72b", sizes, engine=8)
    assert {round(rank.kept / 1e9, 1) for rank in ranks} == {18.2}
    assert max(rank.received / rank.kept for rank in ranks) < 1
    before = bytes_of_ranks("qwen2.5-72b", sizes, engine=1)
    assert {rank.kept for rank in before} == {145_412_407_296}
    assert min(rank.received for rank in before) > 140e9
    gathered_first = bytes_of_ranks("qwen2.5-72b", Sizes(tensor=4, pipeline=8, data=2), engine=8)
    assert max(rank.received / rank.kept for rank in gathered_first) <= 1


def test_nobody_receives_more_than_its_engine_keeps_whatever_the_sizes() -> None:
    for model, sizes, engine in HANDOVERS:
        ranks = bytes_of_ranks(model, sizes, engine)
        assert max(rank.received / rank.kept for rank in ranks) <= 1, (model, sizes, engine)


def test_an_engine_of_one_rank_gets_the_whole() -> None:
    shape = shape_of()
    assert {name: cut.shape for name, cut in engine_slices(shape, WHOLE).items()} == hf_manifest(shape)
