"""The conversion command lines: what they say, how they end, and that nothing half-written is ever used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from checkpoint_conversion import hf_to_megatron, megatron_to_hf, verify
from checkpoint_conversion.streamed_load import BUCKET_BYTES
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_megatron import check_megatron_checkpoint
from tools.bench import convert_case

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
SIZES = {
    "vocab_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,  # shared by the ranks of two that verify the conversion
}


def run(program: str, *arguments: str | Path, ranks: int = 0, file_limit: int = 0) -> subprocess.CompletedProcess[str]:
    """A conversion program as a user starts it; with ranks, under torchrun; file_limit: bytes a file may have."""
    start = (
        ["-m"] if not ranks else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    )
    limit = ["prlimit", f"--fsize={file_limit}"] if file_limit else []
    command = [*limit, sys.executable, *start, f"checkpoint_conversion.{program}", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, hidden_size=32, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def megatron(hf: Path) -> Path:
    folder = hf.parent / "megatron"
    done = run("hf_to_megatron", "--hf", hf, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert f"{folder}: converted from {hf}" in done.stdout
    return folder


def test_a_checkpoint_says_what_it_is(hf: Path, megatron: Path) -> None:
    assert json.loads((megatron / "model_shape.json").read_text())["architecture"] == "LlamaForCausalLM"
    conversion = json.loads((megatron / "conversion.json").read_text())
    assert (conversion["source"], conversion["dtype"]) == ("tiny", "bfloat16")
    assert (megatron / "hf" / "config.json").read_bytes() == (hf / "config.json").read_bytes()
    assert [path.name for path in megatron.parent.iterdir() if "unfinished" in path.name] == []


def test_weights_that_cannot_be_written_are_one_line_and_leave_nothing(hf: Path, tmp_path: Path) -> None:
    """As on a full disk: the small files fit, the weights do not."""
    done = run("hf_to_megatron", "--hf", hf, "--out", tmp_path / "out", file_limit=10_000)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'out'}: ")
    assert "limit of file sizes (ulimit -f)" in error
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]


def test_verify_finds_the_conversion_equal_under_torchrun(hf: Path, megatron: Path) -> None:
    done = run("verify", "--hf", hf, "--megatron", megatron, "--tensor-model-parallel-size", "2", ranks=2)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "layout: TP 2, PP 1"
    assert lines[1].startswith("worst tensor: model.")
    assert lines[1].endswith("largest difference 0")
    assert lines[2].startswith("largest logit difference: ")


def test_a_mistake_ends_with_one_line_and_status_2(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = run("hf_to_megatron", "--hf", hf, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: not a complete output of this tool")
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_foreign_half_written_and_unfit_folders_are_refused_by_name(hf: Path, megatron: Path, tmp_path: Path) -> None:
    other = model_shape(LlamaConfig(**SIZES, hidden_size=16, head_dim=4, architectures=["LlamaForCausalLM"]).to_dict())
    with pytest.raises(
        UserError, match="is a checkpoint of another model: hidden_size=32, expected 16; head_dim=8, expected 4"
    ):
        check_megatron_checkpoint(other, megatron)
    with pytest.raises(UserError, match="there is no Megatron checkpoint"):
        megatron_to_hf.convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match=r"is no complete Megatron checkpoint, it holds no model_shape\.json"):
        megatron_to_hf.convert(hf, tmp_path / "out")
    (tmp_path / "half" / "megatron").mkdir(parents=True)
    (tmp_path / "half" / "model_shape.json").write_bytes((megatron / "model_shape.json").read_bytes())
    with pytest.raises(UserError, match=r"it holds no megatron/metadata\.json"):
        megatron_to_hf.convert(tmp_path / "half", tmp_path / "out")
    with pytest.raises(UserError, match="there is no model folder"):
        hf_to_megatron.convert(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tp", "pp", "world", "named"),
    [
        (2, 2, 2, "2 processes, but TP 2 x PP 2 are 4"),
        (3, 1, 3, "=3: 3 tensor-parallel"),
        (1, 3, 3, "=3 does not divide the 2 layers"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(tp: int, pp: int, world: int, named: str) -> None:
    shape = model_shape(LlamaConfig(**SIZES, hidden_size=32, architectures=["LlamaForCausalLM"]).to_dict())
    with pytest.raises(UserError) as refused:
        verify.check_layout(shape, tp, pp, world)
    assert named in str(refused.value)


def test_experts_may_be_whole_where_layers_are_cut() -> None:
    config = MixtralConfig(**SIZES, hidden_size=32, num_local_experts=4, architectures=["MixtralForCausalLM"])
    shape = model_shape(config.to_dict())
    verify.check_layout(shape, tp=2, pp=1, world_size=2, ep=2, etp=1)
    with pytest.raises(UserError, match="4 processes, but TP 2 x PP 1 x EP 2 x ETP 1 are 2"):
        verify.check_layout(shape, tp=2, pp=1, world_size=4, ep=2, etp=1)
    with pytest.raises(UserError, match="--expert-tensor-parallel-size=5: 5 tensor-parallel ranks do not divide"):
        verify.check_layout(shape, tp=1, pp=1, world_size=5, etp=5)


def test_weights_that_are_no_numbers_are_not_converted(hf: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(hf, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 2] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight holds NaN"):
        hf_to_megatron.convert(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "broken" and path.is_dir()] == []


def test_what_lies_beside_the_weights_goes_there_and_back(hf: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(hf, tmp_path / "source"))
    (source / "additional_chat_templates").mkdir()
    names = ("chat_template.jinja", "additional_chat_templates/tools.jinja", "additional_chat_templates/rag.jinja")
    for name in (*names, "additional_chat_templates/chat_template.jinja"):
        (source / name).write_text(name)
    assert hf_to_megatron.convert(source, tmp_path / "there")
    assert megatron_to_hf.convert(tmp_path / "there", tmp_path / "back")
    for name in names:
        assert (tmp_path / "back" / name).read_text() == name
    (source / "additional_chat_templates" / "chat_template.jinja").write_text("changed")
    with pytest.raises(UserError, match="was made with files="):
        hf_to_megatron.convert(source, tmp_path / "there")


@pytest.fixture
def copy(megatron: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(megatron, tmp_path / "copy"))


def test_weights_that_were_exchanged_are_not_converted_back(copy: Path, tmp_path: Path) -> None:
    conversion = copy / "conversion.json"
    conversion.write_text(json.dumps({**json.loads(conversion.read_text()), "weights_checksum": "0" * 32}))
    done = run("megatron_to_hf", "--megatron", copy, "--out", tmp_path / "back")
    assert done.returncode == 2
    assert "the weights are not those that were converted" in done.stderr
    assert not (tmp_path / "back").exists()


def test_every_cut_file_of_a_checkpoint_is_named_damage(copy: Path) -> None:
    """All in one process of its own, since loading needs process groups."""
    program = """
