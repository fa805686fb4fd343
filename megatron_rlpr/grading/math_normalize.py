r"""Two normal forms of a written mathematical answer: equal forms mean equal answers.

`latex_form` follows the string equivalence of the MATH data set (Hendrycks et al., 2021, "Measuring Mathematical
Problem Solving"); `plain_form` turns LaTeX to text, drops units and spells integers canonically (Lightman et al., 2023,
"Let's Verify Step by Step"). The orders of the replacements matter and are the reference's.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from pylatexenc.latex2text import LatexNodes2Text

from megatron_rlpr.grading.answer_text import closing_bracket

_ENCLOSING_TEXT = re.compile(r"^\\text\{(.+?)\}$")
_ROOT_SIGN = re.compile(r"√\s*\{?(\d+(?:\.\d+)?|[A-Za-z])\}?")
_ROOT_OF_BRACKET = re.compile(r"√\s*\(")
_INTEGER_RATIO = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")

_WORDS_FOR_POWERS = (("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"))
_UNITS = re.compile(
    r"(?:degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard|liter)"
    r"(?:es)?s? *(?:\^[0-9]+)?"
)
_THOUSANDS_COMMA = re.compile(r"(\d),(\d\d\d)(?=$|\D)")
_NEARLY_WHOLE = Decimal("1e-7")
_MOST_DIGITS = 300
_LARGEST_POWER = 100_000
_TEXT_SYMBOLS = str.maketrans({"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*"})


class Unnormalisable(ValueError):
    """The answer is written in a way the normal form does not cover; it is then compared as it stands."""


def latex_form(answer: str) -> str:
    r"""The answer without white space, units and synonyms: \dfrac12 -> \frac{1}{2}, x = 5 -> 5, 90^\circ -> 90."""
    answer = answer.strip()
    if enclosed := _ENCLOSING_TEXT.search(answer):
        answer = enclosed.group(1).strip()
    try:
        return strict_latex_form(latex_roots(answer))
    except Unnormalisable:
        return answer


def strict_latex_form(text: str) -> str:
    r"""As `latex_form`, for an answer out of its \text{}; raises Unnormalisable instead of leaving it as it is."""
    for old, new in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
        ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    text = _without_unit_on_the_right(text).replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # a name of at most two characters, as in "x = 5"
        text = sides[1]
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    if text == "0.5":
        return r"\frac{1}{2}"
    return _INTEGER_RATIO.sub(r"\\frac{\1}{\2}", text) if _INTEGER_RATIO.fullmatch(text) else text


def latex_roots(text: str) -> str:
    r"""√10 -> \sqrt{10}, 3√(x+1) -> 3\sqrt{x+1}."""
    text = _ROOT_SIGN.sub(r"\\sqrt{\1}", text)
    for root in reversed(list(_ROOT_OF_BRACKET.finditer(text))):  # the inner roots first
        stop = closing_bracket(text, root.end() - 1, 0, "()")
        if stop >= 0:
            text = text[: root.start()] + "\\sqrt{" + text[root.end() : stop] + "}" + text[stop + 1 :]
    return text


def _without_unit_on_the_right(text: str) -> str:
    r"""Without "\text{ ...", which stands before a unit."""
    before, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise Unnormalisable("more than one unit")
    return before


def _braced_roots(text: str) -> str:
    r"""\sqrt3 -> \sqrt{3}."""
    first, *operands = text.split("\\sqrt")
    if "" in operands:
        raise Unnormalisable("a root of nothing")
    return first + "".join("\\sqrt" + (o if o[0] == "{" else "{" + o[0] + "}" + o[1:]) for o in operands)


def _braced_fractions(text: str) -> str:
    r"""\frac12 -> \frac{1}{2}, \frac1{72} -> \frac{1}{72}; the text as it is when one character follows a fraction."""
    first, *operands = text.split("\\frac")
    braced = [first]
    for o in operands:
        if o == "":
            raise Unnormalisable("a fraction of nothing")
        if o[0] == "{":
            braced.append(o)
        elif len(o) < 2:
            return text
        else:
            denominator = o[1:] if o[1] == "{" else "{" + o[1] + "}" + o[2:]
            braced.append("{" + o[0] + "}" + denominator)
    return "\\frac".join(braced)


def plain_form(answer: str) -> str:
    r"""The answer as lower-case text: 1,000 -> 1000, 12 degrees -> 12, 3 \frac{1}{2} -> 3+1/2, 5 or 6 -> 5 , 6."""
    if enclosed := _ENCLOSING_TEXT.search(answer):
        answer = enclosed.group(1)
    for old, new in (
        ("\\%", "%"), ("\\$", "$"), ("$", ""), ("%", ""), (" or ", " , "), (" and ", " , "), *_WORDS_FOR_POWERS,
    ):  # fmt: skip
        answer = answer.replace(old, new)
    answer = re.sub(r"\^ *\\circ", "", _UNITS.sub("", answer))
    if answer[:1] == "{" and answer[-1] == "}":
        answer = answer[1:-1]
    answer = re.sub(r",\\! *", "", answer)
    if (whole := whole_number(answer)) is not None:
        answer = str(whole)
    if "\\" in answer:
        answer = latex_to_text(answer)
    answer = re.sub(r"- *", "-", answer)
    answer = re.sub(r"([0-9]) +([0-9])", r"\1+\2", answer)  # a mixed number, 3 1/2
    answer = answer.lower()
    if (whole := whole_number(without_thousands_commas(answer))) is not None:
        answer = str(whole)
    return answer


def decimal_number(text: str) -> Decimal | None:
    """The number a text spells, exactly; None for other text, for what is not finite and beyond 10^(+-100,000)."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    if not value:
        return Decimal(0)
    return value if value.is_finite() and abs(value.adjusted()) <= _LARGEST_POWER else None


def whole_number(text: str) -> int | None:
    """The integer that a text spells to within 1e-7; None for other text, and for more than 300 digits."""
    value = decimal_number(text)
    if value is None or value.adjusted() > _MOST_DIGITS:
        return None
    whole = value.to_integral_value()
    tiny = whole == 0 and value != 0  # 6.6e-34 is no spelling of 0, nor of 1.6e-19
    return int(whole) if abs(value - whole) <= _NEARLY_WHOLE and not tiny else None


def without_thousands_commas(text: str) -> str:
    """1,234,567 -> 1234567; a comma that separates values stays."""
    while (shorter := _THOUSANDS_COMMA.sub(r"\1\2", text)) != text:
        text = shorter
    return text


@lru_cache(maxsize=1)
def _latex_reader() -> LatexNodes2Text:
    """pylatexenc reads no file for \\input unless it is given a directory; it is not."""
    return LatexNodes2Text()


def latex_to_text(answer: str) -> str:
    r"""LaTeX as plain text: \frac{1}{2} -> 1/2, \sqrt{3} -> sqrt(3). The answer as it is when it cannot be read."""
    # the space keeps the parts of a mixed number apart
    latex = answer.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac").replace("\\frac", " \\frac")
    try:
        text = _latex_reader().latex_to_text(latex)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
        return answer
    return text.translate(_TEXT_SYMBOLS).strip()
