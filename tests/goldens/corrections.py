"""Every golden value that is not matched on purpose, because the reference is wrong there.

CORRECTIONS: (golden file, case) -> (quirk of the reference specification, what is right and asserted instead). A case may be a shell
pattern: golden files of the same format with other cases are then covered by the rule, not by their names.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

CORRECTIONS: dict[tuple[str, str], tuple[str, str]] = {}


def correction(file: str, case: str) -> tuple[str, str] | None:
    """(quirk, why) if this case is corrected, None if the golden value must be matched."""
    for (known_file, pattern), entry in CORRECTIONS.items():
        if known_file == file and (pattern == case or fnmatchcase(case, pattern)):
            return entry
    return None
