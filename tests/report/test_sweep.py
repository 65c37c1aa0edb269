"""Sweeps: one job each, one table, resumed where it stopped; a series is judged as a series."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas
import pytest

from mechinterp_toolkit.errors import RegistryError, ToolkitError
from mechinterp_toolkit.report import sweep as sweeping
from mechinterp_toolkit.report.settings import Settings
from mechinterp_toolkit.report.sweep import first_found, sweep

TWO = ("toy/s5@step0", "toy/s5")
QUICK = Settings(["group_fourier"], options={"group_fourier": {"draws": 99}})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return out, sweep(TWO, out, QUICK, n_jobs=2)


def test_every_checkpoint_has_its_rows_and_its_page_in_order(swept):
    out, summary = swept
    assert [row["checkpoint"] for row in summary.rows] == list(TWO)
    assert [row["represented"] for row in summary.rows] == ["not_found", "found"]
    assert summary.rows[1]["represented_p"] <= 0.05 < summary.rows[0]["represented_p"]
    assert summary.failures == ()
    table = pandas.read_csv(out / "sweep.csv")
    assert table["checkpoint"].tolist() == list(TWO)
    assert len(list(out.glob("*/report.html"))) == 2


def test_what_is_done_is_not_run_again_unless_settings_change(swept, monkeypatch):
    out, first = swept
    ran = []
    monkeypatch.setattr(sweeping, "_run", lambda name, folder, _: ran.append(name) or name)
    again = sweep(TWO, out, QUICK)
    assert (ran, again.resumed, again.rows) == ([], 2, first.rows)
    sweep(TWO, out, replace(QUICK, options={"group_fourier": {"draws": 49}}))
    assert ran == list(TWO)


def test_a_checkpoint_that_fails_is_named_and_run_again(tmp_path):
    summary = sweep(("toy/s5@step7", "toy/s5"), tmp_path, QUICK)
    assert len(summary.rows) == 1
    assert len(summary.failures) == 1
    assert summary.failures[0].startswith("toy/s5@step7: CheckpointError")
    noted = json.loads(next(tmp_path.glob("*step7*/sweep.json")).read_text())
    assert noted["failures"]
    assert sweep(("toy/s5@step7", "toy/s5"), tmp_path, QUICK).resumed == 1


def series(*p: float | None):
    return [
        {"checkpoint": f"step{step}", "analysis": "a", "represented_p": value}
        for step, value in enumerate(p)
    ]


def test_a_series_needs_two_neighbours_beyond_a_corrected_level():
    assert first_found(series(0.5, 0.01, 0.01, 0.01), "a") == "step1"
    assert first_found(series(0.01, 0.5, 0.01, 0.5), "a") is None  # never twice in a row
    assert first_found(series(0.5, 0.02, 0.02, 0.02), "a") is None  # .02 x 4 is above .05
    assert first_found(series(None, 0.001, 0.001), "a") == "step1"
    with pytest.raises(ToolkitError, match="no row is about 'b'"):
        first_found(series(0.1), "b")


def test_what_cannot_be_swept_is_refused(tmp_path):
    with pytest.raises(ToolkitError, match="each once"):
        sweep(("toy/s5", "toy/s5"), tmp_path)
    with pytest.raises(RegistryError, match="no analysis is called 'group_furier'"):
        sweep(("toy/s5",), tmp_path, Settings(["group_furier"]))
