"""Give the engines the policy's current weights: announced first, checksummed as they flow, confirmed by who took them.

Whatever takes weights is a `WeightReceiver`, wherever its engines are: in this process (`rollout.vllm`, views of the
live weights, or the slices that its rank of an engine holds), or in others (`rollout.ray`, through one of
`weights.transports`). A hand-over that any rank could not finish, or whose engines hold other bytes than were sent, or
in which two ranks sent different bytes for the same, is never used: the engines are made anew and get the weights once
more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.receiver import Announcement, Confirmation, Sent, WeightHandoverError, WeightReceiver


@dataclass(frozen=True)
class HandOverReport:
    """What one hand-over exported on this rank (0 bytes when the receiver wants no weights).

    checksum: see `weights.checksum`; the same on every rank, and for the same weights in any layout of the policy. Of
    slices: of all ranks' of an engine. received: most bytes that a rank got from others for the export.
    """

    version: int
    nbytes: int
    checksum: str
    received: int


@dataclass(frozen=True)
class _Attempt:
    """What all ranks tell each other. user: whether it failed by a user's mistake. checksum: of what it exported."""

    fine: bool
    user: bool
    engine_rank: int
    checksum: str
    received: int


class HandOver:
    """Sends the exporter's stream to the rollouts. All ranks call `send` together."""

    def __init__(self, exporter: WeightExporter, rollouts: WeightReceiver) -> None:
        self._exporter = exporter
        self._rollouts = rollouts
        self.repeated = 0
        """Hand-overs that failed and were repeated with new engines."""
        self.checksum = ""
        """Of the weights that the engines hold: the same on every rank, and for the same weights in any layout of the
        policy."""
        self.received = 0
        """Most bytes that a rank got from others in the last hand-over, for the export."""
        self._sent: Sent | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last hand-over, by their names in `tracking.metric_names`."""
        found: dict[str, float] = {
            "weights/hand_overs_repeated": self.repeated,
            "weights/bytes_received": self.received,
        }
        if self._sent is not None:
            found |= {"weights/bytes_sent": self._sent.nbytes, "weights/delta_density": self._sent.density}
        return found

    def send(self, version: int) -> HandOverReport:
        """Replace the engines' weights; afterwards their responses carry `version`.

        Raises on every rank when the second attempt fails on any: this rank's own error, or WeightHandoverError. A
        user's mistake is raised at once.
        """
        for may_repeat in (True, False):
            stream, failure = self._attempt(version)
            user = isinstance(failure, UserError)
            mine = _Attempt(failure is None, user, self._exporter.engine.rank, stream.checksum, self._exporter.received)
            attempts = _of_every_rank(mine)
            fine = all(attempt.fine for attempt in attempts)
            if fine and _same_weights(attempts):
                self.checksum, self.received = _checksum_of_all(attempts), max(a.received for a in attempts)
                return HandOverReport(version, stream.nbytes, self.checksum, self.received)
            if fine:
                failure = WeightHandoverError(f"hand-over {version}: ranks exported different weights for the same")
            if not may_repeat or any(attempt.user for attempt in attempts):
                break
            self.repeated += 1
            self._rollouts.rebuild_engines()
        raise failure or WeightHandoverError(f"hand-over {version} failed on another rank")

    def _attempt(self, version: int) -> tuple[ChecksummedStream, Exception | None]:
        """One stream from end to end, whatever the receiver does: the other ranks' gathers wait for this rank."""
        exporter, failure = self._exporter, None
        stream = ChecksummedStream(exporter)
        confirmation: Confirmation | None = None
        self._sent = None
        try:
            announced = Announcement(exporter.manifest(), version, exporter.engine)
            confirmation = self._rollouts.update_weights(announced, stream)
            self._sent = None if confirmation is None else confirmation.sent
        except Exception as error:
            failure = error
        # A receiver without engines, on every rank alike, took nothing, and the export costs nothing.
        if failure is not None or confirmation is not None or stream.nbytes:
            stream.finish()
        said = confirmation is None or confirmation.says(version, exporter.engine, stream.checksum)
        if failure is None and not said:
            failure = WeightHandoverError(
                f"hand-over {version} sent weights with checksum {stream.checksum}, engines hold {confirmation}"
            )
        return stream, failure


def _of_every_rank(mine: _Attempt) -> list[_Attempt]:
    if dist.get_world_size() == 1:
        return [mine]
    found = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def _same_weights(attempts: Sequence[_Attempt]) -> bool:
    """Whether ranks that exported for the same engine rank exported the same."""
    return len({(a.engine_rank, a.checksum) for a in attempts}) == len({a.engine_rank for a in attempts})


def _checksum_of_all(attempts: Sequence[_Attempt]) -> str:
    """That of whole tensors as it is; of slices, one of all engine ranks'."""
    of_rank = {attempt.engine_rank: attempt.checksum for attempt in attempts}
    if len(of_rank) == 1:
        return attempts[0].checksum
    lines = "\n".join(f"{rank} {of_rank[rank]}" for rank in sorted(of_rank))
    return hashlib.sha256(lines.encode()).hexdigest()[:32]
