"""Small policies under several layouts on Transformer Engine's layers, or as one process on Megatron's own.

    python te_layouts.py MODELS WORK own|te|fp8

As tests/distributed/programs/actor_layouts.py, whose `observe` it uses, with models of that test. `own` cannot see
Transformer Engine and goes first: from what it saves, `te` goes on. `fp8` computes with every recipe, in fp32 between
the layers, so that nothing but FP8 rounds. Prints a line {kind: {layout: {model: facts}}}.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OWN, SHARDED, PP2_AGAIN = "own layers", "DP2, distributed optimizer", "PP2, full recompute"
INTERLEAVED = "PP2 x VPP2, full recompute"
OVERLAPPED = "DP2, distributed optimizer, overlapped"
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


def cases(kind: str, which: str) -> dict[str, Any]:
    """Layouts by name; they also go on from the checkpoint that the own layers saved."""
    from layout_cases import EP2, PP2, RECOMPUTE, TP2_SP, Case

    if which == "own":
        return {OWN: Case(1, OWN)}
    if which == "fp8":
        if kind == "experts":
            return {"1 process": Case(1, ""), "EP2": Case(2, "", EP2)}
        # Two layers for four parts: a stage holds one and the embedding, or the head.
        parts = {"virtual_pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "E|t|t|L"}
        staged = {PP2_AGAIN: Case(2, "", PP2 | RECOMPUTE), INTERLEAVED: Case(2, "", PP2 | parts | RECOMPUTE)}
        return {"1 process": Case(1, ""), "TP2 + SP": Case(2, "", TP2_SP), **staged}
    layouts = {"1 process": Case(1, OWN), "TP2 + SP": Case(2, OWN, TP2_SP)}
    if kind == "experts":
        return layouts | {"EP2": Case(2, OWN, EP2)}
    # From its own checkpoint, with which it goes on exactly.
    sharded = Case(2, SHARDED, {"use_distributed_optimizer": True})
    overlapped = Case(2, OVERLAPPED, sharded.actor)
    return layouts | {PP2_AGAIN: Case(2, OWN, PP2 | RECOMPUTE), SHARDED: sharded, OVERLAPPED: overlapped}


def observe_overlapped(observe: Any, case: Any, name: str, folder: Path, *rest: Any) -> dict[str, Any]:
    """`observe`; of the overlapped layout with one model only, and with what no key of the actor says.

    Gradients are reduced while others are computed, and weights gathered while the next forward runs. Every layout has
    ranks of its own.
    """
    if name != OVERLAPPED:
        return observe(case, name, folder, *rest)
    if not folder.name.startswith("llama"):
        return {}
    from megatron_rlpr.actor import checkpoint, optimizer, policy

    for config, options in (
        ("DistributedDataParallelConfig", {"overlap_grad_reduce": True, "overlap_param_gather": True}),
        ("OptimizerConfig", {"overlap_param_gather": True}),
    ):
        setattr(optimizer, config, partial(getattr(optimizer, config), **options))

    def wrap(chunks: Any, actor: Any, wrap_for_training: Any = policy.wrap_for_training) -> Any:
        wrapped, made = wrap_for_training(chunks, actor)
        chunks[0].config.no_sync_func = wrapped[0].no_sync  # all micro-batches but the last
        return wrapped, made

    save = checkpoint.CheckpointStore.save

    def gather_and_save(store: Any, step: int, saved: Any, state: Any) -> Path:
        """Until the next forward pass a rank has old copies of what others have updated."""
        for chunk in saved._callables:
            chunk.start_param_sync(force_sync=True)
        return save(store, step, saved, state)

    policy.wrap_for_training, checkpoint.CheckpointStore.save = wrap, gather_and_save
    return observe(case, name, folder, *rest)


def observe_fp8(case: Any, name: str, folder: Path, work: Path, layout: Any) -> dict[str, Any]:
    """By recipe: scores, and the loss and gradient norm of an update."""
    import te_on_cpu

    facts = {}
    # Delayed scaling goes by earlier micro-batches, which a virtual pipeline takes in another order: refused.
    recipes = {PP2_AGAIN: ("delayed",), INTERLEAVED: ("", *(r for r in RECIPES if r != "delayed"))}
    for recipe in recipes.get(name, ("", *RECIPES)):
        te_on_cpu.pretend_gpu(recipe)
        fp8 = {"fp8": "hybrid", "fp8_recipe": recipe} if recipe else {}
        facts[recipe] = scores_and_update({**case.actor, **fp8}, folder, layout)
    return facts


def scores_and_update(actor: dict[str, Any], folder: Path, layout: Any) -> dict[str, Any]:
    import policy_in_layouts as program

    shape = program.model_shape(program.HfFolder(folder).config())
    options = program.ActorConfig(**{"dtype": "float32", "max_tokens_per_micro_batch": 256, **actor})
    policy = program.MegatronPolicy(shape, options, layout, program.TEMPERATURE)
    program.load_hf_weights(policy.chunks, shape, folder)
    policy.weights_changed()
    wanted = program.requests(shape.vocab_size)
    sequences = program.training_sequences(wanted, policy)
    weights = [1 / sum(s.stop - s.start for s in sequences)] * len(sequences)
    result = policy.update(sequences, weights, program.TERMS, lr=0.0)  # it also calibrates delayed scaling
    log_probs = [s.log_probs.tolist() for s in policy.score(wanted)]
    return {"log_probs": log_probs, "loss": result.loss, "grad_norm": result.grad_norm}


def main(models: Path, work: Path, which: str) -> None:
    if which != "own":
        sys.path.insert(0, str(HERE / "kernels"))
        import te_on_cpu

        te_on_cpu.install()
    sys.path.insert(0, str(HERE.parent / "distributed" / "programs"))
    import policy_in_layouts

    if which == "fp8":
        policy_in_layouts.observe = observe_fp8
    else:
        policy_in_layouts.observe = partial(observe_overlapped, policy_in_layouts.observe)
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
