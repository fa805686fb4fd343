"""The selected-row head with its vocabulary sharded, against full logits under autograd (see actor_layouts.py)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_rlpr.actor.model.selected_head import VocabShard, selected_log_probs
from megatron_rlpr.actor.model.tree_policy import padded_vocab_size

VOCABULARIES = (5, 50, 211)
"""With 4 ranks: a rank with padding alone, a rank with some padding, whole columns over several slices."""
ROWS, HIDDEN, TEMPERATURE, CHUNK_ROWS = 23, 16, 0.6, 7
SOFTCAPS = {5: None, 50: 4.0, 211: None}
"""By vocabulary."""


def distances(rank: int, ranks: int, vocabulary: int) -> dict[str, float]:
    """Largest relative distance of output, hidden gradient and this rank's weight gradient from the unsharded ones."""
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (ROWS,), generator=generator)
    cotangent = torch.randn(ROWS, 2, generator=generator)

    softcap = SOFTCAPS[vocabulary]
    logits = hidden @ weight.t()
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_probs = (capped / TEMPERATURE).log_softmax(-1)
    expected = torch.stack([log_probs.gather(1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)], dim=1)
    expected_hidden, expected_weight = torch.autograd.grad((expected * cotangent).sum(), (hidden, weight))

    size = padded_vocab_size(vocabulary, ranks) // ranks
    first = rank * size
    valid = max(0, min(size, vocabulary - first))
    mine = torch.full((size, HIDDEN), 3.0)  # padding that would show if it counted
    mine[:valid] = weight.detach()[first : first + valid]
    mine.requires_grad_()
    shard = VocabShard(first, valid, dist.group.WORLD if ranks > 1 else None)
    out = selected_log_probs(hidden, mine, targets, shard, TEMPERATURE, CHUNK_ROWS, softcap)
    grad_hidden, grad_weight = torch.autograd.grad((out * cotangent).sum(), (hidden, mine))
    dist.all_reduce(grad_hidden)
    return {
        "output": relative(out.detach(), expected.detach()),
        "hidden gradient": relative(grad_hidden, expected_hidden),
        "weight gradient": relative(grad_weight[:valid], expected_weight[first : first + valid], expected_weight),
        "padding gradient": float(grad_weight[valid:].abs().sum()),
    }


def relative(found: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    return float((found - expected).norm() / (expected if scale is None else scale).norm())


def one_rank(rank: int, ranks: int, work: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(work / f"head.{ranks}.store"), ranks), rank=rank, world_size=ranks
    )
    found = {vocabulary: distances(rank, ranks, vocabulary) for vocabulary in VOCABULARIES}
    (work / f"head.{ranks}.{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def report(work: Path) -> dict[str, list[dict[str, dict[str, float]]]]:
    """{number of ranks: per rank {vocabulary: distances}}."""
    found = {}
    for ranks in (1, 2, 4):
        mp.start_processes(one_rank, (ranks, work), nprocs=ranks, start_method="fork")
        found[str(ranks)] = [json.loads((work / f"head.{ranks}.{rank}.json").read_text()) for rank in range(ranks)]
    return found
