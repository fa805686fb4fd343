"""Conversions of the models in a folder, then loading, logits, export and hand-over at several layouts.

    python weight_layouts.py MODELS WORK

MODELS holds one Hugging Face folder per model, each with transformers' logits of a
prompt in expected/logits.safetensors. Every
conversion and every rank is its own process, forked from this one so that the libraries are imported once; groups are
gloo. Prints one JSON line: facts by layout and model, which the tests judge.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from megatron.core import parallel_state
from safetensors.torch import load_file

from checkpoint_conversion import hf_to_megatron, megatron_to_hf
from checkpoint_conversion.logits import megatron_logits
from checkpoint_conversion.verify import worst_tensor
from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.parallel import Layout
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.checksum import ChecksummedStream, weights_checksum
from megatron_rlpr.weights.engine_slices import slices_of, why_whole
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.handover import HandOver
from megatron_rlpr.weights.hf_export import HfExport
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import load_hf_weights
from megatron_rlpr.weights.load_megatron import load_megatron_checkpoint
from megatron_rlpr.weights.receiver import Announcement, Confirmation, WeightHandoverError
from megatron_rlpr.weights.shape import ModelShape

# Ranks; tensor, pipeline, virtual pipeline and expert parallel sizes; ranks that share an expert, 0: as a layer. The
# last two are for mixtures of experts only.
LAYOUTS = {
    "1 process": (1, 1, 1, 1, 1, 0),
    "TP2": (2, 2, 1, 1, 1, 0),
    "PP2": (2, 1, 2, 1, 1, 0),
    "TP2 x PP2": (4, 2, 2, 1, 1, 0),
    "PP2 x VPP2 x DP2": (4, 1, 2, 2, 1, 0),
    "EP2": (2, 1, 1, 1, 2, 0),
    "TP2 x EP2": (4, 2, 1, 1, 2, 0),
    "TP2, EP2 x ETP1": (2, 2, 1, 1, 2, 1),
    "DP2, ETP2": (2, 1, 1, 1, 1, 2),
}
_KINDS = ("tensor_model", "pipeline_model", "virtual_pipeline_model", "expert_model", "expert_tensor")
SIZES = [f"{kind}_parallel_size" for kind in _KINDS]
BUCKET_MB = 0.02  # about ten buckets for these models


class Receiver:
    """Takes weights and confirms them; until it has been rebuilt `heals_after` times it does so with a fault of its
    own."""

    def __init__(self, fault: str = "", heals_after: int = 99) -> None:
        self.fault = fault
        self.heals_after = heals_after
        self.rebuilt = 0
        self.names: list[str] = []

    def update_weights(
        self, announced: Announcement, tensors: Iterable[tuple[str, torch.Tensor]]
    ) -> Confirmation | None:
        fault = self.fault if self.rebuilt < self.heals_after else ""
        if fault == "has no engine":
            return None
        stream = ChecksummedStream(tensors)
        self.names = []
        for name, _ in stream:
            self.names.append(name)
            if fault == "breaks" and len(self.names) == 3:
                raise OSError("the engine went away")
        return Confirmation(announced.version, ("f" * 32 if fault == "holds other weights" else stream.checksum,))

    def rebuild_engines(self) -> None:
        self.rebuilt += 1


def handed_over(exporter: WeightExporter, rank: int) -> dict[str, Any]:
    """What hand-overs to whole, faulty and absent engines come to on this rank. Faults are the first rank's alone."""
    whole = Receiver()
    good = HandOver(exporter, whole).send(version=3)
    healed, errors = [], []
    for fault in ("breaks", "holds other weights"):
        mended = Receiver(fault if rank == 0 else "", heals_after=1)
        hand_over = HandOver(exporter, mended)
        healed.append(
            [hand_over.send(version=4).checksum, hand_over.repeated, mended.rebuilt, mended.names == whole.names]
        )
        try:
            HandOver(exporter, Receiver(fault if rank == 0 else "")).send(version=5)
            errors.append("")
        except (OSError, WeightHandoverError) as failure:
            errors.append(str(failure))
    ignored = HandOver(exporter, Receiver("has no engine")).send(version=5)
    again = HandOver(exporter, Receiver()).send(version=6)
    return {
        "complete": whole.names == list(exporter.manifest()),
        "nbytes": good.nbytes,
        "versions": [good.version, ignored.version],
        "checksums": [good.checksum, again.checksum],
        "healed": healed,
        "errors": errors,
        "ignored_bytes": ignored.nbytes,
    }


