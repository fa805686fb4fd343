"""A plan as text, and as a comment at the end of a recipe, which the same command makes again."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_rlpr.system import atomic_file
from tools.plan.gpus import GIB
from tools.plan.job import Job
from tools.plan.layouts import Proposal
from tools.plan.memory import PHASES, Memory
from tools.plan.times import Phase, step_seconds

COMMAND = "python -m tools.plan"
_BEGIN = f"# {COMMAND} "
_LEFT = 24


@dataclass(frozen=True)
class Plan:
    """What is known of a job before it starts. budget: the largest token budget that fits; 0: none."""

    job: Job
    memory: Memory
    phases: dict[str, Phase]
    budget: int
    faults: tuple[str, ...]
    proposals: tuple[Proposal, ...]

    def refusal(self) -> str:
        """One message that names the largest term and what would fit; empty when this does."""
        if not self.faults:
            return ""
        found = [proposal.text for proposal in self.proposals]
        instead = (
            f"; these fit, best first: {'; or '.join(found)}"
            if found
            else "; no layout of so many GPUs fits, with engines within a node"
        )
        budget = f"; the largest actor.max_tokens_per_micro_batch that fits is {self.budget}" if self.budget else ""
        return f"{_title(self.job)}: {'; '.join(self.faults)}{budget}{instead}"

    def as_json(self) -> dict[str, Any]:
        """Bytes and seconds."""
        seconds = step_seconds(self.job, self.phases)
        return {
            "fits": not self.faults,
            "gpus": self.job.gpus,
            "gpu": self.job.kind,
            "memory": self.memory.phases,
            "host": self.memory.host,
            "engine_cache_tokens": self.memory.cache_tokens,
            "phases": {name: asdict(phase) for name, phase in self.phases.items()},
            "step_seconds": seconds,
            "largest_token_budget": self.budget,
            "faults": self.faults,
            "proposals": [asdict(proposal) for proposal in self.proposals],
        }


def text(plan: Plan) -> str:
    """The table."""
    job, found = plan.job, plan.memory
    load, (phase, peak) = job.workload, found.peak
    verdict = "does not fit" if plan.faults else "fits"
    terms = list(dict.fromkeys(name for phase in PHASES for name in found.phases[phase]))
    shown = [name for name in terms if any(found.phases[phase].get(name, 0) > 0.05 * GIB for phase in PHASES)]
    rows = {name: [found.phases[phase].get(name, 0) / GIB for phase in PHASES] for name in shown}
    rows["total"] = [sum(found.phases[phase].values()) / GIB for phase in PHASES]
    by_phase = [plan.phases[phase] for phase in PHASES]
    host = ", ".join(f"{name} {size / GIB:.1f}" for name, size in found.host.items() if size)
    return "\n".join(
        [
            _title(job),
            f"{load.prompt} tokens a prompt, {job.config.rollout.n} responses of {load.response}, references of "
            f"{load.reference}; caches of {found.cache_tokens:,.0f} tokens",
            f"{verdict}: {peak / GIB:.1f} of {job.gpu.memory / GIB:.1f} GiB ({phase}); largest token budget "
            f"{plan.budget}; {step_seconds(job, plan.phases):.0f} s a step",
            _row("GiB of the fullest GPU", PHASES),
            *(_row(name, [f"{value:.1f}" if value else "" for value in values]) for name, values in rows.items()),
            _row("TFLOP of a GPU", [_number(p.flops / 1e12) for p in by_phase]),
            _row("GB to a GPU", [_number(p.moved / 1e9) for p in by_phase]),
            _row("bubble", [f"{p.bubble:.0%}" if p.bubble else "" for p in by_phase]),
            _row("seconds", [_number(p.expected) for p in by_phase]),
            _row("seconds at best", [_number(p.at_best) for p in by_phase]),
            *([f"GiB of host memory a rank: {host}"] if host else []),
        ]
    )


def write_comment(plan: Plan, recipe: Path, arguments: list[str]) -> None:
    """Put the table behind the recipe, in place of that of the same command, if there is one."""
    settings, tables = read_comments(recipe)
    tables[" ".join(map(shlex.quote, arguments))] = text(plan)
    atomic_file.write_text(recipe, settings + "".join(comment(command, table) for command, table in tables.items()))


def comment(arguments: str, table: str) -> str:
    """A command and its table."""
    return "\n" + "".join(f"# {line}".rstrip() + "\n" for line in (f"{COMMAND} {arguments}", *table.splitlines()))


def read_comments(recipe: Path) -> tuple[str, dict[str, str]]:
    """A recipe without the tables behind it, and these by the arguments of their commands."""
    settings, *blocks = recipe.read_text(encoding="utf-8").split(f"\n{_BEGIN}")
    tables = {}
    for block in blocks:
        arguments, _, lines = block.strip("\n").partition("\n")
        tables[arguments] = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines.splitlines())
    return settings, tables


def _title(job: Job) -> str:
    actor = job.actor
    sizes = {
        "TP": job.tensor,
        "PP": job.stages,
        "VPP": job.rounds,
        "CP": actor.context_parallel_size,
        "EP": actor.expert_model_parallel_size,
        "DP": job.data,
    }
    layout = " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1 or name in ("TP", "PP", "DP"))
    precision = f"FP8 ({actor.fp8_recipe})" if actor.fp8 else "bf16" if actor.dtype == "bfloat16" else "fp32"
    name = Path(job.config.model.path).name or job.shape.architecture
    engines = f"{job.engines} engines of {job.config.rollout.tensor_parallel_size}"
    return f"{name} on {job.gpus} {job.kind}, {precision}: {layout}, {engines}"


def _row(name: str, cells: Any) -> str:
    return (f"{name:<{_LEFT}}" + "".join(f"{cell:>11}" for cell in cells)).rstrip()


def _number(value: float) -> str:
    return "" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
