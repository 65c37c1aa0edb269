"""The account of a report: written and read back as it was, or put together from results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.report.document import read_document, write_document
from mechinterp_toolkit.report.run import ReportSummary, render

RAN = {
    *("status", "represented", "used", "locations", "effect", "answer", "causal_check", "caveats"),
    *("prompts_hash", "folder", "tables", "options", "command", "times"),
}
"""Keys of a finding: other programs read them, so they stay."""


def test_the_account_has_the_keys_that_other_programs_read(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    reported(tmp_path, "model", "silent", "broken", "twinless", "badtwin", "missing")
    document = json.loads((tmp_path / "report.json").read_text())
    assert set(document) == {"schema_version", "command", "checkpoints", "times"}
    assert set(document["times"]) == {"date", "seconds"}
    *loaded, missing = document["checkpoints"]
    assert {*map(frozenset, loaded)} == {
        frozenset({"checkpoint", "status", "folder", "provenance", "entries"})
    }
    assert set(missing) == {*loaded[0], "reason", "details"} - {"folder"}
    assert (missing["provenance"], missing["entries"]) == (None, [])
    assert "run" not in loaded[0]["provenance"]
    about = {"analysis", "question", "paper", "fooled_by", "source"}
    (model,), (silent,), (broken,), (twinless,), (badtwin,) = (c["entries"] for c in loaded)
    assert set(model) == RAN | about | {"twin"}
    assert set(silent) == about | {"status", "reason"}
    assert set(broken) == about | {"status", "reason", "details"}
    assert set(model["twin"]) == {"status", "represented", "used", "locations", "effect"}
    assert set(twinless["twin"]) == {"status", "reason"}
    assert set(badtwin["twin"]) == {"status", "reason", "details"}
    number = {"value", "low", "high", "n", "unit", "method", "text", "control"}
    percentiles = {f"percentile_{p}" for p in ("2.5", "95", "97.5")}
    assert set(model["effect"]) == number
    assert set(model["effect"]["control"]) == {"name", "draws", "mean", "text"} | percentiles
    verdict = {"outcome", "reason", "p", "alpha", "smallest_effect", "power"}
    assert set(model["represented"]) == verdict


def test_an_account_comes_back_as_it_was_written(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    reported(tmp_path, "model", "silent", "broken", "twinless", "badtwin", "missing")
    written = (tmp_path / "report.json").read_bytes()
    write_document(tmp_path / "again", read_document(tmp_path))
    assert (tmp_path / "again" / "report.json").read_bytes() == written


def test_keys_that_a_later_version_added_are_passed_over(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    document = reported(tmp_path, "model").document
    later = json.loads((tmp_path / "report.json").read_text()) | {"later": 1}
    later["checkpoints"][0]["entries"][0] |= {"later": 1}
    later["checkpoints"][0]["provenance"] |= {"later": 1}
    (tmp_path / "report.json").write_text(json.dumps(later))
    assert read_document(tmp_path) == document


def test_results_without_an_account_can_be_shown(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "model")
    (tmp_path / "report.json").unlink()
    shown = render(tmp_path)
    assert shown.rows()[0]["represented"] == "found"
    assert "Which heads?" in read(shown).text
    page = summary.html.read_text(encoding="utf-8")
    assert len(re.findall("result.json", page)) == 2  # link and its text


def test_an_empty_folder_and_a_newer_account_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"holds neither report\.json nor any result\.json"):
        render(tmp_path)
    (tmp_path / "report.json").write_text('{"schema_version": 99}')
    with pytest.raises(ResultError, match="has schema 99, this version reads 1"):
        render(tmp_path)
