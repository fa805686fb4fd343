"""The tokenizer a run uses: padding and end of sequence as in the reference, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.types import UserError

TOKENIZERS = Path(__file__).parents[2] / "goldens" / "tokenizers"


def copy(folder: Path, name: str, **changes: str | None) -> Path:
    """A tokenizer folder with changed special tokens; None removes one."""
    target = folder / name
    shutil.copytree(TOKENIZERS / "bpe_chat", target)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = json.loads((target / file).read_text())
        for key, value in changes.items():
            content.pop(key, None)
            if value is not None:
                content[key] = value
        (target / file).write_text(json.dumps(content))
    return target


def test_a_missing_pad_token_becomes_the_end_of_sequence(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(copy(tmp_path, "no_pad", pad_token=None)))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_an_existing_pad_token_is_kept() -> None:
    assert load_tokenizer(str(TOKENIZERS / "bpe_chat")).pad_token == "<|endoftext|>"


def test_gemma_2_2b_it_ends_its_turns(tmp_path: Path) -> None:
    target = tmp_path / "gemma-2-2b-it"
    shutil.copytree(TOKENIZERS / "sp_gemma_like", target)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        (target / file).write_text(
            (target / file).read_text().replace('"eos_token": "<end_of_turn>"', '"eos_token": "<eos>"')
        )
    assert load_tokenizer(str(target)).eos_token == "<end_of_turn>"
    assert load_tokenizer(str(shutil.copytree(target, tmp_path / "another"))).eos_token == "<eos>"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"model\.path"):
            load_tokenizer(str(path))


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": 3}'])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    folder = copy(tmp_path, "damaged")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"holds no readable tokenizer \(.+\); give a Hugging Face folder") as refused:
        load_tokenizer(str(folder))
    assert "\n" not in str(refused.value)


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    folder = copy(tmp_path, "with_code", auto_map={"AutoTokenizer": ["code.Own", "code.Own"]}, tokenizer_class="Own")  # type: ignore[arg-type]
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nOwn = None\n")
    with pytest.raises(UserError, match="holds no readable tokenizer"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_end_of_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="eos_token"):
        load_tokenizer(str(copy(tmp_path, "no_eos", eos_token=None)))


def test_special_tokens_leave_no_trace_in_a_text() -> None:
    special = SpecialTokens.of(load_tokenizer(str(TOKENIZERS / "bpe_chat")))
    assert special.removed_from("<|im_start|>4<|im_end|><|im_end|> <b><|endoftext|>") == "4 <b>"
    assert SpecialTokens([]).removed_from("4<|im_end|>") == "4<|im_end|>"


def test_the_longest_special_token_that_fits_is_removed() -> None:
    assert SpecialTokens(["<s>", "<s>!"]).removed_from("<s>!4<s>") == "4"
