"""Loops over rows, compiled by numba, that run on PyTorch's own OpenMP threads.

numba could start threads itself, but they would compete for the cores with PyTorch's, which stay awake for a moment
after every operation. So a loop is compiled to a C function, and the OpenMP library that PyTorch has loaded calls it
once on every thread of its team.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import llvmlite.binding
import torch
from numba import cfunc, types

SLOTS = 16
"""Numbers of 8 bytes that every loop gets: rows, 1 for bfloat16, then the arguments. Compiled loops on disk do not
notice a change here."""
HEADER = 2
_SERIAL_ELEMENTS = 16384
"""Below about so much work, waking another thread costs more than it saves."""

# When an engine starts in this process, vLLM reads the __dict__ of everything that any module holds. llvmlite's library
# object answers with a function of C there, as for any name, which ends the start with an AttributeError; this is its
# table of answers.
llvmlite.binding.ffi.lib._fntab["__dict__"] = {}


class Loop:
    """A function of a pointer to SLOTS numbers, which numba compiles at the first call and keeps on disk.

    A call takes the number of rows, then tensors (their addresses go to the loop) and numbers, in the order in which
    the loop reads them. The first tensor's element type, float32 or bfloat16, is the loop's; its size decides whether
    threads pay off.
    """

    def __init__(self, body: Callable[[Any], None]) -> None:
        # Compiled functions of all loops share one table of names, also those that came from disk.
        body.__qualname__ = f"loop_of_line_{body.__code__.co_firstlineno}"
        self._body = body

    def __call__(self, rows: int, *arguments: torch.Tensor | int | float) -> None:
        first = arguments[0]
        assert isinstance(first, torch.Tensor), "the first argument tells the element type"
        assert first.dtype in (torch.float32, torch.bfloat16), first.dtype
        values = [_address(argument) if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        values += [0] * (SLOTS - HEADER - len(values))
        codes = "".join("d" if isinstance(value, float) else "q" for value in values)
        slots = struct.pack(f"qq{codes}", rows, first.dtype == torch.bfloat16, *values)
        threads = min(torch.get_num_threads(), rows) if first.numel() >= _SERIAL_ELEMENTS else 1
        _openmp().GOMP_parallel(self._compiled, slots, threads, 0)

    @cached_property
    def _compiled(self) -> ctypes.c_void_p:
        _openmp()
        signature = types.void(types.CPointer(types.int64))
        try:
            compiled = cfunc(signature, cache=True)(self._body)
        except RuntimeError:  # numba may write neither beside the source nor in the home directory
            compiled = cfunc(signature)(self._body)
        self._keep = compiled
        return ctypes.c_void_p(compiled.address)


def _address(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous(), "loops take addresses"
    assert tensor.device.type == "cpu", tensor.device
    return tensor.data_ptr()


@cache
def _openmp() -> ctypes.CDLL:
    """PyTorch's OpenMP library, its functions made known to compiled code."""
    root = Path(torch.__file__).parent
    bundled = next(chain((root / "lib").glob("libgomp*"), (root.parent / "torch.libs").glob("libgomp*")), None)
    library = ctypes.CDLL(str(bundled or "libgomp.so.1"))
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        llvmlite.binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    return library
