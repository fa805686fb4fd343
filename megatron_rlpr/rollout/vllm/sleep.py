"""A vLLM engine's memory between two phases, in the one order that works:

    generate -> sleep -> (the policy trains) -> wake the weights -> load all of them -> wake the cache -> generate

Level 2 throws weights and key/value cache away. Weights that are awake and not loaded are garbage, a scheduler that is
not fully awake waits for ever, and vLLM only warns of tags that it does not wake; so whatever comes out of order is an
error here. Without CUDA vLLM does all of this but to free memory: the scheduler pauses and the tags sleep.
"""

from __future__ import annotations

import gc
from enum import Enum
from typing import Any

import torch

from megatron_rlpr.rollout.engine import RolloutError

LEVEL = 2
_WEIGHTS, _CACHE = ["weights"], ["kv_cache"]


class Wakefulness(Enum):
    """What of an engine has memory."""

    AWAKE = "is awake"
    WEIGHTS = "has memory for its weights alone"
    ASLEEP = "is asleep"


class Sleep:
    """One engine's. A call that fails leaves it as it was told to be: it must be made anew then."""

    def __init__(self, llm: Any) -> None:
        """llm: vLLM's LLM, just started; None: of an engine that is not there."""
        self._llm = llm
        self.state = Wakefulness.AWAKE

    def sleep(self) -> None:
        """Give up weights and cache. Nothing may be in flight: vLLM would abort it."""
        self._expect(Wakefulness.AWAKE, "fall asleep")
        self.state = Wakefulness.ASLEEP
        self._llm.sleep(level=LEVEL)
        if not self._llm.llm_engine.is_sleeping():
            raise RolloutError("vLLM was told to sleep and does not")

    def wake_weights(self) -> None:
        """Take memory for the weights. They are garbage until all are loaded."""
        self._expect(Wakefulness.ASLEEP, "wake its weights")
        self.state = Wakefulness.WEIGHTS
        if self._llm.wake_up(tags=_WEIGHTS):
            raise RolloutError("vLLM woke its cache together with its weights")

    def wake_cache(self) -> None:
        """Take memory for the key/value cache, after the weights were loaded, and go on with requests."""
        self._expect(Wakefulness.WEIGHTS, "wake its cache")
        self.state = Wakefulness.AWAKE
        if not self._llm.wake_up(tags=_CACHE):
            raise RolloutError("vLLM did not wake its cache")

    def release(self) -> None:
        """Before another engine is started in this process: hand all memory back to the system.

        vLLM's allocator is one per process and refuses a second engine while it holds memory of the first. It can free
        only what is mapped. The workers alone are shut down: the engine's own shutdown ends Megatron's process groups.
        """
        if self._llm is None:
            return
        if self.state is not Wakefulness.AWAKE:
            self._llm.wake_up()
        if torch.cuda.is_available():
            self._llm.collective_rpc("shutdown")
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _expect(self, state: Wakefulness, what: str) -> None:
        if self.state is not state:
            raise RolloutError(f"the engine cannot {what}: it {self.state.value}")
