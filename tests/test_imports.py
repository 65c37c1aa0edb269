"""What the modules import of other packages, and what importing them must not do.

Who may import whom among our own modules is in `test_layout.py`.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.house import (
    CORE,
    FOLDERS,
    ROOT,
    Import,
    imports_of,
    module_name,
    source_files,
)

MODULES = [module_name(path) for path in source_files()]

SLOW_TO_IMPORT = ("datasets", "matplotlib", "pandas", "plotly", "sae_lens", "scipy", "transformers")
"""Packages that take a second or more. `mechinterp list` imports every module and none of them."""

NEED_TRANSFORMER_LENS = tuple(
    f"mechinterp_toolkit.toys.{name}" for name in ("group_mlp", "group_task", "group_transformer")
)
"""Their networks derive from TransformerLens' own class; all others import it inside functions."""

# --- imports of other packages --------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A sentence about imports, the test that decides it, and a file that breaks it."""

    sentence: str
    broken: Callable[[str, Import], bool]
    """Given a file's path from the root and one of its imports."""

    path: str
    source: str
    """A file at `path` with this text breaks the rule."""


RULES = (
    Rule(
        "only model.py imports transformer_lens",
        lambda path, i: path != "mechinterp_toolkit/model.py" and i.within("transformer_lens"),
        "hooks/steer.py",
        "def f():\n    from transformer_lens.hook_points import HookPoint",
    ),
    Rule(
        "transformer_lens is imported inside functions",
        lambda path, i: i.at_import and i.within("transformer_lens"),
        "mechinterp_toolkit/model.py",
        "try:\n    import transformer_lens\nexcept ImportError:\n    pass",
    ),
    Rule(
        "slow packages are imported inside functions",
        lambda path, i: i.at_import and i.within(*SLOW_TO_IMPORT),
        "analyses/circles.py",
        "import pandas as pd",
    ),
    Rule(
        "imports are absolute",
        lambda path, i: i.name.startswith("."),
        "hooks/patch.py",
        "from ..record import record",
    ),
    Rule(
        "the folders are imported under the package's name",
        lambda path, i: i.within("hooks", "analyses"),
        "analyses/helix.py",
        "from hooks import erase",
    ),
)


def broken_rules(path: str, source: str) -> list[str]:
    """Return one line per broken rule: file, line, import and the rule."""
    return [
        f"{path}:{i.line} imports {i.name}: {rule.sentence}"
        for i in imports_of(ast.parse(source))
        for rule in RULES
        if rule.broken(path, i)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.sentence.replace(" ", "-"))
def test_each_import_rule_catches_a_file_that_breaks_it(rule: Rule) -> None:
    broken = broken_rules(rule.path, rule.source)
    assert any(line.endswith(rule.sentence) for line in broken), broken


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mechinterp_toolkit/model.py", "def f():\n    import transformer_lens"),
        (
            "mechinterp_toolkit/model.py",
            "if TYPE_CHECKING:\n    from transformer_lens import HookedRootModule",
        ),
        (
            "mechinterp_toolkit/results.py",
            "if typing.TYPE_CHECKING:\n    from plotly.graph_objects import Figure",
        ),
        ("hooks/steer.py", "from mechinterp_toolkit.hooks.erase import Eraser"),
        ("analyses/circles.py", "def f():\n    import pandas"),
        ("analyses/circles.py", "import pandas_free_name\nimport hooks_of_others"),
    ],
)
def test_import_rules_let_allowed_imports_pass(path: str, source: str) -> None:
    assert broken_rules(path, source) == []


def test_an_import_in_the_else_branch_of_type_checking_counts() -> None:
    source = "if TYPE_CHECKING:\n    import scipy\nelse:\n    import pandas"
    assert broken_rules("analyses/helix.py", source) == [
        "analyses/helix.py:4 imports pandas: slow packages are imported inside functions"
    ]


def test_no_file_breaks_an_import_rule() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in source_files()}
    assert [line for path, text in files.items() for line in broken_rules(path, text)] == []


# --- what importing must not do -------------------------------------------------------------------

IMPORT_ALL = """
import importlib, json, os, random, sys
import numpy, torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(numpy.random.get_state()),
        "random generator": str(random.getstate()),
        "environment": dict(os.environ),
        "search path": list(sys.path),
        "working folder": os.getcwd(),
    }

changed, before = {}, state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = state()
    if different := [key for key in before if before[key] != after[key]]:
        changed[name] = different
    before = after
print(json.dumps({"changed": changed, "modules": sorted(sys.modules)}))
"""


def import_all(names: list[str], search_path: Path = ROOT) -> dict[str, Any]:
    """Import `names` in a fresh process; return what each changed, and all modules that loaded."""
    environment = os.environ | {"PYTHONPATH": str(search_path)}
    command = [sys.executable, "-c", IMPORT_ALL, *names]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def everything_imported() -> dict[str, Any]:
    """What importing every module did, but for those that bring TransformerLens with them."""
    return import_all([name for name in MODULES if name not in NEED_TRANSFORMER_LENS])


def test_importing_any_module_changes_nothing_global(everything_imported: dict[str, Any]) -> None:
    assert everything_imported["changed"] == {}


def test_importing_everything_loads_no_slow_package(everything_imported: dict[str, Any]) -> None:
    assert set(everything_imported["modules"]) & {"transformer_lens", *SLOW_TO_IMPORT} == set()


def test_the_folders_are_not_modules_of_their_own(everything_imported: dict[str, Any]) -> None:
    loaded = everything_imported["modules"]
    assert FOLDERS["hooks"] in loaded
    assert {name.split(".")[0] for name in loaded} & {"hooks", "analyses"} == set()


def test_an_import_that_changes_something_global_is_noticed(tmp_path: Path) -> None:
    lines = {
        "default dtype": "import torch; torch.set_default_dtype(torch.float64)",
        "threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
        "grad mode": "import torch; torch.set_grad_enabled(False)",
        "torch generator": "import torch; torch.manual_seed(0)",
        "numpy generator": "import numpy; numpy.random.seed(0)",
        "random generator": "import random; random.seed(0)",
        "environment": "import os; os.environ['SOMETHING'] = '1'",
        "search path": "import sys; sys.path.append('somewhere')",
    }
    names = {key: f"guilty_{i}" for i, key in enumerate(lines)}
    for key, line in lines.items():
        (tmp_path / f"{names[key]}.py").write_text(line)
    changed = import_all([*names.values()], search_path=tmp_path)["changed"]
    assert changed == {names[key]: [key] for key in lines}


def test_importing_the_package_itself_costs_no_torch() -> None:
    script = "import sys, mechinterp_toolkit; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode == 0


def test_every_public_name_of_the_package_resolves() -> None:
    package = importlib.import_module(CORE)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = package.no_such_name


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    modules = {path.stem for path in (ROOT / CORE).iterdir()} | {"hooks", "analyses"}
    assert modules & set(importlib.import_module(CORE).__all__) == set()
