"""Qwen2 and Qwen2.5: Llama's layers with biases on the query, key and value projections."""

from __future__ import annotations

from functools import partial

from megatron_rlpr.weights.architectures.dense_decoder import Architecture, decoder_parameters, dense_decoder_shape

# Published configs carry sliding_window with use_sliding_window=false: only the switch puts it to use.
_INERT = {"use_sliding_window": (False,)}

_SHAPE = partial(dense_decoder_shape, qkv_bias=True, inert=_INERT)
ARCHITECTURE = Architecture("Qwen2ForCausalLM", _SHAPE, decoder_parameters)