def sliced(exporter: WeightExporter, chunks: Any, shape: ModelShape, source: HfFolder, size: int) -> dict[str, Any]:
    """What engines of so many ranks get: their slices, and how many bytes move for them and for whole tensors."""
    for _ in exporter:
        continue
    to_engines = WeightExporter(chunks, shape, BUCKET_MB, engine_size=size)
    engine, plan = to_engines.engine, to_engines._plan
    cuts = {cut.name: cut for mapping in plan.table if not mapping.is_copy for cut in slices_of(mapping, engine)}
    stream = [(name, tensor.clone()) for name, tensor in to_engines]
    owners = [(index, owner) for owner, indices in to_engines._buckets for index in indices]
    here = to_engines.stage, to_engines._expert_rank
    places = [dist.get_rank(group) for group in to_engines._cut_groups]
    planned = [plan.received_numel(index, owner, *here, places[owner.of_expert]) for index, owner in owners]
    receiver = Receiver()
    report = HandOver(to_engines, receiver).send(version=1)
    return {
        "names": [name for name, _ in stream] == list(exporter.manifest()) == receiver.names,
        "identical": all(torch.equal(t, cuts[name].of(source.read(name)).to(exporter.dtype)) for name, t in stream),
        "contiguous": all(t.is_contiguous() for _, t in stream),
        "received": to_engines.received,
        "planned": sum(planned) * exporter.dtype.itemsize,
        "received_whole": exporter.received,
        "kept": sum(t.nbytes for _, t in stream),
        "shards_travel": any(plan._parts(i, 0, [0]) is None for i, _ in owners if not plan.alone(i)),
        "report": [report.received, report.checksum],
    }


def observe(
    name: str, folder: Path, work: Path, shape: ModelShape, actor: ActorConfig, layout: Layout
) -> dict[str, Any]:
    """Everything about one model at this layout, from this rank's point of view."""
    policy = MegatronPolicy(shape, actor, layout, temperature=1.0, trainable=False)
    load_hf_weights(policy.chunks, shape, folder)
    expected = load_file(folder / "expected" / "logits.safetensors")
    logits = megatron_logits(policy, expected["prompt"].tolist())
    exporter = WeightExporter(policy.chunks, shape, BUCKET_MB)
    source = HfFolder(folder)
    buckets = list(exporter.buckets())
    stream = [(name, tensor.clone()) for bucket in buckets for name, tensor in bucket]
    facts: dict[str, Any] = {
        "logit_difference": None if logits is None else float((logits - expected["logits"][:-1]).abs().max()),
        "in_manifest_order": [(name, tuple(t.shape)) for name, t in stream] == list(exporter.manifest().items()),
        "identical": all(torch.equal(t, source.read(name).to(exporter.dtype)) for name, t in stream),
        "dtypes": sorted({str(t.dtype) for _, t in stream}),
        "contiguous": all(t.is_contiguous() for _, t in stream),
        "buckets": len(buckets),
        "could_be_fewer": could_be_fewer(exporter),
        "largest_bucket_of_several": max([sum(t.nbytes for _, t in b) for b in buckets if len(b) > 3], default=0),
        "hand_over": handed_over(exporter, layout.rank),
    }
    facts["sliced"] = {
        size: sliced(exporter, policy.chunks, shape, source, size)
        for size in (2, 4)
        if not why_whole(shape, size, layout.world_size // layout.pipeline_size)
    }
    with torch.no_grad():
        for chunk in policy.chunks:
            for parameter in chunk.parameters():
                parameter.fill_(7.0)
    load_megatron_checkpoint(policy.chunks, shape, work / "megatron_float32" / folder.name)
    facts["reloaded_difference"] = worst_tensor(exporter, source).difference
    facts["padding_is_zero"] = padding_is_zero(policy)
    facts["exports"] = exported(exporter, layout.rank, folder, work / "hf" / name)
    if layout.tensor_size == layout.pipeline_size == 2:
        CheckpointStore(work / "run" / folder.name, shape, keep_last=1).save(7, policy, {"step": 7})
    return facts


def could_be_fewer(exporter: WeightExporter) -> int:
    """Buckets into which the first parameter of the next one, which the same ranks own, would have fitted."""

    def nbytes(indices: list[int]) -> int:
        return sum(map(exporter._plan.most_numel, indices)) * exporter.dtype.itemsize

    pairs = [(one, next_one[:1]) for (own, one), (other, next_one) in pairwise(exporter._buckets) if own == other]
    return sum(nbytes(one + first) <= BUCKET_MB * 2**20 for one, first in pairs)


def exported(exporter: WeightExporter, rank: int, model: Path, work: Path) -> dict[str, Any]:
    """Hugging Face folders of several steps: the first rank fails to write the second; the third is an earlier step
    made again."""
    folder = work / model.name
    export = HfExport(folder, exporter, model, keep_last=2)
    export.save(20)
    try:
        HfExport(folder, exporter, work / "nowhere", keep_last=2).save(30)
        error = ""
    except UserError as failure:
        error = type(failure).__name__
    after_failure = sorted(path.name for path in folder.iterdir()) if rank == 0 else []
    written = export.save(10)
    if rank != 0:
        return {"error": error}
    left = sorted(path.name for path in folder.iterdir())
    return {"error": error, "after_failure": after_failure, "left": left, **compared(model, written, exporter.dtype)}


def padding_is_zero(policy: MegatronPolicy) -> bool:
    last = policy.chunks[-1]
    shard = last.vocab_shard() if policy.layout.is_last_stage else None
    return shard is None or not last.output_weight()[shard.valid_rows :].any()


def some_layouts(number: int, parts: tuple[tuple[str, ...], ...], *folders: Path) -> None:
    """One part of the layouts, one after the other."""
    for name in parts[number]:
        mp.start_processes(one_rank, (name, *folders), nprocs=LAYOUTS[name][0], start_method="fork")


def one_rank(rank: int, name: str, models: Path, work: Path, results: Path) -> None:
    torch.set_num_threads(1)
    world, *sizes = LAYOUTS[name]
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(results / f"{name}.store"), world), rank=rank, world_size=world
    )
    options: dict[str, Any] = {"dtype": "float32", **dict(zip(SIZES, sizes, strict=True))}
    actor = ActorConfig(**options)
    layout = parallel.initialize(actor, seed=1)
    facts = {}
    for folder in sorted(models.iterdir()):
        shape = model_shape(HfFolder(folder).config())
        if shape.experts or (actor.expert_model_parallel_size, actor.expert_tensor_parallel_size) == (1, 0):
            facts[folder.name] = observe(name, folder, work, shape, actor, layout)
    (results / f"{name}.{rank}.json").write_text(json.dumps(facts))
    dist.barrier()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def conversions(_: int, models: Path, work: Path, results: Path) -> None:
    """Hugging Face -> Megatron -> Hugging Face in both dtypes, and the second time of each."""
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    for folder in sorted(models.iterdir()):
        for dtype in ("float32", "bfloat16"):
            megatron, back = work / f"megatron_{dtype}" / folder.name, work / f"back_{dtype}" / folder.name
            made = [hf_to_megatron.convert(folder, megatron, dtype) for _ in range(2)]
            made += [megatron_to_hf.convert(megatron, back, max_shard_gb=3e-5) for _ in range(2)]
            facts[f"{folder.name} {dtype}"] = {"made": made, **compared(folder, back, getattr(torch, dtype))}
    (results / "conversions.json").write_text(json.dumps(facts))


