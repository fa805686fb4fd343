"""Convert a Hugging Face folder into a Megatron distributed checkpoint, which loads in any parallel layout.

    python -m checkpoint_conversion.hf_to_megatron --hf models/smollm2-135m --out checkpoints/smollm2-135m

The weights are read, fused and written parameter by parameter, so memory follows the largest one and not the model; no
GPU is used. The output appears at once, when all of it is written and has been read back with the source's checksum:

    megatron/           the weights (torch_dist)
    model_shape.json    what they belong to
    conversion.json     where they come from, their dtype and checksum
    hf/                 config, tokenizer, generation config and chat template, for the way back
    sealed.json         SHA-256 of every file
"""

from checkpoint_conversion import process

if __name__ == "__main__":
    process.start()

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from checkpoint_conversion.model_outline import ModelOutline, OutlinedParameter, outline_model
from checkpoint_conversion.single_process import byte_progress, one_process
from checkpoint_conversion.source_files import SourceFiles
from checkpoint_conversion.streamed_load import load_streamed
from checkpoint_conversion.streamed_save import save_streamed
from megatron_rlpr.system.command_line import exit_status
from megatron_rlpr.system.dtypes import DTYPES, dtype_name
from megatron_rlpr.system.sealed_folder import empty, make_once
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.checksum import ChecksummedStream, weights_checksum
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import open_hf_weights
from megatron_rlpr.weights.load_megatron import SHAPE, WEIGHTS
from megatron_rlpr.weights.shape import ModelShape

CONVERSION = "conversion.json"
DIFFERS_ON_DISK = "does not hold what was written there (checksum differs): is the disk sound? Run the command again"
HF_FILES = "hf"


def convert(hf: Path, out: Path, asked: str = "auto") -> bool:
    """Write the checkpoint of a Hugging Face folder; False when it is already there, complete and from the same files.

    asked: float32, bfloat16, or auto: bfloat16 where all tensors are stored so, else float32.
    """
    shape = model_shape(HfFolder(hf).config())
    source = open_hf_weights(shape, hf)
    source.check_companions()
    dtype = source.widest_dtype() if asked == "auto" else DTYPES[asked]
    files = SourceFiles(sorted({tensor.file for tensor in source.stored.values()}) + source.companions())
    made_from = {"dtype": dtype_name(dtype), "files": files.sums}

    def build(staging: Path) -> None:
        empty(staging)
        try:
            checksum = _write_weights(shape, source, dtype, staging / WEIGHTS)
        except UserError:  # these files will never become a checkpoint
            empty(staging)
            raise
        about = {"source": hf.resolve().name, "dtype": dtype_name(dtype), "weights_checksum": checksum}
        for name, content in ((SHAPE, asdict(shape)), (CONVERSION, about)):
            (staging / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        source.copy_companions(staging / HF_FILES)
        files.check_unchanged()

    return make_once(out, made_from, build)


def _write_weights(shape: ModelShape, source: HfFolder, dtype: torch.dtype, weights: Path) -> str:
    """Write the checkpoint and compare what is on disk with what was read; returns the checksum of the weights."""
    weights.mkdir()
    with one_process(dtype) as actor:
        outline = outline_model(shape, actor)
        read = ChecksummedStream(_tensors(outline, source, dtype))
        stream = iter(read)

        def values(parameter: OutlinedParameter) -> torch.Tensor:
            """The stream is in table order, and so are the parameters that are asked for."""
            tensors = dict(next(stream) for _ in parameter.mapping.hf)
            merged = parameter.mapping.merge([tensors.pop(tensor.name) for tensor in parameter.mapping.hf])
            advance(merged.nbytes)
            return merged

        with byte_progress("writing", outline.nbytes) as advance:
            save_streamed(outline, values, weights)
        with byte_progress("checking", outline.nbytes) as advance:
            written = weights_checksum(load_streamed(outline, weights, advance))
    if written != read.checksum:
        raise UserError(f"{weights} {DIFFERS_ON_DISK}")
    return written


def _tensors(outline: ModelOutline, source: HfFolder, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter in outline.parameters:
        for tensor in parameter.mapping.hf:
            yield tensor.name, source.read(tensor.name).to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, help="folder with config.json, tokenizer, safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of the Megatron checkpoint")
    dtypes = ["auto", *DTYPES]
    parser.add_argument("--dtype", choices=dtypes, default="auto", help="of the stored weights; auto: as in the source")
    options = parser.parse_args()
    start = time.perf_counter()
    if convert(options.hf, options.out, options.dtype):
        print(f"{options.out}: converted from {options.hf} in {time.perf_counter() - start:.1f} s")
    else:
        print(f"{options.out}: already complete and made from the same files, nothing to do")


if __name__ == "__main__":
    sys.exit(exit_status(main))
