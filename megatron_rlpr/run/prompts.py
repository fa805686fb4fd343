"""Which prompts a run works on, and for how many steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet, check_at, load_prompts, samples_per_prompt
from megatron_rlpr.data.prompt_source import PromptSource
from megatron_rlpr.data.prompt_templates import TEMPLATES
from megatron_rlpr.data.sampler import PromptSampler
from megatron_rlpr.data.tokenizer import encode, tokens_beyond
from megatron_rlpr.evaluation.held_out import ValidationSet
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.manager import asks_for_grade
from megatron_rlpr.rollout.owned import Decode, whole
from megatron_rlpr.rollout.store import read_rollouts, stored_steps
from megatron_rlpr.system.decisions import first_rank_decides
from megatron_rlpr.types import Prompt, UserError


def training_prompts(config: Config, tokenizer: Any, tasks: GradeTasks, held_out: Sequence[ValidationSet]) -> PromptSet:
    """The prompts of data.train_files, those stored with rollouts, or where nothing is trained those of a held-out set.

    Raises UserError for a prompt whose responses the reward wants graded and nobody grades.
    """
    if config.trainer.val_only:
        return held_out[0].prompts

    def check(prompt: Prompt) -> None:
        if asks_for_grade(config.reward, prompt.data_source):
            tasks.check(prompt)

    if config.rollout.replay:
        steps = first_rank_decides(lambda: stored_steps(config.rollout.replay))
        groups = (group for step in steps for group in read_rollouts(config.rollout.replay, step))
        found = {group.prompt.index: group.prompt for group in groups}
        for prompt in found.values():
            check_at(f"rollout.replay={config.rollout.replay}, prompt {prompt.index}", check, prompt)
        return PromptSet(tuple(found.values()), 0)
    longest, rewrite = config.data.max_prompt_length, TEMPLATES[config.data.template].rewrite
    return load_prompts(config.data.train_files, tokenizer, longest, rewrite=rewrite, check=check)


def validation_sets(config: Config, tokenizer: Any, tasks: GradeTasks) -> list[ValidationSet]:
    """One for every file of data.val_files, named after it. Raises UserError for a prompt that nobody grades."""
    longest, limit = config.data.val_max_prompt_length, config.evaluation.max_prompts
    rewrite = TEMPLATES[config.data.template].rewrite
    names = [Path(file).stem for file in config.data.val_files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"data.val_files: {names.count(name)} files would be the validation set {name!r}; rename one"
            )
    return [
        ValidationSet(
            name,
            load_prompts(
                [file], tokenizer, longest, overlong="refuse", rewrite=rewrite, limit=limit, check=tasks.check
            ),
            samples_per_prompt(name),
        )
        for name, file in zip(names, config.data.val_files, strict=True)
    ]


def check_token_ids(
    config: Config, tokenizer: Any, vocab_size: int, prompts: PromptSet, sets: Sequence[ValidationSet]
) -> None:
    """Raise UserError for the first token of the data that the model does not have; it names the row.

    Reference answers are tokenised alone and between tags, as rewards do. What the tokenizer has beyond the model and
    nothing uses is left alone. Collective with stored rollouts, of which the first rank looks at every id.
    """
    known = f"the model has {vocab_size} tokens (vocab_size)"
    if config.rollout.replay:
        first_rank_decides(lambda: _check_stored_ids(config.rollout.replay, vocab_size, known))
    beyond = tokens_beyond(tokenizer, vocab_size)
    if not beyond:
        return
    eos, fix = tokenizer.eos_token, "use the model's own tokenizer, or a model that was resized to this one"
    for name, of_set in (("the training data", prompts), *((one.name, one.prompts) for one in sets)):
        answers = [prompt.reference_answer for prompt in of_set.prompts]
        alone = encode(tokenizer, [f" {answer} {eos}" for answer in answers])
        tagged = encode(tokenizer, [f"<think></think><answer> {answer} </answer>{eos}" for answer in answers])
        for prompt, *answer in zip(of_set.prompts, alone, tagged, strict=True):
            ids = (*prompt.token_ids, *(token_id for encoding in answer for token_id in encoding.ids))
            found = next((token_id for token_id in ids if token_id in beyond), None)
            if found is not None:
                token = f"the token {beyond[found]!r:.80} (id {found})"
                raise UserError(f"row {prompt.index} of {name} holds {token}, but {known}: {fix}")


def _check_stored_ids(folder: str, vocab_size: int, known: str) -> None:
    for step in stored_steps(folder):
        for group in read_rollouts(folder, step):
            ids = chain(group.prompt.token_ids, *(response.token_ids for response in group.responses))
            found = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
            if found is not None:
                row = f"rollout.replay={folder}: prompt {group.prompt.index} of step {step}"
                raise UserError(f"{row} or a response to it holds token id {found}, but {known}: replay its own")


def prompt_sets(config: Config, prompts: PromptSet, sets: list[ValidationSet]) -> dict[str, PromptSet]:
    """By name, the prompts whose base probabilities the rewards of this run need."""
    training = {} if config.trainer.val_only else {"train": prompts}
    return training | {one.prompt_set: one.prompts for one in sets if config.evaluation.score_reward}


def prompt_source(config: Config, prompts: PromptSet, decode: Decode) -> PromptSource:
    """The order of the training prompts. Where none is drawn (replay, validation only), any batch size will do.

    decode: makes the texts of carried groups that other ranks own, for a checkpoint.
    """
    size = config.data.train_batch_size
    if config.rollout.replay or config.trainer.val_only:
        size = min(size, len(prompts))
    sampler = PromptSampler(len(prompts), size, config.data.shuffle, config.data.seed)
    return PromptSource(prompts, sampler, config.filter.cache_regenerate, partial(whole, decode=decode))


def total_steps(config: Config, prompts: PromptSet) -> int:
    """trainer.total_training_steps, else trainer.total_epochs of the prompts, or as many steps as are stored.

    Raises UserError when a step of a replay is not stored. Collective: the first rank looks.
    """
    wanted = config.trainer.total_training_steps
    if not config.rollout.replay:
        return wanted or config.trainer.total_epochs * len(prompts) // config.data.train_batch_size
    stored = first_rank_decides(lambda: stored_steps(config.rollout.replay))
    last = wanted or stored[-1]
    missing = next((step for step in range(1, last + 1) if step not in stored), None)
    if missing is not None:
        raise UserError(
            f"rollout.replay={config.rollout.replay} holds no rollouts of step {missing}, only of "
            f"{', '.join(map(str, stored))}: set trainer.total_training_steps to a step up to which all are stored"
        )
    return last
