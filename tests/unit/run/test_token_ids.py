"""Every token id that a run uses is one of the model's; what is not is named with its row, before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import PromptSet, load_prompts
from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.evaluation.held_out import ValidationSet
from megatron_rlpr.rollout.store import write_rollouts
from megatron_rlpr.rollout.vllm.limits import end_of_sequence_ids
from megatron_rlpr.run.prompts import check_token_ids
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup, TokenScores, UserError

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
VOCAB_SIZE = 1603
BEYOND = VOCAB_SIZE


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """One with a token that the model does not have."""
    larger = load_tokenizer(str(TOKENIZER))
    larger.add_tokens(["<zeta>"])
    assert larger.convert_tokens_to_ids("<zeta>") == BEYOND
    return larger


def prompts(folder: Path, tokenizer: Any, **of_second: str) -> PromptSet:
    """Three questions, the second with another text or answer."""
    rows = []
    for number in range(3):
        text, answer = f"{number}+1=?", str(number + 1)
        if number == 1:
            text, answer = of_second.get("text", text), of_second.get("answer", answer)
        rows.append({"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": answer}})
    pd.DataFrame([{**row, "data_source": "unit"} for row in rows]).to_parquet(folder / "rows.parquet")
    return load_prompts([folder / "rows.parquet"], tokenizer, 100)


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        check()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("of_second", [{"text": "<zeta>?"}, {"answer": "2 <zeta>"}])
@pytest.mark.parametrize("where", ["the training data", "held_out"])
def test_a_token_beyond_the_model_is_named_with_its_row(
    tmp_path: Path, tokenizer: Any, of_second: dict[str, str], where: str
) -> None:
    good, bad = prompts(tmp_path, tokenizer), prompts(tmp_path, tokenizer, **of_second)
    training, held_out = (bad, good) if where == "the training data" else (good, bad)
    sets = [ValidationSet("held_out", held_out, 1)]
    message = refusal(lambda: check_token_ids(Config(), tokenizer, VOCAB_SIZE, training, sets))
    assert f"row 1 of {where} holds the token '<zeta>' (id 1603), but the model has 1603 tokens" in message
    check_token_ids(Config(), tokenizer, VOCAB_SIZE + 1, training, sets)


def test_a_template_that_writes_such_a_token_is_found(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = "<zeta>{{ messages[0].content }}"
    found = prompts(tmp_path, tokenizer)
    message = refusal(lambda: check_token_ids(Config(), tokenizer, VOCAB_SIZE, found, []))
    assert "row 0 of the training data holds the token '<zeta>'" in message


def test_a_token_that_nothing_uses_may_be_beyond(tmp_path: Path, tokenizer: Any) -> None:
    check_token_ids(Config(), tokenizer, VOCAB_SIZE, prompts(tmp_path, tokenizer), [])


def test_ids_may_have_holes_as_long_as_the_model_has_them(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TOKENIZER, tmp_path / "holes"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["?"] = 9000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer) < 9000
    found = prompts(tmp_path, tokenizer)
    assert all(9000 in prompt.token_ids for prompt in found.prompts)
    check_token_ids(Config(), tokenizer, 9001, found, [])
    assert "token '?' (id 9000)" in refusal(lambda: check_token_ids(Config(), tokenizer, VOCAB_SIZE, found, []))


@pytest.mark.parametrize(("prompt_id", "response_id"), [(BEYOND, 5), (5, BEYOND), (5, -1)])
def test_stored_rollouts_of_another_model_are_refused(tmp_path: Path, prompt_id: int, response_id: int) -> None:
    tokenizer, config = load_tokenizer(str(TOKENIZER)), Config()
    config.rollout.replay = str(tmp_path)
    for step, ids in ((1, (5, 5)), (2, (prompt_id, response_id))):
        prompt = Prompt(7, (1, ids[0]), ({"role": "user", "content": "x"},), "3", "unit")
        response = Response((ids[1], 2), "x", (-1.0, -1.0), "stop", 0)
        scores = TokenScores(np.zeros(2, np.float32), np.zeros(2, np.float32))
        reward = ResponseReward(0.0, 0.0, 0.0, 0.0, 0.0, False, "")
        scored = ScoredGroup(RolloutGroup(prompt, (response,)), (scores,), (reward,))
        write_rollouts(tmp_path, step, [scored], advantages=[None], kept=[True], decode=str)
    empty = PromptSet((), 0)
    message = refusal(lambda: check_token_ids(config, tokenizer, VOCAB_SIZE, empty, []))
    wrong = next(token_id for token_id in (prompt_id, response_id) if token_id != 5)
    assert f"prompt 7 of step 2 or a response to it holds token id {wrong}, but the model has" in message
    if response_id >= 0:
        check_token_ids(config, tokenizer, VOCAB_SIZE + 1, empty, [])


@pytest.mark.parametrize(
    ("generation", "in_config", "expected"),
    [
        (None, 7, (7, 1602)),
        (None, None, (1602,)),
        ({"eos_token_id": [3, 5]}, 7, (3, 5, 1602)),
        ({"eos_token_id": 3}, 7, (3, 1602)),
        ({}, 7, (1602,)),
        (None, 1603, "config.json: eos_token_id is 1603"),
        ({"eos_token_id": [5, 1603]}, 7, "generation_config.json: eos_token_id is 1603, but the model's token ids"),
        ({"eos_token_id": "</s>"}, 7, "eos_token_id is '</s>'"),
        ({"eos_token_id": True}, 7, "eos_token_id is True"),
        ({"eos_token_id": -1}, 7, "eos_token_id is -1"),
        ([], 7, "must hold a JSON object"),
    ],
)
def test_end_of_sequence_ids_are_those_of_the_model(
    tmp_path: Path, generation: Any, in_config: int | None, expected: tuple[int, ...] | str
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config: Any = SimpleNamespace(eos_token_id=in_config, vocab_size=VOCAB_SIZE)
    tokenizer = load_tokenizer(str(TOKENIZER))
    if isinstance(expected, str):
        assert expected in refusal(lambda: end_of_sequence_ids(tmp_path, config, tokenizer))
    else:
        assert end_of_sequence_ids(tmp_path, config, tokenizer) == expected


def test_the_tokenizers_own_end_of_sequence_is_looked_at(tmp_path: Path) -> None:
    config: Any = SimpleNamespace(eos_token_id=None, vocab_size=1602)
    tokenizer = load_tokenizer(str(TOKENIZER))
    message = refusal(lambda: end_of_sequence_ids(tmp_path, config, tokenizer))
    assert "the tokenizer's eos_token '<|im_end|>' is 1602" in message
