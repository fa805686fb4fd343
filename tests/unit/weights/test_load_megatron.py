"""What a rank's chunks are called in a Megatron checkpoint."""

from __future__ import annotations

import torch

from megatron_rlpr.weights.load_megatron import chunks_by_key


def test_one_chunk_is_called_as_it_always_was_and_several_are_numbered() -> None:
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    assert chunks_by_key([first]) == {"model": first}
    assert chunks_by_key([first, second]) == {"model0": first, "model1": second}
