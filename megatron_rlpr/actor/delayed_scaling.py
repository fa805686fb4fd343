"""The state of delayed scaling: every layer's scales, and the maxima they are made from.

Scales are made from earlier steps' values and begin at 1, where small gradients round to zero. So the first update of a
run computes its gradients beforehand, twice, and throws them away: the first pass shows the sizes of what flows along
the residual stream, the second, by those scales, of what goes through the layers.

In checkpoints the state is plain tensors. Transformer Engine's own form of it is pickled, and it refuses to load that:
unpickling runs code. The maxima are taken over all ranks of a stage, so all ranks hold the same and any layout can load
them; where a state has another size (experts spread over another number of ranks, another history) it begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.fp8_utils import get_fp8_recipe
from torch import Tensor

from megatron_rlpr.actor.cpu.megatron import device

CALIBRATION_PASSES = 2
_LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..+)")


def uncalibrated(chunks: Sequence[torch.nn.Module]) -> bool:
    """Whether layers scale by delayed scaling and no rank has seen a gradient yet. Collective.

    Gradients leave maxima, and scales made from them: Transformer Engine clears the newest maximum, with a history of
    one step all there is, once it has made a scale from it.
    """
    if not _is_delayed(chunks):
        return False
    seen = [
        (tensor - 1).abs().max() if ".scale." in name else tensor.max()
        for name, tensor in _state(chunks)
        if name.startswith("scaling_bwd.")
    ]
    largest = torch.stack(seen).max().to(device()) if seen else torch.zeros((), device=device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest) == 0


def sharded_scaling_state(chunks: Sequence[torch.nn.Module], stored_in: Path | None = None) -> dict[str, ShardedTensor]:
    """Entries of a checkpoint, none with another recipe. stored_in: when loading, the folder that may hold them."""
    if not _is_delayed(chunks):
        return {}
    group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    entries = {
        name: ShardedTensor.from_rank_offsets(f"fp8.{name}", tensor, replica_id=dist.get_rank(group))
        for name, tensor in _state(chunks)
    }
    if stored_in is None:
        return entries
    stored = {entry.key for entry in dist_checkpointing.load_tensors_metadata(str(stored_in)).values()}
    return {name: entry for name, entry in entries.items() if entry.key in stored}


@torch.no_grad()
def load_scaling_state(chunks: Sequence[torch.nn.Module], loaded: dict[str, Tensor]) -> None:
    """Take over what `sharded_scaling_state` was loaded with."""
    if loaded:
        for name, tensor in _state(chunks):
            if name in loaded:
                tensor.copy_(loaded[name])


def _is_delayed(chunks: Sequence[torch.nn.Module]) -> bool:
    config: Any = chunks[0].config
    return bool(config.fp8) and config.fp8_recipe == "delayed"


def _state(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """(name over the whole model, fp32 tensor) of every layer's state, made where no forward has made it yet."""
    recipe = get_fp8_recipe(chunks[0].config)
    for chunk in chunks:
        for local_name, module in chunk.named_modules():
            meta: Any = getattr(module, "fp8_meta", None)
            if meta is None:
                continue
            if "scaling_fwd" not in meta:
                meta |= {"recipe": recipe, "num_gemms": getattr(module, "num_gemms", 1)}
                module.init_fp8_meta_tensors(recipe)
            module_name = local_name
            if match := _LAYER.fullmatch(local_name):
                before, layer, after = match.groups()
                module_name = f"{before}{chunk.decoder.layers[int(layer)].layer_number - 1}{after}"
            for direction in ("scaling_fwd", "scaling_bwd"):
                for kind in ("amax_history", "scale"):
                    tensor = getattr(meta[direction], kind)
                    size = "x".join(map(str, tensor.shape))
                    yield f"{direction}.{kind}.{size}.{module_name}", tensor
