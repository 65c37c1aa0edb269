"""Who may import whom, what the wheel holds, and what importing a module must not do."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE, HOOKS, ANALYSES = (
    "mechinterp_toolkit",
    "mechinterp_toolkit.hooks",
    "mechinterp_toolkit.analyses",
)
FOLDERS = {"mechinterp_toolkit": CORE, "hooks": HOOKS, "analyses": ANALYSES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

SLOW_TO_IMPORT = ("datasets", "matplotlib", "pandas", "plotly", "sae_lens", "scipy", "transformers")
"""Packages that cost a second or more; `mechinterp list` imports every module and must not pay for
them."""

NEED_TRANSFORMER_LENS = tuple(
    f"mechinterp_toolkit.toys.{name}" for name in ("group_mlp", "group_task", "group_transformer")
)
"""Modules of a network whose class derives from TransformerLens' own; everything else imports them
inside functions."""

NOT_OURS_TO_NAME = ("/" + "work/", "/" + "tmp/", "/" + "root/")
"""Paths of one machine, which mean nothing on another."""


# --- who may import whom -------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One name that a file imports."""

    name: str
    """Absolute dotted name, e.g. "mechinterp_toolkit.hooks.erase"; with leading dots where it is
    relative."""

    at_import: bool
    """Whether it runs when the file is imported: outside functions and `if TYPE_CHECKING`."""

    line: int
    """Line in the file."""

    def within(self, *packages: str) -> bool:
        """Whether the name is one of `packages` or lies in one."""
        return any(self.name == p or self.name.startswith(p + ".") for p in packages)


@dataclass(frozen=True)
class Rule:
    """A sentence about imports, the test that decides it, and a file that breaks it."""

    sentence: str
    broken: Callable[[str, Import], bool]
    """Given a file's path from the root and one of its imports."""

    path: str
    source: str
    """A file at `path` with this text breaks the rule."""


def of_another_analysis(path: str, i: Import) -> bool:
    """Whether an analysis imports one that is neither itself nor, by its `_`, shared."""
    own = ".".join([ANALYSES, Path(path).parts[1].removesuffix(".py")])
    return i.within(ANALYSES) and not i.within(own) and not i.name.startswith(f"{ANALYSES}._")


RULES = (
    Rule(
        "the core imports neither hooks nor analyses",
        lambda path, i: path.startswith("mechinterp_toolkit/") and i.within(HOOKS, ANALYSES),
        "mechinterp_toolkit/record.py",
        "def f():\n    from mechinterp_toolkit import hooks",
    ),
    Rule(
        "hooks import no analysis",
        lambda path, i: path.startswith("hooks/") and i.within(ANALYSES),
        "hooks/erase.py",
        "import importlib\nimportlib.import_module('mechinterp_toolkit.analyses.circles')",
    ),
    Rule(
        "analyses never import each other",
        lambda path, i: path.startswith("analyses/") and of_another_analysis(path, i),
        "analyses/helix.py",
        "from mechinterp_toolkit.analyses.circles import fit_circle",
    ),
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


def imports_of(source: str) -> Iterator[Import]:
    """Yield what `source` imports; of `from a import b` as "a.b", and of `import_module("a")` with
    a literal as "a"."""
    yield from _walk(ast.parse(source), at_import=True)


def _walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, at_import, node.lineno) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        yield from (Import(f"{base}.{alias.name}", at_import, node.lineno) for alias in node.names)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__")
    ):
        names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
        yield from (Import(str(name), at_import, node.lineno) for name in names)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _walk(child, at_import=False)
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in children:
        yield from _walk(child, inside)


def broken_rules(path: str, source: str) -> list[str]:
    """Return one line per broken rule: file, line, import and the rule."""
    return [
        f"{path}:{i.line} imports {i.name}: {rule.sentence}"
        for i in imports_of(source)
        for rule in RULES
        if rule.broken(path, i)
    ]


