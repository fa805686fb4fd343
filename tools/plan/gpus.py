"""What a GPU of each kind does and holds, by its data sheet, and how much of that was seen to be reached."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """bf16, fp8: dense FLOP/s (0: none); memory: bytes; hbm, nvlink, network, host: bytes/s of the memory, to other
    GPUs of the node and of other nodes (one direction), and to host memory. fp8_recipe: what `auto` means on it."""

    bf16: float
    fp8: float
    memory: float
    hbm: float
    nvlink: float
    network: float
    host: float
    fp8_recipe: str


GPUS = {
    "h100": Gpu(989e12, 1979e12, 79.6 * GIB, 3.35e12, 450e9, 50e9, 55e9, "blockwise"),
    "h200": Gpu(989e12, 1979e12, 140.4 * GIB, 4.8e12, 450e9, 50e9, 55e9, "blockwise"),
    "b200": Gpu(2250e12, 4500e12, 179.0 * GIB, 7.7e12, 900e9, 50e9, 55e9, "mxfp8"),
    "a100": Gpu(312e12, 0, 79.2 * GIB, 2.04e12, 300e9, 25e9, 25e9, ""),
}
"""SXM modules with one network interface a GPU: 400 Gb/s, of the A100 200."""
GPUS_OF_A_NODE = 8

# Measured on an H200 (docs/gpu.md), a model of 1.5e9 weights and 4,352 tokens: while the GPU is busy, and what the
# host needs for a layer of a micro-batch, in seconds. FP8 kept the GPU busy as long as bf16 did. Nothing larger was
# measured.
SCORE_EFFICIENCY, UPDATE_EFFICIENCY = 0.48, 0.31
LAUNCH_SECONDS = {
    ("score", False): 2.6e-3,
    ("score", True): 3.6e-3,
    ("update", False): 6.9e-3,
    ("update", True): 9.2e-3,
}
ATTENTION_BYTES = 15
"""Working memory of tree attention for an element of the queries: 0.96 GB for 17,920 tokens, 28 heads of 128."""

# Not measured.
PRODUCTS = 0.7
"""Share of the peak that large matrix products reach: the bound of the seconds at best."""
LINKS = 0.8
"""Share of a link's or memory's rate that is reached."""
DECODING = 0.6
"""The same of memory, in an engine that decodes."""
CONTEXT = 3 * GIB
"""CUDA contexts and NCCL's buffers."""
ENGINE_WORKSPACE = 3 * GIB
"""Activations and captured graphs of an engine; a third of it stays while it sleeps."""
USABLE = 0.96
"""Share of the memory that may be planned: the allocator leaves gaps."""
