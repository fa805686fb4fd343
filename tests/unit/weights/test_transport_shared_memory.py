"""Weights through shared memory to real processes, some of which die, stop or leave in the middle of the stream."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from transport_readers import LAST_RESORT_S, Readers, failing_sender, readers, send, stopped, weights

from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.transports.interface import WeightTransportError
from megatron_rlpr.weights.transports.shared_memory import SharedMemoryTransport

BUCKET = 40_000
GIVEN_UP_S = 6.0
"""After which a reader is lost that is stopped or does not come: what such a test costs."""


@pytest.fixture
def started() -> Iterator[Readers]:
    with readers() as found:
        yield found


def transport(bucket: int = BUCKET, timeout_s: float = LAST_RESORT_S) -> SharedMemoryTransport:
    return SharedMemoryTransport(bucket, timeout_s)


def mapped(pid: int) -> int:
    """Bytes of weight segments that a process maps."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "megatron_rlpr_weights" in line]
    return sum(int(stop, 16) - int(start, 16) for start, stop in spans)


@pytest.mark.parametrize("bucket", [1000, BUCKET, 10**7])
def test_every_reader_gets_every_bit_and_keeps_it(started: Readers, bucket: int) -> None:
    tensors = weights()
    assert bucket > 10**6 or max(t.nbytes for _, t in tensors) > bucket
    with transport(bucket).sender(["a", "b", "c"]) as sender:
        for first, worker in ((0, 0), (1, 0), (1, 1)):
            started.start([sender.source(first)], worker)
        sent = send(sender, tensors)
    assert sent.lost == {}
    assert sent.checksum == weights_checksum(tensors)
    expected = {"checksums": [sent.checksum], "still": True, "taken": len(tensors)}
    assert started.reports() == [expected] * 3


def test_the_segment_is_one_bucket_and_is_gone_afterwards(started: Readers) -> None:
    before, files = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    here: list[int] = []
    there: list[int] = []

    def observed() -> Iterator:
        for name, tensor in weights():
            yield name, tensor
            here.append(mapped(os.getpid()))
            there.append(mapped(process.pid))

    with transport().sender(["a"]) as sender:
        process = started.start([sender.source(0)], 0)
        send(sender, observed())
        names = set(os.listdir("/dev/shm")) - before
        assert not [name for name in names if name in Path("/proc/self/maps").read_text()], "the segment has no name"
    assert set(here) == {-(-BUCKET // 4096) * 4096} == {max(there)}
    assert mapped(os.getpid()) == 0
    assert len(os.listdir("/proc/self/fd")) == files
    assert started.reports()[0]["still"]


@pytest.mark.parametrize(
    ("misdeed", "reason"), [("dies", "went away"), ("leaves", "went away"), ("stops", "took no weights for 6 s")]
)
def test_a_lost_reader_is_named_and_the_others_get_everything(started: Readers, misdeed: str, reason: str) -> None:
    tensors = weights()
    with transport(timeout_s=GIVEN_UP_S if misdeed == "stops" else LAST_RESORT_S).sender(["a", "b", "c"]) as sender:
        for worker in range(3):
            started.start([sender.source(0)], worker, misdeed if worker == 1 else "", at=3)
        sent = send(sender, tensors)
    assert list(sent.lost) == [1]
    assert reason in sent.lost[1]
    first, lost, last = started.reports()
    assert first == last == {"checksums": [weights_checksum(tensors)], "still": True, "taken": len(tensors)}
    assert "checksums" not in lost


def test_a_slow_reader_is_waited_for(started: Readers) -> None:
    with transport().sender(["a", "b"]) as sender:
        started.start([sender.source(0)], 0)
        started.start([sender.source(0)], 1, "is slow", at=2)
        assert send(sender, weights()).lost == {}
    assert all(report["still"] for report in started.reports())


def test_readers_that_never_come_or_are_known_to_have_ended_are_not_waited_for(started: Readers) -> None:
    with transport(timeout_s=GIVEN_UP_S).sender(["a", "b", "c"]) as sender:
        started.start([sender.source(0)], 0)
        sent = send(sender, weights(), ended=[1])
    assert "ended its update" in sent.lost[1]
    assert "did not come for its weights" in sent.lost[2]
    assert started.reports()[0]["still"]


def test_when_all_readers_are_lost_the_stream_is_not_taken_further(started: Readers) -> None:
    taken: list[str] = []

    def counted() -> Iterator:
        for name, tensor in weights(count=40):
            taken.append(name)
            yield name, tensor

    with transport().sender(["a"]) as sender:
        started.start([sender.source(0)], 0, "dies", at=1)
        assert list(send(sender, counted()).lost) == [0]
    assert len(taken) < 40


def test_a_stream_that_breaks_is_never_taken_for_the_whole(started: Readers) -> None:
    def breaking() -> Iterator:
        yield from weights()[:5]
        raise OSError("the exporter went away")

    with transport().sender(["a", "b"]) as sender:
        for worker in range(2):
            started.start([sender.source(0)], worker)
        with pytest.raises(OSError, match="the exporter went away"):
            send(sender, breaking())
    for report in started.reports():
        assert report["error"].startswith("WeightTransportError: the stream of weights broke off")


def test_a_reader_that_comes_after_the_end_is_told(started: Readers) -> None:
    with transport().sender(["a"]) as sender:
        source = pickle.loads(pickle.dumps(sender.source(0)))
    with pytest.raises(WeightTransportError, match="not there any more"):
        next(source.receive(0))


@pytest.mark.parametrize(("signal_name", "given_up_s"), [("SIGKILL", LAST_RESORT_S), ("SIGSTOP", 2.0)])
def test_a_sender_that_dies_or_stops_leaves_no_reader_waiting(signal_name: str, given_up_s: float) -> None:
    with failing_sender(f"SharedMemoryTransport(40_000, {given_up_s})", signal_name) as (process, source):
        received = source.receive(0)
        with pytest.raises(WeightTransportError, match="timed out" if signal_name == "SIGSTOP" else "broke off|reset"):
            list(received)
        if signal_name == "SIGKILL":
            process.wait()
        else:
            assert stopped(process.pid)
    assert not any("megatron_rlpr_weights" in file.path for file in psutil.Process().open_files())
