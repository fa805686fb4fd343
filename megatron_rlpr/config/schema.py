"""Every configuration key of a run: name, type, default, meaning and range, one dataclass per section.

The dataclasses are the single source of truth: `config.loading` fills them from a YAML recipe and `key=value`
overrides, `--help` prints them, and the resolved values are written to the run folder. Keys carry the names that
Megatron-Core and the RLPR reference use, wherever those have one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_rlpr.config.actor_schema import ActorConfig
from megatron_rlpr.config.bounds import (
    ANY,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    BELOW_ONE,
    CPUS,
    NAME,
    PATH,
    POSITIVE,
    POSITIVE_SHARE,
    SECONDS,
    SEED,
    SHARE,
    STEP,
    STEPS,
    TEXT,
    TOKENS,
    Bounds,
)
from megatron_rlpr.config.key_field import key


@dataclass
class ModelConfig:
    """Which model is trained."""

    path: str = key("", "Hugging Face folder of the policy: config.json, tokenizer, safetensors", PATH)
    megatron_checkpoint: str = key(
        "", "converted checkpoint with the initial weights; empty: those of model.path", PATH
    )


@dataclass
class DataConfig:
    """Where prompts come from and which are used."""

    train_files: list[str] = key([], "parquet files with training prompts, concatenated in order", PATH)
    val_files: list[str] = key([], "parquet files with held-out prompts; each is one validation set", PATH)
    train_batch_size: int = key(8, "prompts whose groups make one training step", Bounds(1, 65536))
    max_prompt_length: int = key(
        512, "longest templated training prompt in tokens; longer rows are dropped and counted", TOKENS
    )
    val_max_prompt_length: int = key(
        3072, "longest templated validation prompt in tokens; a longer row is an error", TOKENS
    )
    max_response_length: int = key(512, "most tokens a response may have", TOKENS)
    shuffle: bool = key(True, "visit the prompts of an epoch in a random order made from data.seed")
    seed: int = key(1, "seed of the prompt order", SEED)
    template: Literal["as_is", "R1", "R1_nothink", "plain", "llama_gemma"] = key(
        "as_is",
        "how prompts ask for the answer: as in the files; in place of their system message R1's, R1's without think "
        "tags, or a plain instruction behind the last question; or as the reference asks Llama and Gemma; each but "
        "as_is needs its own reward.format_mode",
    )

    @property
    def longest_prompt(self) -> int:
        """Most tokens a prompt of the run may have."""
        return max(self.max_prompt_length, self.val_max_prompt_length if self.val_files else 0)


@dataclass
class RolloutConfig:
    """How responses are sampled."""

    n: int = key(8, "responses per prompt", Bounds(1, 4096))
    temperature: float = key(
        1.0, "sampling temperature; the actor divides its logits by the same number", Bounds(0.01, 100)
    )
    top_p: float = key(1.0, "nucleus sampling threshold in training", POSITIVE_SHARE)
    top_k: int = key(-1, "top-k sampling in training; -1: all tokens", Bounds(1, 1_000_000, also=(-1,)))
    dtype: Literal["auto", "float32", "bfloat16"] = key("auto", "precision of the engine; auto: actor.dtype")
    quantization: Literal["none", "fp8"] = key(
        "none", "fp8: the engine rounds the weights of every hand-over to FP8 and multiplies in it (GPU)"
    )
    kv_cache_dtype: Literal["auto", "fp8"] = key(
        "auto", "precision of the key/value cache; auto: the engine's (fp8: GPU)"
    )
    placement: Literal["colocated", "ray"] = key(
        "colocated", "where engines run: in the training processes, or in actors on any nodes of a Ray cluster"
    )
    engines: int = key(1, "engines of the pool (placement=ray)", Bounds(1, 1024))
    tensor_parallel_size: int = key(1, "ranks that share one engine (placement=ray: GPUs of an engine)", AT_LEAST_ONE)
    cpus_per_engine: int = key(1, "CPUs that Ray reserves for an engine, and its threads (placement=ray)", CPUS)
    engine_timeout_s: int = key(
        300,
        "seconds in which an engine computes nothing, or seconds of its processor's time in one call (a step, a "
        "hand-over), after which it is replaced as hanging; one that is merely slow is waited for (placement=ray)",
        SECONDS,
    )
    ray_address: str = key(
        "",
        "a running Ray cluster; empty: RAY_ADDRESS, else one of this machine that ends with the run (placement=ray)",
        TEXT,
    )
    pipeline: int = key(
        0, "0: on-policy; 1: generate the next step's first round while the policy trains (placement=ray)", Bounds(0, 1)
    )
    max_num_seqs: int = key(0, "sequences an engine decodes at once; 0: 512 on GPU, 64 on CPU", Bounds(0, 4096))
    deal: Literal["auto", "in_advance", "outstanding_tokens"] = key(
        "auto",
        "when colocated engines get their prompts: all in advance, or as they have room, the one with the fewest "
        "outstanding tokens first (Ray's always do); auto: the latter on GPU",
    )
    kv_cache_gb: float = key(
        1.0, "memory for one engine's key/value cache on CPU, in GiB", Bounds(0, 10_000, low_open=True)
    )
    gpu_memory_utilization: float = key(
        0.0, "share of the GPU's whole memory an engine may take; 0: 0.75 where it sleeps, else 0.4", SHARE
    )
    enforce_eager: Literal["auto", "true", "false"] = key(
        "auto", "run the engine without graph capture and compilation; auto: on CPU"
    )
    sleep: Literal["auto", "true", "false"] = key(
        "auto",
        "engines give their memory up from a step's last rollout to the next hand-over; auto: colocated ones on GPU "
        "(on CPU nothing is freed)",
    )
    data_parallel_size: int = key(
        1, "engines that share the experts of a mixture and step together (data-parallel attention)", AT_LEAST_ONE
    )
    enable_expert_parallel: bool = key(
        False, "whole experts on each rank of the engines that share them, in place of slices of every expert"
    )
    replay: str = key("", "folder of stored rollouts (runs/<name>/rollouts) to train on instead of generating", PATH)

    def sleeps(self, on_gpu: bool) -> bool:
        """Whether engines give their memory up between phases."""
        return self.sleep == "true" or (self.sleep == "auto" and on_gpu and self.placement == "colocated")

    def memory_share(self, on_gpu: bool) -> float:
        """Share of the GPU's whole memory that an engine may take."""
        return self.gpu_memory_utilization or (0.75 if self.sleeps(on_gpu) else 0.4)

    @property
    def truncated(self) -> bool:
        """Whether top_p or top_k leave tokens out."""
        return self.top_p < 1 or self.top_k != -1


