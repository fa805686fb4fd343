"""What a call for rollouts asks for: n responses per prompt, each sampled with its own seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from megatron_rlpr.types import Prompt, Response, RolloutGroup, UserError


@dataclass(frozen=True)
class SamplingSettings:
    """How every request of one call is sampled.

    temperature: 0 is greedy. top_p: nucleus threshold. top_k: -1 for all tokens. max_tokens: most new tokens of a
    response.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"sampling temperature is {self.temperature}; use 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling top_p is {self.top_p}; use a number above 0 and up to 1")
        if self.top_k != -1 and self.top_k < 1:
            raise UserError(f"sampling top_k is {self.top_k}; use -1 (all tokens) or at least 1")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens of a response is {self.max_tokens}; use at least 1")

    def full_log_probs(self, raw: bool) -> bool:
        """Whether an engine's log-probs are of all tokens at this temperature (1 for greedy), as the actor's are.

        vLLM gives them before the temperature (raw) or after top_p and top_k, which makes what they keep more probable.
        """
        return self.temperature in (0, 1) if raw else self.top_p == 1 and self.top_k == -1


@dataclass(frozen=True)
class RolloutRequest:
    """n responses for every prompt; the same on every rank. Their seeds come from run_seed, step, prompt and sample."""

    prompts: Sequence[Prompt]
    n: int
    step: int
    run_seed: int
    sampling: SamplingSettings

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"rollout.n={self.n}; a prompt needs at least 1 response")

    def groups(self, responses: Iterable[Response]) -> list[RolloutGroup]:
        """The responses of all prompts, in request order, as one group per prompt."""
        each = iter(responses)
        return [RolloutGroup(prompt, tuple(next(each) for _ in range(self.n))) for prompt in self.prompts]


@dataclass(frozen=True)
class GenerationRequest:
    """One response to sample.

    prompt_token_ids: templated prompt, no padding.
    seed: of this request alone; the same engine weights, requests and seeds give the same tokens.
    label: how error messages call the prompt, e.g. "prompt 17".
    """

    prompt_token_ids: tuple[int, ...]
    seed: int
    label: str = field(default="", compare=False)


def group_requests(asked: RolloutRequest) -> list[list[GenerationRequest]]:
    """The n requests of every prompt, in sample order.

    A prompt that occurs again goes on counting its samples, so it gets other seeds and other responses.
    """
    seen: Counter[int] = Counter()
    requests = []
    for prompt in asked.prompts:
        first = seen[prompt.index]
        seen[prompt.index] += asked.n
        label = f"prompt {prompt.index} ({prompt.data_source})"
        seeds = (request_seed(asked.run_seed, asked.step, prompt.index, first + sample) for sample in range(asked.n))
        requests.append([GenerationRequest(prompt.token_ids, seed, label) for seed in seeds])
    return requests


def request_seed(run_seed: int, step: int, prompt_index: int, sample: int) -> int:
    """The seed of one response, 0 <= seed < 2**31: it depends on what is sampled, never on where.

    A hash instead of a sum, so that neighbouring steps, prompts and samples share no seed by arithmetic. 31 bits,
    because torch's CPU generator uses only the low 32 and some engines read seeds as signed.
    """
    name = f"{run_seed}/{step}/{prompt_index}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 33
