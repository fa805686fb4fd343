"""A command line becomes a Config, or one line that says what to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.config.keys import Key, all_keys, sections
from megatron_rlpr.config.loading import load_config, resolved, save_resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.types import UserError

EXAMPLES = Path(__file__).parents[3] / "examples"


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def value(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def test_no_arguments_give_the_defaults() -> None:
    assert load_config([]) == Config()


def test_later_sources_win(tmp_path: Path) -> None:
    path = recipe(tmp_path, "actor:\n  lr: 1e-5\n  clip_grad: 2\nrollout:\n  n: 4\n")
    config = load_config(["actor.lr=2e-5", "--config", path, "actor.lr=3e-5"])
    assert (config.actor.lr, config.actor.clip_grad, config.rollout.n) == (3e-5, 2.0, 4)
    assert config.actor.adam_eps == Config().actor.adam_eps


def test_a_config_does_not_share_lists_with_the_next_one() -> None:
    load_config(["data.train_files=[a]"]).data.train_files.append("b")
    assert load_config([]).data.train_files == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("actor.lr=1e-6", 1e-6),
        ("actor.lr=1", 1.0),
        ("actor.lr='1e-6'", 1e-6),
        ("+trainer.val_only=True", True),
        ("++trainer.val_only=false", False),
        ("rollout.top_k=-1", -1),
        ("data.train_files=[a.parquet,b.parquet]", ["a.parquet", "b.parquet"]),
        ("data.train_files=['a b.parquet', \"c,d.parquet\"]", ["a b.parquet", "c,d.parquet"]),
        ('data.train_files="[1,2]"', ["1", "2"]),
        ("data.train_files=one.parquet", ["one.parquet"]),
        ("data.val_files=[]", []),
        ("data.val_files=", []),
        ("trainer.name=2025-01-31", "2025-01-31"),
        ("trainer.name=123", "123"),
        ("trainer.name='a b'", "a b"),
        ("model.path=models/a=b: c", "models/a=b: c"),
        ("rollout.replay=", ""),
        ("actor.fp8=", ""),
        ("recompute", None),
        ("actor.recompute_granularity=none", "none"),
        ("algorithm.adv_estimator=prstd_vrstd", "prstd_vrstd"),
    ],
)
def test_overrides_are_read_as_people_type_them(override: str, expected: object) -> None:
    name = override.lstrip("+").split("=")[0]
    if expected is None:
        assert "expected --config FILE.yaml or section.key=value" in refusal(override)
        return
    got = value(load_config([override]), name)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train_batch_size=eight", "data.train_batch_size: expected int, got 'eight' (from command line)"),
        ("data.train_batch_size=8.0", "data.train_batch_size: expected int, got '8.0' (from command line)"),
        ("data.train_batch_size=1e3", "data.train_batch_size: expected int, got '1e3' (from command line)"),
        ("data.train_batch_size=010", "data.train_batch_size: expected int, got '010' (from command line)"),
        ("data.train_batch_size=true", "data.train_batch_size: expected int, got True (from command line)"),
        ("data.train_batch_size=", "data.train_batch_size: expected int, got '' (from command line)"),
        ("data.train_batch_size=[8", "data.train_batch_size: expected int, got '[8' (from command line)"),
        ("data.shuffle=1", "data.shuffle: expected true or false, got 1 (from command line)"),
        ("data.shuffle=yes", "data.shuffle: expected true or false, got 'yes' (from command line)"),
        ("actor.lr=true", "actor.lr: expected float, got True (from command line)"),
        ("actor.lr=fast", "actor.lr: expected float, got 'fast' (from command line)"),
        ("actor.lr=nan", "actor.lr: expected float, got 'nan' (from command line)"),
        ("data.train_files=[a, [b]]", "data.train_files: expected list of str, got ['a', ['b']] (from command line)"),
        ("data.train_files=[a", "data.train_files on the command line: expected a list like [a, b], got '[a'"),
        (
            "actor.dtype=bf16",
            "actor.dtype: expected one of 'float32', 'bfloat16', got 'bf16' (from command line): did you mean "
            "'bfloat16'?",
        ),
    ],
)
def test_wrong_types_are_refused(override: str, message: str) -> None:
    assert refusal(override) == message


def test_a_wrong_type_in_a_recipe_names_the_file(tmp_path: Path) -> None:
    path = recipe(tmp_path, "trainer:\n  name: 12\n")
    assert refusal("--config", path) == f"trainer.name: expected str, got 12 (from {path}): put it in quotes"
    path = recipe(tmp_path, "trainer:\n  seed:\n")
    assert refusal("--config", path) == f"trainer.seed: expected int, got nothing (null) (from {path})"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("actor.tensor_parallel_size", "actor.tensor_model_parallel_size"),
        ("trainer.train_batch_size", "data.train_batch_size"),
        ("actor.rollout.temprature", "rollout.temperature"),
        ("actor_rollout_ref.actor.optim.lr", "actor.lr"),
        ("modle.path", "model.path"),
        ("data.filter_mode", "filter.mode"),
        ("reward_model.format_mode", "reward.format_mode"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_valid_one(tmp_path: Path, key: str, nearest: str) -> None:
    assert refusal(f"{key}=1").startswith(f"unknown key '{key}' on the command line: did you mean '{nearest}'")
    nested = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(key.split("."))).rstrip("\n") + " 1\n"
    path = recipe(tmp_path, nested)
    assert refusal("--config", path).startswith(f"unknown key '{key}' in {path}: did you mean '{nearest}'")


def test_a_key_like_no_other_lists_what_there_is() -> None:
    assert refusal("qwertz.xyzzy=1") == "unknown key 'qwertz.xyzzy' on the command line: the sections are " + ", ".join(
        sections()
    )
    look_alike = refusal("r\u043ellout.n=1")
    assert look_alike.endswith("did you mean 'rollout.n'? (keys are of plain Latin letters)")
    assert refusal("model.xyzzyqwertz=1").endswith("the keys of model are path, megatron_checkpoint")


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(sorted(all_keys())), position=st.integers(0, 60))
def test_a_key_with_one_letter_missing_is_found(key: str, position: int) -> None:
    broken = key[: position % len(key)] + key[position % len(key) + 1 :]
    if broken in all_keys() or len(key.split(".")[1]) < 4:
        return
    assert f"'{key}'" in refusal(f"{broken}=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("actor:\n  lr: 1\n  lr: 2\n", ", line 3: the key 'lr' is given twice"),
        ("actor: {lr: 1}\nactor: {lr: 2}\n", ", line 2: the key 'actor' is given twice"),
        ("actor:\n  lr: [1\nrollout: 2\n", ", line 3: expected ',' or ']', but got ':'"),
        ("actor:\n\tlr: 1\n", ", line 2: found character '\\t' that cannot start any token"),
        ("- actor\n", ": expected a mapping of sections"),
        ("", ": expected a mapping of sections"),
        ("actor: 3\n", ": section 'actor' must hold keys, got int '3'"),
        ("actor.lr: 1\n", ": 'actor.lr' cannot stand at the top: write lr indented below 'actor:'"),
        ("model:\n  path: !!python/object/apply:os.system ['true']\n", ", line 2: tags (!name) are not supported"),
    ],
)
def test_a_broken_recipe_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = recipe(tmp_path, text)
    got = refusal("--config", path)
    assert got.startswith(path)
    assert message in got


def test_a_section_without_keys_is_allowed(tmp_path: Path) -> None:
    assert load_config(["--config", recipe(tmp_path, "actor:\n  # lr: 1\nrollout: {n: 3}\n")]).rollout.n == 3


@pytest.mark.parametrize(
    "path",
    sorted((EXAMPLES / "quickstart").glob("*.yaml")) + sorted((EXAMPLES / "recipes").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_recipe_of_the_examples_is_understood(path: Path) -> None:
    assert load_config(["--config", str(path)]) != Config()


def test_recipe_numbers_follow_yaml_1_2(tmp_path: Path) -> None:
    config = load_config([f"--config={recipe(tmp_path, 'actor: {lr: 1e-6, adam_eps: 1.0e-8}')}"])
    assert (config.actor.lr, config.actor.adam_eps) == (1e-6, 1e-8)
    assert "expected true or false, got 'on'" in refusal("--config", recipe(tmp_path, "data: {shuffle: on}"))


def test_a_missing_or_unreadable_recipe_is_one_line(tmp_path: Path) -> None:
    assert refusal("--config", str(tmp_path / "none.yaml")).endswith("there is no such file")
    assert "cannot be read as text" in refusal("--config", str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "cannot be read as text" in refusal("--config", str(tmp_path / "binary.yaml"))
    assert refusal("--config").startswith("--config needs a file")
    assert refusal("--config", "--help").startswith("--config needs a file")
    assert "given twice" in refusal("--config", "a.yaml", "--config", "b.yaml")
    assert refusal("--resume").startswith("unknown option '--resume'")


def test_help_lists_every_key_within_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["actor.lr=nonsense", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    for name, key in all_keys().items():
        default = repr(key.default) if isinstance(key.default, str) else str(key.default)
        allowed = ", ".join(filter(None, [key.type_name, str(key.bounds or "")]))
        assert f"{name}={default} ({allowed}) {' '.join(key.meaning.split())}" in words
    assert "rollout.top_k=-1 (int, at least 1 and at most 1000000, or -1)" in words
    assert "trainer.name='run' (str, at most 128 bytes, no control characters)" in words
    assert max(len(line) for line in text.splitlines()) <= 100


def test_help_is_printed_by_the_first_rank_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        load_config(["--help"])
    assert capsys.readouterr().out == ""


def values_of(key: Key) -> st.SearchStrategy[Any]:
    """Any value a key can hold."""
    if key.choices:
        return st.sampled_from(key.choices)
    awkward = st.sampled_from(
        [
            "",
            "1e-6",
            "null",
            "~",
            "yes",
            "010",
            "a: b",
            "[x]",
            "2025-01-31",
            "'q'",
            "# c",
            "é ",
            "<<",
            "1_000",
            "0x1F",
            "1:30",
        ]
    )
    text = awkward | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    strategies: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-(10**9), 10**9),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: text,
        list[str]: st.lists(text, max_size=3),
    }
    return strategies[key.annotation]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_saved_configuration_reads_back_as_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = Config()
    for key in data.draw(st.lists(st.sampled_from(list(all_keys().values())), max_size=12)):
        key.set(config, data.draw(values_of(key), label=key.full_name))
    path = tmp_path_factory.mktemp("run") / "deeper" / "config.yaml"
    save_resolved(config, path)
    assert load_config(["--config", str(path)]) == config
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == resolved(config), (
        "a YAML 1.1 reader sees the same values"
    )
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


def test_saving_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_resolved(load_config(["rollout.n=2"]), path)
    save_resolved(load_config(["rollout.n=3"]), path)
    assert load_config(["--config", str(path)]).rollout.n == 3


def test_a_key_that_would_hold_a_secret_cannot_be_saved(tmp_path: Path) -> None:
    tracking = dataclasses.make_dataclass("Tracking", [("wandb_api_key", str, "x")])
    config = Config(tracking=tracking())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"tracking\.wandb_api_key"):
        save_resolved(config, tmp_path / "config.yaml")
    assert not (tmp_path / "config.yaml").exists()
