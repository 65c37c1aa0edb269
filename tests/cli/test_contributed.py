"""Sub-commands of other packages: named at once, imported when called."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import typer

from mechinterp_toolkit.cli import commands as cli
from mechinterp_toolkit.cli import doctor


@pytest.fixture
def contributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three commands in the entry-point group: one works, one does not import, one bears a
    built-in's name."""
    module = types.ModuleType("contributed_commands")
    module.brush = lambda: print("brushed")
    module.nested = typer.Typer()
    module.nested.command()(lambda times: print("nested", times))
    monkeypatch.setitem(sys.modules, "contributed_commands", module)
    named = {"brush": "contributed_commands:brush", "nest": "contributed_commands:nested"}
    named |= {"gone": "package_that_is_not_there:main", "list": "package_that_is_not_there:main"}
    points = [
        importlib.metadata.EntryPoint(name, value, doctor.COMMANDS) for name, value in named.items()
    ]
    real = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **by: points if by == {"group": doctor.COMMANDS} else real(**by),
    )
    group = typer.main.get_command(cli.app)
    monkeypatch.setattr(cli, "app", functools.partial(group.main))


@pytest.mark.usefixtures("contributed")
def test_commands_of_other_packages_are_named_without_being_imported(
    mechinterp: Callable[..., Any],
) -> None:
    done = mechinterp("--help")
    assert done.code == 0
    for name in ("brush", "nest", "gone"):
        assert f" {name} " in done.out


@pytest.mark.usefixtures("contributed")
def test_a_command_of_another_package_is_imported_when_called(
    mechinterp: Callable[..., Any],
) -> None:
    assert mechinterp("brush").out == "brushed\n"
    assert mechinterp("nest", "3").out == "nested 3\n"


@pytest.mark.usefixtures("contributed")
def test_a_broken_command_says_why_when_called(mechinterp: Callable[..., Any]) -> None:
    done = mechinterp("gone")
    assert done.code == 1
    assert (
        "gone (package_that_is_not_there:main) could not be imported: ModuleNotFoundError"
        in done.err
    )


@pytest.mark.usefixtures("contributed")
def test_a_built_in_command_cannot_be_replaced(mechinterp: Callable[..., Any]) -> None:
    assert "How high?" in mechinterp("list").out
