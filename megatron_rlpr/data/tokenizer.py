"""The policy's tokenizer, loaded with the two rules of the reference (spec section 1.3), and what it makes of texts."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from megatron_rlpr.system.quoting import reason
from megatron_rlpr.types import UserError


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a Hugging Face folder, ready for data, reward and evaluation.

    A missing pad token becomes the end-of-sequence token. gemma-2-2b-it ends its turns with <end_of_turn>, which its
    own tokenizer does not name as end of sequence. Raises UserError for a folder without a usable tokenizer.
    """
    if not Path(path).is_dir():
        raise UserError(
            f"model.path {path!r} is no folder; give a Hugging Face model folder (tools/fetch_model.py makes one)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # of a damaged file the libraries raise anything, a bare Exception too
        raise UserError(
            f"model.path {path!r} holds no readable tokenizer ({reason(error)}); give a Hugging Face folder"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"model.path {path!r} has no fast tokenizer (tokenizer.json); character offsets are needed to splice "
            "reference answers"
        )
    if "gemma-2-2b-it" in path:
        tokenizer.eos_token = "<end_of_turn>"
    if tokenizer.eos_token is None:
        raise UserError(f"model.path {path!r}: the tokenizer names no eos_token; set it in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Tokens as engines decode them: special ones are kept."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    """One tokenizers.Encoding per text, made in one call. No special tokens are added: a chat template has its own."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return list(encoded.encodings)


def tokens_beyond(tokenizer: Any, vocab_size: int) -> dict[int, str]:
    """The tokens by their ids that a model of vocab_size tokens has no embedding for; with its own tokenizer, none."""
    return {token_id: token for token, token_id in tokenizer.get_vocab().items() if token_id >= vocab_size}


def overlapping_tokens(encoding: Any, start: int, stop: int) -> tuple[int, int]:
    """[first, last) of the tokens that share at least one character with text[start:stop]; first == last: none.

    encoding is one tokenizers.Encoding. A token that merges characters on both sides of an edge counts wholly. Token
    offsets never decrease, so both edges are found by bisection without turning the whole encoding into Python objects.
    """

    def offsets(token: int) -> tuple[int, int]:
        found = encoding.token_to_chars(token)
        return found if found is not None else (-1, -1)

    tokens = range(len(encoding))
    first = bisect_left(tokens, True, key=lambda token: offsets(token)[1] > start)
    last = bisect_left(tokens, True, key=lambda token: offsets(token)[0] >= stop)
    return first, max(first, last)


class SpecialTokens:
    """The texts that stand for special tokens; a response is graded and judged without them."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted(texts, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        """Those of a tokenizer."""
        return cls(str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special)

    def removed_from(self, text: str) -> str:
        """The text without them."""
        return self._any.sub("", text)
