"""What the command line says: tables and JSON on standard output, the rest on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_STYLES = {
    "found": "bold blue",
    "undecided": "yellow",
    "failed": "bold red",
    "not_found": "",
    "not_applicable": "dim",
}


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table; off a terminal each row is one line, so that rows can be searched."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for row in rows:
        cells = [printable(str(row.get(column, ""))) for column in columns]
        table.add_row(*(Text(c.replace("_found", " found"), _STYLES.get(c, "")) for c in cells))
    console = Console()
    if not console.is_terminal:
        console = Console(width=400)
    console.print(table)


def print_json(document: Any) -> None:
    """Print one JSON document, keys sorted."""
    print(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False))


def say(text: str) -> None:
    """Print a line to standard error."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """Return text without control characters: no checkpoint's name may steer a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def count(number: int, singular: str, plural: str = "") -> str:
    """Return "1 model", "2 models"; give a `plural` that is not the singular with an s."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Return a time as seconds below a minute and a half, as minutes above."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print to standard error; standard output carries results only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Yield `progress(done, total, what)`: a bar on a terminal, one line per step elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    with stdout_to_stderr():
        if not console.is_terminal:
            yield lambda done, total, what: say(f"[{done}/{total}] {what}")
            return
        columns = (BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(
            *columns,
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, what: bar.update(
                task, completed=done, total=total, description=printable(what)
            )
