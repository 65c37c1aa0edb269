"""What a finding derives from an estimate and its smallest effect."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.results import Estimate, Verdict


def estimate(*values: list[float], spread: float = 0.1, draws: int = 19, **changes) -> Estimate:
    """Values by layer and head with an interval of `spread` to either side, over draws of 0.2."""
    value = torch.tensor(values, dtype=torch.float64).reshape(len(values), -1 if values else 2)
    given = {
        "value": value,
        "low": value - spread,
        "high": value + spread,
        "n": 32,
        "unit": "in [0, 1]",
        "method": "by hand",
        "control": torch.full((draws, *value.shape), 0.2, dtype=torch.float64),
        "control_name": "shuffled",
        "axes": ("layer", "head"),
    }
    return Estimate(**(given | changes))


SCALAR = estimate([0.9]).at(0, 0)


@dataclass(frozen=True)
class Heads(Finding):
    """What an author writes, and nothing more."""

    mean_score: Estimate | None
    smallest_effect = 0.5


def test_an_estimate_and_a_smallest_effect_are_enough_for_a_whole_finding():
    finding = Heads(estimate([0.1, 0.7], [0.9, 0.3]))
    assert finding.locations == ("1.0", "0.1")
    assert finding.effect is not None
    assert finding.effect.text() == "0.9 [0.8, 1]"
    assert finding.effect.control_name == "shuffled, largest of all"
    verdict = finding.represented
    assert (verdict.outcome, verdict.p, verdict.smallest_effect) == ("found", 0.05, 0.5)
    assert finding.answer() == (
        "At layer.head 1.0, the strongest of 4, the mean score is 0.9 [0.8, 1] (in [0, 1]; n = 32),"
        " more than the control. Control: 0.2, 95 % below 0.2 (shuffled, largest of all). 2 places"
        " pass: 1.0, 0.1."
    )
    assert finding.used.outcome == "undecided"
    assert finding.causal_check() == "None was made: this analysis reads and edits nothing."
    assert "strongest of 4 places was chosen" in finding.caveats[0]
    assert list(finding.figures()) == [
        "Mean score by layer and head",
        "The strongest mean score over its control",
    ]


def test_a_scalar_has_a_sentence_and_a_picture_but_no_place():
    finding = Heads(SCALAR)
    assert finding.represented.reason == (
        "The mean score is 0.9 [0.8, 1] (in [0, 1]; n = 32), more than the control."
    )
    assert (finding.locations, finding.caveats) == ((), ())
    assert finding.effect is SCALAR
    assert list(finding.figures()) == ["Mean score"]


@dataclass(frozen=True)
class Edited(Heads):
    """A finding whose headline is what an edit did, at a place or as a whole."""

    edited: Estimate

    @property
    def effect(self) -> Estimate:
        return self.edited.at(0, 0) if self.edited.axes else self.edited


def test_a_headline_of_ones_own_is_called_so_and_drawn_once():
    score = "Mean score by layer and head"
    at_a_place = Edited(estimate([0.1, 0.9]), estimate([0.7]))
    assert list(at_a_place.figures()) == [
        score,
        "The headline over its control",
        "Edited by layer and head",
    ]
    assert list(Edited(estimate([0.1, 0.9]), SCALAR).figures()) == [score, "Edited"]


@pytest.mark.parametrize(
    ("score", "outcome", "words"),
    [
        (estimate([0.1, 0.3]), "not_found", "less than anything of interest (0.5)"),
        (estimate([0.1, 0.15], spread=0.9), "not_found", "no more than the control"),
        (estimate([0.1, 0.55]), "undecided", "beyond the control, but perhaps below 0.5"),
        (estimate([0.1, 0.9], draws=18), "undecided", "at least 19 draws are needed"),
        (estimate([0.1, 0.9], control=None, control_name=""), "undecided", "with no control"),
        (estimate(), "undecided", "Nothing could be measured"),
        (None, "undecided", "Nothing could be measured"),
    ],
)
def test_what_is_not_surely_there_and_of_interest_is_not_found_and_has_no_place(
    score, outcome, words
):
    finding = Heads(score)
    assert finding.represented.outcome == outcome
    assert words in finding.represented.reason
    assert words in finding.answer()
    assert finding.locations == ()


def test_places_and_verdict_agree_where_the_largest_value_is_not_sure():
    score = estimate([0.7, 0.9])
    unsure = Heads(replace(score, low=torch.tensor([[0.6, 0.1]], dtype=torch.float64)))
    assert unsure.represented.found
    assert unsure.locations == ("0.0",)
    assert (
        "At layer.head 0.0, the strongest of 2, the mean score is 0.7 [0.6, 0.8]" in unsure.answer()
    )


def test_the_search_is_part_of_the_control():
    """A value beyond its own draws, but not beyond the largest of each draw, is not found."""
    control = torch.zeros(19, 1, 2, dtype=torch.float64)
    control[:, 0, 0] = 0.95
    assert Heads(estimate([0.1, 0.9], control=control)).represented.outcome == "not_found"


def test_the_first_estimate_is_the_headline_even_where_it_could_not_be_measured():
    @dataclass(frozen=True)
    class Two(Heads):
        second: Estimate

    assert Two(None, SCALAR).effect is None
    assert Two(estimate([0.55, 0.1]), SCALAR).locations == ()
    assert Two(estimate([0.7, 0.1]), SCALAR).locations == ("0.0",)


def test_many_places_are_counted_and_the_first_named():
    answer = Heads(estimate([0.9] * 12)).answer()
    assert answer.endswith("12 places pass: 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7 and 4 more.")


def test_a_finding_without_a_smallest_effect_has_to_judge_by_itself():
    with pytest.raises(ResultError, match="Careless does not say from where on an effect is of"):

        class Careless(Finding):
            score: Estimate


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
    finding = Example(estimate([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ())
    assert list(finding.estimates) == ["score"]
    assert len(finding.rows()) == 6


def test_findings_are_frozen():
    finding = Example(estimate([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ())
    with pytest.raises(AttributeError):
        finding.score = None
    assert replace(finding, extra=(3,)).extra == (3,)
