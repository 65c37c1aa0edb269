"""The account of a report: what stands in `report.json`, written and read here and nowhere else.

A `Document` lists checkpoints, a checkpoint its analyses, and each analysis what it found or why
there is nothing. Everything that differs between two runs of the same seed on the same machine
(dates, wall time, memory) stands under a key called "times".

In JSON a `result` lies flat in its entry, and what was not filled in is left out.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mechinterp_toolkit.errors import NotApplicable, ResultError
from mechinterp_toolkit.files import write_json
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.registry import Analysis, get_analysis
from mechinterp_toolkit.results import Estimate, Provenance, Verdict
from mechinterp_toolkit.storage import load_result, tables_of

SCHEMA_VERSION = 1
"""Of `report.json`."""

PERCENTILES = (2.5, 95, 97.5)
"""Of the draws of a control."""

T = TypeVar("T")


@dataclass(frozen=True)
class ControlAccount:
    """The control of a headline estimate, summed up."""

    name: str
    """What the control destroyed."""

    draws: int
    """Number of draws."""

    mean: float
    """Mean of the draws, in the unit of the estimate."""

    percentiles: Mapping[str, float]
    """"2.5", "95", "97.5" -> that percentile of the draws, in the unit of the estimate."""

    text: str
    """Mean and 95th percentile in words."""


@dataclass(frozen=True)
class EffectAccount:
    """A headline estimate with its interval, and its control where it has one."""

    value: float
    """The estimate, in `unit`."""

    low: float
    """Lower end of the 95 % interval."""

    high: float
    """Upper end of the 95 % interval."""

    n: int
    """Number of exchangeable units."""

    unit: str
    """Unit and range."""

    method: str
    """How the interval was made."""

    text: str
    """Estimate and interval in words."""

    control: ControlAccount | None
    """The same statistic under the null."""


@dataclass(frozen=True)
class Judgement:
    """What an analysis says of one model, in short: all that is kept of a random-weight twin."""

    represented: Verdict
    """Whether the structure is there."""

    used: Verdict
    """Whether the model's answers depend on it."""

    locations: Sequence[str]
    """Where it is, strongest first."""

    effect: EffectAccount | None
    """The headline estimate, or None where nothing could be measured."""

    status: Literal["ran"] = field(default="ran", kw_only=True)
    """Tells it from a `NotRun`."""


@dataclass(frozen=True)
class FindingAccount(Judgement):
    """A finding as the page shows it, and where its data lie."""

    answer: str
    """One or two sentences with number, interval, n and control."""

    causal_check: str
    """What was edited where, and what the answer did."""

    caveats: Sequence[str]
    """What this run cannot say."""

    prompts_hash: str | None
    """Hash of the token ids that were run."""

    folder: str
    """Where the result lies, from the folder of the report."""

    tables: Sequence[str]
    """Names of its CSV files."""

    options: Mapping[str, Any]
    """Every option with the value used."""

    command: str
    """The command that makes this section again."""

    times: Mapping[str, Any]
    """date, seconds and peak_memory_mb of the run."""


@dataclass(frozen=True)
class NotRun:
    """Why an analysis has no finding."""

    status: Literal["failed", "not_applicable"]
    """Whether it broke, or could not judge the model."""

    reason: str
    """The reason in one sentence."""

    details: str = ""
    """Traceback of what broke."""

    @classmethod
    def because(cls, error: Exception) -> NotRun:
        """Return the account of an error."""
        reason = str(error).strip() or "no message"
        if isinstance(error, NotApplicable):
            return cls("not_applicable", reason)
        details = "".join(traceback.format_exception(error))
        return cls("failed", f"{type(error).__name__}: {reason}", details)


