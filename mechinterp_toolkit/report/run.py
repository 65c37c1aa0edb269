"""Which findings hold for this checkpoint? Run the analyses, keep the results, write the page.

`run_report` loads each checkpoint, runs every chosen analysis on it and on its random-weight twin,
saves each result, and keeps the whole account in `report.json`. `render` reads that account and the
saved results and writes `report.html` and `report.md`; it needs no model, so `run_report` ends with
it and `mechinterp show` is nothing else.

One analysis that fails does not take the others down: its section says why. Everything that differs
between two runs of the same seed on the same machine (dates, wall time, memory) stands under a key
called "times".

What would fool it: a structure that the architecture alone brings about. The twin has the same
architecture and random weights, so a finding that its column repeats was not learned.
"""

from __future__ import annotations

import json
import shlex
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechinterp_toolkit.errors import NotApplicable, RegistryError, ResultError, nearest
from mechinterp_toolkit.files import safe_names, write_json, write_text
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.model import HookedModel, ModelLike, load_model
from mechinterp_toolkit.registry import Analysis, all_analyses, get_analysis
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.storage import load_result, save_result, tables_of

SCHEMA_VERSION = 1

Progress = Callable[[int, int, str], None]
"""Called with the number of steps done, the number in all, and what is being done now."""

Options = Mapping[str, Mapping[str, Any]]
"""Analysis -> option -> value; what is not named keeps its default."""

TYPICAL_SECONDS: Mapping[str, float] = {"quick": 1.0, "slow": 300.0}
"""Seconds an analysis of each cost takes on a bundled toy. "quick" was measured: all bundled toys,
analyses that do not apply included, came to 0.7 s each on two CPU cores. "slow" is an upper bound,
since no built-in analysis is."""


