"""What are the irreducible representations of the symmetric group S_n?

One per partition of n, by Young's orthogonal form: the basis is the standard tableaux of that
shape, and the adjacent transposition s_k = (k k+1) has 1/r on the diagonal and sqrt(1 - 1/r^2) to
the tableau with k and k+1 swapped, where r is the axial distance from k to k+1. Tableaux stand in
last-letter order (by the row of n, then of n-1, ...), so that restriction to S_{n-1} is
block-diagonal with one contiguous block per removable corner.

What would fool it: the seminormal form (off-diagonals 1 and 1 - 1/r^2), which is a representation
but not orthogonal.

Source: James and Kerber 1981, The Representation Theory of the Symmetric Group, section 3.3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.groups.representation import Irrep

Partition = tuple[int, ...]
Tableau = tuple[int, ...]  # the row of each letter 1 .. n


@dataclass(frozen=True, eq=False)
class AdjacentTransposition:
    """The matrix of s_k in Young's orthogonal form: symmetric, at most two entries in each row."""

    diagonal: Float[Tensor, " dim"]
    """1/r per tableau."""

    off_diagonal: Float[Tensor, " dim"]
    """sqrt(1 - 1/r^2) per tableau; 0 where the swap leaves no standard tableau."""

    swapped: Int[Tensor, " dim"]
    """Index of the tableau with k and k+1 swapped (itself where there is none)."""

    def times(
        self, stack: Float[Tensor, "*batch dim columns"]
    ) -> Float[Tensor, "*batch dim columns"]:
        """Return this matrix times each matrix of `stack`, at two multiplications per entry."""
        moved = stack[..., self.swapped, :]
        return self.diagonal[:, None] * stack + self.off_diagonal[:, None] * moved


def partitions(n: int) -> tuple[Partition, ...]:
    """Return the partitions of n, largest first.

    >>> partitions(3)
    ((3,), (2, 1), (1, 1, 1))
    """

    def parts(rest: int, most: int) -> Iterator[Partition]:
        if rest == 0:
            yield ()
        for first in range(min(rest, most), 0, -1):
            yield from ((first, *tail) for tail in parts(rest - first, first))

    return tuple(parts(n, n))


def partition_label(shape: Partition) -> str:
    """Return the name of the irrep of a partition.

    >>> partition_label((4, 1))
    '(4,1)'
    """
    return f"({','.join(map(str, shape))})"


def corners(shape: Partition) -> tuple[tuple[int, Partition], ...]:
    """Return the rows that can lose a box, top to bottom, each with the partition that is left.

    >>> corners((2, 1))
    ((0, (1, 1)), (1, (2,)))
    """
    removable = []
    for row, length in enumerate(shape):
        if row == len(shape) - 1 or shape[row + 1] < length:
            rest = (*shape[:row], length - 1, *shape[row + 1 :])
            removable.append((row, tuple(part for part in rest if part)))
    return tuple(removable)


@functools.cache
def tableaux(shape: Partition) -> tuple[Tableau, ...]:
    """Return the standard tableaux of `shape` in last-letter order: the row of each letter.

    >>> tableaux((2, 1))
    ((0, 1, 0), (0, 0, 1))
    """
    if not shape:
        return ((),)
    return tuple((*smaller, row) for row, rest in corners(shape) for smaller in tableaux(rest))


@functools.cache
def adjacent_transposition(shape: Partition, k: int) -> AdjacentTransposition:
    """Return s_k = (k k+1) on the irrep of `shape`, for k = 1 .. n-1.

    >>> adjacent_transposition((2, 1), 1).times(torch.eye(2).double()).tolist()
    [[-1.0, 0.0], [0.0, 1.0]]
    """
    basis = tableaux(shape)
    place = {tableau: index for index, tableau in enumerate(basis)}
    diagonal, off_diagonal, swapped = [], [], []
    for index, tableau in enumerate(basis):
        distance = _content(tableau, k + 1) - _content(tableau, k)
        other = (*tableau[: k - 1], tableau[k], tableau[k - 1], *tableau[k + 1 :])
        diagonal.append(1 / distance)
        # |distance| = 1 means k and k+1 are neighbours in a row or column: swapping them breaks the
        # tableau.
        off_diagonal.append(math.sqrt(1 - 1 / distance**2))
        swapped.append(index if abs(distance) == 1 else place[other])
    return AdjacentTransposition(
        torch.tensor(diagonal, dtype=torch.float64),
        torch.tensor(off_diagonal, dtype=torch.float64),
        torch.tensor(swapped),
    )


def symmetric_irreps(permutations: Int[Tensor, "order degree"]) -> tuple[Irrep, ...]:
    """Return all irreps of S_n, by partition: trivial "(n)" first and sign "(1,...,1)" last.

    Args:
        permutations: Every permutation of 0 .. n-1, one per row, in the order of the group's
            elements.

    >>> symmetric_irreps(torch.tensor([[0, 1], [1, 0]]))[1].matrices.flatten().tolist()
    [1.0, -1.0]
    """
    steps = _words(permutations)
    irreps = []
    for shape in partitions(permutations.shape[1]):
        dim = len(tableaux(shape))
        matrices = torch.eye(dim, dtype=torch.float64).expand(len(permutations), dim, dim).clone()
        for k, shorter, longer in steps:
            # rho(g s_k) = rho(g) rho(s_k), and s_k is symmetric: multiply the transposes from the
            # left.
            matrices[longer] = adjacent_transposition(shape, k).times(matrices[shorter].mT).mT
        irreps.append(Irrep(partition_label(shape), "real", matrices))
    return tuple(irreps)


def _content(tableau: Tableau, letter: int) -> int:
    """Column minus row of the box that holds `letter`."""
    row = tableau[letter - 1]
    return tableau[: letter - 1].count(row) - row


def _words(
    permutations: Int[Tensor, "order degree"],
) -> list[tuple[int, Int[Tensor, " step"], Int[Tensor, " step"]]]:
    """Breadth-first reduced words: (k, g, g s_k), shorter elements always reached earlier."""
    degree = permutations.shape[1]
    index = {tuple(row): i for i, row in enumerate(permutations.tolist())}
    start = tuple(range(degree))
    seen, frontier, steps = {start}, [start], []
    while frontier:
        reached: dict[int, list[tuple[int, int]]] = {}
        following = []
        for g in frontier:
            for k in range(1, degree):
                # (g·s_k)(x) = g(s_k(x)): the values at positions k and k+1 change places.
                moved = (*g[: k - 1], g[k], g[k - 1], *g[k + 1 :])
                if moved not in seen:
                    seen.add(moved)
                    following.append(moved)
                    reached.setdefault(k, []).append((index[g], index[moved]))
        for k, pairs in reached.items():
            shorter, longer = torch.tensor(pairs).T
            steps.append((k, shorter, longer))
        frontier = following
    return steps
