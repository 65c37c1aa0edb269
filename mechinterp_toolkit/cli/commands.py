"""The command `mechinterp`: list, run, report, show, train, doctor, calibrate, power, and what
other packages add.

`mechinterp --help` needs typer and rich and nothing else; each command imports what it uses inside
itself. Results go to files and standard output, everything else to standard error. Exit codes: 0
all ran, 1 an analysis failed or could not judge the model it was asked for, 2 wrong usage.

Another package adds a sub-command through the entry-point group `mechinterp_toolkit.commands`: a
`typer.Typer`, a command or a plain function. It is listed by name and imported when called; a
broken one then says why.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from mechinterp_toolkit.cli.doctor import COMMANDS
from mechinterp_toolkit.cli.terminal import (
    count,
    duration,
    print_json,
    print_table,
    printable,
    progress_bar,
    say,
    stdout_to_stderr,
)
from mechinterp_toolkit.errors import NotApplicable, ToolkitError, nearest

if TYPE_CHECKING:
    from mechinterp_toolkit.model import HookedModel
    from mechinterp_toolkit.report.run import ReportSummary

DEFAULT_REPORT = Path("mechinterp-report")
DEFAULT_RESULTS = Path("mechinterp-results")


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
                f" {_reason(error)}"
            )
            raise typer.Exit(1) from error
        return command.make_context(info_name, args, parent=parent, **extra)


class Commands(TyperGroup):
    """The built-in commands and those of other packages; a mistake of the user is one sentence and
    exit code 2."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._contribute()
        return list(super().list_commands(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self._contribute()
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ToolkitError as error:
            say(f"mechinterp: {error}")
            raise typer.Exit(2) from error

    def _contribute(self) -> None:
        for point in importlib.metadata.entry_points(group=COMMANDS):
            self.commands.setdefault(
                point.name, Contributed(point)
            )  # a built-in name stays the built-in's


app = typer.Typer(
    cls=Commands,
    help=(
        "Mechanistic-interpretability findings as analyses that anyone can run on a checkpoint and"
        " believe."
    ),
    epilog=(
        "A checkpoint is a hub name with an optional @revision (gpt2,"
        " EleutherAI/pythia-70m@step3000), a local folder, a state dict beside its config.json, or"
        " a bundled toy (toy/s5)."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set an option; may be repeated."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every analysis and of the random weights.")]
Device = Annotated[
    str | None,
    typer.Option(help="Where to load: cpu, cuda, cuda:1, mps. By default CUDA if there is any."),
]
Dtype = Annotated[
    str, typer.Option(help="Data type of the weights: float32, float16, bfloat16 or float64.")
]
Processing = Annotated[
    str, typer.Option(help="none (raw weights) or compatible (LayerNorm folded, weights centred).")
]
Wrapper = Annotated[str, typer.Option(help="auto, HookedTransformer or TransformerBridge.")]


def main() -> None:
    """Run the command line."""
    app(prog_name="mechinterp")


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"mechinterp-toolkit {importlib.metadata.version('mechinterp-toolkit')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command("list")
def list_analyses(as_json: Json = False) -> None:
    """List the analyses with their question and paper."""
    from mechinterp_toolkit.checkpoint import bundled_names
    from mechinterp_toolkit.registry import all_analyses

    found, broken = all_analyses()
    keys = ("name", "question", "paper", "cost", "source")
    rows = [{key: getattr(entry, key) for key in keys} for entry in found.values()]
    if as_json:
        broken_rows = [{"name": b.name, "reason": b.reason} for b in broken]
        print_json({"analyses": rows, "broken": broken_rows, "bundled": list(bundled_names())})
        return
    print_table(keys[:4] if len({row["source"] for row in rows}) < 2 else keys, rows)
    print(f"\nbundled checkpoints: {', '.join(bundled_names())}")
    for b in broken:
        say(f"{b.name} could not be imported: {b.reason}")


@app.command()
def run(
    analysis: Annotated[
        str, typer.Argument(help="Name of an analysis; `mechinterp list` shows all.")
    ],
    checkpoint: Annotated[str | None, typer.Argument(help="What to analyse.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            "--output_path",
            help="Folder of the result.",
            show_default="mechinterp-results/...",
        ),
    ] = None,
    activations: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Judge these activations, saved by any tool, instead: CSV, Parquet or safetensors,"
                " [n, d]."
            )
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class of each row of --activations, from 0.")
    ] = None,
    set_: Set = None,
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = "float32",
    processing: Processing = "none",
    wrapper: Wrapper = "auto",
) -> None:
    """Run one analysis on one checkpoint and save its result, or its core on saved activations."""
    from mechinterp_toolkit.files import safe_names
    from mechinterp_toolkit.registry import get_analysis, parse_option
    from mechinterp_toolkit.report.run import describe_finding
    from mechinterp_toolkit.storage import save_result, tables_of

    entry = get_analysis(analysis)
    if activations or labels:
        _run_core(entry, checkpoint, activations, labels, set_ or (), as_json)
        return
    if checkpoint is None:
        raise ToolkitError("name a checkpoint, or give --activations and --labels.")
    options = {name: parse_option(entry, name, text) for name, text in map(_split, set_ or ())}
    loading = _loading(device, dtype, processing, wrapper)
    with progress_bar() as progress:
        progress(0, 2, f"loading {checkpoint}")
        model = loading.load(checkpoint)
        progress(1, 2, f"{checkpoint} · {analysis}")
        try:
            finding = entry.function(model, **options)
        except NotApplicable as error:
            say(f"mechinterp: {error}")
            raise typer.Exit(1) from error
        except ToolkitError as error:  # the usage was right, the analysis stopped
            say(f"mechinterp: {analysis} failed on {checkpoint}: {error}")
            raise typer.Exit(1) from error
    folder = out or DEFAULT_RESULTS.joinpath(*safe_names([checkpoint]), analysis)
    described = describe_finding(finding, str(folder), tables_of(save_result(finding, folder)))
    if as_json:
        print_json({"analysis": analysis, "checkpoint": checkpoint} | described)
    else:
        _print_finding(analysis, checkpoint, described)


