"""What a worker of an engine does with new weights; it may run in a process of its own.

A failure of the stream is returned, not raised: an error within vLLM's loader breaks the engine for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from megatron_rlpr.rollout.vllm.slice_load import load_slices, own_places
from megatron_rlpr.rollout.vllm.weight_update import VerifiedStream
from megatron_rlpr.system.process_environment import release_free_memory
from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.hf_folder import OUTPUT_HEAD
from megatron_rlpr.weights.receiver import Announcement
from megatron_rlpr.weights.shape import ModelShape
from megatron_rlpr.weights.transports.interface import WeightSource


@dataclass(frozen=True)
class Loaded:
    """What one worker got. checksum: of the tensors that reached it (`weights.checksum`). fault: what was wrong."""

    checksum: str
    fault: str | None


@torch.no_grad()
def load_stream(
    worker: Any,
    source: WeightSource,
    announced: Announcement,
    dtype: torch.dtype,
    tied_head: bool,
    sliced: ModelShape | None = None,
) -> Loaded:
    """Replace the weights of a vLLM worker by a stream that it reads itself.

    dtype: to load them in. tied_head: the head is the embedding, and not loaded if announced. sliced: the model's,
    where slices come instead of whole tensors. After a fault the worker holds a mixture of weights, and can be loaded
    again.
    """
    received = ChecksummedStream(source.receive(worker.rank))
    places = None if sliced is None else own_places(sliced, announced.engine.size)
    coming = announced.manifest if places is None else {name: place.cut.shape for name, place in places.items()}
    stream = VerifiedStream(coming, received, skip=frozenset({OUTPUT_HEAD} if tied_head else ()))
    _forget_packed(worker)
    # vLLM keeps some parameters in fp32 inside; a start from a folder rounds them to the engine's dtype first.
    rounded = ((name, tensor.to(dtype)) for name, tensor in stream)
    if places is None:
        worker.reload_weights(weights_iterator=rounded)
    else:
        load_slices(worker, rounded, places)
    if tied_head:
        _repack_tied_head(worker)
    return Loaded(received.checksum, None if stream.failure is None else str(stream.failure))


def _forget_packed(worker: Any) -> None:
    """On CPU vLLM multiplies with packed copies of the weights, made when a layer is loaded. The old ones go first.

    A layer would be there three times while it is loaded otherwise (old and new packed, new plain), and experts, which
    are packed when their kernel is made, would stay as they are: vLLM's reload makes none where there is one. The pages
    go back, too, since new layers do not always fit into the gaps of the old ones.
    """
    if worker.device.type != "cpu":
        return
    for module in worker.model_runner.get_model().modules():
        if hasattr(module, "cpu_linear"):
            module.cpu_linear = None
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None
    release_free_memory()


def _repack_tied_head(worker: Any) -> None:
    """On CPU the output head multiplies with a packed copy of the tied embedding, which vLLM's reload leaves stale."""
    head = getattr(worker.model_runner.get_model(), "lm_head", None)
    if head is not None:
        head.quant_method.process_weights_after_loading(head)
