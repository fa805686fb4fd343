"""Random keys with random values, most of them right, as a recipe and a command line set them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from documented_ranges import RANGES
from generated_cases import SEED
from odd_values import ODD_SCALARS, ODD_TEXTS, TYPED_TEXTS, WRONG, WRONG_ARGUMENTS, WRONG_RECIPES, valid_number
from tiny_run import as_arguments

from megatron_rlpr.config.keys import Key, all_keys

WRONG_SHARE = 0.3


@dataclass(frozen=True)
class Setting:
    """One key as it is written, and what that means (WRONG: nothing)."""

    key: Key
    text: str
    meaning: Any


def setting(key: Key, typed: bool, rng: random.Random) -> Setting:
    """A value for a key, most often a right one. typed: on the command line, else as YAML."""
    if key.choices:
        wrong = ["", "nothing like it", key.choices[0].upper() + "x", "1", "true"]
        choice = rng.choice(wrong if rng.random() < WRONG_SHARE else key.choices)
        meaning = choice if choice in key.choices else WRONG
        return Setting(key, choice if typed else yaml.safe_dump(choice, default_style='"').strip(), meaning)
    if key.annotation == list[str]:
        if rng.random() < WRONG_SHARE:
            return Setting(key, rng.choice(["[a, {b: c}]", "[a, [b]]", "[a, *b]", "[a"]), WRONG)
        files = (
            [["greedy", "sampling"], ["sampling"]] if key.name == "strategies" else [["train.parquet"], ["val.parquet"]]
        )
        files = rng.choice([*files, ["train.parquet", "val.parquet"], ["none.parquet"], [], ["model"]])
        return Setting(key, f"[{', '.join(files)}]", files)
    if key.annotation is str:
        wrong_text = rng.random() < WRONG_SHARE
        texts = [one for one in (TYPED_TEXTS if typed else ODD_TEXTS) if (one[1] is WRONG) == wrong_text]
        text, meaning = rng.choice(texts)
        return Setting(key, text, meaning)
    if rng.random() >= WRONG_SHARE:
        if key.annotation is bool:
            value: Any = rng.random() < 0.5
        else:
            found = RANGES[key.full_name]
            value = valid_number(key.annotation, found.low, found.high, rng)
        return Setting(key, str(value).lower(), value)
    text, meaning = rng.choice(ODD_SCALARS)
    if key.annotation is float and type(meaning) is int:
        meaning = float(meaning)
    if type(meaning) is not key.annotation:
        meaning = WRONG
    return Setting(key, text, meaning)


def case_of(number: int, folder: Path) -> tuple[list[str], int, list[Setting], bool]:
    """Command line, processes, what it sets, and whether its form alone is wrong."""
    rng = random.Random(f"{SEED}/{number}")
    world, arguments = rng.choice([1, 1, 2, 4, 8]), as_arguments({})
    kind = rng.random()
    if kind < 0.1:
        (recipe := folder / f"{number}.yaml").write_bytes(rng.choice(WRONG_RECIPES))
        return [*arguments, "--config", str(recipe)], world, [], True
    if kind < 0.2:
        return [*arguments, rng.choice(WRONG_ARGUMENTS)], world, [], True
    keys = rng.sample(list(all_keys().values()), rng.choice([1, 1, 2, 3, 5]))
    written = [setting(key, False, rng) for key in keys if rng.random() < 0.5]
    in_recipe = {one.key.full_name for one in written}
    typed = [setting(key, True, rng) for key in keys if key.full_name not in in_recipe]
    lines = [f"{one.key.section}:\n  {one.key.name}: {one.text}\n" for one in written]
    sections = [one.key.section for one in written]
    recipe = folder / f"{number}.yaml"
    text = "".join(lines).replace("\n", rng.choice(["\n", "\r\n"]))
    recipe.write_bytes((rng.choice(["", "\ufeff", "# a comment\n"]) + text).encode())
    fitting = [a for a in arguments if a.partition("=")[0] not in in_recipe]
    arguments = [*fitting, *(f"{one.key.full_name}={one.text}" for one in typed)]
    return (
        [*arguments, f"--config={recipe}"] if written else arguments,
        world,
        [*written, *typed],
        len(set(sections)) < len(sections),
    )
