"""Scores and one update of a small policy under the layout given on the command line; rank 0 prints JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import torch.distributed as dist
from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.config import ActorConfig
from megatron_rlpr.types import ScoreRequest, TrainSequence
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.load_hf import load_hf_weights
from megatron_rlpr.weights.shape import read_hf_config


def requests(vocab: int) -> list[ScoreRequest]:
    """Four groups of three responses that share a prompt, each with a spliced sequence that shares its reasoning."""
    rng = np.random.default_rng(0)
    draw = lambda n: tuple(int(t) for t in rng.integers(0, vocab, n))  # noqa: E731
    trunk, wanted = draw(9), []
    for _ in range(4):
        prompt = trunk + draw(5)
        for _ in range(3):
            reasoning, answer, reference = draw(int(rng.integers(3, 12))), draw(4), draw(3)
            wanted.append(ScoreRequest(prompt + reasoning + answer, len(prompt), len(prompt) + len(reasoning) + len(answer)))
            spliced = prompt + reasoning + reference
            wanted.append(ScoreRequest(spliced, len(spliced) - len(reference), len(spliced)))
    return wanted


def main() -> None:
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    actor = ActorConfig(**{"dtype": "float32", "lr": 1e-3, "max_tokens_per_micro_batch": 160, "head_chunk_rows": 7, **options})
    layout = parallel.initialize(actor, seed=1)
    shape = model_shape(read_hf_config(folder))
    policy = MegatronPolicy(shape, actor, layout, temperature=0.7)
    load_hf_weights(policy.model, shape, folder)
    policy.weights_changed()
    wanted = requests(shape.vocab_size)
    scores = policy.score(wanted)
    generator = np.random.default_rng(1)
    sequences = [
        TrainSequence(
            r.token_ids,
            r.start,
            r.stop,
            (s.log_probs + generator.normal(0, 0.1, len(s.log_probs))).astype(np.float32),
            np.full(len(s.log_probs), generator.normal(), dtype=np.float32),
        )
        for r, s in zip(wanted[::2], scores[::2], strict=True)
    ]
    total = sum(s.stop - s.start for s in sequences)
    terms = LossTerms(0.2, 0.27, 0.0, 0.01, 0.0, "low_var_kl")
    updates = [policy.update(sequences, [1 / total] * len(sequences), terms, lr=1e-3) for _ in range(5)]
    after = policy.score(wanted)
    if dist.get_rank() == 0:
        report = {
            "log_probs": [s.log_probs.tolist() for s in scores],
            "entropies": [s.entropies.tolist() for s in scores],
            "loss": [u.loss for u in updates],
            "grad_norm": [u.grad_norm for u in updates],
            "entropy": [u.entropy for u in updates],
            "after": [s.log_probs.tolist() for s in after],
        }
        print("RESULT " + json.dumps(report), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
