"""A config.json gives the shape transformers would build, every parameter has both names, and what we cannot honour is
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import (
    SUPPORTED,
    hf_manifest,
    model_shape,
    parameter_table,
)
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.shape import ExpertShape, RopeScaling

SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"]),
    "llama tied": LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"], tie_word_embeddings=True),
    "llama head_dim": LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"], head_dim=10),
    "llama 3.1": LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"], rope_theta=5e5, rope_scaling=LLAMA3),
    "qwen2": Qwen2Config(**SIZES, architectures=["Qwen2ForCausalLM"]),
    "qwen2 tied": Qwen2Config(**SIZES, architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, architectures=["Qwen3ForCausalLM"], head_dim=10),
    "mistral": MistralConfig(**SIZES, architectures=["MistralForCausalLM"], sliding_window=16),
    "gemma2": Gemma2Config(**SIZES, architectures=["Gemma2ForCausalLM"], head_dim=10, sliding_window=16),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES,
        architectures=["Qwen3MoeForCausalLM"],
        head_dim=10,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
    ),
    "mixtral": MixtralConfig(**SIZES, architectures=["MixtralForCausalLM"], num_local_experts=4, num_experts_per_tok=2),
}


def llama(**fields: Any) -> dict[str, Any]:
    return {**CONFIGS["llama"].to_dict(), **fields}


def qwen2(**fields: Any) -> dict[str, Any]:
    return {**CONFIGS["qwen2"].to_dict(), **fields}


def qwen3(**fields: Any) -> dict[str, Any]:
    return {**CONFIGS["qwen3"].to_dict(), **fields}


def mistral(**fields: Any) -> dict[str, Any]:
    return {**CONFIGS["mistral"].to_dict(), **fields}


def gemma2(**fields: Any) -> dict[str, Any]:
    return {**CONFIGS["gemma2"].to_dict(), **fields}


def qwen3_moe(**fields: Any) -> dict[str, Any]:
    return {**CONFIGS["qwen3_moe"].to_dict(), **fields}


def mixtral(**fields: Any) -> dict[str, Any]:
    return {**CONFIGS["mixtral"].to_dict(), **fields}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_names_exactly_the_tensors_transformers_saves(name: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(tmp_path)
    saved = {key: tensor.shape for key, tensor in HfFolder(tmp_path).stored.items()}
    assert hf_manifest(model_shape(HfFolder(tmp_path).config())) == saved


@pytest.mark.parametrize("name", CONFIGS)
def test_megatron_names_are_unique(name: str) -> None:
    names = [n for mapping in parameter_table(model_shape(CONFIGS[name].to_dict())) for n in mapping.megatron]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (
            "qwen2.5-7b",
            qwen2(
                vocab_size=152064,
                hidden_size=3584,
                intermediate_size=18944,
                num_attention_heads=28,
                num_key_value_heads=4,
                num_hidden_layers=1,
            ),
        ),
        (
            "llama3.1-8b",
            llama(
                vocab_size=128256,
                hidden_size=4096,
                intermediate_size=14336,
                num_attention_heads=32,
                num_key_value_heads=8,
                num_hidden_layers=1,
                head_dim=128,
            ),
        ),
        ("mixtral", mixtral(**SMALL, intermediate_size=48, num_local_experts=4)),
        (
            "qwen3_moe",
            qwen3_moe(**SMALL, moe_intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, head_dim=32),
        ),
    ],
)
def test_transformer_engine_parameters_have_the_names_and_shapes_its_library_builds(
    model: str, config: dict[str, Any]
) -> None:
    """transformer_engine_names.json: first layer and ends of models, listed from Megatron's Transformer Engine spec."""
    built = json.loads((Path(__file__).parent / "transformer_engine_names.json").read_text())[model]
    table = {mapping.megatron[-1]: list(mapping.shard_shape(1)) for mapping in parameter_table(model_shape(config))}
    assert table == built


