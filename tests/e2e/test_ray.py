"""Trainings whose engines run in Ray: the same run as with engines in the training process, whatever dies on the
way."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from training_runs import STEPS, Workplace, records

pytestmark = pytest.mark.e2e

RAY = ["rollout.placement=ray", "rollout.engines=2"]
TENSOR_PARALLEL = ["rollout.placement=ray", "rollout.tensor_parallel_size=2"]
PIPELINE = [
    *TENSOR_PARALLEL,
    "rollout.pipeline=1",
    "algorithm.importance_cap=2",
    "data.val_files=[]",
    "trainer.save_freq=1",
]
IN_BF16 = [
    *TENSOR_PARALLEL,
    "actor.tensor_model_parallel_size=2",
    "actor.dtype=bfloat16",
    "actor.lr=1e-5",
    "data.val_files=[]",
    "trainer.save_freq=-1",
    "trainer.total_training_steps=4",
]


def engines() -> list[psutil.Process]:
    """The processes of engines that this test's trainings started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::EngineActo"):
                found.append(process)
    return found


def after_step(workplace: Workplace, name: str, step: int) -> Callable[[], bool]:
    metrics = workplace.run_folder(name) / "metrics.jsonl"
    return lambda: metrics.exists() and any(record["step"] >= step for record in records(metrics))


def rollouts(workplace: Workplace, name: str, step: int, column: str) -> list:
    file: Path = workplace.run_folder(name) / "rollouts" / f"step_{step:06d}.parquet"
    return pq.read_table(file)[column].to_pylist()


@pytest.fixture(scope="module")
def in_ray(workplace: Workplace) -> str:
    """The name of a run of six steps on two engines, one of which was killed with SIGKILL after the second step."""
    killed: list[int] = []

    def kill_one() -> bool:
        if not killed and after_step(workplace, "in_ray", 2)():
            for engine in engines()[:1]:  # none for the moment in which all are being replaced
                engine.kill()
                killed.append(engine.pid)
        return False

    status, output = workplace.start_warm("in_ray", 0, *RAY, kill_when=kill_one, ray_workers=True)
    assert status == 0, output[-4000:]
    assert killed
    assert "it is started again" in output
    return "in_ray"


def test_engines_in_ray_sample_what_an_engine_in_the_training_process_samples(
    workplace: Workplace, undisturbed: str, in_ray: str
) -> None:
    for step in range(1, STEPS + 1):
        for column in ("prompt_index", "seed", "response_tokens", "weight_versions", "kept"):
            assert rollouts(workplace, in_ray, step, column) == rollouts(workplace, undisturbed, step, column), (
                step,
                column,
            )


def test_the_metrics_count_the_engine_that_was_replaced(workplace: Workplace, in_ray: str) -> None:
    counts = [step["rollout/engines_replaced"] for step in workplace.metrics(in_ray)]
    assert (counts[0], counts[-1]) == (0, 1)
    assert counts == sorted(counts)


def test_the_run_is_the_same_although_an_engine_died(workplace: Workplace, undisturbed: str, in_ray: str) -> None:
    for step, other in zip(workplace.timeless(in_ray), workplace.timeless(undisturbed), strict=True):
        assert step.keys() == other.keys()
        for metric, value in step.items():
            if metric == "rollout/engines_replaced":
                continue
            # the gap of the log-probs is rounding, which differs with the shape of a batch
            assert value == pytest.approx(other[metric], rel=1e-4, abs=1e-4 if "gap" in metric else 1e-6), (
                step["step"],
                metric,
            )
    for mine, others in zip(workplace.validations(in_ray), workplace.validations(undisturbed), strict=True):
        for metric, value in mine.items():
            assert metric.startswith("time") or value == pytest.approx(others[metric], rel=1e-4, abs=1e-6), metric


def test_a_run_that_hands_over_what_changed_of_slices_has_the_digits_of_one_that_hands_over_everything(
    workplace: Workplace,
) -> None:
    """Two ranks that share a layer, and an engine of two workers."""
    ways = {
        "of_changes": (["weights.delta=true"], "hand-over of a slice of each tensor for each of an engine's 2 ranks"),
        "of_everything": (["weights.sharded=false"], "hand-over of whole tensors: weights.sharded=false"),
    }
    for name, (options, said) in ways.items():
        status, output = workplace.start_warm(name, 2, *IN_BF16, *options, ray_workers=True)
        assert status == 0, output[-4000:]
        assert said in output
    of_changes, of_everything = workplace.timeless("of_changes"), workplace.timeless("of_everything")
    received = [[step.pop("weights/bytes_received") for step in of] for of in (of_changes, of_everything)]
    assert all(3 * slices < whole for slices, whole in zip(*received, strict=True)), "only vocabularies travel"
    densities = [step.pop("weights/delta_density") for step in of_changes]
    nbytes = [step.pop("weights/bytes_sent") for step in of_changes]
    assert of_changes == of_everything
    for step in range(1, 5):
        for column in ("response_tokens", "engine_log_probs", "weight_versions"):
            assert rollouts(workplace, "of_changes", step, column) == rollouts(workplace, "of_everything", step, column)
    assert all(0 < density < 0.3 for density in densities), densities
    in_fp32 = sum(file.stat().st_size for file in (workplace.folder / "model").glob("*.safetensors"))
    assert max(nbytes) < in_fp32 / 2 / 2 / 4, nbytes


@pytest.fixture(scope="module")
def pipelined(workplace: Workplace) -> str:
    """A pipelined run on one engine of two workers: killed after the third step, with all it had started, and gone
    on."""
    workplace.start_warm(
        "pipelined", 0, *PIPELINE, kill_when=after_step(workplace, "pipelined", 3)
    )  # fails if anything lives on
    assert 0 < len(workplace.metrics("pipelined")) < STEPS
    workplace.train("pipelined", 0, *PIPELINE)
    return "pipelined"


def test_a_pipelined_step_samples_with_weights_that_are_one_hand_over_old_at_most(
    workplace: Workplace, pipelined: str
) -> None:
    versions = {
        step: {version for written in rollouts(workplace, pipelined, step, "weight_versions") for version in written}
        for step in range(1, STEPS + 1)
    }
    assert versions[1] == {0}
    assert workplace.metrics(pipelined)[0]["rollout/log_prob_gap_max"] < 1e-4, "the engine's weights are the actor's"
    assert all(found <= {step - 2, step - 1} for step, found in versions.items())
    assert any(step - 2 in found for step, found in versions.items()), "nothing was generated while the policy trained"


def test_a_checkpoint_forgets_the_prompts_that_are_under_way_and_the_resumed_run_draws_them_again(
    workplace: Workplace, pipelined: str
) -> None:
    """Every prompt the checkpointed sampler has drawn was answered up to that step; none is lost, none is ahead."""
    assert [step["step"] for step in workplace.metrics(pipelined)] == list(range(1, STEPS + 1))
    for step in (STEPS - 1, STEPS):
        state = workplace.run_folder(pipelined) / "checkpoints" / f"step_{step:06d}" / "run_state.json"
        sampler = json.loads(state.read_text())["prompts"]["sampler"]
        answered = {
            index for done in range(1, step + 1) for index in rollouts(workplace, pipelined, done, "prompt_index")
        }
        assert (sampler["epoch"], sampler["position"], sampler["deferred"]) == (0, len(answered), [])
