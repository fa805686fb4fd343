"""Trained on the same stored rollouts, every layout computes the same steps."""

from __future__ import annotations

import pyarrow as pa
import pytest
from training_runs import Workplace

from megatron_rlpr.rollout.store import SCHEMA, read_table

pytestmark = pytest.mark.e2e

TP2 = "actor.tensor_model_parallel_size=2"
PP2 = "actor.pipeline_model_parallel_size=2"
VPP2 = "actor.virtual_pipeline_model_parallel_size=2"
LAYOUTS = {
    "tp2": (2, [TP2]),
    "tp2_sp": (2, [TP2, "actor.sequence_parallel=true"]),
    "pp2_vpp2": (2, [PP2, VPP2]),
    "dp2": (2, []),
    "cp2": (2, ["actor.context_parallel_size=2"]),
    "tp2_pp2": (4, [TP2, PP2]),
}
STEPS = 5


def assert_same_steps(workplace: Workplace, name: str, undisturbed: str) -> None:
    expected = workplace.metrics(undisturbed)[:STEPS]
    for step, other in zip(workplace.metrics(name), expected, strict=True):
        for metric in (
            "actor/loss",
            "actor/grad_norm",
            "reward/mean",
            "filter/threshold",
            "filter/kept_fraction",
            "actor/lr",
        ):
            # A loss is a mean of numbers of order 1 that nearly cancel: 1e-6 is fp32's own rounding of them.
            assert step[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-6), (name, step["step"], metric)
        assert step["rollout/log_prob_gap_max"] < 1e-4, "the stored engine's log-probs are this actor's too"


@pytest.fixture(scope="module")
def trained(workplace: Workplace, undisturbed: str) -> None:
    """All layouts were trained on the rollouts of the undisturbed run."""
    replay = f"rollout.replay={workplace.run_folder(undisturbed) / 'rollouts'}"
    common = [replay, f"trainer.total_training_steps={STEPS}", "trainer.save_freq=-1"]
    own = {layout: f"reward.base_probability_cache={workplace.folder / 'base' / layout}" for layout in LAYOUTS}
    workplace.train_all({name: (ranks, [*common, own[name], *keys]) for name, (ranks, keys) in LAYOUTS.items()})


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_train_alike_on_the_same_rollouts(workplace: Workplace, undisturbed: str, layout: str) -> None:
    assert_same_steps(workplace, layout, undisturbed)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_store_the_rollouts_of_one_process(workplace: Workplace, undisturbed: str, layout: str) -> None:
    """Texts of several owners in one file; what the policy computes differs by fp32's own rounding."""
    computed = [field.name for field in SCHEMA if pa.types.is_floating(getattr(field.type, "value_type", field.type))]
    computed.remove("engine_log_probs")
    for step in range(1, STEPS + 1):
        ours, expected = (read_table(workplace.run_folder(name) / "rollouts", step) for name in (layout, undisturbed))
        assert ours.drop_columns(computed).equals(expected.drop_columns(computed))
        for name in ("reward", "reference_probability", "base_probability", "format"):
            assert ours[name].to_pylist() == pytest.approx(expected[name].to_pylist(), abs=1e-5), name


def test_a_replay_in_one_process_repeats_the_run_it_was_stored_by(
    workplace: Workplace, undisturbed: str, replayed: str
) -> None:
    for step, other in zip(workplace.metrics(replayed), workplace.metrics(undisturbed), strict=True):
        for metric in ("actor/loss", "actor/grad_norm", "reward/mean"):
            assert step[metric] == pytest.approx(other[metric], rel=1e-5, abs=1e-6)
