"""Milliseconds of tree attention's backends on this GPU, a line of JSON for every number; also recorded for the table.

    python tests/gpu/attention_speed.py [--backends cascade,atomics,gathered,flex,blocks] [--cases update,scoring,...]

update: prompts of 768 tokens, each with 8 responses of 1024. scoring: the same tokens, but every response ends in two
branches, its own last tokens and 8 of a reference answer. shared: responses that share their first tokens in a chain of
short nodes, which costs the cascade a call each. window, softcap: Gemma 2's heads, FlexAttention and the plain blocks.

`atomics` is the cascade with the kernels' default backward: what determinism costs. `gathered` is what the cascade
replaced: one call over every node's whole path, keys repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_records import record
from torch import Tensor

from megatron_rlpr.actor.attention import cascade_attention
from megatron_rlpr.actor.attention.block_attention import BlockBackend
from megatron_rlpr.actor.attention.cascade_attention import CascadeBackend
from megatron_rlpr.actor.attention.flex_attention import FlexBackend
from megatron_rlpr.packing import Nodes

Tree = tuple[int, list[Any]]
"""Tokens of a node, and its children."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Heads of queries and of keys, their dimension, and the backends that it is measured with."""

    trees: list[Tree]
    heads: int
    kv_heads: int
    dim: int
    window: int
    softcap: float | None
    backends: tuple[str, ...]


