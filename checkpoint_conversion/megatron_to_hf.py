"""Convert a Megatron checkpoint (a conversion's or a training run's) into a Hugging Face folder.

    python -m checkpoint_conversion.megatron_to_hf --megatron checkpoints/smollm2-135m --out models/back
    python -m checkpoint_conversion.megatron_to_hf --megatron runs/x/checkpoints/step_000040 --out models/trained \\
        --hf models/smollm2-135m

A training checkpoint holds no tokenizer: --hf names the folder the run started from. Parameters are read, split and
written a few at a time, so memory follows the largest one and not the model; no GPU is used. The output appears at
once, when all of it is written and has been read back with the checkpoint's checksum.
"""

from checkpoint_conversion import process

if __name__ == "__main__":
    process.start()

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing

from checkpoint_conversion.hf_to_megatron import CONVERSION, DIFFERS_ON_DISK, HF_FILES
from checkpoint_conversion.model_outline import outline_model
from checkpoint_conversion.single_process import byte_progress, one_process
from checkpoint_conversion.source_files import SourceFiles
from checkpoint_conversion.streamed_load import load_streamed
from megatron_rlpr.system.command_line import exit_status
from megatron_rlpr.system.dtypes import DTYPES
from megatron_rlpr.system.sealed_folder import SEAL, empty, make_once, sealed_sums
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import hf_manifest, model_shape
from megatron_rlpr.weights.checksum import ChecksummedStream, weights_checksum
from megatron_rlpr.weights.damage import damage_named
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_megatron import WEIGHTS, check_megatron_checkpoint, read_checkpoint_shape
from megatron_rlpr.weights.save_hf import save_hf_weights
from megatron_rlpr.weights.shape import ModelShape


def convert(megatron: Path, out: Path, hf: Path | None = None, max_shard_gb: float = 5.0) -> bool:
    """Write the Hugging Face folder of a checkpoint; False when it is already there, complete and from the same files.

    hf: folder of config.json and tokenizer; None: the copy that a conversion keeps. The dtype is the checkpoint's.
    """
    read_checkpoint_shape(megatron)
    companions = HfFolder(hf or megatron / HF_FILES)
    if not companions.path.is_dir():
        raise UserError(
            f"there is no folder {companions.path} with config.json and tokenizer: name the run's model with --hf"
        )
    companions.check_companions()
    shape = model_shape(companions.config())
    check_megatron_checkpoint(shape, megatron)
    weights = sorted(path for path in (megatron / WEIGHTS).iterdir() if path.is_file())
    files = SourceFiles([*weights, *companions.companions()])
    sealed = sealed_sums(megatron) if (megatron / SEAL).is_file() else {}
    for file in weights:
        if sealed.get(f"{WEIGHTS}/{file.name}", files.sums[file.name]) != files.sums[file.name]:
            raise UserError(
                f"{file} is damaged, its checksum is not the sealed one: convert or save the checkpoint again"
            )
    made_from = {"max_shard_gb": max_shard_gb, "files": files.sums}

    def build(staging: Path) -> None:
        empty(staging)
        dtype = _stored_dtype(megatron / WEIGHTS)
        _write_weights(megatron, shape, dtype, staging, int(max_shard_gb * 10**9))
        companions.copy_companions(staging, dtype)
        files.check_unchanged()

    return make_once(out, made_from, build)


def _write_weights(megatron: Path, shape: ModelShape, dtype: torch.dtype, staging: Path, max_file_bytes: int) -> None:
    """Write the safetensors and compare what is on disk with what was read, and with what a conversion once wrote."""
    manifest = hf_manifest(shape)
    with one_process(dtype) as actor:
        outline = outline_model(shape, actor)
        read = ChecksummedStream(load_streamed(outline, megatron / WEIGHTS))
        with byte_progress("writing", outline.nbytes) as advance:
            save_hf_weights(read, manifest, dtype, staging, max_file_bytes, advance)
    if _conversion(megatron).get("weights_checksum") not in (None, read.checksum):
        raise UserError(
            f"{megatron}: the weights are not those that were converted (checksum differs): convert the model again"
        )
    written = HfFolder(staging)
    if weights_checksum((name, written.read(name)) for name in manifest) != read.checksum:
        raise UserError(f"{staging} {DIFFERS_ON_DISK}")


def _conversion(megatron: Path) -> dict[str, Any]:
    """What a conversion wrote about itself; empty for a training checkpoint."""
    file = megatron / CONVERSION
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not readable ({error}): convert the model again") from error


def _stored_dtype(weights: Path) -> torch.dtype:
    """The dtype of the checkpoint's weights. Raises UserError when it is none a model here can have."""
    with damage_named(weights, "convert or save the checkpoint again"):
        stored = dist_checkpointing.load_tensors_metadata(str(weights))
    # A training checkpoint holds the optimizer's fp32 copies of the weights as well, under their names.
    model = [tensor for name, tensor in stored.items() if name.endswith("weight") and not name.startswith("optimizer.")]
    found = {tensor.dtype for tensor in model if tensor.dtype is not None}
    if len(found) != 1 or not found <= set(DTYPES.values()):
        expected = f"expected weights of one dtype, {' or '.join(DTYPES)}"
        raise UserError(f"{weights}: {expected}, found {sorted(map(str, found))}")
    return found.pop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron", type=Path, required=True, help="a conversion's output, or checkpoints/step_*")
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument("--hf", type=Path, help="folder with config.json and tokenizer; for training checkpoints")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, help="largest safetensors file, in 10^9 bytes")
    options = parser.parse_args()
    if not options.max_shard_gb > 0:
        raise UserError(f"--max-shard-gb={options.max_shard_gb}: expected a positive number")
    start = time.perf_counter()
    if convert(options.megatron, options.out, options.hf, options.max_shard_gb):
        print(f"{options.out}: converted from {options.megatron} in {time.perf_counter() - start:.1f} s")
    else:
        print(f"{options.out}: already complete and made from the same files, nothing to do")


if __name__ == "__main__":
    sys.exit(exit_status(main))
