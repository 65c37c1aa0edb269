"""States predicted from other items, exchanged residues, and what the study leaves out."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses.successor_heads.states import (
    exchange_residues,
    predicted_successors,
    study_states,
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


# --- states put together -------------------------------------------------------------------------


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
    assert predicted_successors(normal(9, 8), {"line": LINE}, lambda given: given) is None


def test_planted_residues_can_be_exchanged_at_their_own_size():
    number = torch.arange(60)
    ones = 3 * torch.eye(10, 16, dtype=torch.float64)
    tens = torch.eye(6, 16, dtype=torch.float64).roll(10, 1)
    states = ones[number % 10] + tens[number // 10]

    def read(given: torch.Tensor) -> torch.Tensor:
        return (given[:, number % 10] / 3 + given[:, 10 + number // 10]).roll(1, 1)

    found = exchange_residues(states, number, 10, read)
    assert float(found.share.value) > 0.95
    assert found.used.outcome == "found"
    assert found.shuffled.mean() < 0.3


# --- the study -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return load_model("toy/ordinal")


def test_the_study_of_states_says_what_it_could_not_measure(toy):
    known = dict(ordinal_classes(toy.tokenizer, ("days", "months")).classes)
    classes = {**known, "small": of_length("small", [10, 11, 12], 13, first=30)}
    reader = OVReader(toy, torch.cat([c.tokens for c in classes.values()]), Convention())
    states = study_states(reader, classes, (1, 1), follow=True)
    assert states.residues is None
    assert states.factored_succession is not None
    reader = OVReader(toy, known["days"].tokens, Convention())
    states = study_states(reader, {"days": known["days"]}, (1, 1), follow=False)
    assert states.factoring is None
    assert any("not split into place and class" in note for note in states.notes)


def test_eleven_numbers_are_too_few_for_residues_and_exchanges_need_every_residue(toy):
    numbers = ordinal_classes(toy.tokenizer, ("numbers",)).classes["numbers"]

    def first(n: int) -> dict[str, OrdinalClass]:
        kept = OrdinalClass(
            "numbers", numbers.words[:n], numbers.tokens[:n], torch.arange(n), n, False, "as is", ()
        )
        return {"numbers": kept}

    def study(n: int):
        return study_states(
            OVReader(toy, numbers.tokens[:n], Convention()), first(n), (1, 1), follow=True
        )

    assert study(11).residues is None
    assert any("expected at least 12" in note for note in study(11).notes)
    assert study(20).residues is not None
    assert study(20).steering_period is not None
