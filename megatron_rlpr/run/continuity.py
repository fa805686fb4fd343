"""Whether a start goes on with the run that it finds: the same model, tokenizer and prompts, and settings that mean it.

A checkpoint holds all that a start is compared with, and that happens before anything is written.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_rlpr.config.free_to_change import FREE_TO_CHANGE
from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.evaluation.held_out import ValidationSet
from megatron_rlpr.system.decisions import first_rank_decides, shared_by_ranks
from megatron_rlpr.system.sealed_folder import SEAL, sealed_sums, sha256
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_megatron import WEIGHTS

_TRAINING = ("filter", "algorithm", "actor", "trainer")
"""Sections that mean nothing to a start that only validates."""


def fingerprints(config: Config, tokenizer: Any, prompts: PromptSet, held_out: list[ValidationSet]) -> dict[str, str]:
    """By its name, the content of the initial model, of the tokenizer and of every prompt set; paths play no part.

    Collective: every weight file is read once, by one of the ranks. tokenizer: as it was loaded.
    """
    model = _model_fingerprint(config)

    def ours() -> dict[str, str]:
        sets = {"train": prompts} | {one.prompt_set: one.prompts for one in held_out}
        special = [tokenizer.special_tokens_map, tokenizer.chat_template]
        text = json.dumps(special, default=str) + tokenizer.backend_tokenizer.to_str()
        texts = {"model": model, "tokenizer": text}
        return {name: _digest(text) for name, text in texts.items()} | {
            name: _prompts_fingerprint(one) for name, one in sets.items()
        }

    return first_rank_decides(ours)


def _model_fingerprint(config: Config) -> str:
    """The sums of what the initial weights are read from. Raises UserError where a conversion's seal has others."""
    hf, converted = HfFolder(config.model.path), config.model.megatron_checkpoint
    folder = Path(converted) if converted else hf.path

    def found() -> tuple[list[str], dict[str, str]]:
        paths = sorted((folder / WEIGHTS).iterdir()) if converted else hf.weight_files()
        names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
        return names, sealed_sums(folder) if converted and (folder / SEAL).is_file() else {}

    names, sealed = first_rank_decides(found)
    sums = dict(zip(names, shared_by_ranks(lambda name: sha256(folder / name), names), strict=True))
    changed = [name for name, total in sums.items() if sealed.get(name, total) != total]
    if changed:
        raise UserError(
            f"model.megatron_checkpoint={folder}: {changed[0]} has changed since it was written: "
            "convert the model again"
        )
    return json.dumps([hf.config(), sums], sort_keys=True)


def _prompts_fingerprint(prompts: PromptSet) -> str:
    digest = hashlib.sha256()
    for prompt in prompts.prompts:
        texts = [prompt.index, prompt.reference_answer, prompt.data_source, prompt.messages, len(prompt.token_ids)]
        digest.update(json.dumps(texts).encode())
        digest.update(array("q", prompt.token_ids).tobytes())
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_goes_on(
    config: Config, steps: int, state: Mapping[str, Any], prints: Mapping[str, str], checkpoint: Path
) -> list[str]:
    """Settings that this start changes, one text each. state: what `checkpoint` holds; prints: `fingerprints`.

    Raises UserError when the start asks for fewer steps than there are, has another model, tokenizer or prompts, or
    changes what the run means without trainer.allow_config_change.
    """
    done, trainer = state["step"], config.trainer
    if steps < done and not trainer.val_only:
        raise UserError(
            f"the run {trainer.name} is already at step {done}, and this start asks for {steps}: raise "
            "trainer.total_training_steps, or validate what there is with trainer.val_only=true"
        )
    compared = {name for name in prints if not (name == "train" and trainer.val_only)}
    others = [name for name in sorted(compared) if state["fingerprints"].get(name, prints[name]) != prints[name]]
    if others:
        what = ", ".join(name if name in ("model", "tokenizer") else f"the prompts of {name}" for name in others)
        raise UserError(
            f"{checkpoint} was trained with other content than this start has: {what}. Go on with what the run began "
            f"with, or start another run (trainer.name), from these weights with model.megatron_checkpoint={checkpoint}"
        )
    changed = _changes(state["config"], config)
    meant = [
        text
        for (section, name), text in changed.items()
        if not {section, f"{section}.{name}"} & FREE_TO_CHANGE and not (trainer.val_only and section in _TRAINING)
    ]
    if meant and not trainer.allow_config_change:
        raise UserError(
            f"{checkpoint} was trained with other settings: {'; '.join(meant)}. Set them back, or choose another "
            "trainer.name, or go on with the new ones with trainer.allow_config_change=true"
        )
    return list(changed.values())


def _changes(stored: Mapping[str, Mapping[str, Any]], config: Config) -> dict[tuple[str, str], str]:
    """Section and name of every key whose value is not the stored one -> both values; a key unknown then had its
    default."""
    pairs = {
        (key.section, key.name): (stored.get(key.section, {}).get(key.name, key.default), key.value(config))
        for key in all_keys().values()
    }
    return {
        (section, name): f"{section}.{name} was {before!r:.100}, is {after!r:.100}"
        for (section, name), (before, after) in pairs.items()
        if before != after
    }
