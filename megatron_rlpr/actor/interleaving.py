"""How many micro-batches in a row a stage takes through one of its chunks before it turns to the next one.

Megatron's interleaved schedule (arXiv 2104.04473) takes the micro-batches in groups: all of a group pass a chunk, then
the next chunk. A stage may not run out of a group before the last stage has begun it, so every group, the last one
too, needs at least as many micro-batches as there are stages. The larger a group, the more activations wait for their
backward.
"""

from __future__ import annotations


def micro_batch_group(micro_batches: int, stages: int) -> int:
    """The smallest group size with which Megatron runs so many micro-batches through so many stages.

    Raises ValueError for fewer micro-batches than stages: no group could be large enough.
    """
    if not 1 <= stages <= micro_batches:
        raise ValueError(f"{micro_batches} micro-batches cannot be interleaved over {stages} pipeline stages")
    return next(size for size in range(stages, micro_batches + 1) if not 0 < micro_batches % size < stages)
