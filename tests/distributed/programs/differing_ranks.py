"""Two ranks that see different things must do the same: each writes found.json with what it found in all cases.

grading: a grader has time on the first rank, which owns the prompt, and none on the second. folders: the ranks see
different checkpoints and different base probabilities. refusal: only the first rank sees a checkpoint that may not be
resumed. patience: seconds that a group of its own waits. content: the ranks bring the same, then other bytes.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.grading.pool import GraderPool
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.reward.of_owners import rewards_of_owners
from megatron_rlpr.run.build import base_tables, reward_manager
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.run.state import resume_step
from megatron_rlpr.system.decisions import RankError, host_group, require_same
from megatron_rlpr.system.shares import Shares
from megatron_rlpr.tracking.console import Console
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder


def grading(tokenizer: str) -> object:
    """Rewards of a right and a wrong answer, whose grader this rank gives much or no time."""
    config = Config()
    config.reward.reward_manager = "naive"
    config.reward.format_mode = "R1"
    loaded = load_tokenizer(tokenizer)
    messages = ({"role": "user", "content": "What is 6 x 7?"},)
    prompt = Prompt(0, (1, 2), messages, "42", "DAPO-Math-17k")
    texts = [f"<think> so </think> <answer> \\boxed{{{answer}}} </answer>" for answer in ("42", "41")]
    group = RolloutGroup(prompt, tuple(Response((3,), text, (0.0,), "stop", 0) for text in texts))
    tasks = GradeTasks(SpecialTokens.of(loaded), config.reward.format_mode)
    with closing(GraderPool(timeout_s=60.0 if dist.get_rank() == 0 else 1e-6)) as graders:
        manager = reward_manager(config, loaded, graders, tasks)

        def rewards_of(indices: list[int]) -> list[tuple[ResponseReward, ...]]:
            number = len(indices)
            return manager.rewards([group] * number, [[None, None]] * number, [0.0] * number)

        rewards = rewards_of_owners(Shares.of_world(), [group], rewards_of)
        return [[r.accuracy for r in rewards[0]], graders.started]


def folders(place: Path) -> object:
    """The step to go on after, and the stored base probabilities, from folders that differ between the ranks."""
    config, folder = Config(), RunFolder(place)
    prompts = PromptSet(tuple(Prompt(index, (index,), (), "", "") for index in range(3)), 0)
    prints = {"model": "model", "tokenizer": "tokenizer"}
    table = base_tables(config, folder, {"train": prompts}, prints, Shares.of_world())["train"]
    missing = [prompt.index for prompt in table.missing(prompts.prompts)]
    return [resume_step(config.trainer, checkpoints(folder), Console(False, dist.get_rank())), missing]


def refusal(place: Path) -> object:
    """What this rank raises when trainer.resume=never meets a checkpoint."""
    config = Config()
    config.trainer.resume = "never"
    try:
        return resume_step(config.trainer, checkpoints(RunFolder(place)), Console(False, dist.get_rank()))
    except UserError as error:
        return str(error).split(":")[0].replace(str(place.parent), "")


def content() -> object:
    """What this rank raises for content that is the same everywhere, and for such that is not."""
    require_same(b"rewards" * 1000, "rewards")
    try:
        return require_same(bytes([dist.get_rank()]), "step 3: rewards")
    except RankError as error:
        return str(error)


def checkpoints(folder: RunFolder) -> CheckpointStore:
    return CheckpointStore(folder.checkpoints, model_shape(HfFolder(sys.argv[3]).config()), keep_last=2)


def main(tokenizer: str, place: str, _model: str) -> None:
    """Collective over two ranks; the arguments are those of the command line."""
    dist.init_process_group("cpu:gloo", timeout=timedelta(seconds=77))
    mine = Path(place) / str(dist.get_rank())
    found = {"grading": grading(tokenizer), "folders": folders(mine), "refusal": refusal(mine)}
    found["content"] = content()
    found["patience"] = host_group()._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    (mine / "found.json").write_text(json.dumps(found))
    dist.barrier()
