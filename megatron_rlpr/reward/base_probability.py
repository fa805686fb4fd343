"""The base probability: how likely the reference answer is with no reasoning at all (spec section 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_rlpr.data.tokenizer import encode, overlapping_tokens
from megatron_rlpr.types import Prompt, ScoreRequest, UserError


def base_requests(tokenizer: Any, prompts: Sequence[Prompt], max_response_length: int) -> list[ScoreRequest]:
    """One request per prompt: the prompt, a space, the reference answer; no tags. The answer's tokens are scored.

    The text is tokenised as a whole, so the answer's first token may hold the space before it. At most
    max_response_length tokens after the prompt are looked at, as in the response window of the reference.
    """
    prompt_texts = [str(tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)) for prompt in prompts]
    texts = [
        f"{text} {prompt.reference_answer} {tokenizer.eos_token}"
        for text, prompt in zip(prompt_texts, prompts, strict=True)
    ]
    requests = []
    for prompt, text, encoding in zip(prompts, prompt_texts, encode(tokenizer, texts), strict=True):
        answer_start = len(text) + 1
        start, stop = overlapping_tokens(encoding, answer_start, answer_start + len(prompt.reference_answer))
        _, prompt_stop = overlapping_tokens(encoding, len(text) - 1, len(text))
        last = prompt_stop + max_response_length
        if 0 < start < stop and last <= start:
            raise UserError(
                f"data.max_response_length={max_response_length} leaves no room for a reference answer behind its "
                f"prompt (prompt {prompt.index}): raise it"
            )
        stop = min(stop, last)
        if not 0 < start < stop:
            raise UserError(
                f"prompt {prompt.index}: the reference answer {prompt.reference_answer!r:.80} has no tokens of its "
                "own; remove the row"
            )
        requests.append(ScoreRequest(tuple(encoding.ids[:stop]), start, stop))
    return requests
