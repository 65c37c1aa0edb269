"""Number helix: a planted adder, the ordinal toy, renamed numbers, and the sentences a reader
gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mechinterp_toolkit.analyses.number_helix.finding import (
    _planted,
    _scrambled_model,
    number_helix,
)
from mechinterp_toolkit.analyses.number_helix.result import EDITS, NumberHelix
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.geometry.helix import MODELS
from mechinterp_toolkit.model import load_model

QUICK = {"draws": 199}


@pytest.fixture(scope="module")
def on_planted() -> NumberHelix:
    return number_helix(_planted(1.0, 0).model, **QUICK)


@pytest.fixture(scope="module")
def on_toy() -> NumberHelix:
    return number_helix("toy/ordinal", **QUICK)


def shares(found: NumberHelix) -> dict[str, float]:
    return dict(zip(EDITS, found.curve.value[:, found.best].tolist(), strict=True))


def test_the_planted_helix_is_represented_and_used(on_planted):
    assert on_planted.represented.outcome == on_planted.used.outcome == "found"
    assert {2, 5, 10} <= set(on_planted.found_periods[0])
    assert on_planted.task == "addition"
    assert on_planted.accuracy.value == 1
    assert on_planted.moved.value > 0.9
    assert on_planted.moved.value > on_planted.moved.control.max()


def test_what_is_not_the_helix_does_less(on_planted):
    found = shares(on_planted)
    assert found["helix"] == pytest.approx(found["whole stream"], abs=0.05)
    assert found["largest circle"] < 0.4
    assert found["polynomial"] < 0.5
    right = dict(zip(EDITS, on_planted.new_answers[:, 0].tolist(), strict=True))
    assert right["helix"] > 0.95
    assert right["polynomial"] < 0.2


def test_the_rank_is_eight_and_the_helix_beats_its_rivals_on_held_out_numbers(on_planted):
    assert on_planted.rank == 8
    r2 = dict(zip(MODELS, on_planted.r2.value.tolist(), strict=True))
    assert r2["helix"] > 0.95
    assert max(r2["largest circle"], r2["polynomial"]) < 0.5
    assert r2["helix of shuffled numbers"] < 0.1


def test_an_adder_shows_its_clock_and_another_task_none(on_planted, on_toy):
    assert dict(on_planted.clock.head_types) == {"0.0": "a, b", "0.1": "a, b"}
    assert "Clock: heads at the last token" in on_planted.causal_check()
    assert on_toy.clock is None


def test_the_toy_s_numbers_have_no_period_and_this_is_said_with_what_edits_do(on_toy):
    assert on_toy.represented.outcome == "not_found"
    assert on_toy.used.outcome == "not_applicable"
    assert on_toy.task == "succession"
    assert on_toy.accuracy.value == 1
    assert shares(on_toy)["whole stream"] == pytest.approx(1)
    assert shares(on_toy)["helix"] < 0.3
    assert "setting the number's helix" in on_toy.causal_check()


def test_the_toy_that_adds_modulo_a_prime_shows_the_whole():
    """Its periods are 59 / k: found, used beyond principal components of as many dimensions, and
    there of the sum."""
    found = number_helix("toy/addition-mod", **QUICK)
    assert found.represented.outcome == found.used.outcome == "found"
    assert found.task == "addition mod 59"
    assert found.accuracy.value > 0.98
    assert {round(59 / t) for t in found.found_periods[0][:4]} == {
        12,
        21,
        19,
        28,
    }  # what this network chose
    assert shares(found)["helix"] > 0.8
    assert shares(found)["helix"] > shares(found)["principal components"]
    assert shares(found)["largest circle"] < 0.5
    total = found.clock.fits.value[1]
    assert total.max() > 0.6  # a helix of a + b at the last token
    assert found.clock.readers == (0,)
    assert {"59/12", "59/19"} <= set(found.clock.sum_periods[0].split(", "))
    typed = {tuple(map(int, head.split("."))) for head, _ in found.clock.head_types}
    assert typed == {(0, 0), (0, 1)}
    assert (found.clock.heads.low[0] > 0).tolist() == [
        True,
        True,
        False,
        False,
    ]  # what reaches zero has no type


def test_the_twin_of_a_model_that_adds_modulo_a_prime_is_judged_on_the_same_numbers_and_periods():
    found = number_helix(load_model("toy/addition-mod").random_twin(0), **QUICK)
    assert found.n_numbers == 59
    assert found.represented.outcome == "not_found"


def test_the_toy_that_adds_plainly_is_said_to_do_so_whatever_its_numbers_look_like():
    found = number_helix("toy/addition", **QUICK)
    assert found.task == "addition"
    assert found.accuracy.value > 0.98
    assert found.clock is not None
    assert (
        found.represented.outcome == "not_found"
    )  # periods of 14.0, 12.6, 17.9: residues of whole numbers are not there


def test_renamed_numbers_lie_on_no_helix():
    found = number_helix(_scrambled_model(0), **QUICK)
    assert found.represented.outcome == "not_found"
    assert found.task == ""
    assert "the model answers only" in found.causal_check()


def test_a_model_that_cannot_be_asked_is_judged_on_representation_alone(on_planted):
    unable = replace(on_planted, moved=None, curve=None, new_answers=None, task="")
    assert unable.used.outcome == "not_applicable"
    assert unable.used.reason.startswith("Representation only")
    assert replace(unable, accuracy=None).causal_check().startswith("No prompt about numbers")


def test_too_few_draws_decide_nothing(on_planted):
    found = replace(on_planted, draws=19)
    assert found.represented.outcome == "undecided"
    assert "at least 59 draws are needed" in found.represented.reason


def test_models_without_numbers_are_told_so(hf_folders):
    with pytest.raises(NotApplicable, match="of the numbers 0 to 199 as one token"):
        number_helix(load_model(hf_folders["gpt2"]))
