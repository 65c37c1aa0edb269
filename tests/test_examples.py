"""The examples in docstrings say what is true."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from tests.house import module_name, source_files


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
