"""A program of its own: render a chat template once within limits of computing time and memory.

Reads [template, names, seconds] as JSON. It ends with 0 when the template ended, well or with an error of its own,
which the rendering proper then meets; past a limit it is killed. What transformers adds to Jinja is here in name only.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

MEMORY = 2 << 30
"""Bytes of address space."""


def main() -> None:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what an assistant said; the text is that of its body."""

        tags: set[str] = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def end(message: str) -> None:
        raise ValueError(message)

    template, names, seconds = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        sandbox.filters["tojson"] = lambda value, **_: json.dumps(value)
        sandbox.globals |= {"raise_exception": end, "strftime_now": lambda form: form}
        sandbox.from_string(template).render(tools=None, documents=None, **names)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)
    except Exception:
        sys.exit(0)


if __name__ == "__main__":
    main()
