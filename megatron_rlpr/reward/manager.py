"""Scores, tags and grades of a response -> its reward, as reward.reward_manager defines it (spec sections 2.5 and 2.7).

prob:  (1 - c) f(p - b) + c format            p: reference probability, b: base probability, f: shaping, then bins
naive: 0.9 accuracy + 0.1 format              format as the prompt asks for it
mix:   vr_weight naive + pr_weight prob
A repetition penalty of -1 is added once, whatever the manager and also to a reward of 0 (quirk Q14). With
reward_type=pr+vr the prob manager takes p = accuracy and b = 0 for maths data sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.data.sources import is_verified
from megatron_rlpr.data.tokenizer import SpecialTokens
from megatron_rlpr.grading.format import format_score, rule_format_score
from megatron_rlpr.reward.answer_tags import extract_answer
from megatron_rlpr.reward.base_probability import base_requests
from megatron_rlpr.reward.probability import aggregate
from megatron_rlpr.reward.reasoning import empty_response
from megatron_rlpr.reward.repetition import repetition_penalty
from megatron_rlpr.reward.shaping import discrete_function, shaping_function
from megatron_rlpr.reward.splice import SpliceLimits, splice_texts
from megatron_rlpr.reward.splice_tokens import splice_tokens
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoreRequest, TokenScores, UserError

Grade = Callable[[Sequence[tuple[Prompt, Response]]], Sequence[float]]
"""(prompt, response) pairs -> the accuracy of each, 0 or 1; the same on every rank."""


def asks_for_grade(config: RewardConfig, data_source: str) -> bool:
    """True where the reward of a response to such a prompt depends on whether its answer is right."""
    return config.reward_manager != "prob" or (config.reward_type == "pr+vr" and is_verified(data_source))


class RewardManager:
    """Asks for what a reward needs from the policy and combines the answers.

    grade is needed by reward_manager=mix and naive and by reward_type=pr+vr; UserError without it.
    """

    def __init__(
        self,
        config: RewardConfig,
        tokenizer: Any,
        max_prompt_length: int,
        max_response_length: int,
        grade: Grade | None = None,
    ) -> None:
        needs_grade = config.reward_manager != "prob" or config.reward_type == "pr+vr"
        if needs_grade and grade is None and not config.format_only:
            raise UserError(
                f"reward.reward_manager={config.reward_manager} with reward_type={config.reward_type} needs graded "
                "answers"
            )
        self._config = config
        self._tokenizer = tokenizer
        self._limits = SpliceLimits(max_prompt_length, max_response_length)
        self._grade = grade
        self._shape = shaping_function(config.shaping_function_name)
        self._discretise = discrete_function(config.discrete_function_name)
        self._special_tokens = SpecialTokens.of(tokenizer)
        self._empty = empty_response(tokenizer, config.format_mode)

    @property
    def uses_probability(self) -> bool:
        """False when the reward is the grade alone: nothing is spliced then."""
        return self._config.reward_manager != "naive"

    def reference_requests(self, groups: Sequence[RolloutGroup]) -> list[list[ScoreRequest | None]]:
        """What to score for each response of every group; None where the reference answer cannot be spliced in."""
        splice = splice_tokens if self._config.splice == "tokens" else splice_texts
        pairs = [(group.prompt, response) for group in groups for response in group.responses]
        scored = [row for row, (prompt, _) in enumerate(pairs) if self.uses_probability and not self._is_graded(prompt)]
        requests: list[ScoreRequest | None] = [None] * len(pairs)
        spliced = splice(self._tokenizer, [pairs[row] for row in scored], self._config, self._limits)
        for row, result in zip(scored, spliced, strict=True):
            requests[row] = result.request()
        remaining = iter(requests)
        return [[next(remaining) for _ in group.responses] for group in groups]

    def base_requests(self, prompts: Sequence[Prompt]) -> list[ScoreRequest]:
        """What to score for the prompts' base probabilities."""
        return base_requests(self._tokenizer, prompts, self._limits.max_response_length)

    def base_probability(self, scores: TokenScores) -> float:
        """The base probability from the answer to a base_request; never rounded, no added token (spec section 2.6)."""
        return aggregate(scores.log_probs, self._config.compute_score_name)

    def reference_probability(self, scores: TokenScores | None) -> float:
        """The reference probability from the answer to a reference_request; 0 where there was none."""
        if scores is None:
            return 0.0
        config = self._config
        cap_last = config.gt_tokens_one_more and config.gt_tokens_one_more_adjusted
        return aggregate(
            scores.log_probs, config.compute_score_name, cap_last=cap_last, bf16_rounding=config.score_bf16_rounding
        )

    def requests_without_reasoning(self, prompts: Sequence[Prompt]) -> list[ScoreRequest | None]:
        """What to score for the prompts' reference probabilities with no reasoning (`reward.reasoning`); None as in
        reference_requests."""
        empty = [RolloutGroup(prompt, (self._empty,)) for prompt in prompts]
        return [request for (request,) in self.reference_requests(empty)]

    def rewards(
        self,
        groups: Sequence[RolloutGroup],
        reference_scores: Sequence[Sequence[TokenScores | None]],
        base_probabilities: Sequence[float],
    ) -> list[tuple[ResponseReward, ...]]:
        """The reward of every response of every group, in order; what has to be graded is graded in one batch.

        reference_scores: the answers to reference_requests(groups). base_probabilities: one a group.
        """
        accuracies = iter(self._accuracies(groups))
        return [
            tuple(
                self._reward(group.prompt, response, answer, base, next(accuracies))
                for response, answer in zip(group.responses, answers, strict=True)
            )
            for group, answers, base in zip(groups, reference_scores, base_probabilities, strict=True)
        ]

    def _accuracies(self, groups: Sequence[RolloutGroup]) -> list[float]:
        """One a response, in order; 0 where the reward does not ask for a grade."""
        pairs = [(group.prompt, response) for group in groups for response in group.responses]
        wanted = [asks_for_grade(self._config, prompt.data_source) for prompt, _ in pairs]
        if self._grade is None or not any(wanted):
            return [0.0] * len(pairs)
        grades = iter(self._grade([pair for pair, asked in zip(pairs, wanted, strict=True) if asked]))
        return [float(next(grades)) if asked else 0.0 for asked in wanted]

    def _reward(
        self, prompt: Prompt, response: Response, scores: TokenScores | None, base_probability: float, accuracy: float
    ) -> ResponseReward:
        config = self._config
        graded = self._is_graded(prompt)
        parts = ResponseReward(
            reward=0.0,
            reference_probability=accuracy if graded else self.reference_probability(scores),
            base_probability=0.0 if graded else base_probability,
            format=format_score(response.text, config.format_mode),
            repetition=self._repetition(response) if config.repetition_penalty else 0.0,
            splice_valid=scores is not None,
            extracted_answer=extract_answer(response.text),
            accuracy=accuracy,
        )
        if config.format_only:
            return replace(parts, reward=parts.format)
        probability = self._probability_reward(parts, response) if config.reward_manager != "naive" else 0.0
        graded_part = self._graded_reward(prompt, response, accuracy) if config.reward_manager != "prob" else 0.0
        match config.reward_manager:
            case "prob":
                reward = probability
            case "naive":
                reward = graded_part
            case "mix":
                reward = config.vr_weight * graded_part + config.pr_weight * probability
        reward += parts.repetition
        return replace(parts, reward=reward, probability_reward=probability, graded_reward=graded_part)

    def _probability_reward(self, parts: ResponseReward, response: Response) -> float:
        shaped = self._discretise(self._shape(parts.reference_probability - parts.base_probability, response.seed))
        coefficient = self._config.format_coefficient
        if coefficient == -1:
            return shaped if parts.format == 1 else -1.0
        return (1 - coefficient) * shaped + coefficient * parts.format

    def _graded_reward(self, prompt: Prompt, response: Response, accuracy: float) -> float:
        prompt_text = "\n".join(message["content"] for message in prompt.messages)
        return 0.9 * accuracy + 0.1 * rule_format_score(response.text, prompt_text, self._config.format_mode)

    def _is_graded(self, prompt: Prompt) -> bool:
        return self._config.reward_type == "pr+vr" and is_verified(prompt.data_source)

    def _repetition(self, response: Response) -> float:
        text = self._special_tokens.removed_from(response.text)
        return repetition_penalty(text, limit=self._config.repetition_penalty_max_repetitions_limit)
