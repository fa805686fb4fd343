"""Which layouts are compared, and on what (see actor_layouts.py). Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_rlpr.types import ScoreRequest

TEMPERATURE = 0.7
UPDATES = 5
SAVED_AFTER = 3


@dataclass(frozen=True)
class Case:
    """A layout: number of ranks, actor settings, and the layout whose checkpoint it also goes on from.

    models: those that it is observed with; empty: all of its kind.
    """

    ranks: int
    goes_on_from: str
    actor: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()


TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
# Small micro-batches, so that there is an odd number of them: not as many in each group as there are stages.
VPP2 = PP2 | {"virtual_pipeline_model_parallel_size": 2, "max_tokens_per_micro_batch": 48}
TP4_SP = {"tensor_model_parallel_size": 4, "sequence_parallel": True}  # more ranks than key/value heads
TP2_SP = TP2 | {"sequence_parallel": True}
CP2 = {"context_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}
SHARDED = {"use_distributed_optimizer": True}
TIED_AND_BIASED = ("llama tied", "qwen2 untied with biases")
ETP1, ETP2 = ({"expert_tensor_parallel_size": size} for size in (1, 2))
RECOMPUTE = {"recompute_granularity": "full", "recompute_num_layers": 1}
DENSE_CASES = {
    "1 process": Case(1, "1 process"),
    "no shared prefixes": Case(1, "1 process", {"share_prefixes": False}),
    "full recompute": Case(1, "1 process", RECOMPUTE),
    "TP2": Case(2, "1 process", TP2),
    "TP2 + SP": Case(2, "TP2", TP2_SP),
    "PP2": Case(2, "TP2 + SP", PP2),
    "DP2": Case(2, "PP2"),
    "TP2 x PP2": Case(4, "DP2", TP2 | PP2),
    "PP2, uneven": Case(2, "TP2 x PP2", PP2 | {"pipeline_model_parallel_layout": "Et|t*3L"}, TIED_AND_BIASED),
    "PP2 x VPP2": Case(2, "PP2, uneven", VPP2, TIED_AND_BIASED),
    "PP2 x VPP2 x DP2": Case(4, "PP2 x VPP2", VPP2, TIED_AND_BIASED),
    "TP2 + SP x PP2 x VPP2, full recompute": Case(4, "TP2 x PP2", TP2_SP | VPP2 | RECOMPUTE),
    "TP4 + SP": Case(4, "TP2 + SP x PP2 x VPP2, full recompute", TP4_SP, ("qwen2 untied with biases", "qwen3")),
    "CP2": Case(
        2,
        "TP2 + SP x PP2 x VPP2, full recompute",
        CP2,
        ("qwen2 untied with biases", "gemma2 with windows and soft caps"),
    ),
    "CP2 x TP2 + SP": Case(4, "CP2", CP2 | TP2_SP, ("qwen2 untied with biases",)),
    "1 process again": Case(1, "TP2 + SP x PP2 x VPP2, full recompute"),
    "bf16": Case(1, "bf16", {"dtype": "bfloat16"}),
    "DP2, distributed optimizer": Case(2, "DP2, distributed optimizer", SHARDED, TIED_AND_BIASED),
    "TP2, distributed optimizer": Case(2, "DP2, distributed optimizer", TP2 | SHARDED, TIED_AND_BIASED),
    "PP2 x VPP2 x DP2, distributed optimizer": Case(4, "TP2, distributed optimizer", VPP2 | SHARDED, TIED_AND_BIASED),
    "1 process, distributed optimizer": Case(1, "PP2 x VPP2 x DP2, distributed optimizer", SHARDED, TIED_AND_BIASED),
    "1 process, no longer distributed": Case(1, "DP2, distributed optimizer", {}, TIED_AND_BIASED),
    "DP2, distributed from now on": Case(2, "CP2 x TP2 + SP", SHARDED, ("qwen2 untied with biases",)),
    "CP2 x PP2, full recompute, distributed from now on": Case(
        4, "TP4 + SP", CP2 | PP2 | RECOMPUTE | SHARDED, ("qwen2 untied with biases",)
    ),
}
# Every layout with spread experts goes on from one that spreads them otherwise or not at all. Experts may be whole
# where layers are cut, and cut where layers are whole.
EXPERT_CASES = {
    "1 process": Case(1, "1 process"),
    "TP2 + SP": Case(2, "1 process", TP2_SP),
    "EP2": Case(2, "TP2 + SP", EP2),
    "TP2 + SP x EP2": Case(4, "EP2", TP2_SP | EP2),
    "TP2 + SP, EP2 x ETP1": Case(2, "TP2 + SP x EP2", TP2_SP | EP2 | ETP1, ("mixtral",)),
    "PP2 x EP2, full recompute": Case(4, "TP2 + SP x EP2", PP2 | EP2 | RECOMPUTE),
    # Two layers for four parts: the first is the embedding alone, the last the head alone.
    "PP2 x VPP2 x EP2": Case(
        4, "PP2 x EP2, full recompute", VPP2 | EP2 | {"pipeline_model_parallel_layout": "E|t|t|L"}
    ),
    "1 process again": Case(1, "PP2 x VPP2 x EP2"),
    "DP2, ETP2": Case(2, "TP2 + SP, EP2 x ETP1", ETP2, ("mixtral",)),
    "EP2, distributed optimizer": Case(2, "DP2, ETP2", EP2 | SHARDED, ("mixtral",)),
    "DP2, distributed optimizer": Case(2, "EP2, distributed optimizer", SHARDED, ("mixtral",)),
    "CP2 x EP2": Case(2, "DP2, ETP2", CP2 | EP2, ("mixtral",)),
}
# Every rank computes with the one key/value head, of which each stores a part.
ONE_HEAD_CASES = {
    "1 process": Case(1, "1 process"),
    "TP2": Case(2, "1 process", TP2),
    "TP2 + SP": Case(2, "TP2", TP2_SP),
    "1 process again": Case(1, "TP2 + SP"),
}
CASES = {"dense": DENSE_CASES, "experts": EXPERT_CASES, "one key head": ONE_HEAD_CASES}


def requests(vocab: int) -> list[ScoreRequest]:
    """Four groups of three responses that share a prompt, each with a spliced sequence that shares its reasoning."""
    rng = np.random.default_rng(0)
    draw = lambda n: tuple(int(t) for t in rng.integers(0, vocab, n))  # noqa: E731
    trunk, wanted = draw(9), []
    for _ in range(4):
        prompt = trunk + draw(5)
        for _ in range(3):
            reasoning, answer, reference = draw(int(rng.integers(3, 12))), draw(4), draw(3)
            wanted.append(
                ScoreRequest(prompt + reasoning + answer, len(prompt), len(prompt) + len(reasoning) + len(answer))
            )
            spliced = prompt + reasoning + reference
            wanted.append(ScoreRequest(spliced, len(spliced) - len(reference), len(spliced)))
    return wanted
