"""Model folders for checks that read no weights."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import hf_manifest, model_shape
from megatron_rlpr.weights.hf_folder import SINGLE, HfFolder


def write_zeros(model: Path) -> None:
    """All tensors of config.json as zeros, in a file that takes no room on disk; an unsupported model gets none."""
    try:
        manifest = hf_manifest(model_shape(HfFolder(model).config()))
    except UserError:
        return
    entries, size = {}, 0
    for name, shape in manifest.items():
        start, size = size, size + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, size]}
    header = json.dumps(entries).encode()
    with (model / SINGLE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
