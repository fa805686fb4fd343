"""Token-mode splice: keep the sampled tokens up to the answer tag as they are and append the reference answer's tokens.

Nothing but the few tokens around the tag is decoded and only the short tail is tokenised, so the spliced sequence
shares the longest possible prefix with its response. The tokens may differ from a text-mode splice where the sampled
ones are not those the tokenizer would choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.grading.format import OPEN_ANSWER
from megatron_rlpr.reward.answer_tags import find_answer_slot
from megatron_rlpr.reward.splice import Splice, SpliceLimits, Tail, tokenise_tails, whitespace_around
from megatron_rlpr.types import Prompt, Response


@dataclass(frozen=True)
class TagTokens:
    """The tokens of the last answer tag: ids[start:stop] is the shortest piece around it.

    text: that piece decoded up to the end of the tag; overhang: what its last token holds behind the tag.
    """

    start: int
    stop: int
    text: str
    overhang: str


def find_tag_tokens(tokenizer: Any, ids: Sequence[int]) -> TagTokens | None:
    """The tokens of the last <answer> in ids, None when there is none. Looks backwards, decoding only what it must."""

    def decoded(start: int, stop: int) -> str:
        return str(tokenizer.decode(list(ids[start:stop]), skip_special_tokens=False))

    size = len(ids)
    too_late, start = size, max(0, size - 16)
    while OPEN_ANSWER not in decoded(start, size):
        if start == 0:
            return None
        too_late, start = start, max(0, size - 2 * (size - start))
    while too_late - start > 1:
        middle = (start + too_late) // 2
        if OPEN_ANSWER in decoded(middle, size):
            start = middle
        else:
            too_late = middle
    stop = start + 1
    while OPEN_ANSWER not in (piece := decoded(start, stop)):
        stop += 1
    end = piece.rindex(OPEN_ANSWER) + len(OPEN_ANSWER)
    return TagTokens(start, stop, piece[:end], piece[end:])


def splice_tokens(
    tokenizer: Any, pairs: Sequence[tuple[Prompt, Response]], config: RewardConfig, limits: SpliceLimits
) -> list[Splice]:
    """One splice per (prompt, response): what follows the tokens of the answer tag is tokenised."""
    eos, pad = tokenizer.eos_token, tokenizer.pad_token or ""
    tails = {}
    for row, (prompt, response) in enumerate(pairs):
        slot = find_answer_slot(response.text, config.format_mode, eos, pad)
        tag = find_tag_tokens(tokenizer, response.token_ids) if slot is not None else None
        if slot is None or tag is None:
            continue
        leading, trailing = whitespace_around(slot, config)
        if slot.leading.startswith(tag.overhang):
            # The last tag token may hold white space of the answer too; it stays, and is not repeated.
            kept, before = response.token_ids[: tag.stop], leading[len(tag.overhang) :]
        else:
            # The last tag token runs into the generated answer, so the tag itself has to be tokenised again.
            kept, before = response.token_ids[: tag.start], tag.text + leading
        tails[row] = Tail(prompt.token_ids + kept, before, trailing, len(prompt.token_ids) + tag.start)
    return tokenise_tails(tokenizer, pairs, tails, config, limits)
