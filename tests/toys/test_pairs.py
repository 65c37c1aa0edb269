"""Pairs of operands: all of them in order, split by a seed, as tokens."""

from __future__ import annotations

import torch

from mechinterp_toolkit.toys.pairs import all_pairs, pair_tokens, split_pairs


def test_all_pairs_run_through_the_right_element_first() -> None:
    assert all_pairs(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_every_pair_is_either_trained_on_or_tested() -> None:
    split = split_pairs(5, 0.4, seed=3)
    assert len(split.train) == 10
    together = torch.cat([split.train, split.test]).tolist()
    assert sorted(together) == all_pairs(5).tolist()


def test_another_seed_gives_another_split() -> None:
    assert not torch.equal(split_pairs(5, 0.4, seed=3).train, split_pairs(5, 0.4, seed=4).train)


def test_the_equals_sign_comes_last() -> None:
    assert pair_tokens(torch.tensor([[1, 4]]), 5).tolist() == [[1, 4, 5]]
