"""What the configuration dataclasses declare, as a table: every key with its type, default and meaning; values checked
against it."""

from __future__ import annotations

import dataclasses
import math
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_rlpr.config import yaml as config_yaml
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError

COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key; annotation is str, int, float, bool, list[str] or a Literal of strings."""

    section: str
    name: str
    annotation: Any
    default: Any
    meaning: str

    @property
    def full_name(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values of a Literal; empty for other types."""
        return get_args(self.annotation) if get_origin(self.annotation) is Literal else ()

    @property
    def type_name(self) -> str:
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        return "list of str" if self.annotation == list[str] else str(self.annotation.__name__)


@cache
def sections() -> dict[str, type[Any]]:
    """Section name -> its dataclass, in the order of Config."""
    return dict(get_type_hints(Config))


@cache
def all_keys() -> dict[str, Key]:
    """Full name (`section.name`) -> Key, in the order of declaration."""
    keys = {}
    for section, cls in sections().items():
        hints = get_type_hints(cls)
        defaults = cls()
        for field in dataclasses.fields(cls):
            key = Key(section, field.name, hints[field.name], getattr(defaults, field.name), field.metadata["help"])
            keys[key.full_name] = key
    return keys


def nearest(name: str) -> list[str]:
    """The valid keys most like name, best first, at most two; empty when nothing is alike.

    All sections are searched. The same last part in another section counts as 0.85 alike, so that a right key in a
    wrong section is found, yet a near miss within the right section still wins.
    """
    last = name.rsplit(".", 1)[-1]

    def alike(key: Key) -> tuple[float, float]:
        whole = SequenceMatcher(None, name.replace("_", "."), key.full_name.replace("_", ".")).ratio()
        return max(whole, 0.85 if key.name == last else 0.0), whole

    scores = {key.full_name: alike(key) for key in all_keys().values()}
    ranked = sorted(scores, key=lambda full_name: scores[full_name], reverse=True)
    best = scores[ranked[0]][0]
    return [full_name for full_name in ranked[:2] if scores[full_name][0] >= max(0.65, best - 0.03)]


def unknown(name: str, source: str) -> UserError:
    """The error for a key that does not exist, with the nearest one that does."""
    where = f"on the {COMMAND_LINE}" if source == COMMAND_LINE else f"in {source}"
    near = nearest(name)
    if near:
        hint = "did you mean " + " or ".join(repr(key) for key in near) + "?"
    elif name.split(".")[0] in sections():
        section = name.split(".")[0]
        hint = f"the keys of {section} are " + ", ".join(
            key.name for key in all_keys().values() if key.section == section
        )
    else:
        hint = "the sections are " + ", ".join(sections())
    return UserError(f"unknown key '{name}' {where}: {hint}")


def _refused(key: Key, value: Any, source: str) -> UserError:
    got = "nothing (null)" if value is None else repr(value)
    hint = ""
    if key.choices and isinstance(value, str):
        alike = {choice: SequenceMatcher(None, value.lower(), choice.lower()).ratio() for choice in key.choices}
        best = max(alike, key=lambda choice: alike[choice])
        hint = f": did you mean {best!r}?" if alike[best] >= 0.6 else ""
    elif key.annotation is str and value is not None:
        hint = ": put it in quotes"
    expected = "true or false" if key.annotation is bool else key.type_name
    return UserError(f"{key.full_name}: expected {expected}, got {got} (from {source}){hint}")


def convert(key: Key, value: Any, source: str) -> Any:
    """The value of a key as it came from YAML, checked against the key's type.

    An int is a float too, and so is a quoted number ("1e-6"). A single string is a list of one. Nothing else is
    converted; UserError names the key, the type and the source.
    """
    if key.choices:
        if value in key.choices:
            return value
    elif key.annotation == list[str]:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return list(items)
    elif key.annotation is float:
        return _finite(key, value, source)
    elif type(value) is key.annotation:
        return value
    raise _refused(key, value, source)


def _finite(key: Key, value: Any, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _refused(key, value, source)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise _refused(key, value, source) from error
    if not math.isfinite(number):
        raise UserError(f"{key.full_name}: expected a finite number, got {value} (from {source})")
    return number


def convert_text(key: Key, text: str, source: str) -> Any:
    """The value of a key as typed in `key=value`: a matching pair of outer quotes is dropped, strings need none."""
    text = text.strip()
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    plain = text[1:-1] if quoted else text
    if key.annotation == list[str] and plain.startswith("["):
        return convert(key, config_yaml.parse_strings(plain, f"{key.full_name} on the {COMMAND_LINE}"), source)
    if key.annotation == list[str]:
        return [plain] if plain else []
    if key.annotation is str or key.choices:
        return convert(key, plain, source)
    try:
        value = config_yaml.parse(plain, source)
    except UserError:
        value = None
    return convert(key, plain if value is None or isinstance(value, float) else value, source)
