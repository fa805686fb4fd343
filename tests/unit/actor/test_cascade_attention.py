"""The level cascade equals attention in blocks, forward and backward, with the flash kernels computed on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from forests import Forest, forests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from varlen_on_cpu import VarlenKernel, varlen_on_cpu

from megatron_rlpr.actor.attention.block_attention import BlockBackend
from megatron_rlpr.actor.attention.cascade_attention import CascadeBackend
from megatron_rlpr.actor.attention.cascade_layout import SHORTEST_LEVEL, cascade
from megatron_rlpr.packing import Nodes

CPU = torch.device("cpu")
SCALE = 0.3

CHAIN: tuple[int, list] = (2, [])
for size in (1, 3, 1, 1, 4, 2):
    CHAIN = (size, [CHAIN])
LEAF = (1, [])
SHAPES = {
    "one root": [(9, [])],
    "one token": [LEAF],
    "a chain of nodes": [CHAIN],
    "many roots": [(3, [(2, []), (4, [])]), (5, []), LEAF, (1, [LEAF, LEAF]), (7, [])],
    "single-token nodes": [(1, [(1, [LEAF, LEAF]), (1, [LEAF, (1, [LEAF])])])],
    "answers below responses": [(40, [(30, [(4, []), (2, [(3, []), (2, [])])]), (25, [(5, []), (1, [])]), (8, [])])],
}


@pytest.fixture
def kernel() -> Iterator[VarlenKernel]:
    with varlen_on_cpu() as found:
        yield found


def forest_of(spec: list) -> Forest:
    forest = Forest()
    for tree in spec:
        forest.add(tree)
    return forest


def random_inputs(tokens: int, groups: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    heads = (2 * groups, 2, 2)
    return [torch.randn(tokens, n, 8, generator=generator).to(dtype).requires_grad_() for n in heads]


def values_and_gradients(backend: CascadeBackend | BlockBackend, forest: Forest, inputs: list[Tensor]) -> list[Tensor]:
    dtype = inputs[0].dtype
    out = backend.attend(*inputs, backend.lay_out(forest.nodes, dtype, CPU), SCALE, None)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [out, *torch.autograd.grad((out * cotangent).sum(), inputs)]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(spec=SHAPES["one token"], groups=3, shortest=1)
@example(spec=SHAPES["a chain of nodes"], groups=3, shortest=1)
@example(spec=SHAPES["many roots"], groups=3, shortest=1)
@example(spec=SHAPES["single-token nodes"], groups=3, shortest=1)
@example(spec=SHAPES["answers below responses"], groups=3, shortest=1)
@given(spec=forests, groups=st.sampled_from([1, 3]), shortest=st.sampled_from([1, 3, 5, SHORTEST_LEVEL]))
def test_the_cascade_equals_the_blocks(kernel: VarlenKernel, spec: list, groups: int, shortest: int) -> None:
    forest = forest_of(spec)
    inputs = random_inputs(len(forest.paths), groups)
    found = values_and_gradients(CascadeBackend(shortest), forest, inputs)
    expected = values_and_gradients(BlockBackend(), forest, inputs)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "levels"),
    [
        ("one root", 0),
        ("one token", 0),
        ("a chain of nodes", 6),
        ("many roots", 1),
        ("single-token nodes", 3),
        ("answers below responses", 3),
    ],
)
def test_there_is_one_call_for_every_level_with_descendants_and_one_for_the_nodes_themselves(
    kernel: VarlenKernel, shape: str, levels: int
) -> None:
    forest = forest_of(SHAPES[shape])
    values_and_gradients(CascadeBackend(shortest_level=1), forest, random_inputs(len(forest.paths)))
    assert [name for name, *_ in kernel.calls] == ["forward"] * (levels + 1) + ["backward"] * (levels + 1)


@settings(max_examples=100, deadline=None)
@given(spec=forests, shortest=st.sampled_from([1, 3, 5, SHORTEST_LEVEL]))
def test_every_pair_of_tokens_is_in_one_call_and_no_key_of_a_long_node_twice_in_a_call(
    spec: list, shortest: int
) -> None:
    forest = forest_of(spec)
    tokens = torch.arange(len(forest.paths))
    met: list[tuple[int, int]] = []
    on_itself, *levels = cascade(forest.nodes, CPU, shortest)
    of_long_nodes = torch.from_numpy(
        np.concatenate(
            [np.arange(a, b) for a, b in zip(forest.start, forest.stop, strict=True) if b - a >= shortest] or [[]]
        )
    )
    assert isinstance(on_itself.keys, Tensor) == (len(tokens[on_itself.keys]) > len(tokens))  # short nodes' are copied
    for call in (on_itself, *levels):
        keys = tokens[call.keys]
        kept = keys[torch.isin(keys, of_long_nodes)]
        assert len(kept) == len(kept.unique())
        starts, stops = (bounds.tolist() for bounds in (call.query_bounds, call.key_bounds))
        for segment in range(len(starts) - 1):
            queries = tokens[call.rows][starts[segment] : starts[segment + 1]].tolist()
            seen = keys[stops[segment] : stops[segment + 1]].tolist()
            hidden = len(seen) - len(queries)  # the last query sees all
            met += [
                (query, key)
                for row, query in enumerate(queries)
                for column, key in enumerate(seen)
                if not call.causal or column <= row + hidden
            ]
            if call.idle is not None:
                assert set(call.idle[starts[segment] : starts[segment + 1]].tolist()) == {not seen}
    assert sorted(met) == [(token, ancestor) for token, path in enumerate(forest.paths) for ancestor in path]
    assert sum(len(tokens[call.keys]) for call in levels) <= len(tokens)


@pytest.mark.parametrize("shortest", [1, 10])
def test_a_step_repeated_is_equal_bit_for_bit_with_kernels_that_do_not_add_in_any_order(
    kernel: VarlenKernel, shortest: int
) -> None:
    forest = forest_of(SHAPES["answers below responses"])
    inputs = random_inputs(len(forest.paths), dtype=torch.bfloat16)
    once, again = (values_and_gradients(CascadeBackend(shortest), forest, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert all(deterministic for name, _, deterministic in kernel.calls if name == "backward")


@pytest.mark.parametrize("warn_only", [None, False, True])
def test_the_process_keeps_its_setting_of_determinism(kernel: VarlenKernel, warn_only: bool | None) -> None:
    forest = forest_of(SHAPES["many roots"])
    torch.use_deterministic_algorithms(warn_only is not None, warn_only=bool(warn_only))
    try:
        values_and_gradients(CascadeBackend(), forest, random_inputs(len(forest.paths)))
        assert torch.are_deterministic_algorithms_enabled() == (warn_only is not None)
        assert torch.is_deterministic_algorithms_warn_only_enabled() == bool(warn_only)
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shortest", [1, 65, SHORTEST_LEVEL])
def test_bf16_stays_close_to_fp32(kernel: VarlenKernel, shortest: int) -> None:
    """Shares are rounded where the kernels round them; merging and adding them keeps fp32."""
    forest = forest_of([(100, [(60, []), (7, [(70, [(5, []), (9, [])]), (50, [])])])])
    low = random_inputs(len(forest.paths), dtype=torch.bfloat16)
    exact = values_and_gradients(BlockBackend(), forest, [x.detach().float().requires_grad_() for x in low])
    found = values_and_gradients(CascadeBackend(shortest), forest, low)
    for got, want in zip(found, exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() / want.norm() < 0.015


def test_of_one_prompt_with_responses_nothing_is_copied() -> None:
    prompt = Nodes(*(torch.tensor(x).numpy() for x in ([0, 5, 8], [5, 8, 12], [-1, 0, 0], [12, 8, 12])))
    on_itself, of_prompt = cascade(prompt, CPU, shortest_level=1)
    assert (on_itself.rows, on_itself.keys) == (slice(0, 12), slice(0, 12))
    assert (of_prompt.rows, of_prompt.keys, of_prompt.idle) == (slice(5, 12), slice(0, 5), None)


def test_queries_are_copied_together_where_few_rows_ask() -> None:
    """Two prompts with responses of 100 tokens, one of each with two answers of 3 tokens."""
    response = (100, [(3, []), (3, [])])
    _, of_prompts, of_responses = cascade(forest_of([(50, [response, (100, [])]), (50, [response])]).nodes, CPU, 1)
    assert of_prompts.rows == slice(50, 412)
    assert of_prompts.idle is not None
    assert of_prompts.idle.nonzero().flatten().tolist() == list(range(206, 256))
    assert isinstance(of_responses.rows, Tensor)
    assert of_responses.rows.tolist() == [*range(150, 156), *range(406, 412)]
    assert of_responses.query_bounds.tolist() == [0, 6, 12]
    assert of_responses.idle is None
