"""Weights are verified before and while they flow into an engine.

An engine that meets a wrong shape half-way through a reload stays broken, and a weight that never comes keeps its old
value without an error. So an update is announced by a manifest, which is compared with the model folder before the
first tensor moves, and the stream is then checked against its manifest tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from megatron_rlpr.rollout.vllm.limits import read_model_config
from megatron_rlpr.weights.hf_folder import OUTPUT_HEAD, HfFolder
from megatron_rlpr.weights.receiver import WeightHandoverError

_NAMED_PER_FAULT = 5


def required_weights(model_path: str | Path) -> tuple[dict[str, tuple[int, ...]], bool]:
    """(name -> shape of the weights an engine needs, whether the output head is tied to the input embedding).

    Without the tied head, which many folders store again, and without rotary tables, which old folders store.
    """
    tied = bool(read_model_config(model_path).tie_word_embeddings)
    shapes = HfFolder(model_path).shapes()
    if tied:
        shapes.pop(OUTPUT_HEAD, None)
    return shapes, tied


def check_manifest(
    manifest: Mapping[str, tuple[int, ...]], required: Mapping[str, tuple[int, ...]], tied_head: bool
) -> None:
    """Raise one WeightHandoverError that names missing, unexpected and wrongly shaped weights.

    tied_head: the manifest may hold "lm_head.weight" though nobody requires it.
    """
    found = {
        "missing": required.keys() - manifest.keys(),
        "unexpected": manifest.keys() - required.keys() - ({OUTPUT_HEAD} if tied_head else set()),
        "wrong shape": {
            f"{name} is {list(manifest[name])}, expected {list(required[name])}"
            for name in required.keys() & manifest.keys()
            if tuple(manifest[name]) != tuple(required[name])
        },
    }
    faults = [f"{kind}: {_shortened(sorted(names))}" for kind, names in found.items() if names]
    if faults:
        raise WeightHandoverError("weights do not fit the engine's model; " + "; ".join(faults))


class VerifiedStream:
    """Iterates over (name, tensor) of an announced update and stops passing tensors on at the first fault.

    It never raises, since an exception inside an engine's loader breaks the engine for good while a stream that
    ends early leaves it loadable; look at `failure` afterwards. After a fault of a tensor the rest of the source is
    still consumed: its gathers are collective, and the other ranks wait in them.
    """

    def __init__(
        self, manifest: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, torch.Tensor]], skip: frozenset[str]
    ) -> None:
        """skip: announced names that are checked but not passed on."""
        self.failure: Exception | None = None
        self._manifest = manifest
        self._tensors = tensors
        self._skip = skip

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        waiting = set(self._manifest)
        source = iter(self._tensors)
        while True:
            try:
                name, tensor = next(source)
            except StopIteration:
                break
            except Exception as error:
                self.failure = self.failure or error
                return
            if self.failure is None:
                self.failure = self._fault(name, tensor, waiting)
            if self.failure is None:
                waiting.discard(name)
                if name not in self._skip:
                    yield name, tensor
        if waiting and self.failure is None:
            self.failure = WeightHandoverError("the weight stream ended early; missing: " + _shortened(sorted(waiting)))

    def _fault(self, name: str, tensor: torch.Tensor, waiting: set[str]) -> WeightHandoverError | None:
        if name not in self._manifest:
            return WeightHandoverError(f"the weight stream holds {name}, which its manifest does not announce")
        if name not in waiting:
            return WeightHandoverError(f"the weight stream holds {name} twice")
        if tuple(tensor.shape) != tuple(self._manifest[name]):
            return WeightHandoverError(
                f"the weight stream holds {name} with shape {list(tensor.shape)}; its manifest announced "
                f"{list(self._manifest[name])}"
            )
        return None


def _shortened(items: list[str]) -> str:
    shown = ", ".join(items[:_NAMED_PER_FAULT])
    return shown if len(items) <= _NAMED_PER_FAULT else f"{shown} and {len(items) - _NAMED_PER_FAULT} more"