@dataclass(frozen=True)
class ReportSummary:
    """What a report came to, and where it lies."""

    out: Path
    """Folder of `report.html`, `report.md`, `report.json` and `results/`."""

    document: Mapping[str, Any]
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
        failed = [
            f"{c['checkpoint']}: {c['reason']}"
            for c in self.document["checkpoints"]
            if c["status"] == "failed"
        ]
        for checkpoint, entry in _entries(self.document):
            name = f"{checkpoint['checkpoint']}, {entry['analysis']}"
            if entry["status"] == "failed":
                failed.append(f"{name}: {entry['reason']}")
            if (entry.get("twin") or {}).get("status") == "failed":
                failed.append(f"{name} on the random-weight twin: {entry['twin']['reason']}")
        return (*failed, *self.undrawn)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per checkpoint and analysis: status, verdicts, locations, headline effect
        and twin."""
        return [_summary_row(checkpoint, entry) for checkpoint, entry in _entries(self.document)]


def run_report(
    checkpoints: Sequence[ModelLike],
    out: str | Path,
    *,
    analyses: Sequence[str] | None = None,
    all_costs: bool = False,
    options: Options | None = None,
    twin: bool = True,
    seed: int | None = None,
    load: Callable[[ModelLike], HookedModel] = load_model,
    load_words: Sequence[str] = (),
    progress: Progress | None = None,
) -> ReportSummary:
    """Run analyses over checkpoints and write the page, its data and every result into `out`.

    Args:
        checkpoints: names, folders or models, as `load_model` takes them.
        analyses: names of analyses; by default every quick one.
        all_costs: also run the slow ones; without effect where `analyses` are named.
        options: options by analysis.
        twin: also run each analysis on the random-weight twin of its checkpoint.
        seed: seed of the twins, and of every analysis with an option `seed` that `options` leaves
            open.
        load: how a checkpoint is loaded (device, dtype, processing, ...).
        load_words: the options behind `load` as words of a command line, for the command kept in
            the report.
        progress: called before each step.

    Raises:
        RegistryError: an analysis or option does not exist.
        CheckpointError: no checkpoint could be loaded (one of several that fails is listed with its
            reason instead).
    """
    chosen = choose_analyses(analyses, all_costs=all_costs)
    settings = _settings(chosen, options or {}, seed)
    names, clock = [_name(spec) for spec in checkpoints], time.perf_counter()
    steps = _Steps(len(checkpoints) * (1 + len(chosen) * (1 + twin)), progress)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": _command(names, analyses, all_costs, options or {}, twin, seed, load_words),
        "checkpoints": [],
        "times": {"date": datetime.now(UTC).isoformat(timespec="seconds")},
    }
    errors: list[Exception] = []
    for spec, name, folder in zip(checkpoints, names, safe_names(names), strict=True):
        try:
            steps.start(f"loading {name}")
            work = _Work(
                load(spec), chosen, settings, Path(out), f"results/{folder}", seed or 0, steps
            )
        except Exception as error:  # the other checkpoints still get their report
            errors.append(error)
            document["checkpoints"].append(_failed_checkpoint(name, error))
            steps.skip(len(chosen) * (1 + twin))
            continue
        document["checkpoints"].append(_describe_model(work.model, work.folder))
        for record in work.records(twin=twin):
            document["checkpoints"][-1]["entries"].append(record)
            _keep(
                document, Path(out), clock
            )  # after each analysis, so that an interrupted report can be shown
        del work  # two models at once may not fit
    if errors and len(errors) == len(checkpoints):
        raise errors[0]
    _keep(document, Path(out), clock)
    steps.start("writing the page")
    return render(out)


def render(folder: str | Path) -> ReportSummary:
    """Write `report.html` and `report.md` from saved results; no model is loaded.

    Args:
        folder: what `run_report` wrote, or any folder with saved results below it.

    Raises:
        ResultError: there is nothing to show, or it was written by a newer version.
    """
    from mechinterp_toolkit.report import page

    folder = Path(folder)
    document = read_document(folder)
    pictures = {
        entry["folder"]: _draw(folder, entry)
        for _, entry in _entries(document)
        if entry["status"] == "ran"
    }
    for name, text in (
        ("report.html", page.render_html(document, pictures)),
        ("report.md", page.render_markdown(document)),
    ):
        write_text(folder / name, text)
    undrawn = [
        f"{checkpoint['checkpoint']}, {entry['analysis']}: {pictures[entry['folder']].reason}"
        for checkpoint, entry in _entries(document)
        if entry["status"] == "ran" and pictures[entry["folder"]].reason
    ]
    return ReportSummary(folder, document, tuple(undrawn))


def choose_analyses(
    names: Sequence[str] | None, *, all_costs: bool = False
) -> tuple[Analysis, ...]:
    """Return the analyses called `names`, or every quick one (every one with `all_costs`), in
    alphabetical order.

    Raises:
        RegistryError: a name is not registered.
    """
    if names:
        return tuple(get_analysis(name) for name in dict.fromkeys(names))
    found, _ = all_analyses()
    return tuple(entry for entry in found.values() if all_costs or entry.cost == "quick")


def estimate_seconds(n_checkpoints: int, chosen: Iterable[Analysis], *, twin: bool = True) -> float:
    """Return the rough time of a report over bundled toys in seconds; larger models take longer in
    proportion."""
    return n_checkpoints * (1 + twin) * sum(TYPICAL_SECONDS[entry.cost] for entry in chosen)


def read_document(folder: str | Path) -> dict[str, Any]:
    """Return the account in `report.json`, or one put together from the results below a folder
    without it.

    Raises:
        ResultError: there is neither, or the account was written by another version.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        return _gather(Path(folder))
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema {document.get('schema_version')}, this version reads"
            f" {SCHEMA_VERSION}; show it with the version of the toolkit that wrote it."
        )
    return document


def describe_finding(finding: Finding, folder: str, tables: Sequence[str]) -> dict[str, Any]:
    """Return a finding as `report.json` holds it.

    Args:
        folder: where the result lies.
        tables: names of its CSV files.
    """
    run = finding.provenance.run if finding.provenance else None
    return {
        "status": "ran",
        **_verdicts(finding),
        "answer": finding.answer(),
        "causal_check": finding.causal_check(),
        "caveats": list(finding.caveats),
        "prompts_hash": finding.prompts_hash,
        "folder": folder,
        "tables": list(tables),
        "options": dict(run.options) if run else {},
        "command": run.command if run else "",
        "times": {k: getattr(run, k) for k in ("date", "seconds", "peak_memory_mb")} if run else {},
    }


