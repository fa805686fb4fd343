"""Drives real engines in a process of their own and prints what was observed as JSON, after RESULT.

usage: engine_observations.py FOLDER    (FOLDER holds the models llama_a, llama_b, qwen_a, ..., an a and a b of every
family)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import slices_and_loaders
import torch
from error_text import error_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.engine import VllmEngine
from megatron_rlpr.rollout.vllm.worker_load import load_stream
from megatron_rlpr.types import Response
from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.receiver import Announcement
from megatron_rlpr.weights.transports.interface import InProcess

SAMPLED = SamplingSettings(temperature=0.7, max_tokens=60)
GREEDY = SamplingSettings(temperature=0.0, max_tokens=24)


def requests(count: int = 16, length: int = 70) -> list[GenerationRequest]:
    """count requests over count / 4 prompts; all prompts share their first 64 tokens."""
    numbers = random.Random(0)
    beginning = [numbers.randrange(200, 1600) for _ in range(64)]
    prompts = [tuple(beginning + [numbers.randrange(200, 1600) for _ in range(length - 64)]) for _ in range(count // 4)]
    return [GenerationRequest(prompts[i // 4], seed=i, label=f"prompt {i // 4}") for i in range(count)]


def weights_of(folder: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.Tensor]]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors


def breaking(tensors: dict[str, torch.Tensor], after: int) -> Iterator[tuple[str, torch.Tensor]]:
    yield from list(tensors.items())[:after]
    raise OSError("the exporter went away")


def process_state() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_num_threads(),
        id(torch.set_num_threads),
        os.environ.get("LOCAL_WORLD_SIZE"),
        os.environ.get("LD_PRELOAD"),
        str(torch.get_default_dtype()),
    ]


def engine(folder: Path, dtype: str, raw_log_probs: bool = False) -> VllmEngine:
    settings = EngineSettings(str(folder), dtype, max_model_len=256, max_num_seqs=16, kv_cache_gb=0.05)
    return VllmEngine(replace(settings, raw_log_probs=raw_log_probs))


def largest_gap_to_transformers(
    folder: Path, sent: list[GenerationRequest], got: list[Response], temperature: float
) -> float:
    # Other kinds of attention leave soft caps out.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    gap = 0.0
    for request, response in zip(sent, got, strict=True):
        token_ids = torch.tensor([request.prompt_token_ids + response.token_ids])
        start = len(request.prompt_token_ids)
        with torch.no_grad():
            logits = model(token_ids).logits[0, start - 1 : -1] / temperature
        log_probs = logits.log_softmax(-1).gather(1, token_ids[0, start:, None])[:, 0]
        gap = max(gap, float((log_probs - torch.tensor(response.engine_log_probs)).abs().max()))
    return gap


def observe_generation(tested: VllmEngine, folder: Path) -> dict[str, Any]:
    seen: list[tuple[int, int, int]] = []
    sent = requests()
    before = process_state()
    got = tested.generate(sent, SAMPLED, lambda *progress: seen.append(progress))
    shared = tested.shared_prompt_tokens
    greedy = tested.generate(sent, GREEDY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long_prompt = GenerationRequest((200,) * 200, 0, "prompt 7")

    def interrupt(*_: int) -> None:
        raise InterruptedError("stop")

    return {
        "state_kept_while_generating": process_state() == before,
        "responses": [vars(response) for response in got],
        "decoded": [tokenizer.decode(r.token_ids, skip_special_tokens=False) for r in got],
        "shared_prompt_tokens": shared,
        "progress": seen,
        "gap_sampled": largest_gap_to_transformers(folder, sent, got, 0.7),
        "gap_greedy": largest_gap_to_transformers(folder, sent, greedy, 1.0),
        "greedy_ignores_seeds": len({r.token_ids for r in greedy[:4]}) == 1,
        "too_long": error_of(lambda: tested.generate([sent[0], long_prompt], SAMPLED)),
        "interrupted": error_of(lambda: tested.generate(sent, SAMPLED, interrupt)),
        "repeated_is_equal": tested.generate(sent, SAMPLED) == got,
        "reversed_tokens_are_equal": [r.token_ids for r in tested.generate(sent[::-1], SAMPLED)]
        == [r.token_ids for r in got][::-1],
        "no_requests": tested.generate([], SAMPLED),
    }


def observe_truncated_sampling(folder: Path, tempered: VllmEngine) -> dict[str, Any]:
    """Gaps to transformers' full distribution, by what is left out; and what an engine says that does not know it."""
    tested, sent = engine(folder, "float32", raw_log_probs=True), requests(count=8)
    gaps = {}
    for left_out in ({"top_p": 0.8}, {"top_k": 20}, {"top_p": 0.5, "top_k": 5}, {}):
        got = tested.generate(sent, SamplingSettings(max_tokens=24, **left_out))
        gaps[str(left_out)] = largest_gap_to_transformers(folder, sent, got, 1.0)
    unknown = [tested.generate(sent, SAMPLED), tempered.generate(sent, replace(SAMPLED, top_p=0.8))]
    return {"gaps": gaps, "unknown": [len(r.engine_log_probs) for got in unknown for r in got]}


