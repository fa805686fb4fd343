"""A rank of a tensor-parallel engine takes slices that are its own already, instead of cutting whole tensors itself.

vLLM's loaders know Hugging Face names and whole tensors. Here its parameters are filled in place, by their names in the
engine, and everything around that is vLLM's own layerwise reload: a layer is made plain, filled, packed or repacked for
its kernels, and copied to where the engine's graphs expect it. vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from megatron_rlpr.weights.architectures import parameter_table
from megatron_rlpr.weights.engine_slices import EngineRank, Slice, slices_of
from megatron_rlpr.weights.mapping import GateUp, ParamMapping, Qkv
from megatron_rlpr.weights.shape import ModelShape

_FUSED = {Qkv: "qkv_proj", GateUp: "gate_up_proj"}


@dataclass(frozen=True)
class Place:
    """Where a slice lies: in rows [start, stop) of an engine's parameter, or of one expert's part of it, from the first
    on; rows that the slice leaves are zero."""

    cut: Slice
    parameter: str
    start: int
    stop: int
    expert: int | None = None

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The rows, a view."""
        return (parameter if self.expert is None else parameter[self.expert])[self.start : self.stop]


def engine_places(shape: ModelShape, engine: EngineRank) -> dict[str, Place]:
    """Hugging Face name -> place of everything that rank of an engine holds. ValueError as `slices_of`."""
    places: dict[str, Place] = {}
    for mapping in parameter_table(shape):
        if mapping.is_copy:
            continue
        parameter, expert, start = *_engine_name(mapping), 0
        for cut in slices_of(mapping, engine):
            stop = start + (cut.padded if cut.dim == 0 else cut.shape[0])
            places[cut.name] = Place(cut, parameter, start, stop, expert)
            start = stop
    return places


def _engine_name(mapping: ParamMapping) -> tuple[str, int | None]:
    """vLLM's name of the parameter that holds the tensors of a mapping, and the expert whose they are."""
    name = mapping.hf[0].name
    if mapping.of_expert:
        block, _, rest = name.partition(".experts.")
        leaf = "w13_weight" if isinstance(mapping.layout, GateUp) else "w2_weight"
        return f"{block}.experts.routed_experts.{leaf}", int(rest.partition(".")[0])
    if fused := _FUSED.get(type(mapping.layout)):
        module, _, kind = name.rpartition(".")
        return f"{module.rpartition('.')[0]}.{fused}.{kind}", None
    return name, None


def parameter_shapes(places: Mapping[str, Place]) -> dict[str, tuple[int, ...]]:
    """Engine parameter -> the shape it must have for these places to fill it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place in places.values():
        of_one = (place.stop, *place.cut.shape[1:])
        shapes[place.parameter] = of_one if place.expert is None else (place.expert + 1, *of_one)
    return shapes


def own_places(shape: ModelShape, size: int) -> dict[str, Place]:
    """What this process holds, a worker of an engine of so many ranks."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return engine_places(shape, EngineRank(get_tensor_model_parallel_rank(), size))


def unlike_places(worker: Any, shape: ModelShape, size: int, rank: int | None) -> str:
    """How a worker's place in the engine, or the parameters of its model before any packing, differ from what is
    thought of rank `rank`, or its own number, of so many; empty: not."""
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    if (place := get_tensor_model_parallel_rank()) != (number := worker.rank if rank is None else rank):
        return f"this is its rank {place}, not {number}"
    try:
        expected = parameter_shapes(own_places(shape, size))
    except ValueError as error:
        return str(error)
    model = worker.model_runner.get_model()
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for module_name, module in model.named_modules():
        before_packing, _ = get_layerwise_info(module).restore_metadata
        found |= {
            name: tuple(tensor.shape)
            for leaf, tensor in before_packing.items()
            if (name := f"{module_name}.{leaf}") in found
        }
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return f"{name} has shape {found.get(name)} in the engine, expected {expected.get(name)}"
    return ""


def load_slices(worker: Any, stream: Iterable[tuple[str, torch.Tensor]], places: Mapping[str, Place]) -> None:
    """Replace all weights of a worker's model by slices, in any order; what does not come stays as it was."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
    from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader, make_online_process_loader

    model = worker.model_runner.get_model()
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        targets: dict[str, torch.Tensor] = {}
        originals = []
        for name in parameter_shapes(places):
            module_name, _, leaf = name.rpartition(".")
            layer = model.get_submodule(module_name)
            parameter = targets[name] = getattr(layer, leaf)
            originals.append((parameter, _get_original_loader(parameter)))
            parameter.weight_loader = fill  # type: ignore[attr-defined]
            parameter.weight_loader = make_online_process_loader(layer, leaf)  # type: ignore[attr-defined]
        try:
            for name, tensor in stream:
                target = targets[places[name].parameter]
                target.weight_loader(target, tensor, places[name])  # type: ignore[attr-defined]
            finalize_layerwise_reload(model, worker.model_runner.model_config)
        finally:
            # vLLM keeps these very tensors: the next reload of whole tensors finds them again
            for parameter, loader in originals:
                parameter.weight_loader = loader  # type: ignore[attr-defined]


def fill(param: torch.Tensor, loaded: torch.Tensor, place: Place) -> None:
    """A weight loader; vLLM looks for the name `param`, and counts what is copied to know when a layer is complete."""
    rows = place.of(param.data)
    rows[: len(loaded)].copy_(loaded)
    behind = rows[len(loaded) :]
    behind.copy_(behind.new_zeros(()).expand_as(behind))
