"""Other packages come in through entry points: one that works, and one that does not and takes
nothing down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PLUGINS = Path(__file__).resolve().parent / "plugin"

LIST_ALL = """
import json
from mechinterp_toolkit.registry import all_analyses
found, broken = all_analyses()
sources, reasons = {e.name: e.source for e in found.values()}, {b.name: b.reason for b in broken}
print(json.dumps({"found": sources, "broken": reasons}))
"""


def install(name: str, target: Path, scratch: Path) -> None:
    """Install a package of `plugin/` into `target`, from a copy so that building leaves nothing
    behind."""
    copy = shutil.copytree(PLUGINS / name, scratch / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, copy], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages, to be put on PYTHONPATH: this environment stays as it is."""
    target = tmp_path_factory.mktemp("site")
    for name in ("example", "broken"):
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
    )


@pytest.fixture(scope="module")
def listed(installed: Path) -> dict[str, Any]:
    """What `all_analyses` gives with both packages installed."""
    run = python("-c", LIST_ALL, site=installed)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_an_analysis_of_another_package_is_listed_under_that_package(
    listed: dict[str, Any],
) -> None:
    assert listed["found"]["previous_token_heads"] == "mechinterp_plugin_example"


def test_a_package_that_does_not_import_is_listed_with_its_reason(listed: dict[str, Any]) -> None:
    assert listed["broken"] == {"outdated": "RuntimeError: written for another version"}


def test_other_packages_take_no_built_in_analysis_down(listed: dict[str, Any]) -> None:
    alone = json.loads(python("-c", LIST_ALL, site=None).stdout)
    assert alone["broken"] == {}
    assert set(listed["found"]) - set(alone["found"]) == {"previous_token_heads"}
    assert set(alone["found"]) <= set(listed["found"])


def test_sub_commands_of_other_packages_are_listed_by_name_without_importing_them(
    installed: Path,
) -> None:
    run = python("-m", "mechinterp_toolkit", "--help", site=installed)
    assert run.returncode == 0, run.stderr
    assert "heads" in run.stdout
    assert "mechinterp-plugin-example" in run.stdout
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
    save_attention_model(tmp_path / "with", planted=True)
    save_attention_model(tmp_path / "without", planted=False)
    folders = [str(tmp_path / name) for name in ("with", "without")]
    run = python("-m", "mechinterp_toolkit", "heads", *folders, site=installed)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["L1H1", "none"]


def save_attention_model(folder: Path, planted: bool) -> None:
    """Write a GPT-2 whose heads all attend evenly, but for layer 1, head 1 if `planted`: that one
    looks one back."""
    from transformers import GPT2Config, GPT2LMHeadModel

    n_ctx = d_head = 16
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=2,
            n_head=2,
            n_embd=2 * d_head,
            n_positions=n_ctx,
            vocab_size=20,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for block in model.transformer.h:
            for parameter in (*block.attn.parameters(), *block.mlp.parameters()):
                parameter.zero_()
        model.transformer.wpe.weight.zero_()[:, :d_head] = torch.eye(n_ctx)
        model.transformer.wte.weight.zero_()
        # position p asks for e_p, and position p - 1 offers e_p: a match of about 30 after the
        # LayerNorm
        if planted:
            query, key = slice(d_head, 2 * d_head), slice(3 * d_head, 4 * d_head)
            weight = model.transformer.h[1].attn.c_attn.weight
            weight[:d_head, query] = 4 * torch.eye(d_head)
            weight[: d_head - 1, key] = torch.eye(d_head)[1:]
    model.save_pretrained(folder)
