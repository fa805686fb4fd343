"""Give the engines the policy's current weights, announced first and verified as they flow."""

from __future__ import annotations

from megatron_rlpr.rollout.engine import Rollouts
from megatron_rlpr.weights.export import WeightExporter


class HandOver:
    """Sends the exporter's stream to the rollouts. All ranks call `send` together."""

    def __init__(self, exporter: WeightExporter, rollouts: Rollouts) -> None:
        self._exporter = exporter
        self._rollouts = rollouts
        self._manifest = exporter.manifest()

    def send(self, version: int) -> None:
        """Replace the engines' weights; afterwards their rollouts carry `version`. Raises WeightHandoverError."""
        self._rollouts.update_weights(self._manifest, self._exporter.stream(), version)
