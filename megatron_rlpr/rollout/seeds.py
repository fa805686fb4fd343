"""Sampling seeds that depend on what is sampled, never on where."""

from __future__ import annotations

import hashlib


def request_seed(run_seed: int, step: int, prompt_index: int, sample: int) -> int:
    """The seed of one response, 0 <= seed < 2**31.

    A hash instead of a sum, so that neighbouring steps, prompts and samples share no seed by arithmetic. 31 bits,
    because torch's CPU generator uses only the low 32 and some engines read seeds as signed.
    """
    name = f"{run_seed}/{step}/{prompt_index}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 33