@dataclass(frozen=True)
class EntryAccount:
    """One analysis on one checkpoint."""

    analysis: str
    """Registered name."""

    question: str
    """What is asked, in one line."""

    paper: str
    """Where the finding was published."""

    fooled_by: str
    """What would fool it."""

    source: str
    """Package it came from."""

    result: FindingAccount | NotRun
    """What was found, or why there is nothing."""

    twin: Judgement | NotRun | None = None
    """The same on random weights; None where that was not tried."""

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        result: FindingAccount | NotRun,
        twin: Judgement | NotRun | None = None,
    ) -> EntryAccount:
        """Return the account of a registered analysis."""
        words = (analysis.name, analysis.question, analysis.paper)
        return cls(*words, analysis.fooled_by, analysis.source, result, twin)


@dataclass(frozen=True)
class CheckpointAccount:
    """One checkpoint and every analysis on it."""

    checkpoint: str
    """Name and revision, as given."""

    provenance: Provenance | None
    """Where its weights came from; None where it could not be loaded."""

    entries: Sequence[EntryAccount] = ()
    """One per analysis, in the order they ran."""

    folder: str = ""
    """Where its results lie, from the folder of the report."""

    status: Literal["ran", "failed"] = "ran"
    """Whether it could be loaded."""

    reason: str = ""
    """Why it could not be loaded."""

    details: str = ""
    """Traceback of that."""

    @classmethod
    def of(cls, provenance: Provenance, folder: str) -> CheckpointAccount:
        """Return the account of a loaded model on which nothing has run."""
        weights = dataclasses.replace(provenance, run=None)
        return cls(full_name(provenance), weights, folder=folder)

    @classmethod
    def failed(cls, name: str, error: Exception) -> CheckpointAccount:
        """Return the account of a checkpoint that could not be loaded."""
        why = NotRun.because(error)
        return cls(name, None, status="failed", reason=why.reason, details=why.details)

    def with_entry(self, entry: EntryAccount) -> CheckpointAccount:
        """Return the account with one more entry."""
        return dataclasses.replace(self, entries=(*self.entries, entry))


@dataclass(frozen=True)
class Document:
    """The content of `report.json`."""

    command: str
    """The command that makes this report again."""

    checkpoints: Sequence[CheckpointAccount]
    """One per checkpoint, in the order given."""

    times: Mapping[str, Any]
    """date and seconds of the report."""

    schema_version: int = SCHEMA_VERSION
    """Of this layout."""

    def entries(self) -> Iterator[tuple[CheckpointAccount, EntryAccount]]:
        """Yield every entry beside its checkpoint."""
        for checkpoint in self.checkpoints:
            for entry in checkpoint.entries:
                yield checkpoint, entry


def judgement(finding: Finding) -> Judgement:
    """Return verdicts, locations and headline effect of a finding."""
    effect = _effect(finding.effect) if finding.effect else None
    return Judgement(finding.represented, finding.used, finding.locations, effect)


def finding_account(finding: Finding, folder: str, tables: Sequence[str]) -> FindingAccount:
    """Return a finding as `report.json` holds it.

    Args:
        folder: where the result lies.
        tables: names of its CSV files.
    """
    run = finding.provenance.run if finding.provenance else None
    times = {k: getattr(run, k) for k in ("date", "seconds", "peak_memory_mb")} if run else {}
    return FindingAccount(
        **vars(judgement(finding)),
        answer=finding.answer(),
        causal_check=finding.causal_check(),
        caveats=finding.caveats,
        prompts_hash=finding.prompts_hash,
        folder=folder,
        tables=tables,
        options=dict(run.options) if run else {},
        command=run.command if run else "",
        times=times,
    )


def full_name(provenance: Provenance) -> str:
    """Return a checkpoint's name with its revision."""
    revision = f"@{provenance.revision}" if provenance.revision else ""
    return f"{provenance.checkpoint}{revision}"


def as_json(account: Any) -> dict[str, Any]:
    """Return a document, or a part of one, as `report.json` holds it."""
    return dataclasses.asdict(account, dict_factory=_laid_out)


