"""Which pairs (a, b) is a task of two operands asked, which is it trained on, and how as tokens?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Split(NamedTuple):
    """Training and test pairs of a task."""

    train: Int[Tensor, "train 2"]
    """Pairs trained on."""

    test: Int[Tensor, "test 2"]
    """Every other pair."""


def all_pairs(order: int) -> Int[Tensor, "pairs 2"]:
    """Return every pair (a, b) of numbers below `order`, b running fastest: row `a * order + b`.

    >>> all_pairs(2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return torch.cartesian_prod(torch.arange(order), torch.arange(order))


def split_pairs(order: int, fraction: float, seed: int) -> Split:
    """Return a random split of all pairs of `order` elements, `fraction` of them for training.

    >>> split = split_pairs(5, 0.4, seed=0)
    >>> len(split.train), len(split.test)
    (10, 15)
    """
    pairs = all_pairs(order)
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    cut = int(fraction * len(pairs))
    return Split(pairs[shuffled[:cut]], pairs[shuffled[cut:]])


def pair_tokens(pairs: Int[Tensor, "batch 2"], order: int) -> Int[Tensor, "batch 3"]:
    """Return `[a, b, =]` for each pair, `=` being token `order`.

    >>> pair_tokens(torch.tensor([[1, 2]]), 5).tolist()
    [[1, 2, 5]]
    """
    return torch.cat([pairs, pairs.new_full((len(pairs), 1), order)], 1)
