"""Small policies under several layouts on Transformer Engine's layers, or as one process on Megatron's own.

    python te_layouts.py MODELS WORK own|te|fp8

As tests/distributed/programs/actor_layouts.py, whose `observe` it uses, with models of that test. `own` cannot see
Transformer Engine and goes first: from what it saves, `te` goes on. `fp8` computes with every recipe, in fp32 between
the layers, so that nothing but FP8 rounds. Prints a line {kind: {layout: {model: facts}}}.
"""

from __future__ import annotations

import json
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OWN, SHARDED = "own layers", "DP2, distributed optimizer"
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


def cases(kind: str, which: str) -> dict[str, Any]:
    """Layouts by name; they also go on from the checkpoint that the own layers saved."""
    from layout_cases import EP2, PP2, RECOMPUTE, TP2_SP, Case

    if which == "own":
        return {OWN: Case(1, OWN)}
    if which == "fp8":
        split = {"EP2": EP2} if kind == "experts" else {"TP2 + SP": TP2_SP, "PP2, full recompute": PP2 | RECOMPUTE}
        layouts = {"1 process": {}, **split}
        return {
            f"{recipe}, {name}": Case(1 if name == "1 process" else 2, "", in_fp8(recipe) | layout)
            for recipe in RECIPES
            for name, layout in layouts.items()
        }
    layouts = {"1 process": Case(1, OWN), "TP2 + SP": Case(2, OWN, TP2_SP)}
    if kind == "experts":
        return layouts | {"EP2": Case(2, OWN, EP2)}
    # Megatron stores what a distributed optimizer holds in another way.
    sharded = Case(2, SHARDED, {"use_distributed_optimizer": True})
    return layouts | {"PP2, full recompute": Case(2, OWN, PP2 | RECOMPUTE), SHARDED: sharded}


def in_fp8(recipe: str) -> dict[str, Any]:
    return {"fp8": "hybrid", "fp8_recipe": recipe, "dtype": "float32"}


def observe_fp8(case: Any, name: str, folder: Path, work: Path, layout: Any) -> dict[str, Any]:
    """Scores before and after three updates, and what the updates say."""
    import policy_in_layouts as program
    import te_on_cpu

    te_on_cpu.pretend_gpu(case.actor["fp8_recipe"])
    shape = program.model_shape(program.HfFolder(folder).config())
    actor = program.ActorConfig(**{"max_tokens_per_micro_batch": 256, **case.actor})
    policy = program.MegatronPolicy(shape, actor, layout, program.TEMPERATURE)
    program.load_hf_weights(policy.chunks, shape, folder)
    policy.weights_changed()
    wanted = program.requests(shape.vocab_size)
    sequences = program.training_sequences(wanted, policy)
    weights = [1 / sum(s.stop - s.start for s in sequences)] * len(sequences)
    policy.update(sequences, weights, program.TERMS, lr=0.0)  # calibrates delayed scaling, changes no weight
    scores = policy.score(wanted)
    updates = [program.update(policy, sequences) for _ in range(3)]
    return {
        "log_probs": [s.log_probs.tolist() for s in scores],
        "after": [s.log_probs.tolist() for s in policy.score(wanted)],
        **program.series(updates),
    }


def main(models: Path, work: Path, which: str) -> None:
    if which != "own":
        sys.path.insert(0, str(HERE / "kernels"))
        import te_on_cpu

        te_on_cpu.install()
    sys.path.insert(0, str(HERE.parent / "distributed" / "programs"))
    import policy_in_layouts

    if which == "fp8":
        policy_in_layouts.observe = observe_fp8
    # The two kinds run side by side: ranks wait for each other most of the time.
    kinds = ("dense", "experts")
    context = get_context("fork")
    runs = [
        context.Process(target=policy_in_layouts.report, args=(models / kind, work / kind, cases(kind, which)))
        for kind in kinds
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0, "its error stands above"
    found = {kind: policy_in_layouts.found(work / kind, cases(kind, which)) for kind in kinds}
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
