"""Text-mode splice: put the reference answer in place of the generated one in decoded text and tokenise again.

This is the reference's semantics (spec section 2.2). Where it is wrong we differ: a row is judged by its own length (Q2),
an answer tag with nothing behind it is invalid (Q3), and spans are those of the tag and the answer that we insert, so a
reference answer that itself contains tags is found (Q24).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rlpr.config import RewardConfig
from megatron_rlpr.reward.answer_tags import CLOSE_ANSWER, OPEN_ANSWER, AnswerSlot, find_answer_slot, strip_padding
from megatron_rlpr.reward.token_spans import overlapping_tokens
from megatron_rlpr.types import Prompt, Response, ScoreRequest


@dataclass(frozen=True)
class Splice:
    """A sequence with the reference answer in it.

    token_ids: the whole sequence, up to and including the closing tag and the end of sequence.
    answer_tag: the first token that touches the <answer> before the reference answer.
    start, stop: the tokens of the reference answer, which are scored.
    valid: False when the response has no place for it or the sequence is too long; nothing is scored then.
    """

    token_ids: tuple[int, ...]
    answer_tag: int
    start: int
    stop: int
    valid: bool = True

    def request(self) -> ScoreRequest | None:
        """What the policy is asked to score: the sequence up to the last scored token. None when invalid."""
        return ScoreRequest(self.token_ids[: self.stop], self.start, self.stop) if self.valid else None


INVALID = Splice((), 0, 0, 0, valid=False)


@dataclass(frozen=True)
class SpliceLimits:
    """Longest sequence (data.max_prompt_length + data.max_response_length) and longest part from the answer tag on."""

    max_prompt_length: int
    max_response_length: int

    def checked(self, splice: Splice) -> Splice:
        """The splice with its scored span cut to the response window; INVALID when it is too long or nothing is left to score."""
        stop = min(splice.stop, splice.answer_tag + self.max_response_length)
        if len(splice.token_ids) > self.max_prompt_length + self.max_response_length or not 0 < splice.start < stop:
            return INVALID
        return Splice(splice.token_ids, splice.answer_tag, splice.start, stop)


def whitespace_around(slot: AnswerSlot, config: RewardConfig) -> tuple[str, str]:
    """The white space put before and after the reference answer: the response's own before it (one space if it has none,
    unless empty is allowed), one space after it (the response's own when the token after the answer is scored too)."""
    leading = slot.leading if slot.leading or config.allow_empty_leading_whitespaces else " "
    trailing = slot.trailing if config.gt_tokens_one_more and slot.trailing is not None else " "
    return leading, trailing


def splice_texts(tokenizer: Any, pairs: Sequence[tuple[Prompt, Response]], config: RewardConfig, limits: SpliceLimits) -> list[Splice]:
    """One splice per (prompt, response), with one batched decode and one batched tokenisation for all of them."""
    eos, pad = tokenizer.eos_token, tokenizer.pad_token or ""
    slots = [find_answer_slot(response.text, config.format_mode, eos, pad) for _, response in pairs]
    usable = [row for row, slot in enumerate(slots) if slot is not None]
    splices = [INVALID] * len(pairs)
    if not usable:
        return splices

    # Prompt and response are decoded together: some decoders treat the start of a text differently.
    full_texts = tokenizer.batch_decode([[*pairs[row][0].token_ids, *pairs[row][1].token_ids] for row in usable], skip_special_tokens=False)
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    for row, full_text in zip(usable, full_texts, strict=True):
        slot = slots[row]
        assert slot is not None
        leading, trailing = whitespace_around(slot, config)
        stripped = strip_padding(full_text, pad)
        before = stripped[: stripped.rindex(OPEN_ANSWER) + len(OPEN_ANSWER)] + leading
        answer = pairs[row][0].reference_answer
        texts.append(before + answer + trailing + CLOSE_ANSWER + eos)
        spans.append((len(before), len(before) + len(answer)))

    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    for row, encoding, text, (answer_start, answer_stop) in zip(usable, encoded.encodings, texts, spans, strict=True):
        tag_start = text.rindex(OPEN_ANSWER, 0, answer_start)
        tag = overlapping_tokens(encoding, tag_start, tag_start + len(OPEN_ANSWER))[0]
        start, stop = overlapping_tokens(encoding, answer_start, answer_stop)
        if config.gt_tokens_one_more and start < stop:
            stop = min(stop + 1, len(encoding))
        splices[row] = limits.checked(Splice(tuple(encoding.ids), tag, start, stop))
    return splices
