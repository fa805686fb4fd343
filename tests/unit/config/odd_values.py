"""Values as people, editors and scripts write them into recipes and command lines, with what they mean.

Meanings follow YAML 1.2's core rules, written down here by hand: nothing of the project decides them.
"""

from __future__ import annotations

import random
from typing import Any

WRONG = object()
"""The meaning of a text that no value of this type can have."""

Texts = list[tuple[str, Any]]

# text -> its meaning where a number or a truth value is expected
ODD_SCALARS: Texts = [
    ("", WRONG),
    ("~", WRONG),
    ("null", WRONG),
    ("[1", WRONG),
    ("[1]", WRONG),
    ("{a: 1}", WRONG),
    ("&a 1", WRONG),
    ("*a", WRONG),
    ("&a [*a]", WRONG),
    ("!!int 1", WRONG),
    ("!!binary aGk=", WRONG),
    ("!!python/object/apply:os.getcwd []", WRONG),
    ("!!timestamp 2025-01-31", WRONG),
    ("2025-01-31", WRONG),
    ("2025-01-31T01:02:03Z", WRONG),
    ("0x10", WRONG),
    ("0b1", WRONG),
    ("0o17", WRONG),
    ("1:30", WRONG),
    ("1_", WRONG),
    ("1__0", WRONG),
    ("1e400", WRONG),
    ("-.inf", WRONG),
    (".nan", WRONG),
    ("inf", WRONG),
    ("NaN", WRONG),
    ("１", WRONG),
    ("٣", WRONG),
    ("−1", WRONG),
    ("1,5", WRONG),
    ("eight", WRONG),
    ("yes", WRONG),
    ("on", WRONG),
    ("9" * 5000, WRONG),
    ("-" + "9" * 5000, WRONG),
    ("[" * 3000, WRONG),
    ("true", True),
    ("FALSE", False),
    ("1e23", 1e23),
    ("010", 10.0),
    ("1.", 1.0),
    (".5", 0.5),
    ("1E-3", 1e-3),
    ("0", 0),
    ("-0", 0),
    ("-1", -1),
    ("+2", 2),
    ("1_0", 10),
    (str(10**23), 10**23),
    (str(2**63), 2**63),
    (str(2**31), 2**31),
    ("3.7", 3.7),
    ("1e-320", 1e-320),
]

# quoted YAML text -> the text it stands for
ODD_TEXTS: Texts = [
    ('""', ""),
    ("'a b'", "a b"),
    ("'é#1: x'", "é#1: x"),
    ("'2025-01-31'", "2025-01-31"),
    ("'null'", "null"),
    ('"a\\0b"', WRONG),
    ('"a\\nb"', WRONG),
    ('"a\\tb"', WRONG),
    ('"\\e[31m"', WRONG),
    ('"\\ud800"', WRONG),
    ('"\\u2028"', WRONG),
    ('"\\UFFFFFFFF"', WRONG),
    ('"\\x7f"', WRONG),
    ("'" + "n" * 300 + "'", WRONG),
    ("'" + "é" * 128 + "'", WRONG),
    ("'" + "p/" * 3000 + "'", WRONG),
    ("|\n    two\n    lines", WRONG),
    ("5", WRONG),
    ("1e-6", WRONG),
    ("true", WRONG),
    ("~", WRONG),
    ("[a]", WRONG),
    ("{a: b}", WRONG),
    ("*a", WRONG),
    ("&a x", WRONG),
    ("!!str x", WRONG),
    (".nan", WRONG),
]

# what is typed after key= -> the text it stands for
TYPED_TEXTS: Texts = [
    ("", ""),
    ("a=b", "a=b"),
    ("'a b'", "a b"),
    ("5", "5"),
    ("a\0b", WRONG),
    ("a\nb", WRONG),
    ("\x1b[31m", WRONG),
    ("\udcff", WRONG),
    ("n" * 300, WRONG),
    ("n" * 200_000, WRONG),
    ("é" * 128, WRONG),
    ("p/" * 3000, WRONG),
]

# whole recipes that are no plain tree of known keys
WRONG_RECIPES: list[bytes] = [
    b"",
    b"\0",
    b"actor:\n\tlr: 1\n",
    b"actor: {lr: 1}\nactor: {lr: 1}\n",
    b"actor: {lr: 1, 'lr': 1}\n",
    b"actor: {lr: 1}\n---\nactor: {lr: 2}\n",
    b"? [actor]\n: {lr: 1}\n",
    b"? {a: 1}\n: 2\n",
    b"actor: {[lr]: 1}\n",
    b"actor: {? {lr: 1} : 1}\n",
    b"1: 2\n",
    b"~: {lr: 1}\n",
    b"actor.lr: 1\n",
    b"actor: [lr, 1]\n",
    b"- actor\n",
    b"just text\n",
    b"loop: &x {loop: *x}\n",
    b"actor: &x {lr: 1, again: *x}\n",
    b"a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
    b"base: &b {lr: 1}\nactor: {<<: *b}\n",
    b"actor: {<<: {lr: 1}}\n",
    b"%YAML 9999999999999999999999999.1\n---\nactor: {lr: 1}\n",
    "асtоr: {lr: 1}\n".encode(),
    "actor: {lr: 1}\n".encode("utf-16"),
    "actor: {lr: 1}\n".encode("utf-16-le"),
    "trainer: {name: 'é'}\n".encode("latin-1"),
    b"[" * 30_000,
    b"a: {" * 30_000,
    b"- " * 30_000,
    b"? " * 30_000,
    b"#" * 2_000_000,
    b"x" * 500_000 + b": 1\n",
    b"actor: {" + b"x" * 500_000 + b": 1}\n",
    b"actor: {lr: !!python/object/apply:os.getcwd []}\n",
    b"actor: !!map {lr: 1}\n",
    b"actor: !!set {lr}\n",
    b"!local {actor: 1}\n",
]

WRONG_ARGUMENTS = [
    "",
    "=",
    "=5",
    "--",
    "-x",
    "--config",
    "--config=",
    "rollout.n",
    "rollout.n=",
    "rollout.n==5",
    "rollout.n: 5",
    "rollout=5",
    "rollout.n.x=5",
    "rоllout.n=5",
    "rollout.\nn=5",
    "rollout.\x1b[31m=5",
    "rollout.\udcff=5",
    "x" * 200_000 + "=1",
    "rollout." + "n" * 200_000 + "=1",
    "actor.dtype=" + "b" * 200_000,
    "rollout.n=" + "[" * 100_000,
    "data.train_files=" + "[" * 100_000,
    "data.train_files=[a, *b]",
    "data.train_files=[a, [b]]",
    "data.train_files={a: b}",
    "data.train_files=[a\0]",
]


def valid_number(kind: type, low: float, high: float, rng: random.Random) -> float:
    """A number of the range, small ones and its ends more often than others."""
    if kind is int:
        first, last = int(low), int(high)
        return rng.choice([first, first + 1, last, rng.randint(first, last), min(last, first + rng.randint(0, 8))])
    return rng.choice([high, rng.uniform(low, high), low + (min(high, low + 1) - low) * rng.random()])
