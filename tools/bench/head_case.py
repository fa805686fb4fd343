"""`bench head`: forward and backward of the selected-row output head, at a size where logits would not fit."""

from __future__ import annotations

from typing import Any

import torch

from megatron_rlpr.actor.model.selected_head import VocabShard, selected_log_probs
from tools.bench.measure import matmul_rate, timed, with_peak_memory

CHECKED_ROWS = 64
_SMALL_SCALE = 0.02


def run(rows: int, vocab: int, hidden: int, dtype: torch.dtype, chunk_rows: int) -> dict[str, Any]:
    """Time and peak extra memory of the head, and how far its log-probs are from fp32 logits on the first rows.

    The gradients of hidden states and weight, which any head returns, are part of extra_memory and given by themselves
    as gradient_memory. full_logits_memory is what the logits alone would take, in this dtype.
    """
    where = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=where).manual_seed(0)
    states = torch.randn(rows, hidden, generator=generator, device=where).to(dtype).requires_grad_()
    weight = (_SMALL_SCALE * torch.randn(vocab, hidden, generator=generator, device=where)).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=generator, device=where)
    cotangent = torch.randn(rows, 2, generator=generator, device=where)

    def forward(count: int) -> torch.Tensor:
        return selected_log_probs(states[:count], weight, targets[:count], VocabShard(0, vocab), 1.0, chunk_rows)

    def forward_backward() -> tuple[torch.Tensor, float]:
        out, forward_seconds = timed(lambda: forward(rows))
        (out * cotangent).sum().backward()
        return out.detach(), forward_seconds

    forward(min(rows, chunk_rows))
    ((out, forward_seconds), seconds), memory = with_peak_memory(lambda: timed(forward_backward))
    rate = matmul_rate(dtype)
    flops = (
        3 * 2.0 * rows * vocab * hidden
    )  # logits, gradient of the states, gradient of the weight; not the logits again
    checked = min(rows, CHECKED_ROWS)
    with torch.no_grad():
        exact = (states[:checked].float() @ weight.float().t()).log_softmax(-1).gather(1, targets[:checked, None])[:, 0]
    assert states.grad is not None
    assert weight.grad is not None
    return {
        "rows": rows,
        "vocab": vocab,
        "hidden": hidden,
        "extra_memory": memory,
        "gradient_memory": sum(g.numel() * g.element_size() for g in (states.grad, weight.grad)),
        "full_logits_memory": rows * vocab * dtype.itemsize,
        "peak_memory_ratio": memory / (rows * vocab * dtype.itemsize),
        "max_abs_diff": float((out[:checked, 0] - exact).abs().max()),
        "seconds_ours": seconds,
        "seconds_forward": forward_seconds,
        "floor_fraction": flops / rate / seconds,
        "matmul_flops_per_second": rate,
    }
