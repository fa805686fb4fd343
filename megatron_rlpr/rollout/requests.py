"""What a call for rollouts asks of the engines: n requests per prompt, each with its own seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from megatron_rlpr.rollout.engine import GenerationRequest
from megatron_rlpr.rollout.seeds import request_seed
from megatron_rlpr.types import Prompt, UserError


def group_requests(prompts: Sequence[Prompt], n: int, step: int, run_seed: int) -> list[list[GenerationRequest]]:
    """The n requests of every prompt, in sample order; UserError when n < 1.

    A prompt that occurs again goes on counting its samples, so it gets other seeds.
    """
    if n < 1:
        raise UserError(f"rollout.n={n}; a prompt needs at least 1 response")
    seen: Counter[int] = Counter()
    requests = []
    for prompt in prompts:
        first = seen[prompt.index] * n
        seen[prompt.index] += 1
        label = f"prompt {prompt.index} ({prompt.data_source})"
        requests.append(
            [
                GenerationRequest(prompt.token_ids, request_seed(run_seed, step, prompt.index, sample), label)
                for sample in range(first, first + n)
            ]
        )
    return requests