@dataclass(frozen=True)
class Pictures:
    """The figures of one finding, or why there are none."""

    figures: Mapping[str, Any]
    """Title -> plotly figure."""

    reason: str = ""
    """Why they could not be drawn; empty where they could."""


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
class _Work:
    """One checkpoint and what is to be run on it."""

    model: HookedModel
    chosen: Sequence[Analysis]
    settings: Options
    out: Path
    folder: str
    seed: int
    steps: _Steps
    twin: HookedModel | dict[str, Any] | None = field(
        default=None
    )  # made on first use; a dict says why there is none

    def records(self, *, twin: bool) -> Iterator[dict[str, Any]]:
        for entry in self.chosen:
            self.steps.start(f"{self.model.provenance.checkpoint} · {entry.name}")
            record = self._run(entry)
            if twin and record["status"] == "ran":
                self.steps.start(
                    f"{self.model.provenance.checkpoint} · {entry.name} · random weights"
                )
                record["twin"] = self._run_twin(entry)
            elif twin:
                self.steps.skip()
            yield record

    def _run(self, entry: Analysis) -> dict[str, Any]:
        record = _describe_analysis(entry)
        try:
            if reason := entry.reason_not(self.model):
                return record | {"status": "not_applicable", "reason": reason}
            finding = entry.function(self.model, **self.settings[entry.name])
            folder = f"{self.folder}/{entry.name}"
            tables = tables_of(save_result(finding, self.out / folder))
            return record | describe_finding(finding, folder, tables)
        except Exception as error:  # one analysis must not take the report down, whatever it raises
            return record | _failed(error)

    def _run_twin(self, entry: Analysis) -> dict[str, Any]:
        try:
            if self.twin is None:
                self.twin = self.model.random_twin(self.seed)
        except Exception as error:  # a checkpoint without a twin is still worth a report
            self.twin = _failed(error)
        if isinstance(self.twin, dict):
            return self.twin
        try:
            return {"status": "ran"} | _verdicts(
                entry.function(self.twin, **self.settings[entry.name])
            )
        except Exception as error:  # see _run
            return _failed(error)


def _keep(document: dict[str, Any], out: Path, clock: float) -> None:
    document["times"]["seconds"] = round(time.perf_counter() - clock, 1)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", document)


def _failed(error: Exception) -> dict[str, Any]:
    if isinstance(error, NotApplicable):
        return {"status": "not_applicable", "reason": str(error)}
    reason = str(error).strip() or "no message"
    details = "".join(traceback.format_exception(error))
    return {"status": "failed", "reason": f"{type(error).__name__}: {reason}", "details": details}


def _failed_checkpoint(name: str, error: Exception) -> dict[str, Any]:
    return _failed(error) | {
        "checkpoint": name,
        "status": "failed",
        "provenance": None,
        "entries": [],
    }


def _describe_model(model: HookedModel, folder: str) -> dict[str, Any]:
    provenance = asdict(model.provenance)
    del provenance["run"]
    name = _name(model)
    return {
        "checkpoint": name,
        "status": "ran",
        "folder": folder,
        "provenance": provenance,
        "entries": [],
    }


def _describe_analysis(entry: Analysis) -> dict[str, Any]:
    return {
        "analysis": entry.name,
        "question": entry.question,
        "paper": entry.paper,
        "fooled_by": entry.fooled_by,
        "source": entry.source,
    }


def _verdicts(finding: Finding) -> dict[str, Any]:
    return {
        "represented": asdict(finding.represented),
        "used": asdict(finding.used),
        "locations": list(finding.locations),
        "effect": _describe_effect(finding.effect),
    }


def _describe_effect(effect: Estimate | None) -> dict[str, Any] | None:
    if effect is None:
        return None
    described: dict[str, Any] = {k: getattr(effect, k).item() for k in ("value", "low", "high")}
    described |= {k: getattr(effect, k) for k in ("n", "unit", "method")} | {
        "text": effect.text(),
        "control": None,
    }
    if effect.control is not None:
        draws = effect.control.double().flatten()
        described["control"] = {
            "name": effect.control_name,
            "draws": draws.numel(),
            "mean": draws.mean().item(),
            "text": f"{draws.mean():.3g}, 95 % below {draws.quantile(0.95):.3g}",
            **{f"percentile_{p}": draws.quantile(p / 100).item() for p in (2.5, 95, 97.5)},
        }
    return described


def _draw(folder: Path, entry: Mapping[str, Any]) -> Pictures:
    try:
        return Pictures(load_result(folder / entry["folder"]).figures())
    except (
        Exception
    ) as error:  # a picture that fails must not take the page down; the section says why
        return Pictures({}, f"{type(error).__name__}: {error}")


