"""Weights survive every way between the two worlds, bit for bit, and give transformers' logits at every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from program_report import report_of
from safetensors.torch import save_file
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

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "weight_layouts.py"

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ONE_KEY_HEAD = SIZES | {"num_key_value_heads": 1}
# Vocabularies that two ranks do not divide; heads that are not hidden size / number; one query group per rank at TP2,
# or a part of one.
MODELS: dict[str, PreTrainedConfig] = {
    "llama_tied": LlamaConfig(**SIZES, vocab_size=131, max_position_embeddings=256, tie_word_embeddings=True),
    "llama_untied": LlamaConfig(
        **SIZES,
        vocab_size=97,
        max_position_embeddings=256,
        head_dim=10,
        rope_theta=5e5,
        rope_scaling=LLAMA3,
        rms_norm_eps=1e-5,
    ),
    "qwen2": Qwen2Config(**ONE_KEY_HEAD, vocab_size=128, max_position_embeddings=256),
    "mixtral": MixtralConfig(
        **SIZES, vocab_size=131, max_position_embeddings=256, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES,
        vocab_size=128,
        max_position_embeddings=256,
        head_dim=10,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=False,
    ),
    "qwen3": Qwen3Config(**ONE_KEY_HEAD, vocab_size=128, max_position_embeddings=256, head_dim=10),
    # Windows shorter than the prompt, soft caps that bend what they cap.
    "mistral": MistralConfig(**SIZES, vocab_size=128, max_position_embeddings=256, sliding_window=16),
    "gemma2": Gemma2Config(
        **SIZES,
        vocab_size=131,
        max_position_embeddings=256,
        head_dim=10,
        query_pre_attn_scalar=6,
        sliding_window=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
    ),
}
EXPERTS = ("mixtral", "qwen3_moe")
LAYOUTS = ["1 process", "TP2", "PP2", "TP2 x PP2", "PP2 x VPP2 x DP2"]
EXPERT_LAYOUTS = ["EP2", "TP2 x EP2", "TP2, EP2 x ETP1", "DP2, ETP2"]
CASES = [(layout, model) for model in MODELS for layout in [*LAYOUTS, *(EXPERT_LAYOUTS if model in EXPERTS else [])]]
in_every_layout = pytest.mark.parametrize(("layout", "model"), CASES)


def make_model(config: PreTrainedConfig, folder: Path) -> None:
    """A random model whose every tensor matters (norms and biases too), with logits of one prompt."""
    torch.manual_seed(len(folder.name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(folder, max_shard_size="60KB" if config.model_type == "qwen2" else "5GB")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    prompt = torch.randint(0, config.vocab_size, (60,))
    with torch.no_grad():
        logits = model(prompt[None]).logits[0]
    (folder / "expected").mkdir()
    save_file({"prompt": prompt, "logits": logits}, folder / "expected" / "logits.safetensors")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/distributed/programs/weight_layouts.py observed."""
    models, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    for name, config in MODELS.items():
        make_model(config, models / name)
    return report_of("weight_layouts.py", tmp_path_factory.mktemp("output"), models, work, timeout_s=1200)


def ranks(report: dict[str, Any], layout: str, model: str) -> list[dict[str, Any]]:
    return [facts[model] for facts in report["layouts"][layout]]


@in_every_layout
def test_logits_equal_those_of_transformers(report: dict[str, Any], layout: str, model: str) -> None:
    differences = [
        facts["logit_difference"] for facts in ranks(report, layout, model) if facts["logit_difference"] is not None
    ]
    assert differences
    assert max(differences) < 2e-4


@in_every_layout
def test_every_rank_exports_the_very_tensors_that_were_loaded(report: dict[str, Any], layout: str, model: str) -> None:
    for facts in ranks(report, layout, model):
        assert facts["in_manifest_order"]
        assert facts["identical"]
        assert facts["contiguous"]
        assert facts["dtypes"] == ["torch.float32"]


@in_every_layout
def test_buckets_are_bounded(report: dict[str, Any], layout: str, model: str) -> None:
    for facts in ranks(report, layout, model):
        assert facts["buckets"] > 5
        assert facts["could_be_fewer"] == 0
        assert (
            facts["largest_bucket_of_several"] <= 0.02 * 2**20 + 4 * 8 * 48
        )  # vocabulary padding travels with the embedding


@in_every_layout
def test_a_converted_checkpoint_loads_at_any_layout(report: dict[str, Any], layout: str, model: str) -> None:
    for facts in ranks(report, layout, model):
        assert facts["reloaded_difference"] == 0
        assert facts["padding_is_zero"]


@pytest.mark.parametrize("model", MODELS)
def test_hand_overs_have_one_checksum_on_all_ranks_of_all_layouts(report: dict[str, Any], model: str) -> None:
    layouts = [layout for layout, of in CASES if of == model]
    found = [facts["hand_over"] for layout in layouts for facts in ranks(report, layout, model)]
    assert len({checksum for facts in found for checksum in facts["checksums"]}) == 1
    assert len({facts["nbytes"] for facts in found}) == 1
    assert all(facts["complete"] and facts["versions"] == [3, 5] for facts in found)


