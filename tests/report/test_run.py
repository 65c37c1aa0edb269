"""Running reports: what ran, what did not and why, and what is kept of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from mechinterp_toolkit.errors import CheckpointError
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.report import settings
from mechinterp_toolkit.report.run import ReportSummary, render, run_report


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "times"}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_a_report_says_verdicts_places_effect_control_and_twin(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "model")
    (row,) = summary.rows()
    assert row["represented"] == "found"
    assert row["used"] == "undecided"
    assert row["locations"] == ["0.1"]
    assert (row["effect"], row["low"], row["high"]) == (0.75, 0.625, 0.875)
    assert 0 < row["control_95"] <= 0.5  # the fake null is uniform below 0.5
    assert row["twin_represented"] == "not_found"
    assert summary.failures == ()
    shown = read(summary).text
    for words in (
        "model",
        "fingerprint 0123456789abcdef",
        "FakeTransformer",
        "Which heads?",
        "The best head scores 0.75 [0.625, 0.875].",
        "Head 0.1 was silenced.",
        "A name that looks like markup, which the page must show as text.",
        "Dropped.",
        "p = 0.01 at level 0.05",
        "power 0.9",
        "draws=20",
        'words=["a"]',
        "mechinterp report model",
        "mechinterp run heads model",
    ):
        assert words in shown


def test_results_are_saved_with_one_table_per_estimate_and_linked(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "toy/model")
    folder = tmp_path / "results" / "toy-model" / "heads"
    assert {p.name for p in folder.iterdir()} == {
        "result.json",
        "tensors.safetensors",
        "score.csv",
        "best.csv",
    }
    table = pandas.read_csv(folder / "score.csv")
    assert table["value"].tolist() == [0.25, 0.75]
    assert table["head"].tolist() == ["h0", "h1"]
    links = [a["href"] for a in read(summary).all("a") if a["href"].startswith("results/")]
    assert len(links) == 4
    assert all((tmp_path / link).is_file() for link in links)


def test_an_analysis_that_fails_takes_nothing_else_down_and_says_why(
    reported: Callable[..., ReportSummary],
    read: Callable[..., Any],
    tmp_path: Path,
    only_fakes: Callable[..., Any],
) -> None:
    only_fakes("clock")
    summary = reported(tmp_path, "broken model", "good model", analyses=["heads", "clock"])
    assert [row["status"] for row in summary.rows()] == ["failed", "failed", "ran", "ran"]
    assert (
        summary.failures[0]
        == "broken model, heads: RuntimeError: the tensors of broken model do not fit"
    )
    shown = read(summary).text
    assert "RuntimeError: the tensors of broken model do not fit" in shown
    assert "Traceback (most recent call last)" in shown


def test_an_analysis_that_does_not_apply_is_folded_away_with_its_reason(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "silent model")
    assert summary.rows() == [
        {
            "checkpoint": "silent model",
            "analysis": "heads",
            "status": "not_applicable",
            "reason": "it has no tokenizer.",
        }
    ]
    assert summary.failures == ()
    shown = read(summary)
    assert "1 not applicable to this checkpoint" in shown.text
    assert "It has no tokenizer." in shown.text
    assert "section" in {tag for tag, _ in shown.elements}
    assert not any(given.get("class") == "finding" for given in shown.all("section"))


def test_a_finding_that_random_weights_repeat_is_called_out(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    assert "Random weights show it too." in read(reported(tmp_path / "a", "always there")).text
    assert "Random weights show it too." not in read(reported(tmp_path / "b", "learned")).text


def test_a_checkpoint_without_twin_keeps_its_report_and_the_reason(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "twinless")
    assert summary.failures == ()
    assert summary.rows()[0]["twin_reason"] == "it does not say how it was initialised"
    assert "it does not say how it was initialised" in read(summary).text


def test_a_twin_that_fails_counts_as_a_failure(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    (failure,) = reported(tmp_path, "badtwin").failures
    assert failure.startswith("badtwin, heads on the random-weight twin: RuntimeError")


def test_without_twin_nothing_is_run_on_random_weights(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "badtwin", twin=False)
    assert summary.failures == ()
    assert "mechinterp report badtwin --no-twin" in read(summary).text


def test_the_command_of_a_section_names_revision_form_and_options_so_that_a_shell_runs_it_again(
    reported: Callable[..., ReportSummary], fake: Callable[[str], HookedModel], tmp_path: Path
) -> None:
    model = fake("org/model")
    other = {"revision": "step3", "processing": "compatible", "dtype": "bfloat16"}
    model = replace(model, provenance=replace(model.provenance, **other))
    options = {"heads": {"words": ("a", "b c")}}
    summary = reported(tmp_path, model, options=options, twin=False)
    command = summary.document.checkpoints[0].entries[0].result.command
    assert shlex.split(command) == [
        *("mechinterp", "run", "heads", "org/model@step3"),
        *("--processing", "compatible", "--dtype", "bfloat16", "--set", 'words=["a", "b c"]'),
    ]


def test_one_checkpoint_of_several_that_cannot_be_loaded_is_listed(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "missing", "model")
    assert summary.failures == ("missing: CheckpointError: there is no missing",)
    assert "Could not be loaded. CheckpointError: there is no missing" in read(summary).text
    assert [row["checkpoint"] for row in summary.rows()] == ["model"]


def test_a_report_on_nothing_but_missing_checkpoints_is_an_error(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="there is no missing"):
        reported(tmp_path / "out", "missing", "also missing")
    assert not (tmp_path / "out").exists()


def test_the_same_seed_gives_the_same_account_apart_from_times(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    first, second = (
        reported(tmp_path / name, "m", "silent", "broken", seed=1).out for name in "ab"
    )
    texts = [(out / "report.json").read_text(encoding="utf-8") for out in (first, second)]
    a, b = (json.dumps(without_times(json.loads(text)), sort_keys=True) for text in texts)
    assert a == b
    assert re.findall(r'"(?:date|seconds|peak_memory_mb)"', a) == []
    keys = re.findall(r'^ "(\w+)"', texts[0], flags=re.MULTILINE)
    assert keys == sorted(keys)


def test_an_interrupted_report_can_still_be_shown(
    reported: Callable[..., ReportSummary], tmp_path: Path, only_fakes: Callable[..., Any]
) -> None:
    only_fakes("interrupted")
    with pytest.raises(KeyboardInterrupt):
        reported(tmp_path, "silent")
    # A reason is in no result folder: it can only come from the account kept so far.
    assert [row["reason"] for row in render(tmp_path).rows()] == ["it has no tokenizer."]


def test_progress_counts_every_step_to_the_end(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    reported(tmp_path, "m", "silent", "missing", progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4, 6, 9]
    # per checkpoint: loading, the analysis, the analysis on its twin
    assert {total for _, total, _ in seen} == {9}
    assert seen[2][2] == "m · heads · random weights"
    assert seen[-1][2] == "writing the page"


@pytest.mark.usefixtures("only_fakes")
def test_models_can_be_given_as_they_are(
    fake: Callable[[str], HookedModel], tmp_path: Path
) -> None:
    assert run_report([fake("in memory")], tmp_path).rows()[0]["checkpoint"] == "in memory"


def test_saved_results_give_the_same_page_without_a_model(
    reported: Callable[..., ReportSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = reported(tmp_path, "model", "broken", "silent")
    before = {
        name: (tmp_path / name).read_bytes() for name in ("report.html", "report.md", "report.json")
    }
    monkeypatch.setattr(settings, "load_model", None)
    again = render(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert again.rows() == summary.rows()


def test_a_picture_that_fails_leaves_the_section_standing(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "m", options={"heads": {"text": " undrawable"}})
    assert summary.failures == ("m, heads: RuntimeError: no picture today",)
    shown = read(summary).text
    assert "The pictures could not be drawn: RuntimeError: no picture today" in shown
    assert "Head 0.1 was silenced undrawable." in shown
