"""Whether the model folder is complete, of a supported architecture, and divisible by the parallel layout."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import ModelShape, model_shape, read_hf_config

FETCH = "python -m tools.fetch_model puts a model into a local folder"


def check(config: Config) -> None:
    """Raise UserError when model.path cannot be trained with this configuration."""
    shape = _shape(config.model.path)
    _check_tokenizer(config.model.path)
    _check_safetensors(config.model.path)
    _check_tensor_parallel(config, shape)
    _check_pipeline_parallel(config, shape)
    _check_experts(config, shape)
    _check_lengths(config, shape)
    _check_fp8_sizes(config, shape)
    from megatron_rlpr.config.checks import engine  # imports torch, which waits until all else is right

    engine.check(config)


def _shape(path: str) -> ModelShape:
    if not path:
        raise UserError(f"model.path is empty: name the Hugging Face folder of the policy; {FETCH}")
    if Path(path).is_file():
        raise UserError(
            f"model.path={path} is a file: name the folder that holds config.json, the tokenizer and the safetensors"
        )
    if not Path(path).exists():
        raise UserError(f"model.path: there is no folder {path}; {FETCH}")
    try:
        return model_shape(read_hf_config(path))
    except UserError as error:
        raise UserError(f"model.path={path}: {error}") from error


def _check_tokenizer(path: str) -> None:
    if not (Path(path) / "tokenizer.json").is_file():
        raise UserError(
            f"model.path={path} holds no tokenizer.json: a fast tokenizer is needed; save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )


def _check_safetensors(path: str) -> None:
    folder = Path(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{index} is no safetensors index: expected a JSON object with a 'weight_map'; fetch the model again"
            ) from error
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise UserError(
                f"model.path={path} lacks {len(missing)} of {len(shards)} weight files, e.g. {missing[0]}: fetch the "
                "model again"
            )
    elif not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        hint = (
            "pickled weights (*.bin) are not read for safety: save them as safetensors"
            if pickled
            else "fetch the model again"
        )
        raise UserError(f"model.path={path} holds no *.safetensors: {hint}")


def _check_tensor_parallel(config: Config, shape: ModelShape) -> None:
    # The vocabulary is not among them: the actor and the engine pad it to a multiple of the ranks.
    counts = {
        "attention heads": shape.num_attention_heads,
        "key/value heads": shape.num_query_groups,
        "feed-forward columns": shape.ffn_hidden_size,
    }
    for key, size in (
        ("actor.tensor_model_parallel_size", config.actor.tensor_model_parallel_size),
        ("rollout.tensor_parallel_size", config.rollout.tensor_parallel_size),
    ):
        for what, count in counts.items():
            if count % size:
                possible = [n for n in range(1, shape.num_query_groups + 1) if all(c % n == 0 for c in counts.values())]
                raise UserError(
                    f"{key}={size} does not divide the {count} {what} of {config.model.path}: {_possible(possible)}"
                )


def _check_pipeline_parallel(config: Config, shape: ModelShape) -> None:
    stages = config.actor.pipeline_model_parallel_size
    if shape.num_layers % stages:
        possible = [n for n in range(1, shape.num_layers + 1) if shape.num_layers % n == 0]
        raise UserError(
            f"actor.pipeline_model_parallel_size={stages} does not divide the {shape.num_layers} layers of "
            f"{config.model.path}: {_possible(possible)}"
        )


def _check_experts(config: Config, shape: ModelShape) -> None:
    ranks, experts = config.actor.expert_model_parallel_size, shape.experts
    if experts is None:
        if ranks != 1:
            raise UserError(
                f"actor.expert_model_parallel_size={ranks}, but {config.model.path} has no experts: set it to 1"
            )
        return
    if experts.count % ranks:
        possible = [n for n in range(1, experts.count + 1) if experts.count % n == 0]
        raise UserError(
            f"actor.expert_model_parallel_size={ranks} does not divide the {experts.count} experts of "
            f"{config.model.path}: {_possible(possible)}"
        )
    if config.actor.tensor_model_parallel_size > 1 and not config.actor.sequence_parallel:
        raise UserError(
            f"{config.model.path} is a mixture of experts: with actor.tensor_model_parallel_size > 1 every rank would "
            "send all tokens to the experts, which Megatron-Core does not train; set actor.sequence_parallel=true"
        )


def _possible(sizes: list[int]) -> str:
    return f"possible {'are' if len(sizes) > 1 else 'is'} {', '.join(map(str, sizes))}"


def _check_lengths(config: Config, shape: ModelShape) -> None:
    for key, prompt in _prompt_lengths(config).items():
        longest = prompt + config.data.max_response_length
        if longest > shape.max_position_embeddings:
            raise UserError(
                f"{key}={prompt} + data.max_response_length={config.data.max_response_length} = {longest} tokens, but "
                f"{config.model.path} has positions for {shape.max_position_embeddings} (max_position_embeddings): "
                "lower them"
            )


def _prompt_lengths(config: Config) -> dict[str, int]:
    lengths = {} if config.trainer.val_only else {"data.max_prompt_length": config.data.max_prompt_length}
    if config.data.val_files:
        lengths["data.val_max_prompt_length"] = config.data.val_max_prompt_length
    return lengths


def _check_fp8_sizes(config: Config, shape: ModelShape) -> None:
    """FP8 matrix multiplications take sizes that are multiples of 16; MXFP8 scales blocks of 32 values."""
    if not config.actor.fp8:
        return
    block = 32 if config.actor.fp8_recipe == "mxfp8" else 16
    tensor = config.actor.tensor_model_parallel_size
    attention = (shape.num_attention_heads + 2 * shape.num_query_groups) * shape.head_dim
    sizes = {
        "hidden size": shape.hidden_size,
        f"attention size / {tensor} ranks": attention // tensor,
        f"feed-forward size / {tensor} ranks": shape.ffn_hidden_size // tensor,
    }
    for what, size in sizes.items():
        if size % block:
            raise UserError(
                f"actor.fp8_recipe={config.actor.fp8_recipe} needs multiples of {block}, but the {what} of "
                f"{config.model.path} is {size}: lower actor.tensor_model_parallel_size or choose another recipe"
            )
