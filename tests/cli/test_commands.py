"""The command line: what it costs to start, what it prints where, and its exit codes."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from mechinterp_toolkit import checkpoint, registry, toys
from mechinterp_toolkit.cli import commands as cli
from mechinterp_toolkit.cli import doctor, terminal
from mechinterp_toolkit.errors import CheckpointError, ToolkitError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry import fit_circle
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.report import settings
from mechinterp_toolkit.results import Estimate, Provenance, Verdict

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


# --- a fake analysis, checkpoint and toy ---------------------------------------------------------


@dataclass(frozen=True)
class Level(Finding):
    """One number."""

    level: Estimate

    @property
    def represented(self) -> Verdict:
        return Verdict("not_found", "The level is no higher than that of shuffled weights.", p=0.5)

    @property
    def used(self) -> Verdict:
        return Verdict("undecided", "Nothing was edited.")

    @property
    def effect(self) -> Estimate:
        return self.level

    @property
    def locations(self) -> tuple[str, ...]:
        return ("0.1",)

    def answer(self) -> str:
        return f"The level is {self.level.text()}."

    def causal_check(self) -> str:
        return "Nothing was edited."


def level(model: HookedModel, *, draws: int = 10, seed: int = 0) -> Level:
    print("a library that prints")
    name = model.provenance.checkpoint
    if "crash" in name:
        raise RuntimeError("the tensors do not fit")
    if "stop" in name:
        raise ToolkitError("the answers are not one token")
    value = torch.tensor(0.5)
    return Level(
        Estimate(
            value, value - 0.25, value + 0.25, 3, "nats", "exact", torch.rand(draws), "shuffled"
        )
    )


def slow(model: HookedModel) -> Level:
    return level(model)


def load(name: Any, **options: Any) -> HookedModel:
    if isinstance(name, HookedModel):
        return name
    if "missing" in name:
        raise CheckpointError(f"there is no {name}")
    dtype = str(options.get("dtype", torch.float32)).removeprefix("torch.")
    provenance = Provenance(
        name,
        None,
        "0123",
        "Fake",
        options.get("processing", "none"),
        None,
        dtype,
        "cpu",
        {"torch": "2"},
    )
    twin = Provenance(
        f"{name} (random)", None, "4567", "Fake", "none", None, dtype, "cpu", {"torch": "2"}
    )
    return HookedModel(None, None, provenance, lambda seed: HookedModel(None, None, twin))


@dataclass(frozen=True)
class Outcome:
    """What one call of the command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def mechinterp(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Return a function that runs the command in an empty folder, with the fakes above for analyses
    and checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_import_built_ins", lambda: ())
    monkeypatch.setattr(
        registry,
        "_import_entry_points",
        lambda: (registry.Broken("outdated", "RuntimeError: old"),),
    )

    def needs_tokenizer(model):
        return "no tokenizer." if "silent" in model.provenance.checkpoint else None

    analysis(question="How high?", paper="Doe 2024", applies=needs_tokenizer)(level)
    analysis(question="How slow?", paper="Doe 2025", cost="slow")(slow)
    monkeypatch.setattr(settings, "load_model", load)
    monkeypatch.setattr(checkpoint, "bundled_names", lambda: ("toy/a", "toy/b"))

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mechinterp", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return call


# --- starting is cheap ---------------------------------------------------------------------------


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


# --- list ----------------------------------------------------------------------------------------


def test_list_shows_questions_papers_toys_and_broken_packages(
    mechinterp: Callable[..., Outcome],
) -> None:
    done = mechinterp("list")
    assert done.code == 0
    assert "How high?" in done.out
    assert "Doe 2025" in done.out
    assert "toy/a, toy/b" in done.out
    assert "outdated could not be imported: RuntimeError: old" in done.err


def test_list_can_be_read_by_machines(mechinterp: Callable[..., Outcome]) -> None:
    document = json.loads(mechinterp("list", "--json").out)
    assert [entry["name"] for entry in document["analyses"]] == ["level", "slow"]
    assert document["broken"] == [{"name": "outdated", "reason": "RuntimeError: old"}]


# --- run -----------------------------------------------------------------------------------------


def test_run_saves_the_result_and_prints_the_answer(
    mechinterp: Callable[..., Outcome], tmp_path: Path
) -> None:
    done = mechinterp("run", "level", "toy/a", "-o", "here", "--set", "draws=7")
    assert done.code == 0
    assert "The level is 0.5 [0.25, 0.75]." in done.out
    assert "not found" in done.out
    assert json.loads((tmp_path / "here" / "result.json").read_text())["analysis"] == "level"
    assert (tmp_path / "here" / "level.csv").is_file()


def test_run_without_folder_sorts_results_by_checkpoint_and_analysis(
    mechinterp: Callable[..., Outcome], tmp_path: Path
) -> None:
    mechinterp("run", "level", "toy/a")
    assert (tmp_path / "mechinterp-results" / "toy-a" / "level" / "result.json").is_file()


def test_run_prints_one_document_for_machines_and_libraries_do_not_get_in_between(
    mechinterp: Callable[..., Outcome],
) -> None:
    done = mechinterp("run", "level", "toy/a", "--json", "--set", "draws=7")
    document = json.loads(done.out)
    assert document["options"] == {"draws": 7, "seed": 0}
    assert "a library that prints" in done.err


def test_run_passes_dtype_and_processing_on(
    mechinterp: Callable[..., Outcome], tmp_path: Path
) -> None:
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
    mechinterp: Callable[..., Outcome],
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


def test_an_unknown_command_is_wrong_usage(mechinterp: Callable[..., Outcome]) -> None:
    done = mechinterp("reprot")
    assert done.code == 2
    assert "report" in done.err


def test_run_on_a_model_that_cannot_be_judged_gives_the_reason_and_1(
    mechinterp: Callable[..., Outcome],
) -> None:
    done = mechinterp("run", "level", "silent")
    assert done.code == 1
    assert "level cannot judge silent: no tokenizer." in done.err


def test_run_that_stops_with_a_reason_gives_it_and_1(mechinterp: Callable[..., Outcome]) -> None:
    done = mechinterp("run", "level", "stop")
    assert done.code == 1
    assert "level failed on stop: the answers are not one token" in done.err


def test_run_that_crashes_shows_its_traceback(
    mechinterp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mechinterp", "run", "level", "crash"])
    with pytest.raises(RuntimeError, match="the tensors do not fit"):
        cli.main()


# --- report and show -----------------------------------------------------------------------------


def test_report_without_argument_takes_every_bundled_toy(
    mechinterp: Callable[..., Outcome], tmp_path: Path
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
    mechinterp: Callable[..., Outcome],
) -> None:
    lines = mechinterp("report", "m").err.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[0/3] loading m",
        "[1/3] m · level",
        "[2/3] m · level · random weights",
        "[3/3] writing the page",
    ]


def test_report_in_which_an_analysis_fails_exits_with_1_and_still_writes_the_page(
    mechinterp: Callable[..., Outcome], tmp_path: Path
) -> None:
    done = mechinterp("report", "crash", "m", "-o", "out")
    assert done.code == 1
    assert "failed: crash, level: RuntimeError: the tensors do not fit" in done.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_report_in_which_nothing_applies_is_no_failure(mechinterp: Callable[..., Outcome]) -> None:
    done = mechinterp("report", "silent")
    assert done.code == 0
    assert "not applicable: 1" in done.out


def test_report_understands_its_options_and_keeps_them_in_its_command(
    mechinterp: Callable[..., Outcome], tmp_path: Path
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


def test_report_runs_the_slow_ones_when_asked_for_all(mechinterp: Callable[..., Outcome]) -> None:
    assert "slow" not in mechinterp("report", "m").out
    assert "slow" in mechinterp("report", "m", "--all").out


def test_report_prints_one_document_for_machines(mechinterp: Callable[..., Outcome]) -> None:
    document = json.loads(mechinterp("report", "m", "--json").out)
    assert document["failures"] == []
    (finding,) = document["findings"]
    assert (finding["represented"], finding["effect"], finding["twin_used"]) == (
        "not_found",
        0.5,
        "undecided",
    )


def test_show_writes_the_page_again_and_prints_the_same_table(
    mechinterp: Callable[..., Outcome], tmp_path: Path
) -> None:
    reported = mechinterp("report", "m", "-o", "out")
    (tmp_path / "out" / "report.html").unlink()
    shown = mechinterp("show", "out")
    assert shown.out == reported.out
    assert (tmp_path / "out" / "report.html").is_file()


def test_show_makes_a_page_of_single_runs(
    mechinterp: Callable[..., Outcome], tmp_path: Path
) -> None:
    mechinterp("run", "level", "toy/a")
    assert mechinterp("show", "mechinterp-results").code == 0
    assert "How high?" in (tmp_path / "mechinterp-results" / "report.html").read_text()


# --- train, doctor, calibrate --------------------------------------------------------------------


def test_train_passes_name_seed_and_steps_on_and_shows_metrics(
    mechinterp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
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


def test_doctor_reports_each_check_and_fails_when_one_does(
    mechinterp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise OSError("no such device")

    monkeypatch.setattr(
        doctor,
        "diagnose",
        lambda: [doctor._look("good", lambda: "fine"), doctor._look("bad", broken)],
    )
    done = mechinterp("doctor")
    assert done.code == 1
    assert "OSError: no such device" in done.out
    assert json.loads(mechinterp("doctor", "--json").out) == {
        "good": {"ok": True, "detail": "fine"},
        "bad": {"ok": False, "detail": "OSError: no such device"},
    }


def test_doctor_says_versions_offline_variables_and_broken_packages(
    mechinterp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_bundled", lambda: "none")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checks = json.loads(mechinterp("doctor", "--json").out)
    assert f"torch {torch.__version__}" in checks["versions"]["detail"]
    assert "HF_HUB_OFFLINE=1" in checks["environment"]["detail"]
    assert "TransformerBridge" in checks["wrapper"]["detail"]
    assert checks["devices"]["detail"].startswith("cpu")
    assert checks["analyses"] == {
        "ok": False,
        "detail": "ImportError: outdated could not be imported: RuntimeError: old",
    }


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
    mechinterp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, passed: bool
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
    mechinterp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
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


# --- commands of other packages ------------------------------------------------------------------


@pytest.fixture
def contributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three commands in the entry-point group: one works, one does not import, one bears a
    built-in's name."""
    module = types.ModuleType("contributed_commands")
    module.brush = lambda: print("brushed")
    module.nested = typer.Typer()
    module.nested.command()(lambda times: print("nested", times))
    monkeypatch.setitem(sys.modules, "contributed_commands", module)
    named = {"brush": "contributed_commands:brush", "nest": "contributed_commands:nested"}
    named |= {"gone": "package_that_is_not_there:main", "list": "package_that_is_not_there:main"}
    points = [
        importlib.metadata.EntryPoint(name, value, doctor.COMMANDS) for name, value in named.items()
    ]
    real = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **by: points if by == {"group": doctor.COMMANDS} else real(**by),
    )
    group = typer.main.get_command(cli.app)
    monkeypatch.setattr(cli, "app", functools.partial(group.main))


@pytest.mark.usefixtures("contributed")
def test_commands_of_other_packages_are_named_without_being_imported(
    mechinterp: Callable[..., Outcome],
) -> None:
    done = mechinterp("--help")
    assert done.code == 0
    for name in ("brush", "nest", "gone"):
        assert f" {name} " in done.out


@pytest.mark.usefixtures("contributed")
def test_a_command_of_another_package_is_imported_when_called(
    mechinterp: Callable[..., Outcome],
) -> None:
    assert mechinterp("brush").out == "brushed\n"
    assert mechinterp("nest", "3").out == "nested 3\n"


@pytest.mark.usefixtures("contributed")
def test_a_broken_command_says_why_when_called(mechinterp: Callable[..., Outcome]) -> None:
    done = mechinterp("gone")
    assert done.code == 1
    assert (
        "gone (package_that_is_not_there:main) could not be imported: ModuleNotFoundError"
        in done.err
    )


@pytest.mark.usefixtures("contributed")
def test_a_built_in_command_cannot_be_replaced(mechinterp: Callable[..., Outcome]) -> None:
    assert "How high?" in mechinterp("list").out


# --- what a reader's terminal gets ---------------------------------------------------------------


def test_control_characters_of_a_checkpoint_do_not_reach_the_terminal(
    mechinterp: Callable[..., Outcome],
) -> None:
    done = mechinterp("report", "m\x1b[2J\x07")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert "\x07" not in done.out + done.err


def test_no_color_is_honoured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal.print_table(("verdict",), [{"verdict": "undecided"}])
    assert "\x1b[33m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.print_table(("verdict",), [{"verdict": "undecided"}])
    assert "\x1b[33m" not in capsys.readouterr().out


def test_tables_off_a_terminal_keep_each_row_on_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.print_table(("name", "question"), [{"name": "a", "question": "why " * 60}])
    assert len(capsys.readouterr().out.splitlines()) == 2


# --- activations instead of a checkpoint ---------------------------------------------------------


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
    mechinterp: Callable[..., Outcome], tmp_path: Path
) -> None:
    given = sevenths(tmp_path)
    for arguments, words in (
        (["run", "level", *given], "level needs a model: it has no core"),
        (["run", "level"], "name a checkpoint, or give --activations and --labels"),
    ):
        outcome = mechinterp(*arguments)
        assert (outcome.code, words in outcome.err) == (2, True), outcome.err
    analysis(question="How round?", paper="Doe 2026", core=fit_circle)(round_)
    for arguments, words in (
        (["run", "round_", "m", *given], "no checkpoint beside them"),
        (["run", "round_", *given[:2]], "give --activations and --labels together"),
        (["run", "round_", *given, "--set", "perod=7"], "no option 'perod'. Did you mean 'period'"),
        (["run", "round_", *given, "--set", "period=x"], "is no JSON value"),
    ):
        outcome = mechinterp(*arguments)
        assert (outcome.code, words in outcome.err) == (2, True), outcome.err
    assert "Ordered" in mechinterp("run", "round_", *given).out


def round_(model: HookedModel) -> Level:
    return level(model)
