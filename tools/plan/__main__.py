"""Whether a recipe fits so many GPUs, how long a step takes, and which layout would be better. Needs no GPU.

    python -m tools.plan --config examples/recipes/qwen2.5-72b.yaml --gpus 128
    python -m tools.plan --config RECIPE --gpus 16 --gpu h200 actor.pipeline_model_parallel_size=2
    python -m tools.plan --config RECIPE --gpus 8 --write     # the table as a comment at the end of the recipe
    python -m tools.plan --config RECIPE --gpus 512 --build   # and build the real model of every stage

What does not fit is refused with exit status 2, the largest term, the largest token budget and nearby layouts that fit.
Seconds are computed from data sheets and from what was measured on one H200; docs/plan.md says what is what.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.system import process_environment
from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.types import UserError
from tools.plan.build import build, prepare, summary
from tools.plan.gpus import GPUS
from tools.plan.job import Job, Workload, job_of
from tools.plan.layouts import proposals
from tools.plan.memory import largest_budget, memory
from tools.plan.table import Plan, text, write_comment
from tools.plan.times import phases


def main(arguments: list[str] | None = None) -> int:
    """Plan, print, and build or write where asked."""
    given = sys.argv[1:] if arguments is None else arguments
    options, _ = _parser().parse_known_args(given)
    return exit_status(lambda: _run(options, [argument for argument in given if argument != "--write"]))


def _parser() -> ArgumentParser:
    parser = tool_parser("plan", __doc__)
    parser.add_argument("--config", type=Path, required=True, help="recipe; key=value changes keys of it")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of the actor, eight a node")
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--model", type=Path, help="folder with a config.json; default: model.path, else the recipe's")
    parser.add_argument("--prompt", type=int, default=300, help="mean tokens of a prompt")
    parser.add_argument("--response", type=int, default=1000, help="mean tokens of a response")
    parser.add_argument("--reference", type=int, default=10, help="mean tokens of a reference answer")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", action="store_true", help="write the table behind the recipe, as a comment")
    parser.add_argument("--build", action="store_true", help="build the real model of every stage, without storage")
    return parser


def planned(arguments: list[str]) -> Plan:
    """What this command line asks for. UserError for a recipe that could not run there, whatever its memory."""
    options, overrides = _parser().parse_known_args(arguments)
    if options.gpus < 1:
        raise UserError(f"--gpus {options.gpus}: expected at least 1")
    config = load_config(["--config", str(options.config), *overrides])
    load = Workload(
        min(options.prompt, config.data.max_prompt_length),
        min(options.response, config.data.max_response_length),
        options.reference,
    )
    return plan(job_of(config, options.gpus, options.gpu, load, options.model))


def plan(job: Job) -> Plan:
    """All of it; other layouts only where this one does not fit."""
    found = memory(job)
    faults = tuple(found.faults(job))
    instead = tuple(proposals(job)) if faults else ()
    return Plan(job, found, phases(job, found.cache_tokens), largest_budget(job), faults, instead)


def _run(options: Namespace, arguments: list[str]) -> None:
    pretend = prepare() if options.build else None
    found = planned(arguments)
    report = found.as_json()
    if options.build:
        report["build"] = build(found.job, pretend)
    print(json.dumps(report) if options.json else text(found))
    if options.build and not options.json:
        print(summary(report["build"]))
    if refusal := found.refusal():
        raise UserError(refusal)
    if options.build and (mismatches := report["build"]["mismatches"]):
        raise UserError(f"{len(mismatches)} mismatches between what was planned and built, the first: {mismatches[0]}")
    if options.write:
        write_comment(found, options.config, arguments)


if __name__ == "__main__":
    process_environment.ensure()
    sys.exit(main())
