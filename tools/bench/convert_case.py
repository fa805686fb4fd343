"""Memory and time of both conversions, for a model and for deep ones made here, against the bytes of the model.

Every conversion runs in a process of its own, whose peak resident memory the kernel counts (VmHWM): what the process
allocates and the pages of files it has mapped, not the page cache; beyond what is resident when all is imported.
"""

from __future__ import annotations

from checkpoint_conversion import process

if __name__ == "__main__":
    process.start()

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoint_conversion import hf_to_megatron, megatron_to_hf
from megatron_rlpr.weights.architectures import hf_manifest, model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.save_hf import save_hf_weights

_MIB = 2**20
_LAYER = re.compile(r"model\.layers\.\d+\.")


@dataclass(frozen=True)
class Cost:
    """Of one conversion: peak resident bytes beyond the start of the process, and seconds."""

    peak_bytes: int
    seconds: float


def run(model: Path, depths: tuple[int, ...]) -> dict[str, Any]:
    """The report. depths: layers of the models that are made here (24 MiB each in bf16)."""
    with tempfile.TemporaryDirectory(prefix="convert_") as temporary:
        work = Path(temporary)
        points = [_point(str(model), model, work)]
        for layers in depths:
            made = work / "model"
            make_llama(made, layers, hidden=1024, ffn=2816, vocab=32000)
            points.append(_point(f"{layers} layers", made, work))
            shutil.rmtree(made)
    return {"model": str(model), "points": points}


def costs(hf: Path, work: Path) -> dict[str, Cost]:
    """What converting a folder there and back costs; `megatron` and `back` below `work` hold the results."""
    megatron, back = work / "megatron", work / "back"
    return {
        "hf_to_megatron": _in_a_process("hf_to_megatron", hf, megatron),
        "megatron_to_hf": _in_a_process("megatron_to_hf", megatron, back),
    }


def make_llama(folder: Path, layers: int, hidden: int, ffn: int, vocab: int) -> None:
    """A Llama of random bf16 weights, written tensor by tensor."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    manifest = hf_manifest(model_shape(config))
    generator = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in manifest.items():
            yield name, torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)

    save_hf_weights(tensors(), manifest, torch.bfloat16, folder, 10**9)


def layer_bytes(hf: Path) -> tuple[int, int]:
    """Bytes of a folder's largest layer and of its largest tensor, as they are stored."""
    layers: dict[str, int] = {}
    largest = 0
    for name, tensor in HfFolder(hf).stored.items():
        nbytes = tensor.dtype.itemsize * int(torch.Size(tensor.shape).numel())
        largest = max(largest, nbytes)
        layer = _LAYER.match(name)
        if layer is not None:
            layers[layer.group()] = layers.get(layer.group(), 0) + nbytes
    return max(layers.values()), largest


def _point(name: str, hf: Path, work: Path) -> dict[str, Any]:
    shape = model_shape(HfFolder(hf).config())
    stored = HfFolder(hf).stored
    total = sum(
        stored[name].dtype.itemsize * int(torch.Size(size).numel()) for name, size in hf_manifest(shape).items()
    )
    layer, tensor = layer_bytes(hf)
    point: dict[str, Any] = {
        "of": name,
        "model_mib": total / _MIB,
        "layer_mib": layer / _MIB,
        "largest_tensor_mib": tensor / _MIB,
    }
    for direction, cost in costs(hf, work).items():
        point |= {f"{direction}_peak_mib": cost.peak_bytes / _MIB, f"{direction}_s": cost.seconds}
    for made in ("megatron", "back"):
        shutil.rmtree(work / made)
    return point


def _in_a_process(direction: str, source: Path, out: Path) -> Cost:
    command = [sys.executable, "-m", "tools.bench.convert_case", direction, str(source), str(out)]
    # Started as a user starts it, without the settings of the allocator that this benchmark runs with.
    ours = ("MALLOC_", "MEGATRON_RLPR_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{direction} of {source} failed: {done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _convert_here(direction: str, source: Path, out: Path) -> None:
    """What the process of one conversion does."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    start = time.perf_counter()
    made = hf_to_megatron.convert(source, out) if direction == "hf_to_megatron" else megatron_to_hf.convert(source, out)
    if not made:
        raise RuntimeError(f"{out} was there already")
    print(json.dumps({"peak_bytes": _status("VmHWM") - before, "seconds": time.perf_counter() - start}))


def _status(field: str) -> int:
    """A figure of this process in /proc, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _convert_here(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
