"""Results come back from disk as they were."""

from __future__ import annotations

import json
from dataclasses import dataclass

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


def test_a_type_nobody_defines_is_not_looked_up_anywhere(tmp_path):
    with pytest.raises(ResultError, match="'Path', which neither"):
        storage._decode({"type": "Path", "fields": {}}, {}, {})


def test_one_table_is_written_per_estimate(tmp_path):
    save_result(Example(ESTIMATE, ()), tmp_path)
    assert storage.tables_of(tmp_path) == ["score.csv"]
    assert (tmp_path / "score.csv").read_text().splitlines()[1].startswith("score,0,1.0,0.0,2.0")


def test_types_of_any_depth_are_known():
    assert set(storage._known_types(Example)) == {"Estimate", "Provenance", "Run"}
