"""The text of --help: how to set keys, then every key with type, range, default and meaning, grouped by section."""

from __future__ import annotations

import inspect
import textwrap

from megatron_rlpr.config.keys import Key, all_keys, sections

WIDTH = 100

_USAGE = """\
usage: pretrain_rlpr.py [--help] [--config FILE.yaml] [section.key=value ...]

Start it under torchrun, or alone for one process. A recipe (--config) sets what differs from the defaults below;
key=value on the command line goes before the recipe, and the last one wins. A leading + or ++ is accepted. Lists
are written [a,b]. Every run writes its resolved configuration to <trainer.runs_dir>/<trainer.name>/config.yaml.
"""


def help_text() -> str:
    """Every key of the configuration; no line is longer than WIDTH columns."""
    parts = ["\n\n".join(_wrapped(paragraph, "") for paragraph in _USAGE.split("\n\n"))]
    for section, cls in sections().items():
        lines = [_wrapped(f"{section}: {inspect.getdoc(cls)}", "")]
        lines += [_describe(key) for key in all_keys().values() if key.section == section]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _describe(key: Key) -> str:
    default = repr(key.default) if isinstance(key.default, str) else str(key.default)
    allowed = f"{key.type_name}, {key.bounds}" if key.bounds and str(key.bounds) else key.type_name
    return _wrapped(f"{key.full_name}={default}  ({allowed})", "  ") + "\n" + _wrapped(key.meaning, "      ")


def _wrapped(text: str, indent: str) -> str:
    hanging = "      " if indent else ""
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
