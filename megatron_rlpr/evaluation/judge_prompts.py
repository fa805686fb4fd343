"""What an LLM judge is asked and how its reply is read (spec section 6.5)."""

from __future__ import annotations

import json
import re
from typing import Any

from megatron_rlpr.data.sources import judge_question
from megatron_rlpr.grading.answer_text import first_turn
from megatron_rlpr.grading.result import GradeTask

_BOILERPLATE = (
    'Format your response as follows: "The correct answer is (insert answer here)"',
    "Please reason step by step, and put your final answer within \\boxed{}.",
)
_BOXED_LETTER = re.compile(r"\\boxed\{([a-z])\}")

SYSTEM_PROMPT = "You are a helpful assistant."
_CASE = """\
Question:
```
{question}
```
Response:
```
{response}
```
"""
_CHOICE_PROMPT = (
    """Below are a multiple-choice question and somebody's response to it. Find out which option the \
response chooses.

Two examples of what to find:
- The question asks for the largest planet, (A) Mars (B) Jupiter; the response ends with "so it must be Jupiter": \
\\boxed{{B}}
- The question asks for 7 x 8, (A) 54 (B) 58 (C) 56; the response ends with "therefore (A)": \\boxed{{A}}

"""
    + _CASE
    + """\
Do not answer the question yourself and do not correct the response: only report its choice. Think first, then write \
the letter of the
chosen option in \\boxed{{}}. If the response chooses none, write Unclear without a box."""
)
_MATHEMATICS_PROMPT = (
    """Below are a question, somebody's response to it and the right answer. Decide whether the \
final answer of the
response is the right answer, perhaps in another notation.

Three examples:
- response "x = 2", right answer "2": the same value in symbols, \\boxed{{Y}}
- response "5 minutes" to a question that asks for minutes, right answer "5": the same with its unit, \\boxed{{Y}}
- response "x = \\frac{{1}}{{3}}", right answer "x = \\frac{{2}}{{3}}": another value, \\boxed{{N}}

"""
    + _CASE
    + """\
Right answer:
```
{reference}
```
Do not solve the question yourself: find the final answer in the response and compare it. Write your decision, Y or N, \
in \\boxed{{}}."""
)


class NoReply(Exception):
    """Why a response is not judged: the message names the kind."""


def judge_prompt(task: GradeTask) -> str:
    """The user message to the judge. The response ends where a base model goes on with its own turn (quirk Q22)."""
    template = _MATHEMATICS_PROMPT if judge_question(task.data_source) == "mathematics" else _CHOICE_PROMPT
    return template.format(
        question=recover_question(task.prompt_text),
        response=first_turn(task.response_text),
        reference=task.reference_answer,
    )


def says_correct(reply: str, task: GradeTask) -> bool:
    """True if the judge's reply finds the response right: Y, or the letter of the right option."""
    letter = boxed_letter(reply.lower())
    wanted = "y" if judge_question(task.data_source) == "mathematics" else task.reference_answer.strip().lower()
    return letter is not None and letter == wanted


def boxed_letter(lower_case_reply: str) -> str | None:
    r"""The last single letter in a \boxed{} of a reply in lower case; None without one."""
    letters = _BOXED_LETTER.findall(lower_case_reply)
    return letters[-1] if letters else None


def recover_question(prompt_text: str) -> str:
    """The bare question of a decoded prompt: what follows the user's role name, without instructions and chat tokens.

    Raises ValueError when the prompt has no user turn.
    """
    for role in ("user\n", "User: "):
        if role in prompt_text:
            question = prompt_text.split(role, 1)[1]
            break
    else:
        raise ValueError("the prompt has no user turn ('user' on a line of its own, or 'User: ')")
    if "Question:\n" in question:
        question = question.split("Question:\n")[1]
    for phrase in _BOILERPLATE:
        question = question.replace(phrase, "")
    question = question.strip().replace("What is the correct answer to this question: ", "")
    return question.replace("<|im_end|>", "").replace("<|im_start|>", "").strip()


def reply_text(body: bytes) -> str:
    """The text of the first choice of a chat completion, whoever wrote it. Raises NoReply when it holds none."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise NoReply("a reply that is no JSON") from error
    choices = found.get("choices") if isinstance(found, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise NoReply("a reply without a message")
    text = message.get("content")
    if not isinstance(text, str):
        raise NoReply("a reply whose content is no text")
    if not text.strip():
        raise NoReply("empty reply")
    return text.encode(errors="replace").decode()  # JSON may hold half a character, files may not
