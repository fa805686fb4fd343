"""Transformer Engine and Megatron-Core's layers of it on a machine without CUDA: `install()` before either is imported.

Transformer Engine lies in a folder of its own, build/transformer_engine (`TE_FOLDER` names another): where it can be
seen, Megatron-Core takes its layers and optimizer, so it must not be on the path of any other process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

KERNELS = Path(__file__).parent
ROOT = KERNELS.parents[2]
CAPABILITY = {"mxfp8": (10, 0)}
"""Compute capability that a recipe needs, where it is not 9.0's."""


def install() -> None:
    """Make Transformer Engine importable, computing with the kernels of this folder. Does nothing the second time."""
    if "transformer_engine" in sys.modules:
        return
    assert "megatron.core" not in sys.modules, "Megatron-Core has been imported without Transformer Engine"
    folder = Path(os.environ.get("TE_FOLDER", ROOT / "build" / "transformer_engine"))
    if not (folder / "transformer_engine").is_dir():
        raise FileNotFoundError(f"{folder} holds no Transformer Engine: ./setup_env.sh cpu puts it there")
    sys.path += [str(folder), str(KERNELS)]
    from bf16_products import Bf16Products

    from megatron_rlpr.actor.cpu import megatron as megatron_on_cpu

    pretend_gpu()
    torch.version.cuda = "13.0"
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.empty_cache = lambda: None
    _import_transformer_engine()
    _answer_for_cuda_in_transformer_engine()
    Bf16Products().__enter__()  # first: the next one looks at who called
    megatron_on_cpu.install()
    _enter_in_backward(Bf16Products, type(megatron_on_cpu._MODE))
    _gather_one_by_one()


def pretend_gpu(recipe: str = "") -> None:
    """Be the GPU that a recipe needs. It decides which recipes are allowed and which copies of FP8 tensors are kept."""
    major, minor = CAPABILITY.get(recipe, (9, 0))
    torch.cuda.get_device_capability = lambda *_, **__: (major, minor)
    properties = SimpleNamespace(
        major=major, minor=minor, multi_processor_count=132, name="none", total_memory=80 << 30
    )
    torch.cuda.get_device_properties = lambda *_, **__: properties
    if "transformer_engine.pytorch" in sys.modules:
        from transformer_engine.pytorch import quantization, utils

        utils._get_device_compute_capability.cache_clear()
        utils.is_non_tn_fp8_gemm_supported.cache_clear()
        for name in ("_FP8_SUPPORT", "_MXFP8_SUPPORT", "_NVFP4_SUPPORT", "_FP8_BLOCK_SCALING_SUPPORT"):
            setattr(quantization, name, None)


def _import_transformer_engine() -> None:
    """Its Python without its compiled libraries: the package object is made here, because its own first line loads
    them."""
    import transformer_engine_torch  # noqa: F401 - the kernels of this folder, instead of the compiled module

    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # Transformer Engine's own switch against loading cuDNN and the like
    os.environ["NVTE_TORCH_COMPILE"] = "0"  # compiling a few additions for a CPU takes a minute
    spec = importlib.util.find_spec("transformer_engine")
    assert spec is not None
    package: Any = importlib.util.module_from_spec(spec)
    package.__version__ = importlib.metadata.version("transformer_engine")
    sys.modules["transformer_engine"] = package
    import transformer_engine.common as common

    common.load_framework_extension = lambda _: None
    package.common = common
    import transformer_engine.pytorch

    package.pytorch = transformer_engine.pytorch


class _SaysCuda(TorchFunctionMode):
    """Every tensor says that it is on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func == torch.Tensor.is_cuda.__get__ else func(*args, **(kwargs or {}))


def _answer_for_cuda_in_transformer_engine() -> None:
    """The places in Transformer Engine's Python that insist on a GPU."""
    import transformer_engine_torch as tex
    from transformer_engine.pytorch import distributed, utils
    from transformer_engine.pytorch.constants import TE_DType
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule as Base
    from transformer_engine.pytorch.tensor.storage.mxfp8_tensor_storage import _FromMXFP8Func as MXFP8

    make, prepare = Base.__init__, Base.prepare_forward

    @functools.wraps(make)
    def make_module(self: Any, *args: Any, **kwargs: Any) -> None:  # "TransformerEngine needs CUDA."
        real, torch.cuda.is_available = torch.cuda.is_available, lambda: True
        try:
            make(self, *args, **kwargs)
        finally:
            torch.cuda.is_available = real

    @functools.wraps(prepare)
    def prepare_forward(self: Any, *args: Any, **kwargs: Any) -> Any:  # "... needs CUDA. Got input on device: cpu"
        with _SaysCuda():
            return prepare(self, *args, **kwargs)

    Base.__init__, Base.prepare_forward = make_module, prepare_forward
    distributed._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    distributed._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)

    def canonical(device: Any = None) -> torch.device:
        device = torch.device("cpu" if device is None else device)
        return torch.device("cpu") if device.type == "cuda" else device

    # "requires CUDA-resident buffers", asked where no function mode is on
    MXFP8.forward = staticmethod(lambda _, tensor, dtype: tex.dequantize(tensor, TE_DType[dtype]))
    gpu = utils.canonicalize_device
    for name, module in list(sys.modules.items()):  # wherever it was imported by name
        if name.startswith("transformer_engine") and getattr(module, "canonicalize_device", None) is gpu:
            module.canonicalize_device = canonical


def _enter_in_backward(*modes: type[TorchFunctionMode]) -> None:
    """PyTorch runs backward() without function modes, and Transformer Engine says "cuda" there, too."""
    run = torch.autograd._engine_run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            return run(*args, **kwargs)

    torch.autograd._engine_run_backward = run_backward


def _gather_one_by_one() -> None:
    """gloo mixes up the results of a coalesced all-gather whose tensors differ in type, as bf16 and FP8 weights do."""
    import megatron.core.distributed.param_and_grad_buffer as buffers
    from torch.distributed import distributed_c10d as c10d

    @contextlib.contextmanager
    def manager(group: Any = None, device: Any = None, async_ops: bool = False) -> Iterator[Any]:
        group = group or c10d._get_default_group()
        c10d._world.pg_coalesce_state[group] = []
        works = c10d._CoalescingManager()
        yield works
        for op in c10d._world.pg_coalesce_state.pop(group):
            tensors = (op.tensor,) if op.dst_tensor is None else (op.dst_tensor, op.tensor)
            options = {} if op.redop is None else {"op": op.redop}
            work = op.op(*tensors, group=group, async_op=True, **options)
            if work is not None:
                works.append(work)
        if not async_ops:
            works.wait()

    torch.distributed._coalescing_manager = buffers._coalescing_manager = manager
