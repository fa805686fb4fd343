"""`bench controller` on a small batch: a rank of more ranks does less, and receives arrays that are smaller than
pickles."""

from __future__ import annotations

from pathlib import Path

from tools.bench import controller_case

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"


def test_a_rank_of_many_does_less_and_receives_less() -> None:
    report = controller_case.run(TOKENIZER, prompts=6, max_tokens=16384, worlds=(2, 6))
    assert report["responses"] == 48
    numbers = 8 * report["response_tokens"]
    for ranks in (2, 6):
        assert numbers < 1e6 * report[f"now_mb_{ranks}"] < 1.2 * numbers, "a token and its log-prob are 8 bytes"
        assert report[f"now_mb_{ranks}"] < report[f"before_mb_{ranks}"]
        assert report[f"now_seconds_{ranks}"] < report[f"before_seconds_{ranks}"]
        assert report[f"now_seconds_of_the_writing_thread_{ranks}"] > 0
