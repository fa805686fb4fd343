"""The table of other libraries' private names: true of what is installed, and complete for the code."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_name_faults import fault, resolve
from private_names import PRIVATE_NAMES, PrivateName

ROOT = Path(__file__).parents[3]
OURS = {"megatron_rlpr", "checkpoint_conversion", "tools"}
FILES = [file for room in sorted(OURS) for file in sorted((ROOT / room).rglob("*.py"))]


@pytest.fixture(scope="module")
def faults() -> dict[str, str | None]:
    script = Path(__file__).with_name("private_name_faults.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("entry", PRIVATE_NAMES, ids=lambda entry: entry.name)
def test_a_private_name_is_there_as_we_rely_on_it(entry: PrivateName, faults: dict[str, str | None]) -> None:
    found = faults[entry.name]
    if found and found.startswith("only with"):
        pytest.skip(found)
    where = f"megatron_rlpr.{entry.used_in} ({entry.why}), made for {entry.since}"
    assert found is None, f"{entry.name} {found}: look at {where}"


@pytest.mark.parametrize("entry", PRIVATE_NAMES, ids=lambda entry: entry.name)
def test_an_entry_names_the_module_that_uses_it(entry: PrivateName) -> None:
    assert re.search(rf"\b{entry.name.rpartition('.')[2]}\b", module_file(entry).read_text(encoding="utf-8"))


def test_every_private_name_in_the_code_is_in_the_table() -> None:
    missing = {
        f"{name} in {file.relative_to(ROOT)}"
        for file in FILES
        for name in foreign_private_names(file.read_text(encoding="utf-8"))
        if not any(listed(name, entry) for entry in PRIVATE_NAMES if module_file(entry) == file)
    }
    assert not missing, f"enter into tests/unit/system/private_names.py: {', '.join(sorted(missing))}"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from torch import _C", "torch._C"),
        ("import torch\ntorch._dynamo.reset()", "torch._dynamo"),
        ("def f():\n    import torch as t\n    t.cpu._init_amx()", "torch.cpu._init_amx"),
        ("import torch\ncuda = torch.cuda\ncuda.synchronize = print", "torch.cuda.synchronize"),
        ("import torch\nsetattr(torch.cuda, 'synchronize', print)", "torch.cuda.synchronize"),
        ("import torch\nhasattr(torch.cuda, '_lazy_init')", "torch.cuda._lazy_init"),
        ("patch('torch.cuda._lazy_init')", "torch.cuda._lazy_init"),
        ("def f(engine):\n    engine.core._finalizer.detach()", "._finalizer"),
        ("from torch import nn\nclass M(nn.Module):\n    def _apply(self): ...", "torch.nn.Module._apply"),
    ],
)
def test_a_new_private_name_is_found(source: str, name: str) -> None:
    assert name in set(foreign_private_names(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.cuda.synchronize()\ntorch.Tensor.__add__",
        "class A:\n    def __init__(self):\n        self._x = 1\n    def same(self, other):\n        return other._x",
        "from torch import nn\nclass M(nn.Module):\n    def _own(self): ...",
        "import os, sys\nos._exit(1)",
    ],
)
def test_public_and_own_names_are_not_reported(source: str) -> None:
    assert not set(foreign_private_names(source))


def test_a_name_that_is_gone_and_another_signature_are_faults() -> None:
    assert "is gone" in str(fault(PrivateName("", "torch.cuda._no_such_name", "")))
    assert "is gone" in str(fault(PrivateName("", "torch.no_such_module.name", "")))
    assert "takes (seed) instead of (device)" in str(fault(PrivateName("", "torch.cuda.manual_seed", "", "device")))


def module_file(entry: PrivateName) -> Path:
    room = ROOT if entry.used_in.startswith("tools.") else ROOT / "megatron_rlpr"
    return room / f"{entry.used_in.replace('.', '/')}.py"


def listed(found: str, entry: PrivateName) -> bool:
    """Whether the entry is about what was found in its module: the name, or its beginning; or its end, for ".name"."""
    return entry.name.endswith(found) if found.startswith(".") else f"{entry.name}.".startswith(f"{found}.")


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_private_names(source: str) -> Iterator[str]:
    """Dotted names of other libraries that the source uses although they are private, or assigns to.

    Of an object whose library is not to be seen: the attribute alone, with a dot in front, if it is not the file's own.
    """
    tree = ast.parse(source)
    meaning = dict(_imported(tree))

    def dotted(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{base}.{node.attr}" if (base := dotted(node.value)) else ""
        return meaning.get(node.id, "") if isinstance(node, ast.Name) else ""

    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and dotted(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            meaning.update((target.id, dotted(node.value)) for target in targets if isinstance(target, ast.Name))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
    }
    yield from (name for name in meaning.values() if any(map(private, name.split("."))))
    for node in nodes:
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name and (private(node.attr) or isinstance(node.ctx, ast.Store)):
                yield name
            elif private(node.attr) and not name and node.attr not in own and ast.unparse(node.value) not in STDLIB:
                yield f".{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = dotted(node.args[0])
            last = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if last and (private(last) or (name and ast.unparse(node.func) == "setattr")):
                yield f"{name}.{last}"
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]\w*(\.\w+)*\._[a-z]\w*", str(node.value)):
            yield str(node.value)
        elif isinstance(node, ast.ClassDef):
            bases = [name for base in node.bases if (name := dotted(base))]
            methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef) and private(one.name)]
            yield from (f"{b}.{method}" for b in bases for method in methods if hasattr(resolve(b), method))


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name and dotted meaning of everything imported from other libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [
                (a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0]) for a in node.names
            ]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [(a.asname or a.name, f"{node.module}.{a.name}") for a in node.names]
        else:
            continue
        yield from (pair for pair in found if pair[1].split(".")[0] not in OURS | STDLIB)


STDLIB = set(sys.stdlib_module_names)
