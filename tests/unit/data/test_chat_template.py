"""A chat template is a foreign program: whatever it does, its prompts are right or one line says what to mend."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest

from megatron_rlpr.data.chat_template import render
from megatron_rlpr.types import UserError

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
CONVERSATIONS = [({"role": "user", "content": "a longer question"},), ({"role": "user", "content": "short"},)]


def rendered(tokenizer: Any, template: Any, limit_s: int = 5) -> list[str]:
    changed = copy(tokenizer)
    changed.chat_template = template
    return render(changed, CONVERSATIONS, "f.parquet", 7, limit_s)


def test_what_transformers_adds_to_jinja_may_be_used(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ eos_token }}{{ strftime_now('!') }}{{ {'a': 1}|tojson(indent=none) }}{{ tools is none }}"
    )
    assert rendered(tokenizer, template)[1] == 'short<|im_end|>!{"a": 1}True'
    named = {"default": "d", "tool_use": "{{ 1/0 }}"}
    assert rendered(tokenizer, named) == ["d", "d"]


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (
            "{% if %}",
            7,
            "fails (TemplateSyntaxError: Expected an expression, got 'end of statement block', line 1); mend",
        ),
        ("\n{% endfor %}", 7, "line 2); mend chat_template"),
        ("{{ messages + 1 }}", 7, "fails (TypeError: can only concatenate list"),
        ("{{ 1/0 if messages[0].content == 'short' else 'fine' }}", 8, "fails (ZeroDivisionError: division by zero)"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 7, "fails (RecursionError"),
        ("{{ messages[0].parts[0].text }}", 7, "fails (UndefinedError"),
        ("{{ messages[0].__class__.__mro__ }}", 7, "fails (SecurityError"),
        ("{{ range(10**9) }}", 7, "fails (OverflowError"),
        ("{{ '\\ud800' }}", 7, "fails (UnicodeEncodeError"),
        ("{{ nothing }}", 7, "it writes nothing"),
        ("{{ raise_exception('x' * 100000) }}", 7, "refuses roles ['user'] (TemplateError: xxx"),
        ({"rag": "a", "tool_use": "b"}, 7, "names the chat templates ['rag', 'tool_use'] and none of them default"),
        (None, 7, "the tokenizer has no chat_template"),
    ],
)
def test_a_template_that_fails_is_told_with_its_row(tokenizer: Any, template: Any, row: int, message: str) -> None:
    with pytest.raises(UserError) as refused:
        rendered(tokenizer, template)
    said = str(refused.value)
    assert said.startswith(f"f.parquet, row {row}: ")
    assert message in said
    assert len(said) < 600
    assert ("data.template" in said) == ("raise_exception" in str(template))


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (LOOPS, 7),
        ("{{ 9 ** (9 ** (9 ** 9)) }}", 7),
        ("{{ 'a' * 10 ** 11 }}", 7),
        ("{% if messages[0].content == 'short' %}" + LOOPS + "{% endif %}a", 8),
    ],
    ids=["loops", "one long step", "memory", "loops for one row"],
)
def test_a_template_that_does_not_end_is_stopped(tokenizer: Any, template: str, row: int) -> None:
    with pytest.raises(UserError, match=rf"^f\.parquet, row {row}: .* needs more than 1 s or 2 GB for this prompt"):
        rendered(tokenizer, template, limit_s=1)
