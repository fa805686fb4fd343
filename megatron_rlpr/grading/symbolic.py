"""Read an arithmetic or algebraic expression into sympy without executing any of it.

sympy's own `parse_expr` builds Python source and evaluates it, so a response could run code. Here the text is cut into
tokens of a fixed alphabet (numbers, names, operators, brackets) and a recursive-descent parser builds the expression
from functions in the table below. Anything else, numbers that would become huge and brackets nested too deep are
refused with NotAnExpression.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable

import sympy

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d_]\w*)|(?P<operator>\*\*|[-+*/^()!,]))",
    re.ASCII,
)
_MOST_CHARACTERS = 1000
_DEEPEST = 40
_MOST_EXPONENT_DIGITS = 4  # with the sign
_MOST_POWER_BITS = 20_000
_LARGEST_EXPONENT = 1000
_LARGEST_FACTORIAL = 1000

CONSTANTS: dict[str, sympy.Expr] = {"pi": sympy.pi, "E": sympy.E, "I": sympy.I, "oo": sympy.oo}
FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = {
    name: getattr(sympy, name)
    for name in (
        "sqrt", "cbrt", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh",
        "cosh", "tanh", "asinh", "acosh", "atanh", "Abs", "floor", "ceiling", "sign", "re", "im", "gcd", "lcm", "Max",
        "Min",
    )
} | {"abs": sympy.Abs, "max": sympy.Max, "min": sympy.Min}  # fmt: skip
_GREEK = frozenset({
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "mu", "nu", "xi", "omicron",
    "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
})  # fmt: skip
_WHOLE_NAMES = _GREEK | CONSTANTS.keys() | FUNCTIONS.keys()
_ANY_LETTERS = frozenset("SNOQ")  # names of sympy that stand for no number: refused rather than read as a variable


SYMPY_FAILURES = (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)
"""What sympy raises where values are no numbers, or (both RuntimeErrors) a problem is beyond it or too deep."""


class NotAnExpression(ValueError):
    """The text is no expression this reader knows, or one it will not compute."""


def read_expression(text: str, *, implicit_multiplication: bool) -> sympy.Expr:
    """The expression a text stands for; ^ and ** are powers, ! is the factorial.

    implicit_multiplication: things side by side are multiplied and unknown names fall into their letters, as in 2xy or
    3 sqrt 2; without it every unknown name is one variable. An integer literal to the power of an integer with ^ is
    refused there: the reference's parser reads that sign as exclusive or. Raises NotAnExpression.
    """
    if len(text) > _MOST_CHARACTERS:
        raise NotAnExpression(f"{len(text)} characters; at most {_MOST_CHARACTERS} are read")
    try:
        tokens = _tokens(text)
        return _Reader(_split_names(tokens) if implicit_multiplication else tokens, implicit_multiplication).whole()
    except (TypeError, ArithmeticError, AttributeError, RecursionError) as error:  # sympy refuses an argument
        raise NotAnExpression(str(error)) from error


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of every token."""
    found, place, text = [], 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise NotAnExpression(f"unexpected character {text[place]!r}")
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return found


def _number(text: str) -> sympy.Expr:
    if text.isdigit():
        return sympy.Integer(text)
    if len(re.split("[eE]", text)[-1]) > _MOST_EXPONENT_DIGITS and not text.replace(".", "").isdigit():
        raise NotAnExpression("a number that is too large or too small")
    return sympy.Float(text)


