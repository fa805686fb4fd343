"""The base probabilities of a run's prompts: in memory, in the run's folder, and in a place that runs share.

What a number depends on besides its prompt (model, tokenizer, precision, temperature, aggregation, ...) are the
settings; what was made under others counts as missing, so it is made again. A prompt is known by a fingerprint of its
tokens and its reference answer: an entry is good for every row, set and run that asks for the same.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rlpr.system.atomic_file import write_text
from megatron_rlpr.system.shares import Array
from megatron_rlpr.types import Prompt, UserError

_FINGERPRINT = "S16"
"""numpy's name for a fingerprint: 16 hexadecimal digits."""


class BaseProbabilityTable:
    """Base probabilities by prompt, made by the initial policy.

    path: the file in the run's folder that holds all of them. shared: where other runs find them, too.
    """

    def __init__(self, settings: Mapping[str, Any], path: str | Path, shared: SharedBaseProbabilities | None = None):
        self._settings = _plain(settings)
        self._path = Path(path)
        self._shared = shared
        self._entries: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, prompts: Iterable[Prompt] = ()) -> BaseProbabilityTable:
        """Read what the file at path holds. Where there is none, or one made with other settings, begin one, with what
        other runs have computed of the prompts; that happens once, so that a run that was killed goes on with the
        numbers it began with.

        Returns the table itself. Raises UserError when a file cannot be read or written.
        """
        stored = _entries_of(self._path, self._settings) if self._path.exists() else None
        if stored is not None:
            self._entries = stored
        elif self._shared is not None:
            self._entries = self._shared.find({fingerprint(prompt) for prompt in prompts})
            self.save()
        return self

    def missing(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts that have no entry yet, in order."""
        return [prompt for prompt in prompts if fingerprint(prompt) not in self._entries]

    def record(self, prompts: Sequence[Prompt], probabilities: Iterable[float]) -> None:
        """Add the base probability of each of the prompts."""
        for prompt, probability in zip(prompts, probabilities, strict=True):
            self._entries[fingerprint(prompt)] = float(probability)

    def probability(self, prompt: Prompt) -> float:
        """The base probability of a prompt; raises KeyError for one that is missing."""
        key = fingerprint(prompt)
        if key not in self._entries:
            raise KeyError(f"prompt {prompt.index} has no base probability; it must be computed first")
        return self._entries[key]

    def save(self, added: Sequence[Prompt] = ()) -> None:
        """Write the table as JSON; a kill in the middle leaves the previous file as it was.

        added: prompts whose entries were computed just now, for other runs to find.
        """
        if self._shared is not None and added:
            keys = [fingerprint(prompt) for prompt in added]
            self._shared.keep({key: self._entries[key] for key in keys})
        write_text(self._path, json.dumps({"settings": self._settings, "entries": self._entries}))

    def arrays(self) -> list[Array]:
        """Fingerprints (their digits, uint8) and probabilities (float64) of all entries."""
        return [
            np.array(list(self._entries), dtype=_FINGERPRINT).view(np.uint8),
            np.fromiter(self._entries.values(), dtype=np.float64, count=len(self._entries)),
        ]

    def take_arrays(self, fingerprints: Array, probabilities: Array) -> None:
        """Replace the entries by those of another rank's `arrays`."""
        self._entries = dict(
            zip(fingerprints.view(_FINGERPRINT).astype(str).tolist(), probabilities.tolist(), strict=True)
        )


class SharedBaseProbabilities:
    """A folder in which runs leave the base probabilities that they computed: one folder for each settings, and in it
    one file for each piece of a pass.

    A file is put there in one step and never changed, and what it holds decides its name. So runs that write at the
    same time take nothing from each other, and a reader finds whole files.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._settings = _plain(settings)
        self._folder = folder / _digest(self._settings)

    def find(self, fingerprints: set[str]) -> dict[str, float]:
        """Those of the wanted entries that are there. Raises UserError for a file that cannot be read."""
        found: dict[str, float] = {}
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            entries = _entries_of(path, self._settings)
            if entries is None or path.stem != _name(entries):
                raise UserError(f"{path} has changed since it was written: remove it to have its part computed again")
            found = {key: value for key, value in entries.items() if key in fingerprints} | found
        return found

    def keep(self, entries: Mapping[str, float]) -> None:
        """Leave the entries for other runs; what is there already stays. Raises UserError where the system refuses."""
        path = self._folder / f"{_name(entries)}.json"
        if not path.exists():
            write_text(path, json.dumps({"settings": self._settings, "entries": dict(entries)}))


def fingerprint(prompt: Prompt) -> str:
    """16 hexadecimal digits of what a base probability depends on: the prompt's tokens and its reference answer."""
    digest = hashlib.sha256(array("q", prompt.token_ids).tobytes())
    digest.update(json.dumps(prompt.reference_answer).encode())
    return digest.hexdigest()[:16]


def _entries_of(path: Path, settings: Mapping[str, Any]) -> dict[str, float] | None:
    """What a file holds; None where it was made with other settings, and may look otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if dict(content["settings"]) != settings:
            return None
        return {str(key): float(value) for key, value in content["entries"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no readable table of base probabilities ({error}); remove it to have it computed again"
        ) from error


def _name(entries: Mapping[str, float]) -> str:
    """A file's name: it tells other prompts and other digits."""
    return _digest(sorted(entries.items()))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they are read back."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return plain
