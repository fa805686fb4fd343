"""The reference's prompt for models without a reasoning system message (Llama, Gemma), made in memory.

The reference writes changed copies of the data files; here the messages are changed while loading. Spec section 1.4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_rlpr.data.sources import is_lettered
from megatron_rlpr.types import UserError

ANSWER_INSTRUCTION = "\nPlease reason step by step, and put your final answer within <answer> </answer>."
LETTER_INSTRUCTION = "\nPlease only provide the letter of the answer in the tags."

Messages = tuple[dict[str, str], ...]
PromptRewrite = Callable[[Messages, str | Path], Messages]


def prompt_rewrite(name: str, format_mode: str) -> PromptRewrite:
    """The rewrite that data.prompt_rewrite names; llama_gemma asks for no reasoning tags: format_mode=R1_nothink."""
    if name == "none":
        return keep_messages
    if name != "llama_gemma":
        raise UserError(f"data.prompt_rewrite={name!r} is unknown; choose none or llama_gemma")
    if format_mode != "R1_nothink":
        raise UserError(
            f"data.prompt_rewrite=llama_gemma needs reward.format_mode=R1_nothink, not {format_mode}: its prompt asks "
            "for answer tags only"
        )
    return rewrite_for_llama_gemma


def keep_messages(messages: Messages, file: str | Path) -> Messages:
    """The messages as they are."""
    return messages


def rewrite_for_llama_gemma(messages: Messages, file: str | Path) -> Messages:
    """Drop the leading system message and append the answer instruction to the first message that is left.

    Files whose path names a multiple-choice benchmark also ask for the letter alone.
    """
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    if not rest:
        raise UserError(
            f"{file}: a prompt holds only a system message; data.prompt_rewrite=llama_gemma needs a user message to "
            "append to"
        )
    suffix = ANSWER_INSTRUCTION
    if is_lettered(str(file)):
        suffix += LETTER_INSTRUCTION
    return ({**rest[0], "content": rest[0]["content"] + suffix}, *rest[1:])
