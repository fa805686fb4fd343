"""Ranks exchange arrays: each writes found_RANK.json with what came of it. Also: one rank of them fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist

from megatron_rlpr.system.array_exchange import arrays_of_first_rank, gather_arrays, share_of
from megatron_rlpr.types import UserError

KINDS = (np.int32, np.float32, np.float64, np.uint64)


def of_rank(rank: int, length: int, kind: type) -> np.ndarray:
    """What a rank brings; every bit of a number counts."""
    return np.frombuffer(np.random.default_rng(rank).bytes(length * np.dtype(kind).itemsize), dtype=kind)


def ragged(rank: int, ranks: int) -> bool:
    """Whether arrays of any length and kind arrive as they were."""
    same: list[bool] = []
    for longest in (0, 1, 1000):
        for kind in KINDS:
            lengths = [longest * other // ranks for other in range(ranks)]
            sent = [of_rank(other, length, kind) for other, length in enumerate(lengths)]
            arrived = gather_arrays(lambda: sent[rank], "exchange")  # noqa: B023
            same += [a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(arrived, sent, strict=True)]
    return all(same)


def from_the_first(rank: int) -> bool:
    """Whether the first rank's arrays are everybody's."""
    expected = [of_rank(0, 7, np.float64).reshape(7, 1), np.zeros(0, np.int32), np.array(["12", "345"], dtype="S3")]

    def work() -> list[np.ndarray]:
        assert rank == 0
        return expected

    arrived = arrays_of_first_rank(work)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(arrived, expected, strict=True))


def refused(rank: int, error: Exception) -> str:
    """What this rank raises when rank 1 fails."""

    def work() -> np.ndarray:
        if rank == 1:
            raise error
        return np.zeros(3)

    try:
        gather_arrays(work, "exchange")
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "nothing"


def main(place: str) -> None:
    """Collective over all ranks."""
    dist.init_process_group("cpu:gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine = share_of(10)
    found = {
        "ragged": ragged(rank, ranks),
        "first": from_the_first(rank),
        "user": refused(rank, UserError("a bad row")),
        "other": refused(rank, ValueError("a bug")),
        "share": [mine.start, mine.stop],
        "goes_on": [array.tolist() for array in gather_arrays(lambda: np.array([rank]), "exchange")],
    }
    (Path(place) / f"found_{rank}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
