"""Measure this project against a plain transformers baseline, on this machine.

    python -m tools.bench score --model models/smollm2-135m --data folder/with/jsonl
    python -m tools.bench update --model models/smollm2-135m --dtype float32
    python -m tools.bench head --rows 24000 --vocab 152064 --hidden 896
    python -m tools.bench packing
    python -m tools.bench reward --model models/smollm2-135m
    python -m tools.bench convert --model models/smollm2-135m
    python -m tools.bench checkpoint
    python -m tools.bench handover_plan
    python -m tools.bench controller --model models/smollm2-135m
    python -m tools.bench delta --folders runs/NAME/hf

score    log-probs, entropies and reference probabilities of whole groups, against two padded passes with full logits
update   gradients of the policy loss, against forward and backward with full logits
head     the output head on selected rows: time and peak memory (no baseline: its logits would not fit)
packing  planning a batch of 6,144 sequences for 8, 16 and 32 data-parallel ranks
controller  what a rank of 8, 64 and 512 does and receives in a step besides model and engine, before owners and now
reward   splicing references and combining rewards, everything but the forward, on one core
convert  both conversions: peak memory beyond the start of their process, time; the model, and Llamas of --layers
handover new weights for an engine in this process and for one in another, against a plain copy of the same bytes
handover_plan  bytes that a rank gets from others for one: 72B and 235B at several layouts, without either
delta    bytes of `weights.delta` between the steps of a run, from the Hugging Face folders that it wrote
checkpoint  what saving and loading adds to a rank's memory: Qwen2.5-7B at TP2 DP4, 72B at TP8 PP8 DP8, without either
table    tokens of both sides over response lengths 128 to 4,096 and 1 to 32 responses, our time where that is quick

Both sides take turns; the first repetition is dropped and gives peak memory, medians are reported. `speedup`: baseline
time over ours. `max_abs_diff`: of log-probs (update: of the loss). `floor_fraction`: FLOPs of the distinct tokens and
selected rows, at the matrix-product rate measured in the same run, over our time. Memory: bytes beyond what was there.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from megatron_rlpr.system import process_environment
from megatron_rlpr.system.command_line import exit_status, tool_parser

CASES = (
    "score",
    "update",
    "head",
    "packing",
    "reward",
    "controller",
    "convert",
    "handover",
    "handover_plan",
    "delta",
    "checkpoint",
    "table",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark and print its report; see the module's text."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: print(_text(_measure(options), options.json)))


def _parser() -> ArgumentParser:
    parser = tool_parser("bench", __doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"), help="Hugging Face folder")
    parser.add_argument("--data", type=Path, help="folder of *.jsonl files with text; without it token ids are random")
    parser.add_argument("--groups", type=int, default=0, help="prompts; 0: 8, for reward 125, for controller 768")
    parser.add_argument("--n", type=int, default=8, help="responses of a prompt")
    parser.add_argument("--prompt", type=int, default=205, help="mean tokens of a prompt")
    parser.add_argument("--response", type=int, default=300, help="mean tokens of a response")
    parser.add_argument("--reference", type=int, default=6, help="mean tokens of a reference answer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--fp8", choices=("", "e4m3", "hybrid"), default="", help="actor.fp8, on a GPU")
    parser.add_argument("--fp8-recipe", default="", help="actor.fp8_recipe; empty: its default")
    parser.add_argument(
        "--repetitions",
        type=int,
        default=0,
        help="repetitions that count; score: each scores all prompts; update: each takes one; "
        "0: 3, for update one for each prompt",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=8192, help="actor.max_tokens_per_micro_batch; packing: 16384 at least"
    )
    parser.add_argument("--chunk-rows", type=int, default=256, help="actor.head_chunk_rows")
    parser.add_argument("--no-sharing", action="store_true", help="actor.share_prefixes=false")
    parser.add_argument("--rows", type=int, default=24000, help="head: rows")
    parser.add_argument("--vocab", type=int, default=152064, help="head: vocabulary")
    parser.add_argument("--hidden", type=int, default=896, help="head: hidden size")
    parser.add_argument("--sequences", type=int, default=6144, help="packing: sequences")
    parser.add_argument("--bucket-mb", type=int, default=32, help="handover: weights.bucket_mb")
    parser.add_argument(
        "--layers",
        type=int,
        nargs="*",
        default=(16, 64),
        help="convert: layers of the models that are made, 24 MiB each",
    )
    parser.add_argument("--folders", type=Path, default=Path("runs/quickstart/hf"), help="delta: folders of steps")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and tokens")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores of this machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _measure(options: Namespace) -> dict[str, Any]:
    """The report of the chosen case. Imports torch, so it runs after the environment is right."""
    import torch

    from megatron_rlpr.config.schema import ActorConfig, RewardConfig
    from megatron_rlpr.system.dtypes import DTYPES
    from tools.bench import (
        checkpoint_case,
        controller_case,
        convert_case,
        delta_case,
        handover_case,
        handover_plan,
        head_case,
        packing_case,
        reward_case,
        score_case,
        table_case,
        update_case,
        workload,
    )

    threads = options.threads or process_environment.default_threads()
    torch.set_num_threads(threads)
    actor = ActorConfig(
        dtype=options.dtype,
        max_tokens_per_micro_batch=options.max_tokens,
        head_chunk_rows=options.chunk_rows,
        share_prefixes=not options.no_sharing,
        clip_grad=0.0,  # clipping would scale the gradients that are compared
        fp8=options.fp8,
        **({"fp8_recipe": options.fp8_recipe} if options.fp8_recipe else {}),
    )
    about: dict[str, Any] = {"case": options.case, "dtype": options.dtype, "fp8": options.fp8, "threads": threads}
    match options.case:
        case "packing":
            return about | packing_case.run(options.sequences, max(options.max_tokens, 16384))
        case "controller":
            longest = max(options.max_tokens, 16384)
            return {"case": options.case} | controller_case.run(options.model, options.groups or 768, longest)
        case "head":
            return about | head_case.run(
                options.rows, options.vocab, options.hidden, DTYPES[actor.dtype], options.chunk_rows
            )
        case "handover":
            repetitions = options.repetitions or 5
            return (
                about
                | handover_case.run(options.model, actor, options.bucket_mb, repetitions, threads)
                | {"model": str(options.model)}
            )
        case "convert":
            return {"case": options.case} | convert_case.run(options.model, tuple(options.layers))
        case "handover_plan":
            return {"case": options.case} | handover_plan.run()
        case "delta":
            return about | delta_case.run(options.folders, DTYPES[actor.dtype])
        case "checkpoint":
            return {"case": options.case} | checkpoint_case.run()
    options.groups = options.groups or (125 if options.case == "reward" else 8)
    draw, sizes = (
        _drawn(options),
        workload.Sizes(options.groups, options.n, options.prompt, options.response, options.reference),
    )
    groups = workload.make_groups(sizes, draw, options.seed)
    about |= {key: getattr(options, key) for key in ("groups", "n", "prompt", "response", "reference")}
    about |= {"model": str(options.model), "tokens": "text" if options.data else "random"}
    match options.case:
        case "score":
            return about | score_case.run(options.model, groups, actor, options.repetitions or 3)
        case "update":
            return about | update_case.run(options.model, groups, actor, options.repetitions or options.groups)
        case "table":
            return about | table_case.run(options.model, sizes, draw, actor, options.seed)
        case _:
            longest = 2 * options.response + 64
            return about | reward_case.run(options.model, groups, RewardConfig(repetition_penalty=True), longest)


def _drawn(options: Namespace) -> Any:
    """Where the tokens come from: text of --data, or random ids."""
    from megatron_rlpr.data.tokenizer import load_tokenizer
    from megatron_rlpr.weights.architectures import model_shape
    from megatron_rlpr.weights.hf_folder import HfFolder
    from tools.bench import workload

    shape = model_shape(HfFolder(options.model).config())
    if options.data:
        return workload.text_tokens(options.data, load_tokenizer(str(options.model)), options.seed)
    return workload.random_tokens(shape.vocab_size, options.seed)


def _text(report: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(report)
    points = report.pop("points", [])
    width = max(map(len, report))
    lines = [f"{key:<{width}}  {_number(value)}" for key, value in report.items()]
    return "\n".join(
        [*lines, *(", ".join(f"{key} {_number(value)}" for key, value in point.items()) for point in points)]
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    process_environment.ensure()
    sys.exit(main())
