"""The one table of data sources: who grades their answers, and whatever else depends on a source's name (spec 6.2).

Validation files and their sources are called like "Math-500_Avg2", so most patterns fit any part of a name. More than
one row may fit: the first one grades, and each other question is answered yes when any row that fits says so.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from megatron_rlpr.system.quoting import LONGEST, quoted
from megatron_rlpr.types import UserError

Grader = Literal["exact", "gsm8k", "hendrycks", "choice_of_16", "choice_of_4", "mathematics"]
Question = Literal["mathematics", "choice"]
Group = Literal["general", "maths"]


@dataclass(frozen=True)
class Source:
    """The data sources that a pattern stands for.

    place: where in a name the pattern must stand. judged: a language model may be asked about their responses.
    verified: reward.reward_type=pr+vr takes the grade for the probability. lettered: data.template=llama_gemma
    asks for the letter alone in files of that name. group: of benchmarks, as the paper's tables average them.
    """

    pattern: str
    grader: Grader | Literal["program"]
    place: Literal["anywhere", "start", "whole"] = "anywhere"
    judged: bool = False
    verified: bool = False
    lettered: bool = False
    group: Group | None = None

    def fits(self, name: str) -> bool:
        """True when the name is one of these sources'."""
        if self.place == "anywhere":
            return self.pattern in name
        return name == self.pattern or (self.place == "start" and name.startswith(self.pattern))


_BENCHMARKS = ("Math-500", "AIME2024", "AMC2023", "OlympiadBench", "Minerva")
_TRAINING_SETS = (
    "numina_cn_k12", "numina_synthetic_math", "numina_olympiads", "numina_synthetic_amc", "numina_aops_forum",
    "numina_amc_aime", "DAPO-Math-17k", "simplelr_deepscaler",
)  # fmt: skip
_TULU = (
    "tulu_v3.9_wildchat_100k", "personahub_ifdata_manual_seed_v3_29980", "flan_v2_converted", "no_robots_converted",
    "tulu_v3.9_sciriff_10k", "tulu_v3.9_table_gpt_5k", "oasst1_converted",
)  # fmt: skip

SOURCES = (
    Source("quickstart/", "exact", "start"),
    Source("openai/gsm8k", "gsm8k", "whole", group="maths"),
    Source("lighteval/MATH", "hendrycks", "whole", group="maths"),
    Source("DigitalLearningGmbH/MATH-lighteval", "hendrycks", "whole", group="maths"),
    Source("MMLUPro", "choice_of_16", judged=True, lettered=True, group="general"),
    Source("SuperGPQA", "choice_of_16", judged=True, lettered=True, group="general"),
    Source("gpqa_diamond", "choice_of_4", judged=True, lettered=True, group="general"),
    Source("HellaSwag", "choice_of_4", group="general"),
    Source("WebInstruct-verified-val", "choice_of_4", judged=True, group="general"),
    Source("WebInstruct-verified", "mathematics", lettered=True),
    *(Source(name, "mathematics", judged=True, verified=True, group="maths") for name in _BENCHMARKS),
    Source("TheoremQA", "mathematics", judged=True, group="general"),
    *(Source(name, "mathematics", verified=True) for name in _TRAINING_SETS),
    Source("orz_math_57k_collection", "mathematics"),
    Source("MATH", "mathematics"),
    *(Source(f"allenai-tulu-3-sft-mixture-train-{name}", "mathematics") for name in _TULU),
    *(Source(name, "program", "whole") for name in ("codecontests", "apps", "codeforces", "taco")),
)

GENERAL_SETS = ("MMLUPro-1000_Avg2", "gpqa_diamond_Avg4", "TheoremQA_Avg2", "WebInstruct-verified-val_Avg2")
"""The benchmarks of general reasoning, by the names of the reference's validation files."""


def grader_of(data_source: str) -> Grader:
    """Who grades a data source. Raises UserError that names the nearest known sources when nobody does."""
    grader = next((source.grader for source in SOURCES if source.fits(data_source)), None)
    if grader == "program":
        raise UserError(
            f"data_source {quoted(data_source)} needs responses to be run as programs, which graders never do; leave "
            "it out"
        )
    if grader is not None:
        return grader
    graded = [source for source in SOURCES if source.grader != "program"]
    known = [f"{source.pattern}*" if source.place == "start" else source.pattern for source in graded]
    near = difflib.get_close_matches(data_source[:LONGEST], known, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise UserError(
        f"data_source {quoted(data_source)} has no grader{hint} Known sources (or parts of their names): "
        f"{', '.join(known)}"
    )


def judge_question(data_source: str) -> Question | None:
    """How a judge is asked about a data source; None where only the rules decide."""
    graders = [source.grader for source in SOURCES if source.judged and source.fits(data_source)]
    if not graders:
        return None
    return "mathematics" if "mathematics" in graders else "choice"


def benchmark_group(data_source: str) -> Group | None:
    """The group of benchmarks that a data source is averaged in; None where it is no benchmark."""
    return next((source.group for source in SOURCES if source.group and source.fits(data_source)), None)


def is_verified(data_source: str) -> bool:
    """True where reward.reward_type=pr+vr rewards the grade in place of the reference probability."""
    return any(source.verified and source.fits(data_source) for source in SOURCES)


def is_lettered(file: str) -> bool:
    """True where the path of a data file names a benchmark whose rewritten prompts ask for the letter alone."""
    return any(source.lettered and source.fits(file) for source in SOURCES)