import sys
from pathlib import Path
import torch
from checkpoint_conversion.single_process import one_process
from megatron_rlpr.actor.model.tree_policy import build_chunks
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.load_megatron import load_megatron_checkpoint, read_checkpoint_shape
folder = Path(sys.argv[1])
shape = read_checkpoint_shape(folder)
with one_process(torch.bfloat16) as actor:
    (model,) = build_chunks(shape, actor)
    for file in sorted((folder / "megatron").iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 3])
        try:
            load_megatron_checkpoint([model], shape, folder)
        except UserError as error:
            assert "is damaged" in str(error) and "\\n" not in str(error), error
            print("refused", file.name)
        file.write_bytes(content)
    load_megatron_checkpoint([model], shape, folder)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = {line.removeprefix("refused ") for line in done.stdout.splitlines() if line.startswith("refused ")}
    assert refused == {file.name for file in (copy / "megatron").iterdir()}


def test_memory_follows_a_layer_and_not_the_model(tmp_path: Path) -> None:
    hf = tmp_path / "deep"
    convert_case.make_llama(hf, layers=48, hidden=512, ffn=1536, vocab=2000)
    costs = convert_case.costs(hf, tmp_path)
    unit = max(*convert_case.layer_bytes(hf), BUCKET_BYTES)
    model = sum(file.stat().st_size for file in hf.glob("*.safetensors"))
    bound = (
        3 * unit + 64 * 2**20
    )  # two copies of what is in hand, one as it is written or read; Megatron's and torch's plans
    assert bound < 0.6 * model
    assert {direction: cost.peak_bytes for direction, cost in costs.items() if cost.peak_bytes > bound} == {}
    before, after = HfFolder(hf), HfFolder(tmp_path / "back")
    assert before.stored.keys() == after.stored.keys()
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.stored)