def test_shape_of_a_plain_llama() -> None:
    shape = model_shape(llama())
    assert (shape.architecture, shape.num_layers, shape.hidden_size, shape.ffn_hidden_size) == (
        "LlamaForCausalLM",
        3,
        48,
        80,
    )
    assert (shape.num_attention_heads, shape.num_query_groups, shape.head_dim, shape.vocab_size) == (6, 2, 8, 131)
    assert (shape.rope_theta, shape.rope_scaling, shape.norm_eps, shape.max_position_embeddings) == (
        10000.0,
        None,
        1e-6,
        256,
    )
    assert not shape.tied_embeddings
    assert not shape.qkv_bias
    assert model_shape(qwen2()).qkv_bias


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": None},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": LLAMA3},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"type" if key == "rope_type" else key: value for key, value in LLAMA3.items()},
        },
    ],
)
def test_llama3_rotary_scaling_is_read_from_either_spelling(fields: dict[str, Any]) -> None:
    shape = model_shape(llama(**fields))
    assert shape.rope_theta == 5e5
    assert shape.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize("older", [{"rope_parameters": None}, {"rope_scaling": {"type": "default"}}])
def test_plain_rotary_base_is_read_from_the_older_spelling(older: dict[str, Any]) -> None:
    shape = model_shape(llama(rope_theta=123.0, **older))
    assert (shape.rope_theta, shape.rope_scaling) == (123.0, None)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (llama(architectures=["MambaForCausalLM"]), "MambaForCausalLM is not supported; supported are"),
        (llama(architectures=None), "'architectures'"),
        (llama(architectures=["LlamaForCausalLM", "Other"]), "'architectures'"),
        (llama(attention_bias=True), "attention_bias=True"),
        (llama(mlp_bias=True), "mlp_bias=True"),
        (llama(hidden_act="gelu"), "hidden_act='gelu'"),
        (llama(quantization_config={"quant_method": "gptq"}), "quantization_config="),
        (llama(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (
            llama(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
            "partial_rotary_factor=0.5",
        ),
        (llama(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}), "rotary scaling 'yarn'"),
        (llama(rope_scaling={"type": "linear", "factor": 2.0}), "rotary scaling 'linear'"),
        (llama(rope_parameters={**LLAMA3, "factor": "8"}), "'factor'"),
        (llama(rope_parameters={"full_attention": {"rope_type": "default"}}), "one set of rotary parameters"),
        (llama(rope_interleaved=True), "rope_interleaved=True"),
        (llama(sliding_window=4096), "sliding_window=4096"),
        (llama(final_logit_softcapping=30.0), "final_logit_softcapping=30.0"),
        (llama(head_dim=7), "head_dim=7 is odd"),
        (llama(head_dim=None, hidden_size=50), "hidden_size=50 is no multiple"),
        (llama(num_key_value_heads=4), "num_attention_heads=6 is no multiple of num_key_value_heads=4"),
        (llama(num_hidden_layers="3"), "'num_hidden_layers'"),
        (llama(vocab_size=0), "'vocab_size'"),
        (llama(rms_norm_eps=10**400), "'rms_norm_eps' to be a positive number"),
        (llama(layer_types=[[1]]), "layer_types=[[1]]"),
        (gemma2(layer_types=[[1], {}, 3]), "layer_types=[[1], {}, 3]"),
        (gemma2(layer_types=10**400), "layer_types=1000"),
        (llama(num_hidden_layers=10_000_000), "'num_hidden_layers' to be at most 10000, found"),
        (gemma2(num_hidden_layers=10**400), "'num_hidden_layers' to be at most 10000"),
        (llama(vocab_size=2**31), "'vocab_size' to be at most 2147483647"),
        (mixtral(num_local_experts=10**9), "'num_local_experts' to be at most 10000"),
        (mixtral(num_experts=8), "num_local_experts=4, but num_experts=8"),
        (llama(rms_norm_eps=None), "'rms_norm_eps'"),
        (llama(tie_word_embeddings="no"), "'tie_word_embeddings'"),
        (qwen2(use_sliding_window=True), "use_sliding_window=True"),
        (qwen2(layer_types=["full_attention", "sliding_attention", "full_attention"]), "layer_types="),
        (qwen2(use_mrope=True), "use_mrope=True"),
        (qwen3(use_sliding_window=True), "use_sliding_window=True"),
        (qwen3(attention_bias=True), "attention_bias=True"),
        (mistral(sliding_window=0), "'sliding_window'"),
        (gemma2(hidden_activation="gelu"), "hidden_activation='gelu'"),
        (gemma2(attention_bias=True), "attention_bias=True"),
        (gemma2(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        (gemma2(layer_types=["full_attention"]), "layer_types=['full_attention']"),
        (gemma2(layer_types=["chunked_attention"] * 3), "layer_types=['chunked_attention'"),
        (gemma2(query_pre_attn_scalar=-1), "'query_pre_attn_scalar'"),
        (qwen3_moe(decoder_sparse_step=2), "decoder_sparse_step=2"),
        (qwen3_moe(mlp_only_layers=[0]), "mlp_only_layers=[0]"),
        (qwen3_moe(attention_bias=True), "attention_bias=True"),
        (qwen3_moe(use_sliding_window=True), "use_sliding_window=True"),
        (qwen3_moe(norm_topk_prob="yes"), "'norm_topk_prob'"),
        (qwen3_moe(moe_intermediate_size=None), "'moe_intermediate_size'"),
        (mixtral(sliding_window=4096), "sliding_window=4096"),
        (mixtral(router_jitter_noise=0.1), "router_jitter_noise=0.1"),
        (mixtral(num_local_experts=None), "'num_experts' to be a positive integer"),
        (mixtral(num_experts_per_tok=5), "num_experts_per_tok=5 is more than num_local_experts=4"),
        (mixtral(num_experts_per_tok=1), "num_experts_per_tok=1"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as refused:
        model_shape(config)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        llama(attention_bias=None, mlp_bias=None, rope_interleaved=False, is_llama_config=True, pretraining_tp=4),
        qwen2(use_sliding_window=False, sliding_window=131072, max_window_layers=2),
        qwen2(layer_types=["full_attention"] * 3),
        llama(num_key_value_heads=None),
    ],
)
def test_fields_that_change_nothing_are_accepted(config: dict[str, Any]) -> None:
    assert model_shape(config).num_layers == 3


def test_shape_of_a_gemma2() -> None:
    shape = model_shape(gemma2(query_pre_attn_scalar=64))
    assert shape.layer_windows == (16, 0, 16)
    assert (shape.query_scale, shape.attention_softcap, shape.final_softcap) == (0.125, 50.0, 30.0)
    assert (shape.embedding_scale, shape.activation, shape.tied_embeddings) == (48**0.5, "gelu_tanh", True)
    assert shape.post_norms
    assert shape.norm_adds_one


def test_defaults_of_a_family_are_those_of_transformers() -> None:
    bare = {key: value for key, value in gemma2().items() if key not in ("head_dim", "layer_types", "sliding_window")}
    assert model_shape(bare).head_dim == Gemma2Config().head_dim
    assert model_shape({**bare, "max_position_embeddings": 8192}).layer_windows == (4096, 0, 4096)
    assert model_shape(qwen3(head_dim=None)).head_dim == Qwen3Config().head_dim
    assert model_shape(gemma2(attn_logit_softcapping=None)).attention_softcap is None


def test_a_window_counts_only_where_it_can_hide_something() -> None:
    assert model_shape(mistral()).layer_windows == (16, 16, 16)
    assert model_shape(mistral(sliding_window=256)).layer_windows == ()
    assert model_shape(mistral(sliding_window=None)).layer_windows == ()


def test_shape_of_a_mixtral() -> None:
    shape = model_shape(mixtral(rope_parameters=None))
    assert shape.experts == ExpertShape(count=4, top_k=2, ffn_hidden_size=80, normalised=True)
    assert shape.rope_theta == 1e6, "transformers' default for this family"


def test_shape_of_a_qwen3_moe() -> None:
    published = {
        "num_experts": 6,
        "num_local_experts": None,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    }
    shape = model_shape(qwen3_moe(**published))
    assert shape.experts == ExpertShape(count=6, top_k=3, ffn_hidden_size=24, normalised=True)
    assert (shape.ffn_hidden_size, shape.qk_norm, shape.head_dim) == (24, True, 10)
    assert model_shape(qwen3_moe(norm_topk_prob=None)).experts == ExpertShape(
        count=6, top_k=3, ffn_hidden_size=24, normalised=False
    )


def test_every_family_is_found_by_its_file() -> None:
    families = ("Gemma2", "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Qwen3Moe")
    assert {f"{family}ForCausalLM" for family in families} <= set(SUPPORTED)
    assert list(SUPPORTED) == sorted(SUPPORTED)
    assert model_shape(qwen2()).architecture == "Qwen2ForCausalLM"


def test_a_missing_folder_a_missing_file_and_bad_json_are_each_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        HfFolder(tmp_path / "nowhere").config()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        HfFolder(tmp_path).config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        HfFolder(tmp_path).config()
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        HfFolder(tmp_path).config()
