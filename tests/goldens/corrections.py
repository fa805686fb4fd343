"""Every golden value that is not matched on purpose, because the reference is wrong there.

CORRECTIONS: (golden file, case) -> (quirk of the reference specification, what is right and asserted instead). A case
may be a shell
pattern: golden files of the same format with other cases are then covered by the rule, not by their names.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

CORRECTIONS: dict[tuple[str, str], tuple[str, str]] = {
    # reward
    ("pr_splice.json", "overflow_batch-*"): (
        "Q2",
        "the reference zeroes every row of a batch with an overlong one: each row counts for itself",
    ),
    ("pr_splice.json", "*-with-nothing-after-the-answer-tag"): (
        "Q3",
        "the reference's test for an empty answer never fires: the row is invalid",
    ),
    ("pr_splice.json", "*-with-an-answer-tag-in-the-reference"): (
        "Q24",
        "the reference looks for the tag inside the answer: the inserted one counts",
    ),
    ("pr_splice.json", "*-masked-out"): (
        "not applicable",
        "the reference scores a row without a place for the answer and masks it: nothing is scored",
    ),
    ("prob_reward_manager.json", "pr_plus_vr-with-a-tuple-for-a-response"): (
        "Q13",
        "the reference grades and shows the text of a Python tuple: the response itself is graded, and no closed "
        "answer is shown as none",
    ),
    ("mix_naive_reward_managers.json", "columns"): (
        "Q11",
        "the reference writes every row at the last row's length: one number per response",
    ),
    ("mix_naive_reward_managers.json", "scores-of-other-rows"): (
        "unlisted",
        "the reference puts scores back from an order they were never in, so they belong to other rows: every row has "
        "its own",
    ),
    ("mix_naive_reward_managers.json", "mix_type_hard_error"): (
        "Q15",
        "the reference's default mix is not implemented: there is one mix and no key",
    ),
    ("tensor_helpers.json", "value_loss"): ("not applicable", "there is no critic"),
    ("tensor_helpers.json", "get_eos_mask"): (
        "not applicable",
        "responses end where the engine ended them and are never padded",
    ),
    ("tensor_helpers.json", "seqlen_balanced_partitions"): (
        "not applicable",
        "packing/ balances prefix trees by cost, not rows by length",
    ),
    ("tensor_helpers.json", "calculate_ema"): ("not applicable", "no part of the reference's training uses it"),
    # algorithm
    ("advantages.json", "gae_*"): (
        "Q9",
        "the reference's trainer crashes on gae, which needs a critic RLPR does not have: it is refused",
    ),
    ("advantage_dispatch.json", "rloo"): ("Q9", "the reference crashes (filter_rate unbound): it works"),
    ("advantage_dispatch.json", "remax"): ("Q9", "the reference crashes (filter_rate unbound): it works"),
    ("advantage_dispatch.json", "reinforce_plus_plus"): ("Q9", "the reference crashes (filter_rate unbound): it works"),
    ("actor_update.json", "*"): (
        "Q1",
        "the reference weighs every micro-batch alike, by 4 / mini-batch rows: every token weighs the same",
    ),
    ("ema_filter.json", "*-after-an-empty-epoch-end"): (
        "Q8",
        "the reference counts the last mean twice: nothing judged, nothing changed",
    ),
    ("ema_filter.json", "final_global_steps"): (
        "Q4",
        "the reference counts on, once per epoch left: the last step is the last",
    ),
    ("ema_filter.json", "during_filter_mean"): ("Q5", "always empty in the reference: not a metric here"),
    ("ema_filter.json", "error"): (
        "Q6",
        "the reference crashes if it resumes without its average: a checkpoint has it",
    ),
    ("lr_schedule.json", "*"): (
        "Q7",
        "the reference's first step runs at rate 0: step k has the reference's rate of step k + 1",
    ),
    # evaluation
    ("grading_dispatch.json", "*-openai/gsm8k-*"): (
        "Q22",
        "the reference's dispatcher fails on a bare score (TypeError): it works",
    ),
    ("grading_dispatch.json", "*-lighteval/MATH-*"): (
        "Q22",
        "the reference's dispatcher fails on a bare score (TypeError): it works",
    ),
    ("grading_dispatch.json", "*-MATH-lighteval-*"): (
        "Q22",
        "the reference's dispatcher fails on a bare score (TypeError): it works",
    ),
    ("grading_dispatch.json", "*-runs-code"): (
        "not applicable",
        "the reference runs responses as programs: the graders never execute text, so the source is refused",
    ),
    ("grading_internals.json", "math_equal-of-python-words: *"): (
        "Q25",
        "the reference evaluates answers as Python, where 5 or 6 is 5 and True is 1: other words are another answer",
    ),
}


def correction(file: str, case: str) -> tuple[str, str] | None:
    """(quirk, why) if this case is corrected, None if the golden value must be matched."""
    for (known_file, pattern), entry in CORRECTIONS.items():
        if known_file == file and (pattern == case or fnmatchcase(case, pattern)):
            return entry
    return None
