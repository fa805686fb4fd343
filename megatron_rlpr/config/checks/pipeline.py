"""How layers are dealt to pipeline stages and, with a virtual pipeline, to the parts that each stage holds.

Data flows through the parts in order: part i of PP x VPP is on stage i % PP. The first one begins with the embedding,
the last one ends with the output head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_rlpr.config.bounds import shown
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.types import UserError

_PP, _VPP, _LAYOUT = (
    f"actor.{name}"
    for name in (
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "pipeline_model_parallel_layout",
    )
)
_REPEATED = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))
_LONGEST = 10_000
"""Characters of a layout that is written without repetitions."""


def refusals(actor: ActorConfig) -> Iterator[str]:
    """What is wrong with the keys alone, whatever the model."""
    stages, rounds = actor.pipeline_model_parallel_size, actor.virtual_pipeline_model_parallel_size
    layout = shown(actor.pipeline_model_parallel_layout)
    if stages == 1:
        idle = {_VPP: rounds if rounds > 1 else "", _LAYOUT: layout if actor.pipeline_model_parallel_layout else ""}
        for name, value in idle.items():
            if value:
                yield f"{name}={value} has no effect with {_PP}=1: set that to 2 or more, or remove it"
    elif actor.pipeline_model_parallel_layout:
        parts = _parts(actor)
        if not re.fullmatch("Et*L", "".join(parts)):
            yield f"{_LAYOUT}={layout} must be one E, then all t, then one L, with | between parts: e.g. Et*3|t*3L"
        if "" in parts:
            empty = f"part {parts.index('') + 1} of {_LAYOUT}={layout} is empty"
            yield f"{empty}: give it a layer, or write one part less"
        if len(parts) != stages * rounds:
            makes = f"{_LAYOUT}={layout} makes {len(parts)} parts, not {_PP} x {_VPP} = {stages} x {rounds}"
            fits = len(parts) % stages == 0
            yield f"{makes}: " + (f"set {_VPP}={len(parts) // stages}" if fits else f"write {stages * rounds}")


def layer_refusals(actor: ActorConfig, num_layers: int, model: str) -> Iterator[str]:
    """Why the parts cannot hold the model's layers, once nothing is wrong with the keys."""
    stages, rounds = actor.pipeline_model_parallel_size, actor.virtual_pipeline_model_parallel_size
    if actor.pipeline_model_parallel_layout:
        if (placed := sum(layers_of_parts(actor, num_layers))) != num_layers:
            layout = shown(actor.pipeline_model_parallel_layout)
            yield (
                f"{_LAYOUT}={layout} places {placed} layers, but {model} has {num_layers}: change its t, e.g. to "
                f"{nearly_even(num_layers, stages * rounds) or 'fewer parts'}"
            )
    elif num_layers % (stages * rounds):
        whole = num_layers % stages == 0
        key, count = (f"{_VPP}={rounds}", num_layers // stages) if whole else (f"{_PP}={stages}", num_layers)
        possible = [n for n in range(1, count + 1) if count % n == 0]
        uneven = nearly_even(num_layers, stages * rounds)
        yield (
            f"{key} does not divide the {count} layers of {'a pipeline stage of ' if whole else ''}{model}: possible "
            f"{'are' if len(possible) > 1 else 'is'} {', '.join(map(str, possible))}"
            f"{f'; or unequal parts: {_LAYOUT}={uneven}' if uneven else ''}"
        )


def layers_of_parts(actor: ActorConfig, num_layers: int) -> list[int]:
    """Layers of every part, in the order of the layers."""
    if actor.pipeline_model_parallel_layout:
        return [part.count("t") for part in _parts(actor)]
    parts = actor.pipeline_model_parallel_size * actor.virtual_pipeline_model_parallel_size
    return [num_layers // parts] * parts


def nearly_even(num_layers: int, parts: int) -> str:
    """A layout of so many parts of nearly as many layers, fewer where embedding and head are; empty without one."""
    each, left = divmod(num_layers, parts)
    if not each:
        return ""
    favoured = [*range(1, parts - 1), 0, parts - 1][:left]
    layers = [f"t*{each + (part in favoured)}" for part in range(parts)]
    return f"E{'|'.join(layers)}L"


def _parts(actor: ActorConfig) -> list[str]:
    """The layout part by part, without repetitions. UserError when it is not written in Megatron's way."""
    text = actor.pipeline_model_parallel_layout.replace(",", "")
    key = f"{_LAYOUT}={shown(actor.pipeline_model_parallel_layout)}"
    for repeated in _REPEATED:
        if sum(len(found[1]) * int(found[2]) for found in repeated.finditer(text)) > _LONGEST:
            raise UserError(f"{key} stands for more than {_LONGEST} layers: write fewer")
        text = repeated.sub(lambda found: found[1] * int(found[2]), text)
    if foreign := set(text) - set("EtL|"):
        known = "E (embedding), t (layer), L (output head), | (next part), *N and (...)*N (N times)"
        raise UserError(f"{key} holds {shown(min(foreign))}: use {known}")
    return text.split("|")
