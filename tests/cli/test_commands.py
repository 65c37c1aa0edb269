"""The command line: what it costs to start, what it prints where, and its exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp_toolkit import registry, toys
from mechinterp_toolkit.cli import commands as cli

HEAVY = (
    "datasets",
    "jaxtyping",
    "jinja2",
    "numpy",
    "pandas",
    "plotly",
    "scipy",
    "torch",
    "transformer_lens",
    "transformers",
)


# --- starting is cheap ----------------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_help_works_where_only_typer_and_rich_are_installed() -> None:
    run = python(f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.argv = ["mechinterp", "--help"]
from mechinterp_toolkit.cli import main
main()
""")
    assert run.returncode == 0, run.stderr
    for command in ("list", "run", "report", "show", "train", "doctor", "calibrate", "power"):
        assert f" {command} " in run.stdout


def test_list_does_without_transformer_lens_and_plotting() -> None:
    run = python("""
import sys
sys.argv = ["mechinterp", "list"]
from mechinterp_toolkit.cli import main
try:
    main()
except SystemExit:
    slow = {"torch", "transformer_lens", "plotly", "pandas", "jinja2"}
    print("LOADED", sorted(slow & set(sys.modules)))
""")
    assert run.stdout.splitlines()[-1] == "LOADED ['torch']", run.stderr


def test_the_module_runs_as_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mechinterp_toolkit", "--version"], capture_output=True, text=True
    )
    assert run.stdout == f"mechinterp-toolkit {importlib.metadata.version('mechinterp-toolkit')}\n"


# --- list -----------------------------------------------------------------------------------------


def test_list_shows_questions_papers_toys_and_broken_packages(
    mechinterp: Callable[..., Any],
) -> None:
    done = mechinterp("list")
    assert done.code == 0
    assert "How high?" in done.out
    assert "Doe 2025" in done.out
    assert "toy/a, toy/b" in done.out
    assert "outdated could not be imported: RuntimeError: old" in done.err


def test_list_can_be_read_by_machines(mechinterp: Callable[..., Any]) -> None:
    document = json.loads(mechinterp("list", "--json").out)
    assert [entry["name"] for entry in document["analyses"]] == ["level", "slow"]
    assert document["broken"] == [{"name": "outdated", "reason": "RuntimeError: old"}]


# --- run ------------------------------------------------------------------------------------------


def test_run_saves_the_result_and_prints_the_answer(
    mechinterp: Callable[..., Any], tmp_path: Path
) -> None:
    done = mechinterp("run", "level", "toy/a", "-o", "here", "--set", "draws=7")
    assert done.code == 0
    assert "The level is 0.5 [0.25, 0.75]." in done.out
    assert "not found" in done.out
    assert json.loads((tmp_path / "here" / "result.json").read_text())["analysis"] == "level"
    assert (tmp_path / "here" / "level.csv").is_file()


def test_run_without_folder_sorts_results_by_checkpoint_and_analysis(
    mechinterp: Callable[..., Any], tmp_path: Path
) -> None:
    mechinterp("run", "level", "toy/a")
    assert (tmp_path / "mechinterp-results" / "toy-a" / "level" / "result.json").is_file()


def test_run_prints_one_document_for_machines_and_libraries_do_not_get_in_between(
    mechinterp: Callable[..., Any],
) -> None:
    done = mechinterp("run", "level", "toy/a", "--json", "--set", "draws=7")
    document = json.loads(done.out)
    assert document["options"] == {"draws": 7, "seed": 0}
    assert "a library that prints" in done.err


