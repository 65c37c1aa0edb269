"""Sub-commands of other packages, listed by name and imported when called."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mechinterp_toolkit.cli.doctor import COMMANDS
from mechinterp_toolkit.cli.terminal import say
from mechinterp_toolkit.errors import ToolkitError


class Contributed(TyperCommand):
    """A sub-command of another package: named now, imported when called."""

    def __init__(self, point: importlib.metadata.EntryPoint) -> None:
        owner = point.dist.name if point.dist else point.value
        super().__init__(name=point.name, help=f"From the package {owner}.")
        self.point = point

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        try:
            command = _as_command(self.point.load())
        except Exception as error:  # whatever another package raises on import is its reason
            say(
                f"mechinterp: {self.point.name} ({self.point.value}) could not be imported:"
                f" {type(error).__name__}: {error}"
            )
            raise typer.Exit(1) from error
        return command.make_context(info_name, args, parent=parent, **extra)


class Commands(TyperGroup):
    """The built-in commands and those of other packages.

    A mistake of the user is one sentence and exit code 2.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for point in importlib.metadata.entry_points(group=COMMANDS):
            # a built-in name stays the built-in's
            self.commands.setdefault(point.name, Contributed(point))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ToolkitError as error:
            say(f"mechinterp: {error}")
            raise typer.Exit(2) from error


def _as_command(contributed: Any) -> Any:
    """Return a command from what another package registered: an app, a command or a function."""
    if hasattr(contributed, "make_context"):
        return contributed
    if isinstance(contributed, typer.Typer):
        return typer.main.get_command(contributed)
    if not callable(contributed):
        kind = type(contributed).__name__
        raise TypeError(f"expected a typer.Typer, a command or a function, not a {kind}")
    single = typer.Typer(add_completion=False)
    single.command()(contributed)
    return typer.main.get_command(single)
