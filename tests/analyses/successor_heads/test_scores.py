"""Scores of heads worked by hand: hits, shuffled orders, the mean over classes."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses.successor_heads.scores import hits, macro_average, shuffled_hits
from mechinterp_toolkit.prompts import OrdinalClass


def days(n: int = 7, cyclic: bool = True) -> OrdinalClass:
    words = tuple("abcdefghijklmnopqrstuvwxyz"[:n])
    return OrdinalClass(
        name="days",
        words=words,
        tokens=torch.arange(n),
        index=torch.arange(n),
        order=n,
        cyclic=cyclic,
        variant="as is",
        dropped=(),
    )


def test_hits_of_a_head_worked_by_hand():
    """One head sends 0 to 1, 1 to 2, 2 to 2 and 3 to 0: three of four successors in a cycle of
    four."""
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
