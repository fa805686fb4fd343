"""Chat messages -> the text the policy continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from megatron_rlpr.types import UserError


def render(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """The templated text of one conversation, the generation prompt included."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("the tokenizer has no chat_template; add one to tokenizer_config.json of model.path")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise UserError(
            f"the model's chat template refuses roles {[m['role'] for m in messages]} ({error}); "
            "for Llama and Gemma set data.prompt_rewrite=llama_gemma"
        ) from error
