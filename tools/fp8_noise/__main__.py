"""How much does each FP8 recipe disturb the reward?

    python -m tools.fp8_noise --model models/smollm2-135m --responses responses.jsonl

The real policy scores labelled responses in bf16, fp32 and every FP8 recipe that this GPU computes, and makes the
gradient of one update. Prints what changes against bf16: the reference probability (mean, 99% of responses below), the
order of pairs in a group, signs of advantages, how well the probability tells right from wrong answers (AUC), and the
angle and length of the gradient, with old log-probs of the same precision and with those of bf16.

Needs a GPU with Transformer Engine. With --emulated it runs on a CPU, on the emulated kernels of
tests/transformer_engine: real FP8 numbers and scales, and products in fp32. A line of the responses' file is a JSON
object with question, response, reference and correct.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from megatron_rlpr.system import process_environment
from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.types import UserError
from tools import emulated_kernels

_HEADINGS = (
    "mean change",
    "99% below",
    "pairs flipped",
    "signs changed",
    "AUC",
    "AUC lost",
    "cosine",
    "norm ratio",
    "cosine if scored in bf16",
)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and, where asked, draw the plot."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _measure(options))


def _parser() -> ArgumentParser:
    parser = tool_parser("fp8_noise", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--responses", type=Path, required=True, help="labelled responses, JSON Lines")
    parser.add_argument("--limit", type=int, default=10**9, help="responses to score; default: all")
    parser.add_argument("--trained", type=int, default=32, help="responses whose gradient is compared")
    parser.add_argument("--longest", type=int, default=1024, help="tokens of prompt and response; longer ones are left")
    parser.add_argument("--max-tokens", type=int, default=2048, help="actor.max_tokens_per_micro_batch")
    parser.add_argument("--recipes", nargs="+", help="FP8 recipes; default: those that this GPU computes")
    parser.add_argument("--plot", type=Path, help="an SVG or PNG file to write")
    parser.add_argument("--emulated", action="store_true", help="compute on a CPU with emulated kernels")
    return parser


def _measure(options: Namespace) -> None:
    pretend = emulated_kernels.install() if options.emulated else lambda _: None
    from megatron_rlpr.actor.model.layer_kind import transformer_engine_is_here

    if not transformer_engine_is_here():
        raise UserError("FP8 needs Transformer Engine and a GPU: install it, or choose --emulated on a CPU")
    from megatron_rlpr.data.tokenizer import load_tokenizer
    from tools.fp8_noise.noise import compare_gradients, noise
    from tools.fp8_noise.plot import picture
    from tools.fp8_noise.precisions import PRECISIONS, REFERENCE, Workload
    from tools.labelled_responses import labelled_groups, read_labelled
    from tools.picture import save_picture

    tokenizer = load_tokenizer(str(options.model))
    file, limit = options.responses, options.limit
    labelled = labelled_groups(tokenizer, read_labelled(file), file, options.longest, at_least=2, limit=limit)
    sizes = [len(group.responses) for group in labelled.groups]
    workload = Workload(tokenizer, labelled.groups, options.trained, 2 * options.longest)
    print(f"{sum(sizes)} responses to {len(sizes)} questions, gradients of {min(options.trained, sum(sizes))}")
    print(_row("precision", *_HEADINGS, "seconds") + "\n" + _row(*["---"] * (len(_HEADINGS) + 2)))
    reference, changes = None, {}
    for precision in _chosen(options, PRECISIONS):
        pretend(precision)
        found = workload.measure(options.model, precision, options.max_tokens)
        reference = found if reference is None else reference
        of_it = noise(found.probabilities, reference.probabilities, sizes, labelled.correct)
        cosine, norm_ratio = compare_gradients(found.gradient, reference.gradient)
        mixed_cosine, _ = compare_gradients(found.mixed_gradient, reference.gradient)
        if precision != REFERENCE:
            change = abs(found.probabilities - reference.probabilities)
            changes[precision] = change[change >= 0]  # nan where there is none
        shares = (f"{of_it.flips:.1%}", f"{of_it.sign_changes:.1%}")
        rest = (f"{value:.4f}" for value in (of_it.auc, of_it.auc_lost, cosine, norm_ratio, mixed_cosine))
        numbers = (f"{of_it.mean_change:.5f}", f"{of_it.change_99:.5f}", *shares, *rest)
        print(_row(precision, *numbers, f"{found.seconds:.0f}"), flush=True)
    if options.plot:
        save_picture(picture(changes), options.plot)


def _chosen(options: Namespace, precisions: dict[str, dict[str, Any]]) -> list[str]:
    """The reference, fp32, and the recipes. Raises UserError for one that there is not or that this GPU lacks."""
    from megatron_rlpr.actor.fp8 import RECIPES

    unknown = [name for name in options.recipes or () if name not in RECIPES]
    if unknown:
        raise UserError(f"--recipes {unknown[0]}: choose from {', '.join(RECIPES)}")
    able = [name for name in precisions if name in RECIPES and (options.emulated or not RECIPES[name].refusal())]
    for name in options.recipes or ():
        if name not in able:
            raise UserError(f"--recipes {name} {RECIPES[name].refusal()}")
    wanted = options.recipes or able
    return [name for name in precisions if name not in RECIPES or name in wanted]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    process_environment.ensure()
    sys.exit(main())
