"""How a question asks for its answer: the prompt templates that data.template names.

A template changes the messages of a row while it is loaded. All but as_is end in an answer between tags, where the
reference answer is spliced in, so each of them fits one reward.format_mode.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_rlpr.data.sources import is_lettered
from megatron_rlpr.types import UserError

R1_SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>."
)
"""The system message of the released data, to the letter."""
_R1_NOTHINK_SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first reasons step by step and then provides the user with the answer. The answer is enclosed within <answer> "
    "</answer> tags, i.e., reasoning process here <answer> answer here </answer>."
)
ANSWER_INSTRUCTION = "\nPlease reason step by step, and put your final answer within <answer> </answer>."
LETTER_INSTRUCTION = "\nPlease only provide the letter of the answer in the tags."
_THINK_TAGS = re.compile(r"</?think>")

Messages = tuple[dict[str, str], ...]
PromptRewrite = Callable[[Messages, str | Path], Messages]


@dataclass(frozen=True)
class PromptTemplate:
    """rewrite: a row's messages and its file -> the messages to ask; it raises UserError where they do not fit.

    format_mode: the reward.format_mode whose tags this asks for; None: the file decides.
    """

    rewrite: PromptRewrite
    format_mode: str | None


def keep_messages(messages: Messages, file: str | Path) -> Messages:
    """The messages as they are."""
    return messages


def ask(messages: Messages, file: str | Path, *, system: str, instruction: str, think_tags: bool) -> Messages:
    """The conversation under another system message ("": none), with an instruction behind its last question.

    Worked examples (earlier turns of the assistant) lose their think tags where there are to be none.
    """
    turns = [dict(message) for message in messages if message["role"] != "system"]
    if not turns or turns[-1]["role"] != "user":
        raise UserError(
            f"{file}: a prompt does not end with a user message, which data.template needs to ask its question; "
            "set data.template=as_is or change the row"
        )
    turns[-1]["content"] += instruction
    for turn in turns[:-1]:
        if turn["role"] == "assistant" and not think_tags:
            turn["content"] = _THINK_TAGS.sub("", turn["content"])
    return (*([{"role": "system", "content": system}] if system else []), *turns)


def ask_as_llama_and_gemma(messages: Messages, file: str | Path) -> Messages:
    """Drop the leading system message and append the answer instruction to the first message that is left.

    Files whose path names a multiple-choice benchmark also ask for the letter alone. The reference writes changed
    copies of the data files (spec section 1.4).
    """
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    if not rest:
        raise UserError(
            f"{file}: a prompt holds only a system message; data.template=llama_gemma needs a user message to append to"
        )
    suffix = ANSWER_INSTRUCTION + (LETTER_INSTRUCTION if is_lettered(str(file)) else "")
    return ({**rest[0], "content": rest[0]["content"] + suffix}, *rest[1:])


TEMPLATES = {
    "as_is": PromptTemplate(keep_messages, None),
    "R1": PromptTemplate(partial(ask, system=R1_SYSTEM, instruction="", think_tags=True), "R1"),
    "R1_nothink": PromptTemplate(
        partial(ask, system=_R1_NOTHINK_SYSTEM, instruction="", think_tags=False), "R1_nothink"
    ),
    "plain": PromptTemplate(partial(ask, system="", instruction=ANSWER_INSTRUCTION, think_tags=False), "R1_nothink"),
    "llama_gemma": PromptTemplate(ask_as_llama_and_gemma, "R1_nothink"),
}
