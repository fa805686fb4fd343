"""A distributed optimizer's state in a checkpoint: every rank writes and reads its own shard, as it lies in memory.

Megatron's own formats either gather the whole state on ranks that hold a share of it (fully_reshardable), or can be
loaded with the same tensor and pipeline parallel sizes only (dp_reshardable). A shard is a range of a flattened
parameter, and a range is a few boxes of the parameter itself: the rest of a row, whole rows, the beginning of a row.
Boxes with the parameter's name and their place in it are what a checkpoint holds anyway, so any layout finds in them
what it needs, and nothing is gathered, copied or sent. Names are those of the optimizer that is not distributed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""First index and size in every dimension."""
_NAMES = {"param": "fp32_param"}


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Elements start to stop (exclusive) of a row-major array of this shape, in order, as boxes without gaps."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = prod(shape[1:])
    (first, head), (last, tail) = divmod(start, row), divmod(stop, row)
    if first == last:
        yield from _in_row(first, shape[1:], head, tail)
        return
    if head:
        yield from _in_row(first, shape[1:], head, row)
        first += 1
    if first < last:
        yield (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])
    yield from _in_row(last, shape[1:], 0, tail)


def _in_row(index: int, shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    for offset, size in boxes(shape, start, stop):
        yield (index, *offset), (1, *size)


def sharded_shards(part: DistributedOptimizer, model_state: dict[str, Any], is_loading: bool) -> dict[str, Any]:
    """Entries of a checkpoint: bookkeeping, and this rank's shard. model_state: the sharded state of its chunks.

    What is loaded with them is written into the optimizer's own tensors.
    """
    if is_loading:
        part.init_state_fn(part.optimizer, part.config)  # makes the averages that no step has made yet
    entries, _ = extract_sharded_tensors_and_factories(model_state)
    stored_as = {id(entry.data): entry for entry in nested_values(entries)}
    shards = {
        number: {
            name: pieces(stored_as[id(weight)], f"optimizer.state.{_NAMES.get(name, name)}", values, start)
            for name, values in tensors.items()
        }
        for number, (weight, start, tensors) in enumerate(_shards(part))
    }
    return {**part.state_dict(), "shards": shards}


def take_shards(part: DistributedOptimizer, loaded: dict[str, Any], groups: list[dict[str, Any]], steps: int) -> None:
    """Go on with what was loaded with `sharded_shards`.

    groups: stored hyperparameters, one for each of the optimizer's groups. steps: how many were made.
    """
    for group, stored in zip(part.optimizer.param_groups, groups, strict=True):
        group.update({name: value for name, value in stored.items() if name not in ("params", "step")})
        if not isinstance(part.optimizer, torch.optim.Adam):  # Transformer Engine's counts in the groups
            group["step"] = steps
    for state in part.optimizer.state.values():
        if "step" in state:
            state["step"].fill_(steps)
    if part.config.use_precision_aware_optimizer:  # whose tensors were handed out as copies in fp32
        for number, (weight, _, tensors) in enumerate(_shards(part)):
            read = loaded["shards"][number]
            values = {name: torch.cat([piece.flatten() for piece in read[name].values()]) for name in tensors}
            part._set_main_param_and_optimizer_states(weight, values)


def _shards(part: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, dict[str, torch.Tensor]]]:
    """Each weight of which this rank has a range, where that begins, and the flat tensors of the range."""
    for buffer in part.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for weight, ranges in bucket["param_map"].items():
                    tensors = part._get_main_param_and_optimizer_states(weight)
                    tensors.pop("step", None)
                    if weight.dtype == torch.float32:
                        del tensors["param"]  # a view of the weight, which is stored already
                    yield weight, ranges["param"].start, tensors


def pieces(
    stored_as: ShardedTensor | ShardedTensorFactory, prefix: str, values: torch.Tensor, start: int
) -> dict[int, ShardedTensor]:
    """A range of a flat parameter, from start, as boxes of the tensors that a checkpoint makes of the parameter.

    They are views of values, in its order.
    """
    key = f"{prefix}.{stored_as.key}"
    if isinstance(stored_as, ShardedTensorFactory):  # gate and up projection are stored as two tensors
        outline = torch.empty((), device="meta").expand(stored_as.data.shape)
        parts = list(nested_values({0: replace(stored_as, key=key, data=outline).build()}))  # one after the other
    else:
        parts = [replace(stored_as, key=key, data=None)]
    found: dict[int, ShardedTensor] = {}
    for number, part in enumerate(parts):
        first = sum(prod(before.local_shape) for before in parts[:number])
        lo, hi = max(start, first), min(start + len(values), first + prod(part.local_shape))
        for offset, size in boxes(part.local_shape, lo - first, hi - first):
            axes = part.prepend_axis_num
            shape = (*[1] * axes, *size)
            begin = sum(prod(piece.local_shape) for piece in found.values())
            corner = (at + more for at, more in zip(part.global_offset[axes:], offset, strict=True))
            found[len(found)] = replace(
                part,
                data=values[begin : begin + prod(size)].view(shape),
                dtype=values.dtype,
                local_shape=shape,
                global_offset=(*part.global_offset[:axes], *corner),
                axis_fragmentations=None,  # pieces of any size
                replica_id=(*part.replica_id[:2], 0),  # no other data-parallel rank has it
                prepend_axis_num=0,
            )
    return found
