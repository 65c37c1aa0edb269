"""Residues exchanged: planted ones steer, others, random ones and readers that tie do not."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.residue_features import residue_features
from mechinterp_toolkit.geometry.residue_steering import steer_residues

D = 32
NUMBERS = torch.arange(100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = normal(*shape, seed=seed)
    return rows / rows.norm(dim=1, keepdim=True)


ONES, TENS = unit(10, D, seed=3), unit(10, D, seed=4)


def digits(noise: float = 0.1, ones: torch.Tensor = ONES, seed: int = 0) -> torch.Tensor:
    """Numbers 0 to 99 as direction of the last digit + direction of the tens + noise of this
    norm."""
    return (
        ones[NUMBERS % 10] + TENS[NUMBERS // 10] + noise * normal(100, D, seed=seed) / math.sqrt(D)
    )


def successor_head(states: torch.Tensor) -> torch.Tensor:
    """Logits of the successor, from the planted last digit and tens."""
    both = states @ torch.linalg.pinv(torch.cat([ONES, TENS]))
    here = both[:, :10][:, NUMBERS % 10] + both[:, 10:][:, NUMBERS // 10]
    return here.roll(1, 1)


@pytest.fixture(scope="module")
def steered():
    return steer_residues(
        digits(0.0),
        NUMBERS,
        residue_features(digits(0.0), NUMBERS, 10).features,
        2.0,
        successor_head,
    )


def test_exchanging_planted_residues_moves_the_answer(steered):
    assert steered.unsteered == 1
    assert float(steered.share.value) > 0.95
    assert float(steered.share.control.mean()) < 0.3
    assert float(steered.shuffled.mean()) < 0.3
    assert steered.used.outcome == "found"


def test_cells_are_all_other_residues_of_the_block(steered):
    # 90 x 9 cells up to 89 have an answer; of 90 to 99 those with target 99 have none, and 99
    # itself has nine targets.
    assert len(steered.item) + steered.left_out == 900
    assert steered.left_out == 9
    first = (steered.item == 23).nonzero()[:, 0]
    assert steered.intended[first].tolist() == [21, 22, 23, 25, 26, 27, 28, 29, 30]
    assert steered.share.n == 100


def test_features_of_other_residues_do_not_steer():
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    features = residue_features(digits(0.0), NUMBERS, 10).features[order]
    result = steer_residues(digits(0.0), NUMBERS, features, 2.0, successor_head)
    assert float(result.share.value) < 0.5
    assert result.used.outcome == "not_found"


def test_random_features_do_not_steer():
    result = steer_residues(digits(0.0), NUMBERS, unit(10, D, seed=30), 2.0, successor_head)
    assert result.used.outcome == "not_found"


def test_a_reader_that_ties_answers_nothing():
    result = steer_residues(
        digits(0.0), NUMBERS, ONES, 2.0, lambda states: torch.zeros(len(states), 100)
    )
    assert result.chosen.unique().tolist() == [-1]
    assert float(result.share.value) == 0
    assert result.used.outcome == "not_found"


def test_the_last_item_of_a_cycle_is_followed_by_the_first():
    months = unit(12, D, seed=6)
    read = lambda states: (states @ torch.linalg.pinv(months)).roll(1, 1)  # noqa: E731
    result = steer_residues(months, torch.arange(12), months, 1.0, read, cyclic=True)
    assert result.left_out == 0
    assert float(result.share.value) == 1
    assert int(result.intended[(result.item == 0) & (result.residue == 11)]) == 0
    assert steer_residues(months, torch.arange(12), months, 1.0, read).left_out == 11


def test_two_residues_have_too_few_permutations():
    result = steer_residues(digits(0.0), NUMBERS, unit(2, D), 1.0, successor_head)
    assert result.used.outcome == "undecided"


def test_what_cannot_be_steered_is_refused():
    with pytest.raises(ToolkitError, match="100 items have 10 different numbers"):
        steer_residues(digits(), NUMBERS % 10, ONES, 1.0, successor_head)
    with pytest.raises(ToolkitError, match="0 cells of 4 items have an answer, 36 have none"):
        steer_residues(normal(4, D), torch.arange(0, 40, 10), ONES, 1.0, successor_head)
    with pytest.raises(ToolkitError, match=r"read gave logits of shape \(100, 5\)"):
        steer_residues(digits(), NUMBERS, ONES, 1.0, lambda states: torch.zeros(len(states), 5))
    with pytest.raises(ToolkitError, match="got 1 features"):
        steer_residues(digits(), NUMBERS, ONES[:1], 1.0, successor_head)
