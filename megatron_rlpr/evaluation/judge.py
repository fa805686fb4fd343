"""A language model as a second opinion on responses that the rules find wrong (spec section 6.5).

It can only turn wrong into right. Whatever comes back instead of a reply leaves the verdict of the rules; every failure
is counted by kind in `Judge.failures` (the reference hides them, quirk Q22). After some in a row the judge is given up
for the rest of the call, and a validation gives all its judging together `time_limit_s`, so none is held up by a judge.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from megatron_rlpr.data.sources import judge_question
from megatron_rlpr.evaluation.judge_answers import JudgeAnswers
from megatron_rlpr.evaluation.judge_prompts import NoReply, judge_prompt, says_correct
from megatron_rlpr.evaluation.judge_settings import JudgeSettings
from megatron_rlpr.grading.result import GradeResult, GradeTask

_FAILURES_TO_GIVE_UP = 8


class Judge:
    """Asks a judge about many responses, and about no question twice.

    answers: where replies are kept; None: only within a call. Over the judge's life, failures counts by kind the
    responses that were not judged, asked the questions sent to it, and remembered those whose reply was kept.
    """

    def __init__(self, settings: JudgeSettings, answers: JudgeAnswers | None = None) -> None:
        """Opens no connection yet."""
        self.settings = settings
        self.failures: Counter[str] = Counter()
        self.asked = self.remembered = 0
        self._answers = answers
        self._seconds_left = settings.time_limit_s
        self._failures_in_a_row = 0

    def begin_validation(self) -> None:
        """From here on there is the time of a whole validation again."""
        self._seconds_left = self.settings.time_limit_s

    def judge_many(self, tasks: Sequence[GradeTask], results: Sequence[GradeResult]) -> list[GradeResult]:
        """The results of the rules, in order, with those turned right that the judge finds right."""
        if len(tasks) != len(results):
            raise ValueError(f"one result per task: {len(tasks)} tasks, {len(results)} results")
        begun = time.monotonic()
        asks = [self.settings.every_response or result.accuracy != 1.0 for result in results]
        questions = [_question(task) if wanted else None for task, wanted in zip(tasks, asks, strict=True)]
        replies = self._replies(dict.fromkeys(question for question in questions if isinstance(question, str)))
        self._seconds_left -= time.monotonic() - begun
        judged = []
        for task, result, question in zip(tasks, results, questions, strict=True):
            reply = replies[question] if isinstance(question, str) else question
            judged.append(result if reply is None else self._verdict(task, result, reply))
        return judged

    def _verdict(self, task: GradeTask, result: GradeResult, reply: str | NoReply) -> GradeResult:
        if isinstance(reply, NoReply):
            self.failures[str(reply)] += 1
            return result
        turned = result.accuracy != 1.0 and says_correct(reply, task)
        return replace(result, accuracy=1.0 if turned else result.accuracy, judged_right=turned, judge_reply=reply)

    def _replies(self, questions: Iterable[str]) -> dict[str, str | NoReply]:
        """By question, what was kept or is answered now."""
        kept = {question: self._answers.find(question) if self._answers else None for question in questions}
        replies: dict[str, str | NoReply] = {question: reply for question, reply in kept.items() if reply is not None}
        self.remembered += len(replies)
        missing = [question for question in kept if question not in replies]
        if missing:
            self._failures_in_a_row = 0
            answered = asyncio.run(self._answered(missing))
            replies.update(zip(missing, answered, strict=True))
        return replies

    async def _answered(self, questions: Sequence[str]) -> list[str | NoReply]:
        """One reply a question, kept as soon as it is there, or why there is none."""
        from megatron_rlpr.evaluation.judge_connection import judge_connection  # openai is slow to import

        free = asyncio.Semaphore(self.settings.parallel)
        deadline = asyncio.get_running_loop().time() + self._seconds_left
        async with judge_connection(self.settings) as connection:

            async def answered(question: str) -> str | NoReply:
                async with free:
                    if self._failures_in_a_row >= _FAILURES_TO_GIVE_UP:
                        return NoReply("given up")
                    if asyncio.get_running_loop().time() >= deadline:
                        return NoReply("no time left")
                    self.asked += 1
                    try:
                        async with asyncio.timeout_at(deadline):
                            reply = await connection.reply(question)
                    except TimeoutError:
                        return NoReply("no time left")
                    except NoReply as error:
                        self._failures_in_a_row += 1
                        return error
                    self._failures_in_a_row = 0
                    if self._answers is not None:
                        self._answers.keep(question, reply)
                    return reply

            return await asyncio.gather(*map(answered, questions))


def _question(task: GradeTask) -> str | NoReply:
    """What the judge is asked about a response, or why there is nothing to ask."""
    if judge_question(task.data_source) is None:
        return NoReply("no question for this data source")
    try:
        return judge_prompt(task)
    except ValueError:
        return NoReply("no question in the prompt")
