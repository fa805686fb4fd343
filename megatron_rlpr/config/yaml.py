"""YAML as recipes use it: YAML 1.2 scalars, no duplicate keys, one-line errors.

PyYAML follows YAML 1.1, where `1e-6` is a string, `on` is a boolean, `010` is eight and `2025-01-31` is a date object.
Recipes are read by the YAML 1.2 core rules instead; the dumper quotes whatever either version would misread.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from megatron_rlpr.types import UserError

_SCALARS: list[tuple[str, str, list[str | None]]] = [
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", "", None]),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:merge", r"^<<$", ["<"]),
]


class _RecipeLoader(yaml.SafeLoader):
    """Plain data only, YAML 1.2 scalars, a key given twice is an error."""

    # PyYAML's own protocol
    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (node for node, _ in node.value if isinstance(node, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _RecipeDumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else."""


for _tag, _pattern, _first in _SCALARS:
    _RecipeLoader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    _RecipeDumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def parse_yaml(text: str, source: str) -> Any:
    """The data of one YAML document. Raises UserError with source and the line of a syntax error."""
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(f"{place}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def parse_yaml_strings(text: str, source: str) -> Any:
    """Like parse_yaml, but every scalar stays the text that was written."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: expected a list like [a, b], got {text!r}") from error


def dump_yaml(data: Any) -> str:
    """YAML text, keys in their own order, that `parse_yaml` reads back as the same data."""
    return yaml.dump(data, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=120)
