"""More checkpoints than one report: one job each, on any joblib backend, resumed where it stopped.

Each checkpoint gets the folder and the page `run_report` gives it; a sweep adds one table over all
of them. Jobs are plain data, and models are loaded where they run. A checkpoint that was finished
with the same settings is not run again.

What would fool it: "from which checkpoint on is it there" is a question asked of every checkpoint,
so that some early one leaves its null by chance. `first_found` multiplies p-values by the length of
the series and asks for two neighbours.

Source: this project; joblib's backends (processes, Dask, Ray) are the caller's choice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.files import safe_names, write_json, write_text
from mechinterp_toolkit.report.run import Progress, run_report
from mechinterp_toolkit.report.settings import DEFAULTS, Settings


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep came to."""

    out: Path
    """Folder of `sweep.csv` and of one report per checkpoint."""

    rows: tuple[Mapping[str, Any], ...]
    """One row per checkpoint and analysis, as a report gives them, in the order of checkpoints."""

    failures: tuple[str, ...]
    """What failed, as "checkpoint, analysis: reason"."""

    resumed: int
    """Checkpoints that had been finished before."""


def sweep(
    checkpoints: Sequence[str],
    out: str | Path,
    settings: Settings = DEFAULTS,
    *,
    n_jobs: int = 1,
    backend: str | None = None,
    progress: Progress | None = None,
) -> SweepSummary:
    """Run analyses on every checkpoint, without random-weight twins, and write one table over all.

    Args:
        checkpoints: names as `load_model` takes them, in the order of a series where they are one.
        out: folder; what was finished there with the same settings is kept.
        settings: as for `run_report`, but for the twins.
        n_jobs: checkpoints at a time, as joblib counts them (-1: all processors).
        backend: name of a joblib backend, "loky" (processes) by default; "dask" or "ray" once
            registered with joblib.
        progress: called after each checkpoint.

    Raises:
        ToolkitError: no checkpoint, or one named twice.
        RegistryError: an analysis or an option does not exist.
    """
    from joblib import Parallel, delayed

    if not checkpoints or len(set(checkpoints)) < len(checkpoints):
        raise ToolkitError(f"got checkpoints {list(checkpoints)}; expected one or more, each once.")
    names = [analysis.name for analysis, _ in settings.work()]
    settings = dataclasses.replace(settings, analyses=names, twin=False)
    folders = [Path(out) / name for name in safe_names(checkpoints)]
    jobs = list(zip(checkpoints, folders, strict=True))
    waiting = [job for job in jobs if not _is_done(job[1], settings)]
    resumed = len(jobs) - len(waiting)
    finished = Parallel(n_jobs=n_jobs, backend=backend, return_as="generator_unordered")(
        delayed(_run)(*job, settings) for job in waiting
    )
    for done, name in enumerate(finished, resumed + 1):
        if progress:
            progress(done, len(jobs), name)
    return _summed_up(Path(out), folders, resumed)


def first_found(
    rows: Sequence[Mapping[str, Any]], analysis: str, *, alpha: float = 0.05
) -> str | None:
    """Return the first checkpoint of a series from which on a finding is there, or None.

    It and the next one have p-values at most `alpha` after multiplication by the number of
    checkpoints.

    Args:
        rows: of a `SweepSummary`, in the order of the series.
        analysis: which finding.

    Raises:
        ToolkitError: no row is about `analysis`.
    """
    series = [row for row in rows if row["analysis"] == analysis]
    if not series:
        raise ToolkitError(
            f"no row is about {analysis!r}; there are"
            f" {sorted({str(row['analysis']) for row in rows})}."
        )
    there = [
        row.get("represented_p") is not None and row["represented_p"] * len(series) <= alpha
        for row in series
    ]
    for row, here, following in zip(series, there, there[1:], strict=False):
        if here and following:
            return str(row["checkpoint"])
    return None


@dataclass(frozen=True)
class _Done:
    """What is noted of a finished checkpoint, in `sweep.json`."""

    settings: Mapping[str, Any]
    """The settings it ran with, as JSON has them."""

    rows: Sequence[Mapping[str, Any]]
    """Those of its report."""

    failures: Sequence[str]
    """Those of its report, or why there is none."""


def _run(name: str, folder: Path, settings: Settings) -> str:
    """Run one checkpoint and note that it is done; what fails is in its rows."""
    try:
        summary = run_report([name], folder, settings)
        rows, failures = summary.rows(), list(summary.failures)
    except Exception as error:  # the other checkpoints go on
        rows, failures = [], [f"{name}: {type(error).__name__}: {error}"]
    folder.mkdir(parents=True, exist_ok=True)
    done = _Done(_plain(settings), rows, failures)
    write_json(folder / "sweep.json", dataclasses.asdict(done))
    return name


def _is_done(folder: Path, settings: Settings) -> bool:
    if not (folder / "sweep.json").is_file():
        return False
    done = _noted(folder)
    return not done.failures and done.settings == _plain(settings)


def _noted(folder: Path) -> _Done:
    return _Done(**json.loads((folder / "sweep.json").read_text(encoding="utf-8")))


def _plain(settings: Settings) -> dict[str, Any]:
    """Return settings as they come back from JSON, which knows no tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return plain


def _summed_up(out: Path, folders: Sequence[Path], resumed: int) -> SweepSummary:
    import pandas

    noted = [_noted(folder) for folder in folders]
    rows = tuple(row for done in noted for row in done.rows)
    table = pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    write_text(out / "sweep.csv", table)
    failures = tuple(failure for done in noted for failure in done.failures)
    return SweepSummary(out, rows, failures, resumed)
