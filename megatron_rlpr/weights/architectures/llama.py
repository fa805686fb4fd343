"""Llama 2 and 3 (and what shares their class, such as SmolLM2): no biases, tied or untied, Llama 3.1 rotary scaling."""

from __future__ import annotations

from functools import partial

from megatron_rlpr.weights.architectures.dense_decoder import Architecture, decoder_parameters, dense_decoder_shape

# Llama's attention_bias puts a bias on the output projection too, which the Megatron layer has not.
_INERT = {"attention_bias": (False,), "sliding_window": ()}

_SHAPE = partial(dense_decoder_shape, qkv_bias=False, inert=_INERT)
ARCHITECTURE = Architecture("LlamaForCausalLM", _SHAPE, decoder_parameters)
