"""Who reads a stream of changes gets the whole weights, bit for bit; who lacks their base takes none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_readers import LAST_RESORT_S, readers, send, weights

from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.receiver import WeightHandoverError
from megatron_rlpr.weights.transports import delta
from megatron_rlpr.weights.transports.collective import CollectiveTransport
from megatron_rlpr.weights.transports.delta import DeltaSender, DeltaSource, DeltaStream
from megatron_rlpr.weights.transports.interface import InProcess, NamedTensor, WeightTransport
from megatron_rlpr.weights.transports.shared_memory import SharedMemoryTransport


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    delta._kept.clear()
    yield
    delta._kept.clear()


def moved(tensors: list[NamedTensor], density: float, seed: int = 0) -> list[NamedTensor]:
    """As a step leaves them: some values of each are others."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name, tensor in tensors:
        raw = tensor.clone().view(-1).view(torch.uint8)
        if tensor.dtype != torch.bool:
            each = raw.view(-1, tensor.itemsize)
            each[torch.rand(len(each), generator=generator) < density] ^= 1
        found.append((name, raw.view(tensor.dtype).view(tensor.shape)))
    return found


def take(stream: DeltaStream, worker: int = 0) -> list[NamedTensor]:
    """All that a worker in this process reads; its tensors must be its own."""
    found = []
    travelled = ((name, tensor.clone()) for name, tensor in stream)
    for name, tensor in stream.source(InProcess(travelled)).receive(worker):
        found.append((name, tensor.clone()))
        if tensor.is_floating_point():
            tensor.zero_()  # as an engine may use what it gets
    return found


