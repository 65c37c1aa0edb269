"""What a reader's terminal gets: tables in colour or in lines, no control characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mechinterp_toolkit.cli import terminal


def test_control_characters_of_a_checkpoint_do_not_reach_the_terminal(
    mechinterp: Callable[..., Any],
) -> None:
    done = mechinterp("report", "m\x1b[2J\x07")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert "\x07" not in done.out + done.err


def test_no_color_is_honoured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal.print_table(("verdict",), [{"verdict": "undecided"}])
    assert "\x1b[33m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.print_table(("verdict",), [{"verdict": "undecided"}])
    assert "\x1b[33m" not in capsys.readouterr().out


def test_tables_off_a_terminal_keep_each_row_on_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.print_table(("name", "question"), [{"name": "a", "question": "why " * 60}])
    assert len(capsys.readouterr().out.splitlines()) == 2
