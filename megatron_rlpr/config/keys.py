"""What the configuration dataclasses declare, as a table of keys; values are converted to a key's type."""

from __future__ import annotations

import dataclasses
import math
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_rlpr.config.bounds import LONGEST_SHOWN, Bounds, TextBounds, shown
from megatron_rlpr.config.schema import Config
from megatron_rlpr.config.yaml import is_number, parse_yaml, plain_scalar
from megatron_rlpr.types import UserError

COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key; annotation is str, int, float, bool, list[str] or a Literal of strings.

    bounds: the range of a number or text, None for everything else.
    """

    section: str
    name: str
    annotation: Any
    default: Any
    meaning: str
    bounds: Bounds | TextBounds | None

    def value(self, config: Config) -> Any:
        return getattr(getattr(config, self.section), self.name)

    def set(self, config: Config, value: Any) -> None:
        setattr(getattr(config, self.section), self.name, value)

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
        hints, defaults = get_type_hints(cls), cls()
        for field in dataclasses.fields(cls):
            name = field.name
            key = Key(section, name, hints[name], getattr(defaults, name), **field.metadata)
            keys[key.full_name] = key
    return keys


def find_key(name: str, source: str) -> Key:
    """The key of a full name. Raises UserError with the nearest valid ones when there is none."""
    if name in all_keys():
        return all_keys()[name]
    section = name.split(".")[0]
    near = _nearest(name)
    if near:
        hint = "did you mean " + " or ".join(repr(key) for key in near) + "?"
    elif section in sections():
        hint = f"the keys of {section} are " + ", ".join(k.name for k in all_keys().values() if k.section == section)
    else:
        hint = "the sections are " + ", ".join(sections())
    if not name.isascii():
        hint += " (keys are of plain Latin letters)"
    where = f"on the {COMMAND_LINE}" if source == COMMAND_LINE else f"in {source}"
    raise UserError(f"unknown key {shown(name)} {where}: {hint}")


def _nearest(name: str) -> list[str]:
    """The valid keys most like name, best first, at most two; empty when nothing is alike.

    All sections are searched. The same last part in another section counts as 0.85 alike, so that a right key in a
    wrong section is found, yet a near miss within the right section still wins.
    """
    name = name[:LONGEST_SHOWN]  # comparing takes time that grows with the square of the length
    last = name.rsplit(".", 1)[-1]

    def alike(key: Key) -> tuple[float, float]:
        whole = SequenceMatcher(None, name.replace("_", "."), key.full_name.replace("_", ".")).ratio()
        return max(whole, 0.85 if key.name == last else 0.0), whole

    scores = {key.full_name: alike(key) for key in all_keys().values()}
    ranked = sorted(scores, key=lambda full_name: scores[full_name], reverse=True)
    best = scores[ranked[0]][0]
    return [full_name for full_name in ranked[:2] if scores[full_name][0] >= max(0.65, best - 0.03)]


def _refused(key: Key, value: Any, source: str) -> UserError:
    got = "nothing (null)" if value is None else shown(value)
    hint = ""
    if key.choices and isinstance(value, str):
        text = value[:LONGEST_SHOWN].lower()
        alike = {choice: SequenceMatcher(None, text, choice.lower()).ratio() for choice in key.choices}
        best = max(alike, key=lambda choice: alike[choice])
        hint = f": did you mean {best!r}?" if alike[best] >= 0.6 else ""
    elif key.annotation is str and value is not None:
        hint = ": put it in quotes"
    expected = "true or false" if key.annotation is bool else key.type_name
    return UserError(f"{key.full_name}: expected {expected}, got {got} (from {source}){hint}")


def convert(key: Key, value: Any, source: str) -> Any:
    """The value of a key as it came from YAML, checked against the key's type.

    An int is a float too, and so is a quoted number ("1e-6"). A single string is a list of one, true and false are
    words where those are choices. Nothing else is converted; UserError names the key, the type and the source.
    """
    if key.choices:
        if isinstance(value, bool) and "true" in key.choices:
            value = str(value).lower()
        if value in key.choices:
            return value
    elif key.annotation == list[str]:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return list(items)
    elif key.annotation is float and (type(value) in (int, float) or (isinstance(value, str) and is_number(value))):
        if not math.isfinite(number := float(value)):
            raise UserError(f"{key.full_name}: expected a finite number, got {shown(value)} (from {source})")
        return number
    elif type(value) is key.annotation:
        return value
    raise _refused(key, value, source)


def convert_text(key: Key, text: str) -> Any:
    """The value of a key as typed on the command line: matching outer quotes are dropped, strings need none."""
    text = text.strip()
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    plain = text[1:-1] if quoted else text
    value: Any = plain
    if key.annotation == list[str]:
        if not plain.startswith("["):
            return [plain] if plain else []
        try:
            value = parse_yaml(plain, COMMAND_LINE, scalar=str)
        except UserError as error:
            expected = f"expected a list like [a, b], got {shown(plain)}"
            raise UserError(f"{key.full_name} on the {COMMAND_LINE}: {expected}") from error
    elif isinstance(meant := plain_scalar(plain), int) and key.annotation in (int, bool, float):
        value = meant  # a float is read from its text, so that errors show what was typed
    return convert(key, value, COMMAND_LINE)