def _run_core(
    entry: Any,
    checkpoint: str | None,
    activations: Path | None,
    labels: Path | None,
    options: Sequence[str],
    as_json: bool,
) -> None:
    """Judge saved activations by an analysis' core on plain tensors, and print its verdicts."""
    from dataclasses import asdict

    from mechinterp_toolkit.results import Verdict
    from mechinterp_toolkit.tables import read_activations, read_labels

    if entry.core is None:
        raise ToolkitError(
            f"{entry.name} needs a model: it has no core that judges activations alone."
        )
    if checkpoint is not None or activations is None or labels is None:
        raise ToolkitError(
            "give --activations and --labels together, and no checkpoint beside them."
        )
    rows, classes = read_activations(activations), read_labels(labels)
    if len(rows) != len(classes):
        raise ToolkitError(
            f"{activations} has {len(rows)} rows and {labels} {len(classes)}; give one label per"
            " row."
        )
    fit = entry.core(rows, classes, **_core_options(entry, options, classes))
    verdicts = {name: getattr(fit, name) for name in dir(type(fit)) if not name.startswith("_")}
    verdicts = {
        name: asdict(value) for name, value in verdicts.items() if isinstance(value, Verdict)
    }
    if as_json:
        print_json(
            {"analysis": entry.name, "activations": str(activations), "n": len(rows), **verdicts}
        )
        return
    table = [
        {"": name, "verdict": v["outcome"], "reason": v["reason"]} for name, v in verdicts.items()
    ]
    print_table(("", "verdict", "reason"), table)


