"""A Hugging Face folder is read by pieces, and what is wrong with it is named: file, tensor, expected and found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.hf_folder import INDEX, HfFolder
from megatron_rlpr.weights.save_hf import plan_files, save_hf_weights

TENSORS = {"a": torch.arange(12, dtype=torch.float32).view(4, 3), "b": torch.ones(5), "c": torch.zeros(2, 2)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_a_complete_folder_passes_and_slices_are_what_was_asked_for(folder: Path) -> None:
    found = HfFolder(folder)
    found.check(SHAPES)
    assert torch.equal(found.read("a"), TENSORS["a"])
    assert torch.equal(found.read("a", 0, 1, 3), TENSORS["a"][1:3])
    assert torch.equal(found.read("a", 1, 1, 3), TENSORS["a"][:, 1:3])
    assert found.read("a", 0, 4, 4).shape == (0, 3)


def test_missing_unexpected_and_misshapen_tensors_are_named(folder: Path) -> None:
    found = HfFolder(folder)
    with pytest.raises(UserError, match=r"1 tensors are missing, e\.g\. d of shape \[7\]"):
        found.check({**SHAPES, "d": (7,)})
    with pytest.raises(UserError, match=r"model\.safetensors: 1 tensors have no place .* e\.g\. c of shape \[2, 2\]"):
        found.check({"a": (4, 3), "b": (5,)})
    found.check({"a": (4, 3), "b": (5,)}, ignored=frozenset({"c"}))
    with pytest.raises(UserError, match=r"model\.safetensors: b has shape \[5\], .* needs \[6\]"):
        found.check({**SHAPES, "b": (6,)})


def test_only_the_files_of_the_index_count(tmp_path: Path) -> None:
    save_hf_weights(TENSORS.items(), SHAPES, torch.float32, tmp_path, 30)
    save_file({"d": torch.zeros(1)}, tmp_path / "left_over.safetensors")
    assert HfFolder(tmp_path).shapes() == SHAPES


def test_a_folder_without_an_index_is_one_file_or_all_there_are(tmp_path: Path) -> None:
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    assert HfFolder(tmp_path).shapes() == SHAPES
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert {tensor.file.name for tensor in HfFolder(tmp_path).stored.values()} == {"model.safetensors"}


def test_old_rotary_tables_are_no_weights(tmp_path: Path) -> None:
    save_file(
        {**TENSORS, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "model.safetensors"
    )
    HfFolder(tmp_path).check(SHAPES)


def test_a_folder_without_safetensors_a_cut_file_and_an_odd_dtype_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        HfFolder(tmp_path).shapes()
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, dtype=torch.int8)}, file)
    with pytest.raises(UserError, match="a is stored as I8"):
        HfFolder(tmp_path).shapes()
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors is no complete safetensors file"):
        HfFolder(tmp_path).shapes()


@pytest.mark.parametrize(("max_bytes", "files"), [(48, 2), (70, 2), (1000, 1), (1, 3)])
def test_files_are_filled_in_order_up_to_the_limit_and_read_back_alike(
    tmp_path: Path, max_bytes: int, files: int
) -> None:
    save_hf_weights(TENSORS.items(), SHAPES, torch.float32, tmp_path, max_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / INDEX).exists() == (files > 1)
    found = HfFolder(tmp_path)
    found.check(SHAPES)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in TENSORS.items())


def test_a_tensor_larger_than_a_file_gets_its_own() -> None:
    assert plan_files(SHAPES, torch.float32, 30) == {
        "a": "model-00001-of-00003.safetensors",
        "b": "model-00002-of-00003.safetensors",
        "c": "model-00003-of-00003.safetensors",
    }


def test_an_index_that_does_not_agree_with_its_files_is_refused(tmp_path: Path) -> None:
    save_hf_weights(TENSORS.items(), SHAPES, torch.float32, tmp_path, 30)
    index = json.loads((tmp_path / INDEX).read_text())

    def refuse(changes: dict[str, str], message: str) -> None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**index["weight_map"], **changes}}))
        with pytest.raises(UserError, match=message):
            HfFolder(tmp_path).shapes()

    refuse(
        {"d": "model-00001-of-00003.safetensors"}, "says that d is in model-00001-of-00003.safetensors, but it is not"
    )
    refuse({"d": "elsewhere.safetensors"}, r"lacks 1 of 4 weight files, e\.g\. elsewhere\.safetensors")
    refuse({"d": "../x.safetensors"}, "must name files of this folder")
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UserError, match=r"is no safetensors index: expected a 'weight_map'"):
        HfFolder(tmp_path).shapes()


def test_what_programs_read_differently_is_refused(tmp_path: Path) -> None:
    save_hf_weights(TENSORS.items(), SHAPES, torch.float32, tmp_path, 30)
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"holds model\.safetensors and model\.safetensors\.index\.json of other files"):
        HfFolder(tmp_path).shapes()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}))
    assert HfFolder(tmp_path).shapes() == SHAPES
    (tmp_path / INDEX).unlink()
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00004-of-00003.safetensors")
    with pytest.raises(UserError, match=r"00004-of-00003\.safetensors holds a, and so does model-00001-of-00003"):
        HfFolder(tmp_path).shapes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3.4e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_no_numbers_are_refused_where_they_are_read(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    tensor = torch.zeros(4, 3, dtype=dtype)
    tensor[2, 1] = value
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    found = HfFolder(tmp_path)
    assert torch.equal(found.read("a", 0, 0, 2), torch.zeros(2, 3, dtype=dtype))
    for piece in ((None, 0, 0), (0, 2, 4), (1, 1, 2)):
        with pytest.raises(UserError, match=r"model\.safetensors: a holds NaN, infinite values"):
            found.read("a", *piece)


def test_what_lies_beside_the_weights_is_copied_with_its_folders_and_must_be_whole(folder: Path) -> None:
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
        (folder / name).write_text(name)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (folder / name).write_text('{"a": 1}')
    HfFolder(folder).check_companions()
    HfFolder(folder).copy_companions(folder / "copy", torch.float32)
    copied = HfFolder(folder / "copy")
    assert {path.relative_to(copied.path) for path in copied.companions()} == {
        path.relative_to(folder) for path in HfFolder(folder).companions()
    }
    assert (copied.path / "additional_chat_templates" / "tools.jinja").read_text().endswith("tools.jinja")
    (folder / "tokenizer.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"tokenizer\.json is not valid JSON"):
        HfFolder(folder).check_companions()


def test_the_dtype_that_loses_nothing(tmp_path: Path) -> None:
    for dtypes, widest in (
        ([torch.bfloat16], torch.bfloat16),
        ([torch.float32], torch.float32),
        ([torch.bfloat16, torch.float32], torch.float32),
        ([torch.float16], torch.float32),
    ):
        save_file(
            {str(i): torch.ones(2, dtype=dtype) for i, dtype in enumerate(dtypes)}, tmp_path / "model.safetensors"
        )
        assert HfFolder(tmp_path).widest_dtype() == widest


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    max_bytes=st.integers(1, 400),
)
def test_safetensors_own_reader_loads_what_was_streamed(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, max_bytes: int
) -> None:
    tensors = {f"t{number}": torch.randn(shape).to(dtype) for number, shape in enumerate(shapes)}
    manifest = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    written: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        save_hf_weights(iter(tensors.items()), manifest, dtype, Path(folder), max_bytes, written.append)
        loaded = {
            name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()
        }
    assert written == [tensor.nbytes for tensor in tensors.values()]
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == dtype for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"a": TENSORS["a"]}, "the stream ends before b"),
        ({"b": TENSORS["b"]}, "expected a "),
        ({**TENSORS, "a": TENSORS["a"].double()}, "expected a .* in torch.float64"),
        ({**TENSORS, "d": TENSORS["a"]}, "goes on with d"),
    ],
)
def test_a_stream_that_is_not_the_announced_one_is_refused(
    tmp_path: Path, stream: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_hf_weights(stream.items(), SHAPES, torch.float32, tmp_path, 10**6)
