"""More checkpoints than one report: one job per checkpoint, on any joblib backend, resumed where it
stopped.

Each checkpoint gets the folder and the page `run_report` gives it; a sweep adds one table over all
of them. Jobs are plain data, and models are loaded where they run. A checkpoint that was finished
with the same settings is not run again.

What would fool it: "from which checkpoint on is it there" is a question asked of every checkpoint,
so that some early one leaves its null by chance. `first_found` multiplies p-values by the length of
the series and asks for two neighbours.

Source: this project; joblib's backends (processes, Dask, Ray) are the caller's choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.files import safe_names, write_json
from mechinterp_toolkit.model import HookedModel, ModelLike, load_model
from mechinterp_toolkit.report.run import Options, Progress, choose_analyses, run_report


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep came to."""

    out: Path
    """Folder of `sweep.csv` and of one report per checkpoint."""

    rows: tuple[Mapping[str, Any], ...]
    """One row per checkpoint and analysis, in the order of the checkpoints: those of a report, and
    `represented_p`."""

    failures: tuple[str, ...]
    """What failed, as "checkpoint, analysis: reason"."""

    resumed: int
    """Checkpoints that had been finished before."""


def sweep(
    checkpoints: Sequence[str],
    out: str | Path,
    *,
    analyses: Sequence[str] | None = None,
    all_costs: bool = False,
    options: Options | None = None,
    seed: int | None = None,
    load: Callable[[ModelLike], HookedModel] = load_model,
    load_words: Sequence[str] = (),
    n_jobs: int = 1,
    backend: str | None = None,
    progress: Progress | None = None,
) -> SweepSummary:
    """Run analyses on every checkpoint, without random-weight twins, and write one table over all.

    Args:
        checkpoints: names as `load_model` takes them, in the order of a series where they are one.
        out: folder; what was finished there with the same settings is kept.
        analyses, all_costs, options, seed, load, load_words: as for `run_report`; `load` must be
            importable where jobs run.
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
    names = [entry.name for entry in choose_analyses(analyses, all_costs=all_costs)]
    settings = {
        "analyses": names,
        "options": dict(options or {}),
        "seed": seed,
        "load_words": list(load_words),
    }
    folder = Path(out)
    jobs = [
        (name, folder / short)
        for name, short in zip(checkpoints, safe_names(list(checkpoints)), strict=True)
    ]
    waiting = [job for job in jobs if not _is_done(job[1], settings)]
    run = delayed(partial(_one, settings=settings, load=load))
    finished = Parallel(n_jobs=n_jobs, backend=backend, return_as="generator_unordered")(
        run(*job) for job in waiting
    )
    for done, name in enumerate(finished, len(jobs) - len(waiting) + 1):
        if progress:
            progress(done, len(jobs), name)
    return _summed_up(folder, jobs, len(jobs) - len(waiting))


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


def _one(
    name: str,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    load: Callable[[ModelLike], HookedModel],
) -> str:
    """Run one checkpoint and note that it is done; what fails is in its rows."""
    try:
        summary = run_report(
            [name],
            folder,
            analyses=settings["analyses"],
            options=settings["options"],
            seed=settings["seed"],
            twin=False,
            load=load,
            load_words=settings["load_words"],
        )
        entries = summary.document["checkpoints"][0]["entries"]
        p = [{"represented_p": (entry.get("represented") or {}).get("p")} for entry in entries]
        rows = [row | one for row, one in zip(summary.rows(), p, strict=True)]
        failures = list(summary.failures)
    except Exception as error:  # the other checkpoints go on
        rows, failures = [], [f"{name}: {type(error).__name__}: {error}"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "sweep.json", {"settings": dict(settings), "rows": rows, "failures": failures}
    )
    return name


def _is_done(folder: Path, settings: Mapping[str, Any]) -> bool:
    file = folder / "sweep.json"
    if not file.is_file():
        return False
    noted = json.loads(file.read_text(encoding="utf-8"))
    return not noted["failures"] and noted["settings"] == json.loads(json.dumps(settings))


def _summed_up(out: Path, jobs: Sequence[tuple[str, Path]], resumed: int) -> SweepSummary:
    import pandas

    noted = [json.loads((folder / "sweep.json").read_text(encoding="utf-8")) for _, folder in jobs]
    rows = tuple(row for one in noted for row in one["rows"])
    pandas.DataFrame(rows).to_csv(out / "sweep.csv", index=False, lineterminator="\n")
    return SweepSummary(
        out, rows, tuple(failure for one in noted for failure in one["failures"]), resumed
    )
