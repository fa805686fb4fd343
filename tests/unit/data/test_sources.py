"""What every known name of a data source, and some odd ones, are answered to every question about them."""

from __future__ import annotations

import pytest

from megatron_rlpr.data.sources import SOURCES, grader_of, is_lettered, is_verified, judge_question
from megatron_rlpr.types import UserError

# name, grader (or why there is none), how a judge is asked, graded by reward_type=pr+vr, asked for the letter alone
ANSWERS = [
    ("quickstart/sums", "exact", None, False, False),
    ("openai/gsm8k", "gsm8k", None, False, False),
    ("lighteval/MATH", "hendrycks", None, False, False),
    ("DigitalLearningGmbH/MATH-lighteval", "hendrycks", None, False, False),
    ("MMLUPro", "choice_of_16", "choice", False, True),
    ("SuperGPQA", "choice_of_16", "choice", False, True),
    ("gpqa_diamond", "choice_of_4", "choice", False, True),
    ("HellaSwag", "choice_of_4", None, False, False),
    ("WebInstruct-verified-val", "choice_of_4", "choice", False, True),
    ("numina_cn_k12", "mathematics", None, True, False),
    ("numina_synthetic_math", "mathematics", None, True, False),
    ("numina_olympiads", "mathematics", None, True, False),
    ("numina_synthetic_amc", "mathematics", None, True, False),
    ("numina_aops_forum", "mathematics", None, True, False),
    ("numina_amc_aime", "mathematics", None, True, False),
    ("Math-500", "mathematics", "mathematics", True, False),
    ("AIME2024", "mathematics", "mathematics", True, False),
    ("AMC2023", "mathematics", "mathematics", True, False),
    ("DAPO-Math-17k", "mathematics", None, True, False),
    ("WebInstruct-verified", "mathematics", None, False, True),
    ("orz_math_57k_collection", "mathematics", None, False, False),
    ("MATH", "mathematics", None, False, False),
    ("OlympiadBench", "mathematics", "mathematics", True, False),
    ("Minerva", "mathematics", "mathematics", True, False),
    ("TheoremQA", "mathematics", "mathematics", False, False),
    ("simplelr_deepscaler", "mathematics", None, True, False),
    ("allenai-tulu-3-sft-mixture-train-tulu_v3.9_wildchat_100k", "mathematics", None, False, False),
    ("allenai-tulu-3-sft-mixture-train-personahub_ifdata_manual_seed_v3_29980", "mathematics", None, False, False),
    ("allenai-tulu-3-sft-mixture-train-flan_v2_converted", "mathematics", None, False, False),
    ("allenai-tulu-3-sft-mixture-train-no_robots_converted", "mathematics", None, False, False),
    ("allenai-tulu-3-sft-mixture-train-tulu_v3.9_sciriff_10k", "mathematics", None, False, False),
    ("allenai-tulu-3-sft-mixture-train-tulu_v3.9_table_gpt_5k", "mathematics", None, False, False),
    ("allenai-tulu-3-sft-mixture-train-oasst1_converted", "mathematics", None, False, False),
    ("codecontests", "refused:programs", None, False, False),
    ("apps", "refused:programs", None, False, False),
    ("codeforces", "refused:programs", None, False, False),
    ("taco", "refused:programs", None, False, False),
    ("MMLUPro-1000_Avg2", "choice_of_16", "choice", False, True),
    ("gpqa_diamond_Avg4-R1", "choice_of_4", "choice", False, True),
    ("WebInstruct-verified-val_Avg2", "choice_of_4", "choice", False, True),
    ("Math-500_Avg2", "mathematics", "mathematics", True, False),
    ("TheoremQA_Avg2", "mathematics", "mathematics", False, False),
    ("AIME2024_Avg16", "mathematics", "mathematics", True, False),
    ("x/openai/gsm8k", "refused:unknown", None, False, False),
    ("openai/gsm8k2", "refused:unknown", None, False, False),
    ("lighteval/MATH2", "mathematics", None, False, False),
    ("my-quickstart/sums", "refused:unknown", None, False, False),
    ("MMLUPro-Math-500", "choice_of_16", "mathematics", True, True),
    ("TheoremQA-gpqa_diamond", "choice_of_4", "mathematics", False, True),
    ("quickstart/Minerva", "exact", "mathematics", True, False),
    ("apps-MATH", "mathematics", None, False, False),
    ("math", "refused:unknown", None, False, False),
    ("unit", "refused:unknown", None, False, False),
    ("", "refused:unknown", None, False, False),
]


def grader_or_refusal(name: str) -> str:
    try:
        return grader_of(name)
    except UserError as error:
        return "refused:programs" if "programs" in str(error) else "refused:unknown"


@pytest.mark.parametrize(("name", "grader", "question", "verified", "lettered"), ANSWERS)
def test_every_question_about_a_source(
    name: str, grader: str, question: str | None, verified: bool, lettered: bool
) -> None:
    answers = (grader_or_refusal(name), judge_question(name), is_verified(name), is_lettered(f"data/{name}.parquet"))
    assert answers == (grader, question, verified, lettered)


def test_no_row_of_the_table_is_left_out_here() -> None:
    asked = [name for name, *_ in ANSWERS]
    assert [source.pattern for source in SOURCES if not any(source.fits(name) for name in asked)] == []
