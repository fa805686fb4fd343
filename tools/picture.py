"""Pictures of matplotlib as files, whole or absent."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from megatron_rlpr.system.atomic_file import replacing


def save_picture(figure: Figure, path: Path) -> None:
    """Write the figure as SVG where the path ends so, else as PNG. Figures made alike give the same bytes."""
    form = "svg" if path.suffix == ".svg" else "png"
    with replacing(path) as unfinished, mpl.rc_context({"svg.hashsalt": "megatron-rlpr"}):
        figure.savefig(unfinished, format=form, dpi=110, metadata={"Date": None} if form == "svg" else {})
