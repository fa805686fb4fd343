"""The prompt as graders and judge read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def prompt_text(messages: Iterable[Mapping[str, str]]) -> str:
    """Chat messages as plain text, role names on lines of their own: what ChatML decodes to without its special
    tokens."""
    turns = [f"{message['role']}\n{message['content']}\n" for message in messages]
    return "".join([*turns, "assistant\n"])
