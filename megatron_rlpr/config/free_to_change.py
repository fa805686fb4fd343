"""What a run may change when it goes on and still be the same run; everything else is part of what the run means."""

from __future__ import annotations

FREE_TO_CHANGE = frozenset(
    {
        *("weights", "tracking", "model.path", "model.megatron_checkpoint", "data.train_files", "data.val_files"),
        *("rollout.placement", "rollout.engines", "rollout.tensor_parallel_size", "rollout.cpus_per_engine"),
        *("rollout.engine_timeout_s", "rollout.ray_address", "rollout.max_num_seqs", "rollout.kv_cache_gb"),
        *("rollout.gpu_memory_utilization", "rollout.enforce_eager", "rollout.sleep", "actor.offload"),
        *("rollout.deal", "rollout.data_parallel_size", "rollout.enable_expert_parallel"),
        *("actor.tensor_model_parallel_size", "actor.pipeline_model_parallel_size", "actor.sequence_parallel"),
        *("actor.virtual_pipeline_model_parallel_size", "actor.pipeline_model_parallel_layout"),
        *("actor.context_parallel_size", "actor.expert_model_parallel_size", "actor.use_distributed_optimizer"),
        "actor.expert_tensor_parallel_size",
        *("actor.max_tokens_per_micro_batch", "actor.share_prefixes", "actor.head_chunk_rows"),
        *("actor.recompute_granularity", "actor.recompute_method", "actor.recompute_num_layers"),
        *("evaluation.prompts_per_piece", "evaluation.judge_cache", "evaluation.judge_parallel"),
        *("evaluation.judge_timeout_s", "evaluation.judge_time_limit_s", "evaluation.judge_max_tokens"),
        "reward.base_probability_cache",
        *("trainer.name", "trainer.runs_dir", "trainer.total_training_steps", "trainer.total_epochs", "trainer.resume"),
        *("trainer.allow_config_change", "trainer.save_freq", "trainer.keep_last", "trainer.export_hf"),
        *("trainer.test_freq", "trainer.val_before_train", "trainer.val_only", "trainer.threads_per_rank"),
        *("trainer.async_save", "trainer.collective_timeout_s"),
    }
)
"""Sections, and keys by section and name. Of model and data files the content is compared, not the path."""