@dataclass
class RewardConfig:
    """How a response is scored."""

    reward_manager: Literal["prob", "mix", "naive"] = key(
        "prob", "prob: reference probability; mix: with graded accuracy; naive: graded accuracy"
    )
    reward_type: Literal["pr", "pr+vr"] = key(
        "pr", "pr+vr: with reward_manager=prob, grade the answers of maths data sources instead of scoring them"
    )
    format_mode: Literal["R1", "R1_nothink"] = key("R1", "tags a response must have: think and answer, or answer only")
    splice: Literal["text", "tokens"] = key("text", "splice the reference answer into decoded text or into token ids")
    compute_score_name: Literal[
        "mean_exp_log_softmax", "mean_log_softmax", "exp_sum_log_softmax", "exp_mean_log_softmax"
    ] = key("mean_exp_log_softmax", "how the reference answer's token log-probs become one number")
    shaping_function_name: str = key(
        "threshold_0",
        "function applied to reference minus base probability, e.g. threshold_0, identity, one_minus",
        NAME,
    )
    discrete_function_name: str = key(
        "identity", "identity, or bin_K: round the shaped difference to multiples of 1/K", NAME
    )
    format_coefficient: float = key(
        0.1, "c in (1-c) * shaped + c * format; -1: shaped if the format is right, else -1", Bounds(0, 1, also=(-1,))
    )
    format_only: bool = key(False, "control run: the reward is the format score alone")
    repetition_penalty: bool = key(True, "add the repetition penalty to the reward")
    repetition_penalty_max_repetitions_limit: int = key(
        10, "occurrences of the same ten words from which a response is penalised", AT_LEAST_ONE
    )
    base_probability: Literal["initial", "current", "none"] = key(
        "initial",
        "probability of the answer with no reasoning, by: the initial policy (one pass before training), the current "
        "one, or 0",
    )
    base_probability_cache: str = key(
        "",
        "folder in which runs of the same model, data and precision find each other's initial base probabilities; "
        "empty: <trainer.runs_dir>/base_probabilities",
        PATH,
    )
    gt_tokens_one_more: bool = key(False, "also score the token after the reference answer")
    gt_tokens_one_more_adjusted: bool = key(False, "cap that token's probability at 0.5")
    allow_empty_leading_whitespaces: bool = key(False, "keep an empty white space after the answer tag, not one space")
    score_bf16_rounding: bool = key(False, "round the reference probability to bfloat16, as the reference does")
    pr_weight: float = key(0.5, "weight of the probability reward in reward_manager=mix", AT_LEAST_ZERO)
    vr_weight: float = key(1.0, "weight of the graded reward in reward_manager=mix", AT_LEAST_ZERO)


