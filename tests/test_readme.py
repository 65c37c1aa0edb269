"""What the README says is true: its commands, its links and its examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]


def test_the_readme_opens_with_the_two_commands_for_a_fresh_machine() -> None:
    assert README.splitlines()[2] == "```bash"
    assert BLOCKS[0][1].splitlines() == [
        'pip install -c constraints.txt -e ".[sae]" && mechinterp report',
        'pip install -c constraints.txt -e ".[sae,dev]" && pytest',
    ]


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "recipes/README.md"],
)
def test_links_lead_to_files_that_exist(name: str) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / name).read_text())
    assert [target for target in targets if not ((ROOT / name).parent / target).exists()] == []


def test_the_analysis_shown_is_that_of_the_example_package() -> None:
    example = (ROOT / "tests" / "plugin" / "example" / "mechinterp_plugin_example.py").read_text()
    (shown,) = (text for text in PYTHON if "@analysis(" in text)
    assert example.endswith(shown)
    assert shown.startswith("@dataclass(frozen=True)")


def test_an_analysis_says_what_the_readme_says_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = (text for text in PYTHON if "finding = " in text)
    exec(compile(text, "README.md", "exec"), {"__name__": "example"})
    first, answer, check = capsys.readouterr().out.splitlines()
    assert f"The first line printed is `{first}`" in README
    assert answer
    assert check


def test_an_edit_moves_the_logits_and_leaves_nothing_behind() -> None:
    (text,) = (text for text in PYTHON if "with applied(" in text)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(text, "README.md", "exec"), names)
    assert not torch.equal(names["before"], names["after"])
    assert torch.equal(names["before"], names["model"].logits(names["pairs"]))
