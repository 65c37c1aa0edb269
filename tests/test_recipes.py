"""The recipes run from their first cell to the last and print what is stored in them; there is one
per hook and analysis."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture(scope="module")
def run() -> Any:
    spec = importlib.util.spec_from_file_location("recipes_run", ROOT / "recipes" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernel(run: Any) -> Iterator[Any]:
    with run.kernel() as manager:
        yield manager


def differences(stored: str, seen: str) -> list[str]:
    """Return what differs; numbers may by 2 % or one unit of their last digit: versions of torch
    round differently.

    Lines may break elsewhere, since a number may be longer.
    """
    stored, seen = (" ".join(text.split()) for text in (stored, seen))
    if NUMBER.sub("#", stored) != NUMBER.sub("#", seen):
        return [f"{stored!r} became {seen!r}"]
    pairs = zip(NUMBER.findall(stored), NUMBER.findall(seen), strict=True)
    return [
        f"{a} became {b}"
        for a, b in pairs
        if abs(float(a) - float(b)) > max(0.02 * abs(float(a)), unit(a))
    ]


def unit(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 1.001 * 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0


def test_numbers_may_differ_in_the_last_digit_and_words_not_at_all() -> None:
    assert differences("effect 0.21 [0.20, 0.22]", "effect 0.22 [0.20, 0.22]") == []
    assert differences("13.9 of 24", "13.8 of 24") == []
    assert differences("0.21", "0.23") == ["0.21 became 0.23"]
    assert differences("24 items", "25 items") == ["24 became 25"]
    assert differences("one two\n3.0", "one\ntwo 3.0") == []
    assert differences("found", "not_found") == ["'found' became 'not_found'"]
    assert differences("1.0e-3", "1.2e-3") == ["1.0e-3 became 1.2e-3"]


@pytest.mark.parametrize("folder", ["hooks", "analyses"])
def test_every_hook_and_analysis_is_shown_in_a_recipe(folder: str) -> None:
    shown = "\n".join(path.read_text() for path in RECIPES)
    modules = [path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")]
    assert [
        name for name in modules if f"mechinterp_toolkit.{folder}.{name} import" not in shown
    ] == []


def test_the_index_of_recipes_names_each_of_them() -> None:
    index = re.findall(r"\]\((\w+)\.ipynb\)", (ROOT / "recipes" / "README.md").read_text())
    assert sorted(index) == [path.stem for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_prints_what_is_stored_in_it(path: Path, run: Any, kernel: Any) -> None:
    stored, seen = (
        run.printed(nbformat.read(path, as_version=4)),
        run.printed(run.execute(path, kernel)),
    )
    assert any(stored)
    assert [d for a, b in zip(stored, seen, strict=True) for d in differences(a, b)] == []
