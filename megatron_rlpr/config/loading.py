"""From the command line to a Config, and from a Config to the file that records it.

defaults <- recipe (--config FILE.yaml) <- key=value overrides, the later one wins. Whatever is not understood is
refused with one line that names the key, the file and the nearest valid key.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rlpr.config.bounds import shown
from megatron_rlpr.config.help import help_text
from megatron_rlpr.config.keys import COMMAND_LINE, all_keys, convert, convert_text, find_key, sections
from megatron_rlpr.config.schema import Config
from megatron_rlpr.config.yaml import dump_yaml, parse_yaml
from megatron_rlpr.system import atomic_file
from megatron_rlpr.types import UserError

# Singular on purpose: max_tokens_... counts tokens, a key that holds a secret is called ..._token.
_SECRET = re.compile(
    r"(^|_)(token|secret|password|passwd|credentials?|auth|(api|access|private)_?key)($|_)", re.IGNORECASE
)

LARGEST_RECIPE = 2**20  # bytes
LONGEST_PATH_SHOWN = 300


def load_config(argv: Sequence[str]) -> Config:
    """The configuration of a command line (without the program's name).

    `--config FILE.yaml` and `section.key=value` (a leading + or ++ makes no difference) set keys; --help prints every
    key (on the first rank only) and exits with status 0. Raises UserError for anything that is not understood: a
    missing or broken file, an unknown key or option, a wrong type.
    """
    recipe, overrides = _split_arguments(argv)
    config = Config()
    source = recipe if recipe.isprintable() and len(recipe) <= LONGEST_PATH_SHOWN else shown(recipe)
    for name, value in _entries(_read_recipe(recipe, source), source) if recipe else ():
        key = find_key(name, source)
        key.set(config, convert(key, value, source))
    for override in overrides:
        name, equals, text = override.lstrip("+").partition("=")
        if not equals:
            known = "--config FILE.yaml or section.key=value"
            raise UserError(f"cannot understand {shown(override)} on the {COMMAND_LINE}: expected {known}")
        key = find_key(name.strip(), COMMAND_LINE)
        key.set(config, convert_text(key, text))
    return config


def resolved(config: Config) -> dict[str, dict[str, Any]]:
    """section -> key -> value, in the order of declaration. Raises RuntimeError for a key named like a secret."""
    values = dataclasses.asdict(config)
    secrets = [f"{section}.{name}" for section, keys in values.items() for name in keys if _SECRET.search(name)]
    if secrets:
        raise RuntimeError(f"secrets belong in the environment, not in the configuration: {', '.join(secrets)}")
    return values


def save_resolved(config: Config, path: str | Path) -> None:
    """Write the resolved configuration as a recipe that `--config` reads back, atomically."""
    text = "# The resolved configuration of this run.\n" + dump_yaml(resolved(config))
    atomic_file.write_text(Path(path), text)


def _split_arguments(argv: Sequence[str]) -> tuple[str, list[str]]:
    recipe, overrides = "", []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--help", "-h"):
            if os.environ.get("RANK", "0") == "0":
                sys.stdout.write(help_text())
            raise SystemExit(0)
        if argument == "--config" or argument.startswith("--config="):
            if recipe:
                raise UserError("--config is given twice: a run has one recipe, change keys with section.key=value")
            recipe = argument.removeprefix("--config").removeprefix("=") or next(arguments, "")
            if not recipe or recipe.startswith("-"):
                raise UserError("--config needs a file: --config examples/quickstart/config.yaml")
        elif argument.startswith("-"):
            raise UserError(
                f"unknown option {shown(argument)}: expected --config FILE.yaml, --help or section.key=value"
            )
        else:
            overrides.append(argument)
    return recipe, overrides


def _read_recipe(path: str, source: str) -> Any:
    """The data of a recipe. A pipe or a device, which might never end, is no recipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"--config {source}: cannot be read as text: it is not a file")
        with open(path, "rb") as file:
            content = file.read(LARGEST_RECIPE + 1)
        if len(content) > LARGEST_RECIPE:
            raise UserError(f"--config {source}: is larger than {LARGEST_RECIPE} bytes, which no recipe is")
        return parse_yaml(content.decode("utf-8-sig"), source)
    except FileNotFoundError as error:
        raise UserError(f"--config {source}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {source}: cannot be read as text: {error}: save it as UTF-8") from error
    except (OSError, ValueError) as error:  # the second: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--config {source}: cannot be read: {reason}") from error


def _entries(recipe: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(full key, value) of every entry; what lies deeper than section.key gets its whole dotted name."""
    if not isinstance(recipe, Mapping):
        raise UserError(f"{path}: expected a mapping of sections ({', '.join(sections())}), got {_describe(recipe)}")
    for section, entries in recipe.items():
        if section in sections() and entries is None:
            continue  # a section whose keys are all commented out
        if section in sections() and not isinstance(entries, Mapping):
            raise UserError(
                f"{path}: section '{section}' must hold keys, got {_describe(entries)}: write them indented below it"
            )
        if section in all_keys():
            outer, inner = section.split(".")
            raise UserError(f"{path}: '{section}' cannot stand at the top: write {inner} indented below '{outer}:'")
        yield from _flat(section, entries)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and name not in all_keys():
        for inner, entry in value.items():
            yield from _flat(f"{name}.{inner}", entry)
    else:
        yield name, value


def _describe(value: Any) -> str:
    return "an empty file" if value is None else f"{type(value).__name__} {shown(str(value))}"
