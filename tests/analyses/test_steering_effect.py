"""Steering effect: the planted concept is moved, more than by shuffled vectors; an unread one is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mechinterp_toolkit.analyses.steering_effect import SteeringEffect, steering_effect
from mechinterp_toolkit.errors import ToolkitError
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


def test_the_verdict_s_strength_is_always_among_those_run():
    found = steering_effect(concept_model(1.0, 0), multipliers=(3.0,), **QUICK)
    assert found.by_strength.labels["multiplier"] == ("3", "1")


def test_a_concept_that_nothing_reads_is_not_steered():
    found = steering_effect(concept_model(1.0, 1, used=False), **QUICK)
    assert found.represented.outcome == "found"
    assert found.used.outcome == "not_found"


def test_without_classes_nothing_is_added():
    found = steering_effect(concept_model(1.0, 0, relabelled=True), **QUICK)
    assert found.represented.outcome == "not_found"
    assert found.used.outcome == "not_applicable"
    assert "There is nothing to steer by" in found.answer()


def test_a_multiplier_of_zero_is_refused():
    with pytest.raises(ToolkitError, match="none of them 0"):
        steering_effect(concept_model(1.0, 0), multipliers=(0.0,), **QUICK)


def test_verdicts_read_again_from_other_numbers_change(on_planted):
    unsure = replace(on_planted.change, low=on_planted.change.low * 0)
    assert replace(on_planted, change=unsure).used.outcome == "undecided"
