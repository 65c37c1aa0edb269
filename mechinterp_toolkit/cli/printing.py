"""What commands print of findings, and how they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from mechinterp_toolkit.cli.terminal import print_json, print_table, printable, say

if TYPE_CHECKING:
    from mechinterp_toolkit.report.document import (
        CheckpointAccount,
        EntryAccount,
        FindingAccount,
    )
    from mechinterp_toolkit.report.run import ReportSummary
    from mechinterp_toolkit.results import Verdict

COLUMNS = ("checkpoint", "finding", "represented", "used", "where", "effect", "twin")


def print_verdicts(verdicts: Mapping[str, Verdict]) -> None:
    """Print verdicts by what they judge."""
    rows = [
        {"": name, "verdict": verdict.outcome, "reason": verdict.reason}
        for name, verdict in verdicts.items()
    ]
    print_table(("", "verdict", "reason"), rows)


def print_finding(finding: FindingAccount) -> None:
    """Print what one analysis found."""
    print_verdicts({"represented": finding.represented, "used": finding.used})
    print()
    for line in (finding.answer, finding.causal_check, *finding.caveats):
        print(printable(line))
    print(f"\n{finding.folder}   (`mechinterp show {finding.folder}` writes its page)")


def print_report(summary: ReportSummary, as_json: bool) -> None:
    """Print what a report came to, and end the command."""
    failures, entries = list(summary.failures), list(summary.document.entries())
    if as_json:
        rows = summary.rows()
        print_json({"html": str(summary.html), "failures": failures, "findings": rows})
    else:
        shown = [(c, e) for c, e in entries if e.result.status != "not_applicable"]
        print_table(COLUMNS, [_cells(checkpoint, entry) for checkpoint, entry in shown])
        if len(shown) < len(entries):
            print(f"\nnot applicable: {len(entries) - len(shown)} (the page says why)")
        print(f"\n{summary.html}")
    exit_with(failures)


def exit_with(failures: Sequence[str]) -> None:
    """Name what failed; exit with 1 if anything did."""
    for failure in failures:
        say(f"failed: {failure}")
    if failures:
        raise typer.Exit(1)


def _cells(checkpoint: CheckpointAccount, entry: EntryAccount) -> dict[str, str]:
    from mechinterp_toolkit.report.document import Judgement, NotRun

    result, twin = entry.result, entry.twin
    cells = {"checkpoint": checkpoint.checkpoint, "finding": entry.analysis}
    if isinstance(result, NotRun):
        return cells | {"represented": result.status}
    on_twin = twin.represented.outcome if isinstance(twin, Judgement) else ""
    return cells | {
        "represented": result.represented.outcome,
        "used": result.used.outcome,
        "where": ", ".join(result.locations[:3]),
        "effect": result.effect.text if result.effect else "",
        "twin": on_twin or ("none" if twin else "not run"),
    }
