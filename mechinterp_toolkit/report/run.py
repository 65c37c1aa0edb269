"""Which findings hold for this checkpoint? Run the analyses, keep the results, write the page.

`run_report` loads each checkpoint, runs every chosen analysis on it and on its random-weight twin,
saves each result, and keeps the whole account in `report.json`. `render` reads that account and the
saved results and writes `report.html` and `report.md`; it needs no model, so `run_report` ends with
it and `mechinterp show` is nothing else.

One analysis that fails does not take the others down: its section says why.

What would fool it: a structure that the architecture alone brings about. The twin has the same
architecture and random weights, so a finding that its column repeats was not learned.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechinterp_toolkit.files import safe_names, write_text
from mechinterp_toolkit.model import HookedModel, ModelLike
from mechinterp_toolkit.registry import Analysis
from mechinterp_toolkit.report.document import (
    CheckpointAccount,
    Document,
    EntryAccount,
    FindingAccount,
    Judgement,
    NotRun,
    finding_account,
    full_name,
    judgement,
    read_document,
    write_document,
)
from mechinterp_toolkit.report.page import Pictures, render_html, render_markdown
from mechinterp_toolkit.report.settings import DEFAULTS, Settings
from mechinterp_toolkit.storage import load_result, save_result, tables_of

Progress = Callable[[int, int, str], None]
"""Called with the number of steps done, the number in all, and what is being done now."""


@dataclass(frozen=True)
class ReportSummary:
    """What a report came to, and where it lies."""

    out: Path
    """Folder of `report.html`, `report.md`, `report.json` and `results/`."""

    document: Document
    """The content of `report.json`."""

    undrawn: tuple[str, ...] = ()
    """Pictures that could not be drawn, as "checkpoint, analysis: reason"."""

    @property
    def html(self) -> Path:
        """The page."""
        return self.out / "report.html"

    @property
    def failures(self) -> tuple[str, ...]:
        """Everything that failed, as "checkpoint, analysis: reason"; empty where all ran."""
        checkpoints = self.document.checkpoints
        failed = [f"{c.checkpoint}: {c.reason}" for c in checkpoints if c.status == "failed"]
        for checkpoint, entry in self.document.entries():
            name = f"{checkpoint.checkpoint}, {entry.analysis}"
            on_twin = f"{name} on the random-weight twin"
            for what, result in ((name, entry.result), (on_twin, entry.twin)):
                if isinstance(result, NotRun) and result.status == "failed":
                    failed.append(f"{what}: {result.reason}")
        return (*failed, *self.undrawn)

    def rows(self) -> list[dict[str, Any]]:
        """Return a tidy row per checkpoint and analysis: status, verdicts, places, effect, twin."""
        return [_row(checkpoint, entry) for checkpoint, entry in self.document.entries()]


def run_report(
    checkpoints: Sequence[ModelLike],
    out: str | Path,
    settings: Settings = DEFAULTS,
    *,
    progress: Progress | None = None,
) -> ReportSummary:
    """Run analyses over checkpoints and write the page, its data and every result into `out`.

    Args:
        checkpoints: names, folders or models, as `load_model` takes them.
        settings: what is run, with which options and seed, and how checkpoints are loaded.
        progress: called before each step.

    Raises:
        RegistryError: an analysis or option does not exist.
        CheckpointError: no checkpoint could be loaded (one of several that fails is listed with its
            reason instead).
    """
    out, names, began = Path(out), [_name(spec) for spec in checkpoints], time.perf_counter()
    work = settings.work()
    steps_each = len(work) * (1 + settings.twin)
    steps = _Steps(len(checkpoints) * (1 + steps_each), progress)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    document = Document(settings.command(names), (), {"date": date})
    errors: list[Exception] = []
    for spec, name, folder in zip(checkpoints, names, safe_names(names), strict=True):
        finished = document.checkpoints
        steps.start(f"loading {name}")
        try:
            model = settings.loading.load(spec)
        except Exception as error:  # the other checkpoints still get their report
            errors.append(error)
            steps.skip(steps_each)
            account = CheckpointAccount.failed(name, error)
            document = replace(document, checkpoints=(*finished, account))
            continue
        bench = _Bench(model, settings, out, f"results/{folder}", steps)
        for account in bench.accounts(work):
            # kept after each analysis, so that an interrupted report can be shown
            document = replace(document, checkpoints=(*finished, account))
            document = _kept(document, out, began)
        del model, bench  # two models at once may not fit
    if errors and len(errors) == len(checkpoints):
        raise errors[0]
    _kept(document, out, began)
    steps.start("writing the page")
    return render(out)


def render(folder: str | Path) -> ReportSummary:
    """Write `report.html` and `report.md` from saved results; no model is loaded.

    Args:
        folder: what `run_report` wrote, or any folder with saved results below it.

    Raises:
        ResultError: there is nothing to show, or it was written by a newer version.
    """
    folder = Path(folder)
    document = read_document(folder)
    pictures, undrawn = {}, []
    for checkpoint, entry in document.entries():
        if isinstance(entry.result, FindingAccount):
            drawn = pictures[entry.result.folder] = _draw(folder / entry.result.folder)
            if drawn.reason:
                undrawn.append(f"{checkpoint.checkpoint}, {entry.analysis}: {drawn.reason}")
    write_text(folder / "report.html", render_html(document, pictures))
    write_text(folder / "report.md", render_markdown(document))
    return ReportSummary(folder, document, tuple(undrawn))


@dataclass
class _Steps:
    """Counts the steps of a report for whoever watches."""

    total: int
    progress: Progress | None
    done: int = -1  # the first step to start has none before it

    def start(self, what: str) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total, what)

    def skip(self, steps: int = 1) -> None:
        self.done += steps


@dataclass
class _Bench:
    """One checkpoint and what is to be run on it."""

    model: HookedModel
    settings: Settings
    out: Path
    folder: str
    steps: _Steps

    def accounts(
        self, work: Sequence[tuple[Analysis, dict[str, Any]]]
    ) -> Iterator[CheckpointAccount]:
        """Yield the account of the checkpoint after each analysis, one entry longer each time."""
        account = CheckpointAccount.of(self.model.provenance, self.folder)
        yield account
        for analysis, options in work:
            account = account.with_entry(self._entry(analysis, options))
            yield account

    def _entry(self, analysis: Analysis, options: dict[str, Any]) -> EntryAccount:
        step, twin = f"{self.model.provenance.checkpoint} · {analysis.name}", None
        self.steps.start(step)
        result = self._result(analysis, options)
        if self.settings.twin and result.status == "ran":
            self.steps.start(f"{step} · random weights")
            twin = self._on_twin(analysis, options)
        elif self.settings.twin:
            self.steps.skip()
        return EntryAccount.of(analysis, result, twin)

    def _result(self, analysis: Analysis, options: dict[str, Any]) -> FindingAccount | NotRun:
        try:
            if reason := analysis.reason_not(self.model):
                return NotRun("not_applicable", reason)
            finding = analysis.function(self.model, **options)
            folder = f"{self.folder}/{analysis.name}"
            tables = tables_of(save_result(finding, self.out / folder))
            return finding_account(finding, folder, tables)
        except Exception as error:  # one analysis must not take the report down, whatever it raises
            return NotRun.because(error)

    def _on_twin(self, analysis: Analysis, options: dict[str, Any]) -> Judgement | NotRun:
        if isinstance(self._twin, NotRun):
            return self._twin
        try:
            return judgement(analysis.function(self._twin, **options))
        except Exception as error:  # see _result
            return NotRun.because(error)

    @functools.cached_property
    def _twin(self) -> HookedModel | NotRun:
        try:
            return self.model.random_twin(self.settings.seed or 0)
        except Exception as error:  # a checkpoint without a twin is still worth a report
            return NotRun.because(error)


def _kept(document: Document, out: Path, began: float) -> Document:
    """Write the account so far, and return it with the time it took."""
    seconds = round(time.perf_counter() - began, 1)
    document = replace(document, times={**document.times, "seconds": seconds})
    write_document(out, document)
    return document


def _draw(folder: Path) -> Pictures:
    try:
        return Pictures(load_result(folder).figures())
    except Exception as error:  # a picture that fails must not take the page down
        return Pictures({}, f"{type(error).__name__}: {error}")


def _row(checkpoint: CheckpointAccount, entry: EntryAccount) -> dict[str, Any]:
    result, twin = entry.result, entry.twin
    row: dict[str, Any] = {"checkpoint": checkpoint.checkpoint, "analysis": entry.analysis}
    row["status"] = result.status
    if isinstance(result, NotRun):
        return row | {"reason": result.reason}
    effect = result.effect
    row |= {
        "represented": result.represented.outcome,
        "represented_p": result.represented.p,
        "used": result.used.outcome,
        "locations": list(result.locations),
        "effect": effect and effect.value,
        "low": effect and effect.low,
        "high": effect and effect.high,
        "unit": effect and effect.unit,
        "control_95": effect and effect.control and effect.control.percentiles["95"],
        "folder": result.folder,
    }
    if isinstance(twin, Judgement):
        return row | {
            "twin_represented": twin.represented.outcome,
            "twin_used": twin.used.outcome,
        }
    return row | {"twin_reason": twin and twin.reason}


def _name(spec: ModelLike) -> str:
    if isinstance(spec, HookedModel):
        return full_name(spec.provenance)
    return str(spec) if isinstance(spec, str | Path) else type(spec).__name__
