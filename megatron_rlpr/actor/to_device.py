"""Numbers planned on the host, on their way to the device.

Copying from ordinary host memory has the host wait until the GPU has done all that was asked before, and the GPU then
waits for the host to say what is next. From pinned memory the copy takes its turn in the queue.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch


def to_device(array: npt.NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The array on device, in dtype (default: its own). On the CPU it may share the array's memory."""
    values = torch.from_numpy(array).to(dtype=dtype)
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