def source_files(suffix: str = ".py") -> list[Path]:
    """Return the files of the three package folders, those Python writes by itself left out."""
    every = (p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")))
    return [
        p for p in every if p.is_file() and "__pycache__" not in p.parts and p.name.endswith(suffix)
    ]


def module_name(path: Path) -> str:
    """Return the name under which a file of the package folders is imported."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])


MODULES = [module_name(path) for path in source_files()]


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
        (
            "analyses/circles.py",
            "from mechinterp_toolkit.hooks.erase import Eraser\ndef f():\n    import pandas",
        ),
        (
            "analyses/circles.py",
            "import pandas_free_name\nfrom mechinterp_toolkit.analyses_helper import x",
        ),
    ],
)
def test_import_rules_let_allowed_imports_pass(path: str, source: str) -> None:
    assert broken_rules(path, source) == []


def test_an_import_in_the_else_branch_of_type_checking_counts() -> None:
    assert broken_rules(
        "analyses/helix.py", "if TYPE_CHECKING:\n    import scipy\nelse:\n    import pandas"
    ) == ["analyses/helix.py:4 imports pandas: slow packages are imported inside functions"]


def test_no_file_breaks_an_import_rule() -> None:
    broken = [
        line
        for p in source_files()
        for line in broken_rules(p.relative_to(ROOT).as_posix(), p.read_text())
    ]
    assert broken == []


# --- what the wheel holds ------------------------------------------------------------------------


def test_every_package_folder_is_listed_in_pyproject() -> None:
    folders = {path.parent for path in source_files()}
    assert {module_name(folder / "__init__.py") for folder in folders} == set(
        PROJECT["tool"]["setuptools"]["packages"]
    )
    assert [f for f in folders if not (f / "__init__.py").is_file()] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """File names in the wheel, built from a copy: a `build/` folder left in the checkout would leak
    old files into it."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", copy / "dist", copy], check=True, stdin=subprocess.DEVNULL)
    (built,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_exactly_the_files_of_the_package_folders(wheel: list[str]) -> None:
    folder_of = {folder: package.replace(".", "/") for folder, package in FOLDERS.items()}
    relative = (path.relative_to(ROOT).parts for path in source_files(suffix=""))
    expected = sorted("/".join([folder_of[folder], *rest]) for folder, *rest in relative)
    assert sorted(name for name in wheel if ".dist-info/" not in name) == expected


def test_the_wheel_is_typed_licensed_and_installs_one_top_level_package(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {CORE}
    assert f"{CORE}/py.typed" in wheel
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


# --- what importing must not do ------------------------------------------------------------------

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
    """Import `names` one by one in a fresh process; return what each changed, and the modules
    loaded in the end."""
    environment = os.environ | {"PYTHONPATH": str(search_path)}
    command = [sys.executable, "-c", IMPORT_ALL, *names]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def everything_imported() -> dict[str, Any]:
    """What importing every module did, but for those that need TransformerLens: what that changes
    is not ours."""
    return import_all([name for name in MODULES if name not in NEED_TRANSFORMER_LENS])


def test_importing_any_module_changes_nothing_global(everything_imported: dict[str, Any]) -> None:
    assert everything_imported["changed"] == {}


def test_importing_everything_loads_no_slow_package(everything_imported: dict[str, Any]) -> None:
    assert set(everything_imported["modules"]) & {"transformer_lens", *SLOW_TO_IMPORT} == set()


def test_the_folders_are_not_modules_of_their_own(everything_imported: dict[str, Any]) -> None:
    assert HOOKS in everything_imported["modules"]
    assert {name.split(".")[0] for name in everything_imported["modules"]} & {
        "hooks",
        "analyses",
    } == set()


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
    found = import_all([*names.values()], search_path=tmp_path)["changed"]
    assert found == {names[key]: [key] for key in lines}


def test_importing_the_package_itself_costs_no_torch() -> None:
    script = "import sys, mechinterp_toolkit; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.DEVNULL
        ).returncode
        == 0
    )


def test_every_public_name_of_the_package_resolves() -> None:
    package = importlib.import_module(CORE)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = package.no_such_name


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    modules = {path.stem for path in (ROOT / "mechinterp_toolkit").iterdir()} | {
        "hooks",
        "analyses",
    }
    assert modules & set(importlib.import_module("mechinterp_toolkit").__all__) == set()


# --- the settings of this very run ---------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODULES if name != CORE])
def test_shapes_are_checked_while_tests_run(name: str) -> None:
    """All but the package's own `__init__`, which bare `pytest` finds through the editable install,
    past the checks."""
    module = importlib.import_module(name)
    assert type(module.__loader__).__module__.startswith("jaxtyping"), (
        "run pytest with the options in pyproject.toml"
    )


def docstring_examples(path: Path) -> list[doctest.DocTest]:
    """Return the examples of a file, read from its text: `doctest` passes over functions that shape
    checks wrap."""
    module, tests = importlib.import_module(module_name(path)), []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ">>>" in (
            ast.get_docstring(node) or ""
        ):
            name, line = getattr(node, "name", "module"), getattr(node, "lineno", 1)
            parser = doctest.DocTestParser()
            tests.append(
                parser.get_doctest(
                    ast.get_docstring(node), vars(module).copy(), name, str(path), line
                )
            )
    return tests


@pytest.mark.parametrize(
    "path", [p for p in source_files() if ">>>" in p.read_text()], ids=module_name
)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    tests = docstring_examples(path)
    assert sum(len(test.examples) for test in tests) == path.read_text().count(">>> ")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert [test.name for test in tests if runner.run(test).failed] == []


@pytest.mark.parametrize("name", [f"{CORE}.model", f"{HOOKS}.erase", f"{ANALYSES}.circles"])
def test_a_warning_caused_by_our_own_code_is_an_error(name: str) -> None:
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=name)


def test_a_warning_caused_by_another_package_is_not_an_error() -> None:
    with pytest.warns(DeprecationWarning, match="old"):
        warnings.warn_explicit(
            "old", DeprecationWarning, "file.py", 1, module="transformer_lens.components"
        )


def test_no_file_names_a_path_of_one_machine() -> None:
    folders = [*FOLDERS, "tests", "recipes", "benchmarks", ".ci"]
    every = [p for folder in folders for p in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.*"))
    readable = {
        ".py",
        ".md",
        ".toml",
        ".txt",
        ".cff",
        ".json",
        ".ipynb",
        ".jinja",
        ".css",
        ".yml",
        ".yaml",
        "",
    }
    files = [
        p for p in every if p.is_file() and p.suffix in readable and "__pycache__" not in p.parts
    ]
    named = {
        str(p.relative_to(ROOT)): w
        for p in files
        for w in NOT_OURS_TO_NAME
        if w in p.read_text(errors="replace")
    }
    assert named == {}
