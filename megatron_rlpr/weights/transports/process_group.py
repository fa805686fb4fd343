"""A process group beside torch's default one, in which nobody waits for ever.

torch's `new_group` knows only members of the default group, which engines are not, so the backend is made directly over
a store of its own. vLLM's `StatelessProcessGroup` and `PyNcclCommunicator` know neither timeouts nor lost members.

Waiting is polling here: for the operation, for the group's "failed" key in the store, for the deadline. Whoever fails
sets that key and all others leave; gloo would hold them until its timeout, NCCL until its watchdog ends the process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_rlpr.system import quoting
from megatron_rlpr.weights.transports.interface import WeightTransportError

_POLL_S = 0.0005
_LOOK_EVERY_S = 0.05
_NOTICE_S = 2.0
_HERE, _FAILED = "here_{}", "failed"


class ProcessGroup:
    """One member's end of a group whose rank 0 broadcasts. Every method raises WeightTransportError when it fails."""

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        backend: str,
        address: str,
        timeout_s: float,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Meet the other members. store: a torch Store that only this group uses. backend: gloo or nccl.

        address: of this member's network interface (gloo). timeout_s: longest time an operation may take.
        look: called many times a second while waiting; may raise, which ends the group for all. Can be replaced.
        """
        self.rank = rank
        self.failed = False
        self._store = store
        self._timeout_s = timeout_s
        self.look = look
        self._backend: Any = None
        self._pending: list[Any] = []
        self._asked(lambda: store.set(_HERE.format(rank), ""))
        here = partial(self._asked, partial(store.check, [_HERE.format(member) for member in range(size)]))
        self._until(here, _LOOK_EVERY_S, "the other members of the group")
        self._check()  # rank 0 may have given up before the last came
        with self._ending_with():
            self._backend = _make_backend(backend, store, rank, size, address, timeout_s)

    def broadcast(self, tensor: torch.Tensor) -> Any:
        """Begin to send (rank 0) or receive a tensor, which must stay as it is until `wait` returns for the result."""
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        with self._ending_with():
            work = self._backend.broadcast([tensor], options)
        self._pending.append((work, tensor))
        return work

    def wait(self, work: Any) -> None:
        """Until the broadcast is done."""
        self._until(work.is_completed, _POLL_S, "a broadcast")
        with self._ending_with():
            work.wait()
        self._pending = [pending for pending in self._pending if pending[0] is not work]

    def fail(self, reason: str) -> WeightTransportError:
        """End the group for all members and leave it; returns the error to raise, with the first failure's reason."""

        def first_reason() -> str:
            if self._store.check([_FAILED]):
                return str(self._store.get(_FAILED).decode())
            self._store.set(_FAILED, reason)
            return reason

        if not self.failed:
            self.failed = True
            with contextlib.suppress(RuntimeError):  # a store that is gone is a sign of its own
                reason = _within(_NOTICE_S, first_reason)
            self.leave()
        return WeightTransportError(f"the group that carries the weights broke: {reason}")

    def leave(self) -> None:
        """Give up this member's end."""
        self.failed = True
        backend, pending, self._backend, self._pending = self._backend, self._pending, None, []
        if backend is None:
            return
        if isinstance(backend, dist.ProcessGroupGloo):
            # gloo's end waits for what is pending, up to its timeout; nobody here does
            threading.Thread(target=_outlive, args=(backend, pending), daemon=True, name="weights_group_end").start()
        else:
            backend.abort()

    def _until(self, done: Callable[[], bool], poll_s: float, what: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        looked = time.monotonic()
        while not done():
            if time.monotonic() - looked > _LOOK_EVERY_S:
                try:
                    self.look()
                except BaseException as error:
                    self.fail(quoting.reason(error))
                    raise
                self._check()
                looked = time.monotonic()
            if time.monotonic() > deadline:
                raise self.fail(f"rank {self.rank} waited {self._timeout_s:g} s for {what}")
            time.sleep(poll_s)

    def _check(self) -> None:
        if self._asked(lambda: self._store.check([_FAILED])):
            raise self.fail("another member failed")

    def _asked(self, question: Callable[[], Any]) -> Any:
        """The store's answer."""
        with self._ending_with():
            return _within(self._timeout_s, question)

    @contextlib.contextmanager
    def _ending_with(self) -> Iterator[None]:
        """What goes wrong inside ends the group for all."""
        try:
            yield
        except RuntimeError as error:
            raise self.fail(quoting.reason(error)) from error


def _within(seconds: float, question: Callable[[], Any]) -> Any:
    """The answer of a store, whose client waits for ever for a stopped server. RuntimeError when none comes in time."""
    answers: list[Any] = []
    errors: list[RuntimeError] = []

    def ask() -> None:
        try:
            answers.append(question())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="weights_group_store")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise RuntimeError(f"the sender's host gave no answer for {seconds:g} s")
    return answers[0]


def _make_backend(backend: str, store: Any, rank: int, size: int, address: str, timeout_s: float) -> Any:
    # Never before ours, which begins later: NCCL's watchdog would end the process; gloo would close the connections,
    # and the other members report that instead of who waited for what.
    patience = timedelta(seconds=3 * timeout_s)
    if backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = patience
        return dist.ProcessGroupNCCL(store, rank, size, options)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = patience
    return dist.ProcessGroupGloo(store, rank, size, options)


def _outlive(backend: Any, pending: Sequence[tuple[Any, torch.Tensor]]) -> None:
    """Hold a group and the memory of its operations until these have ended, one way or the other."""
    for work, _ in pending:
        with contextlib.suppress(RuntimeError):
            work.wait()
    del backend
