"""The requests a vLLM engine is working on, and what it has written for each so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_rlpr.rollout.engine import RolloutError
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.types import Response


@dataclass
class _Sampled:
    """What has been generated for one request so far, and by which weights."""

    seed: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    weight_versions: list[int] = field(default_factory=list)


class RequestsInFlight:
    """Feeds requests to a vLLM engine and takes over its output, step by step."""

    def __init__(self, llm_engine: Any, tokenizer: Any, stop_token_ids: Sequence[int], raw_log_probs: bool) -> None:
        """llm_engine: vLLM's LLMEngine; None: of an engine that is not there, and nothing can be added.

        tokenizer: decodes the responses. stop_token_ids: any of them ends a response and stays its last token.
        raw_log_probs: as in `EngineSettings`.
        """
        self._engine = llm_engine
        self._raw_log_probs = raw_log_probs
        self._tokenizer = tokenizer
        self._stop_ids = list(stop_token_ids)
        self._sampled: dict[str, _Sampled] = {}
        self.shared_tokens = 0
        """Prompt tokens of finished requests that came from the prefix cache instead of a forward pass."""

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
            logprobs=0 if sampling.full_log_probs(self._raw_log_probs) else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(key, TokensPrompt(prompt_token_ids=list(request.prompt_token_ids)), parameters)
        self._sampled[key] = _Sampled(request.seed)

    def step(self, weight_version: int) -> Iterator[tuple[str, Response]]:
        """One step of the engine, with the weights of that hand-over; yields what it finished, by key."""
        for output in self._engine.step():
            sampled, delta = self._sampled[output.request_id], output.outputs[0]
            sampled.token_ids.extend(delta.token_ids)
            if delta.logprobs is not None:
                each = zip(delta.token_ids, delta.logprobs, strict=True)
                sampled.log_probs.extend(step[token].logprob for token, step in each)
            if delta.token_ids and weight_version not in sampled.weight_versions:
                sampled.weight_versions.append(weight_version)
            if output.finished:
                if delta.finish_reason not in ("stop", "length"):
                    raise RolloutError(f"vLLM ended a request with {delta.finish_reason!r}")
                self.shared_tokens += output.num_cached_tokens or 0
                del self._sampled[output.request_id]
                yield output.request_id, self._response(sampled, delta.finish_reason)

    def _response(self, sampled: _Sampled, finish_reason: str) -> Response:
        return Response(
            token_ids=tuple(sampled.token_ids),
            text=self._tokenizer.decode(sampled.token_ids, skip_special_tokens=False),
            engine_log_probs=tuple(sampled.log_probs),
            finish_reason=finish_reason,
            seed=sampled.seed,
            weight_versions=tuple(sampled.weight_versions),
        )

    def abort(self) -> None:
        """Give up everything in flight."""
        if self._sampled:
            self._engine.abort_request(list(self._sampled))
        self._sampled.clear()
