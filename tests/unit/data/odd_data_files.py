"""Generated data files: good ones in odd dress, and ones with a single fault that is known."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

REFERENCES = {
    "quickstart/sums": ("42", "Paris", "New York", "1,000", "naïve", "日本 x", " 7 ", "a<b", "\\d+ (?x", "yes."),
    "openai/gsm8k": ("72", "-5", "3.5"),
    "lighteval/MATH": (r"\frac{1}{2}", "x^2", "(1, 2)", "no number", "{}"),
    "MMLUPro-1000_Avg2": ("A", "J", "C"),
    "gpqa_diamond": ("D", "B"),
    "Math-500": ("1/2", r"\sqrt{3}", "[1, 2)", "x = 5", "The sky is blue.", "a\nb", r"\frac{", "(?P<", "nan", "𝟜"),
    "WebInstruct-verified": ("-0.5 m/s", "answer is 3. No", r"\boxed{4}", "12%", "1e400"),
}
"""Per source, references that its grader knows when it meets them."""

NO_TEXTS = (None, "", "  \n")
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
STAMP = datetime(2024, 2, 29, 12, 30, 1, 5)
# type, value, what becomes of the value
EXTRAS: tuple[tuple[pa.DataType, Any, Any], ...] = (
    (pa.timestamp("us"), STAMP, "2024-02-29T12:30:01.000005"),
    (pa.timestamp("ns"), 1, "1970-01-01T00:00:00.000000001"),
    (pa.timestamp("us", "+03:00"), 0, "1970-01-01T03:00:00+03:00"),
    (pa.date32(), date(2024, 2, 29), "2024-02-29"),
    (pa.time64("us"), time(1, 2, 3, 4), "01:02:03.000004"),
    (pa.duration("us"), timedelta(days=1, microseconds=2), "1 day, 0:00:00.000002"),
    (pa.duration("ns"), 1, "0 days 00:00:00.000000001"),
    (pa.decimal128(10, 3), Decimal("1.500"), "1.500"),
    (pa.decimal256(76, 0), Decimal(10**70), str(10**70)),
    (pa.binary(), b"\xff\x00", "ff00"),
    (pa.uint64(), 2**64 - 1, 2**64 - 1),
    (pa.int64(), -(2**63), -(2**63)),
    (pa.float64(), float("nan"), float("nan")),
    (pa.float64(), float("-inf"), float("-inf")),
    (pa.float16(), 1.5, 1.5),
    (pa.bool_(), True, True),
    (pa.null(), None, None),
    (pa.string(), "é\x00\u2028</s>", "é\x00\u2028</s>"),
    (pa.string_view(), "view", "view"),
    (pa.dictionary(pa.int8(), pa.string()), "category", "category"),
    (pa.map_(pa.string(), pa.date32()), [("a", date(1, 1, 1))], [["a", "0001-01-01"]]),
    (
        pa.list_(pa.struct([("x", pa.list_(pa.decimal128(3, 1)))])),
        [{"x": [Decimal("0.5"), None]}],
        [{"x": ["0.5", None]}],
    ),
    (pa.struct([("a", pa.struct([("", pa.binary(2))]))]), {"a": {"": b"ok"}}, {"a": {"": "6f6b"}}),
    (pa.uuid(), UUID(int=7).bytes, str(UUID(int=7))),
    (pa.json_(), '{"a": 1}', '{"a": 1}'),
)
NAMES = ("when", "", "a\nb", "prompt ", "extra_info.index", "日付", "x" * 3000, "Data_Source", "__index_level_0__")


@dataclass
class DataFile:
    """A file in the making: one list of values per column, and what is to come of it.

    refused: what a refusal must say; "" where the file is good. extra: of every row, what must be kept. arrays: in
    place of a column's values. doubled: a column that is written twice. damage: done to the written file.
    """

    columns: dict[str, list[Any]]
    types: dict[str, pa.DataType]
    refused: str = ""
    extra: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, pa.Array] = field(default_factory=dict)
    doubled: str | None = None
    damage: Callable[[Path, random.Random], None] | None = None
    longest: int = 512
    checks: bool = True

    @property
    def rows(self) -> int:
        return len(self.columns["prompt"])

    def write(self, path: Path, rng: random.Random) -> None:
        names = list(self.types)
        rng.shuffle(names)
        arrays = [
            self.arrays[name] if name in self.arrays else _array(self.columns[name], self.types[name]) for name in names
        ]
        if self.doubled in names:
            arrays.append(arrays[names.index(self.doubled)])
            names.append(self.doubled)
        pq.write_table(
            pa.Table.from_arrays(arrays, names=names),
            path,
            compression=rng.choice(["none", "snappy", "zstd", "gzip"]),
            row_group_size=rng.choice([1, 2, 1000]),
            data_page_version=rng.choice(["1.0", "2.0"]),
            use_dictionary=rng.choice([True, False]),
            write_page_checksum=True,
        )
        if self.damage is not None:
            self.damage(path, rng)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def good_file(rng: random.Random) -> DataFile:
    """One to five rows of known sources, in odd types, with odd columns besides."""
    rows = [_row(rng) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.2:
        rows.append(rows[0])
    text = rng.choice([pa.string(), pa.large_string()])
    source_type = rng.choice([text, pa.dictionary(pa.int32(), pa.string())])
    message = pa.struct([("content", text), *([("name", pa.string())] * (rng.random() < 0.3)), ("role", text)])
    style = [("style", pa.string())] * (rng.random() < 0.7)
    file = DataFile(
        {name: [row[name] for row in rows] for name in rows[0]},
        {
            "prompt": pa.list_(message),
            "data_source": source_type,
            "reward_model": pa.struct([("ground_truth", text), *style]),
        },
        extra=[{"reward_model": {"style": "rule"} if style else {}} for _ in rows],
    )
    for name in rng.sample(NAMES, rng.randint(0, 4)):
        kind, value, kept = rng.choice(EXTRAS)
        empty = [rng.random() < 0.3 for _ in rows]
        file.types[name] = kind
        file.columns[name] = [None if none else value for none in empty]
        for row, none in zip(file.extra, empty, strict=True):
            row[name] = None if none else kept
    return file


def _row(rng: random.Random) -> dict[str, Any]:
    source = rng.choice(list(REFERENCES))
    roles = rng.choice([["user"], ["system", "user"], ["user", "assistant", "user"], ["tool"], ["", "USER"]])
    texts = (
        "What?",
        "",
        " ",
        "word " * 60,
        "<|im_end|>",
        "{{ 1/0 }}",
        "{% raise %}",
        "\x00",
        "ﷺ🧑‍🚀\u202e",
        "</think>",
    )
    return {
        "prompt": [{"role": role, "content": rng.choice(texts)} for role in roles],
        "data_source": source,
        "reward_model": {"ground_truth": rng.choice(REFERENCES[source]), "style": "rule"},
    }


def broken_file(rng: random.Random) -> DataFile:
    """A good file with one fault."""
    file = good_file(rng)
    rng.choice(FAULTS)(file, rng)
    return file


def missing_column(file: DataFile, rng: random.Random) -> None:
    name = rng.choice(["prompt", "data_source", "reward_model"])
    del file.types[name]
    file.refused = f"column '{name}' is missing"


def wrong_type(file: DataFile, rng: random.Random) -> None:
    name, kind, value = rng.choice(
        [
            ("prompt", pa.string(), "What?"),
            ("prompt", pa.string(), json.dumps([{"role": "user", "content": "a" * 100_000}])),
            ("prompt", pa.int64(), 3),
            ("prompt", pa.list_(pa.string()), ["What?"]),
            ("prompt", pa.list_(pa.list_(MESSAGE)), [[{"role": "user", "content": "Q"}]]),
            ("prompt", MESSAGE, {"role": "user", "content": "Q"}),
            ("prompt", pa.list_(pa.map_(pa.string(), pa.string())), [[("role", "user"), ("content", "Q")]]),
            (
                "prompt",
                pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(pa.string()))])),
                [{"role": "user", "content": ["Q"]}],
            ),
            (
                "prompt",
                pa.list_(pa.struct([("role", pa.string()), ("content", pa.binary())])),
                [{"role": "user", "content": b"Q"}],
            ),
            (
                "prompt",
                pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])),
                [{"from": "human", "value": "Q"}],
            ),
            ("data_source", pa.int64(), 3),
            ("data_source", pa.binary(), b"Math-500"),
            ("data_source", pa.list_(pa.string()), ["Math-500"]),
            ("reward_model", pa.string(), '{"ground_truth": "4"}'),
            ("reward_model", pa.map_(pa.string(), pa.string()), [("ground_truth", "4")]),
            ("reward_model", pa.struct([("ground_truth", pa.float64())]), {"ground_truth": float("nan")}),
            ("reward_model", pa.struct([("ground_truth", pa.list_(pa.string()))]), {"ground_truth": ["4"] * 50_000}),
            ("reward_model", pa.struct([("answer", pa.string())]), {"answer": "4"}),
        ]
    )
    file.types[name], file.columns[name] = kind, [value] * file.rows
    file.refused = f"row 0: {name}"


def missing_value(file: DataFile, rng: random.Random) -> None:
    row = rng.randrange(file.rows)
    name, value = rng.choice(
        [
            ("prompt", None),
            ("prompt", []),
            ("prompt", [None]),
            ("prompt", [{"role": "user", "content": None}]),
            ("prompt", [{"role": None, "content": "Q"}]),
            ("data_source", rng.choice(NO_TEXTS)),
            ("reward_model", None),
            ("reward_model", {"ground_truth": rng.choice(NO_TEXTS)}),
        ]
    )
    file.columns[name] = [*file.columns[name]]
    file.columns[name][row] = value
    file.refused = f"row {row}: {name}"


def ungradable(file: DataFile, rng: random.Random) -> None:
    row = rng.randrange(file.rows)
    source, answer = rng.choice(
        [
            *((source, "4") for source in ("unknown", "apps", "math", "u" * 100_000, "a\nb")),
            *(("openai/gsm8k", answer) for answer in ("1,000", "72 apples", " 5", "#### 5")),
            *(("quickstart/sums", answer) for answer in ("a</answer>b", "<answer>4</answer>")),
            *(("lighteval/MATH", answer) for answer in ("a}b", "{")),
            *((source, "<|im_end|> <|im_start|>") for source in REFERENCES),
        ]
    )
    file.columns["data_source"][row] = source
    file.columns["reward_model"][row] = {"ground_truth": answer}
    file.refused = f"row {row}: "


def bad_utf8(file: DataFile, rng: random.Random) -> None:
    row = rng.randrange(file.rows)
    text = pa.array([b"\xff\xfe" if i == row else b"fine" for i in range(file.rows)]).view(pa.string())
    name = rng.choice(["data_source", "reward_model", "prompt", "notes"])
    file.arrays[name] = {
        "reward_model": lambda: pa.StructArray.from_arrays([text], ["ground_truth"]),
        "prompt": lambda: pa.ListArray.from_arrays(
            list(range(file.rows + 1)), pa.StructArray.from_arrays([text, text], ["role", "content"])
        ),
    }.get(name, lambda: text)()
    file.types[name] = pa.null()
    file.refused = f"row {row}: column '{name}'"


def no_python_value(file: DataFile, rng: random.Random) -> None:
    kind, value, where = rng.choice(
        [
            (pa.timestamp("us"), 2**62, "row 0: column 'odd'"),
            (pa.timestamp("us", "Mars/Phobos"), 0, "row 0: column 'odd'"),
            (pa.date32(), 2**30, "row 0: column 'odd'"),
            (pa.duration("s"), 2**62, "row 0: column 'odd'"),
            (pa.time64("ns"), 1, "column 'odd'"),
            (pa.list_(pa.time64("ns")), [1], "column 'odd'"),
        ]
    )
    file.types["odd"], file.columns["odd"], file.refused = kind, [value] * file.rows, where


def same_name(file: DataFile, rng: random.Random) -> None:
    file.doubled = rng.choice(list(file.types))
    file.refused = "there are 2 columns"


def same_name_inside(file: DataFile, rng: random.Random) -> None:
    one = pa.array([1] * file.rows)
    file.arrays["odd"] = pa.StructArray.from_arrays([one, one], ["a", "a"])
    file.types["odd"], file.refused = pa.null(), "row 0: column 'odd'"


def too_long(file: DataFile, rng: random.Random) -> None:
    row = rng.randrange(file.rows)
    file.columns["prompt"][row] = [{"role": "user", "content": "long " * 20_000}]
    file.refused = f"row {row}: the prompt has"


def no_rows(file: DataFile, rng: random.Random) -> None:
    file.columns = {name: [] for name in file.columns}
    file.refused = "hold no rows"


def no_parquet(file: DataFile, rng: random.Random) -> None:
    content = rng.choice(
        [
            b"",
            b"PAR1",
            b"PAR1PAR1",
            b"PAR1\xff\xff\xff\x7fPAR1",
            b"prompt,data_source\nQ,unit\n",
            json.dumps({"prompt": [{"role": "user", "content": "Q"}]}).encode(),
            "{}".encode("utf-16"),
            gzip.compress(b"x" * 100),
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
            rng.randbytes(3000),
        ]
    )
    file.damage, file.refused = (lambda path, _: path.write_bytes(content) and None), "cannot be read as parquet"


def truncated(file: DataFile, rng: random.Random) -> None:
    file.damage, file.refused = _cut, "cannot be read as parquet"


def not_there(file: DataFile, rng: random.Random) -> None:
    def remove(path: Path, rng: random.Random) -> None:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()

    file.damage, file.refused = remove, "no such data file"


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flipped_file(rng: random.Random) -> DataFile:
    """A good file in which some bytes are others."""

    def flip(path: Path, rng: random.Random) -> None:
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 1, 5, 50])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)

    file = good_file(rng)
    file.damage = flip
    return file


FAULTS = (
    *[wrong_type, ungradable] * 3,
    *[missing_value, no_parquet] * 2,
    *(missing_column, bad_utf8, no_python_value, same_name, same_name_inside, too_long, no_rows, truncated, not_there),
)
