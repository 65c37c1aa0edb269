"""Edits at items and what they move, worked by hand; features of sums, and what they gain on data
of known form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.analyses.circular_features import edits
from mechinterp_toolkit.analyses.circular_features.asked import Asked
from mechinterp_toolkit.analyses.circular_features.edits import (
    _moves,
    class_logits,
    edit_plane,
    regression_gains,
    share_right,
    sum_features,
)
from mechinterp_toolkit.analyses.circular_features.result import EDITS
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.circle import fit_circle
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts import ordinal_classes
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys import planted_circle, successor_queries

AT = "blocks.0.hook_resid_pre"


@pytest.fixture(scope="module")
def planted():
    """A model that computes successors from a circle of days, and what it is asked."""
    made = planted_circle(1.0, 0)
    days = ordinal_classes(made.tokenizer, ("days",)).classes
    prompts = successor_queries(made.tokenizer, days)
    one = torch.ones(7, dtype=torch.long)
    return load_model(made.model, tokenizer=made.tokenizer), Asked(
        prompts, days["days"].tokens, 0 * one, one
    )


def asked_for(item: torch.Tensor, step: torch.Tensor, planted) -> Asked:
    """Three items of a class, some steps on."""
    _, asked = planted
    prompts = replace(asked.prompts.select(torch.zeros(len(item), dtype=torch.long)), item=item)
    return Asked(prompts, torch.arange(3), 0 * item, step)


def test_moves_are_differences_against_the_item_s_own_answer_worked_by_hand(planted):
    base, edited = torch.zeros(3, 3).double(), torch.zeros(3, 3, 3).double()
    edited[1, 0] = torch.tensor([0.0, 1.0, 5.0])
    # item 0, set to item 1: its successor 2 rises by 5, the own answer 1 by 1
    moved = _moves(edited, base, asked_for(torch.arange(3), torch.ones(3).long(), planted))
    assert moved[0, 1].tolist() == [0, 4, -1]
    assert moved[1:].abs().sum() == 0


def test_moves_read_each_prompt_s_answer_its_own_steps_on_and_average_over_templates(planted):
    base, edited = torch.zeros(6, 3).double(), torch.zeros(3, 6, 3).double()
    edited[1, 0, 2] = 4  # item 0 set to 1, one step on: the answer is 2
    edited[1, 3, 0] = 2  # two steps on: it is 0
    item, step = torch.arange(3).repeat(2), torch.tensor([1, 1, 1, 2, 2, 2])
    moved = _moves(edited, base, asked_for(item, step, planted))
    assert moved[0, 1].tolist() == [0, 3, 0]
    assert moved.abs().sum() == 3


def test_ties_are_not_right():
    logits = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert share_right(logits, torch.tensor([0, 0, 1])) == pytest.approx(1 / 3)


def test_class_logits_are_centred_and_the_same_in_small_batches(planted, monkeypatch):
    model, asked = planted

    def change(rows, acts):
        return acts * (1 + rows[:, None])

    plain, whole = class_logits(model, asked), class_logits(model, asked, AT, change)
    assert plain.mean(1).abs().max() < 1e-6
    assert (plain.argmax(1) == asked.answer).all()
    assert (whole - plain).abs().max() > 0.1
    monkeypatch.setattr(edits, "_AT_ONCE", 3)
    assert torch.allclose(class_logits(model, asked, AT, change), whole, atol=1e-4)


def test_editing_the_planted_plane_moves_the_answer_and_another_plane_does_not(planted):
    model, asked = planted
    prompts = asked.prompts
    acts = activations(
        model, prompts.tokens, (AT,), mask=prompts.mask, position=prompts.item_position
    )[AT]
    circle = fit_circle(acts, asked.item, 7, draws=99)
    moved, accuracy = edit_plane(model, asked, AT, acts, circle.plane)
    right = dict(zip(EDITS, accuracy.tolist(), strict=True))
    assert moved.value > 0.8
    assert right["set the circle"] > 0.8
    assert right["remove the circle"] < 0.3
    generator = torch.Generator().manual_seed(0)
    elsewhere = torch.randn(acts.shape[1], 2, generator=generator, dtype=torch.float64)
    elsewhere = torch.linalg.qr(elsewhere - circle.plane.T @ (circle.plane @ elsewhere)).Q.T
    beside = edit_plane(model, asked, AT, acts, elsewhere)
    assert beside.moved.value < 0.2
    assert dict(zip(EDITS, beside.accuracy.tolist(), strict=True))["remove the circle"] > 0.8


def test_answers_lie_their_steps_behind_the_item(planted):
    _, asked = planted
    assert asked.answer.tolist() == [(i + 1) % 7 for i in asked.item.tolist()]
    assert replace(asked, step=3 * asked.step).answer.tolist() == [
        (i + 3) % 7 for i in asked.item.tolist()
    ]


def grid(period: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every a with every b."""
    return torch.arange(period).repeat(period), torch.arange(1, period + 1).repeat_interleave(
        period
    )


def test_one_hots_have_a_column_for_every_value():
    for period in (7, 12):
        features = sum_features(*grid(period), period)
        assert features["one-hot a and b"].shape == (period**2, 2 * period)
        assert (features["one-hot a and b"].sum(0) == period).all()
        sums = features["one-hot unreduced a + b"]
        assert sums.shape == (period**2, 2 * period - 1)
        assert sums.sum(0).tolist() == [*range(1, period), *range(period, 0, -1)]
    assert (
        sum_features(torch.tensor([6]), torch.tensor([2]), 7)["parity of c"].item() == -1
    )  # 8 = 1 modulo 7


@pytest.mark.parametrize("period", [7, 12])
@pytest.mark.parametrize("group", list(sum_features(*grid(7), 7)))
def test_what_is_planted_in_the_activations_is_what_gains(period, group):
    features, generator = sum_features(*grid(period), period), torch.Generator().manual_seed(0)
    shown = features[group] / features[group].std()
    acts = shown @ torch.randn(shown.shape[1], 30, generator=generator, dtype=torch.float64)
    acts += 0.2 * acts.std() * torch.randn(acts.shape, generator=generator, dtype=torch.float64)
    names = list(features)
    gains = regression_gains(
        {"here": acts, "permuted": acts[torch.randperm(len(acts), generator=generator)]}, features
    )
    assert gains.axes == ("feature group", "hook point")
    assert gains.labels == {"feature group": tuple(names), "hook point": ("here", "permuted")}
    here, permuted = gains.value.T
    assert names[int(here.argmax())] == group
    assert gains.low[names.index(group), 0] > gains.control[:, names.index(group), 0].max()
    assert 0.8 < here.sum() <= 1
    assert permuted.max() < 0.15


def test_a_sum_that_one_prompt_alone_has_does_not_count_as_predicted():
    """Each corner of the grid has a sum of its own: held out, its one-hot was never seen."""
    features = sum_features(*grid(7), 7)
    corner = torch.zeros(49, 3, dtype=torch.float64)
    corner[0] = 1
    gain = regression_gains({"here": corner}, {"sum": features["one-hot unreduced a + b"]})
    assert gain.value < 0.05  # in the sample it would be .99


def test_rows_that_are_all_the_same_have_nothing_to_explain():
    with pytest.raises(ToolkitError, match="49 rows at here are all the same"):
        regression_gains({"here": torch.ones(49, 5)}, sum_features(*grid(7), 7))
