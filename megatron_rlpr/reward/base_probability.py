"""The base probability: how likely the reference answer is with no reasoning at all (spec section 2.6)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_rlpr.data.tokenizer import encode, overlapping_tokens
from megatron_rlpr.system.atomic_file import write_text
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


class BaseProbabilityTable:
    """Base probabilities by prompt, made once by the initial policy and stored with the run.

    Every entry carries a fingerprint of its prompt's tokens and reference answer, and the table the settings it was
    made with (model, temperature, aggregation, ...). What was made for another prompt or under other settings counts as
    missing, so it is made again.
    """

    def __init__(self, settings: dict[str, Any], path: str | Path) -> None:
        self._settings = settings
        self._path = Path(path)
        self._entries: dict[int, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def missing(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts that have no entry of their own yet, in order."""
        return [prompt for prompt in prompts if self._entries.get(prompt.index, ("",))[0] != _fingerprint(prompt)]

    def record(self, prompt: Prompt, probability: float) -> None:
        """Store the base probability of a prompt."""
        self._entries[prompt.index] = (_fingerprint(prompt), float(probability))

    def probability(self, prompt: Prompt) -> float:
        """The stored base probability; raises KeyError for a prompt that is missing."""
        if self.missing([prompt]):
            raise KeyError(f"prompt {prompt.index} has no base probability; it must be computed first")
        return self._entries[prompt.index][1]

    def save(self) -> None:
        """Write the table as JSON; a kill in the middle leaves the previous file as it was."""
        content = {
            "settings": self._settings,
            "entries": {str(index): entry for index, entry in sorted(self._entries.items())},
        }
        write_text(self._path, json.dumps(content))

    @classmethod
    def load(cls, settings: dict[str, Any], path: str | Path) -> BaseProbabilityTable:
        """The table stored at path, an empty one if there is none or it was made with other settings.

        Raises UserError when it cannot be read.
        """
        table = cls(settings, path)
        if not table._path.exists():
            return table
        try:
            content = json.loads(table._path.read_text(encoding="utf-8"))
            stored, entries = content["settings"], content["entries"]
            table._entries = {
                int(index): (str(fingerprint), float(value)) for index, (fingerprint, value) in entries.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: no readable table of base probabilities ({error}); remove it to have it computed again"
            ) from error
        return table if stored == json.loads(json.dumps(settings)) else cls(settings, path)


def _fingerprint(prompt: Prompt) -> str:
    content = json.dumps([list(prompt.token_ids), prompt.reference_answer]).encode()
    return hashlib.sha256(content).hexdigest()[:16]
