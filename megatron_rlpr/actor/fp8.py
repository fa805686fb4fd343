"""FP8 by Transformer Engine: what each recipe asks for, and which key goes to which of Megatron's configurations.

    TransformerConfig: what the layers compute
        fp8                                e4m3 for all, or e5m2 for gradients, which need the range (hybrid)
        fp8_recipe                         how values are scaled into that range
        fp8_amax_history_len, fp8_amax_compute_algo     delayed alone: the maximum that a scale is made from
        fp8_param                          linear layers store their weights as FP8 bytes, and nothing else
        first_last_layers_bf16, num_layers_at_*_in_bf16 layers that compute in bf16, and store bf16 weights
    DistributedDataParallelConfig: what data-parallel ranks exchange
        fp8_param_gather                   must be fp8_param: buffers hold the bytes that layers store
        reuse_grad_buf_for_mxfp8_param_ag  MXFP8 weights are two arrays, scaled along rows and along columns, which no
                                           flat buffer holds: bf16 values travel in the gradients', and are rounded then
        grad_reduce_in_fp32                always: gradients leave FP8 layers in bf16 and are summed in fp32
    OptimizerConfig: how fp32 weights become the layers'
        fp8_recipe                         weights of all recipes but delayed have no flat view to write to
        reuse_grad_buf_for_mxfp8_param_ag  the same as above; one without the other leaves the weights as they were

Left alone: fp8_dot_product_attention (attention is ours), fp8_output_proj (so is the head), fp8_wgrad, fp8_margin, and
moe_router_padding_for_quantization: it fills experts up with real tokens that did not choose them, whose values would
enter the scales; without it Megatron fills them up with zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from megatron_rlpr.config.schema import ActorConfig

Version = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """What one way of scaling asks for (transformer_engine 2.20, pytorch/quantization.py and utils.py).

    capability, below: GPUs that compute it, from the first up to but without the second; cuda: from this version on.
    tokens: multiple of a tensor-parallel rank's tokens, features: of the sizes of its weights.
    """

    capability: Version
    below: Version
    cuda: Version
    tokens: int
    features: int

    def refusal(self) -> str:
        """Why this process' GPU cannot compute it, as a clause; empty when it can."""
        capability, cuda = device_capability(), cuda_version()
        if not self.capability <= capability < self.below:
            upper = f" and below {_dotted(self.below)}" if self.below < _ANY else ""
            return f"needs compute capability {_dotted(self.capability)}{upper}, and this GPU has {_dotted(capability)}"
        if cuda < self.cuda:
            return f"needs CUDA {_dotted(self.cuda)} or later, and PyTorch was built for {_dotted(cuda)}"
        return ""


_ANY = (1000, 0)
_COPIES = "_fp8_workspaces"
RECIPES = {
    # Consumer Blackwell (12.x) multiplies without block scales, and data centre Blackwell emulates blockwise by mxfp8.
    "mxfp8": Recipe((10, 0), (12, 0), (12, 8), tokens=32, features=32),
    # Works from 16 tokens on; with 128, ranks under sequence parallelism gather FP8 bytes instead of bf16.
    "blockwise": Recipe((9, 0), (12, 0), (12, 9), tokens=128, features=16),
    "tensorwise": Recipe((8, 9), _ANY, (12, 1), tokens=16, features=16),
    "delayed": Recipe((8, 9), _ANY, (12, 1), tokens=16, features=16),
}
"""The best first: fp8_recipe=auto takes the first that the GPU computes."""


def device_capability() -> Version:
    """Compute capability of this process' GPU."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.cuda.get_device_capability(local if torch.cuda.is_available() else None)


def cuda_version() -> Version:
    """The CUDA that PyTorch was built for."""
    major, minor = (torch.version.cuda or "0.0").split(".")[:2]
    return int(major), int(minor)


def resolved(actor: ActorConfig) -> ActorConfig:
    """With the recipe that fp8_recipe=auto stands for on this GPU; as it is without FP8."""
    if not actor.fp8 or actor.fp8_recipe != "auto":
        return actor
    chosen = next((name for name, recipe in RECIPES.items() if not recipe.refusal()), "tensorwise")
    return replace(actor, fp8_recipe=chosen)  # type: ignore[arg-type]


def sequence_multiple(actor: ActorConfig) -> int:
    """What the tokens of a micro-batch must be a multiple of: every rank's share of what its recipe takes."""
    return actor.token_ranks * (RECIPES[resolved(actor).fp8_recipe].tokens if actor.fp8 else 1)


def transformer_options(actor: ActorConfig) -> dict[str, Any]:
    """Fields of TransformerConfig."""
    if not actor.fp8:
        return {}
    names = ("fp8", "fp8_recipe", "fp8_param", "fp8_amax_history_len", "fp8_amax_compute_algo")
    layers = ("first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
    return {name: getattr(resolved(actor), name) for name in (*names, *layers)}


def buffer_options(actor: ActorConfig) -> dict[str, Any]:
    """Fields of DistributedDataParallelConfig."""
    return {"fp8_param_gather": actor.fp8_param, **_reused_buffer(actor)} if actor.fp8 else {}


def optimizer_options(actor: ActorConfig) -> dict[str, Any]:
    """Fields of OptimizerConfig."""
    return {"fp8_recipe": resolved(actor).fp8_recipe, **_reused_buffer(actor)} if actor.fp8 else {}


def _reused_buffer(actor: ActorConfig) -> dict[str, bool]:
    return {"reuse_grad_buf_for_mxfp8_param_ag": actor.fp8_param and resolved(actor).fp8_recipe == "mxfp8"}


def scoring_settings(actor: ActorConfig) -> dict[str, Any]:
    """What scores depend on beside actor.dtype; a stored base probability made with other settings is not used."""
    if not actor.fp8 or (actor.fp8_scoring == "bf16" and not actor.fp8_param):
        return {}
    options = transformer_options(actor)
    delayed = options["fp8_recipe"] == "delayed"
    kept = {name: value for name, value in options.items() if delayed or "amax" not in name}
    return {**kept, "fp8_scoring": actor.fp8_scoring}


@contextmanager
def scoring(chunks: Sequence[torch.nn.Module], actor: ActorConfig) -> Iterator[None]:
    """Around a forward that scores: with fp8_scoring=bf16 its layers compute in bf16, on the weights they have.

    Layers ask their configuration at every forward, which is told that there is no FP8.
    """
    aside = actor.fp8 and actor.fp8_scoring == "bf16"
    modules = (module for chunk in chunks for module in chunk.modules()) if aside else ()
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    formats = [(config, config.fp8) for config in configs.values() if hasattr(config, "fp8")]
    try:
        for config, _ in formats:
            config.fp8 = None
        yield
    finally:
        for config, form in formats:
            config.fp8 = form


@contextmanager
def own_weight_copies(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Around the micro-batches of one run: its FP8 copies of weights are made by its first and are gone after its last.

    Transformer Engine keeps a copy until a first micro-batch is announced, and then renews what the copy was made for.
    One that scoring made has no columns (transformer_engine 2.20.2 asks in module/base.py, _is_weight_workspace_valid,
    but not of blockwise ones): the first backward derives them, and later ones would multiply by those old weights.
    """
    modules = [module for chunk in chunks for module in chunk.modules()]
    caches = [vars(module)[_COPIES] for module in modules if _COPIES in vars(module)]
    for cache in caches:
        cache.clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.clear()


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
