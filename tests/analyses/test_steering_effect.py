"""Steering effect: the planted concept is moved, an unread one is not, and at what cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mechinterp_toolkit.analyses.steering_effect import SteeringEffect, steering_effect
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.prompts.concepts import WORD_CONCEPTS
from mechinterp_toolkit.toys import concept_model

QUICK = {"draws": 199, "edit_draws": 19}


@pytest.fixture(scope="module")
def on_planted() -> SteeringEffect:
    return steering_effect(concept_model(1.0, 0), **QUICK)


def test_the_planted_concept_is_steered(on_planted):
    assert on_planted.represented.outcome == on_planted.used.outcome == "found"
    assert on_planted.change.value > on_planted.change.control.max()
    assert on_planted.separation.value[0] > 2
    assert on_planted.agreement.low[0] > 0.2


def test_the_sweep_holds_the_setting_of_the_verdict(on_planted):
    strengths = on_planted.by_strength.labels["multiplier"]
    assert strengths == ("-1", "0.5", "1", "2")
    at = on_planted.by_strength.labels["vector"].index(on_planted.hook_point)
    once = on_planted.by_strength.value[at, strengths.index("1")]
    assert once == pytest.approx(float(on_planted.change.value))
    assert on_planted.by_strength.value[at, strengths.index("-1")] < 0 < once


def test_cost_and_baseline_stand_beside_it(on_planted):
    assert on_planted.kl.value.shape == on_planted.by_strength.value.shape
    assert (on_planted.kl.value >= 0).all()
    assert on_planted.guidance.value[2] > 0
    assert ((on_planted.wrong_way.value >= 0) & (on_planted.wrong_way.value <= 1)).all()
    assert "nats (KL)" in on_planted.causal_check()


def test_one_number_has_one_interval(on_planted):
    """`change` and the sweep at once the vector are the same number, of the same words."""
    at = (
        on_planted.by_strength.labels["vector"].index(on_planted.hook_point),
        on_planted.by_strength.labels["multiplier"].index("1"),
    )
    swept = on_planted.by_strength.at(*at)
    for end in ("value", "low", "high"):
        assert float(getattr(swept, end)) == pytest.approx(float(getattr(on_planted.change, end)))


def test_words_are_the_units_of_every_interval(on_planted):
    assert on_planted.words == (24, 24)
    by_words = ("accuracy", "separation", "change", "by_strength", "wrong_way", "guidance")
    assert {on_planted.estimates[name].method.split(", ")[0] for name in by_words} == {
        "percentile bootstrap over words"
    }
    assert [on_planted.estimates[name].n for name in by_words] == [48, 24, 24, 24, 24, 24]
    assert (on_planted.agreement.n, on_planted.agreement.method.split(", ")[0]) == (
        12,
        "percentile bootstrap over pairs of words",
    )
    assert "(labels shuffled over words, largest of all)" in on_planted.answer()


def with_draws(finding, **draws):
    """The finding with only so many draws of a control."""
    fewer = {name: getattr(finding, name) for name in draws}
    return replace(
        finding, **{name: replace(e, control=e.control[: draws[name]]) for name, e in fewer.items()}
    )


def test_too_few_draws_decide_nothing(on_planted):
    few = with_draws(on_planted, accuracy=10)
    assert few.represented.outcome == "undecided"
    assert "at least 19 draws are needed" in few.represented.reason
    assert few.locations == ()
    few = with_draws(on_planted, change=18)
    assert few.used.outcome == "undecided"
    assert "at least 19 draws are needed" in few.used.reason


def test_halves_of_three_words_have_too_few_relabellings_whatever_the_draws(monkeypatch):
    """Of six words a class three make the vector: 18 even relabellings, so p is at least 1 / 19."""
    model, known = concept_model(1.0, 0), WORD_CONCEPTS["sentiment"]
    few = known._replace(words={name: words[:6] for name, words in known.words.items()})
    monkeypatch.setitem(WORD_CONCEPTS, "sentiment", few)
    finding = steering_effect(model, **QUICK)
    assert finding.words == (6, 6)
    assert finding.represented.outcome == "found"
    assert finding.used.outcome == "undecided"
    assert "19 arrangements is 0.053" in finding.used.reason
    assert "no more arrangements exist: it takes more units" in finding.used.reason
    assert finding.separation.n == 6


def test_nothing_is_denied_where_nothing_was_decided():
    finding = steering_effect(concept_model(1.0, 0), draws=10)
    assert finding.represented.outcome == finding.used.outcome == "undecided"
    assert (
        "not decided whether sentiment is represented, so there was no vector to add"
        in finding.used.reason
    )
    assert finding.answer().startswith("Whether there is anything to steer by is undecided.")
    assert "along no direction" not in str(finding)


def test_guidance_that_does_as_much_at_no_larger_cost_is_named(on_planted):
    once = on_planted.guidance.labels["multiplier"].index("1")
    part = float(on_planted.change.value / on_planted.guidance.value[once])
    # KL is convex in the part of the shift and 0 without it, so it lies below the straight line to
    # the whole shift.
    assert 0 < on_planted.matched_kl.value < part * on_planted.guidance_kl.value[once]
    assert (
        f"{part:.3g} times that shift moves it as far as the vector, at"
        in on_planted.causal_check()
    )
    cheaper, dearer = (
        replace(
            on_planted,
            matched_kl=replace(on_planted.matched_kl, value=factor * on_planted.kl.value[0, 2]),
        )
        for factor in (1.0, 1.01)
    )
    says = "A constant added to the logits does as much as the vector at no larger cost"
    assert any(says in caveat for caveat in cheaper.caveats)
    assert not any(says in caveat for caveat in dearer.caveats)
    assert not any(says in caveat for caveat in replace(cheaper, kl=None).caveats)
    assert "times that shift" not in replace(on_planted, matched_kl=None).causal_check()


def test_the_verdict_s_strength_is_always_among_those_run():
    finding = steering_effect(concept_model(1.0, 0), multipliers=(3.0,), **QUICK)
    assert finding.by_strength.labels["multiplier"] == ("3", "1")


def test_a_concept_that_nothing_reads_is_not_steered():
    finding = steering_effect(concept_model(1.0, 1, used=False), **QUICK)
    assert finding.represented.outcome == "found"
    assert finding.used.outcome == "not_found"


def test_without_classes_nothing_is_added():
    finding = steering_effect(concept_model(1.0, 0, relabelled=True), **QUICK)
    assert finding.represented.outcome == "not_found"
    assert finding.used.outcome == "not_applicable"
    assert "There is nothing to steer by" in finding.answer()


def test_a_multiplier_of_zero_is_refused():
    with pytest.raises(ToolkitError, match="none of them 0"):
        steering_effect(concept_model(1.0, 0), multipliers=(0.0,), **QUICK)


def test_verdicts_read_again_from_other_numbers_change(on_planted):
    unsure = replace(on_planted.change, low=on_planted.change.low * 0)
    assert replace(on_planted, change=unsure).used.outcome == "undecided"