def test_run_passes_dtype_and_processing_on(mechinterp: Callable[..., Any], tmp_path: Path) -> None:
    mechinterp("run", "level", "m", "-o", "r", "--dtype", "bfloat16", "--processing", "compatible")
    fields = json.loads((tmp_path / "r" / "result.json").read_text())["fields"]["provenance"][
        "fields"
    ]
    assert (fields["dtype"], fields["processing"]) == ("bfloat16", "compatible")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "levle", "toy/a"), "no analysis is called 'levle'. Did you mean 'level'?"),
        (("run", "level", "missing"), "there is no missing"),
        (
            ("run", "level", "toy/a", "--set", "drws=3"),
            "level has no option 'drws'. Did you mean 'draws'?",
        ),
        (("run", "level", "toy/a", "--set", "draws"), "--set takes NAME=VALUE, not 'draws'"),
        (
            ("run", "level", "toy/a", "--set", "draws=many"),
            "level.draws is of type int, not 'many'",
        ),
        (("run", "level", "toy/a", "--dtype", "float23"), "'float23'. Did you mean 'float"),
        (
            ("run", "level", "toy/a", "--wrapper", "Hooked"),
            "wrapper is one of auto, HookedTransformer",
        ),
        (("report", "missing"), "there is no missing"),
        (("report", "--analysis", "levle"), "no analysis is called 'levle'"),
        (("report", "--set", "draws=3"), "--set takes ANALYSIS.NAME=VALUE here, not 'draws'"),
        (("report", "--set", "slow.x=3"), "slow has no option 'x'"),
        (("show", "nowhere"), "nowhere holds neither report.json nor any result.json"),
        (("train", "nonsense", "-o", "x"), "no toy is called 'nonsense'"),
        (("calibrate", "levle"), "no analysis is called 'levle'"),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_a_wrong_name_is_one_sentence_and_exit_code_2(
    mechinterp: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    fake_calibration(monkeypatch, passed=True)
    done = mechinterp(*arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_an_unknown_command_is_wrong_usage(mechinterp: Callable[..., Any]) -> None:
    done = mechinterp("reprot")
    assert done.code == 2
    assert "report" in done.err


def test_run_on_a_model_that_cannot_be_judged_gives_the_reason_and_1(
    mechinterp: Callable[..., Any],
) -> None:
    done = mechinterp("run", "level", "silent")
    assert done.code == 1
    assert "level cannot judge silent: no tokenizer." in done.err


def test_run_that_stops_with_a_reason_gives_it_and_1(mechinterp: Callable[..., Any]) -> None:
    done = mechinterp("run", "level", "stop")
    assert done.code == 1
    assert "level failed on stop: the answers are not one token" in done.err


def test_run_that_crashes_shows_its_traceback(
    mechinterp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mechinterp", "run", "level", "crash"])
    with pytest.raises(RuntimeError, match="the tensors do not fit"):
        cli.main()


# --- report and show ------------------------------------------------------------------------------


def test_report_without_argument_takes_every_bundled_toy(
    mechinterp: Callable[..., Any], tmp_path: Path
) -> None:
    done = mechinterp("report")
    assert done.code == 0
    assert (tmp_path / "mechinterp-report" / "report.html").is_file()
    assert "2 checkpoints, 1 analysis, each also on random weights: on toys roughly" in done.err
    assert "toy/a" in done.out
    assert "toy/b" in done.out
    document = json.loads((tmp_path / "mechinterp-report" / "report.json").read_text())
    assert document["command"] == "mechinterp report toy/a toy/b"


def test_report_shows_its_steps_as_plain_lines_off_a_terminal(
    mechinterp: Callable[..., Any],
) -> None:
    lines = mechinterp("report", "m").err.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[0/3] loading m",
        "[1/3] m · level",
        "[2/3] m · level · random weights",
        "[3/3] writing the page",
    ]


def test_report_in_which_an_analysis_fails_exits_with_1_and_still_writes_the_page(
    mechinterp: Callable[..., Any], tmp_path: Path
) -> None:
    done = mechinterp("report", "crash", "m", "-o", "out")
    assert done.code == 1
    assert "failed: crash, level: RuntimeError: the tensors do not fit" in done.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_report_in_which_nothing_applies_is_no_failure(mechinterp: Callable[..., Any]) -> None:
    done = mechinterp("report", "silent")
    assert done.code == 0
    assert "not applicable: 1" in done.out


def test_report_understands_its_options_and_keeps_them_in_its_command(
    mechinterp: Callable[..., Any], tmp_path: Path
) -> None:
    line = (
        "report m --analysis level --analysis slow --no-twin --seed 3 --set level.draws=4 --dtype"
        " float16"
    )
    words = line.split()
    assert mechinterp(*words, "--output_path", "out").code == 0
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    first, second = document["checkpoints"][0]["entries"]
    assert first["options"] == {"draws": 4, "seed": 3}
    assert second["analysis"] == "slow"
    assert "twin" not in first
    assert document["command"].split()[1:] == words


def test_report_runs_the_slow_ones_when_asked_for_all(mechinterp: Callable[..., Any]) -> None:
    assert "slow" not in mechinterp("report", "m").out
    assert "slow" in mechinterp("report", "m", "--all").out


def test_report_prints_one_document_for_machines(mechinterp: Callable[..., Any]) -> None:
    document = json.loads(mechinterp("report", "m", "--json").out)
    assert document["failures"] == []
    (finding,) = document["findings"]
    assert (finding["represented"], finding["effect"], finding["twin_used"]) == (
        "not_found",
        0.5,
        "undecided",
    )


def test_show_writes_the_page_again_and_prints_the_same_table(
    mechinterp: Callable[..., Any], tmp_path: Path
) -> None:
    reported = mechinterp("report", "m", "-o", "out")
    (tmp_path / "out" / "report.html").unlink()
    shown = mechinterp("show", "out")
    assert shown.out == reported.out
    assert (tmp_path / "out" / "report.html").is_file()


def test_show_makes_a_page_of_single_runs(mechinterp: Callable[..., Any], tmp_path: Path) -> None:
    mechinterp("run", "level", "toy/a")
    assert mechinterp("show", "mechinterp-results").code == 0
    assert "How high?" in (tmp_path / "mechinterp-results" / "report.html").read_text()


# --- train, calibrate -----------------------------------------------------------------------------


def test_train_passes_name_seed_and_steps_on_and_shows_metrics(
    mechinterp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(
        name: str, folder: Path, *, seed: int, steps: int | None, progress: Callable[..., None]
    ) -> Path:
        progress(5, 10, {"loss": 0.25})
        return Path(folder) / f"{name}-{seed}-{steps}"

    monkeypatch.setitem(vars(toys), "train", train)
    done = mechinterp("train", "s5", "-o", "new", "--seed", "2", "--steps", "10")
    assert done.code == 0
    assert done.out == f"{Path('new') / 's5-2-10'}\n"
    assert "[5/10] training s5: loss 0.25" in done.err


def fake_calibration(monkeypatch: pytest.MonkeyPatch, *, passed: bool) -> None:
    def calibrate(
        name: str, *, models: int, seed: int, progress: Callable[[int, int, str], None]
    ) -> Any:
        registry.get_analysis(name)
        progress(1, models, name)
        rows = [{"twin": "random weights", "rejections": 12, "models": models, "seed": seed}]
        return types.SimpleNamespace(passed=passed, rows=lambda: rows, text=lambda: "12 of 200")

    module = types.ModuleType("mechinterp_toolkit.calibration")
    module.calibrate = calibrate
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys.modules["mechinterp_toolkit"], "calibration", module, raising=False)


@pytest.mark.parametrize("passed", [True, False])
def test_calibrate_exits_with_what_it_found(
    mechinterp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, passed: bool
) -> None:
    fake_calibration(monkeypatch, passed=passed)
    done = mechinterp("calibrate", "level", "--models", "50")
    assert (done.code, done.out) == (0 if passed else 1, "12 of 200\n")
    document = json.loads(mechinterp("calibrate", "level", "--json", "--seed", "4").out)
    assert document["passed"] is passed
    assert document["rows"] == [
        {"twin": "random weights", "rejections": 12, "models": 200, "seed": 4}
    ]


def test_power_names_strengths_and_verdicts(
    mechinterp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    module = types.ModuleType("mechinterp_toolkit.calibration")
    module.STRENGTHS = (0.5, 1.0)
    rows = [{"verdict": "used", "strength": "0.5", "value": 1.0}]
    module.power = lambda name, **options: (
        asked.update(options, name=name)
        or types.SimpleNamespace(rows=lambda: rows, text=lambda: "1 of 1")
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys.modules["mechinterp_toolkit"], "calibration", module, raising=False)
    assert (
        mechinterp("power", "level", "--strength", "0.1", "--strength", "0.3", "--models", "2").out
        == "1 of 1\n"
    )
    assert (asked["name"], asked["strengths"], asked["models"], asked["seed"]) == (
        "level",
        [0.1, 0.3],
        2,
        0,
    )
    assert json.loads(mechinterp("power", "level", "--json").out) == {
        "analysis": "level",
        "rows": rows,
    }
    assert asked["strengths"] == (0.5, 1.0)


# --- activations instead of a checkpoint ----------------------------------------------------------


def sevenths(folder: Path) -> list[str]:
    """Seven rows around a circle and their labels, on disk; as arguments of `run`."""
    angle = 2 * torch.pi * torch.arange(7) / 7
    rows = torch.stack([angle.cos(), angle.sin(), 0.01 * angle**2], 1)
    (folder / "acts.csv").write_text(
        "\n".join(",".join(str(float(x)) for x in row) for row in rows)
    )
    (folder / "labels.csv").write_text("\n".join(map(str, range(7))))
    return ["--activations", str(folder / "acts.csv"), "--labels", str(folder / "labels.csv")]


def test_run_judges_activations_saved_by_another_tool(tmp_path: Path) -> None:
    arguments = [
        "-m",
        "mechinterp_toolkit",
        "run",
        "circular_features",
        *sevenths(tmp_path),
        "--json",
    ]
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["represented"]["outcome"] == "found"
    assert document["ring"]["outcome"] == "undecided"  # one row per class: closure has no interval


def test_activations_that_cannot_be_judged_are_refused(
    mechinterp: Callable[..., Any], register_round: Callable[[], None], tmp_path: Path
) -> None:
    given = sevenths(tmp_path)
    for arguments, words in (
        (["run", "level", *given], "level needs a model: it has no core"),
        (["run", "level"], "name a checkpoint, or give --activations and --labels"),
    ):
        outcome = mechinterp(*arguments)
        assert (outcome.code, words in outcome.err) == (2, True), outcome.err
    register_round()
    for arguments, words in (
        (["run", "round_", "m", *given], "no checkpoint beside them"),
        (["run", "round_", *given[:2]], "give --activations and --labels together"),
        (["run", "round_", *given, "--set", "perod=7"], "no option 'perod'. Did you mean 'period'"),
        (["run", "round_", *given, "--set", "period=x"], "is no JSON value"),
    ):
        outcome = mechinterp(*arguments)
        assert (outcome.code, words in outcome.err) == (2, True), outcome.err
    assert "Ordered" in mechinterp("run", "round_", *given).out
