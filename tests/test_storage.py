"""Results come back from disk as they were."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mechinterp_toolkit import storage
from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.files import write_json
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.results import Estimate, Provenance, Run, Verdict
from mechinterp_toolkit.storage import load_result, save_result

ESTIMATE = Estimate(
    *(torch.tensor([1.0, 2.0]) + shift for shift in (0, -1, 1)),
    7,
    "logits",
    "by hand",
    axes=("head",),
)


@dataclass(frozen=True)
class Example(Finding):
    score: Estimate
    extra: tuple[int, ...]
    effect = None
    locations = ("1.2",)
    represented = Verdict("found", "It is there.", p=0.01)
    used = Verdict("not_applicable", "Nothing was edited.")

    def answer(self) -> str:
        return "Yes."

    def causal_check(self) -> str:
        return "None."


def test_a_saved_result_holds_schema_verdicts_and_provenance(tmp_path):
    run = Run("example", {"seed": 0}, "2026-01-01", 1.0, 2.0)
    made = Provenance(
        "here",
        None,
        "ab",
        "w",
        "none",
        None,
        "float32",
        "cpu",
        {"torch": "2"},
        {"task": {"a": (1, 2)}},
        run,
    )
    save_result(Example(ESTIMATE, (1, 2), provenance=made), tmp_path)
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["schema_version"] == storage.SCHEMA_VERSION
    assert document["analysis"] == "example"
    assert document["verdicts"]["represented"]["outcome"] == "found"
    assert "NaN" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({1: 2}, "keys are not all strings"),
        (float("nan"), "reason, not a number"),
        (object(), "would not come back"),
    ],
)
def test_what_would_not_come_back_the_same_is_refused(tmp_path, extra, words):
    finding = Example(ESTIMATE, ())
    object.__setattr__(finding, "extra", extra)
    with pytest.raises(ResultError, match=words):
        save_result(finding, tmp_path)


def test_reading_back_refuses_strangers(tmp_path):
    with pytest.raises(ResultError, match=r"holds no result\.json"):
        load_result(tmp_path)
    save_result(Example(ESTIMATE, ()), tmp_path)
    with pytest.raises(ResultError, match="names no analysis"):
        load_result(tmp_path)
    document = json.loads((tmp_path / "result.json").read_text())
    write_json(tmp_path / "result.json", document | {"schema_version": 99})
    with pytest.raises(ResultError, match="has schema 99"):
        load_result(tmp_path)


OLD = Path(__file__).parent / "data" / "linear_direction"
"""A result written before the analyses had folders: `mechinterp run linear_direction toy/sentiment`
with 19 draws, `edit_draws` 19 and 2 steps."""


def test_a_result_of_an_older_version_comes_back_with_its_numbers():
    finding = load_result(OLD)
    written = json.loads((OLD / "result.json").read_text())
    for kind in ("represented", "used"):
        verdict = getattr(finding, kind)
        assert verdict.outcome == written["verdicts"][kind]["outcome"] == "found"
        assert verdict.p == written["verdicts"][kind]["p"] == 0.05
    assert finding.effect.text() == "7.18 [5.63, 8.61]"
    assert finding.locations == ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")
    assert "agree with a mean |cosine| of 0.61, least that of k-means with 0.03" in finding.answer()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields_version": 7}, "are those of version 7 of LinearDirection, and this is version 1"),
        ({"fields": {"gone": 1}}, "LinearDirection no longer has gone"),
        ({"fields": {}}, "LinearDirection now has accuracy, agreement, classes"),
        ({"fields": {"notes": {"type": "Path", "fields": {}}}}, "it holds a 'Path', which neither"),
        (
            {"fields": {"fall": {"type": "Estimate", "fields": {"mean": 1}}}},
            "Estimate no longer has mean",
        ),
    ],
)
def test_a_result_whose_fields_have_changed_is_refused_with_the_reason(tmp_path, change, words):
    document = json.loads((OLD / "result.json").read_text())
    if change.get("fields"):
        change = {"fields": document["fields"] | change["fields"]}
    write_json(tmp_path / "result.json", document | change)
    (tmp_path / "tensors.safetensors").write_bytes((OLD / "tensors.safetensors").read_bytes())
    with pytest.raises(ResultError, match=f"cannot be read: .*{re.escape(words)}.*Run it again"):
        load_result(tmp_path)


def test_one_table_is_written_per_estimate(tmp_path):
    save_result(Example(ESTIMATE, ()), tmp_path)
    assert storage.tables_of(tmp_path) == ["score.csv"]
    assert (tmp_path / "score.csv").read_text().splitlines()[1].startswith("score,0,1.0,0.0,2.0")


def test_types_of_any_depth_are_known():
    assert set(storage._known_types(Example)) == {"Estimate", "Provenance", "Run"}
