"""tools.fp8_noise on the emulated kernels: a row for every precision, and FP8 is noisier than bf16."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.fp8_noise.__main__ import main

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from tiny_policy import question, save_model


def test_every_precision_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model", fitted=False, num_hidden_layers=2)
    rows = [
        {
            "question": question(n)[0],
            "reference": question(n)[1],
            "response": f"{thought} The answer is (A).",
            "options": [question(n + m)[1]],
            "pred": "A",
            "correct": not m,
        }
        for n in range(5)
        for m, thought in enumerate(("we add so then", "it is near"))
    ]
    responses, plot = tmp_path / "responses.jsonl", tmp_path / "noise.svg"
    responses.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--model", str(tmp_path / "model"), "--responses", str(responses), "--emulated", "--trained", "4"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    _, _, _, *lines = capsys.readouterr().out.strip().splitlines()[-9:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    by_name = {name: [float(number.rstrip("%")) for number in numbers] for name, *numbers in cells}
    assert list(by_name) == ["bf16", "fp32", "delayed", "tensorwise", "blockwise", "mxfp8"]
    assert by_name["bf16"][:4] == [0, 0, 0, 0]
    for recipe in ("delayed", "tensorwise", "blockwise", "mxfp8"):
        mean_change, *_, cosine, norm_ratio, mixed_cosine, _ = by_name[recipe]
        assert mean_change >= by_name["fp32"][0]
        assert 0.5 < cosine < by_name["fp32"][6]
        assert 0.3 < mixed_cosine < by_name["fp32"][8]
        assert norm_ratio == pytest.approx(1, abs=0.2)
    assert ElementTree.fromstring(plot.read_text()).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_recipe_that_there_is_not_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model", fitted=False, num_hidden_layers=1)
    rows = [{"question": "?", "reference": "1", "response": "so", "correct": True}] * 2
    responses = tmp_path / "responses.jsonl"
    responses.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--model", str(tmp_path / "model"), "--responses", str(responses), "--emulated"]
    assert main([*arguments, "--recipes", "nvfp4"]) == 2
    assert "--recipes nvfp4: choose from mxfp8, blockwise, tensorwise, delayed" in capsys.readouterr().err
