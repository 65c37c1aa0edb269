"""The command `mechinterp`: list, run, report, sweep, show, train, doctor, calibrate and power.

`mechinterp --help` needs typer and rich and nothing else; each command imports what it uses inside
itself. Results go to files and standard output, everything else to standard error. Exit codes: 0
all ran, 1 an analysis failed or could not judge the model it was asked for, 2 wrong usage.

Another package adds a sub-command through the entry-point group `mechinterp_toolkit.commands`: a
`typer.Typer`, a command or a plain function. It is listed by name and imported when called; a
broken one then says why.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechinterp_toolkit.cli.contributed import Commands
from mechinterp_toolkit.cli.options import (
    AllCosts,
    Analyses,
    AnalysisName,
    Device,
    Dtype,
    Json,
    Processing,
    Seed,
    Set,
    SetByAnalysis,
    Wrapper,
    core_options,
    folder_option,
    loading,
    options_by_analysis,
    options_of,
)
from mechinterp_toolkit.cli.printing import exit_with, print_finding, print_report, print_verdicts
from mechinterp_toolkit.cli.terminal import (
    count,
    duration,
    print_json,
    print_table,
    progress_bar,
    say,
    stdout_to_stderr,
)
from mechinterp_toolkit.errors import NotApplicable, ToolkitError

if TYPE_CHECKING:
    from mechinterp_toolkit.registry import Analysis

DEFAULT_REPORT = Path("mechinterp-report")
DEFAULT_RESULTS = Path("mechinterp-results")

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

    registered, broken = all_analyses()
    keys = ("name", "question", "paper", "cost", "source")
    rows = [{key: getattr(analysis, key) for key in keys} for analysis in registered.values()]
    if as_json:
        broken_rows = [vars(b) for b in broken]
        print_json({"analyses": rows, "broken": broken_rows, "bundled": list(bundled_names())})
        return
    print_table(keys[:4] if len({row["source"] for row in rows}) < 2 else keys, rows)
    print(f"\nbundled checkpoints: {', '.join(bundled_names())}")
    for b in broken:
        say(f"{b.name} could not be imported: {b.reason}")


@app.command()
def run(
    analysis: AnalysisName,
    checkpoint: Annotated[str | None, typer.Argument(help="What to analyse.")] = None,
    out: Annotated[
        Path | None, folder_option("Folder of the result.", show_default="mechinterp-results/...")
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
    from mechinterp_toolkit.registry import get_analysis
    from mechinterp_toolkit.report.document import as_json as plain
    from mechinterp_toolkit.report.document import finding_account
    from mechinterp_toolkit.storage import save_result, tables_of

    entry = get_analysis(analysis)
    if activations or labels:
        if checkpoint is not None or activations is None or labels is None:
            raise ToolkitError(
                "give --activations and --labels together, and no checkpoint beside them."
            )
        _judge(entry, activations, labels, set_, as_json)
        return
    if checkpoint is None:
        raise ToolkitError("name a checkpoint, or give --activations and --labels.")
    options, load = options_of(entry, set_), loading(device, dtype, processing, wrapper).load
    with progress_bar() as progress:
        progress(0, 2, f"loading {checkpoint}")
        model = load(checkpoint)
        progress(1, 2, f"{checkpoint} · {analysis}")
        try:
            finding = entry.function(model, **options)
        except ToolkitError as error:  # the usage was right, the analysis stopped
            failed = f"{analysis} failed on {checkpoint}: "
            say(f"mechinterp: {'' if isinstance(error, NotApplicable) else failed}{error}")
            raise typer.Exit(1) from error
    folder = out or DEFAULT_RESULTS.joinpath(*safe_names([checkpoint]), analysis)
    account = finding_account(finding, str(folder), tables_of(save_result(finding, folder)))
    if as_json:
        print_json({"analysis": analysis, "checkpoint": checkpoint} | plain(account))
    else:
        print_finding(account)


def _judge(
    analysis: Analysis, activations: Path, labels: Path, words: list[str] | None, as_json: bool
) -> None:
    """Judge saved activations by an analysis' core on plain tensors, and print its verdicts."""
    from mechinterp_toolkit.results import Verdict
    from mechinterp_toolkit.tables import read_activations, read_labels

    if analysis.core is None:
        raise ToolkitError(
            f"{analysis.name} needs a model: it has no core that judges activations alone."
        )
    rows, classes = read_activations(activations), read_labels(labels)
    if len(rows) != len(classes):
        raise ToolkitError(
            f"{activations} has {len(rows)} rows and {labels} {len(classes)}; give one label per"
            " row."
        )
    fit = analysis.core(rows, classes, **core_options(analysis, words, int(classes.max()) + 1))
    properties = {name: getattr(fit, name) for name in dir(type(fit)) if not name.startswith("_")}
    verdicts = {name: v for name, v in properties.items() if isinstance(v, Verdict)}
    if as_json:
        plain = {name: vars(verdict) for name, verdict in verdicts.items()}
        about = {"analysis": analysis.name, "activations": str(activations), "n": len(rows)}
        print_json(about | plain)
    else:
        print_verdicts(verdicts)


