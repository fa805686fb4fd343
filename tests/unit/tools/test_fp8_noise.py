"""tools.fp8_noise: what it calls noise, and draws."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from tools.fp8_noise.__main__ import main
from tools.fp8_noise.noise import changed_signs, compare_gradients, flipped_pairs, noise
from tools.fp8_noise.plot import LARGEST, SMALLEST, picture
from tools.picture import save_picture


def test_flips_and_signs_are_counted_within_groups() -> None:
    reference, groups = np.array([0.1, 0.25, 0.3, 0.5, 0.4, np.nan, 0.9]), (3, 2, 2)
    found = np.array([0.1, 0.3, 0.15, 0.4, 0.5, np.nan, 0.1])
    assert flipped_pairs(found, reference, groups) == 2 / 4
    assert changed_signs(found, reference, groups) == 3 / 5
    assert flipped_pairs(reference, reference, groups) == changed_signs(reference, reference, groups) == 0


def test_gradients_are_compared_as_one_vector() -> None:
    reference = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    assert compare_gradients(reference, reference) == pytest.approx((1, 1))
    assert compare_gradients([2 * t for t in reference], reference) == pytest.approx((1, 2))
    turned = [torch.tensor([4.0]), torch.tensor([[0.0, -3.0]])]
    assert compare_gradients(turned, reference) == pytest.approx((0, 1))


def test_rows_without_a_splice_are_left_out() -> None:
    reference = np.array([0.5, np.nan, 0.2, 0.1])
    found = noise(np.array([0.6, np.nan, 0.2, 0.1]), reference, (2, 2), (True, True, True, False))
    assert found.mean_change == pytest.approx(0.1 / 3)
    assert (found.flips, found.auc, found.auc_lost) == (0, 1, 0)


def test_the_plot_has_a_row_and_a_dot_for_each(tmp_path: Path) -> None:
    changes = {"fp32": np.array([1e-4, 0.0, 2.0]), "mxfp8": np.array([0.01, 0.02])}
    (axes,) = picture(changes).axes
    dots = [dot for drawn in axes.collections if isinstance(drawn, PathCollection) for dot in drawn.get_offsets()]
    assert [round(float(x), 9) for x, _ in dots] == [1e-4, SMALLEST, LARGEST, 0.01, 0.02]
    assert [round(float(y)) for _, y in dots] == [0, 0, 0, 1, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fp32", "mxfp8"]
    for name in ("a.svg", "b.svg"):
        save_picture(picture(changes), tmp_path / name)
    assert ElementTree.fromstring((tmp_path / "a.svg").read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_without_transformer_engine_the_way_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--responses", str(tmp_path)]) == 2
    assert "choose --emulated on a CPU" in capsys.readouterr().err
