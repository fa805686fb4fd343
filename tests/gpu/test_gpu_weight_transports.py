"""Weights from a GPU to processes of their own: NCCL broadcasts to other GPUs, and shared memory through the host.

Run on a machine with GPUs: python -m pytest tests/gpu. Elsewhere every test is skipped with that reason. The same code
over gloo, with readers that die, stop and leave, is tested everywhere (tests/unit/weights/test_transport_*.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "weights"))

from transport_readers import Readers, readers, send, weights

from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.transports.collective import CollectiveTransport
from megatron_rlpr.weights.transports.interface import NamedTensor, WeightTransportError
from megatron_rlpr.weights.transports.shared_memory import SharedMemoryTransport

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: this machine has no GPU"),
]
needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL joins no two processes on one"
)

BUCKET = 40_000
TIMEOUT_S = 20.0


@pytest.fixture
def started() -> Iterator[Readers]:
    with readers() as found:
        yield found


def on_gpu(seed: int = 0) -> list[NamedTensor]:
    return [(name, tensor.cuda()) for name, tensor in weights(seed=seed)]


def test_shared_memory_takes_tensors_from_a_gpu(started: Readers) -> None:
    tensors = on_gpu()
    with SharedMemoryTransport(BUCKET, TIMEOUT_S).sender(["a"]) as sender:
        started.start([sender.source(0)], 0)
        assert send(sender, tensors).lost == {}
    assert started.reports() == [{"checksums": [weights_checksum(tensors)], "still": True, "taken": len(tensors)}]


@needs_two
def test_nccl_brings_every_bit_and_keeps_its_group(started: Readers) -> None:
    transport = CollectiveTransport("127.0.0.1", BUCKET, TIMEOUT_S)
    checksums = []
    for number in range(2):
        with transport.sender(["a"]) as sender:
            if number == 0:
                started.start([sender.source(0)] * 2, 0, CUDA_VISIBLE_DEVICES="1")
            checksums.append(send(sender, on_gpu(seed=number)).checksum)
    (report,) = started.reports()
    assert (report["checksums"], report["still"]) == (checksums, True)


@needs_two
@pytest.mark.parametrize("misdeed", ["dies", "leaves", "stops"])
def test_a_lost_nccl_member_is_an_error_within_the_timeout_and_a_new_group_works(
    started: Readers, misdeed: str
) -> None:
    transport = CollectiveTransport("127.0.0.1", BUCKET, TIMEOUT_S)
    with transport.sender(["a"]) as sender:
        process = started.start([sender.source(0)], 0, misdeed, at=3, CUDA_VISIBLE_DEVICES="1")
        begun = time.monotonic()
        with pytest.raises(WeightTransportError):
            # a process's death is what the pool tells the sender of; NCCL itself does not notice
            sender.send(on_gpu(), lambda: [0] if process.ended() else [])
    assert time.monotonic() - begun < TIMEOUT_S + 10
    started.reports()
    with transport.sender(["b"]) as sender:
        started.start([sender.source(0)], 0, CUDA_VISIBLE_DEVICES="1")
        send(sender, on_gpu())
    assert started.reports()[0]["still"]
