"""YAML as recipes use it: a plain tree of YAML 1.2 scalars, no duplicate keys, one-line errors.

PyYAML follows YAML 1.1, where `1e-6` is a string, `on` is a boolean, `010` is eight and `2025-01-31` is a date object.
Recipes are read by the YAML 1.2 core rules instead; the dumper quotes whatever either version would misread. What makes
a document more than a tree is refused: aliases, which may refer to themselves or grow without end, and tags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from megatron_rlpr.config.bounds import shown
from megatron_rlpr.types import UserError

DEEPEST = 16
"""Levels of a recipe: sections, keys and lists need three."""

_Scalar = Callable[[str], Any]
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"

# What a plain scalar is, the first that matches, by its first letters; anything else is a string. A number too long for
# an integer key is a float, so that reading it takes no time.
_SCALARS: list[tuple[str, re.Pattern[str], list[str | None], _Scalar]] = [
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"), lambda text: text.lower() == "true"),
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", "", None], lambda text: None),
    ("int", re.compile(r"^[-+]?(?:0|[1-9](?:_?[0-9]){0,39})$"), list("-+0123456789"), int),
    ("float", re.compile(rf"^{_FLOAT}$"), list("-+.0123456789"), float),
    (
        "float",
        re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
        list("-+."),
        lambda text: float(text.replace(".", "")),
    ),
    ("merge", re.compile(r"^<<$"), ["<"], str),
]


class _RecipeDumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else."""


for _tag, _pattern, _first, _ in _SCALARS:
    _RecipeDumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def is_number(text: str) -> bool:
    """Whether text is a finite number as recipes write them: of ASCII digits, without underscores."""
    return re.fullmatch(_FLOAT, text) is not None


def plain_scalar(text: str) -> Any:
    """What a scalar without quotes means: a bool, None, int, float, or the text itself."""
    for _, pattern, _, read in _SCALARS:
        if pattern.fullmatch(text):
            return read(text)
    return text


def parse_yaml(text: str, source: str, scalar: _Scalar = plain_scalar) -> Any:
    """The data of one YAML document: dicts with text as keys, lists, and what `scalar` makes of an unquoted text.

    Raises UserError with source and line for anything that is no plain tree.
    """
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    try:
        next(events)  # the stream's start
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        data = _tree(next(events), events, source, scalar, DEEPEST)
        next(events)  # the document's end
        if not isinstance(event := next(events), yaml.StreamEndEvent):
            raise _refused(event, source, "a second document begins, expected one")
        return data
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(f"{place}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: escapes beyond Unicode
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def _tree(event: Any, events: Iterator[yaml.Event], source: str, scalar: _Scalar, levels: int) -> Any:
    """The node that begins with event; levels may still lie below it."""
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _refused(event, source, "aliases (&name, *name) are not supported: write the value out")
    if event.tag is not None:
        raise _refused(event, source, "tags (!name) are not supported: a recipe holds plain values")
    if isinstance(event, yaml.ScalarEvent):
        return scalar(event.value) if event.implicit[0] else event.value
    if levels == 0:
        raise _refused(event, source, f"nested more than {DEEPEST} levels deep")
    if isinstance(event, yaml.SequenceStartEvent):
        return [_tree(item, events, source, scalar, levels - 1) for item in _until(yaml.SequenceEndEvent, events)]
    mapping: dict[str, Any] = {}
    for key in _until(yaml.MappingEndEvent, events):
        if not isinstance(key, yaml.ScalarEvent):
            raise _refused(key, source, "a key must be a word, not a list, a mapping or an alias")
        name = _tree(key, events, source, str, 0)
        if name in mapping:
            raise _refused(key, source, f"the key {shown(name)} is given twice")
        mapping[name] = _tree(next(events), events, source, scalar, levels - 1)
    return mapping


def _until(end: type[yaml.Event], events: Iterator[yaml.Event]) -> Iterator[Any]:
    while not isinstance(event := next(events), end):
        yield event


def _refused(event: Any, source: str, problem: str) -> UserError:
    return UserError(f"{source}, line {event.start_mark.line + 1}: {problem}")


def dump_yaml(data: Any) -> str:
    """YAML text, keys in their own order, that `parse_yaml` reads back as the same data."""
    return yaml.dump(data, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=120)
