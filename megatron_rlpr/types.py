"""The plain records that move through the training loop, in the order they are made.

Prompt -> Response / RolloutGroup -> ScoreRequest -> TokenScores -> ResponseReward / ReferenceScores / ScoredGroup
-> TrainSequence -> UpdateResult.
No configuration, no engine, no framework object lives in them; everything is ids, numbers and text, so any room
can be tested alone and any record can be written to a parquet file.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


TokenIds = Sequence[int] | npt.NDArray[np.int32]


def int32_row(token_ids: TokenIds) -> npt.NDArray[np.int32]:
    """Token ids as an array: of an array itself, of other sequences without a look at every id."""
    if isinstance(token_ids, np.ndarray):
        return token_ids
    return np.frombuffer(array("i", token_ids), dtype=np.int32)


TokensDone = Callable[[int, int], None]
"""Called as (tokens of a piece of work that is finished, pieces in all)."""


class UserError(Exception):
    """A mistake in what the user gave us: one clear message that names the thing, what was expected and the fix.

    Entry points print the message without a traceback and exit with status 2.
    """


@dataclass(frozen=True)
class Prompt:
    """One row of the data set, templated and tokenised.

    index: row number over the concatenated data files; identifies the prompt for the life of a run.
    token_ids: chat template applied with the generation prompt, no padding.
    """

    index: int
    token_ids: tuple[int, ...]
    messages: tuple[dict[str, str], ...]
    reference_answer: str
    data_source: str
    extra: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Response:
    """One sampled continuation of a prompt.

    token_ids: what the engine generated, the end-of-sequence token included when there is one.
    text: token_ids decoded with special tokens kept. Of several ranks the group's owner alone has it; on the others
    token_ids and engine_log_probs are arrays, and to read the text is an error (`rollout.owned`).
    engine_log_probs: the engine's log-probability of every token at the sampling temperature, among all tokens,
        len(token_ids); () where the engine does not give it.
    finish_reason: "stop" (end of sequence) or "length" (truncated).
    seed: the sampling seed of this request.
    weight_versions: the hand-overs whose weights wrote it, in order (0 = initial); more than one when the engine's
    weights changed while it was being written.
    """

    token_ids: tuple[int, ...]
    text: str
    engine_log_probs: tuple[float, ...]
    finish_reason: str
    seed: int
    weight_versions: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class RolloutGroup:
    """A prompt with its n responses, in sample order. owner: the rank that does the work with their texts."""

    prompt: Prompt
    responses: tuple[Response, ...]
    owner: int = field(default=0, compare=False)


@dataclass(frozen=True)
class ScoreRequest:
    """Ask the policy for log p(token_ids[t] | token_ids[:t]) for start <= t < stop (0 < start <= stop).

    token_ids: an int32 array where another rank owns the text.
    """

    token_ids: TokenIds
    start: int
    stop: int

    @staticmethod
    def of_response(prompt: Prompt, token_ids: TokenIds) -> ScoreRequest:
        """The request for the log-probs of a whole response."""
        start, stop = len(prompt.token_ids), len(prompt.token_ids) + len(token_ids)
        if isinstance(token_ids, np.ndarray):
            whole = np.concatenate((int32_row(prompt.token_ids), token_ids))
            return ScoreRequest(whole, start, stop)
        return ScoreRequest((*prompt.token_ids, *token_ids), start, stop)


@dataclass(frozen=True)
class TokenScores:
    """The answer to one ScoreRequest: log_probs and entropies (nats, tempered), both float32 [stop - start]."""

    log_probs: FloatArray
    entropies: FloatArray


@dataclass(frozen=True)
class ResponseReward:
    """The reward of one response and the parts it was made from.

    reward = combination of the parts, as `reward.manager` defines it; extracted_answer is the text between the
    answer tags ("" when there are none, and on ranks that do not own the group); splice_valid tells whether the
    reference could be spliced in.
    probability_reward, graded_reward: the two parts of a mixed reward, before their weights (algorithm.adv_estimator
    pr*_vr*).
    """

    reward: float
    reference_probability: float
    base_probability: float
    format: float
    repetition: float
    splice_valid: bool
    extracted_answer: str
    accuracy: float = 0.0
    probability_reward: float = 0.0
    graded_reward: float = 0.0


@dataclass(frozen=True)
class ReferenceScores:
    """The tokens of the reference answer that were scored after a response's reasoning; log_probs: [len(token_ids)]."""

    token_ids: tuple[int, ...]
    log_probs: FloatArray


@dataclass(frozen=True)
class ScoredGroup:
    """A rollout group with everything the policy and the reward said about it, in response order.

    references: None for a response into which the reference answer was not spliced; () where nobody keeps them.
    """

    group: RolloutGroup
    scores: tuple[TokenScores, ...]
    rewards: tuple[ResponseReward, ...]
    references: tuple[ReferenceScores | None, ...] = ()

    @property
    def final_rewards(self) -> npt.NDArray[np.float64]:
        """[n] float64."""
        return np.array([r.reward for r in self.rewards], dtype=np.float64)


@dataclass(frozen=True)
class TrainSequence:
    """One response as the update sees it: train on token_ids[start:stop].

    old_log_probs, advantages: float32 [stop - start]; reference_log_probs likewise, when a KL loss is used;
    engine_log_probs likewise, where the engine's are known.
    """

    token_ids: TokenIds
    start: int
    stop: int
    old_log_probs: FloatArray
    advantages: FloatArray
    reference_log_probs: FloatArray | None = None
    engine_log_probs: FloatArray | None = None


@dataclass(frozen=True)
class UpdateResult:
    """One optimizer step: means over the trained tokens, and the gradient norm before clipping.

    computed_tokens: distinct tokens of the micro-batches; sequence_tokens: what they would be without prefix sharing.
    """

    loss: float
    entropy: float
    clip_fraction: float
    kl_to_old: float
    grad_norm: float
    trained_tokens: int
    computed_tokens: int
    sequence_tokens: int
