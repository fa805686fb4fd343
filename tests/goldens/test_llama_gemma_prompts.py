"""The Llama/Gemma prompts, made in memory, are those of the files that the reference writes."""

from __future__ import annotations

from typing import Any

import pytest
from golden_files import load

from megatron_rlpr.config.checks import pure
from megatron_rlpr.config.loading import load_config
from megatron_rlpr.data.prompt_templates import TEMPLATES

GOLDEN = load("llama_gemma_prompt_rewrite.json")
CASES = [
    pytest.param(file, messages, id=f"{file.rpartition('/')[2]}-{number}")
    for file, prompts in GOLDEN["prompts"].items()
    for number, messages in enumerate(prompts)
]


@pytest.mark.parametrize(("file", "written"), CASES)
def test_rewritten_prompt(file: str, written: list[dict[str, str]]) -> None:
    # The golden file holds what was written; what was read had a system message and no instruction.
    question = written[0]["content"].split("\nPlease reason step by step")[0]
    original: tuple[dict[str, Any], ...] = (
        {"role": "system", "content": "Think first."},
        {**written[0], "content": question},
        *written[1:],
    )
    source = file.replace("_llama_and_gemma", "")
    assert TEMPLATES["llama_gemma"].rewrite(original, source) == tuple(written)


def test_every_file_is_covered() -> None:
    assert set(GOLDEN["train_files"]) | set(GOLDEN["val_files"]) == set(GOLDEN["prompts"])


def test_think_tags_do_not_go_with_this_prompt() -> None:
    assert GOLDEN["gemma_with_R1_format_error"] == "AssertionError"
    refusals = pure.refusals(load_config(["data.template=llama_gemma", "reward.format_mode=R1"]), 1)
    assert any("data.template=llama_gemma" in said and "R1_nothink" in said for said in refusals)
