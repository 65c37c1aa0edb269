"""Linear direction: planted along one, read at commas or at words, agreed on, or not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.analyses.linear_direction import (
    METHODS,
    TOKENS,
    LinearDirection,
    linear_direction,
)
from mechinterp_toolkit.toys import concept_model

QUICK = {"draws": 199, "edit_draws": 19, "steps": 20}


@pytest.fixture(scope="module")
def on_summary() -> LinearDirection:
    return linear_direction(concept_model(1.0, 0, summary=True), **QUICK)


@pytest.fixture(scope="module")
def on_word() -> LinearDirection:
    return linear_direction(concept_model(1.0, 0), **QUICK)


def falls(finding: LinearDirection) -> dict[str, float]:
    return dict(zip(TOKENS, finding.fall.value.tolist(), strict=True))


def test_a_model_that_sums_up_at_commas_is_told_so(on_summary):
    assert (
        on_summary.represented.outcome
        == on_summary.used.outcome
        == on_summary.summarised.outcome
        == "found"
    )
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
    finding = linear_direction(concept_model(1.0, 1, used=False), **QUICK)
    assert finding.represented.outcome == "found"
    assert finding.used.outcome == "not_found"
    assert finding.patched is None  # both sentences get the same answer: there is no gap to close


def test_where_there_is_no_direction_none_is_sought():
    finding = linear_direction(concept_model(1.0, 0, summary=True, relabelled=True), **QUICK)
    assert finding.represented.outcome == "not_found"
    assert finding.agreement is None
    assert finding.used.outcome == finding.summarised.outcome == "not_applicable"
    assert "lies along no direction" in finding.answer()


def test_a_method_that_disagrees_is_named_and_hides_in_no_mean(on_word):
    """Four methods agree by 1, one with none: means of 0.75 and 0, and 0.6 over all pairs."""
    alike = torch.ones(5, 5, dtype=torch.float64)
    apart = alike.clone()
    apart[1], apart[:, 1] = 0, 0
    apart[1, 1] = 1
    assert not any("disagree" in caveat for caveat in replace(on_word, agreement=alike).caveats)
    one_apart = replace(on_word, agreement=apart)
    assert one_apart.agreement_with_others == {
        name: 0.0 if name == "k-means" else 0.75 for name in METHODS
    }
    caveat = next(caveat for caveat in one_apart.caveats if "disagree" in caveat)
    assert "by mean |cosine|: k-means (0.00)." in caveat
    assert "mean |cosine| of 0.60, least that of k-means with 0.00." in one_apart.answer()
    nobody = replace(on_word, agreement=torch.eye(5, dtype=torch.float64))
    assert any("logistic (0.00) and alignment (0.00)." in caveat for caveat in nobody.caveats)
    assert replace(on_word, agreement=None).caveats == ()


def test_pairs_of_words_are_the_units_of_patching(on_word):
    assert on_word.patched.n == 12
    assert on_word.patched.method.startswith("percentile bootstrap over pairs of words")
    assert "(labels shuffled over words, largest of all)" in on_word.answer()


def test_each_control_is_called_one_and_named_once(on_word):
    text = on_word.causal_check()
    assert text.count("directions of shuffled labels") == 2
    assert "at all tokens; control, at all tokens: " in text
    assert "; control: " in text.partition("Patching")[2]


def test_too_few_draws_decide_nothing(on_word, on_summary):
    few = replace(
        on_word, accuracy=replace(on_word.accuracy, control=on_word.accuracy.control[:10])
    )
    assert few.represented.outcome == "undecided"
    assert "at least 19 draws are needed" in few.represented.reason
    few = replace(on_word, fall=replace(on_word.fall, control=on_word.fall.control[:10]))
    assert few.used.outcome == "undecided"
    few = replace(
        on_summary, summary=replace(on_summary.summary, control=on_summary.summary.control[:10])
    )
    assert few.summarised.outcome == "undecided"
    # Halves of four words: 36 even relabellings, of which two that swap the classes ablate one
    # direction.
    of_eight_words = replace(on_word, words=(9, 8))
    assert "no more arrangements exist: it takes more units" in of_eight_words.used.reason


def test_nothing_is_denied_where_nothing_was_decided():
    finding = linear_direction(concept_model(1.0, 0), draws=10)
    assert (
        finding.represented.outcome
        == finding.used.outcome
        == finding.summarised.outcome
        == "undecided"
    )
    assert (
        "not decided whether sentiment is represented, so none was ablated" in finding.used.reason
    )
    assert finding.answer().startswith("Whether sentiment lies along a direction is undecided.")
    assert "no direction" not in str(finding).lower()


def test_verdicts_read_again_from_other_numbers_change(on_summary):
    nothing = replace(
        on_summary.summary, value=on_summary.summary.value * 0, low=on_summary.summary.low * 0
    )
    assert replace(on_summary, summary=nothing).summarised.outcome == "not_found"
    assert replace(on_summary, fall=None, summary=None).used.outcome == "not_applicable"
