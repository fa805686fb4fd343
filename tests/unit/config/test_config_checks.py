"""What cannot work is refused before anything starts, in one line that names the key and the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checked_runs import Run, refusal

from megatron_rlpr.config.checks import check

PP2 = ("actor.pipeline_model_parallel_size=2",)


@pytest.mark.parametrize(
    ("overrides", "world_size"),
    [
        ([], 1),
        ([*PP2, "actor.pipeline_model_parallel_layout=Et*2|t*4L"], 2),
        (
            [
                *PP2,
                "actor.virtual_pipeline_model_parallel_size=3",
                "actor.pipeline_model_parallel_layout=E,(|t)*3|,(t)*3|L",
                "actor.recompute_granularity=full",
            ],
            2,
        ),
        ([], 7),
        (["actor.tensor_model_parallel_size=2", "actor.sequence_parallel=true"], 2),
        (
            [
                "actor.tensor_model_parallel_size=4",
                "actor.pipeline_model_parallel_size=3",
                "rollout.tensor_parallel_size=4",
            ],
            24,
        ),
        (["actor.ppo_mini_batch_size=4", "data.train_batch_size=12"], 1),
        (["rollout.placement=ray", "rollout.engines=3", "rollout.cpus_per_engine=2", "rollout.engine_timeout_s=60"], 2),
        (["rollout.placement=ray", "weights.transport=shared_memory"], 1),
        (["rollout.placement=ray", "weights.delta=true"], 1),
        (["rollout.placement=ray", "rollout.tensor_parallel_size=2"], 1),
        (["algorithm.adv_estimator=reinforce_plus_plus", "rollout.n=1"], 1),
        (["algorithm.adv_estimator=prstd_vrstd", "reward.reward_manager=mix"], 1),
        (["data.template=llama_gemma", "reward.format_mode=R1_nothink"], 1),
        (["data.template=R1"], 1),
        (["data.template=R1_nothink", "reward.format_mode=R1_nothink"], 1),
        (["data.template=plain", "reward.format_mode=R1_nothink"], 1),
        (["data.val_files={here}/val.parquet", "trainer.val_only=true", "data.train_files="], 1),
        (["algorithm.kl_ctrl_type=adaptive", "algorithm.use_kl_loss=false", "algorithm.kl_loss_coef=0.001"], 1),
        (["filter.mode=fixed", "filter.accuracy_lower_bound=0.1", "filter.ema_start_step=20"], 1),
    ],
)
def test_what_can_work_is_accepted(run: Run, overrides: list[str], world_size: int) -> None:
    check(run(*overrides), world_size)


@pytest.mark.parametrize(
    ("overrides", "world_size", "named"),
    [
        (
            ["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=3"],
            8,
            ["8 processes", "2", "3", "multiple of 6"],
        ),
        (["actor.tensor_model_parallel_size=2"], 1, ["1 processes", "multiple of 2"]),
        (["actor.sequence_parallel=true"], 1, ["actor.sequence_parallel", "actor.tensor_model_parallel_size > 1"]),
        (["actor.context_parallel_size=2"], 3, ["3 processes", "actor.context_parallel_size=2", "multiple of 2"]),
        (
            ["actor.context_parallel_size=3", "actor.max_tokens_per_micro_batch=1024"],
            3,
            ["actor.max_tokens_per_micro_batch=1024", "at least 1026"],
        ),
        (["rollout.tensor_parallel_size=2"], 3, ["rollout.tensor_parallel_size=2", "3 processes"]),
        (["rollout.engines=2"], 1, ["rollout.engines=2 has no effect", "rollout.placement=ray"]),
        (["weights.transport=collective"], 1, ["weights.transport=collective has no effect", "rollout.placement=ray"]),
        (["weights.delta=true"], 1, ["weights.delta=true has no effect", "set rollout.placement=ray"]),
        (["rollout.ray_address=auto"], 1, ["rollout.ray_address=auto has no effect", "rollout.placement=ray"]),
        (
            ["rollout.pipeline=1", "algorithm.importance_cap=2"],
            1,
            ["rollout.pipeline=1 has no effect", "rollout.placement=ray"],
        ),
        (["rollout.placement=ray", "rollout.pipeline=1"], 1, ["rollout.pipeline=1", "algorithm.importance_cap"]),
        (
            [
                "rollout.placement=ray",
                "rollout.pipeline=1",
                "algorithm.importance_cap=2",
                "filter.cache_regenerate=false",
            ],
            1,
            ["rollout.pipeline=1", "filter.cache_regenerate=true"],
        ),
        *(
            ([left_out, "rollout.temperature=0.7", "algorithm.importance_cap=2"], 1, ["log-probs of all tokens"])
            for left_out in ("rollout.top_p=0.8", "rollout.top_k=20")
        ),
        (["algorithm.importance_cap=-1"], 1, ["algorithm.importance_cap=-1", "at least 0"]),
        (["rollout.placement=ray", "rollout.sleep=true"], 1, ["rollout.sleep=true", "GPUs of their own"]),
        (["rollout.placement=ray", "rollout.deal=in_advance"], 1, ["rollout.deal=in_advance", "has no effect"]),
        (
            ["rollout.data_parallel_size=2", "rollout.enable_expert_parallel=true"],
            3,
            ["rollout.data_parallel_size=2", "all 3 processes"],
        ),
        (["rollout.data_parallel_size=2"], 2, ["rollout.data_parallel_size=2", "rollout.enable_expert_parallel=true"]),
        (
            ["rollout.placement=ray", "rollout.data_parallel_size=2", "rollout.enable_expert_parallel=true"],
            2,
            ["rollout.data_parallel_size=2", "rollout.placement=colocated"],
        ),
        (["rollout.enable_expert_parallel=true"], 1, ["rollout.enable_expert_parallel=true", "one rank"]),
        (
            ["rollout.enable_expert_parallel=true", "rollout.tensor_parallel_size=2"],
            2,
            ["rollout.enable_expert_parallel=true", "no experts"],
        ),
        (["rollout.placement=ray", "rollout.engines=0"], 1, ["rollout.engines=0", "at least 1"]),
        (
            ["actor.tensor_model_parallel_size=3"],
            3,
            ["actor.tensor_model_parallel_size=3", "8 attention heads", "possible are 1, 2, 4, 8"],
        ),
        (
            ["actor.tensor_model_parallel_size=16"],
            16,
            ["actor.tensor_model_parallel_size=16", "8 attention heads", "possible are 1, 2, 4, 8"],
        ),
        (["rollout.tensor_parallel_size=3"], 3, ["rollout.tensor_parallel_size=3", "8 attention heads"]),
        (
            ["actor.pipeline_model_parallel_size=4"],
            4,
            ["actor.pipeline_model_parallel_size=4", "6 layers", "possible are 1, 2, 3, 6"],
        ),
        (
            ["actor.pipeline_model_parallel_size=4"],
            4,
            ["or unequal parts: actor.pipeline_model_parallel_layout=Et*1|t*2|t*2|t*1L"],
        ),
        (
            ["actor.pipeline_model_parallel_size=2", "actor.virtual_pipeline_model_parallel_size=2"],
            2,
            ["actor.virtual_pipeline_model_parallel_size=2", "3 layers of a pipeline stage", "possible are 1, 3"],
        ),
        (
            ["actor.virtual_pipeline_model_parallel_size=2"],
            1,
            ["actor.virtual_pipeline_model_parallel_size=2 has no effect", "actor.pipeline_model_parallel_size=1"],
        ),
        (["actor.pipeline_model_parallel_layout=Et*6L"], 1, ["layout='Et*6L' has no effect", "set that to 2 or more"]),
        ([*PP2, "actor.pipeline_model_parallel_layout=Et*3|t*2L"], 2, ["5 layers", "has 6", "e.g. to Et*3|t*3L"]),
        (
            [*PP2, "actor.pipeline_model_parallel_layout=E(t|)*6L"],
            2,
            ["makes 7 parts, not", "= 2 x 1: write 2"],
        ),
        (
            [*PP2, "actor.pipeline_model_parallel_layout=Et*3|t|t|tL"],
            2,
            ["makes 4 parts", "set actor.virtual_pipeline_model_parallel_size=2"],
        ),
        ([*PP2, "actor.pipeline_model_parallel_layout=t*6|EL"], 2, ["must be one E, then all t, then one L"]),
        ([*PP2, "actor.pipeline_model_parallel_layout=Et*6|m,L"], 2, ["holds 'm'", "t (layer)"]),
        ([*PP2, "actor.pipeline_model_parallel_layout=E(t*999)*999|L"], 2, ["more than 10000 layers"]),
        (
            [*PP2, "actor.virtual_pipeline_model_parallel_size=2", "actor.pipeline_model_parallel_layout=Et*5||t|L"],
            2,
            ["part 2 of", "is empty"],
        ),
        (
            [
                *PP2,
                "actor.pipeline_model_parallel_layout=Et*2|t*4L",
                "actor.recompute_granularity=full",
                "actor.recompute_num_layers=4",
            ],
            2,
            ["actor.recompute_num_layers=4", "2 or 4 layers"],
        ),
        (["actor.pipeline_model_parallel_size=12"], 12, ["actor.pipeline_model_parallel_size=12", "6 layers"]),
        (["actor.ppo_mini_batch_size=3"], 1, ["actor.ppo_mini_batch_size=3", "data.train_batch_size=8"]),
        (["actor.max_tokens_per_micro_batch=1023"], 1, ["actor.max_tokens_per_micro_batch=1023", "at least 1024"]),
        (
            ["data.val_files={here}/val.parquet", "actor.max_tokens_per_micro_batch=3583"],
            1,
            ["data.val_max_prompt_length", "at least 3584", "evaluation.score_reward=false"],
        ),
        (["data.max_prompt_length=3585"], 1, ["data.max_prompt_length=3585", "4097 tokens", "max_position_embeddings"]),
        (
            ["data.val_files={here}/val.parquet", "data.val_max_prompt_length=3600"],
            1,
            ["data.val_max_prompt_length=3600", "4112 tokens"],
        ),
        (["rollout.kv_cache_gb=0.001"], 1, ["rollout.kv_cache_gb"]),
        (["rollout.kv_cache_gb=10000"], 1, ["rollout.kv_cache_gb=10000", "this machine's memory"]),
        (
            ["rollout.placement=ray", "rollout.engines=100", "rollout.kv_cache_gb=100"],
            1,
            ["rollout.kv_cache_gb=100 for each of 100 engine processes"],
        ),
        (
            ["actor.recompute_granularity=full", "actor.recompute_num_layers=4"],
            1,
            ["actor.recompute_num_layers=4", "6 layers"],
        ),
        (
            ["reward.reward_manager=mix", "algorithm.adv_estimator=prstd_vrstd", "reward.format_only=true"],
            1,
            ["algorithm.adv_estimator=prstd_vrstd", "reward.format_only=false"],
        ),
        (["data.train_files=[./a.parquet,a.parquet]"], 1, ["data.train_files names a.parquet more than once"]),
        (["filter.std_filter_beta_per_data_source=a_is_nan"], 1, ["std_filter_beta_per_data_source", "'a_is_nan'"]),
        (["filter.std_filter_beta_per_data_source=a_is_1+a_is_2"], 1, ["'a_is_2' comes twice"]),
        (["reward.discrete_function_name=bin_1000000"], 1, ["reward.discrete_function_name", "from 1 to 999999"]),
        (["reward.shaping_function_name=threshold_\u0663"], 1, ["reward.shaping_function_name"]),
        (["rollout.n=1"], 1, ["rollout.n=1", "grpo", "rollout.n >= 2"]),
        (["rollout.temperature=0"], 1, ["rollout.temperature=0.0", "at least 0.01"]),
        (
            ["algorithm.adv_estimator=prnostd_vrstd"],
            1,
            ["algorithm.adv_estimator=prnostd_vrstd", "reward.reward_manager=mix"],
        ),
        (["algorithm.kl_ctrl_type=adaptive"], 1, ["algorithm.kl_ctrl_type=adaptive", "algorithm.use_kl_loss=false"]),
        (
            ["algorithm.kl_ctrl_type=adaptive", "algorithm.use_kl_loss=false"],
            1,
            ["algorithm.kl_ctrl_type=adaptive", "algorithm.kl_loss_coef > 0"],
        ),
        (["algorithm.clip_ratio_dual=0.5"], 1, ["algorithm.clip_ratio_dual=0.5", "greater than 1", "or 0"]),
        (["actor.min_lr=1e-7"], 1, ["actor.min_lr", "actor.lr_decay_style=constant"]),
        (["actor.min_lr=1", "actor.lr_decay_style=cosine"], 1, ["actor.min_lr=1.0", "actor.lr=1e-06"]),
        (["actor.fp8=hybrid"], 1, ["actor.fp8=hybrid", "CUDA"]),
        (["actor.exp_avg_dtype=bfloat16"], 1, ["actor.exp_avg_dtype", "actor.use_precision_aware_optimizer=true"]),
        (["actor.use_precision_aware_optimizer=true"], 1, ["set actor.use_distributed_optimizer=true"]),
        (
            ["actor.use_precision_aware_optimizer=true", "actor.use_distributed_optimizer=true"],
            1,
            ["actor.use_precision_aware_optimizer=true", "Transformer Engine's Adam"],
        ),
        (["actor.fp8=hybrid", "actor.dtype=float32"], 1, ["actor.fp8=hybrid", "actor.dtype=bfloat16"]),
        (["filter.ema_start_step=11"], 1, ["filter.ema_start_step=11", "filter.start_step=11"]),
        (
            ["filter.mode=fixed", "filter.accuracy_lower_bound=2", "filter.accuracy_upper_bound=1"],
            1,
            ["lower_bound=2.0", "upper_bound=1.0"],
        ),
        (["filter.accuracy_lower_bound=0.1"], 1, ["filter.accuracy_lower_bound=0.1", "filter.mode=EMA"]),
        (["filter.target=vr_acc"], 1, ["filter.target=vr_acc", "mix or naive"]),
        (["filter.target=scoreB", "reward.reward_manager=naive"], 1, ["filter.target=scoreB", "prob or mix"]),
        (["filter.std_filter_beta_per_data_source=maths"], 1, ["filter.std_filter_beta_per_data_source", "'maths'"]),
        (["reward.shaping_function_name=threshhold_0"], 1, ["reward.shaping_function_name", "threshhold_0"]),
        (["reward.discrete_function_name=bin"], 1, ["reward.discrete_function_name", "bin_K"]),
        (
            ["reward.gt_tokens_one_more_adjusted=true"],
            1,
            ["reward.gt_tokens_one_more_adjusted", "reward.gt_tokens_one_more=true"],
        ),
        (["data.template=llama_gemma"], 1, ["data.template=llama_gemma", "reward.format_mode=R1_nothink"]),
        (["data.template=R1", "reward.format_mode=R1_nothink"], 1, ["data.template=R1", "reward.format_mode=R1"]),
        (["data.template=R1_nothink"], 1, ["data.template=R1_nothink", "reward.format_mode=R1_nothink"]),
        (["data.template=plain"], 1, ["data.template=plain", "answer tags only", "reward.format_mode=R1_nothink"]),
        (["data.train_files="], 1, ["data.train_files is empty"]),
        (["data.train_files={here}/none.parquet"], 1, ["data.train_files", "none.parquet"]),
        (["data.train_files=[{here}/train.parquet,{here}/train.parquet]"], 1, ["data.train_files", "more than once"]),
        (["data.val_files=[{here}/val.parquet,{here}/none.parquet]"], 1, ["data.val_files", "none.parquet"]),
        (
            ["data.val_files=[{here}/val.parquet,{here}/other/val.parquet]"],
            1,
            ["data.val_files", "more than one file is called val", "rename"],
        ),
        (["rollout.replay={here}/none"], 1, ["rollout.replay", "no folder"]),
        (["rollout.replay={here}/model"], 1, ["rollout.replay", "no parquet"]),
        (["model.path="], 1, ["model.path is empty", "fetch_model"]),
        (["model.path={here}/none"], 1, ["model.path", "none", "fetch_model"]),
        (["model.path=Qwen/Qwen2.5-7B"], 1, ["model.path", "Qwen/Qwen2.5-7B", "fetch_model"]),
        (["model.path={here}/train.parquet"], 1, ["model.path", "is a file"]),
        (["model.path={here}"], 1, ["model.path", "no config.json"]),
        (["model.megatron_checkpoint={here}/none"], 1, ["model.megatron_checkpoint", "hf_to_megatron"]),
        (["trainer.name=a/b"], 1, ["trainer.name='a/b'", "separators"]),
        (["trainer.name=.."], 1, ["trainer.name='..'"]),
        (["trainer.name="], 1, ["trainer.name=''"]),
        (["trainer.runs_dir={here}/train.parquet"], 1, ["trainer.runs_dir", "not a folder"]),
        (["trainer.val_only=true"], 1, ["trainer.val_only", "data.val_files"]),
        (["trainer.test_freq=5"], 1, ["trainer.test_freq=5", "data.val_files"]),
        (["trainer.export_hf=true", "trainer.save_freq=-1"], 1, ["trainer.export_hf=true", "trainer.save_freq=-1"]),
        (["evaluation.strategies=[beam]"], 1, ["evaluation.strategies", "'greedy', 'sampling'"]),
        (["evaluation.strategies=[]"], 1, ["evaluation.strategies"]),
    ],
)
def test_what_cannot_work_is_refused(run: Run, overrides: list[str], world_size: int, named: list[str]) -> None:
    message = refusal(run(*overrides), world_size)
    assert [part for part in named if part not in message] == [], message


def test_replayed_rollouts_need_no_engine(run: Run, tmp_path: Path) -> None:
    stored_rollouts(tmp_path)
    check(run("rollout.replay={here}/rollouts", "rollout.kv_cache_gb=0.000001", "data.train_files="), 1)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["trainer.runs_dir={here}/..", "trainer.name={folder}"], ["rollout.replay", "own folder", "trainer.name"]),
        (["trainer.val_only=true", "data.val_files={here}/val.parquet"], ["trainer.val_only", "rollout.replay"]),
        (["algorithm.adv_estimator=remax"], ["algorithm.adv_estimator=remax", "greedy"]),
    ],
)
def test_replayed_rollouts_cannot_do_everything(
    run: Run, tmp_path: Path, overrides: list[str], named: list[str]
) -> None:
    stored_rollouts(tmp_path)
    overrides = [override.replace("{folder}", tmp_path.name) for override in overrides]
    message = refusal(run("rollout.replay={here}/rollouts", *overrides))
    assert [part for part in named if part not in message] == [], message


def stored_rollouts(folder: Path) -> None:
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "step_000001.parquet").write_bytes(b"")


def test_a_judge_that_cannot_be_asked_is_refused_when_something_is_validated(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USED_MODEL", "gpt-4o")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    check(run(), 1)
    assert "set OPENAI_API_KEY" in refusal(run("data.val_files={here}/val.parquet", "evaluation.score_reward=false"))


def test_a_judge_may_not_take_longer_than_other_ranks_wait_and_needs_a_folder_for_its_answers(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    validated = ["data.val_files={here}/val.parquet", "evaluation.score_reward=false"]
    slow = run(*validated, "evaluation.judge_time_limit_s=600", "trainer.collective_timeout_s=600")
    (tmp_path / "file").write_text("")
    no_folder = run(*validated, f"evaluation.judge_cache={tmp_path / 'file'}")
    for variable in ("USED_MODEL", "CLIENT_IP"):
        monkeypatch.delenv(variable, raising=False)
    check(slow, 2)
    check(no_folder, 1)
    monkeypatch.setenv("CLIENT_IP", "http://127.0.0.1:8001")
    check(slow, 1)
    assert "judge_time_limit_s=600 must be less than trainer.collective_timeout_s=600" in refusal(slow, 2)
    assert "evaluation.judge_cache=" in refusal(no_folder)


def test_the_place_of_shared_base_probabilities_must_be_of_use_and_a_folder(run: Run, tmp_path: Path) -> None:
    place = f"reward.base_probability_cache={tmp_path / 'base'}"
    check(run(place), 1)
    idle = refusal(run(place, "reward.base_probability=none"))
    assert "has no effect without reward.base_probability=initial" in idle
    (tmp_path / "base").write_text("")
    assert "is no folder that this run can write to: choose another" in refusal(run(place))


def test_keys_are_refused_without_waiting_for_torch() -> None:
    program = (
        "import sys; from megatron_rlpr.config import checks, loading\n"
        "try: checks.check(loading.load_config(['rollout.n=0']), 1)\n"
        "except Exception as error: print(error, 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("rollout.n=0 must be at least 1")
    assert printed.endswith("False\n")
