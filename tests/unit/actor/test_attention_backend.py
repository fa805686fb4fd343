"""Which backend computes tree attention is chosen once, and said."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from megatron_rlpr.actor.attention.backend import BACKENDS, choose_backend
from megatron_rlpr.actor.attention.block_attention import BlockBackend
from megatron_rlpr.actor.attention.cascade_attention import CascadeBackend
from megatron_rlpr.actor.attention.core import TreeCoreAttention, windows_of
from megatron_rlpr.actor.attention.flex_attention import FlexBackend
from megatron_rlpr.actor.attention.paged_attention import PagedBackend
from megatron_rlpr.weights.architectures import model_shape

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class NotInstalled(BlockBackend):
    """A backend whose library this machine lacks."""

    name = "the fastest kernel"

    def missing(self) -> str:
        return "its library is not installed"


@pytest.mark.parametrize(
    ("dtype", "head_dim", "softcap", "windowed", "device", "first"),
    [
        (torch.float32, 64, None, False, CPU, PagedBackend),
        (torch.bfloat16, 64, 4.0, True, CPU, PagedBackend),
        (torch.float32, 16, None, False, CPU, BlockBackend),
        (torch.bfloat16, 64, None, False, CUDA, CascadeBackend),
        (torch.float16, 80, None, False, CUDA, CascadeBackend),
        (torch.bfloat16, 60, None, False, CUDA, FlexBackend),
        (torch.bfloat16, 64, None, True, CUDA, FlexBackend),
        (torch.bfloat16, 64, 4.0, False, CUDA, FlexBackend),
        (torch.float32, 64, None, False, CUDA, FlexBackend),
        (torch.bfloat16, 512, None, False, CUDA, BlockBackend),
        (torch.float32, 8, None, False, CUDA, BlockBackend),
    ],
)
def test_the_fastest_that_can_compute_this_attention_comes_first(
    dtype: torch.dtype, head_dim: int, softcap: float | None, windowed: bool, device: torch.device, first: type
) -> None:
    assert type(next(b for b in BACKENDS if b.applies(dtype, head_dim, softcap, windowed, device))) is first
    chosen = choose_backend(dtype, head_dim, softcap, windowed, device)
    assert type(chosen) is first or first().missing()


def test_a_faster_backend_that_is_missing_is_named_in_one_line_with_the_one_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backends = (NotInstalled(), BlockBackend())
    assert choose_backend(torch.float32, 64, None, False, CPU, backends) is backends[1]
    assert choose_backend(torch.float32, 64, None, False, CPU, backends) is backends[1]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "tree attention is computed by plain tensor operations; the fastest kernel would be faster, but its library is "
        "not installed"
    )


def test_a_stage_needs_layouts_of_its_own_layers_windows_only() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 8,
        "max_position_embeddings": 8,
        "rms_norm_eps": 1e-6,
    }
    shape = replace(model_shape(config), layer_windows=(5, 0, 7, 7))
    layers = [TreeCoreAttention(None, number, shape=shape) for number in (1, 2, 3, 4)]
    assert windows_of(torch.nn.ModuleList(layers[:2])) == {5, 0}
    assert windows_of(torch.nn.ModuleList(layers[2:])) == {7}