@app.command()
def report(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="CHECKPOINT", help="What to analyse; by default every bundled toy."),
    ] = None,
    out: Annotated[Path, folder_option("Folder of the page and its data.")] = DEFAULT_REPORT,
    all_: AllCosts = False,
    analysis: Analyses = None,
    no_twin: Annotated[
        bool, typer.Option("--no-twin", help="Do without the twin with random weights.")
    ] = False,
    set_: SetByAnalysis = None,
    seed: Seed = None,
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = "float32",
    processing: Processing = "none",
    wrapper: Wrapper = "auto",
) -> None:
    """Run every analysis that applies and write one page, beside a twin with random weights."""
    from mechinterp_toolkit.checkpoint import bundled_names
    from mechinterp_toolkit.report.cost import estimate_seconds
    from mechinterp_toolkit.report.run import run_report
    from mechinterp_toolkit.report.settings import Settings

    specs = checkpoints or list(bundled_names())
    if not specs:
        raise ToolkitError(
            "no checkpoint was given and none is bundled; name one, e.g. `mechinterp report gpt2`."
        )
    settings = Settings(
        analysis or (),
        all_,
        options_by_analysis(set_),
        twin=not no_twin,
        seed=seed,
        loading=loading(device, dtype, processing, wrapper),
    )
    analyses = count(len(settings.chosen()), "analysis", "analyses")
    beside = "" if no_twin else ", each also on random weights"
    seconds = duration(estimate_seconds(len(specs), settings))
    say(
        f"{count(len(specs), 'checkpoint')}, {analyses}{beside}: on toys roughly {seconds}; larger"
        " models take longer in proportion."
    )
    with progress_bar() as progress:
        summary = run_report(specs, out, settings, progress=progress)
    print_report(summary, as_json)


@app.command()
def sweep(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="What to analyse, in order.")
    ],
    out: Annotated[Path, folder_option("Folder; what is done there is kept.")],
    analysis: Analyses = None,
    all_: AllCosts = False,
    set_: SetByAnalysis = None,
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
    from mechinterp_toolkit.report.settings import Settings
    from mechinterp_toolkit.report.sweep import sweep as run_sweep

    settings = Settings(
        analysis or (),
        all_,
        options_by_analysis(set_),
        seed=seed,
        loading=loading(device, dtype, processing, wrapper),
    )
    with progress_bar() as progress:
        summary = run_sweep(
            checkpoints, out, settings, n_jobs=jobs, backend=backend, progress=progress
        )
    if as_json:
        print_json({"rows": summary.rows, "failures": summary.failures})
    else:
        ran = [row for row in summary.rows if row["status"] == "ran"]
        print_table(("checkpoint", "analysis", "represented", "used"), ran)
        print(f"\n{summary.out / 'sweep.csv'}")
    exit_with(summary.failures)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A report, or any folder with results below it.")],
    as_json: Json = False,
) -> None:
    """Write the page of saved results again, without loading a model."""
    from mechinterp_toolkit.report.run import render

    print_report(render(folder), as_json)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A toy; a wrong name lists them all.")],
    out: Annotated[Path, folder_option("A new folder for the checkpoint.")],
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
    analysis: AnalysisName,
    models: Annotated[int, typer.Option(help="How many null models to run it on.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the first model; the others count up.")] = 0,
    as_json: Json = False,
) -> None:
    """Count how often an analysis finds something in models without the structure."""
    from mechinterp_toolkit import calibration

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
    analysis: AnalysisName,
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

    strengths = strength or calibration.STRENGTHS
    with progress_bar() as progress:
        result = calibration.power(
            analysis, strengths=strengths, models=models, seed=seed, progress=progress
        )
    if as_json:
        print_json({"analysis": analysis, "rows": result.rows()})
    else:
        print(result.text())
