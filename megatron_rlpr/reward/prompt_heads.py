"""The part of a prompt whose tokens do not depend on what follows it.

A spliced text has to be tokenised as a whole, but a special token is a wall: the tokenizer cuts the text there before
it does anything else. So a prompt is tokenised up to its last special token once for all its responses, and only what
follows is tokenised for each. Nothing is assumed: the wall and the prompt's own tokens are checked, and a prompt that
fails is tokenised whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rlpr.data.tokenizer import encode
from megatron_rlpr.types import Prompt

_PROBES = ("a", " a", "\na", "<answer> 1")


@dataclass(frozen=True)
class SplitPrompt:
    """head_ids: tokens that stay whatever follows; tail_text: the rest, to be tokenised with what follows."""

    head_ids: tuple[int, ...]
    tail_text: str


class PromptHeads:
    """Splits prompts for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = {
            token_id: str(token.content)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if not (token.lstrip or token.rstrip or token.normalized or token.single_word)
        }
        self._is_wall: dict[int, bool] = {}

    def split(self, prompts: Sequence[Prompt]) -> list[SplitPrompt]:
        """Every prompt's head and tail; no head where there is no wall or the tokens are not the tokenizer's own."""
        cuts = [self._cut(prompt.token_ids) for prompt in prompts]
        heads = [self._decode(prompt.token_ids[:cut]) for prompt, cut in zip(prompts, cuts, strict=True)]
        encoded = self._encode(heads)
        pad = self._tokenizer.pad_token or ""
        result = []
        for prompt, cut, head, ids in zip(prompts, cuts, heads, encoded, strict=True):
            # Padding text at the very start is stripped from a spliced text, so such a prompt has no fixed head.
            if tuple(ids) == prompt.token_ids[:cut] and not (pad and head.startswith(pad)):
                result.append(SplitPrompt(prompt.token_ids[:cut], self._decode(prompt.token_ids[cut:])))
            else:
                result.append(SplitPrompt((), self._decode(prompt.token_ids)))
        return result

    def _cut(self, ids: tuple[int, ...]) -> int:
        return next((stop for stop in range(len(ids), 0, -1) if self._wall(ids[stop - 1])), 0)

    def _wall(self, token_id: int) -> bool:
        if token_id not in self._special:
            return False
        if token_id not in self._is_wall:
            text = self._special[token_id]
            joint = self._encode([text + probe for probe in _PROBES])
            self._is_wall[token_id] = joint == [[token_id, *ids] for ids in self._encode(_PROBES)]
        return self._is_wall[token_id]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in encode(self._tokenizer, texts)]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
