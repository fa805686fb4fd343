"""How a question asks for its answer: the prompt templates that data.template names.

A template replaces what the data file's prompts ask for: their system message goes, the template's instruction comes.
Worked examples (earlier turns of the assistant) are written as the template asks. Every template ends in an answer
between tags, where the reference answer is spliced in, so each fits one reward.format_mode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_rlpr.data.prompt_rewrite import ANSWER_INSTRUCTION, Messages
from megatron_rlpr.types import UserError

AS_IS = "as_is"
_R1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>."
)
_R1_NOTHINK = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first reasons step by step and then provides the user with the answer. The answer is enclosed within <answer> "
    "</answer> tags, i.e., reasoning process here <answer> answer here </answer>."
)
_THINK_TAGS = re.compile(r"</?think>")


@dataclass(frozen=True)
class PromptTemplate:
    """system: the system message, "" for none. instruction: what follows the last user message.

    format_mode: the reward.format_mode whose tags this asks for.
    """

    system: str
    instruction: str
    format_mode: str

    def rewrite(self, messages: Messages, file: str | Path) -> Messages:
        """The conversation as this template asks it. Raises UserError where no user message ends it."""
        turns = [dict(message) for message in messages if message["role"] != "system"]
        if not turns or turns[-1]["role"] != "user":
            raise UserError(
                f"{file}: a prompt does not end with a user message, which data.template needs to ask its question; "
                f"set data.template={AS_IS} or change the row"
            )
        turns[-1]["content"] += self.instruction
        if self.format_mode == "R1_nothink":
            for turn in turns[:-1]:
                if turn["role"] == "assistant":
                    turn["content"] = _THINK_TAGS.sub("", turn["content"])
        return (*([{"role": "system", "content": self.system}] if self.system else []), *turns)


TEMPLATES = {
    "R1": PromptTemplate(_R1, "", "R1"),
    "R1_nothink": PromptTemplate(_R1_NOTHINK, "", "R1_nothink"),
    "plain": PromptTemplate("", ANSWER_INSTRUCTION, "R1_nothink"),
}
"""R1: the system message of the released data. R1_nothink: the same without think tags. plain: no system message, the
instruction that the reference gives Llama and Gemma."""
