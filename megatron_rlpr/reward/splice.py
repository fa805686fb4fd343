"""Text-mode splice: put the reference answer in place of the generated one in decoded text and tokenise again.

This is the reference's semantics (spec section 2.2). Where it is wrong we differ: a row is judged by its own length
(Q2), an answer tag with nothing behind it is invalid (Q3), and spans are those of the tag and the answer that we
insert, so a reference answer that itself contains tags is found (Q24).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.data.tokenizer import encode, overlapping_tokens
from megatron_rlpr.grading.format import CLOSE_ANSWER, OPEN_ANSWER
from megatron_rlpr.reward.answer_tags import AnswerSlot, find_answer_slot, strip_padding
from megatron_rlpr.reward.prompt_heads import PromptHeads
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


_BOUNDARY = 8
"""Tokens on either side of the boundary between prompt and response that are looked at; no character has more."""

INVALID = Splice((), 0, 0, 0, valid=False)


@dataclass(frozen=True)
class SpliceLimits:
    """Longest sequence (data.max_prompt_length + data.max_response_length) and longest part from the answer tag on."""

    max_prompt_length: int
    max_response_length: int

    def checked(self, splice: Splice) -> Splice:
        """The splice, its scored span cut to the response window; INVALID when too long or with nothing to score."""
        stop = min(splice.stop, splice.answer_tag + self.max_response_length)
        if len(splice.token_ids) > self.max_prompt_length + self.max_response_length or not 0 < splice.start < stop:
            return INVALID
        return Splice(splice.token_ids, splice.answer_tag, splice.start, stop)


@dataclass(frozen=True)
class Tail:
    """What is still text of a spliced sequence: kept tokens, then text up to the reference answer, then white space.

    answer_tag: its first token in the whole sequence, None when the tag is the last one of the text before the answer.
    """

    kept: tuple[int, ...]
    before: str
    trailing: str
    answer_tag: int | None = None


def tokenise_tails(
    tokenizer: Any,
    pairs: Sequence[tuple[Prompt, Response]],
    tails: Mapping[int, Tail],
    config: RewardConfig,
    limits: SpliceLimits,
) -> list[Splice]:
    """One splice per (prompt, response), INVALID where its row has no tail; all tails are tokenised in one call."""
    answers = [pairs[row][0].reference_answer for row in tails]
    ends = [tail.trailing + CLOSE_ANSWER + tokenizer.eos_token for tail in tails.values()]
    texts = [tail.before + answer + end for tail, answer, end in zip(tails.values(), answers, ends, strict=True)]
    splices = [INVALID] * len(pairs)
    for (row, tail), answer, encoding in zip(tails.items(), answers, encode(tokenizer, texts), strict=True):
        start, stop = overlapping_tokens(encoding, len(tail.before), len(tail.before) + len(answer))
        if config.gt_tokens_one_more and start < stop:
            stop = min(stop + 1, len(encoding))
        if start < stop:
            kept, tag = len(tail.kept), tail.answer_tag
            if tag is None:
                place = tail.before.rindex(OPEN_ANSWER)
                tag = kept + overlapping_tokens(encoding, place, place + len(OPEN_ANSWER))[0]
            splices[row] = limits.checked(Splice(tail.kept + tuple(encoding.ids), tag, kept + start, kept + stop))
    return splices


def whitespace_around(slot: AnswerSlot, config: RewardConfig) -> tuple[str, str]:
    """The white space put before and after the reference answer.

    Before it the response's own (one space if it has none, unless empty is allowed); after it one space (the response's
    own when the token after the answer is scored too).
    """
    leading = slot.leading if slot.leading or config.allow_empty_leading_whitespaces else " "
    trailing = slot.trailing if config.gt_tokens_one_more and slot.trailing is not None else " "
    return leading, trailing


def splice_texts(
    tokenizer: Any, pairs: Sequence[tuple[Prompt, Response]], config: RewardConfig, limits: SpliceLimits
) -> list[Splice]:
    """One splice per (prompt, response): the whole text from the prompt's last wall on is tokenised again."""
    eos, pad = tokenizer.eos_token, tokenizer.pad_token or ""
    slots = [find_answer_slot(response.text, config.format_mode, eos, pad) for _, response in pairs]
    usable = [(row, slot) for row, slot in enumerate(slots) if slot is not None]
    tails = {}
    starts = _sequence_starts(tokenizer, [pairs[row] for row, _ in usable])
    for (row, slot), (head, text_to_tag) in zip(usable, starts, strict=True):
        leading, trailing = whitespace_around(slot, config)
        tails[row] = Tail(head, text_to_tag + leading, trailing)
    return tokenise_tails(tokenizer, pairs, tails, config, limits)


def _sequence_starts(tokenizer: Any, pairs: Sequence[tuple[Prompt, Response]]) -> list[tuple[tuple[int, ...], str]]:
    """(tokens that are known already, text after them up to and including the response's answer tag) of every pair.

    The text is that of prompt and response decoded together. Decoding them apart gives the same unless a character or a
    space is lost between them, which the tokens next to the boundary tell.
    """
    if not pairs:
        return []
    prompts = {id(prompt): prompt for prompt, _ in pairs}
    split = dict(zip(prompts, PromptHeads(tokenizer).split(list(prompts.values())), strict=True))
    prompt_ends = {key: tokenizer.decode(list(prompt.token_ids[-_BOUNDARY:])) for key, prompt in prompts.items()}
    response_starts = tokenizer.batch_decode([list(response.token_ids[:_BOUNDARY]) for _, response in pairs])
    boundaries = tokenizer.batch_decode(
        [[*prompt.token_ids[-_BOUNDARY:], *response.token_ids[:_BOUNDARY]] for prompt, response in pairs]
    )

    starts = []
    for (prompt, response), response_start, boundary in zip(pairs, response_starts, boundaries, strict=True):
        if boundary == prompt_ends[id(prompt)] + response_start:
            head = split[id(prompt)]
            starts.append((head.head_ids, head.tail_text + _up_to_tag(response.text)))
        else:
            whole = strip_padding(tokenizer.decode([*prompt.token_ids, *response.token_ids]), tokenizer.pad_token or "")
            starts.append(((), _up_to_tag(whole)))
    return starts


def _up_to_tag(text: str) -> str:
    return text[: text.rindex(OPEN_ANSWER) + len(OPEN_ANSWER)]
