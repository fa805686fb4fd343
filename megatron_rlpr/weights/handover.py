"""Give the engines the policy's current weights: announced first, checksummed as they flow, confirmed by who took them.

Whatever takes weights is a `WeightReceiver`, wherever its engines are: in this process (`rollout.vllm`, views of the
live weights), or in others (`rollout.ray`, through one of `weights.transports`). A hand-over that any rank
could not finish, or whose engines hold other bytes than were sent, is never used: the engines are made anew and get the
weights once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.checksum import ChecksummedStream
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.receiver import Announcement, Confirmation, WeightHandoverError, WeightReceiver


@dataclass(frozen=True)
class HandOverReport:
    """What one hand-over exported on this rank (0 bytes when the receiver wants no weights).

    checksum: see `weights.checksum`; the same on every rank, and for the same weights in any layout.
    """

    version: int
    nbytes: int
    checksum: str


class HandOver:
    """Sends the exporter's stream to the rollouts. All ranks call `send` together."""

    def __init__(self, exporter: WeightExporter, rollouts: WeightReceiver) -> None:
        self._exporter = exporter
        self._rollouts = rollouts
        self.repeated = 0
        """Hand-overs that failed and were repeated with new engines."""
        self.checksum = ""
        """Of the weights that the engines hold: the same on every rank, and for the same weights in any layout."""

    def send(self, version: int) -> HandOverReport:
        """Replace the engines' weights; afterwards their responses carry `version`.

        Raises on every rank when the second attempt fails on any: this rank's own error, or WeightHandoverError. A
        user's mistake is raised at once.
        """
        for may_repeat in (True, False):
            report, failure = self._attempt(version)
            if _on_every_rank(failure is None):
                self.checksum = report.checksum
                return report
            if not (may_repeat and _on_every_rank(not isinstance(failure, UserError))):
                break
            self.repeated += 1
            self._rollouts.rebuild_engines()
        raise failure or WeightHandoverError(f"hand-over {version} failed on another rank")

    def _attempt(self, version: int) -> tuple[HandOverReport, Exception | None]:
        """One stream from end to end, whatever the receiver does: the other ranks' gathers wait for this rank."""
        stream = ChecksummedStream(self._exporter)
        failure: Exception | None = None
        confirmation: Confirmation | None = None
        try:
            confirmation = self._rollouts.update_weights(Announcement(self._exporter.manifest(), version), stream)
        except Exception as error:
            failure = error
        # A receiver without engines, on every rank alike, took nothing, and the export costs nothing.
        if failure is not None or confirmation is not None or stream.nbytes:
            stream.finish()
        report = HandOverReport(version, stream.nbytes, stream.checksum)
        if failure is None and confirmation not in (None, Confirmation(version, stream.checksum)):
            failure = WeightHandoverError(
                f"hand-over {version} sent weights with checksum {stream.checksum}, engines hold {confirmation}"
            )
        return report, failure


def _on_every_rank(fine: bool) -> bool:
    if dist.get_world_size() == 1:
        return fine
    flag = torch.tensor([int(fine)])
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())
