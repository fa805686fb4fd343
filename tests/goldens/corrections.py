"""Every golden value that is not matched on purpose, because the reference is wrong there.

CORRECTIONS: (golden file, case) -> (quirk of the reference specification, what is right and asserted instead). A case may be a shell
pattern: golden files of the same format with other cases are then covered by the rule, not by their names.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

CORRECTIONS: dict[tuple[str, str], tuple[str, str]] = {
    # algorithm
    ("advantages.json", "gae_*"): ("Q9", "the reference's trainer crashes on gae, which needs a critic RLPR does not have: it is refused"),
    ("advantage_dispatch.json", "rloo"): ("Q9", "the reference crashes (filter_rate unbound): it works"),
    ("advantage_dispatch.json", "remax"): ("Q9", "the reference crashes (filter_rate unbound): it works"),
    ("advantage_dispatch.json", "reinforce_plus_plus"): ("Q9", "the reference crashes (filter_rate unbound): it works"),
    ("actor_update.json", "*"): ("Q1", "the reference weighs every micro-batch alike, by 4 / mini-batch rows: every token weighs the same"),
    ("ema_filter.json", "*-after-an-empty-epoch-end"): ("Q8", "the reference counts the last mean twice: nothing judged, nothing changed"),
    ("ema_filter.json", "final_global_steps"): ("Q4", "the reference counts on, once per epoch left: the last step is the last"),
    ("ema_filter.json", "during_filter_mean"): ("Q5", "always empty in the reference: not a metric here"),
    ("ema_filter.json", "error"): ("Q6", "the reference crashes if it resumes without its average: a checkpoint has it"),
    ("lr_schedule.json", "*"): ("Q7", "the reference's first step runs at rate 0: step k has the reference's rate of step k + 1"),
}


def correction(file: str, case: str) -> tuple[str, str] | None:
    """(quirk, why) if this case is corrected, None if the golden value must be matched."""
    for (known_file, pattern), entry in CORRECTIONS.items():
        if known_file == file and (pattern == case or fnmatchcase(case, pattern)):
            return entry
    return None
