"""The examples in docstrings say what is true."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from tests.house import House, module_name, source_files, without_example

NEEDS_NONE: dict[str, str] = {}
"""Public function -> why it has no worked example."""


def docstring_examples(path: Path) -> list[doctest.DocTest]:
    """Return the examples of a file, read from its text.

    `doctest` by itself passes over functions that shape checks wrap.
    """
    module, parser = importlib.import_module(module_name(path)), doctest.DocTestParser()
    return [
        parser.get_doctest(text, vars(module).copy(), getattr(node, "name", "module"), str(path), 0)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if ">>>" in (text := ast.get_docstring(node) or "")
    ]


@pytest.mark.parametrize(
    "path", [p for p in source_files() if ">>>" in p.read_text()], ids=module_name
)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    tests = docstring_examples(path)
    assert sum(len(test.examples) for test in tests) == path.read_text().count(">>> ")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert [test.name for test in tests if runner.run(test).failed] == []


def test_every_public_function_shows_a_worked_example() -> None:
    assert sorted(without_example(House())) == sorted(NEEDS_NONE)


def test_a_public_function_without_an_example_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "analyses/helix").mkdir(parents=True)
    (tmp_path / "analyses/helix/clock.py").write_text(
        'def read():\n    """Read. Without one."""\n\n'
        'def show():\n    """Show.\n\n    >>> 1\n    1\n    """\n\n'
        "def _helper(): ...\n\nclass Clock:\n    def method(self): ...\n"
    )
    (tmp_path / "analyses/_shared.py").write_text("def of_others(): ...")
    assert without_example(House(tmp_path)) == ["analyses.helix.clock.read"]
