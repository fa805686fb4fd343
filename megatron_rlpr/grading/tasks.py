"""From a prompt and a response to what graders and judge are asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from megatron_rlpr.data.tokenizer import SpecialTokens
from megatron_rlpr.grading.dispatch import check_gradable
from megatron_rlpr.grading.result import GradeTask, Phase
from megatron_rlpr.system.quoting import quoted
from megatron_rlpr.types import Prompt, Response, UserError


class GradeTasks:
    """Makes the tasks of one run: without its tokenizer's special tokens, with the tags of reward.format_mode."""

    def __init__(self, special_tokens: SpecialTokens, format_mode: str) -> None:
        self._special_tokens = special_tokens
        self._format_mode = format_mode

    def task(self, prompt: Prompt, response: Response, phase: Phase) -> GradeTask:
        """What to ask about one response."""
        asked = prompt_text(prompt.messages)
        return self.of_texts(prompt.data_source, asked, response.text, prompt.reference_answer, phase)

    def of_texts(
        self, data_source: str, asked: str, response: str, reference: str, phase: Phase = "validation"
    ) -> GradeTask:
        """The same from texts. asked: `prompt_text` of the messages."""
        response, reference = map(self._special_tokens.removed_from, (response, reference))
        return GradeTask(data_source, response, reference, asked, phase, self._format_mode)

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt whose responses nobody grades, or none of which could ever be right."""
        reference = self._special_tokens.removed_from(prompt.reference_answer)
        if not reference.strip():
            raise UserError(
                f"reward_model.ground_truth is {quoted(prompt.reference_answer)}, special tokens alone: responses are "
                "graded without those; give another answer or remove the row"
            )
        check_gradable(prompt.data_source, reference)


def prompt_text(messages: Iterable[Mapping[str, str]]) -> str:
    """Chat messages as plain text, role names on lines of their own: what ChatML decodes to without special tokens."""
    turns = [f"{message['role']}\n{message['content']}\n" for message in messages]
    return "".join([*turns, "assistant\n"])
