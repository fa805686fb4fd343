"""Whether the model folder is complete, of a supported architecture, and fits layout, lengths and engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from megatron_rlpr.actor import fp8
from megatron_rlpr.config.checks import engine, pipeline
from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import ModelShape, model_shape
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import open_hf_weights

Fits = Callable[[int], bool]
"""Whether so many ranks can share something evenly."""

MOST_RANKS = 1024
"""The largest number of ranks that a refusal offers instead."""


def refusals(config: Config) -> Iterator[str]:
    """One sentence for each reason why model.path cannot be trained with this configuration."""
    yield from policy_refusals(config)
    yield from _lengths(config, _shape(config))
    engine.check(config)


def policy_refusals(config: Config) -> Iterator[str]:
    """Those that concern a policy alone, without prompts, engines and a run."""
    yield from _folder(config)
    shape = _shape(config)
    yield from layout_refusals(config, shape)
    yield from fp8_refusals(config, shape)
    try:
        open_hf_weights(shape, config.model.path)
    except UserError as error:
        raise UserError(f"model.path: {error}") from error


def _folder(config: Config) -> Iterator[str]:
    path = config.model.path
    if not path or not Path(path).is_dir():
        problem = " is empty" if not path else f"={path} is a file" if Path(path).is_file() else f": there is no {path}"
        yield (
            f"model.path{problem}: name the Hugging Face folder of the policy (config.json, tokenizer, safetensors); "
            "python -m tools.fetch_model puts a model into a local folder"
        )


def _shape(config: Config) -> ModelShape:
    folder = HfFolder(config.model.path)
    try:
        shape = model_shape(folder.config())
        folder.check_tokenizer()
        folder.check_companions()
    except UserError as error:
        raise UserError(f"model.path={config.model.path}: {error}") from error
    return shape


def layout_refusals(config: Config, shape: ModelShape) -> Iterator[str]:
    """Sizes of the model that the ranks cannot share."""
    # The vocabulary is not among them: the actor and the engine pad it to a multiple of the ranks.
    heads = {f"{shape.num_attention_heads} attention heads": _even(shape.num_attention_heads)}
    groups, columns = f"{shape.num_query_groups} key/value heads", f"{shape.ffn_hidden_size} feed-forward columns"
    feed_forward = {columns: _even(shape.ffn_hidden_size)}
    cut, copied = heads | {groups: _cut_groups(shape)}, heads | {groups: _copied_groups(shape)}
    of_experts = bool(shape.experts and config.actor.expert_tensor_parallel_size)
    yield from _indivisible(config, "actor.tensor_model_parallel_size", cut | ({} if of_experts else feed_forward))
    if of_experts:
        yield from _indivisible(config, "actor.expert_tensor_parallel_size", feed_forward)
    yield from _indivisible(config, "rollout.tensor_parallel_size", copied | feed_forward)
    yield from pipeline.layer_refusals(config.actor, shape.num_layers, config.model.path)
    yield from _recompute(config, shape)
    actor = config.actor
    if shape.experts is None:
        if actor.expert_model_parallel_size != 1:
            yield (
                f"actor.expert_model_parallel_size={actor.expert_model_parallel_size}, but {config.model.path} has no "
                "experts: set it to 1"
            )
        if actor.expert_tensor_parallel_size:
            yield (
                f"actor.expert_tensor_parallel_size={actor.expert_tensor_parallel_size}, but {config.model.path} has "
                "no experts: remove it"
            )
        return
    experts = {f"{shape.experts.count} experts": _even(shape.experts.count)}
    yield from _indivisible(config, "actor.expert_model_parallel_size", experts)
    if actor.tensor_model_parallel_size > 1 and not actor.sequence_parallel:
        yield (
            f"{config.model.path} is a mixture of experts: with actor.tensor_model_parallel_size > 1 every rank would "
            "send all tokens to the experts, which Megatron-Core does not train; set actor.sequence_parallel=true"
        )


def _recompute(config: Config, shape: ModelShape) -> Iterator[str]:
    """Units of recomputed layers that a stage does not hold: Megatron-Core would look for layers beyond its last."""
    actor = config.actor
    if actor.recompute_granularity != "full":
        return
    layers, unit = set(pipeline.layers_of_parts(actor, shape.num_layers)), actor.recompute_num_layers
    if any(count % unit for count in layers) if actor.recompute_method == "uniform" else unit > max(layers):
        stage = "a pipeline stage" if actor.virtual_pipeline_model_parallel_size == 1 else "a part of a pipeline stage"
        yield (
            f"actor.recompute_num_layers={unit} does not fit the {' or '.join(map(str, sorted(layers)))} layers of "
            f"{stage} of {config.model.path}: choose a divisor (actor.recompute_method=uniform) or at most "
            f"{max(layers)} (block)"
        )


def _even(count: int) -> Fits:
    return lambda ranks: count % ranks == 0


def _copied_groups(shape: ModelShape) -> Fits:
    """Ranks of an engine hold whole key/value heads or, where they are more, several of them the same one."""
    return lambda ranks: not (shape.num_query_groups % ranks and ranks % shape.num_query_groups)


def _cut_groups(shape: ModelShape) -> Fits:
    """Ranks of the actor cut the rows of a key/value head's group where they are more (`weights.mapping.Qkv`)."""
    rows = (shape.num_attention_heads // shape.num_query_groups + 2) * shape.head_dim
    copied = _copied_groups(shape)
    return lambda ranks: copied(ranks) and rows % max(1, ranks // shape.num_query_groups) == 0


def _indivisible(config: Config, key: str, conditions: Mapping[str, Fits]) -> Iterator[str]:
    """What the ranks of a key cannot share evenly, with the numbers of ranks that could."""
    ranks = all_keys()[key].value(config)
    for what, fits in conditions.items():
        if not fits(ranks):
            possible = [n for n in range(1, MOST_RANKS + 1) if all(fits(n) for fits in conditions.values())]
            yield (
                f"{key}={ranks} does not divide the {what} of {config.model.path}: possible "
                f"{'are' if len(possible) > 1 else 'is'} {', '.join(map(str, possible))}"
            )


def _lengths(config: Config, shape: ModelShape) -> Iterator[str]:
    data, prompt, response = config.data, config.data.longest_prompt, config.data.max_response_length
    if prompt + response > shape.max_position_embeddings:
        key = "data.max_prompt_length" if prompt == data.max_prompt_length else "data.val_max_prompt_length"
        yield (
            f"{key}={prompt} + data.max_response_length={response} = "
            f"{prompt + response} tokens, but {config.model.path} has positions for {shape.max_position_embeddings} "
            "(max_position_embeddings): lower them"
        )


def fp8_refusals(config: Config, shape: ModelShape) -> Iterator[str]:
    """Sizes that the recipe's matrix products do not take, on any rank; layers and tokens that do not fit."""
    actor = fp8.resolved(config.actor)
    if not actor.fp8:
        return
    recipe, block, tensor = actor.fp8_recipe, fp8.RECIPES[actor.fp8_recipe].features, actor.tensor_model_parallel_size
    query, model = shape.num_attention_heads * shape.head_dim, config.model.path
    sizes = {
        "hidden size": shape.hidden_size,
        f"query size / {tensor} ranks": query // tensor,
        f"attention size / {tensor} ranks": (query + 2 * shape.num_query_groups * shape.head_dim) // tensor,
    }
    if shape.experts:
        of_expert = actor.expert_tensor_size
        sizes[f"feed-forward size / {of_expert} ranks"] = shape.experts.ffn_hidden_size // of_expert
    else:
        sizes[f"feed-forward size / {tensor} ranks"] = shape.ffn_hidden_size // tensor
    for what, size in sizes.items():
        if size % block:
            yield (
                f"actor.fp8_recipe={recipe} needs multiples of {block}, but the {what} of {model} is "
                f"{size}: lower actor.tensor_model_parallel_size or choose another recipe"
            )
    first, last = actor.num_layers_at_start_in_bf16, actor.num_layers_at_end_in_bf16
    stage = shape.num_layers // actor.pipeline_model_parallel_size
    if actor.first_last_layers_bf16 and (max(first, last) > stage or first + last >= shape.num_layers):
        yield (
            f"actor.num_layers_at_start_in_bf16={first} and actor.num_layers_at_end_in_bf16={last} must each fit the "
            f"{stage} layers of a pipeline stage, and leave some of {model}'s {shape.num_layers} to FP8: lower them"
        )
    multiple, data = fp8.sequence_multiple(actor), config.data
    prompt = data.longest_prompt if config.evaluation.score_reward else data.max_prompt_length
    needed = -(-(prompt + data.max_response_length) // multiple) * multiple
    if needed > actor.max_tokens_per_micro_batch:
        yield (
            f"actor.max_tokens_per_micro_batch={actor.max_tokens_per_micro_batch} cannot hold one sequence padded to a "
            f"multiple of {multiple}, as actor.fp8_recipe={recipe} needs it: raise it to at least {needed}"
        )
