"""Context-parallel ranks share a micro-batch: every token and every wanted row once, equal counts, even attention."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_requests import request_lists

from megatron_rlpr.packing import TreeMicroBatch, share_of
from megatron_rlpr.packing.context import EVEN, dealt, even_shares
from megatron_rlpr.packing.sequences import sort_sequences
from megatron_rlpr.packing.tree import build_tree
from megatron_rlpr.types import ScoreRequest


@given(
    costs=st.lists(st.integers(1, 5000), min_size=1, max_size=300), ranks=st.integers(1, 6), blocks=st.integers(1, 40)
)
@settings(max_examples=300, deadline=None)
def test_every_token_goes_to_one_rank_in_equal_counts_and_no_two_loads_differ_by_more_than_two_blocks(
    costs: list[int], ranks: int, blocks: int
) -> None:
    cost = np.array(costs + [1] * (-len(costs) % ranks))
    for shares in (dealt(cost, ranks, blocks), even_shares(cost, ranks)):
        assert shares.shape == (ranks, len(cost) // ranks)
        assert sorted(shares.ravel().tolist()) == list(range(len(cost)))
        assert all((np.diff(share) > 0).all() for share in shares)
    load = cost[dealt(cost, ranks, blocks)].sum(1)
    size, longer = divmod(len(cost) // ranks, min(blocks, len(cost) // ranks))
    until = np.append(0, np.cumsum(cost))
    starts = np.cumsum([0] + [size + 1] * (ranks * longer))
    of_lengths = np.diff(until[starts]), np.diff(until[starts[-1] :: size])
    assert np.ptp(load) <= max(np.ptp(block_costs) for block_costs in of_lengths if len(block_costs))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_chain_is_shared_exactly(ranks: int) -> None:
    """A rank's early block makes up for its late one."""
    shares = even_shares(np.arange(1, 1200 * ranks + 1), ranks)
    assert np.ptp(shares.sum(1)) == 0
    assert all((np.diff(share) != 1).sum() <= 1 for share in shares)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_trees_of_a_rollout_are_shared_evenly_in_few_pieces(ranks: int) -> None:
    """Prompts of some hundred tokens with eight responses of up to 3,000 each."""
    draw = np.random.default_rng(ranks)
    requests = []
    for _ in range(4):
        prompt = draw.integers(0, 1000, int(draw.integers(100, 500))).tolist()
        for _ in range(8):
            tokens = prompt + draw.integers(0, 1000, int(min(3000, draw.lognormal(6.5, 0.6)))).tolist()
            requests.append(ScoreRequest(tuple(tokens), len(prompt), len(tokens)))
    tree = build_tree(sort_sequences(requests, share_prefixes=True), ranks)
    parts = [share_of(tree, rank, ranks) for rank in range(ranks)]
    load = np.array([part.attention_pairs for part in parts])
    assert load.sum() == tree.attention_pairs
    assert load.max() <= load.mean() * EVEN
    assert all((np.diff(part.share.tokens) != 1).sum() < 16 for part in parts if part.share)


def test_tokens_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens cannot be divided among 2"):
        even_shares(np.ones(7, dtype=np.int64), 2)


@given(requests=request_lists, ranks=st.integers(1, 4), multiple=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_the_shares_of_all_ranks_are_the_micro_batch(requests: list[ScoreRequest], ranks: int, multiple: int) -> None:
    tree = build_tree(sort_sequences(requests, share_prefixes=True), ranks * multiple)
    parts = [share_of(tree, rank, ranks) for rank in range(ranks)]
    assert {part.num_tokens for part in parts} == {tree.num_tokens // ranks}
    assert sum(part.padding for part in parts) == tree.padding
    assert sorted(want for part in parts for want in wants(part)) == sorted(wants(tree))
    for part in parts:
        tokens = part.share.tokens if part.share else np.arange(tree.num_tokens)
        assert part.nodes is tree.nodes
        assert part.token_ids.tolist() == tree.token_ids[tokens].tolist()
        assert part.positions.tolist() == tree.positions[tokens].tolist()
        fills_up = tokens >= tree.num_tokens - tree.padding
        assert not fills_up[: part.num_tokens - part.padding].any()
        assert fills_up[part.num_tokens - part.padding :].all()


def wants(part: TreeMicroBatch) -> list[tuple[int, int, int, int]]:
    """Request, offset, source token in the forest and target of every wanted row."""
    tokens = part.share.tokens if part.share else np.arange(part.num_tokens)
    source = tokens[part.source_row[part.row_of_want]]
    columns = (part.want_request, part.want_offset, source, part.target[part.row_of_want])
    return list(zip(*(column.tolist() for column in columns), strict=True))
