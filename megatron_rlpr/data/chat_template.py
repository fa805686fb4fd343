"""Chat messages -> the token ids the policy continues.

The template is rendered to text with the generation prompt and the text is tokenised without adding special tokens: the
template already holds the ones the model wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from megatron_rlpr.types import UserError

Messages = Sequence[dict[str, str]]


def render(tokenizer: Any, messages: Messages) -> str:
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


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text in one batched call: no special tokens added, no padding, no truncation."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    return list(encoded["input_ids"])