def _core_options(entry: Any, options: Sequence[str], classes: Any) -> dict[str, Any]:
    """Options of a core as JSON values; the period of a circle is by default the number of
    classes."""
    import inspect

    known = list(inspect.signature(entry.core).parameters)[2:]
    settings: dict[str, Any] = {}
    for name, text in map(_split, options):
        if name not in known:
            raise ToolkitError(
                f"the core of {entry.name} has no option {name!r}.{nearest(name, known)} It has"
                f" {', '.join(known)}."
            )
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ToolkitError(
                f"--set {name}={text} is no JSON value; text stands in quotes."
            ) from error
    return ({"period": int(classes.max()) + 1} if "period" in known else {}) | settings


@app.command()
def report(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="CHECKPOINT", help="What to analyse; by default every bundled toy."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", "--output_path", help="Folder of the page and its data.")
    ] = DEFAULT_REPORT,
    all_: Annotated[bool, typer.Option("--all", help="Run the slow analyses too.")] = False,
    analysis: Annotated[
        list[str] | None, typer.Option(help="Run only this one; may be repeated.")
    ] = None,
    no_twin: Annotated[
        bool, typer.Option("--no-twin", help="Do without the twin with random weights.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="ANALYSIS.NAME=VALUE",
            help="Set an option of an analysis; may be repeated.",
        ),
    ] = None,
    seed: Seed = None,
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = "float32",
    processing: Processing = "none",
    wrapper: Wrapper = "auto",
) -> None:
    """Run every analysis that applies and write one page, beside a twin with random weights."""
    from mechinterp_toolkit.checkpoint import bundled_names
    from mechinterp_toolkit.report.run import choose_analyses, estimate_seconds, run_report

    specs = checkpoints or list(bundled_names())
    if not specs:
        raise ToolkitError(
            "no checkpoint was given and none is bundled; name one, e.g. `mechinterp report gpt2`."
        )
    chosen = choose_analyses(analysis, all_costs=all_)
    options = _options_by_analysis(set_ or ())
    loading = _loading(device, dtype, processing, wrapper)
    seconds = estimate_seconds(len(specs), chosen, twin=not no_twin)
    beside = "" if no_twin else ", each also on random weights"
    say(
        f"{count(len(specs), 'checkpoint')}, {count(len(chosen), 'analysis', 'analyses')}{beside}:"
        f" on toys roughly {duration(seconds)}; larger models take longer in proportion."
    )
    with progress_bar() as progress:
        summary = run_report(
            specs,
            out,
            analyses=analysis,
            all_costs=all_,
            options=options,
            twin=not no_twin,
            seed=seed,
            load=loading.load,
            load_words=loading.words,
            progress=progress,
        )
    _conclude(summary, as_json)