def cases(shrink: int) -> dict[str, Case]:
    prompt, response, answer = 768 // shrink, 1024 // shrink, 8

    def shared_start(responses: int) -> Tree:
        return (answer, [(response - answer, []), shared_start(responses - 1)]) if responses > 1 else (response, [])

    qwen = (28, 4, 128, 0, None, ("cascade", "atomics", "gathered", "flex"))
    update = [(prompt, [(response, [])] * 8)] * 2
    scoring = [(prompt, [(response - 2 * answer, [(answer, []), (answer, [])])] * 8)] * 2
    return {
        "update": Case(update, *qwen),
        "scoring": Case(scoring, *qwen),
        "shared": Case([(prompt, [shared_start(8)])] * 2, *qwen),
        "window": Case(update, 16, 8, 256, response // 2, None, ("flex", "blocks")),
        "softcap": Case(update, 16, 8, 256, 0, 50.0, ("flex", "blocks")),
    }


def forest_of(trees: list[Tree]) -> Nodes:
    nodes: list[list[int]] = []

    def add(tree: Tree, parent: int) -> None:
        start = nodes[-1][1] if nodes else 0
        node = [start, start + tree[0], parent, 0]
        here = len(nodes)
        nodes.append(node)
        for child in tree[1]:
            add(child, here)
        node[3] = nodes[-1][1]

    for tree in trees:
        add(tree, -1)
    return Nodes(*np.array(nodes, dtype=np.int64).T)


def gathered_paths(nodes: Nodes, scale: float, device: torch.device) -> Attend:
    """Every node's queries on its whole path, under a causal mask aligned at the bottom right."""
    from torch.nn.attention.varlen import varlen_attn

    def bounds(lengths: list[int]) -> Tensor:
        return torch.tensor(np.cumsum([0, *lengths]), device=device, dtype=torch.int32)

    keys = torch.from_numpy(np.concatenate(nodes.paths)).to(device)
    sizes, lengths = (nodes.stop - nodes.start).tolist(), [len(path) for path in nodes.paths]
    segments = (bounds(sizes), bounds(lengths), max(sizes), max(lengths))
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gathered = (x.index_select(0, keys) for x in (k, v))
        return varlen_attn(q, *gathered, *segments, scale=scale, window_size=(-1, 0), **grouped)

    return attend


def attend_with(name: str, case: Case, nodes: Nodes, dtype: torch.dtype, device: torch.device) -> Attend:
    scale = case.dim**-0.5
    if name == "gathered":
        return gathered_paths(nodes, scale, device)
    backends = {"cascade": CascadeBackend, "atomics": CascadeBackend, "flex": FlexBackend, "blocks": BlockBackend}
    backend = backends[name]()
    layout = backend.lay_out(nodes, dtype, device, case.window)
    return lambda q, k, v: backend.attend(q, k, v, layout, scale, case.softcap)


def milliseconds(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """The median of single runs, each waited for."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - start))
    return median(found)


def measure(
    case: Case, name: str, nodes: Nodes, dtype: torch.dtype, device: torch.device, repeats: int, exact: list[Tensor]
) -> dict[str, float]:
    """Numbers by name. exact: output and gradients of the first backend that was measured; they are put there."""
    on_gpu = device.type == "cuda"
    tokens = int(nodes.stop[-1])
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        return torch.randn(tokens, heads, case.dim, generator=generator, device=device).to(dtype)

    inputs = [draw(n).requires_grad_() for n in (case.heads, case.kv_heads, case.kv_heads)]
    cotangent = draw(case.heads)
    begun = time.perf_counter()
    attend = attend_with(name, case, nodes, dtype, device)
    found = {"lay out ms": 1000 * (time.perf_counter() - begun)}
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if on_gpu else 0
    begun = time.perf_counter()
    out = attend(*inputs)
    grads = torch.autograd.grad(out, inputs, cotangent)
    if on_gpu:
        torch.cuda.synchronize()
    found["first call with compilation s"] = time.perf_counter() - begun
    if on_gpu:
        found["memory GB"] = (torch.cuda.max_memory_allocated() - held) / 1e9
    results = [out.detach(), *grads]
    if exact:
        apart = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(results, exact, strict=True)]
        found["largest relative difference"] = max(apart)
    else:
        exact += results
    with torch.no_grad():
        attend(*inputs)
        found["forward ms"] = milliseconds(lambda: attend(*inputs), repeats, device)
    # A compiled backward runs once for every forward.
    both = milliseconds(lambda: torch.autograd.grad(attend(*inputs), inputs, cotangent), repeats, device)
    found["backward ms"] = both - milliseconds(lambda: attend(*inputs), repeats, device)
    pairs = sum(len(path) * n - n * (n - 1) // 2 for path, n in zip(nodes.paths, nodes.stop - nodes.start, strict=True))
    if not case.window:
        found["forward TFLOP/s"] = 4 * pairs * case.heads * case.dim / found["forward ms"] / 1e9
        found["backward TFLOP/s"] = 10 * pairs * case.heads * case.dim / found["backward ms"] / 1e9
    return found


def report(test: str, **fields: Any) -> None:
    print(json.dumps({"test": test, **fields}), flush=True)
    record(test=test, **fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="update,scoring,shared,window,softcap")
    parser.add_argument("--backends", default="cascade,atomics,gathered,flex,blocks")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--shrink", type=int, default=1, help="divides the tokens of prompts and responses")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16
    chosen = {name: case for name, case in cases(options.shrink).items() if name in options.cases.split(",")}
    exact: dict[str, list[Tensor]] = {name: [] for name in chosen}
    # What compiles comes last, so that little is lost should the time run out.
    for backend in options.backends.split(","):
        for name, case in chosen.items():
            if backend not in case.backends:
                continue
            nodes = forest_of(case.trees)
            test = f"attention {name}, {nodes.stop[-1]} tokens, {len(nodes.start)} nodes: {backend}"
            default = contextlib.nullcontext if backend == "atomics" else cascade_attention._deterministic_kernels
            kept, cascade_attention._deterministic_kernels = cascade_attention._deterministic_kernels, default
            begun = time.perf_counter()
            try:
                repeats = options.repeats if backend != "blocks" else 2
                for what, value in measure(case, backend, nodes, dtype, device, repeats, exact[name]).items():
                    report(test, what=what, value=round(value, 4))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                report(test, outcome="failed", reason=reason, seconds=round(time.perf_counter() - begun, 2))
            finally:
                cascade_attention._deterministic_kernels = kept


if __name__ == "__main__":
    main()
