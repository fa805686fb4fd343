"""The plain way, for comparison: a transformers model, padded batches, logits of every token.

Scoring is two full passes, one over prompt + response (log-probs and entropies) and one over prompt + reasoning +
reference answer (log-probs), as RLPR's published code does it; training is forward and backward over the first.
A batch is the n sequences of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from megatron_rlpr.types import ScoreRequest
from tools.bench.workload import BenchGroup


@dataclass(frozen=True)
class Rows:
    """Log-probs of every sequence's wanted tokens and, where computed, their entropies: fp32 [wanted tokens] each."""

    log_probs: list[torch.Tensor]
    entropies: list[torch.Tensor] | None
    tokens: int


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model as transformers loads it, on this machine's device."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    return model.cuda() if torch.cuda.is_available() else model


@torch.no_grad()
def score(model: torch.nn.Module, group: BenchGroup) -> tuple[Rows, Rows]:
    """(the responses', the spliced references') rows of one group."""
    model.eval()
    return _pass(model, group.responses, len(group.prompt), with_entropy=True), _pass(
        model, group.spliced, len(group.prompt), with_entropy=False
    )


def forward_backward(
    model: torch.nn.Module,
    group: BenchGroup,
    old: Sequence[torch.Tensor],
    advantages: Sequence[float],
    through_logsumexp: bool = False,
) -> float:
    """Add the gradients of the unclipped policy loss -sum(A p/p_old) / tokens of a group's responses; returns the loss.

    old: log-probs of every response when it was sampled, fp32 [tokens]; advantages: of every response.
    through_logsumexp: log-probs as logits - logsumexp. On a CPU with AMX, PyTorch's fp32 log_softmax, which the
    published code uses, makes every log-prob 4e-6 too large (measured against float64), which the gradients amplify;
    its logsumexp is right.
    """
    model.train()
    requests = group.responses
    log_probs, _ = _log_probs(
        model, requests, len(group.prompt), with_entropy=False, through_logsumexp=through_logsumexp
    )
    first = len(group.prompt)
    where = log_probs.device
    terms = [
        (log_probs[i, r.start - first : r.stop - first].float() - old[i].to(where)).exp().sum() * advantages[i]
        for i, r in enumerate(requests)
    ]
    loss = -torch.stack(terms).sum() / sum(r.stop - r.start for r in requests)
    loss.backward()
    return float(loss.detach())


def padded_tokens(requests: Sequence[ScoreRequest]) -> int:
    """Tokens of one padded batch."""
    return len(requests) * max(len(r.token_ids) for r in requests)


def _pass(model: torch.nn.Module, requests: Sequence[ScoreRequest], first: int, with_entropy: bool) -> Rows:
    log_probs, entropies = _log_probs(model, requests, first, with_entropy)

    def wanted(x: torch.Tensor) -> list[torch.Tensor]:
        return [x[i, r.start - first : r.stop - first].float().cpu() for i, r in enumerate(requests)]

    return Rows(wanted(log_probs), None if entropies is None else wanted(entropies), padded_tokens(requests))


def _log_probs(
    model: torch.nn.Module,
    requests: Sequence[ScoreRequest],
    first: int,
    with_entropy: bool,
    through_logsumexp: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs and entropies of the tokens from `first` on: [n, longest - first] in the model's dtype."""
    where = next(model.parameters()).device
    longest = max(len(r.token_ids) for r in requests)
    ids = torch.zeros(len(requests), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, request in enumerate(requests):
        ids[i, : len(request.token_ids)] = torch.tensor(request.token_ids)
        mask[i, : len(request.token_ids)] = 1
    ids, mask = ids.to(where), mask.to(where)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, first - 1 : -1]
    target = ids[:, first:, None]
    if through_logsumexp:
        log_probs = logits.gather(-1, target)[..., 0] - logits.logsumexp(-1)
    else:
        log_probs = F.log_softmax(logits, dim=-1).gather(-1, target)[..., 0]
    if not with_entropy:
        return log_probs, None
    probabilities = F.softmax(logits, dim=-1)
    return log_probs, torch.logsumexp(logits, dim=-1) - (probabilities * logits).sum(-1)