def write_document(folder: Path, document: Document) -> None:
    """Write `report.json` into `folder`, made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", as_json(document))


def read_document(folder: str | Path) -> Document:
    """Return the account in `report.json`, or one of the results below a folder without it.

    Raises:
        ResultError: there is neither, or the account was written by another version.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        return _gathered(Path(folder))
    given = json.loads(path.read_text(encoding="utf-8"))
    if given.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema {given.get('schema_version')}, this version reads"
            f" {SCHEMA_VERSION}; show it with the version of the toolkit that wrote it."
        )
    return _built(Document, given, checkpoints=tuple(map(_checkpoint, given["checkpoints"])))


def _effect(effect: Estimate) -> EffectAccount:
    numbers = {name: getattr(effect, name).item() for name in ("value", "low", "high")}
    control = None
    if effect.control is not None:
        draws = effect.control.double().flatten()
        percentiles = {str(p): draws.quantile(p / 100).item() for p in PERCENTILES}
        text = f"{draws.mean():.3g}, 95 % below {percentiles['95']:.3g}"
        mean = draws.mean().item()
        control = ControlAccount(effect.control_name, len(draws), mean, percentiles, text)
    words = {name: getattr(effect, name) for name in ("n", "unit", "method")}
    return EffectAccount(**numbers, **words, text=effect.text(), control=control)


def _gathered(folder: Path) -> Document:
    """Put an account together from saved results alone.

    Which analyses did not apply or failed is not in them.
    """
    results = sorted(folder.glob("**/result.json"))
    if not results:
        raise ResultError(
            f"{folder} holds neither report.json nor any result.json; expected a folder written by"
            " `mechinterp report` or `mechinterp run`."
        )
    checkpoints: dict[tuple[str, str], CheckpointAccount] = {}
    for path in results:
        finding = load_result(path.parent)
        provenance = finding.provenance
        if provenance is None or provenance.run is None:
            raise ResultError(
                f"{path} does not say which model and run it came from; save what an analysis"
                " returned."
            )
        place = path.parent.relative_to(folder).as_posix()
        result = finding_account(finding, place, tables_of(path.parent))
        entry = EntryAccount.of(get_analysis(provenance.run.analysis), result)
        key = (full_name(provenance), provenance.fingerprint)
        account = checkpoints.get(key, CheckpointAccount.of(provenance, folder="."))
        checkpoints[key] = account.with_entry(entry)
    command = f"mechinterp show {shlex.quote(str(folder))}"
    return Document(command, tuple(checkpoints.values()), {})


def _laid_out(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of one dataclass as they stand in JSON."""
    laid_out: dict[str, Any] = {}
    for name, value in fields:
        if name == "result":
            laid_out |= value
        elif name == "percentiles":
            laid_out |= {f"percentile_{p}": percentile for p, percentile in value.items()}
        elif value or name not in ("details", "folder", "reason", "run", "twin"):
            laid_out[name] = value
    return laid_out


def _built(cls: type[T], given: Mapping[str, Any], **fields: Any) -> T:
    """Return an instance of `cls` from its JSON; keys of other versions are passed over."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: v for k, v in given.items() if k in known} | fields)


def _checkpoint(given: Mapping[str, Any]) -> CheckpointAccount:
    provenance = given["provenance"] and _built(Provenance, given["provenance"])
    entries = tuple(map(_entry, given["entries"]))
    return _built(CheckpointAccount, given, provenance=provenance, entries=entries)


def _entry(given: Mapping[str, Any]) -> EntryAccount:
    twin = _result(Judgement, given["twin"]) if "twin" in given else None
    return _built(EntryAccount, given, result=_result(FindingAccount, given), twin=twin)


def _result(cls: type[T], given: Mapping[str, Any]) -> T | NotRun:
    if given["status"] != "ran":
        return _built(NotRun, given)
    verdicts = {kind: _built(Verdict, given[kind]) for kind in ("represented", "used")}
    effect = given["effect"] and _read_effect(given["effect"])
    return _built(cls, given, **verdicts, effect=effect)


def _read_effect(given: Mapping[str, Any]) -> EffectAccount:
    control = given["control"]
    if control:
        percentiles = {str(p): control[f"percentile_{p}"] for p in PERCENTILES}
        control = _built(ControlAccount, control, percentiles=percentiles)
    return _built(EffectAccount, given, control=control)
