"""Circular features: planted circles, the trained toy, nulls, and the sentences a reader gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.analyses.circular_features import (
    EDITS,
    TEMPLATES,
    CircularFeatures,
    _moves,
    circular_features,
    planted_circles,
    scrambled_model,
)
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.model import load_model

QUICK = {"draws": 499}


@pytest.fixture(scope="module")
def on_toy() -> CircularFeatures:
    return circular_features("toy/ordinal", **QUICK)


@pytest.fixture(scope="module")
def on_planted() -> CircularFeatures:
    return circular_features(planted_circles(1.0, 0).model, **QUICK)


def named(circle) -> dict[str, float]:
    return dict(zip(EDITS, circle.edits.tolist(), strict=True))


def test_planted_circles_are_rings_and_used(on_planted):
    assert on_planted.represented.outcome == on_planted.ring.outcome == on_planted.used.outcome == "found"
    assert set(on_planted.locations) == {"days", "months"}
    days = next(one for one in on_planted.circles if one.name == "days")
    assert days.hook_point == "blocks.0.hook_resid_pre"
    # The days of this model are their circle and nothing else, but for the position.
    assert named(days)["set the circle"] > 0.8
    assert named(days)["keep only the circle"] > 0.8
    assert named(days)["remove the circle"] < 0.3
    assert named(days)["set the circle"] == pytest.approx(named(days)["set the whole stream"], abs=0.05)


def test_the_trained_toy_keeps_days_and_months_around_circles_and_uses_them_in_part(on_toy):
    assert on_toy.represented.outcome == on_toy.ring.outcome == on_toy.used.outcome == "found"
    assert {one.name: one.accuracy for one in on_toy.circles} == {"days": 1.0, "months": 1.0}
    for one in on_toy.circles:
        assert 0.1 < one.moved.value < 0.7  # measured .42 and .21: the rest of the answer comes from elsewhere
        assert one.p_used <= 0.01
        assert named(one)["set the whole stream"] == 1.0


def test_the_circle_holds_in_templates_it_was_not_fitted_to(on_toy):
    for one in on_toy.circles:
        assert one.transfer.value > 0.9
        assert one.transfer.value > one.transfer.control.max()


def test_the_circle_reaches_the_position_that_answers_through_the_planted_head(on_planted):
    """Before any block that position shows the query alone, and nothing of the item."""
    explained, days = on_planted.explained, on_planted.explained.labels["class"].index("days")
    assert explained.labels["hook point"][-1] == "blocks.1.hook_resid_post"
    first, last = (explained.value[days, at, 0] for at in (0, -1))
    assert last > 0.7  # the rest is what random blocks write beside the planted head
    assert last > explained.control[:, days, -1, 0].quantile(0.95)
    assert first < 0.6


def test_the_trained_toy_answers_without_a_circle_at_the_position_that_answers(on_toy):
    shares, null = on_toy.explained.value[:, -1, 0], on_toy.explained.control[:, :, -1, 0]
    assert (shares < null.quantile(0.95, 0)).all()  # one answer per item, spread over all harmonics


def test_a_model_that_knows_the_order_but_keeps_no_circle_is_told_so():
    """The same head computes every successor; only the embeddings lie anywhere."""
    found = circular_features(planted_circles(0.0, 1).model, **QUICK)
    assert {one.name: one.accuracy for one in found.circles} == {"days": 1.0, "months": 1.0}
    assert found.represented.outcome == "not_found"
    assert "would be found in" in found.answer()


def test_another_order_of_the_items_is_no_order():
    assert circular_features(scrambled_model(0), **QUICK).represented.outcome == "not_found"


def test_only_layers_from_which_the_item_reaches_the_answer_are_looked_at(on_toy):
    assert on_toy.order.labels["hook point"] == ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")


def test_moves_are_differences_against_the_item_s_own_answer_worked_by_hand():
    base = torch.zeros(3, 3)
    edited = torch.zeros(3, 3, 3)
    edited[1, 0] = torch.tensor(
        [0.0, 1.0, 5.0]
    )  # item 0, set to item 1: its successor 2 rises by 5, the own answer 1 by 1
    moved = _moves(edited.double(), base.double(), torch.arange(3))
    assert moved[0, 1].tolist() == [0, 4, -1]
    assert moved[1:].abs().sum() == 0


def test_verdicts_read_again_from_other_numbers_change(on_toy):
    open_ = tuple(replace(one, closure_low=0.1, closure_high=0.3) for one in on_toy.circles)
    assert replace(on_toy, circles=open_).ring.outcome == "not_found"
    unsure = tuple(replace(one, closure_low=0.3, closure_high=0.8) for one in on_toy.circles)
    assert replace(on_toy, circles=unsure).ring.outcome == "undecided"
    assert "whether it closes is undecided" in replace(on_toy, circles=unsure).represented.reason
    weak = tuple(replace(one, p=0.2) for one in on_toy.circles)
    assert replace(on_toy, circles=weak).represented.outcome == "not_found"
    assert replace(on_toy, circles=weak).used.outcome == "not_applicable"


@pytest.mark.parametrize("kind", ["gpt2", "pythia"])
def test_every_sentence_and_answer_fits_real_tokenizers(shared_data, kind):
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    from mechinterp_toolkit.prompts import build_prompts, ordinal_classes

    folder = shared_data / "tokenizers" / kind
    is_file = (folder / "tokenizer.json").is_file()
    tokenizer = (
        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if is_file
        else GPT2TokenizerFast.from_pretrained(folder)
    )
    classes = ordinal_classes(tokenizer, ("days", "months")).classes
    for name, sentences in TEMPLATES.items():
        words = classes[name].words
        assert len(words) == {"days": 7, "months": 12}[name]
        prompts = build_prompts(
            tokenizer,
            [sentence.format(words[2]) for sentence in sentences],
            [f" {words[3]}"] * len(sentences),
            prepend_bos=False,
            items=[2] * len(sentences),
            classes=[name] * len(sentences),
            item_words=[words[2]] * len(sentences),
        )
        at = prompts.tokens[torch.arange(len(sentences)), prompts.item_position]
        assert (at == classes[name].tokens[2]).all()


def test_models_without_the_words_are_refused():
    with pytest.raises(NotApplicable, match="circular_features cannot judge toy/s5: it has no residual stream"):
        circular_features(load_model("toy/s5"))
    with pytest.raises(NotApplicable, match="toy/z113-transformer: it comes without a tokenizer"):
        circular_features(load_model("toy/z113-transformer"))


@pytest.mark.network
def test_gpt2_small_keeps_the_days_in_order():
    """GPT-2 small answers 7 of 7 next days, and its days lie around a circle in layers 5 to 8 (Engels et al. 2025)."""
    found = circular_features("gpt2", classes=("days",))
    assert found.represented.outcome == "found"
