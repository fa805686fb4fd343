"""What docstrings and comments name in backticks is there: nobody speaks of a file that has moved or gone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_rlpr.config.keys import all_keys

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "megatron_rlpr"
FILES = [file for name in ("megatron_rlpr", "checkpoint_conversion", "tools") for file in (ROOT / name).rglob("*.py")]
FOREIGN = {"PyNcclCommunicator", "StatelessProcessGroup", "on", "parse_expr"}
"""Names of other libraries, which no code here uses."""
FILE_NAMES = r"\.(json|jsonl|md|parquet|pt|py|safetensors|sh|yaml)$"


def names(tree: ast.AST) -> Iterator[str]:
    """Every identifier that code defines or uses, and every string that could be one; without what imports rename."""
    renamed = {
        one.asname for node in ast.walk(tree) for one in getattr(node, "names", ()) if getattr(one, "asname", None)
    }
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg", "module", "value"):
            text = getattr(node, field, None)
            if isinstance(text, str) and re.fullmatch(r"[\w.]+", text) and text not in renamed:
                yield from text.split(".")


TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(FILES)}
KNOWN = {name for tree in TREES.values() for name in names(tree)} | FOREIGN
KNOWN |= {part for file in FILES for part in file.relative_to(ROOT).with_suffix("").parts}
KEYS = {*all_keys(), "section.name"}


def stands_for_something(name: str, own: set[str]) -> bool:
    """own: what the file itself imports, by the names it gives it."""
    first, *rest = name.split(".")
    if name in KEYS or (not rest and first in own):
        return True
    if (PACKAGE / first).is_dir() and rest:  # a room: the rest leads to a file, and to what is in it
        path = PACKAGE / first
        while rest and ((path / rest[0]).is_dir() or (path / f"{rest[0]}.py").is_file()):
            path = path / rest.pop(0)
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return not rest or rest[0] in set(names(TREES[file]))
    return all(part in KNOWN or part in own for part in (first, *rest))


def test_names_in_backticks_stand_for_something() -> None:
    stale = []
    for file, tree in TREES.items():
        imports = [
            one for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for one in node.names
        ]
        own = {one.asname or one.name for one in imports}
        named = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)[`(]", file.read_text(encoding="utf-8"))
        stale += [
            f"{name} in {file.relative_to(ROOT)}"
            for name in sorted(set(named))
            if not re.search(FILE_NAMES, name) and not stands_for_something(name, own)
        ]
    assert not stale, f"nothing has these names any more: {', '.join(stale)}"


def test_a_name_that_is_gone_is_noticed() -> None:
    for name in ("no_such_module", "weights.no_such_module", "weights.mapping.no_such_function", "rollout.RolloutPool"):
        assert not stands_for_something(name, set()), name
    for name in ("weights.mapping", "weights.transport", "weights.mapping.ParamMapping", "torch.cuda"):
        assert stands_for_something(name, set()), name