@given(densities=st.lists(st.sampled_from([0.0, 0.001, 0.05, 1.0]), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_hand_over_after_hand_over_brings_the_whole_weights(densities: list[float], seed: int) -> None:
    delta._kept.clear()
    sender, now, held = DeltaSender(), weights(seed=seed, rows=20), [0]
    for edition, density in enumerate(densities, start=1):
        stream = sender.stream(now, edition, held)
        assert weights_checksum(take(stream)) == weights_checksum(now)
        assert sender.sent is not None
        whole = sum(tensor.nbytes for _, tensor in now)
        if edition == 1:
            assert (sender.sent.nbytes, sender.sent.density) == (whole, 1.0)
        else:
            assert sender.sent.nbytes <= whole
        held, now = [edition], moved(now, density, seed + edition)


def test_density_and_bytes_are_those_of_the_changes() -> None:
    before = [("a", torch.zeros(100, 100, dtype=torch.bfloat16)), ("b", torch.ones(50, dtype=torch.bfloat16))]
    after = [(name, tensor.clone()) for name, tensor in before]
    after[0][1][::50, 3] = 2.0
    sender = DeltaSender()
    take(sender.stream(before, 1, [0, 0]))
    assert take(sender.stream(after, 2, [1, 1]))[0][1].equal(after[0][1])
    assert sender.sent is not None
    assert sender.sent.density == 2 / 10050
    # how many, twice; two values; the gaps 3 and 4999 = 19 * 255 + 154
    assert sender.sent.nbytes == 2 * 8 + 2 * 2 + 1 + 20


def test_a_new_engine_gets_all_and_the_next_changes_go_to_both() -> None:
    first, second = weights(), moved(weights(), 0.01)
    sender = DeltaSender()
    take(sender.stream(first, 1, [0]), worker=0)
    for name, tensor in first:  # the policy's own are trained in place
        assert torch.equal(sender._tensors[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    again = sender.stream(first, 1, [0])
    assert again.base is None
    take(again, worker=1)
    both = sender.stream(second, 2, [1, 1])
    assert both.base == 1
    sent = list(both)
    for worker in (0, 1):
        got = list(both.source(InProcess(sent)).receive(worker))
        assert weights_checksum(got) == weights_checksum(second)


@pytest.mark.parametrize("held", [[0], [1, 0], [-1, 1], [None], [2]])
def test_engines_of_which_one_holds_something_else_get_all(held: list[int | None]) -> None:
    sender = DeltaSender()
    take(sender.stream(weights(), 1, [0]))
    assert sender.stream(weights(), 2, held).base is None


def test_after_a_stream_that_broke_off_everything_goes_whole() -> None:
    first, second = weights(), moved(weights(), 0.01)
    sender = DeltaSender()
    take(sender.stream(first, 1, [0]))
    broken = iter(sender.stream(second, 2, [1]))
    for _ in range(5):
        next(broken)
    broken.close()  # type: ignore[attr-defined]
    after = sender.stream(second, 3, [1])
    assert after.base is None
    assert weights_checksum(take(after)) == weights_checksum(second)


def test_a_worker_that_left_a_stream_has_no_base_for_the_next() -> None:
    sender = DeltaSender()
    take(sender.stream(weights(), 1, [0]))
    second = sender.stream(moved(weights(), 0.01), 2, [1])
    sent = list(second)
    left = second.source(InProcess(sent)).receive(0)
    next(left)
    left.close()  # type: ignore[attr-defined]
    with pytest.raises(WeightHandoverError, match="worker 0 has kept nothing"):
        list(second.source(InProcess(sent)).receive(0))


def test_changes_of_another_base_are_refused_before_any_of_them_is_taken() -> None:
    """Whatever the sender believes: two runs, or two streams of one, never have the same name."""
    mine, others = DeltaSender(), DeltaSender()
    take(others.stream(weights(seed=1), 1, [0]))
    list(mine.stream(weights(), 1, [0]))
    changes = mine.stream(moved(weights(), 0.01), 2, [1])
    assert changes.base == 1
    with pytest.raises(WeightHandoverError, match=r"changes of stream .* 1 came, but worker 0 has kept stream"):
        next(iter(changes.source(InProcess(changes)).receive(0)))


def test_a_damaged_code_is_refused() -> None:
    sender = DeltaSender()
    take(sender.stream(weights(), 1, [0]))
    changes = sender.stream(moved(weights(), 0.01), 2, [1])
    sent = [
        (name, tensor[:-1] if name.endswith("#changes") and len(tensor) > 8 else tensor) for name, tensor in changes
    ]
    with pytest.raises(WeightHandoverError, match="damaged"):
        list(changes.source(InProcess(sent)).receive(0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo's; with CUDA see tests/gpu")
@pytest.mark.parametrize("kind", ["shared memory", "broadcasts"])
def test_processes_get_the_same_through_either_transport(kind: str) -> None:
    """Three hand-overs to the two workers of an engine, and what they took from the first ones stays as it is."""
    editions = [weights(), moved(weights(), 0.01, 1), moved(moved(weights(), 0.01, 1), 0.02, 2)]
    delta_sender, nbytes = DeltaSender(), []
    with readers() as processes, ExitStack() as stack:
        senders = [stack.enter_context(transport(kind).sender(["a", "b"])) for _ in editions]
        names = [delta_sender.name(edition) for edition in (None, 1, 2, 3)]
        for worker in range(2):
            sources = [DeltaSource(s.source(0), names[i + 1], names[i]) for i, s in enumerate(senders)]
            processes.start(sources, worker)
        for edition, (sender, tensors) in enumerate(zip(senders, editions, strict=True), start=1):
            assert send(sender, delta_sender.stream(tensors, edition, [edition - 1] * 2)).lost == {}
            assert delta_sender.sent is not None
            nbytes.append(delta_sender.sent.nbytes)
        checksums = [weights_checksum(tensors) for tensors in editions]
        assert processes.reports() == [{"checksums": checksums, "still": True, "taken": len(editions[0])}] * 2
    assert max(nbytes[1:]) < nbytes[0] / 5


def transport(kind: str) -> WeightTransport:
    if kind == "broadcasts":
        return CollectiveTransport("127.0.0.1", 4096, LAST_RESORT_S)
    return SharedMemoryTransport(4096, LAST_RESORT_S)
