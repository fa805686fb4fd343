"""The model's chat template: a program from a foreign folder, so it may fail in any way, and never end.

Jinja's sandbox keeps it from files and attributes, but bounds neither time nor memory. Two limits do: a signal ends
what loops for too long, and the longest conversation of each piece is first rendered in a process of its own
(`template_probe`), because one huge power or repeated text is a single step that no signal interrupts.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from megatron_rlpr.data import template_probe
from megatron_rlpr.system.quoting import quoted, reason
from megatron_rlpr.types import UserError

LIMIT_S = 10
"""Seconds of computing for one conversation, which usually takes less than a thousandth."""

Conversation = Sequence[dict[str, str]]


class _OutOfTime(BaseException):
    """Raised into a template that does not end; no `except Exception` on the way catches it."""


def render(
    tokenizer: Any, conversations: Sequence[Conversation], file: str | Path, first_row: int, limit_s: int = LIMIT_S
) -> list[str]:
    """Every conversation as the template writes it, the generation prompt included.

    Raises UserError with the row (they are numbered from first_row) where the template refuses, fails or does not end.
    """
    _check_that_it_ends(tokenizer, conversations, file, first_row, limit_s)
    texts = []
    for row, messages in enumerate(conversations, start=first_row):
        try:
            with _time_limit(limit_s):
                text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            if not text.encode():  # which also finds what no UTF-8 can hold
                raise ValueError("it writes nothing")
        except Exception as error:  # whatever a foreign program may raise
            raise UserError(f"{file}, row {row}: {_complaint(error, messages)}") from error
        except _OutOfTime:
            raise UserError(f"{file}, row {row}: {_endless(limit_s)}") from None
        texts.append(text)
    return texts


def _check_that_it_ends(
    tokenizer: Any, conversations: Sequence[Conversation], file: str | Path, first_row: int, limit_s: int
) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{file}, row {first_row}: the tokenizer has no chat_template; add one to tokenizer_config.json of "
            "model.path"
        )
    if not conversations:
        return
    sizes = [sum(len(message["content"]) for message in messages) for messages in conversations]
    longest = sizes.index(max(sizes))
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"{file}, row {first_row}: the model's folder names the chat templates "
            f"{quoted(sorted(tokenizer.chat_template))} and none of them default; name the one to use default in its "
            "tokenizer_config.json, or leave it there alone"
        ) from error
    given = {"messages": list(conversations[longest]), "add_generation_prompt": True, **tokenizer.special_tokens_map}
    asked = json.dumps([template, given, limit_s])
    probe = subprocess.run([sys.executable, "-P", template_probe.__file__], input=asked, text=True, capture_output=True)
    if probe.returncode < 0:  # killed by a limit
        raise UserError(f"{file}, row {first_row + longest}: {_endless(limit_s)}")


def _complaint(error: Exception, messages: Conversation) -> str:
    if type(error) is TemplateError:  # the template's own raise_exception
        roles = quoted([message["role"] for message in messages])
        return (
            f"the model's chat template refuses roles {roles} ({reason(error)}); for Llama and Gemma set "
            "data.template=llama_gemma or plain"
        )
    line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
    return (
        f"the model's chat template fails ({reason(error)}{line}); mend chat_template in tokenizer_config.json or "
        "chat_template.jinja of model.path"
    )


def _endless(limit_s: int) -> str:
    return (
        f"the model's chat template needs more than {limit_s} s or {template_probe.MEMORY >> 30} GB for this prompt: "
        "mend chat_template in tokenizer_config.json or chat_template.jinja of model.path, or shorten the prompt"
    )


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raise _OutOfTime in the body after so many seconds of this process's computing, and again until it ends.

    Signals reach the main thread alone; in another one there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