def _split_names(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Unknown names as their letters and numbers: xy^2 is x y^2; Greek letters and names with an index stay whole."""
    split: list[tuple[str, str]] = []
    for kind, text in tokens:
        if kind == "name" and not (text in _WHOLE_NAMES or "_" in text or keyword.iskeyword(text)):
            split += [("number" if part.isdigit() else "name", part) for part in re.findall(r"[^\W\d]|\d+", text)]
        else:
            split.append((kind, text))
    return split


class _Reader:
    """Recursive descent over the tokens; one method per level of precedence, weakest first, as in Python."""

    def __init__(self, tokens: list[tuple[str, str]], implicit: bool) -> None:
        self.tokens = tokens
        self.implicit = implicit
        self.place = 0
        self.depth = 0

    def whole(self) -> sympy.Expr:
        value = self.sum()
        if self.place < len(self.tokens):
            raise NotAnExpression(f"unexpected {self.tokens[self.place][1]!r}")
        return value

    def sum(self) -> sympy.Expr:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotAnExpression(f"brackets nested deeper than {_DEEPEST}")
        value = self.product()
        while operator := self.take("+", "-"):
            right = self.product()
            value = value + right if operator == "+" else value - right
        self.depth -= 1
        return value

    def product(self) -> sympy.Expr:
        value = self.signed()
        while True:
            if operator := self.take("*", "/"):
                right = self.signed()
                value = value * right if operator == "*" else value / right
            elif self.implicit and self.operand_follows():
                value = value * self.power()
            else:
                return value

    def signed(self) -> sympy.Expr:
        negative = self.signs()
        value = self.power()
        return -value if negative else value

    def signs(self) -> bool:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        return negative

    def power(self) -> sympy.Expr:
        bases, operators = [self.postfixed()], []
        while operator := self.take("**", "^"):
            operators.append(operator)
            bases.append(self.signed_exponent())
        value = bases.pop()
        while operators:
            value = self.raised(bases.pop(), value, operators.pop())
        return value

    def signed_exponent(self) -> sympy.Expr:
        return -self.power() if self.signs() else self.postfixed()

    def postfixed(self) -> sympy.Expr:
        value = self.operand()
        while self.take("!"):
            if value.is_number and not (value.is_Integer and 0 <= value <= _LARGEST_FACTORIAL):
                raise NotAnExpression("factorial of a number that is negative, broken or too large")
            value = sympy.factorial(value)
        return value

    def operand(self) -> sympy.Expr:
        kind, text = self.next()
        if kind == "number":
            return _number(text)
        if text == "(":
            value = self.sum()
            self.expect(")")
            return value
        if kind == "name":
            return self.named(text)
        raise NotAnExpression(f"unexpected {text!r}")

    def named(self, name: str) -> sympy.Expr:
        if keyword.iskeyword(name) or "__" in name or name in _ANY_LETTERS:
            raise NotAnExpression(f"the name {name!r} stands for no number")
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in FUNCTIONS:
            return FUNCTIONS[name](*self.arguments(name))
        if not self.implicit and self.take("("):
            return sympy.Function(name)(*self.rest_of_arguments())
        return sympy.Symbol(name)

    def arguments(self, name: str) -> list[sympy.Expr]:
        if self.take("("):
            return self.rest_of_arguments()
        if self.implicit and self.operand_follows():  # sqrt 2 x: everything side by side belongs to the function
            value = self.power()
            while self.operand_follows():
                value = value * self.power()
            return [value]
        raise NotAnExpression(f"{name} of nothing")

    def rest_of_arguments(self) -> list[sympy.Expr]:
        values = [self.sum()]
        while self.take(","):
            values.append(self.sum())
        self.expect(")")
        return values

    def raised(self, base: sympy.Expr, exponent: sympy.Expr, operator: str) -> sympy.Expr:
        """base ** exponent, unless the result is a number of more than about 6,000 digits."""
        if not self.implicit and operator == "^" and base.is_Integer and exponent.is_Integer:
            raise NotAnExpression("an integer to the power of an integer, written with ^")
        if exponent.is_number and (abs(exponent) <= _LARGEST_EXPONENT) is not sympy.true:
            raise NotAnExpression(f"an exponent above {_LARGEST_EXPONENT}")
        if base.is_Rational and exponent.is_number:
            bits = base.p.bit_length() + base.q.bit_length()
            if bits * abs(float(exponent)) > _MOST_POWER_BITS:
                raise NotAnExpression("a power that is too large")
        return base**exponent

    def operand_follows(self) -> bool:
        kind, text = self.tokens[self.place] if self.place < len(self.tokens) else ("", "")
        return kind in ("number", "name") or text == "("

    def next(self) -> tuple[str, str]:
        if self.place == len(self.tokens):
            raise NotAnExpression("the text ends too early")
        self.place += 1
        return self.tokens[self.place - 1]

    def take(self, *operators: str) -> str:
        """The next token if it is one of the operators, else ""."""
        kind, text = self.tokens[self.place] if self.place < len(self.tokens) else ("", "")
        if kind != "operator" or text not in operators:
            return ""
        self.place += 1
        return text

    def expect(self, operator: str) -> None:
        if not self.take(operator):
            raise NotAnExpression(f"{operator!r} is missing")