def observe_updates(tested: VllmEngine, fresh: VllmEngine, folder: Path) -> dict[str, Any]:
    """tested holds other weights than fresh, which was started from folder."""
    manifest, tensors = weights_of(folder)
    names = list(manifest)
    sent = requests(count=8)

    def outputs(of: VllmEngine) -> list[tuple]:
        got = of.generate(sent, SAMPLED) + of.generate(sent, GREEDY)
        return [(r.token_ids, r.engine_log_probs) for r in got]

    def glance(of: VllmEngine) -> list[tuple]:
        return [
            (r.token_ids, r.engine_log_probs)
            for r in of.generate(sent[:1], SamplingSettings(temperature=0.0, max_tokens=4))
        ]

    start = outputs(tested)
    misshapen = {**manifest, names[3]: (1, 2)}
    bent = [(name, tensor[:1] if name == names[3] else tensor) for name, tensor in tensors.items()]
    seen: dict[str, Any] = {
        "wrong_manifest": error_of(lambda: tested.update_weights(Announcement(misshapen, 1), tensors.items())),
        "wrong_manifest_changes_nothing": outputs(tested) == start and tested.weight_version == 0,
        "update": error_of(lambda: tested.update_weights(Announcement(manifest, 2), tensors.items())),
        "updated_equals_fresh": outputs(tested) == outputs(fresh) != start,
        "slices": observe_slices(tested, tensors, outputs),
        "version": [tested.weight_version, tested.generate(sent[:1], GREEDY)[0].weight_versions],
        "bent_stream": error_of(lambda: tested.update_weights(Announcement(manifest, 3), bent)),
        "refusal": error_of(lambda: tested.generate(sent, SAMPLED)),
        "version_after_failure": tested.weight_version,
    }
    recovered = []
    for after in range(len(names)):
        with contextlib.suppress(Exception):
            tested.update_weights(Announcement(manifest, 4), breaking({n: t * 2 for n, t in tensors.items()}, after))
        refused = "the exporter went away" in error_of(lambda: tested.generate(sent, SAMPLED))
        tested.update_weights(Announcement(manifest, 5), tensors.items())
        recovered.append(refused and glance(tested) == glance(fresh))
    tested.rebuild()
    seen["rebuilt_without_weights"] = error_of(lambda: tested.generate(sent, SAMPLED))
    seen["rebuild_fails"] = failing_rebuild(tested, sent)
    tested.rebuild()
    confirmation = tested.update_weights(Announcement(manifest, 6), tensors.items())
    seen["confirmed"] = (confirmation.version, confirmation.checksums == (weights_checksum(tensors.items()),))
    seen["rebuilt_equals_fresh"] = outputs(tested) == outputs(fresh)
    return {**seen, "recovers_from_a_break_anywhere": recovered}


def observe_slices(tested: VllmEngine, tensors: dict[str, torch.Tensor], outputs: Callable[[VllmEngine], Any]) -> Any:
    """An engine of one rank takes every tensor as a slice, that of all of it: others, then its own again.

    What the worker says, whether the others took effect, and whether it is as it was.
    """
    before = outputs(tested)
    manifest = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    said, got = [tested.why_whole(0)], []
    for factor in (0.5, 1.0):
        source = InProcess([(name, tensor * factor) for name, tensor in tensors.items()])
        announced = Announcement(manifest, 2)
        loading = (source, announced, tested.settings.torch_dtype, tested._tied_head, tested._shape())
        said += [str(loaded.fault) for loaded in tested._llm.collective_rpc(load_stream, args=loading)]
        got.append(outputs(tested))
    return [said, got[0] != before, got[1] == before]


