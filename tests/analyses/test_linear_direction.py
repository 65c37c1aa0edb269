"""Linear direction: planted along one, read at commas or at words, agreed on, or not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mechinterp_toolkit.analyses.linear_direction import METHODS, TOKENS, LinearDirection, linear_direction
from mechinterp_toolkit.toys import concept_model

QUICK = {"draws": 199, "edit_draws": 19, "steps": 20}


@pytest.fixture(scope="module")
def on_summary() -> LinearDirection:
    return linear_direction(concept_model(1.0, 0, summary=True), **QUICK)


@pytest.fixture(scope="module")
def on_word() -> LinearDirection:
    return linear_direction(concept_model(1.0, 0), **QUICK)


def falls(found: LinearDirection) -> dict[str, float]:
    return dict(zip(TOKENS, found.fall.value.tolist(), strict=True))


def test_a_model_that_sums_up_at_commas_is_told_so(on_summary):
    assert on_summary.represented.outcome == on_summary.used.outcome == on_summary.summarised.outcome == "found"
    assert falls(on_summary)["punctuation"] > 0.5 * falls(on_summary)["all"]
    assert abs(falls(on_summary)["all others"]) < 0.2


def test_a_model_that_reads_the_word_is_not(on_word):
    assert on_word.represented.outcome == on_word.used.outcome == "found"
    assert on_word.summarised.outcome == "not_found"
    assert falls(on_word)["word"] > 0.8 * falls(on_word)["all"]


def test_methods_agree_on_the_planted_direction_and_close_the_gap(on_word):
    agreement = dict(zip(METHODS, on_word.agreement[0].tolist(), strict=True))
    assert agreement["k-means"] > 0.95
    assert agreement["PCA"] > 0.9
    assert agreement["logistic"] < agreement["PCA"]  # the probe leans on the suppressor
    closed = dict(zip(METHODS, on_word.patched.value.tolist(), strict=True))
    assert closed["mean difference"] > 0.7
    assert closed["alignment"] > closed["PCA"]
    assert closed["logistic"] < closed["mean difference"]
    assert on_word.patched.control[:, 0].max() < closed["mean difference"]


def test_a_direction_that_nothing_reads_is_represented_and_not_used():
    found = linear_direction(concept_model(1.0, 1, used=False), **QUICK)
    assert found.represented.outcome == "found"
    assert found.used.outcome == "not_found"
    assert found.patched is None  # both sentences get the same answer: there is no gap to close


def test_where_there_is_no_direction_none_is_sought():
    found = linear_direction(concept_model(1.0, 0, summary=True, relabelled=True), **QUICK)
    assert found.represented.outcome == "not_found"
    assert found.agreement is None
    assert found.used.outcome == found.summarised.outcome == "not_applicable"
    assert "lies along no direction" in found.answer()


def test_verdicts_read_again_from_other_numbers_change(on_summary):
    nothing = replace(on_summary.summary, value=on_summary.summary.value * 0, low=on_summary.summary.low * 0)
    assert replace(on_summary, summary=nothing).summarised.outcome == "not_found"
    assert replace(on_summary, fall=None, summary=None).used.outcome == "not_applicable"