def compared(folder: Path, back: Path, dtype: torch.dtype) -> dict[str, Any]:
    """How a converted folder compares with the one it came from."""
    source, found = HfFolder(folder), HfFolder(back)
    before = {name: source.read(name).to(dtype) for name in source.stored if name in found.stored}
    after = {name: found.read(name) for name in before}
    return {
        "missing": sorted(source.stored.keys() ^ found.stored.keys()),
        "dtypes": sorted({str(t.dtype) for t in found.stored.values()}),
        "identical": all(torch.equal(before[name], after[name]) for name in before),
        "same_checksum": weights_checksum(before.items()) == weights_checksum(after.items()),
        "files": len({t.file for t in found.stored.values()}),
        "config_dtype": json.loads((back / "config.json").read_text()).get("dtype"),
        "template": (back / "chat_template.jinja").read_text(),
    }


def exports_of_runs(_: int, models: Path, work: Path, results: Path) -> None:
    """The training checkpoints that TP2 x PP2 wrote, back to Hugging Face in one process."""
    torch.set_num_threads(1)
    facts = {}
    for folder in sorted(models.iterdir()):
        back = work / "from_run" / folder.name
        megatron_to_hf.convert(work / "run" / folder.name / "step_000007", back, hf=folder)
        facts[folder.name] = compared(folder, back, torch.float32)
    (results / "exports_of_runs.json").write_text(json.dumps(facts))


def main() -> None:
    torch.set_num_threads(1)
    models, work = Path(sys.argv[1]), Path(sys.argv[2])
    results = Path(tempfile.mkdtemp())
    mp.start_processes(conversions, (models, work, results), nprocs=1, start_method="fork")
    halves = (tuple(LAYOUTS)[::2], tuple(LAYOUTS)[1::2])  # side by side: ranks wait for each other most of the time
    mp.start_processes(some_layouts, (halves, models, work, results), nprocs=2, start_method="fork")
    mp.start_processes(exports_of_runs, (models, work, results), nprocs=1, start_method="fork")
    report: dict[str, Any] = {
        part: json.loads((results / f"{part}.json").read_text()) for part in ("conversions", "exports_of_runs")
    }
    report["layouts"] = {
        name: [json.loads((results / f"{name}.{rank}.json").read_text()) for rank in range(size[0])]
        for name, size in LAYOUTS.items()
    }
    shutil.rmtree(results)
    print("RESULT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
