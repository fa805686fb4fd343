"""A vLLM (V1) engine inside the training process: one per rank, or one over consecutive tensor-parallel ranks."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_rlpr.data.tokenizer import load_tokenizer
from megatron_rlpr.rollout.engine import EngineSettings, ProgressCallback, RolloutError
from megatron_rlpr.rollout.requests import GenerationRequest, SamplingSettings
from megatron_rlpr.rollout.vllm import limits, process
from megatron_rlpr.rollout.vllm.requests_in_flight import RequestsInFlight
from megatron_rlpr.rollout.vllm.sleep import Sleep, Wakefulness
from megatron_rlpr.rollout.vllm.slice_load import unlike_places
from megatron_rlpr.rollout.vllm.weight_update import check_manifest, required_weights
from megatron_rlpr.rollout.vllm.worker_load import Loaded, load_stream
from megatron_rlpr.system import stop_signals
from megatron_rlpr.types import Response
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.engine_slices import WHOLE
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.receiver import Announcement, Confirmation, WeightHandoverError
from megatron_rlpr.weights.shape import ModelShape
from megatron_rlpr.weights.transports.interface import InProcess, WeightSource

_NO_WEIGHTS = "it was started with random ones (load_format=dummy) and has not been given the policy's yet"
_STEPS_BETWEEN_AGREEMENTS = 16
"""Decoding steps after which the ranks of one engine ask each other whether to stop."""

QUANTIZATIONS = {"none": None, "fp8": "fp8_per_channel"}
"""vLLM's names of what rounds bf16 weights when they are loaded, and again whenever they are reloaded, layer by layer:
a scale for every row of a weight and for every token (vllm 0.32.0, config/quantization.py; its "fp8" means folders that
are in FP8 already)."""


class VllmEngine:
    """vLLM with the policy's weights, driven step by step by the training process.

    Keep it for the life of the process; nothing is cleaned up before its end. With more than one rank, start the
    ranks with torchrun, initialise torch.distributed first and make the engine on all ranks at the same time: its
    start is collective, and the ranks of one engine are consecutive.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Start the engine with the weights of the model folder. UserError when its settings do not fit the model."""
        folder, on_cpu = settings.model_path, not torch.cuda.is_available()
        config = limits.read_model_config(folder)
        limits.check_engine_fits(config, settings, on_cpu=on_cpu)
        self.settings = settings
        self._required, self._tied_head = required_weights(folder)
        self._tokenizer = load_tokenizer(folder)
        self._stop_ids = limits.end_of_sequence_ids(folder, config, self._tokenizer)
        self._vocab_size = config.vocab_size
        self.weight_version = 0
        """The hand-over that gave the engine its weights; 0 = the model folder's."""
        self._unusable: str | None = _NO_WEIGHTS if settings.load_format == "dummy" else None
        self._broken = False
        process.prepare_environment()
        self._arguments = _arguments(settings, on_cpu)
        self._start()

    def _start(self) -> None:
        several_ranks = self._arguments["distributed_executor_backend"] == "external_launcher"
        meet = several_ranks and self.settings.tensor_parallel_size > 1 and not torch.cuda.is_available()
        with (
            process.shared_memory_of_this_start() if meet else contextlib.nullcontext(),
            process.process_state_kept(self.settings.threads),
            torch.compiler.set_stance("force_eager" if self.settings.enforce_eager else "default"),
        ):
            from vllm import LLM

            self._llm: Any = LLM(**self._arguments)
        # vLLM's clean-up would destroy the default process group, which is Megatron's too; the process's end is
        # clean-up enough
        self._llm.llm_engine.engine_core._finalizer.detach()
        self._sleep = Sleep(self._llm)
        self._requests = self._no_requests(self._llm.llm_engine)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        on_progress: ProgressCallback | None = None,
    ) -> list[Response]:
        """One response per request, in request order.

        A function of the weights and the requests alone: the prefix cache is emptied first, since a cached prefix is
        computed in another batch shape than a fresh one and rounds differently. Requests with the same prompt or the
        same beginning share it within the call. engine_log_probs are those of all tokens at the sampling temperature,
        with temperature 0 those of temperature 1; none where vLLM does not give these (`full_log_probs`).
        """
        if self._requests:
            raise RolloutError(f"the engine is still working on {len(self._requests)} submitted requests")
        self._requests.shared_tokens = 0

        def report(tokens: int, done: int) -> None:
            if on_progress is not None:
                on_progress(tokens, done, len(requests))

        finished = self.work(dict(enumerate(requests)), sampling, report)
        return [finished[number] for number in range(len(requests))]

    def work(
        self,
        new: Mapping[int, GenerationRequest],
        sampling: SamplingSettings,
        report: Callable[[int, int], None],
        most_steps: int | None = None,
    ) -> dict[int, Response]:
        """Begin new requests, by number, and decode until nothing is in flight, or for so many steps; what it finished.

        report: called with the tokens written in this call and for what is in flight, and the requests finished.
        """
        self._check(list(new.values()), sampling)
        finished: dict[int, Response] = {}
        tokens = 0
        try:
            for number, request in new.items():
                self.submit(str(number), request, sampling)
            for steps in itertools.count() if most_steps is None else range(most_steps):
                if not self._at_work():
                    break
                self._stop_if_asked(steps)
                for key, response in self.step():
                    finished[int(key)] = response
                    tokens += len(response.token_ids)
                report(tokens + self._requests.tokens, len(finished))
        except BaseException:
            self.abort()
            raise
        return finished

    def _no_requests(self, llm_engine: Any) -> RequestsInFlight:
        return RequestsInFlight(llm_engine, self._tokenizer, self._stop_ids, self.settings.raw_log_probs)

    def _at_work(self) -> bool:
        """Whether there is another step to do. Ranks that share experts step together, also those that are done."""
        if self.settings.data_parallel_size == 1:
            return bool(self._requests)
        return bool(self._llm.llm_engine.has_unfinished_requests())

    def _stop_if_asked(self, steps: int) -> None:
        """Raise Stopped where the run was asked to stop, on all ranks of this engine after the same number of steps."""
        if self.settings.data_parallel_size > 1:
            if steps % _STEPS_BETWEEN_AGREEMENTS == 0:
                stop_signals.agree()
        elif self.settings.tensor_parallel_size == 1:
            stop_signals.check()
        elif steps % _STEPS_BETWEEN_AGREEMENTS == 0:
            from vllm.distributed import get_tp_group

            stop_signals.agree(get_tp_group().cpu_group)

    @property
    def shared_prompt_tokens(self) -> int:
        """Prompt tokens of the last `generate` that came from the prefix cache instead of a forward pass."""
        return self._requests.shared_tokens

    @property
    def in_flight(self) -> tuple[int, int]:
        """(requests that were submitted and are not finished, tokens written for them so far)."""
        return len(self._requests), self._requests.tokens

    def submit(self, key: str, request: GenerationRequest, sampling: SamplingSettings) -> None:
        """Start one request, to be finished by `step`. UserError when this engine cannot serve it.

        The prefix cache is emptied when nothing else is in flight.
        """
        self._check([request], sampling)
        with process.engine_call(self.settings.enforce_eager):
            if not self._requests:
                self._llm.reset_prefix_cache()
            self._requests.add(key, request, sampling)

    def step(self) -> list[tuple[str, Response]]:
        """One decoding step for everything submitted; returns what it finished, by key."""
        self._check_usable()
        with process.engine_call(self.settings.enforce_eager):
            return list(self._requests.step(self.weight_version))

    def abort(self) -> None:
        """Give up everything submitted."""
        self._requests.abort()

    def _check(self, requests: Sequence[GenerationRequest], sampling: SamplingSettings) -> None:
        self._check_usable()
        limits.check_requests(requests, sampling.max_tokens, self.settings.max_model_len, self._vocab_size)

    def _check_usable(self) -> None:
        if self._sleep.state is not Wakefulness.AWAKE:
            raise RolloutError(f"the engine {self._sleep.state.value}: it generates again after the next hand-over")
        if self._unusable:
            raise RolloutError(f"the engine holds no usable weights: {self._unusable}")

    @property
    def asleep(self) -> bool:
        """Whether it has given its memory up, or not all of it is back."""
        return self._sleep.state is not Wakefulness.AWAKE

    def sleep(self) -> None:
        """Give up weights and cache until the next hand-over (`wake_weights`, `load`, `wake_cache`).

        Without effect where `EngineSettings.sleep` is false or it sleeps already. RolloutError with requests in flight.
        """
        if not self.settings.sleep or self._sleep.state is Wakefulness.ASLEEP:
            return
        if self._requests:
            raise RolloutError(f"the engine cannot sleep: it works on {len(self._requests)} submitted requests")
        self._or_broken(self._sleep.sleep)
        self._unusable = "it gave them up when it slept"

    def wake_weights(self) -> None:
        """Take memory for the weights that `load` brings; without effect where it does not sleep."""
        if self._sleep.state is Wakefulness.ASLEEP:
            self._or_broken(self._sleep.wake_weights)

    def wake_cache(self) -> None:
        """After `load`: take memory for the key/value cache; without effect where it is there."""
        if self._sleep.state is not Wakefulness.AWAKE:
            self._or_broken(self._sleep.wake_cache)

    def _or_broken(self, change: Callable[[], None]) -> None:
        """What vLLM did by half has to be rebuilt; what comes out of order changes nothing."""
        before = self._sleep.state
        try:
            with process.engine_call(self.settings.enforce_eager):
                change()
        except Exception as error:
            if self._sleep.state is not before:
                self._broken, self._unusable = True, f"{error}"
            raise

    def check_weights(self, announced: Announcement) -> None:
        """Raise WeightHandoverError unless this engine can take an update of exactly these names and shapes.

        All ranks ask this first, so that none enters the stream's collectives alone.
        """
        if self._broken:
            raise WeightHandoverError(f"the engine cannot be loaded before it is rebuilt: {self._unusable}")
        check_manifest(announced.manifest, self._required, self._tied_head)
        if announced.engine.size not in (1, self.settings.tensor_parallel_size):
            raise WeightHandoverError(
                f"slices of {announced.engine.size} ranks were announced to an engine of "
                f"{self.settings.tensor_parallel_size}"
            )

    def why_whole(self, rank: int | None = None) -> str:
        """Why its workers cannot take slices of their own instead of whole tensors; empty: they can.

        rank: of the engine, that this process should be; None: workers number themselves.
        """
        settings = self.settings
        if settings.quantization != "none":
            return f"rollout.quantization={settings.quantization} rounds whole tensors"
        if settings.enable_expert_parallel or settings.data_parallel_size > 1:
            return "engines that share experts cut them otherwise"
        found = self._llm.collective_rpc(unlike_places, args=(self._shape(), settings.tensor_parallel_size, rank))
        return str(next(filter(None, found), ""))

    def _shape(self) -> ModelShape:
        return model_shape(HfFolder(self.settings.model_path).config())

    def update_weights(self, announced: Announcement, tensors: Iterable[tuple[str, torch.Tensor]]) -> Confirmation:
        """`load` from tensors of this process; WeightHandoverError unless the engine's workers live in it, too.

        A tensor's storage must stay as it is until the stream ends: vLLM fuses q, k, v and keeps parts until the last
        one has come.
        """
        if self._arguments["distributed_executor_backend"] == "mp":
            raise WeightHandoverError(
                "the engine's workers are processes of their own: load it through one of weights.transports"
            )
        return self.load(announced, InProcess(tensors))

    def load(self, announced: Announcement, source: WeightSource) -> Confirmation:
        """Replace all weights, by whole tensors or by the slices of each rank of the engine, as announced; on success
        the engine equals one started from a folder with these weights, bit for bit.

        Every worker of the engine reads the stream of the source by itself. Requests in flight survive and go on with
        the new weights. A wrong manifest changes nothing. A fault in the stream is a WeightHandoverError and leaves the
        engine unusable until the next good load. The confirmation is of the tensors that were loaded, by all workers.
        """
        self.check_weights(announced)
        if self._sleep.state is Wakefulness.ASLEEP:
            raise WeightHandoverError("the engine is asleep: wake its weights first")
        version, sliced = announced.version, None if announced.engine == WHOLE else self._shape()
        self._unusable = f"hand-over {version} was interrupted"
        try:
            with process.engine_call(self.settings.enforce_eager):
                loaded: list[Loaded] = self._llm.collective_rpc(
                    load_stream, args=(source, announced, self.settings.torch_dtype, self._tied_head, sliced)
                )
                # what is in flight goes on with the new weights: its keys and values are computed again from its tokens
                self._llm.reset_prefix_cache(reset_running_requests=bool(self._requests))
        except Exception as error:
            self._broken = True
            self._unusable = f"vLLM failed while it took hand-over {version}: {error}"
            raise WeightHandoverError(self._unusable) from error
        faults = [one.fault for one in loaded if one.fault]
        checksums = [one.checksum for one in loaded]
        if not faults and sliced is None and len(set(checksums)) > 1:
            faults = ["the workers of the engine got different weights"]
        if faults:
            self._unusable = f"hand-over {version} failed: {faults[0]}"
            raise WeightHandoverError(self._unusable)
        self._unusable = None
        self.weight_version = version
        return Confirmation(version, tuple(checksums[:1] if sliced is None else checksums))

    @property
    def loadable(self) -> bool:
        """Whether the next good hand-over makes the engine usable, whatever the last one did; if not, rebuild it."""
        return not self._broken

    def rebuild(self) -> None:
        """A new vLLM engine from the model folder, at version 0, without what was in flight. Collective, as the first.

        It refuses to generate before its next hand-over. When it does not start, that error is raised, and it refuses
        everything but another rebuild.
        """
        self._requests.abort()
        self._broken, self._unusable = True, "its new start was interrupted"
        if self.settings.sleep:
            self._sleep.release()
        self._llm, self._requests, self._sleep = None, self._no_requests(None), Sleep(None)  # frees the old one
        gc.collect()
        try:
            self._start()
        except Exception as error:
            self._unusable = f"it could not be started anew: {error}"
            raise
        self.weight_version, self._broken = 0, False
        self._unusable = "it was started anew and has not been given the current weights yet"


def _arguments(settings: EngineSettings, on_cpu: bool) -> dict[str, Any]:
    """The arguments of vLLM's LLM."""
    backend = "mp" if settings.tensor_parallel_size > 1 else None
    if dist.is_initialized() and dist.get_world_size() > 1:
        backend = "external_launcher"
    on_device: dict[str, Any] = {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_sleep_mode": settings.sleep,
        "max_num_batched_tokens": max(settings.max_model_len, 8192),
    }
    if on_cpu:
        on_device = {
            "kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30),
            "block_size": limits.CPU_BLOCK_SIZE,
            # seeded requests and chunked prefill together kill the CPU engine, so every prompt must fit into one batch
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_model_len, 4096),
        }
    return {
        "model": settings.model_path,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.enforce_eager,
        "load_format": settings.load_format,
        "enable_expert_parallel": settings.enable_expert_parallel,
        "data_parallel_size": settings.data_parallel_size,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "distributed_executor_backend": backend,
        "quantization": QUANTIZATIONS[settings.quantization],
        "kv_cache_dtype": settings.kv_cache_dtype,
        "seed": settings.seed,
        "logprobs_mode": "raw_logprobs" if settings.raw_log_probs else "processed_logprobs",
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        **on_device,
    }
