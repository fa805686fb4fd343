"""What is scored for a base probability."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_rlpr.reward.base_probability import base_requests
from megatron_rlpr.types import Prompt, UserError


def test_a_window_without_room_for_the_answer_is_named_and_not_the_answer(tokenizer: Any) -> None:
    prompt = Prompt(4, tuple(tokenizer("2+2=", add_special_tokens=False)["input_ids"]), (), "\n4", "unit")
    (request,) = base_requests(tokenizer, [prompt], 10)
    assert request.start < request.stop
    with pytest.raises(UserError, match=r"data\.max_response_length=1 leaves no room .*\(prompt 4\): raise it"):
        base_requests(tokenizer, [prompt], 1)
