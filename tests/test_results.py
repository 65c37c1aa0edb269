"""Estimates and verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.results import Estimate, Verdict


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


def test_a_place_is_named_by_layer_and_head_by_labels_or_by_axis_and_number():
    numbered = estimate(labels={})
    assert numbered.place(1, 2) == "1.2"
    assert estimate().place(1, 2) == "second.2"
    assert replace(numbered, axes=("period", "head")).place(1, 2) == "period 1, head 2"
    labelled = replace(numbered, axes=("hook point", "head"), labels={"hook point": ("in", "out")})
    assert labelled.place(1, 2) == "out, head 2"


def test_p_values_are_corrected_for_looking_at_all_values():
    control = torch.zeros(39, 2, 3)
    control[0, 0, 0] = 4.5  # one draw reaches all values but the last, in another place
    expected = torch.full((2, 3), 2 / 40, dtype=torch.float64)
    expected[1, 2] = 1 / 40
    expected[0, 0] = 1  # every draw has a zero
    assert torch.equal(estimate(control=control).p(), expected)
    assert estimate(control=control).at(0, 2).p() == 1 / 40  # alone it is not corrected
    assert estimate(control=control).at(0, 2, largest=True).p() == 2 / 40
    every = torch.stack([estimate().value, estimate().value - 1])  # the observed one among them
    assert estimate(control=every).p(exact=True)[1, 2] == 1 / 2
    with pytest.raises(ResultError, match="without a control has no p-value"):
        estimate(control=None, control_name="").p()


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