def observe_sleep(folder: Path, other: Path) -> dict[str, Any]:
    """An engine that starts with random weights and sleeps between hand-overs, against one that does neither.

    folder: of the model; other: the same model with other weights. On a CPU vLLM frees nothing, so this ruins whatever
    sleeps: a hand-over must bring all of it.
    """
    settings = EngineSettings(str(folder), "float32", max_model_len=256, max_num_seqs=16, kv_cache_gb=0.05)
    tested = VllmEngine(replace(settings, sleep=True, load_format="dummy"))
    manifest, tensors = weights_of(folder)
    sent, short = requests(count=8), SamplingSettings(temperature=0.0, max_tokens=4)

    def hand_over(version: int, of: dict[str, torch.Tensor]) -> str:
        return error_of(lambda: tested.update_weights(Announcement(manifest, version), of.items()))

    def asleep_and_ruined() -> bool:
        tested.sleep()
        tested._llm.collective_rpc(ruin)
        return tested.asleep and tested._llm.llm_engine.is_sleeping()

    expected = engine(folder, "float32").generate(sent, SAMPLED)
    seen: dict[str, Any] = {"before_its_first_weights": error_of(lambda: tested.generate(sent, SAMPLED))}
    cycles = []
    for version in (1, 2):
        cycle = [asleep_and_ruined(), error_of(lambda: tested.generate(sent, short)), hand_over(0, tensors)]
        tested.sleep()  # again: nothing happens
        tested.wake_weights()
        cycle += [error_of(lambda: tested.submit("one", sent[0], short)), error_of(tested.sleep)]
        cycle += [hand_over(version, tensors), error_of(lambda: tested.generate(sent, short))]
        tested.wake_cache()
        got = tested.generate(sent, SAMPLED)
        same = [(r.token_ids, r.engine_log_probs) for r in got] == [(r.token_ids, r.engine_log_probs) for r in expected]
        cycles.append([*cycle, same, tested.weight_version])
    tested.submit("one", sent[0], short)
    seen["in_flight"] = error_of(tested.sleep)
    tested.abort()
    tested.sleep()
    tested.wake_weights()
    with contextlib.suppress(Exception):
        tested.update_weights(Announcement(manifest, 3), breaking(tensors, 2))
    tested.rebuild()  # of an engine that is half awake
    seen["rebuilt"] = [hand_over(3, weights_of(other)[1]), tested.asleep, len(tested.generate(sent, short))]
    return {**seen, "cycles": cycles}


def ruin(worker: Any) -> None:
    """Make of all weights what nobody could work with."""
    for parameter in worker.model_runner.get_model().parameters():
        parameter.data.fill_(float("nan"))


def failing_rebuild(tested: VllmEngine, sent: list[GenerationRequest]) -> list[str]:
    """A new start that fails, here because the model folder has gone, and what every later call says."""
    folder = Path(tested.settings.model_path)
    away = folder.rename(folder.with_name("away"))
    calls: list[Callable[[], Any]] = [
        tested.rebuild,
        lambda: tested.generate(sent, SAMPLED),
        lambda: tested.submit("one", sent[0], SAMPLED),
        tested.step,
        lambda: tested.update_weights(Announcement(tested._required, 7), []),
        tested.abort,
    ]
    errors = [error_of(call) for call in calls]
    away.rename(folder)
    return [*errors, str(tested.in_flight)]


def gap_after_an_update(folder: Path, family: str) -> float:
    """An engine of one random model takes the weights of another; its log-probs against transformers' for those."""
    tested = engine(folder / f"{family}_a", "float32")
    manifest, tensors = weights_of(folder / f"{family}_b")
    tested.update_weights(Announcement(manifest, 1), tensors.items())
    sent = requests(count=8)
    return largest_gap_to_transformers(folder / f"{family}_b", sent, tested.generate(sent, SAMPLED), 0.7)


def main(folder: Path) -> None:
    before = process_state()
    # vLLM makes the groups of experts with a process's first engine only.
    mixtral = engine(folder / "mixtral_a", "float32")
    kept = process_state() == before
    llama = engine(folder / "llama_a", "float32")
    generation = observe_generation(llama, folder / "llama_a")
    truncated = observe_truncated_sampling(folder / "llama_a", llama)
    updates = {
        "llama, tied, fp32": observe_updates(llama, engine(folder / "llama_b", "float32"), folder / "llama_b"),
        "qwen2, untied, bf16": observe_updates(
            engine(folder / "qwen_a", "bfloat16"), engine(folder / "qwen_b", "bfloat16"), folder / "qwen_b"
        ),
        "mixtral, untied, fp32": observe_updates(
            mixtral, engine(folder / "mixtral_b", "float32"), folder / "mixtral_b"
        ),
    }
    gaps = {family: gap_after_an_update(folder, family) for family in ("qwen3", "mistral", "gemma2")}
    print(
        "RESULT "
        + json.dumps(
            {
                "gaps_after_an_update": gaps,
                "state_kept_by_the_start": kept,
                "generation": generation,
                "truncated": truncated,
                "sleep": observe_sleep(folder / "llama_a", folder / "llama_b"),
                "updates": updates,
                "unlike_the_loaders": slices_and_loaders.differences(Path(mkdtemp())),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
