"""What is asked of the engines depends on what is sampled alone, and answers find their prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.rollout.ray.request_queue import RequestQueue
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings, group_requests, request_seed
from megatron_rlpr.types import Prompt, Response, UserError

NUMBERS = st.integers(0, 2**40)
PROMPTS = [Prompt(index, (index, 1), (), "", "sums") for index in (5, 3, 5)]
ASKED = RolloutRequest(PROMPTS, n=2, step=7, run_seed=1, sampling=SamplingSettings())


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_a_seed_fits_in_31_bits(run_seed: int, step: int, prompt_index: int, sample: int) -> None:
    assert 0 <= request_seed(run_seed, step, prompt_index, sample) < 2**31


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    assert request_seed(1, 2, 3, 4) == 1432553659


def test_every_part_of_the_name_changes_the_seed() -> None:
    names = [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (12, 3, 3, 4), (1, 23, 3, 4)]
    assert len({request_seed(*name) for name in names}) == len(names)


def test_the_samples_of_a_prompt_get_different_seeds() -> None:
    for prompt_index in range(500):
        assert len({request_seed(1, 7, prompt_index, sample) for sample in range(32)}) == 32


def test_a_prompt_that_occurs_again_goes_on_counting_its_samples() -> None:
    requests = group_requests(ASKED)
    assert [group[0].prompt_token_ids for group in requests] == [prompt.token_ids for prompt in PROMPTS]
    seeds = [[request.seed for request in group] for group in requests]
    assert seeds[0] + seeds[2] == [request_seed(1, 7, 5, sample) for sample in range(4)]
    assert requests[1][0].label == "prompt 3 (sums)"


def test_responses_in_request_order_become_one_group_per_prompt() -> None:
    responses = [Response((number,), "", (0.0,), "stop", number) for number in range(6)]
    groups = ASKED.groups(responses)
    assert [group.prompt for group in groups] == PROMPTS
    assert [response.seed for group in groups for response in group.responses] == list(range(6))


def test_a_call_for_no_responses_is_refused() -> None:
    with pytest.raises(UserError, match=r"rollout\.n=0; a prompt needs at least 1 response"):
        RolloutRequest(PROMPTS, 0, 7, 1, SamplingSettings())


def test_requests_that_are_put_back_are_the_next_ones_and_answers_find_their_ticket() -> None:
    queue = RequestQueue()
    first, second = (queue.add(group_requests(ASKED)[at : at + 1], ASKED.sampling) for at in (0, 1))
    taken = queue.pop()
    queue.put_back(taken)
    queue.put_back([])
    assert [queue.pop(), len(queue)] == [taken, 1]
    answers = {one.key: Response((1,), "", (0.0,), "stop", one.request.seed) for one in [*taken, *queue.pop()]}
    for key, response in reversed(answers.items()):
        queue.answer(key, response)
    assert first.done
    assert second.done
    assert [first.responses[key].seed for key in first.keys] == [one.request.seed for one in taken]