@app.command()
def sweep(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="What to analyse, in order.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", "--output_path", help="Folder; what is done there is kept."),
    ],
    analysis: Annotated[
        list[str] | None, typer.Option(help="Run only this one; may be repeated.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Run the slow analyses too.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="ANALYSIS.NAME=VALUE",
            help="Set an option of an analysis; may be repeated.",
        ),
    ] = None,
    seed: Seed = None,
    jobs: Annotated[int, typer.Option(help="Checkpoints at a time; -1 takes every processor.")] = 1,
    backend: Annotated[
        str | None, typer.Option(help="A joblib backend; by default processes of this machine.")
    ] = None,
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = "float32",
    processing: Processing = "none",
    wrapper: Wrapper = "auto",
) -> None:
    """Run analyses on many checkpoints, resumable, and write one table over all."""
    from mechinterp_toolkit.report.sweep import sweep as run_sweep

    loading = _loading(device, dtype, processing, wrapper)
    with progress_bar() as progress:
        summary = run_sweep(
            checkpoints,
            out,
            analyses=analysis,
            all_costs=all_,
            options=_options_by_analysis(set_ or ()),
            seed=seed,
            load=loading.load,
            load_words=loading.words,
            n_jobs=jobs,
            backend=backend,
            progress=progress,
        )
    if as_json:
        print_json(
            {"rows": [dict(row) for row in summary.rows], "failures": list(summary.failures)}
        )
    else:
        ran = [row for row in summary.rows if row["status"] == "ran"]
        print_table(("checkpoint", "analysis", "represented", "used"), ran)
        print(f"\n{summary.out / 'sweep.csv'}")
    for failure in summary.failures:
        say(f"failed: {failure}")
    if summary.failures:
        raise typer.Exit(1)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A report, or any folder with results below it.")],
    as_json: Json = False,
) -> None:
    """Write the page of saved results again, without loading a model."""
    from mechinterp_toolkit.report.run import render

    _conclude(render(folder), as_json)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A toy; a wrong name lists them all.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", "--output_path", help="A new folder for the checkpoint.")
    ],
    seed: Annotated[int, typer.Option(help="Decides initial weights, split and batches.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps; by default the recipe's own number.")
    ] = None,
) -> None:
    """Train a toy from its recipe and write its checkpoint folder."""
    from mechinterp_toolkit import toys

    toys.get_recipe(name)  # a wrong name should not wait for torch
    with progress_bar() as progress:

        def told(step: int, total: int, metrics: Mapping[str, float]) -> None:
            numbers = ", ".join(f"{key} {value:.3g}" for key, value in metrics.items())
            progress(step, total, f"training {name}: {numbers}" if numbers else f"training {name}")

        folder = toys.train(name, out, seed=seed, steps=steps, progress=told)
    print(folder)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say which versions, devices and packages are here, and what works."""
    from mechinterp_toolkit.cli.doctor import diagnose

    with stdout_to_stderr():
        checks = diagnose()
    if as_json:
        print_json({check.name: {"ok": check.ok, "detail": check.detail} for check in checks})
    else:
        rows = [
            {"check": c.name, "": "ok" if c.ok else "FAILS", "detail": c.detail} for c in checks
        ]
        print_table(("check", "", "detail"), rows)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def calibrate(
    analysis: Annotated[str, typer.Argument(help="Name of an analysis.")],
    models: Annotated[int, typer.Option(help="How many null models to run it on.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the first model; the others count up.")] = 0,
    as_json: Json = False,
) -> None:
    """Count how often an analysis finds something in models without the structure."""
    from mechinterp_toolkit import calibration
    from mechinterp_toolkit.registry import get_analysis

    get_analysis(analysis)
    with progress_bar() as progress:
        result = calibration.calibrate(analysis, models=models, seed=seed, progress=progress)
    if as_json:
        print_json({"analysis": analysis, "passed": result.passed, "rows": result.rows()})
    else:
        print(result.text())
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def power(
    analysis: Annotated[str, typer.Argument(help="Name of an analysis.")],
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Strength of the planted structure; repeat it. Four by default."),
    ] = None,
    models: Annotated[
        int, typer.Option(help="How many planted models to run it on at each strength.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Decides the models; the same at every strength.")] = 0,
    as_json: Json = False,
) -> None:
    """Count how often an analysis finds a structure that was planted, by its strength."""
    from mechinterp_toolkit import calibration
    from mechinterp_toolkit.registry import get_analysis

    get_analysis(analysis)
    with progress_bar() as progress:
        result = calibration.power(
            analysis,
            strengths=strength or calibration.STRENGTHS,
            models=models,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json({"analysis": analysis, "rows": result.rows()})
    else:
        print(result.text())


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _as_command(contributed: Any) -> Any:
    """Return a command from what another package registered: a typer app, a command, or a plain
    function."""
    if isinstance(contributed, typer.Typer):
        return typer.main.get_command(contributed)
    if hasattr(contributed, "make_context"):
        return contributed
    if callable(contributed):
        single = typer.Typer(add_completion=False)
        single.command()(contributed)
        return typer.main.get_command(single)
    raise TypeError(
        f"expected a typer.Typer, a command or a function, not a {type(contributed).__name__}"
    )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ToolkitError(f"--set takes NAME=VALUE, not {text!r}; e.g. --set draws=500.")
    return name, value


def _options_by_analysis(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    from mechinterp_toolkit.registry import get_analysis, parse_option

    options: dict[str, dict[str, Any]] = {}
    for full, text in map(_split, settings):
        analysis, dot, name = full.partition(".")
        if not (dot and name):
            raise ToolkitError(
                f"--set takes ANALYSIS.NAME=VALUE here, not {full!r}; e.g. --set"
                " successor_heads.draws=500."
            )
        options.setdefault(analysis, {})[name] = parse_option(get_analysis(analysis), name, text)
    return options


class Loading(NamedTuple):
    """How checkpoints are to be loaded."""

    load: Callable[[Any], HookedModel]
    """`load_model` with the options given."""

    words: list[str]
    """The same options as words of a command line, where they differ from the defaults."""


def _loading(device: str | None, dtype: str, processing: str, wrapper: str) -> Loading:
    for given, allowed, option in (
        (dtype, ("float32", "float16", "bfloat16", "float64"), "--dtype"),
        (processing, ("none", "compatible"), "--processing"),
        (wrapper, ("auto", "HookedTransformer", "TransformerBridge"), "--wrapper"),
    ):
        if given not in allowed:
            raise ToolkitError(
                f"{option} is one of {', '.join(allowed)}, not {given!r}.{nearest(given, allowed)}"
            )
    import torch

    from mechinterp_toolkit.model import load_model

    options: dict[str, Any] = {"device": device, "processing": processing, "wrapper": wrapper}
    usual = {"device": None, "dtype": "float32", "processing": "none", "wrapper": "auto"}
    changed = {
        key: value for key, value in (options | {"dtype": dtype}).items() if value != usual[key]
    }
    words = [word for key, value in changed.items() for word in (f"--{key}", str(value))]
    return Loading(functools.partial(load_model, dtype=getattr(torch, dtype), **options), words)


def _conclude(summary: ReportSummary, as_json: bool) -> None:
    """Print what a report came to; exit with 1 if anything failed."""
    if as_json:
        print_json(
            {
                "html": str(summary.html),
                "failures": list(summary.failures),
                "findings": summary.rows(),
            }
        )
    else:
        _print_verdicts(summary)
    for failure in summary.failures:
        say(f"failed: {failure}")
    if summary.failures:
        raise typer.Exit(1)


def _print_verdicts(summary: ReportSummary) -> None:
    rows, apart = [], 0
    for row in summary.rows():
        if row["status"] == "not_applicable":
            apart += 1
            continue
        shown = {"checkpoint": row["checkpoint"], "finding": row["analysis"]}
        if row["status"] == "failed":
            rows.append(shown | {"represented": "failed"})
            continue
        effect = (
            ""
            if row["effect"] is None
            else f"{row['effect']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
        )
        twin = row.get("twin_represented") or ("none" if row["twin_reason"] else "not run")
        shown |= {
            "represented": row["represented"],
            "used": row["used"],
            "where": ", ".join(row["locations"][:3]),
        }
        rows.append(shown | {"effect": effect, "twin": twin})
    print_table(("checkpoint", "finding", "represented", "used", "where", "effect", "twin"), rows)
    if apart:
        print(f"\nnot applicable: {apart} (the page says why)")
    print(f"\n{summary.html}")


def _print_finding(analysis: str, checkpoint: str, described: Mapping[str, Any]) -> None:
    rows = [
        {"": kind, "verdict": described[kind]["outcome"], "reason": described[kind]["reason"]}
        for kind in ("represented", "used")
    ]
    print_table(("", "verdict", "reason"), rows)
    print()
    for line in (described["answer"], described["causal_check"], *described["caveats"]):
        print(printable(line))
    print(f"\n{described['folder']}   (`mechinterp show {described['folder']}` writes its page)")
