"""Megatron-Core on a machine without CUDA.

Megatron-Core calls `torch.cuda` and creates tensors on "cuda" without asking whether there is one. `install()` sends
those calls to the CPU and does nothing where CUDA exists, so the same code path runs on both. What it changes:

- `torch.cuda.current_device/synchronize/current_stream/...`: called unconditionally by schedules, p2p and buffers;
- tensors made with a literal `device="cuda"`, and `.cuda()`: a torch function mode, because the sites are spread over
  the schedules, the optimizer, gradient clipping and checkpoint exchange;
- `Tensor.type()` inside the optimizer, which sorts parameters by comparing with 'torch.cuda.FloatTensor';
- the model-parallel random number tracker, which keeps CUDA generator states;
- mixtures of experts (`experts`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_rlpr.actor.cpu import experts

_MODE: TorchFunctionMode | None = None


class _CudaCallsOnCpu(TorchFunctionMode):
    """Rewrites requests for the CUDA device into requests for the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs:
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "cuda":
                kwargs = {**kwargs, "device": "cpu"}
            return func(*args, **kwargs)
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1:
            name = func(*args)
            caller = sys._getframe(1).f_code.co_filename.replace("\\", "/")
            return name.replace("torch.", "torch.cuda.", 1) if "megatron/core/optimizer/" in caller else name
        return func(*args)


class _NoStream:
    """Stands for a CUDA stream where all work is already ordered."""

    def wait(self, *_: Any) -> None: ...

    wait_stream = synchronize = wait

    def record_event(self, *_: Any) -> _NoStream:
        return self


@contextlib.contextmanager
def _fork(self: Any, name: str = "model-parallel-rng") -> Iterator[None]:
    """The tracker's fork() with the CPU generator: run with the named state, then restore the outer one."""
    if name not in self.states_:
        raise KeyError(f"random state {name} was never added")
    outer = torch.get_rng_state()
    torch.set_rng_state(self.states_[name])
    try:
        yield
    finally:
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(outer)


def install() -> None:
    """Make Megatron-Core usable without CUDA; no effect when CUDA is available or when already installed."""
    global _MODE
    if torch.cuda.is_available() or _MODE is not None:
        return
    import megatron.core.tensor_parallel.random as mcore

    cpu = torch.device("cpu")
    cuda: Any = torch.cuda
    cuda.current_device = lambda: cpu
    cuda.synchronize = lambda *_, **__: None
    cuda.current_stream = lambda *_, **__: _NoStream()
    cuda.default_stream = cuda.current_stream
    cuda.Stream = _NoStream
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.random.get_rng_state = cuda.get_rng_state
    cuda.manual_seed = lambda seed: torch.random.default_generator.manual_seed(seed)
    mcore._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    mcore.CudaRNGStatesTracker.fork = _fork
    experts.install()
    _MODE = _CudaCallsOnCpu()
    _MODE.__enter__()


def device() -> torch.device:
    """The device this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
