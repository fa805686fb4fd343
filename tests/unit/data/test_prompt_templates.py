"""data.template: what each one asks, and that the reference answer can be spliced into what it asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytest
from transformers import AutoTokenizer

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.config.schema import DataConfig, RewardConfig
from megatron_rlpr.data.dataset import load_prompts
from megatron_rlpr.data.prompt_templates import R1_SYSTEM, TEMPLATES
from megatron_rlpr.grading.format import format_score, rule_format_score
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.types import Prompt, Response, RolloutGroup, UserError

GOLDENS = Path(__file__).parents[2] / "goldens"
WRITTEN = {
    "R1": "<think>Both are two.</think><answer>{}</answer>",
    "R1_nothink": "Both are two.<answer>{}</answer>",
    "plain": "Both are two.<answer>{}</answer>",
}
ROW = {
    "prompt": [
        {"role": "system", "content": "The file's own way to ask."},
        {"role": "user", "content": "One and one?"},
        {"role": "assistant", "content": WRITTEN["R1"].format("two")},
        {"role": "user", "content": "Two and two?"},
    ],
    "data_source": "quickstart/sums",
    "reward_model": {"ground_truth": "four", "style": "rule"},
}

each_template = pytest.mark.parametrize("name", list(WRITTEN))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(GOLDENS / "tokenizers" / "bpe_chat")


def asked(name: str, tokenizer: Any, folder: Path, **changes: Any) -> Prompt:
    """The row's prompt as a run with this template loads it."""
    pd.DataFrame([ROW | changes]).to_parquet(folder / "f.parquet")
    rewrite = TEMPLATES[load_config([f"data.template={name}"]).data.template].rewrite
    return load_prompts([folder / "f.parquet"], tokenizer, 1000, rewrite=rewrite).prompts[0]


@each_template
def test_the_template_asks_in_place_of_the_file(name: str, tokenizer: Any, tmp_path: Path) -> None:
    prompt = asked(name, tokenizer, tmp_path)
    text = tokenizer.decode(prompt.token_ids)
    assert "own way" not in text
    assert "<answer> </answer>" in text
    assert ("<think>" in text) == (TEMPLATES[name].format_mode == "R1")
    assert WRITTEN[name].format("two") in text
    roles = [message["role"] for message in prompt.messages]
    assert roles == [*(["system"] if name != "plain" else []), "user", "assistant", "user"]
    assert prompt.messages[-1]["content"].startswith("Two and two?")
    assert (prompt.messages[-1]["content"] == "Two and two?") == (name != "plain")


def test_every_template_can_be_asked_for() -> None:
    assert set(TEMPLATES) == set(get_args(get_type_hints(DataConfig)["template"])) == {"as_is", "llama_gemma", *WRITTEN}


def test_r1_is_the_released_system_message() -> None:
    golden = json.loads((GOLDENS / "rl_dataset.json").read_text())
    assert golden["rows"][0]["prompt"][0]["content"] == R1_SYSTEM


def test_as_it_is_nothing_changes(tokenizer: Any, tmp_path: Path) -> None:
    assert list(asked("as_is", tokenizer, tmp_path).messages) == ROW["prompt"]


@each_template
@pytest.mark.parametrize("splice", ["text", "tokens"])
def test_the_reference_answer_can_be_spliced_into_what_is_asked_for(
    name: str, splice: str, tokenizer: Any, tmp_path: Path
) -> None:
    prompt, mode = asked(name, tokenizer, tmp_path), TEMPLATES[name].format_mode
    text = WRITTEN[name].format(" seven ") + tokenizer.eos_token
    response = Response(tuple(tokenizer.encode(text, add_special_tokens=False)), text, (), "stop", 0)
    config = RewardConfig(format_mode=mode, splice=splice)  # type: ignore[arg-type]
    manager = RewardManager(config, tokenizer, max_prompt_length=1000, max_response_length=100)
    ((request,),) = manager.reference_requests([RolloutGroup(prompt, (response,))])
    assert request is not None
    assert tokenizer.decode(request.token_ids[request.start : request.stop]).strip() == "four"
    assert tokenizer.decode(request.token_ids).endswith(WRITTEN[name].partition("{}")[0] + " four")
    assert format_score(text, mode) == 1
    assert rule_format_score(text, "\n".join(message["content"] for message in prompt.messages), mode) == 1


@each_template
def test_a_prompt_that_does_not_end_with_a_question_is_refused_with_its_file(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"f\.parquet.*does not end with a user message"):
        asked(name, tokenizer, tmp_path, prompt=ROW["prompt"][:3])