@dataclass
class FilterConfig:
    """Which groups are left out because their rewards barely differ."""

    enabled: bool = key(True, "drop groups whose target lies outside the bounds")
    mode: Literal["EMA", "fixed"] = key(
        "EMA", "EMA: lower bound is beta times a moving average of the group std; fixed: use the bounds as given"
    )
    target: Literal["final_reward_std", "scoreB-scoreA", "scoreB", "vr_acc"] = key(
        "final_reward_std", "what judges a group"
    )
    truncated: bool = key(False, "also drop groups with a response that was cut at data.max_response_length")
    ema_ratio: float = key(0.99, "weight of the old average", SHARE)
    ema_start_step: int = key(6, "first step whose stds are collected", STEP)
    start_step: int = key(11, "first step that filters", STEP)
    std_filter_beta: float = key(0.5, "threshold = beta * average std", AT_LEAST_ZERO)
    std_filter_beta_per_data_source: str = key(
        "", "multipliers of the target: 'source_is_value+source2_is_value2'", TEXT
    )
    accuracy_lower_bound: float = key(0.0, "fixed lower bound of the target", ANY)
    accuracy_upper_bound: float = key(1e6, "fixed upper bound of the target", ANY)
    cache_regenerate: bool = key(True, "keep surplus prompts for later steps, with new responses")
    max_rounds: int = key(10, "most generate-and-filter rounds of a step; it then trains on what it has", AT_LEAST_ONE)


@dataclass
class AlgorithmConfig:
    """How rewards become a loss."""

    adv_estimator: Literal[
        "grpo", "grpo_nostd", "prnostd_vrstd", "prstd_vrstd", "rloo", "reinforce_plus_plus", "remax"
    ] = key("grpo", "advantage estimator")
    clip_ratio_low: float = key(0.2, "lower clip of the probability ratio", BELOW_ONE)
    clip_ratio_high: float = key(0.27, "upper clip of the probability ratio", AT_LEAST_ZERO)
    clip_ratio_dual: float = key(
        0.0, "dual clip of negative advantages; 0: off", Bounds(1, 1_000_000, low_open=True, also=(0,))
    )
    importance_cap: float = key(0.0, "truncated importance sampling: largest exp(old - engine); 0: off", AT_LEAST_ZERO)
    loss_agg_mode: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"] = key(
        "token-mean", "how token losses become one number"
    )
    entropy_coeff: float = key(0.001, "weight of the entropy bonus", ANY)
    use_kl_loss: bool = key(True, "KL to the reference policy in the loss; false: in the reward")
    kl_loss_coef: float = key(0.0, "weight of the KL; 0: no reference policy is loaded", AT_LEAST_ZERO)
    kl_loss_type: Literal["kl", "abs", "mse", "low_var_kl"] = key("low_var_kl", "KL estimator")
    kl_ctrl_type: Literal["fixed", "adaptive"] = key("fixed", "controller of the coefficient of a KL in the reward")
    kl_target: float = key(0.1, "target of the adaptive controller", POSITIVE)
    kl_horizon: float = key(10000.0, "horizon of the adaptive controller", STEP)
    gamma: float = key(1.0, "discount of reinforce_plus_plus and remax", SHARE)


@dataclass
class WeightsConfig:
    """How updated weights reach the engines."""

    bucket_mb: int = key(256, "size of one bucket of the export stream, in MiB", Bounds(1, 16384))
    transport: Literal["auto", "shared_memory", "collective"] = key(
        "auto",
        "how weights reach engines in other processes (rollout.placement=ray): memory that this host's processes "
        "share, or broadcasts of a group of its own (gloo, NCCL); auto: the first on CPU when all engines are on the "
        "first rank's host, else the second",
    )
    sharded: Literal["auto", "true", "false"] = key(
        "auto",
        "every rank gets only the slices of the weights that its rank of an engine holds, not whole tensors, and with "
        "engines in Ray the first ranks send these; auto: where it is known how the engine cuts them "
        "(rollout.tensor_parallel_size above 1, not quantised)",
    )
    delta: bool = key(
        False,
        "send engines in other processes (rollout.placement=ray) only what changed of the weights since the last "
        "hand-over; the ranks that send keep together a copy of the whole model in host memory for it, and every "
        "worker of an engine a copy of what comes to it",
    )


