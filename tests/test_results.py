"""Estimates, verdicts, and results that come back from disk as they were."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.results import Estimate, Finding, Verdict


def estimate(**changes) -> Estimate:
    shape = (2, 3)
    given = {
        "value": torch.arange(6.0).reshape(shape),
        "low": torch.arange(6.0).reshape(shape) - 1,
        "high": torch.arange(6.0).reshape(shape) + 1,
        "n": 7,
        "unit": "logits",
        "method": "by hand",
        "control": torch.zeros(4, *shape),
        "control_name": "nothing",
        "axes": ("layer", "head"),
        "labels": {"layer": ("first", "second")},
    }
    return Estimate(**(given | changes))


@dataclass(frozen=True)
class Example(Finding):
    score: Estimate
    extra: tuple[int, ...]

    @property
    def represented(self) -> Verdict:
        return Verdict("found", "It is there.", p=0.01)

    @property
    def used(self) -> Verdict:
        return Verdict("not_applicable", "Nothing was edited.")

    @property
    def effect(self) -> Estimate | None:
        return None

    @property
    def locations(self) -> tuple[str, ...]:
        return ("1.2",)

    def answer(self) -> str:
        return "Yes."

    def causal_check(self) -> str:
        return "None."


def test_a_scalar_estimate_reads_as_value_and_interval():
    one = estimate(
        **{k: torch.tensor(v) for k, v in (("value", 0.5), ("low", 0.25), ("high", 0.75))},
        axes=(),
        labels={},
        control=torch.linspace(0, 1, 101),
    )
    assert one.text() == "0.5 [0.25, 0.75]"
    assert one.control_text() == "0.5, 95 % below 0.95 (nothing)"
    with pytest.raises(ResultError, match="only a scalar"):
        estimate().text()


def test_a_position_can_be_named():
    both = estimate().at(1, 2), estimate().at(layer="second", head=2)
    assert [one.value.item() for one in both] == [5.0, 5.0]
    with pytest.raises(
        ResultError, match=r"along layer; expected one along each of \('layer', 'head'\)"
    ):
        estimate().at(layer=0)
    with pytest.raises(
        ResultError,
        match=r"layer has no label 'secnd'\. Did you mean 'second'\? Known: first, second",
    ):
        estimate().at(layer="secnd", head=0)
    with pytest.raises(ResultError, match=r"head has no label 'one'.*none"):
        estimate().at(layer=0, head="one")


def test_rows_name_axes_labels_and_control():
    rows = estimate().rows("score")
    assert len(rows) == 6
    assert rows[4] == {
        "estimate": "score",
        "layer": "second",
        "head": "1",
        "value": 4.0,
        "low": 3.0,
        "high": 5.0,
        "control_mean": 0.0,
        "control_95": 0.0,
        "n": 7,
        "unit": "logits",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"low": torch.zeros(3, 2)}, r"Estimate\.low has shape \(3, 2\) but value has \(2, 3\)"),
        ({"value": torch.full((2, 3), float("nan"))}, r"Estimate\.value holds a NaN"),
        (
            {"control": torch.full((4, 2, 3), float("inf"))},
            r"Estimate\.control holds a NaN or infinity",
        ),
        ({"control": torch.zeros(4, 3, 2)}, r"one row of shape \(2, 3\) per draw"),
        ({"control": None}, "go together"),
        ({"control_name": ""}, "go together"),
        ({"axes": ("layer",)}, "names 1 axes"),
        ({"labels": {"layer": ("only",)}}, "has 1 names"),
        ({"labels": {"pos": ("a", "b")}}, r"labels\['pos'\]"),
    ],
)
def test_an_estimate_that_contradicts_itself_is_refused(changes, words):
    # The test run checks shapes too and may speak first; switch that off to see our own words.
    with pytest.raises((ResultError, TypeError), match=f"(?s){words}|low|control"):
        estimate(**changes)
    whole = estimate()
    with pytest.raises(ResultError, match=words):
        _unchecked(whole, changes)


def _unchecked(whole: Estimate, changes: dict) -> None:
    broken = object.__new__(Estimate)
    for name in Estimate.__dataclass_fields__:
        object.__setattr__(broken, name, changes.get(name, getattr(whole, name)))
    broken.__post_init__()


def test_a_verdict_needs_a_reason_a_possible_p_and_is_no_boolean():
    with pytest.raises(ResultError, match="reason"):
        Verdict("found", "")
    for p in (0.0, 1.2):
        with pytest.raises(ResultError, match=r"\(0, 1\]"):
            Verdict("found", "Yes.", p=p)
    with pytest.raises(TypeError, match="four outcomes"):
        bool(Verdict("undecided", "Too few draws."))
    assert Verdict("found", "Yes.").found
    assert not Verdict("undecided", "No.").found


def test_a_finding_prints_verdicts_answer_check_and_caveats_in_short_lines():
    said = str(Example(estimate(), ()))
    assert said.split("\n\n") == [
        "represented found (p = 0.01): It is there.",
        "used not applicable: Nothing was edited.",
        "Yes.",
        "None.",
    ]

    class Repeating(Example):
        def answer(self) -> str:
            return "It is there. It is there twice."

    assert str(Repeating(estimate(), ())).startswith(
        "represented found (p = 0.01)\n\nused not applicable: Nothing"
    )
    long = replace(Example(estimate(), ()).represented, reason="word " * 60, p=None)
    assert str(long).startswith("found: word")

    class Talkative(Example):
        def answer(self) -> str:
            return "a number (0.5 [0.4, 0.6]) and words " * 20

    assert max(map(len, str(Talkative(estimate(), ())).splitlines())) <= 100


def test_estimates_and_rows_of_a_finding_are_those_of_its_fields():
    finding = Example(estimate(), ())
    assert list(finding.estimates) == ["score"]
    assert len(finding.rows()) == 6


def test_findings_are_frozen():
    finding = Example(estimate(), ())
    with pytest.raises(AttributeError):
        finding.score = None
    assert replace(finding, extra=(3,)).extra == (3,)
