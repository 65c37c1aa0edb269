"""Scores of succession worked by hand: winners, logits of a head, states predicted from others, answers."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.ov_circuit import Convention, OVReader
from mechinterp_toolkit.prompts import OrdinalClass, ordinal_classes
from mechinterp_toolkit.succession import (
    class_matrices,
    cross_class_score,
    exchange_residues,
    hits,
    logit_by_distance,
    macro_average,
    order_bias,
    predicted_successors,
    right_answer,
    shuffled_hits,
    study_states,
    study_writes,
    successors_across,
    winners,
)


def days(n: int = 7, cyclic: bool = True) -> OrdinalClass:
    words = tuple("abcdefghijklmnopqrstuvwxyz"[:n])
    return OrdinalClass(
        name="days", words=words, tokens=torch.arange(n), index=torch.arange(n), order=n, cyclic=cyclic,
        variant="as is", dropped=(),
    )  # fmt: skip


def of_length(name: str, places: list[int], order: int, *, cyclic: bool = False, first: int = 0) -> OrdinalClass:
    from mechinterp_toolkit.prompts import Dropped

    return OrdinalClass(
        name=name, words=tuple(f"{name}{i}" for i in places), tokens=torch.arange(first, first + len(places)),
        index=torch.tensor(places), order=order, cyclic=cyclic, variant="as is",
        dropped=tuple(Dropped(f"{name}{i}", "left out") for i in range(order) if i not in places),
    )  # fmt: skip


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LINE, RING = of_length("line", list(range(9)), 9), of_length("ring", list(range(7)), 7, cyclic=True, first=9)
CLASSES = {"line": LINE, "ring": RING}


# --- winners -----------------------------------------------------------------------------------------------------------


def test_hits_of_a_head_worked_by_hand():
    """One head sends 0 to 1, 1 to 2, 2 to 2 and 3 to 0: three of four successors in a cycle of four."""
    best = torch.tensor([[[1, 2, 2, 0]]])
    ring = days(4)
    assert hits(best, ring.pairs(1)).flatten().tolist() == [1, 1, 0, 1]
    assert hits(best, ring.pairs(-1)).flatten().tolist() == [0, 0, 0, 0]
    assert hits(best, ring.pairs(0)).flatten().tolist() == [0, 0, 1, 0]
    line = days(4, cyclic=False)
    assert hits(best, line.pairs(1)).flatten().tolist() == [1, 1, 0]


def test_a_tie_is_no_hit():
    assert hits(torch.full((1, 1, 4), -1), days(4).pairs(1)).sum() == 0


def test_shuffling_with_the_identity_is_the_score_itself():
    best = torch.randint(0, 7, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    pairs = days().pairs(1)
    null = shuffled_hits(best, pairs, torch.stack([torch.arange(7), torch.arange(7).flip(0)]))
    assert torch.equal(null[0], hits(best, pairs).mean(0))
    assert torch.equal(null[1], hits(best, days().pairs(-1)).mean(0))  # a cycle read backwards


def test_the_macro_average_counts_classes_alike():
    """A class of 2 all right and one of 8 all wrong average to one half, not to one fifth."""
    right = {"small": torch.ones(2, 1, 1), "large": torch.zeros(8, 1, 1)}
    estimate = macro_average({k: v.double() for k, v in right.items()}, torch.zeros(39, 1, 1), 0)
    assert estimate.value.item() == pytest.approx(0.5)
    assert estimate.n == 10


def test_a_tie_wins_nothing():
    assert winners(torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [1, -1, -1]


# --- across classes ----------------------------------------------------------------------------------------------------


def test_pairs_across_classes_are_by_place_and_do_not_go_round():
    gaps = of_length("gaps", [0, 2, 3], 4)
    assert successors_across(gaps, RING).tolist() == [[0, 1], [1, 3], [2, 4]]
    assert successors_across(RING, gaps).tolist() == [[1, 1], [2, 2]]  # places 1 and 2 have 2 and 3 behind them
    assert successors_across(LINE, RING).tolist() == [[i, i + 1] for i in range(6)]
    assert torch.equal(successors_across(RING, RING), RING.pairs(1))


def next_place(classes: dict[str, OrdinalClass]) -> torch.Tensor:
    """Logits that name the next place in every class, whichever is shown, and round within a cycle."""
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
    late = of_length("late", [6, 7, 8], 9, first=16)  # of the ring's places, only 6 stands behind one of them
    three = {**CLASSES, "late": late}
    assert cross_class_score(next_place(three), three).labels["shown"] == ("line", "ring")
    assert cross_class_score(normal(3, 3), {"late": late}) is None


# --- later and earlier -------------------------------------------------------------------------------------------------


def test_order_bias_of_four_items_worked_by_hand():
    """Logit = place of the candidate. Item 1: mean(2, 3) - 0; item 2: 3 - mean(0, 1). The reverse has the opposite."""
    four = of_length("four", [0, 1, 2, 3], 4)
    rising = torch.arange(4.0).expand(1, 4, 4)
    both = torch.cat([rising, rising.flip(2), rising.new_full((1, 4, 4), 3.0)])
    bias = order_bias([both], {"four": four}, draws=24)
    assert bias.value[0, 0].tolist() == [2.5, -2.5, 0]
    assert torch.allclose(bias.control[0], bias.value[:, 0][:, None])  # of all 24 orders the first is the identity
    assert torch.allclose(bias.control.mean(0), torch.zeros(1, 1, 3, dtype=torch.float64), atol=1e-12)


def test_order_bias_knows_which_head_of_which_layer():
    layers = [torch.zeros(2, 16, 16), torch.zeros(2, 16, 16)]
    layers[1][0] = torch.arange(16.0)
    value = order_bias(layers, CLASSES).value
    assert (value[:, 1, 0] > 1).all()
    assert value.count_nonzero() == 2


def test_a_class_of_three_items_has_no_order_bias():
    assert order_bias([torch.zeros(1, 3, 3)], {"three": of_length("three", [0, 1, 2], 3)}) is None


# --- distance ----------------------------------------------------------------------------------------------------------


def test_in_a_cycle_the_shorter_way_round_counts():
    """A head that gives 1 to the successor: 1 - 1/7 one place on, Sunday to Monday included, and -1/7 elsewhere."""
    logits = torch.eye(7).roll(1, 1)
    (one,) = class_matrices(logits, {"days": days()})
    found = logit_by_distance([one], {"days": days()})
    assert found.labels["distance"] == ("-3", "-2", "-1", "0", "+1", "+2", "+3")
    expected = torch.full((7,), -1 / 7, dtype=torch.float64)
    expected[4] = 6 / 7
    assert torch.allclose(found.value, expected, atol=1e-6)
    assert found.n == 7


def test_on_a_line_distances_have_a_sign_and_few_items_are_left_out():
    (one,) = class_matrices(torch.arange(9.0).expand(9, 9), {"line": LINE})
    found = logit_by_distance([one], {"line": LINE})
    assert found.labels["distance"][0] == "-7"  # only one item has another eight places on
    assert torch.allclose(found.value[7 + torch.tensor([-7, 0, 7])], torch.tensor([-3.5, 0, 3.5]).double())


def test_places_that_were_dropped_count_in_the_distance():
    gaps = of_length("gaps", [0, 2, 4, 6], 8)
    (one,) = class_matrices(torch.eye(4), {"gaps": gaps})
    assert logit_by_distance([one], {"gaps": gaps}).labels["distance"] == ("-4", "-2", "0", "+2", "+4")


# --- states ------------------------------------------------------------------------------------------------------------


def added(noise: float = 0.0) -> torch.Tensor:
    """States of `CLASSES` that are a vector of the place plus one of the class."""
    place, own = normal(9, 24, seed=2), normal(2, 24, seed=3)
    index, domain = torch.cat([LINE.index, RING.index]), torch.tensor([0] * 9 + [1] * 7)
    return place[index] + own[domain] + noise * normal(16, 24, seed=4)


def names_the_next(states: torch.Tensor):
    """A head that recognises the states it knows and names the next item of the same class."""
    after = torch.tensor([*range(1, 9), 0, *range(10, 16), 9])

    def read(given: torch.Tensor) -> torch.Tensor:
        logits = torch.empty(len(given), 16, dtype=given.dtype)
        logits[:, after] = -torch.cdist(given, states)
        return logits

    return read


def test_the_head_follows_a_state_predicted_from_place_and_class():
    found = predicted_successors(added(), CLASSES, names_the_next(added()))
    assert found.value == 1
    assert found.n == 14  # places 0 to 6 are in both classes; all of these have a successor
    assert found.control.mean() < 0.5


def test_states_of_their_own_say_nothing_of_each_other():
    own = normal(16, 24, seed=5)
    found = predicted_successors(own, CLASSES, names_the_next(own))
    assert found.value <= 0.3


def test_no_shared_place_no_prediction():
    assert predicted_successors(normal(9, 8), {"line": LINE}, lambda given: given.new_zeros(len(given), 9)) is None


def test_planted_residues_can_be_exchanged_at_their_own_size():
    number = torch.arange(60)
    ones, tens = 3 * torch.eye(10, 16, dtype=torch.float64), torch.eye(6, 16, dtype=torch.float64).roll(10, 1)
    states = ones[number % 10] + tens[number // 10]

    def read(given: torch.Tensor) -> torch.Tensor:
        return (given[:, number % 10] / 3 + given[:, 10 + number // 10]).roll(1, 1)

    found = exchange_residues(states, number, 10, read)
    assert float(found.share.value) > 0.95
    assert found.used.outcome == "found"
    assert found.shuffled.mean() < 0.3


# --- studies and answers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return load_model("toy/ordinal")


def test_studies_say_what_they_could_not_measure(toy):
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
    states = study_states(reader, classes, (1, 1), follow=True)
    assert states.residues is None
    assert states.factored_succession is not None
    alone = {"days": known["days"]}
    reader = OVReader(toy, known["days"].tokens, Convention())
    assert study_writes(reader, alone, (1, 1)).cross_class is None
    states = study_states(reader, alone, (1, 1), follow=False)
    assert states.factoring is None
    assert any("not split into place and class" in note for note in states.notes)


def test_eleven_numbers_are_too_few_for_residues_and_exchanges_need_every_residue(toy):
    numbers = ordinal_classes(toy.tokenizer, ("numbers",)).classes["numbers"]

    def first(n: int) -> dict[str, OrdinalClass]:
        kept = OrdinalClass("numbers", numbers.words[:n], numbers.tokens[:n], torch.arange(n), n, False, "as is", ())
        return {"numbers": kept}

    def study(n: int):
        return study_states(OVReader(toy, numbers.tokens[:n], Convention()), first(n), (1, 1), follow=True)

    assert study(11).residues is None
    assert any("expected at least 12" in note for note in study(11).notes)
    assert study(20).residues is not None
    assert study(20).steering_period is not None


def test_the_metric_of_an_answer_is_its_logit_above_the_mean_of_its_class(toy):
    from mechinterp_toolkit.toys import successor_queries

    classes = dict(ordinal_classes(toy.tokenizer).classes)
    prompts = successor_queries(toy.tokenizer, classes)
    logits = normal(len(prompts), prompts.tokens.shape[1], toy.cfg.d_vocab)
    value = right_answer(prompts, classes)(logits)
    for row in (0, 50, 91):
        last = logits[row, prompts.position[row]]
        expected = last[prompts.answer[row]] - last[classes[prompts.classes[row]].tokens].mean()
        assert value[row] == pytest.approx(expected.item())
