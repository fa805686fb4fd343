"""A plan covers every wanted row once, keeps the budget, and gives all ranks equal counts and near-equal work."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_requests import request_lists

from megatron_rlpr.packing import CostModel, Plan, TreeMicroBatch, plan
from megatron_rlpr.types import ScoreRequest, UserError

SMALL_MODEL = CostModel(linear_flops_per_token=2_304.0, attention_flops_per_pair=64.0, head_flops_per_row=512.0)
QWEN_7B = CostModel(
    linear_flops_per_token=13_050_576_896.0, attention_flops_per_pair=401_408.0, head_flops_per_row=1_089_994_752.0
)


def arrays(tree: TreeMicroBatch) -> list[list[int]]:
    return [
        value.tolist() for value in (*vars(tree).values(), *vars(tree.nodes).values()) if isinstance(value, np.ndarray)
    ]


def all_trees(packed: Plan) -> list[TreeMicroBatch]:
    return [tree for rank in packed.micro_batches for tree in rank]


def rollout_requests(prompts: int, n: int, seed: int, spliced: bool) -> list[ScoreRequest]:
    """Groups as training makes them: a shared chat template, prompts of 120-260 tokens, log-normal response lengths
    that depend on the prompt's difficulty (median 700, at most 3,072); optionally the spliced reference of every
    response."""
    draw = np.random.default_rng(seed)
    template = draw.integers(0, 151643, 60).tolist()
    requests = []
    for _ in range(prompts):
        prompt = template + draw.integers(0, 151643, draw.integers(60, 200)).tolist()
        reference = draw.integers(0, 151643, int(np.clip(draw.lognormal(1.8, 0.8), 1, 60))).tolist()
        difficulty = draw.lognormal(0, 0.35)
        for _ in range(n):
            length = int(np.clip(700 * difficulty * draw.lognormal(0, 0.45), 30, 3072))
            tokens = prompt + draw.integers(0, 151643, length).tolist()
            requests.append(ScoreRequest(tuple(tokens), len(prompt), len(tokens)))
            if spliced:
                kept = len(tokens) - int(draw.integers(4, 30))
                requests.append(ScoreRequest((*tokens[:kept], *reference, 1, 2), kept, kept + len(reference)))
    return requests


@given(
    requests=request_lists,
    spare=st.integers(0, 9),
    ranks=st.integers(1, 5),
    share=st.booleans(),
    multiple=st.integers(1, 4),
    least=st.integers(1, 4),
)
@settings(max_examples=400, deadline=None)
def test_every_wanted_row_is_computed_once_within_the_budget_on_equal_counts(
    requests: list[ScoreRequest], spare: int, ranks: int, share: bool, multiple: int, least: int
) -> None:
    longest = max((r.stop - 1 for r in requests if r.stop > r.start), default=1)
    max_tokens = longest + (-longest) % multiple + spare
    packed = plan(requests, max_tokens, ranks, share, SMALL_MODEL, multiple, least)
    trees = all_trees(packed)
    assert {len(rank) for rank in packed.micro_batches} == {packed.num_micro_batches}
    assert packed.num_micro_batches >= least
    assert all(tree.is_filler == (not len(tree.row_of_want)) for tree in trees)
    assert len(packed.micro_batches) == ranks
    assert all(0 < tree.num_tokens <= max_tokens and tree.num_tokens % multiple == 0 for tree in trees)
    wants = [want for tree in trees for want in zip(tree.want_request.tolist(), tree.want_offset.tolist(), strict=True)]
    assert sorted(wants) == [(i, t) for i, r in enumerate(requests) for t in range(r.stop - r.start)]
    assert packed.num_tokens == sum(tree.num_tokens - tree.padding for tree in trees)
    flops = [
        sum(
            SMALL_MODEL.flops(
                t.num_tokens - t.padding, t.attention_pairs - t.padding * (t.padding + 1) // 2, t.head_rows
            )
            for t in rank
        )
        for rank in packed.micro_batches
    ]
    # Rows shared over a distance count twice in the plan's figure, so it is an upper bound.
    assert all(actual <= planned * (1 + 1e-9) for actual, planned in zip(flops, packed.rank_flops, strict=True))


@given(requests=request_lists, ranks=st.integers(1, 4), share=st.booleans())
@settings(deadline=None)
def test_the_same_arguments_make_the_same_plan(requests: list[ScoreRequest], ranks: int, share: bool) -> None:
    first, second = (plan(requests, 12, ranks, share, SMALL_MODEL) for _ in range(2))
    assert [arrays(t) for t in all_trees(first)] == [arrays(t) for t in all_trees(second)]
    assert [arrays(t) for t in first.for_rank(ranks - 1)] == [arrays(t) for t in first.micro_batches[-1]]


@given(request_lists)
@settings(deadline=None)
def test_one_rank_with_room_computes_every_distinct_prefix_once_in_one_tree(requests: list[ScoreRequest]) -> None:
    packed = plan(requests, 1000, 1, cost_model=SMALL_MODEL)
    assert packed.num_micro_batches == 1
    assert packed.num_tokens == len({r.token_ids[:t] for r in requests if r.stop > r.start for t in range(1, r.stop)})


def test_groups_stay_whole_when_they_fit() -> None:
    groups = [[ScoreRequest((g, *range(50), 100 + i, 1, 2, 3), 51, 55) for i in range(4)] for g in range(6)]
    requests = [r for i in range(4) for r in (group[i] for group in groups)]
    packed = plan(requests, max_tokens=130, data_parallel_size=2, cost_model=SMALL_MODEL)
    assert packed.num_tokens == 6 * (51 + 4 * 3)
    assert packed.num_micro_batches == 2
    assert [[t.num_tokens for t in rank] for rank in packed.micro_batches] in (
        [[126, 63], [126, 63]],
        [[63, 126], [63, 126]],
    )


def test_a_group_larger_than_the_budget_is_split_and_its_prompt_computed_in_every_part() -> None:
    requests = [ScoreRequest((*range(40), 100 + i, *range(20)), 40, 61) for i in range(8)]
    packed = plan(requests, max_tokens=80, data_parallel_size=1, cost_model=SMALL_MODEL)
    assert packed.num_micro_batches == 4
    assert [t.num_tokens for t in packed.micro_batches[0]] == [80] * 4


def test_padding_stays_within_the_budget() -> None:
    requests = [ScoreRequest((i, 1, 2), 1, 3) for i in range(9)]
    packed = plan(requests, max_tokens=7, data_parallel_size=1, cost_model=SMALL_MODEL, sequence_multiple=4)
    assert [(t.num_tokens, t.padding) for t in packed.micro_batches[0]] == [(4, 0)] * 4 + [(4, 2)]


def test_a_single_group_is_spread_over_the_ranks() -> None:
    requests = [ScoreRequest((*range(10), 100 + i, *range(200)), 10, 211) for i in range(8)]
    packed = plan(requests, max_tokens=4000, data_parallel_size=4, cost_model=SMALL_MODEL)
    assert [sum(len(set(t.want_request.tolist())) for t in rank) for rank in packed.micro_batches] == [2, 2, 2, 2]
    assert packed.imbalance < 1e-9


def test_fewer_sequences_than_ranks_leave_fillers_without_rows() -> None:
    requests = [ScoreRequest((1, 2, 3), 1, 3), ScoreRequest((4, 5, 6), 1, 3)]
    packed = plan(requests, max_tokens=8, data_parallel_size=4, cost_model=SMALL_MODEL, sequence_multiple=2)
    assert packed.num_micro_batches == 1
    assert sorted(t.head_rows for t in all_trees(packed)) == [0, 0, 2, 2]
    assert all(t.num_tokens == 2 for t in all_trees(packed))


@pytest.mark.parametrize("requests", [[], [ScoreRequest((1, 2, 3), 2, 2)]])
def test_nothing_wanted_costs_one_filler_per_rank(requests: list[ScoreRequest]) -> None:
    packed = plan(requests, max_tokens=8, data_parallel_size=2)
    assert [[t.num_tokens for t in rank] for rank in packed.micro_batches] == [[1], [1]]
    assert packed.num_tokens == 0
    assert packed.imbalance == 0.0


@pytest.mark.parametrize(("length", "multiple", "needed"), [(9, 1, 8), (8, 4, 8)])
def test_a_sequence_over_the_budget_is_named_with_the_key_and_the_value_that_would_do(
    length: int, multiple: int, needed: int
) -> None:
    requests = [ScoreRequest((1, 2), 1, 2), ScoreRequest(tuple(range(length)), 1, length)]
    with pytest.raises(
        UserError, match=rf"sequence 1 has {length - 1} tokens.*actor\.max_tokens_per_micro_batch=7.*at least {needed}"
    ):
        plan(requests, max_tokens=7, data_parallel_size=1, sequence_multiple=multiple)
    plan(requests, max_tokens=needed, data_parallel_size=1, sequence_multiple=multiple)


def test_a_budget_below_the_sequence_multiple_is_refused() -> None:
    with pytest.raises(UserError, match=r"actor\.max_tokens_per_micro_batch=2 .* at least 4"):
        plan([], max_tokens=2, data_parallel_size=1, sequence_multiple=4)


@pytest.mark.parametrize("ranks", [8, 16, 32])
@pytest.mark.parametrize("spliced", [False, True])
def test_6144_sequences_are_balanced_to_one_percent_with_little_computed_twice(
    ranks: int, spliced: bool, rollouts: dict
) -> None:
    requests, distinct = rollouts[spliced]
    assert len(requests) == 6144
    packed = plan(requests, 24_000, ranks, cost_model=QWEN_7B)
    assert packed.imbalance < 0.01
    assert packed.num_tokens < 1.01 * distinct
    plain = plan(requests, 24_000, ranks, share_prefixes=False, cost_model=QWEN_7B)
    assert plain.imbalance < 0.01


@pytest.fixture(scope="module")
def rollouts() -> dict[bool, tuple[list[ScoreRequest], int]]:
    made = {spliced: rollout_requests(384 if spliced else 768, 8, 0, spliced) for spliced in (False, True)}
    return {spliced: (requests, plan(requests, 10**9, 1).num_tokens) for spliced, requests in made.items()}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_small_batch_is_balanced_to_five_percent(ranks: int) -> None:
    packed = plan(rollout_requests(16, 8, 3, spliced=True), 24_000, ranks, cost_model=QWEN_7B)
    assert packed.imbalance < 0.05