@dataclass
class EvaluationConfig:
    """How held-out prompts are judged."""

    strategies: list[str] = key(["greedy"], "decoding strategies: greedy, sampling", NAME)
    n: int = key(
        0, "samples per prompt with sampling; 0: the number in the file name (*_AvgN), else 1", Bounds(0, 4096)
    )
    temperature: float = key(0.0, "sampling temperature; 0: rollout.temperature", Bounds(0.01, 100, also=(0,)))
    top_p: float = key(1.0, "nucleus sampling threshold", POSITIVE_SHARE)
    seed: int = key(42, "seed of the sampling", SEED)
    max_prompts: int = key(0, "use only the first prompts of each file; 0: all", AT_LEAST_ZERO)
    prompts_per_piece: int = key(
        256,
        "prompts that are answered, graded and stored together: a killed validation goes on after the last such",
        AT_LEAST_ONE,
    )
    score_reward: bool = key(True, "also compute the reference-probability reward of the validation responses")
    judge_cache: str = key(
        "",
        "folder of the judge's answers, which several runs may share; empty: judge_answers in the run's folder",
        PATH,
    )
    judge_parallel: int = key(16, "questions that the judge is asked at once", CPUS)
    judge_timeout_s: int = key(120, "seconds the judge may take for one answer, after which it is asked again", SECONDS)
    judge_time_limit_s: int = key(
        1500, "seconds for all judging of one validation; what is not judged by then keeps the rules' verdict", SECONDS
    )
    judge_max_tokens: int = key(12288, "longest answer of the judge in tokens", TOKENS)


@dataclass
class TrackingConfig:
    """Where numbers go."""

    wandb: bool = key(False, "log to Weights & Biases (also USE_WANDB=true); WANDB_MODE=offline works")
    wandb_project: str = key("megatron-rlpr", "Weights & Biases project", NAME)
    tensorboard: bool = key(True, "write TensorBoard event files to the run folder")
    save_rollouts: bool = key(True, "write every step's rollouts as parquet to the run folder")
    progress: bool = key(True, "show progress of each phase on the console")
    reasoning_gain: bool = key(
        True,
        "every step, score the reference answers with the reasoning left out (one short sequence a prompt) and track "
        "what the reasoning adds to their probability; changes nothing else",
    )
    collapse_gain_share: float = key(
        0.5, "warn when the reasoning gain falls below this share of the start; 0: when it turns negative", SHARE
    )
    collapse_length_share: float = key(
        0.5, "warn when reasoning becomes shorter than this share of the start; 0: never", SHARE
    )
    collapse_window: int = key(
        5, "values whose mean these warnings compare: the start is the mean of the first ones", Bounds(1, 1000)
    )


@dataclass
class TrainerConfig:
    """The run itself."""

    name: str = key("run", "name of the run; its folder is <runs_dir>/<name>", NAME)
    runs_dir: str = key("runs", "folder of all runs", PATH)
    total_training_steps: int = key(0, "steps to train; 0: total_epochs over the data", STEPS)
    total_epochs: int = key(1, "epochs to train when total_training_steps is 0", AT_LEAST_ONE)
    seed: int = key(1, "seed of the run: sampling seeds and initial random state", SEED)
    resume: Literal["auto", "never"] = key(
        "auto",
        "auto: go on from the newest good checkpoint of the run folder; damaged newer ones become damaged_step_*",
    )
    allow_config_change: bool = key(
        False, "go on from a checkpoint also when settings changed that decide what the run means (lr, batch size, ...)"
    )
    save_freq: int = key(
        20, "steps between checkpoints; 0: only at the end or when stopped; -1: none", Bounds(-1, 1_000_000_000)
    )
    async_save: bool = key(
        False,
        "write checkpoints while the run goes on, from a copy in host memory; not the last one, nor when stopped",
    )
    keep_last: int = key(2, "checkpoints kept; older ones are removed", STEP)
    export_hf: bool = key(False, "with each checkpoint, write a Hugging Face folder <runs_dir>/<name>/hf/step_*")
    test_freq: int = key(0, "steps between validations; 0: only before and after", STEPS)
    val_before_train: bool = key(True, "validate before the first step")
    val_only: bool = key(False, "validate and stop")
    threads_per_rank: int = key(
        0, "CPU threads of one rank; 0: cores divided by ranks on this machine", Bounds(0, 1024)
    )
    collective_timeout_s: int = key(1800, "seconds until a collective that a rank misses is an error", SECONDS)


@dataclass
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
