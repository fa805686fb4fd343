"""What Megatron-Core's mixtures of experts need without CUDA.

Ranks route different numbers of tokens to each other. Megatron reads those numbers from the GPU as numpy arrays, and
leaves them tensors, which `all_to_all_single` refuses, when there is no GPU to read from. And gloo's all-gather takes
tensors of one size only, so an uneven one is sent as an all-to-all in which every rank sends everybody the same. The
router asks whether Transformer Engine has a matrix multiplication for it, by a name that only exists where it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def install() -> None:
    """Change Megatron-Core where it needs it. Called once, and only without CUDA."""
    import megatron.core.tensor_parallel.mappings as mappings
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    even_gather = mappings._gather_along_first_dim

    def gather(input_: Any, group: Any, output_split_sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if output_split_sizes is None or group.size() == 1:
            return even_gather(input_, group, output_split_sizes, use_global_buffer)
        return _uneven_gather(input_, group, output_split_sizes)

    mappings._gather_along_first_dim = gather
    dispatcher.maybe_move_tensor_to_cpu = _splits_as_numpy
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def _uneven_gather(tensor: torch.Tensor, group: dist.ProcessGroup, rows_of_rank: Sequence[int]) -> torch.Tensor:
    """The ranks' tensors [rows_of_rank[r], ...] one after the other, on every rank of the group."""
    size = group.size()
    output = tensor.new_empty(sum(rows_of_rank), *tensor.shape[1:])
    copies = tensor.repeat(size, *[1] * (tensor.dim() - 1))
    dist.all_to_all_single(output, copies, list(rows_of_rank), [len(tensor)] * size, group=group)
    return output


def _splits_as_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Megatron's `maybe_move_tensor_to_cpu` for what is on the CPU already."""
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor
