"""Damaged and odd model folders: the logits that transformers computes, or one line that says what is wrong.

Every case is a tiny folder with one or two seeded faults, taken through the first steps of a run. RLPR_SEED and
RLPR_CASES choose others, and how many.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from generated_cases import SEED, case_count
from odd_model_folders import DAMAGES, FAMILIES, HARMLESS, damaged, edit, strangers, write_families
from safetensors.torch import load_file, save_file
from time_limit import Hung, time_limit
from transformers import AutoModelForCausalLM

from checkpoint_conversion.logits import megatron_logits
from checkpoint_conversion.single_process import one_process
from megatron_rlpr.actor.parallel import Layout
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.checks.model import refusals
from megatron_rlpr.config.loading import load_config
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.rollout.vllm.limits import end_of_sequence_ids, read_model_config
from megatron_rlpr.types import ScoreRequest, UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import INDEX, SINGLE, HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights

CASES = case_count(200)
SECONDS = 60
"""That one case may take on a busy machine; alone it takes 0.1."""

PROMPT = list(range(40, 52))
RUN = ("data.train_files=x", "data.max_prompt_length=64", "data.max_response_length=64", "actor.dtype=float32")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one sound folder a family."""
    return write_families(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with one_process(torch.float32):
        yield


def ours(folder: Path) -> torch.Tensor:
    """The logits after every token of PROMPT but the last, by the steps a run takes. Raises UserError."""
    logits = megatron_logits(loaded(folder), PROMPT)
    assert logits is not None
    return logits


def loaded(folder: Path) -> MegatronPolicy:
    """The policy as a run loads it. Raises UserError."""
    for refusal in refusals(load_config([f"model.path={folder}", *RUN])):
        raise UserError(refusal)
    shape = model_shape(HfFolder(folder).config())
    tokenizer = load_tokenizer(str(folder))
    end_of_sequence_ids(folder, read_model_config(folder), tokenizer)
    actor, layout = ActorConfig(dtype="float32"), Layout(0, 1, 0, 1, 0, 1, 0, 1)
    policy = MegatronPolicy(shape, actor, layout, temperature=1.0, trainable=False)
    load_hf_weights(policy.chunks, shape, folder)
    return policy


def theirs(folder: Path) -> torch.Tensor:
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0, :-1].float()


def readable_by_transformers(folder: Path) -> bool:
    """It reads shards with an index alone, and no padding token beyond the vocabulary."""
    config = json.loads((folder / "config.json").read_text())
    has_weights = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    return has_weights and (config.get("pad_token_id") or 0) < config["vocab_size"]


def made_readable(folder: Path) -> Path:
    """The same model without what stops transformers."""
    copy = Path(shutil.copytree(folder, folder.with_name("readable")))
    edit(copy / "config.json", lambda config: config.update(pad_token_id=None))
    tensors = {name: tensor for file in HfFolder(folder).weight_files() for name, tensor in load_file(file).items()}
    save_file(tensors, copy / SINGLE, {"format": "pt"})
    (copy / INDEX).unlink(missing_ok=True)
    return copy


def outcome(folder: Path) -> str:
    """What became of a run's first steps: the word right, or the refusal. AssertionError for anything else."""
    try:
        with time_limit(SECONDS):
            logits = ours(folder)
    except UserError as error:
        message = str(error)
        assert "\n" not in message, message
        assert len(message) < 1000, message
        return message
    expected = theirs(folder if readable_by_transformers(folder) else made_readable(folder))
    assert logits.shape == expected.shape
    assert torch.allclose(logits, expected, atol=2e-4), f"logits differ by {float((logits - expected).abs().max())}"
    return "right"


@pytest.mark.parametrize("case", range(CASES))
def test_a_damaged_folder_gives_the_right_logits_or_one_line(
    whole: Path, alone: None, tmp_path: Path, case: int
) -> None:
    dice = random.Random(f"{SEED} {case}")
    family = dice.choice(sorted(FAMILIES))
    folder = Path(shutil.copytree(whole / family, tmp_path / family))
    done = damaged(folder, dice.sample(DAMAGES, dice.choice([1, 1, 2])), dice)
    try:
        outcome(folder)
    except (Exception, Hung) as error:
        raise AssertionError(f"{family}, {done}: {type(error).__name__}: {str(error)[:500]}") from error


@pytest.mark.parametrize("family", FAMILIES)
def test_what_harms_nothing_is_accepted(whole: Path, alone: None, tmp_path: Path, family: str) -> None:
    folder = Path(shutil.copytree(whole / family, tmp_path / family))
    assert len(damaged(folder, [*HARMLESS, strangers, strangers], random.Random(f"{SEED} {family}"))) == 5
    assert outcome(folder) == "right"


def test_a_policy_scores_no_token_that_it_does_not_have(whole: Path, alone: None) -> None:
    policy = loaded(whole / "llama")
    assert len(policy.score([ScoreRequest((1, 2, 271), 1, 3)])[0].log_probs) == 2
    for ids in ((1, 2, 272), (272, 1, 2), (1, -1, 2)):
        with pytest.raises(UserError, match="but the model has 272 tokens"):
            policy.score([ScoreRequest((1, 2, 3), 1, 3), ScoreRequest(ids, 1, 3)])


def test_ruined_weights_are_named(whole: Path, alone: None) -> None:
    policy = loaded(whole / "llama")
    policy.check_weights("fault")
    name, weight = list(policy.chunks[0].named_parameters())[3]
    weight.data.view(-1)[5] = float("nan")
    with pytest.raises(UserError, match=f"^fault: {name} holds NaN or infinite weights$"):
        policy.check_weights("fault")
