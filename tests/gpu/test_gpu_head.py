"""The selected-row head on a GPU against full logits in float64: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from gpu_records import Within

from megatron_rlpr.actor.model.selected_head import VocabShard, selected_log_probs
from tools.bench.head_case import run

ROWS, VOCAB, HIDDEN = 300, 5000, 256


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_values_and_gradients(dtype: torch.dtype, bound: float, softcap: float | None, within: Within) -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    hidden, weight = (
        draw(ROWS, HIDDEN).to(dtype).requires_grad_(),
        (draw(VOCAB, HIDDEN) / 16).to(dtype).requires_grad_(),
    )
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator, device="cuda")
    cotangent = draw(ROWS, 2)
    out = selected_log_probs(hidden, weight, targets, VocabShard(0, VOCAB), 0.7, 32, softcap)
    found = torch.autograd.grad((out * cotangent).sum(), (hidden, weight))
    logits = hidden.double() @ weight.double().t()
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / 0.7
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(1, targets[:, None])[:, 0]
    exact = torch.stack([chosen, -(log_probs.exp() * log_probs).sum(-1)], dim=1)
    expected = torch.autograd.grad((exact * cotangent).sum(), (hidden, weight))
    within(float((out - exact).abs().max()), bound, "largest difference of log-probs and entropies")
    for name, a, b in zip(("hidden states", "weight"), found, expected, strict=True):
        within(
            float((a.double() - b.double()).norm() / b.double().norm()),
            bound,
            f"relative error of the {name}' gradient",
        )


def test_memory_is_that_of_chunks(within: Within) -> None:
    report = run(rows=16384, vocab=151936, hidden=1536, dtype=torch.bfloat16, chunk_rows=256)
    beyond = report["extra_memory"] - report["gradient_memory"]
    within(beyond / report["full_logits_memory"], 0.15, "memory beyond gradients over that of the logits")
    within(report["max_abs_diff"], 0.05, "largest difference of log-probs")
