"""Compare a Megatron checkpoint with the Hugging Face folder it should equal, in fp32, at any layout.

    torchrun --nproc-per-node 2 -m checkpoint_conversion.verify --hf models/smollm2-135m \\
        --megatron checkpoints/smollm2-135m --pipeline-model-parallel-size 2

Loads the checkpoint into the training policy, exports it again and compares every tensor; then runs random prompts
through the policy and through transformers. Prints the worst tensor and the largest logit difference; exit status 1
beyond --tolerance.
"""

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path

import torch
import torch.distributed as dist

from checkpoint_conversion.logits import megatron_logits
from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.command_line import exit_status
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import model_shape, parameter_table
from megatron_rlpr.weights.export import WeightExporter
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.load_hf import open_hf_weights
from megatron_rlpr.weights.load_megatron import check_megatron_checkpoint, load_megatron_checkpoint
from megatron_rlpr.weights.shape import ModelShape


@dataclass(frozen=True)
class Worst:
    """The largest difference that was found, and where."""

    difference: float
    where: str


def worst_tensor(exported: Iterable[tuple[str, torch.Tensor]], source: HfFolder) -> Worst:
    """The exported tensor that is farthest from the folder's, in fp32."""
    worst = Worst(-1.0, "")
    for name, tensor in exported:
        difference = float((tensor.cpu().float() - source.read(name).float()).abs().max())
        if not difference <= worst.difference:
            worst = Worst(difference, name)
    return worst


def worst_logit(policy: MegatronPolicy, hf: Path, prompts: Sequence[Sequence[int]]) -> Worst:
    """The largest difference between the policy's logits and transformers', on every rank."""
    model = _transformers_model(hf) if policy.layout.rank == _speaker(policy) else None
    worst = Worst(-1.0, "")
    for number, prompt in enumerate(prompts):
        logits = megatron_logits(policy, prompt)
        if model is None:
            continue
        if logits is None:
            raise ValueError(f"prompt {number} was computed by another replica than that of rank {policy.layout.rank}")
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, :-1].float()
        by_position = (logits.cpu() - expected).abs().amax(-1)
        if not float(by_position.max()) <= worst.difference:
            worst = Worst(float(by_position.max()), f"prompt {number}, position {int(by_position.argmax())}")
    found = [worst]
    dist.broadcast_object_list(found, src=_speaker(policy))
    return found[0]


def random_prompts(vocab_size: int, count: int, length: int) -> list[list[int]]:
    """Prompts of uniformly random tokens, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for _ in range(count)]


def check_layout(shape: ModelShape, tp: int, pp: int, world_size: int, ep: int = 1, etp: int = 0) -> None:
    """Raise UserError when a model of this shape cannot be laid out so on that many processes. etp 0: as tp."""
    experts = ep * (etp or tp)
    if min(tp, pp, experts) < 1 or world_size != pp * lcm(tp, experts):
        needed = f"{pp * lcm(tp, experts)}: change torchrun's --nproc-per-node"
        raise UserError(f"{world_size} processes, but {_layout_name(tp, pp, ep, etp)} are {needed}")
    if ep > 1 and (shape.experts is None or shape.experts.count % ep):
        experts = shape.experts.count if shape.experts else 0
        raise UserError(f"--expert-model-parallel-size={ep} does not divide the {experts} experts")
    if shape.num_layers % pp:
        raise UserError(f"--pipeline-model-parallel-size={pp} does not divide the {shape.num_layers} layers")
    try:
        for mapping in parameter_table(shape):
            mapping.shard_shape(etp or tp if mapping.of_expert else tp)
    except ValueError as error:
        key = "expert-tensor" if etp and mapping.of_expert else "tensor-model"
        raise UserError(f"--{key}-parallel-size={etp if key == 'expert-tensor' else tp}: {error}") from error


def _layout_name(tp: int, pp: int, ep: int, etp: int) -> str:
    of_experts = (f" x EP {ep}" if ep > 1 else "") + (f" x ETP {etp}" if etp else "")
    return f"TP {tp} x PP {pp}{of_experts}"


def _speaker(policy: MegatronPolicy) -> int:
    """The first rank of the last stage: a single prompt goes to the first replica, and that stage has logits."""
    return policy.layout.world_size - policy.layout.data_size * policy.layout.tensor_size


def _transformers_model(hf: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Other kinds of attention leave out the soft caps that some models have.
    options = {"dtype": torch.float32, "local_files_only": True, "attn_implementation": "eager"}
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(hf, trust_remote_code=False, **options).eval()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, help="Hugging Face folder to compare with")
    parser.add_argument("--megatron", type=Path, required=True, help="Megatron checkpoint")
    shared = "replicas of the other layers that share the experts"
    for kind, about in (("tensor", None), ("pipeline", None), ("expert", shared)):
        parser.add_argument(f"--{kind}-model-parallel-size", type=int, default=1, help=about)
    parser.add_argument("--expert-tensor-parallel-size", type=int, default=0, help="ranks that share an expert; 0: TP")
    parser.add_argument("--prompts", type=int, default=4, help="random prompts to compare")
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tolerance", type=float, default=2e-4, help="largest logit difference that passes")
    options = parser.parse_args()
    shape = model_shape(HfFolder(options.hf).config())
    check_megatron_checkpoint(shape, options.megatron)
    source = open_hf_weights(shape, options.hf)
    tp, pp, ep = (getattr(options, f"{kind}_model_parallel_size") for kind in ("tensor", "pipeline", "expert"))
    etp = options.expert_tensor_parallel_size
    check_layout(shape, tp, pp, int(os.environ.get("WORLD_SIZE", "1")), ep, etp)
    if options.prompts < 1 or not 2 <= options.length <= shape.max_position_embeddings:
        raise UserError(f"--prompts must be at least 1 and --length between 2 and {shape.max_position_embeddings}")
    actor = ActorConfig(
        dtype="float32",
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        max_tokens_per_micro_batch=options.length,
    )
    layout = parallel.initialize(actor, seed=0)
    policy = MegatronPolicy(shape, actor, layout, temperature=1.0, trainable=False)
    load_megatron_checkpoint(policy.chunks, shape, options.megatron)
    tensor = worst_tensor(WeightExporter(policy.chunks, shape, bucket_mb=64), source)
    logit = worst_logit(policy, options.hf, random_prompts(shape.vocab_size, options.prompts, options.length))
    if layout.rank == 0:
        print(f"layout: {_layout_name(tp, pp, ep, etp).replace(' x', ',')}")
        print(f"worst tensor: {tensor.where}, largest difference {tensor.difference:.3g}")
        found = f"{logit.difference:.3g} at {logit.where}"
        print(f"largest logit difference: {found} (tolerance {options.tolerance:g})", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    if not logit.difference <= options.tolerance:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(exit_status(main))
