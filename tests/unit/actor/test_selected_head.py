"""The selected-row head equals full logits under autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.model.head_tiles import LogitTiles, RunningSums
from megatron_rlpr.actor.model.selected_head import VocabShard, selected_log_probs


def full_logits(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, softcap: float | None
) -> torch.Tensor:
    logits = hidden @ weight.t()
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_probs = (capped / temperature).log_softmax(-1)
    return torch.stack([log_probs.gather(1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)], dim=1)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(2, 50),
    padding=st.integers(0, 7),
    chunk=st.sampled_from([1, 7, 64]),
    temperature=st.sampled_from([0.6, 1.0, 1.7]),
    softcap=st.sampled_from([None, 3.0]),
)
def test_values_and_gradients_equal_full_logits(
    rows: int, vocab: int, padding: int, chunk: int, temperature: float, softcap: float | None
) -> None:
    generator = torch.Generator().manual_seed(rows * 1000 + vocab)
    hidden = torch.randn(rows, 16, generator=generator, requires_grad=True)
    weight = torch.randn(vocab + padding, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    cotangent = torch.randn(rows, 2, generator=generator)

    out = selected_log_probs(hidden, weight, targets, VocabShard(0, vocab), temperature, chunk, softcap)
    grads = torch.autograd.grad((out * cotangent).sum(), (hidden, weight))
    expected = full_logits(hidden, weight[:vocab], targets, temperature, softcap)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), (hidden, weight))

    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_compiled_loops_and_tensor_operations_do_the_same(dtype: torch.dtype, softcap: float | None) -> None:
    """The second are what CUDA gets."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(9, 16, generator=generator).to(dtype),
        torch.randn(30, 16, generator=generator).to(dtype),
    )
    rows = torch.randn(4, 9, generator=generator)
    column = torch.arange(9)
    found = []
    for compiled in (True, False):
        tiles, sums = LogitTiles(9 * 30, hidden, softcap, 1.3, compiled), RunningSums(9, hidden.device)
        for part in weight.chunk(2):
            sums.add(tiles.logits(hidden, part), column, tiles)
        gradient = tiles.in_compute_dtype(
            tiles.gradient(tiles.logits(hidden, weight), rows, column.where(column % 3 > 0, -1))
        ).clone()
        found.append((*sums.log_prob_and_entropy(None), gradient))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)


def test_the_gradient_of_a_likely_target_is_not_rounded_away() -> None:
    """1 - p is far below bf16's step at 1: the two parts of the target's gradient must meet in float32."""
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[8.0], [1.0], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    out = selected_log_probs(hidden, weight, torch.zeros(1, dtype=torch.long), VocabShard(0, 3), 1.0, 8)
    (found,) = torch.autograd.grad(out[0, 0], weight)
    expected = torch.tensor([[1.0], [0.0], [0.0]]) - weight.detach().float().softmax(0)
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=0)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"hidden \(2, 3\)"):
        selected_log_probs(
            torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(2, dtype=torch.long), VocabShard(0, 5), 1.0, 8
        )
