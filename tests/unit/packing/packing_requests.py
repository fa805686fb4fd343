"""Requests that share prefixes often: few distinct tokens, short sequences, any span."""

from hypothesis import strategies as st

from megatron_rlpr.types import ScoreRequest


@st.composite
def score_requests(draw: st.DrawFn, min_rows: int = 0) -> ScoreRequest:
    token_ids = draw(st.lists(st.integers(1, 3), min_size=2, max_size=10))
    start = draw(st.integers(1, len(token_ids) - min_rows))
    stop = draw(st.integers(start + min_rows, len(token_ids)))
    return ScoreRequest(tuple(token_ids), start, stop)


request_lists = st.lists(score_requests(), max_size=14)
