"""Write data sets in the reference's schema.

    python -m tools.prepare_data quickstart --out data/quickstart               the quickstart's own questions
    python -m tools.prepare_data gsm8k --input gsm8k_test.jsonl                 -> datasets/test/gsm8k_Avg2.parquet
    python -m tools.prepare_data gsm8k --split train --input gsm8k_train.jsonl  -> datasets/train/gsm8k.parquet
    python -m tools.prepare_data theoremqa --input theoremqa_test.jsonl         -> datasets/test/TheoremQA_Avg2.parquet
    python -m tools.prepare_data mmlu-pro --input FILE                        -> datasets/test/MMLUPro-1000_Avg2.parquet
    python -m tools.prepare_data hf --input FILE --name NAME --question-field question --answer-field answer
    python -m tools.prepare_data rlpr --split train --input FOLDER              the RLPR release's own files

Inputs are JSON Lines or parquet files. Bad rows are listed with file and line, and left out; --strict refuses them.
Every row that is written loads in a run, and its grader calls its own reference answer right. A validation file named
*_AvgN asks for N answers a prompt; rows carry the file's name as data_source, and a part of it names the grader.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, get_args

from megatron_rlpr.system import atomic_file
from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.types import UserError
from tools.prepare_data.benchmarks import BENCHMARKS, Benchmark, Split, hugging_face

BAD_ROWS_SHOWN = 20


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: options.command(options))


def _parser() -> ArgumentParser:
    parser = tool_parser("prepare_data", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    quick = commands.add_parser("quickstart", help="the questions that the quickstart makes up")
    quick.add_argument("--out", type=Path, required=True, help="folder to make")
    quick.add_argument("--train", type=int, default=1024, help="training questions (default: 1024)")
    quick.add_argument("--val", type=int, default=240, help="held-out questions (default: 240)")
    quick.add_argument("--seed", type=int, default=0, help="which questions are drawn (default: 0)")
    quick.set_defaults(command=_quickstart)
    for name in (*BENCHMARKS, "hf", "rlpr"):
        one = commands.add_parser(name, help="see above")
        one.add_argument("--input", type=Path, nargs="+", required=True, help="files, or folders of files")
        one.add_argument("--split", choices=get_args(Split), default="test", help="default: test")
        one.add_argument(
            "--out", type=Path, default=Path("datasets"), help="holds train/ and test/ (default: datasets)"
        )
        one.add_argument("--strict", action="store_true", help="refuse bad rows instead of leaving them out")
        if name == "rlpr":
            one.set_defaults(command=_release)
            continue
        one.add_argument("--name", default="", help="of the file, without .parquet", required=name == "hf")
        one.add_argument("--data-source", default="", help="of the rows (default: as above)")
        one.add_argument("--rows", type=int, help="draw so many rows (default: all; mmlu-pro: 1000)")
        one.add_argument("--seed", type=int, default=0, help="which rows are drawn (default: 0)")
        if name == "hf":
            one.add_argument("--question-field", default="question")
            one.add_argument(
                "--answer-field", default="answer", help="a text, number or list; of options also a letter"
            )
            one.add_argument("--options-field", default="", help="a list of texts: the question is multiple choice")
            one.add_argument("--subject-field", default="")
        one.set_defaults(command=_benchmark, benchmark=BENCHMARKS.get(name))
    return parser


def _quickstart(options: Namespace) -> None:
    from tools.prepare_data import quickstart

    made = quickstart.prepare(options.out, options.train, options.val, options.seed)
    print(f"{options.out}: {'written' if made else 'already complete'}\n{quickstart.summary(options.out)}")


def _benchmark(options: Namespace) -> None:
    from megatron_rlpr.data.sources import grader_of
    from tools.prepare_data.conversion import converted
    from tools.prepare_data.foreign_rows import input_files

    benchmark, fields = options.benchmark, {}
    if benchmark is None:
        fields = {name: getattr(options, f"{name}_field") for name in ("question", "answer", "options", "subject")}
        benchmark = Benchmark(hugging_face(**fields), dict.fromkeys(get_args(Split), options.name))
    name = options.name or benchmark.names[options.split]
    if not name or Path(name).name != name:
        raise UserError(f"--name {name!r}: expected a plain file name, without folders")
    source = options.data_source or benchmark.data_source or name
    choice = grader_of(source).startswith("choice")  # refuses a source that nobody grades
    if fields and choice != bool(fields["options"]):
        fix = "give --options-field" if choice else "name a source of multiple choice, e.g. one with MMLUPro in it"
        raise UserError(f"data_source {source!r} is graded as {'' if choice else 'no '}multiple choice: {fix}")
    draw = benchmark.rows if options.rows is None else options.rows
    if draw < 0 or (options.rows is not None and draw < 1):
        raise UserError(f"--rows {draw}: expected at least 1")
    made_from = {"data_source": source, "fields": fields, "name": name}
    _convert(
        options,
        input_files(options.input),
        name,
        to_record=converted(benchmark.convert, source, options.split),
        made_from=made_from,
        draw=draw,
        seed=options.seed,
    )


def _release(options: Namespace) -> None:
    import pyarrow.parquet as pq

    from tools.prepare_data.conversion import released
    from tools.prepare_data.foreign_rows import count_rows, input_files

    for path in input_files(options.input):
        if path.suffix != ".parquet":
            raise UserError(f"--input {path}: the release's files are parquet files")
        count_rows(path)  # refuses a file that is none
        _convert(options, [path], path.stem, to_record=released, made_from={}, schema=pq.read_schema(path))


def _convert(options: Namespace, inputs: list[Path], name: str, **how: Any) -> None:
    from megatron_rlpr.data.dataset import samples_per_prompt
    from megatron_rlpr.tracking.console import Console
    from tools.prepare_data.conversion import convert_files

    target = options.out / options.split / f"{name}.parquet"
    if any(target.exists() and path.samefile(target) for path in inputs):
        raise UserError(f"--input {target}: is also the file to write; put the input elsewhere, or give another --out")
    bad: list[str] = []
    try:
        with Console().phase(f"convert {name}") as phase:

            def progress(done: int, total: int) -> None:
                phase.total = total
                phase.update(done)

            outcome = convert_files(
                inputs,
                target,
                split=options.split,
                strict=options.strict,
                on_bad=bad.append,
                progress=progress,
                **how,
            )
    finally:
        _list_bad(bad, target)
    if not outcome.made:
        print(f"{target}: already complete, {outcome.written} rows")
        return
    samples = f"; {samples_per_prompt(name)} answers a prompt when sampling" if options.split == "test" else ""
    print(f"{target}: {outcome.written} rows written, {outcome.left_out} left out, {outcome.bad} bad{samples}")


def _list_bad(lines: list[str], target: Path) -> None:
    """The first ones on standard error, all of them in a file beside the target."""
    for line in lines[:BAD_ROWS_SHOWN]:
        print(f"bad: {line}", file=sys.stderr)
    if lines:
        every = target.with_suffix(".bad_rows.txt")
        atomic_file.write_text(every, "\n".join(lines) + "\n")
        print(f"bad: {len(lines)} rows, all listed in {every}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