@in_every_layout
def test_a_hand_over_that_failed_on_one_rank_is_repeated_on_all_with_new_engines(
    report: dict[str, Any], layout: str, model: str
) -> None:
    """Whether an engine went away or held other weights than were sent."""
    for facts in ranks(report, layout, model):
        checksum = facts["hand_over"]["checksums"][0]
        assert facts["hand_over"]["healed"] == [[checksum, 1, 1, True]] * 2


@in_every_layout
def test_a_hand_over_that_fails_twice_on_one_rank_raises_on_all(
    report: dict[str, Any], layout: str, model: str
) -> None:
    """And the next one is whole again (see the checksums): no rank is left behind in a gather."""
    first, *others = [facts["hand_over"]["errors"] for facts in ranks(report, layout, model)]
    assert first[0] == "the engine went away"
    assert first[1].startswith("hand-over 5 sent weights with checksum ")
    assert others == [["hand-over 5 failed on another rank"] * 2] * len(others)


SLICED = [(layout, model) for layout, model in CASES if layout not in ("1 process", "PP2")]


@pytest.mark.parametrize(("layout", "model"), SLICED)
@pytest.mark.parametrize("size", ["2", "4"])
def test_engines_of_several_ranks_get_their_slices_and_each_rank_no_more_than_planned(
    report: dict[str, Any], layout: str, model: str, size: str
) -> None:
    """The policy cuts layers, experts or neither by two; vocabularies are cut alike by both, or not."""
    found = [facts["sliced"][size] for facts in ranks(report, layout, model) if size in facts["sliced"]]
    if len(report["layouts"][layout]) < int(size):
        assert not found
        return
    assert found or size == "4"
    for facts in found:
        assert facts["names"]
        assert facts["identical"]
        assert facts["contiguous"]
        assert facts["received"] == facts["planned"] <= facts["received_whole"]
        assert facts["received"] <= facts["kept"] or facts["shards_travel"]
    most = max((facts["received"] for facts in found), default=0)
    assert {tuple(facts["report"]) for facts in found} == {(most, facts["report"][1]) for facts in found[:1]}


def test_with_as_many_ranks_in_an_engine_as_cut_a_layer_only_slices_of_other_stages_move(
    report: dict[str, Any],
) -> None:
    """128 tokens, so that both cut the vocabulary alike, and no more ranks than key/value heads."""
    for model in ("mistral", "qwen3_moe"):
        assert [facts["sliced"]["2"]["received"] for facts in ranks(report, "TP2", model)] == [0, 0]
        for facts in (facts["sliced"]["2"] for facts in ranks(report, "TP2 x PP2", model)):
            assert 0.3 < facts["received"] / facts["kept"] < 0.7
            assert facts["received_whole"] > 1.4 * facts["kept"]


@in_every_layout
def test_a_receiver_that_wants_no_weights_costs_none(report: dict[str, Any], layout: str, model: str) -> None:
    assert [facts["hand_over"]["ignored_bytes"] for facts in ranks(report, layout, model)] == [0] * len(
        report["layouts"][layout]
    )


@in_every_layout
def test_a_run_writes_hugging_face_folders_from_any_layout(report: dict[str, Any], layout: str, model: str) -> None:
    """One that could not be written is no step, and no rank waits; a step made again replaces those after it."""
    first, *others = [facts["exports"] for facts in ranks(report, layout, model)]
    assert first["error"] == "UserError"
    assert others == [{"error": "UserError"}] * len(others)
    assert first["after_failure"] == ["step_000020"], "what failed does not stay: it may be what filled the disk"
    assert first["left"] == ["step_000010"]
    assert first["files"] == (2 if "PP2" in layout else 1), "every stage writes its own"
    assert (first["missing"], first["identical"], first["dtypes"], first["config_dtype"]) == (
        [],
        True,
        ["torch.float32"],
        "float32",
    )
    assert first["template"] == "{{ messages }}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_hugging_face_to_megatron_and_back_is_bit_identical(report: dict[str, Any], model: str, dtype: str) -> None:
    facts = report["conversions"][f"{model} {dtype}"]
    assert facts["missing"] == []
    assert facts["identical"]
    assert facts["same_checksum"]
    assert facts["dtypes"] == [f"torch.{dtype}"]
    assert facts["files"] > 1
    assert facts["config_dtype"] == dtype
    assert facts["template"] == "{{ messages }}"


@pytest.mark.parametrize("model", MODELS)
def test_a_conversion_that_is_already_there_is_left_alone(report: dict[str, Any], model: str) -> None:
    assert report["conversions"][f"{model} float32"]["made"] == [True, False, True, False]


@pytest.mark.parametrize("model", MODELS)
def test_a_training_checkpoint_of_four_ranks_becomes_the_same_hugging_face_folder(
    report: dict[str, Any], model: str
) -> None:
    facts = report["exports_of_runs"][model]
    assert facts["missing"] == []
    assert facts["identical"]
