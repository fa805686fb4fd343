"""Weights in Ray's object store: put there once by the trainer, read there by every engine.

The object store is shared memory: engines on the trainer's host map the same pages, other nodes fetch a copy. The last
hand-over stays in it until the next one, because an engine that is replaced in the middle of a step needs the current
weights and nobody else can give them: vLLM keeps them packed, and a second export is collective over all ranks. That is
one copy of the weights on the trainer's host; Ray moves what does not fit to disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_rlpr.weights.checksum import ChecksummedStream

_RAW = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
"""numpy lacks these types: they travel as integers of the same width."""

Bucket = list[tuple[str, str, np.ndarray]]
"""(name, torch dtype, values or their raw bits) of consecutive tensors."""


@dataclass(frozen=True)
class StoredWeights:
    """One hand-over: what was announced, where its buckets lie, and the checksum of all that flowed (weights.checksum)."""

    version: int
    manifest: Mapping[str, tuple[int, ...]]
    buckets: tuple[Any, ...]  # ObjectRef
    checksum: str


def store_weights(
    manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], version: int, bucket_nbytes: int
) -> StoredWeights:
    """Put a stream of named tensors into the object store, in buckets of about bucket_nbytes bytes."""
    import ray

    stream = ChecksummedStream(tensors)
    references = tuple(ray.put(bucket) for bucket in _buckets(stream, bucket_nbytes))
    return StoredWeights(version, dict(manifest), references, stream.checksum)


def stored_tensors(buckets: Sequence[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of stored buckets, as views of the object store; fetched bucket by bucket, all kept to the end.

    They are kept because engines fuse q, k and v, and hold on to parts until the last one has come.
    """
    import ray

    held = []
    for reference in buckets:
        bucket: Bucket = ray.get(reference)
        held.append(bucket)
        for name, dtype, values in bucket:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the pages are read-only, and nobody writes to them
                tensor = torch.from_numpy(values)
            yield name, tensor.view(getattr(torch, dtype))


def _buckets(tensors: Iterable[tuple[str, torch.Tensor]], bucket_nbytes: int) -> Iterator[Bucket]:
    bucket: Bucket = []
    nbytes = 0
    for name, tensor in tensors:
        if bucket and nbytes + tensor.nbytes > bucket_nbytes:
            yield bucket
            bucket, nbytes = [], 0
        plain = tensor.detach().cpu().contiguous()
        raw = plain.view(_RAW[plain.dtype]) if plain.dtype in _RAW else plain
        bucket.append((name, str(tensor.dtype).removeprefix("torch."), raw.numpy()))
        nbytes += tensor.nbytes
    if bucket:
        yield bucket
