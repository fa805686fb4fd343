"""Weights broadcast over gloo to real processes: a lost member is an error for all, at once or within the timeout."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from transport_readers import LAST_RESORT_S, Readers, failing_sender, readers, send, weights

from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.transports.collective import CollectiveTransport
from megatron_rlpr.weights.transports.interface import WeightTransportError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="gloo's; with CUDA see tests/gpu")

BUCKET = 40_000
GIVEN_UP_S = 6.0
"""After which a group is given up of which a member is stopped: what such a test costs."""


@pytest.fixture
def started() -> Iterator[Readers]:
    with readers() as found:
        yield found


def transport(bucket: int = BUCKET, timeout_s: float = LAST_RESORT_S) -> CollectiveTransport:
    return CollectiveTransport("127.0.0.1", bucket, timeout_s)


@pytest.mark.parametrize(("bucket", "count"), [(1000, 1), (BUCKET, 3), (10**7, 2)])
def test_every_reader_gets_every_bit_and_keeps_it(started: Readers, bucket: int, count: int) -> None:
    tensors = weights()
    with transport(bucket).sender([f"reader {n}" for n in range(count)]) as sender:
        for worker in range(count):
            started.start([sender.source(0)], worker)
        sent = send(sender, tensors)
    assert sent.lost == {}
    assert (
        started.reports() == [{"checksums": [weights_checksum(tensors)], "still": True, "taken": len(tensors)}] * count
    )


def test_the_group_goes_on_while_its_members_stay_and_is_made_anew_for_others(started: Readers) -> None:
    kept = transport()
    groups, checksums = [], []
    for number, members in enumerate((["a", "b"], ["a", "b"], ["a", "new b"])):
        with kept.sender(members) as sender:
            groups.append((sender.source(0), sender.group))
            if number != 1:
                sources = [sender.source(0)] * (2 if number == 0 else 1)
                for worker in range(2):
                    started.start(sources, worker)
            checksums.append(send(sender, weights(seed=number)).checksum)
        if number == 1:
            assert [report["checksums"] for report in started.reports()] == [checksums] * 2
    assert [report["checksums"] for report in started.reports()] == [checksums[2:]] * 2
    assert groups[1][1] is not None
    assert groups[1][0] == groups[0][0] != groups[2][0]
    assert groups[2][1] is None


@pytest.mark.parametrize("misdeed", ["dies", "leaves", "stops"])
def test_a_lost_member_is_an_error_for_all_within_the_timeout(
    started: Readers, misdeed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops cannot say so; the sender waits for it for the whole timeout, and tells the others then."""
    if misdeed == "stops":  # it looks seldom: were gloo's limit the same, its closed connections would be the reason
        monkeypatch.setattr("megatron_rlpr.weights.transports.process_group._POLL_S", 0.7 * GIVEN_UP_S)
    kept = transport(timeout_s=GIVEN_UP_S if misdeed == "stops" else LAST_RESORT_S)
    with kept.sender(["a", "b", "c"]) as sender:
        for worker in range(3):
            started.start([sender.source(0)], worker, misdeed if worker == 1 else "", at=3)
        with pytest.raises(WeightTransportError, match="the group that carries the weights broke"):
            send(sender, weights(rows=4000))
    first, _, last = started.reports()
    for report in (first, last):
        assert "WeightTransportError: the group that carries the weights broke" in report["error"]
        if misdeed == "stops":  # their own patience would have been longer
            assert "rank 0 waited 6 s" in report["error"]
    with kept.sender(["a", "c"]) as sender:  # and the transport goes on without it
        for worker in range(2):
            started.start([sender.source(0)], worker)
        send(sender, weights())
    assert all(report["still"] for report in started.reports())


def test_a_member_that_is_known_to_have_ended_is_not_waited_for(started: Readers) -> None:
    with transport().sender(["a", "b"]) as sender:
        started.start([sender.source(0)], 0)
        with pytest.raises(WeightTransportError, match="reader 1 ended its update"):
            send(sender, weights(), ended=[1])
    assert "reader 1 ended its update" in started.reports()[0]["error"]


def test_a_member_that_never_comes_is_an_error_within_the_timeout() -> None:
    with (
        transport(timeout_s=1.0).sender(["a"]) as sender,
        pytest.raises(WeightTransportError, match="waited 1 s for the other members"),
    ):
        send(sender, weights())


def test_a_stream_that_breaks_is_never_taken_for_the_whole(started: Readers) -> None:
    def breaking() -> Iterator:
        yield from weights()[:5]
        raise OSError("the exporter went away")

    kept = transport()

    def attempt() -> None:
        with kept.sender(["a", "b"]) as sender:
            for worker in range(2):
                started.start([sender.source(0)], worker)
            send(sender, breaking())

    with pytest.raises(OSError, match="the exporter went away"):
        attempt()
    for report in started.reports():
        assert "the trainer gave up: the exporter went away" in report["error"]


def test_a_failed_group_holds_neither_side_up() -> None:
    """gloo's own end waits for what is pending; this process must not, and leaves no group behind."""
    before = threading.active_count()
    with transport(timeout_s=2.0).sender(["a"]) as sender, pytest.raises(WeightTransportError):
        send(sender, weights())
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize(("signal_name", "given_up_s"), [("SIGKILL", LAST_RESORT_S), ("SIGSTOP", 2.0)])
def test_a_sender_that_dies_or_stops_leaves_no_reader_waiting(
    started: Readers, signal_name: str, given_up_s: float
) -> None:
    with failing_sender(f'CollectiveTransport("127.0.0.1", 40_000, {given_up_s})', signal_name) as (_, source):
        started.start([source], 0)
        (report,) = started.reports()
        assert "WeightTransportError" in report["error"]
