"""Convert a Hugging Face folder into a Megatron distributed checkpoint that loads at any tensor and pipeline parallel size.

    python -m checkpoint_conversion.hf_to_megatron --hf models/smollm2-135m --out checkpoints/smollm2-135m

The output appears at once, when everything in it is written and checked:

    megatron/           the weights (torch_dist)
    model_shape.json    what they belong to
    conversion.json     where they come from, their dtype and checksum
    hf/                 config, tokenizer, generation config and chat template, for the way back
    sealed.json         SHA-256 of every file
"""

from megatron_rlpr import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing

from checkpoint_conversion.companion_files import companion_files, copy_companions
from checkpoint_conversion.single_process import DTYPE_NAMES, byte_progress, whole_model
from megatron_rlpr.actor.model import DTYPES
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_tensors import HfTensors
from megatron_rlpr.weights.load_hf import hf_manifest, load_hf_weights, open_hf_weights
from megatron_rlpr.weights.load_megatron import SHAPE, WEIGHTS
from megatron_rlpr.weights.shape import ModelShape, read_hf_config
from tools.command_line import exit_status
from tools.sealed_folder import empty, make_once, sha256

CONVERSION = "conversion.json"
HF_FILES = "hf"


def convert(hf: Path, out: Path, dtype_name: str = "auto") -> bool:
    """Write the checkpoint of a Hugging Face folder; False when it is already there, complete and from the same files.

    dtype_name: float32, bfloat16, or auto: bfloat16 where all tensors are stored so, else float32.
    """
    shape = model_shape(read_hf_config(hf))
    source = open_hf_weights(shape, hf)
    dtype = source.widest_dtype() if dtype_name == "auto" else DTYPES[dtype_name]
    files = sorted({tensor.file for tensor in source.stored.values()}) + companion_files(hf)
    made_from = {"dtype": DTYPE_NAMES[dtype], "files": {file.name: sha256(file) for file in files}}

    def build(staging: Path) -> None:
        empty(staging)
        checksum = _write_weights(shape, source, dtype, staging)
        _write_json(staging / SHAPE, asdict(shape))
        _write_json(staging / CONVERSION, {"source": hf.resolve().name, "dtype": DTYPE_NAMES[dtype], "weights_checksum": checksum})
        copy_companions(hf, staging / HF_FILES)

    return make_once(out, made_from, build)


def _write_weights(shape: ModelShape, source: HfTensors, dtype: torch.dtype, staging: Path) -> str:
    """Load, compare with the source, write; returns the checksum of the weights."""
    with whole_model(shape, dtype) as model:
        total = sum(p.nbytes for p in model.parameters())
        with byte_progress("reading", total) as advance:
            load_hf_weights(model, shape, source.folder, advance)
        checksum = weights_checksum(WeightExporter(model, shape, bucket_mb=256).stream())
        if checksum != weights_checksum((name, source.read(name).to(dtype)) for name in hf_manifest(shape)):
            raise UserError(f"{source.folder} changed while it was converted: run the same command again")
        (staging / WEIGHTS).mkdir()
        dist_checkpointing.save({"model": model.sharded_state_dict()}, str(staging / WEIGHTS))
    return checksum


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, help="Hugging Face folder: config.json, tokenizer, safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of the Megatron checkpoint")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="dtype of the stored weights; auto: as in the source")
    options = parser.parse_args()
    start = time.perf_counter()
    if convert(options.hf, options.out, options.dtype):
        print(f"{options.out}: converted from {options.hf} in {time.perf_counter() - start:.1f} s")
    else:
        print(f"{options.out}: already complete and made from the same files, nothing to do")


if __name__ == "__main__":
    sys.exit(exit_status(main))