def _gather(folder: Path) -> dict[str, Any]:
    """Put an account together from saved results alone: which analyses did not apply or failed is
    not in them."""
    found = sorted(folder.glob("**/result.json"))
    if not found:
        raise ResultError(
            f"{folder} holds neither report.json nor any result.json; expected a folder written by"
            " `mechinterp report` or `mechinterp run`."
        )
    checkpoints: dict[str, dict[str, Any]] = {}
    for path in found:
        finding = load_result(path.parent)
        if finding.provenance is None or finding.provenance.run is None:
            raise ResultError(
                f"{path} does not say which model and run it came from; save what an analysis"
                " returned."
            )
        described = asdict(finding.provenance)
        run = described.pop("run")
        name = _full_name(described["checkpoint"], described["revision"])
        of = checkpoints.setdefault(
            f"{name} {described['fingerprint']}",
            {
                "checkpoint": name,
                "status": "ran",
                "folder": ".",
                "provenance": described,
                "entries": [],
            },
        )
        place = path.parent.relative_to(folder).as_posix()
        record = describe_finding(finding, place, tables_of(path.parent))
        of["entries"].append(_describe_analysis(get_analysis(run["analysis"])) | record)
    command = f"mechinterp show {shlex.quote(str(folder))}"
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "checkpoints": list(checkpoints.values()),
        "times": {},
    }


def _entries(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for checkpoint in document["checkpoints"]:
        for entry in checkpoint["entries"]:
            yield checkpoint, entry


def _summary_row(checkpoint: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "checkpoint": checkpoint["checkpoint"],
        "analysis": entry["analysis"],
        "status": entry["status"],
    }
    if entry["status"] != "ran":
        return row | {"reason": entry["reason"]}
    effect, twin = entry["effect"] or {}, entry.get("twin") or {}
    row |= {kind: entry[kind]["outcome"] for kind in ("represented", "used")}
    row |= {"locations": entry["locations"], "effect": effect.get("value")}
    row |= {"low": effect.get("low"), "high": effect.get("high"), "unit": effect.get("unit")}
    row |= {
        "control_95": (effect.get("control") or {}).get("percentile_95"),
        "folder": entry["folder"],
    }
    outcomes = {
        f"twin_{kind}": twin[kind]["outcome"] for kind in ("represented", "used") if kind in twin
    }
    return row | (outcomes or {"twin_reason": twin.get("reason")})


def _settings(
    chosen: Sequence[Analysis], options: Options, seed: int | None
) -> dict[str, dict[str, Any]]:
    """Return every chosen analysis' options, after checking that each name exists."""
    names = [entry.name for entry in chosen]
    for name in options:
        if name not in names:
            get_analysis(name)  # names a misspelt one better than the list of this run could
            raise RegistryError(
                f"options were given for {name}, which this report does not"
                f" run;{nearest(name, names)} add `--analysis {name}` or `--all`."
            )
    settings = {}
    for entry in chosen:
        given = dict(options.get(entry.name, {}))
        unknown = [key for key in given if key not in entry.options]
        if unknown:
            raise RegistryError(
                f"{entry.name} has no option {unknown[0]!r}.{nearest(unknown[0], entry.options)} "
                f"It has {', '.join(entry.options)}."
            )
        settings[entry.name] = (
            {"seed": seed} if seed is not None and "seed" in entry.options else {}
        ) | given
    return settings


def _command(
    checkpoints: Sequence[str],
    analyses: Sequence[str] | None,
    all_costs: bool,
    options: Options,
    twin: bool,
    seed: int | None,
    load_words: Sequence[str],
) -> str:
    words = ["mechinterp", "report", *checkpoints]
    words += [word for name in analyses or () for word in ("--analysis", name)]
    words += ["--all"] if all_costs else []
    words += [] if twin else ["--no-twin"]
    words += [] if seed is None else ["--seed", str(seed)]
    for name, given in options.items():
        words += [
            word
            for key, value in given.items()
            for word in ("--set", f"{name}.{key}={_plain(value)}")
        ]
    return shlex.join([*words, *load_words])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name(spec: ModelLike) -> str:
    if isinstance(spec, HookedModel):
        return _full_name(spec.provenance.checkpoint, spec.provenance.revision)
    return str(spec) if isinstance(spec, str | Path) else type(spec).__name__


def _full_name(checkpoint: str, revision: str | None) -> str:
    return f"{checkpoint}@{revision}" if revision else checkpoint
