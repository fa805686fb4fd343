"""A micro-batch is the prefix tree of its sequences: paths, subtrees, nodes and rows are checked against plain
Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_requests import request_lists

from megatron_rlpr.packing.sequences import sort_sequences
from megatron_rlpr.packing.tree import PADDING_TOKEN_ID, TreeMicroBatch, build_tree
from megatron_rlpr.types import ScoreRequest


def ancestors(tree: TreeMicroBatch, token: int) -> list[int]:
    """Tokens from the root to `token`, itself included, by following the nodes' parents."""
    node = int(np.searchsorted(tree.nodes.start, token, side="right")) - 1
    path = list(range(int(tree.nodes.start[node]), token + 1))
    while (node := int(tree.nodes.parent[node])) >= 0:
        path = list(range(int(tree.nodes.start[node]), int(tree.nodes.stop[node]))) + path
    return path


def token_paths(tree: TreeMicroBatch) -> list[tuple[int, ...]]:
    """The token ids from the root to every token, padding left out."""
    return [tuple(tree.token_ids[ancestors(tree, token)].tolist()) for token in range(tree.num_tokens - tree.padding)]


def inputs(request: ScoreRequest) -> tuple[int, ...]:
    return request.token_ids[: request.stop - 1]


@given(request_lists, st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_row_is_predicted_from_exactly_the_tokens_before_it(requests: list[ScoreRequest], share: bool) -> None:
    tree = build_tree(sort_sequences(requests, share))
    found = {}
    for request, offset, row in zip(
        tree.want_request.tolist(), tree.want_offset.tolist(), tree.row_of_want.tolist(), strict=True
    ):
        assert (request, offset) not in found
        path = ancestors(tree, int(tree.source_row[row]))
        assert tree.positions[path].tolist() == list(range(len(path)))
        found[request, offset] = (tuple(tree.token_ids[path].tolist()), int(tree.target[row]))
    assert found == {
        (i, t - r.start): (r.token_ids[:t], r.token_ids[t])
        for i, r in enumerate(requests)
        for t in range(r.start, r.stop)
    }


@given(request_lists)
@settings(max_examples=300, deadline=None)
def test_sharing_computes_every_distinct_prefix_and_every_distinct_row_once(requests: list[ScoreRequest]) -> None:
    tree = build_tree(sort_sequences(requests, share_prefixes=True))
    paths = token_paths(tree)
    assert len(set(paths)) == len(paths)
    wanted = [r for r in requests if r.stop > r.start]
    assert set(paths) == {inputs(r)[: t + 1] for r in wanted for t in range(r.stop - 1)}
    assert tree.head_rows == len({r.token_ids[: t + 1] for r in wanted for t in range(r.start, r.stop)})
    assert len(set(zip(tree.source_row.tolist(), tree.target.tolist(), strict=True))) == tree.head_rows


@given(request_lists)
@settings(deadline=None)
def test_without_sharing_every_sequence_is_a_root_with_rows_of_its_own(requests: list[ScoreRequest]) -> None:
    tree = build_tree(sort_sequences(requests, share_prefixes=False))
    wanted = [r for r in requests if r.stop > r.start]
    assert tree.num_tokens - tree.padding == sum(len(inputs(r)) for r in wanted)
    assert tree.head_rows == len(tree.row_of_want) == sum(r.stop - r.start for r in wanted)
    assert (tree.nodes.parent == -1).all()
    assert len(tree.nodes.start) == max(len(wanted), 1)


@given(request_lists, st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_descendants_are_the_tokens_between_a_nodes_end_and_its_subtrees_end(
    requests: list[ScoreRequest], multiple: int
) -> None:
    tree = build_tree(sort_sequences(requests, share_prefixes=True), multiple)
    assert tree.nodes.start.tolist() == [0, *tree.nodes.stop[:-1].tolist()]
    assert tree.nodes.stop[-1] == tree.num_tokens
    assert (tree.nodes.stop > tree.nodes.start).all()
    seen_from = [set(ancestors(tree, token)) for token in range(tree.num_tokens)]
    for start, stop, subtree_stop in zip(tree.nodes.start, tree.nodes.stop, tree.nodes.subtree_stop, strict=True):
        below = [token for token in range(tree.num_tokens) if stop - 1 in seen_from[token] and token >= stop]
        assert below == list(range(stop, subtree_stop))
        assert start not in {token for above in seen_from[:start] for token in above}
    assert tree.attention_pairs == sum(len(path) for path in seen_from)


@given(request_lists)
@settings(max_examples=300, deadline=None)
def test_a_node_is_a_maximal_run_of_tokens_with_the_same_sequences_through_it(requests: list[ScoreRequest]) -> None:
    tree = build_tree(sort_sequences(requests, share_prefixes=True))
    wanted = [r for r in requests if r.stop > r.start]
    through = [
        frozenset(i for i, r in enumerate(wanted) if inputs(r)[: len(path)] == path) for path in token_paths(tree)
    ]
    nodes = zip(tree.nodes.start.tolist(), tree.nodes.stop.tolist(), tree.nodes.parent.tolist(), strict=True)
    for start, stop, parent in nodes if wanted else []:
        assert len(set(through[start:stop])) == 1
        if parent >= 0:
            assert through[start] < through[int(tree.nodes.stop[parent]) - 1]


@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_padding_is_one_root_without_rows_behind_the_tree(multiple: int) -> None:
    requests = [ScoreRequest((5, 6, 7, 8), 2, 4), ScoreRequest((5, 6, 9, 9, 9, 9), 2, 6)]
    tree = build_tree(sort_sequences(requests, share_prefixes=True), multiple)
    assert tree.num_tokens % multiple == 0
    assert tree.num_tokens - tree.padding == 6
    if tree.padding:
        assert tree.nodes.start[-1] == 6
        assert tree.nodes.parent[-1] == -1
        assert tree.token_ids[6:].tolist() == [PADDING_TOKEN_ID] * tree.padding
        assert tree.positions[6:].tolist() == list(range(tree.padding))
    assert tree.source_row.max() < 6


@pytest.mark.parametrize("multiple", [1, 4])
def test_no_sequences_make_a_micro_batch_of_padding_alone(multiple: int) -> None:
    tree = build_tree(sort_sequences([], share_prefixes=True), multiple)
    assert tree.num_tokens == tree.padding == multiple
    assert tree.nodes.parent.tolist() == [-1]
    assert tree.head_rows == len(tree.row_of_want) == 0


def test_a_prompt_its_response_and_the_spliced_reference_share_what_they_have_in_common() -> None:
    prompt, reasoning = (1, 2, 3), (4, 5, 6)
    response = ScoreRequest((*prompt, *reasoning, 7, 8), 3, 8)
    spliced = ScoreRequest((*prompt, *reasoning, 9, 10, 11), 6, 8)
    other = ScoreRequest((*prompt, 12, 13), 3, 5)
    tree = build_tree(sort_sequences([response, spliced, other], share_prefixes=True))
    assert tree.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 9, 12]
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 3]
    assert tree.nodes.start.tolist() == [0, 3, 6, 7, 8]
    assert tree.nodes.parent.tolist() == [-1, 0, 1, 1, 0]
    assert tree.nodes.subtree_stop.tolist() == [9, 8, 7, 8, 9]


def test_two_sequences_that_want_the_same_token_of_a_shared_prefix_point_at_one_row() -> None:
    tree = build_tree(
        sort_sequences([ScoreRequest((1, 2, 3, 4), 2, 4), ScoreRequest((1, 2, 3, 5), 2, 4)], share_prefixes=True)
    )
    assert tree.source_row.tolist() == [1, 2, 2]
    assert tree.target.tolist() == [3, 4, 5]
    assert tree.row_of_want.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 1), (1, 4)])
def test_a_span_outside_the_sequence_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"request 1: span"):
        sort_sequences([ScoreRequest((1, 2, 3), 1, 3), ScoreRequest((1, 2, 3), start, stop)], share_prefixes=True)
