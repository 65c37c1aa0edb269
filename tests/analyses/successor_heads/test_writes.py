"""Logits of a head worked by hand: across classes, later and earlier items, distance."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses.successor_heads.writes import (
    class_matrices,
    cross_class_score,
    logit_by_distance,
    order_bias,
    study_writes,
    successors_across,
)
from mechinterp_toolkit.heads.ov_circuit import Convention, OVReader
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts import OrdinalClass, ordinal_classes


def of_length(
    name: str, places: list[int], order: int, *, cyclic: bool = False, first: int = 0
) -> OrdinalClass:
    from mechinterp_toolkit.prompts import Dropped

    return OrdinalClass(
        name=name,
        words=tuple(f"{name}{i}" for i in places),
        tokens=torch.arange(first, first + len(places)),
        index=torch.tensor(places),
        order=order,
        cyclic=cyclic,
        variant="as is",
        dropped=tuple(Dropped(f"{name}{i}", "left out") for i in range(order) if i not in places),
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LINE = of_length("line", list(range(9)), 9)
RING = of_length("ring", list(range(7)), 7, cyclic=True, first=9)
CLASSES = {"line": LINE, "ring": RING}


# --- across classes ------------------------------------------------------------------------------


def test_pairs_across_classes_are_by_place_and_do_not_go_round():
    gaps = of_length("gaps", [0, 2, 3], 4)
    assert successors_across(gaps, RING).tolist() == [[0, 1], [1, 3], [2, 4]]
    # Places 1 and 2 have 2 and 3 behind them.
    assert successors_across(RING, gaps).tolist() == [[1, 1], [2, 2]]
    assert successors_across(LINE, RING).tolist() == [[i, i + 1] for i in range(6)]
    assert torch.equal(successors_across(RING, RING), RING.pairs(1))


def next_place(classes: dict[str, OrdinalClass]) -> torch.Tensor:
    """Logits that name the next place in every class, and go round within a cycle."""
    index = torch.cat([c.index for c in classes.values()])
    logits = 0.1 * normal(len(index), len(index))
    logits[index[:, None] + 1 == index] += 5
    start = 0
    for c in classes.values():
        pairs = c.pairs(1) + start
        logits[pairs[:, 0], pairs[:, 1]] += 5
        start += len(c)
    return logits


def test_a_head_that_names_the_next_place_scores_across_classes():
    score = cross_class_score(next_place(CLASSES), CLASSES)
    assert score.labels == {"shown": ("line", "ring"), "answered": ("line", "ring")}
    assert score.value.tolist() == [[1, 1], [1, 1]]
    assert score.control.mean() < 0.3


def test_a_head_that_keeps_to_its_class_scores_within_it_alone():
    logits = next_place(CLASSES)
    logits[:9, 9:] = normal(9, 7, seed=1)
    logits[9:, :9] = 0  # ties
    score = cross_class_score(logits, CLASSES)
    assert score.value.diagonal().tolist() == [1, 1]
    assert score.value[0, 1] < 0.6
    assert score.value[1, 0] == 0


def test_classes_without_shared_places_are_not_asked_across():
    # Of the ring's places, only 6 stands behind one of them.
    late = of_length("late", [6, 7, 8], 9, first=16)
    three = {**CLASSES, "late": late}
    assert cross_class_score(next_place(three), three).labels["shown"] == ("line", "ring")
    assert cross_class_score(normal(3, 3), {"late": late}) is None


# --- later and earlier ---------------------------------------------------------------------------


def test_order_bias_of_four_items_worked_by_hand():
    """Logit = place of the candidate. Item 1: mean(2, 3) - 0; item 2: 3 - mean(0, 1)."""
    four = of_length("four", [0, 1, 2, 3], 4)
    rising = torch.arange(4.0).expand(1, 4, 4)
    both = torch.cat([rising, rising.flip(2), rising.new_full((1, 4, 4), 3.0)])
    bias = order_bias([both], {"four": four}, draws=24)
    assert bias.value[0, 0].tolist() == [2.5, -2.5, 0]
    # Of all 24 orders the first is the identity.
    assert torch.allclose(bias.control[0], bias.value[:, 0][:, None])
    assert bias.control.mean(0).abs().max() < 1e-12  # float64 sums that cancel


def test_order_bias_knows_which_head_of_which_layer():
    layers = [torch.zeros(2, 16, 16), torch.zeros(2, 16, 16)]
    layers[1][0] = torch.arange(16.0)
    value = order_bias(layers, CLASSES).value
    assert (value[:, 1, 0] > 1).all()
    assert value.count_nonzero() == 2


def test_a_class_of_three_items_has_no_order_bias():
    assert order_bias([torch.zeros(1, 3, 3)], {"three": of_length("three", [0, 1, 2], 3)}) is None


# --- distance ------------------------------------------------------------------------------------


def test_in_a_cycle_the_shorter_way_round_counts():
    """A head that gives 1 to the successor: 6/7 one place on, from Sunday too, -1/7 elsewhere."""
    logits, days = torch.eye(7).roll(1, 1), of_length("days", list(range(7)), 7, cyclic=True)
    found = logit_by_distance(class_matrices(logits, {"days": days}), {"days": days})
    assert found.labels["distance"] == ("-3", "-2", "-1", "0", "+1", "+2", "+3")
    expected = torch.full((7,), -1 / 7, dtype=torch.float64)
    expected[4] = 6 / 7
    assert torch.allclose(found.value, expected, atol=1e-6)
    assert found.n == 7


def test_on_a_line_distances_have_a_sign_and_few_items_are_left_out():
    line = {"line": LINE}
    found = logit_by_distance(class_matrices(torch.arange(9.0).expand(9, 9), line), line)
    assert found.labels["distance"][0] == "-7"  # only one item has another eight places on
    assert found.value[[0, 7, 14]].tolist() == pytest.approx([-3.5, 0, 3.5])


def test_places_that_were_dropped_count_in_the_distance():
    gaps = {"gaps": of_length("gaps", [0, 2, 4, 6], 8)}
    found = logit_by_distance(class_matrices(torch.eye(4), gaps), gaps)
    assert found.labels["distance"] == ("-4", "-2", "0", "+2", "+4")


# --- the study -----------------------------------------------------------------------------------


def test_the_study_of_writes_says_what_it_could_not_measure():
    toy = load_model("toy/ordinal")
    known = dict(ordinal_classes(toy.tokenizer, ("days", "months")).classes)
    small = of_length("small", [10, 11, 12], 13, first=30)
    classes = {**known, "small": small}
    reader = OVReader(toy, torch.cat([c.tokens for c in classes.values()]), Convention())
    written = study_writes(reader, classes, (1, 1))
    assert written.order_bias.labels["class"] == ("days", "months")
    assert any("for want of shared places: small" in note for note in written.notes)
    assert any("fewer than four items" in note for note in written.notes)
    short = study_writes(OVReader(toy, small.tokens, Convention()), {"small": small}, (1, 1))
    assert short.order_bias is None
    assert any("fewer than four items" in note for note in short.notes)
    reader = OVReader(toy, known["days"].tokens, Convention())
    assert study_writes(reader, {"days": known["days"]}, (1, 1)).cross_class is None
