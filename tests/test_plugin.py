"""Other packages come in through entry points: two that work, and one that takes nothing down."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "tests" / "plugin"

MINE = {
    "previous_token_heads": "mechinterp_plugin_example",
    "copying_heads": "mechinterp_plugin_longer",
}
"""Analysis -> the package it comes from."""

LIST_ALL = """
import json
from mechinterp_toolkit.registry import all_analyses
found, broken = all_analyses()
sources, reasons = {e.name: e.source for e in found.values()}, {b.name: b.reason for b in broken}
print(json.dumps({"found": sources, "broken": reasons}))
"""

SAVE_MODELS = """
import sys
from mechinterp_plugin_longer import copying_gpt2
for folder, strength in zip(sys.argv[1:], (1.0, 0.0)):
    copying_gpt2(strength, 0).save_pretrained(folder)
"""


def install(name: str, target: Path, scratch: Path) -> None:
    """Install a package of `plugin/` into `target`, from a copy so that building leaves nothing
    behind."""
    copy = shutil.copytree(PLUGINS / name, scratch / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, copy], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, to be put on PYTHONPATH: this environment stays as it is."""
    target = tmp_path_factory.mktemp("site")
    for name in ("example", "longer", "broken"):
        install(name, target, tmp_path_factory.mktemp("build"))
    return target


def python(*arguments: str, site: Path | None) -> subprocess.CompletedProcess[str]:
    """Run this Python with `site` on its path and return what it printed."""
    path = {} if site is None else {"PYTHONPATH": str(site)}
    environment = (
        {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        | path
        | {"NO_COLOR": "1", "COLUMNS": "200"}
    )
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def listed(installed: Path) -> dict[str, Any]:
    """What `all_analyses` gives with the packages installed."""
    run = python("-c", LIST_ALL, site=installed)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_an_analysis_of_another_package_is_listed_under_that_package(
    listed: dict[str, Any],
) -> None:
    assert {name: listed["found"][name] for name in MINE} == MINE


def test_a_package_that_does_not_import_is_listed_with_its_reason(listed: dict[str, Any]) -> None:
    assert listed["broken"] == {"outdated": "RuntimeError: written for another version"}


def test_other_packages_take_no_built_in_analysis_down(listed: dict[str, Any]) -> None:
    alone = json.loads(python("-c", LIST_ALL, site=None).stdout)
    assert alone["broken"] == {}
    assert set(listed["found"]) - set(alone["found"]) == set(MINE)
    assert set(alone["found"]) <= set(listed["found"])


def test_sub_commands_of_other_packages_are_listed_by_name_without_importing_them(
    installed: Path,
) -> None:
    run = python("-m", "mechinterp_toolkit", "--help", site=installed)
    assert run.returncode == 0, run.stderr
    assert "heads" in run.stdout
    assert "mechinterp-plugin-longer" in run.stdout
    assert "outdated" in run.stdout
    assert "written for another version" not in run.stdout + run.stderr


def test_a_sub_command_that_does_not_import_says_why_when_it_is_called(installed: Path) -> None:
    run = python("-m", "mechinterp_toolkit", "outdated", site=installed)
    assert run.returncode == 1
    assert "RuntimeError: written for another version" in run.stderr


def test_the_list_shows_the_analysis_with_its_package_and_the_broken_one_with_its_reason(
    installed: Path,
) -> None:
    run = python("-m", "mechinterp_toolkit", "list", site=installed)
    assert run.returncode == 0, run.stderr
    (line,) = (line for line in run.stdout.splitlines() if "previous_token_heads" in line)
    assert "Which heads attend to the token before?" in line
    assert "mechinterp_plugin_example" in line
    assert "RuntimeError: written for another version" in run.stderr


def test_the_sub_command_finds_the_planted_head_and_no_other(
    installed: Path, tmp_path: Path
) -> None:
    names = ("with", "without")
    made = python("-c", SAVE_MODELS, *(str(tmp_path / name) for name in names), site=installed)
    assert made.returncode == 0, made.stderr
    folders = [str(tmp_path / name) for name in names]
    run = python("-m", "mechinterp_toolkit", "heads", *folders, site=installed)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1.1", "none"]


def test_both_analyses_pass_the_common_suite(installed: Path) -> None:
    """The suite is run over them alone."""
    suite = ["-m", "pytest", "tests/test_suite.py", "-p", "no:cacheprovider", "-k"]
    run = python(*suite, " or ".join(MINE), site=installed)
    assert run.returncode == 0, run.stdout + run.stderr
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|skipped)", run.stdout)}
    assert counts["skipped"] == 1  # whether the short one finds what it never planted
    assert counts["passed"] >= 22


def test_a_report_shows_what_the_short_analysis_never_wrote(
    installed: Path, tmp_path: Path
) -> None:
    command = ["report", "toy/ordinal", "--analysis", "previous_token_heads", "--no-twin"]
    run = python("-m", "mechinterp_toolkit", *command, "-o", str(tmp_path), site=installed)
    assert run.returncode == 0, run.stderr
    (entry,) = json.loads((tmp_path / "report.json").read_text())["checkpoints"][0]["entries"]
    assert entry["represented"]["outcome"] == "not_found"
    assert entry["represented"]["smallest_effect"] == 0.5
    assert entry["answer"].startswith("At layer.head ")
    assert entry["effect"]["control"]["name"] == "a random earlier position, largest of all"
    page = (tmp_path / "report.html").read_text()
    assert "Score by layer and head" in page
    assert "The strongest score over its control" in page


def test_the_short_analysis_is_short() -> None:
    """Counted without docstrings, imports included."""
    tree = ast.parse((PLUGINS / "example" / "mechinterp_plugin_example.py").read_text())
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    strings = [
        node
        for node in statements
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    assert len(statements) - len(strings) <= 20
