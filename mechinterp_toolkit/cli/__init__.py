"""The command `mechinterp`."""

from mechinterp_toolkit.cli.commands import main
