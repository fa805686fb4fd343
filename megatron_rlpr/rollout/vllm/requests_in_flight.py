"""The requests a vLLM engine is working on, and what it has written for each so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_rlpr.rollout.engine import RolloutError
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings


@dataclass
class Sampled:
    """What has been generated for one request so far, and by which weights."""

    seed: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    weight_versions: list[int] = field(default_factory=list)
    shared_tokens: int = 0
    finish_reason: str | None = None


class RequestsInFlight:
    """Feeds requests to a vLLM engine and takes over its output, step by step."""

    def __init__(self, llm_engine: Any, stop_token_ids: Sequence[int]) -> None:
        """llm_engine: vLLM's LLMEngine; None: of an engine that is not there, and nothing can be added.

        stop_token_ids: any of them ends a response and stays its last token.
        """
        self._engine = llm_engine
        self._stop_ids = list(stop_token_ids)
        self._sampled: dict[str, Sampled] = {}

    def __len__(self) -> int:
        return len(self._sampled)

    @property
    def tokens(self) -> int:
        """Tokens written so far for the unfinished requests."""
        return sum(len(sampled.token_ids) for sampled in self._sampled.values())

    def add(self, key: str, request: GenerationRequest, sampling: SamplingSettings) -> None:
        """Start a request; key names it until it is finished."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        if key in self._sampled:
            raise RolloutError(f"request {key} is in flight already")
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=self._stop_ids,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(key, TokensPrompt(prompt_token_ids=list(request.prompt_token_ids)), parameters)
        self._sampled[key] = Sampled(request.seed)

    def step(self, weight_version: int) -> Iterator[tuple[str, Sampled]]:
        """One step of the engine, with the weights of that hand-over; yields what it finished."""
        for output in self._engine.step():
            sampled = self._sampled[output.request_id]
            if _append(sampled, output, weight_version):
                del self._sampled[output.request_id]
                yield output.request_id, sampled

    def abort(self) -> None:
        """Give up everything in flight."""
        if self._sampled:
            self._engine.abort_request(list(self._sampled))
        self._sampled.clear()


def _append(sampled: Sampled, output: Any, weight_version: int) -> bool:
    """Take over the new tokens of a vLLM RequestOutput; True when the request is finished."""
    delta = output.outputs[0]
    sampled.token_ids.extend(delta.token_ids)
    sampled.log_probs.extend(
        step[token].logprob for token, step in zip(delta.token_ids, delta.logprobs or (), strict=True)
    )
    if delta.token_ids and weight_version not in sampled.weight_versions:
        sampled.weight_versions.append(weight_version)
    sampled.shared_tokens = output.num_cached_tokens or sampled.shared_tokens
    if not output.finished:
        return False
    if delta.finish_reason not in ("stop", "length"):
        raise RolloutError(f"vLLM ended a request with {delta.finish_reason!r}")
    sampled.finish_reason = delta.finish_reason
    return True
