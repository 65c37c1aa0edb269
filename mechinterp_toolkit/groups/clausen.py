"""How are functions on S_7 and S_8 transformed without a dense matrix?

S_n is the union of cosets c_i S_{n-1} with c_i = s_i s_{i+1} ... s_{n-1}, i = 1 .. n, so that for
the parts f_i(h) = f(c_i h) the transform at a partition is sum_i rho(c_i) times the block-diagonal
matrix of the transforms of f_i at the partitions with one box less. All cosets of one level are
handled at once; each s_j has two entries a row.

What would fool it: a basis whose restriction to S_{n-1} is not block-diagonal; `young` keeps
tableaux in last-letter order for this. Costs about n^3 / 2 operations per element of the group
instead of n!.

Source: Clausen 1989, Fast generalized Fourier transforms, Theoretical Computer Science 67.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.groups.young import (
    Partition,
    adjacent_transposition,
    corners,
    partitions,
    tableaux,
)

# Level k works on k stacked copies of the data; 2^25 numbers of 8 bytes keep the largest below
# about 256 MB.
WORKING_NUMBERS = 2**25

Level = dict[Partition, Tensor]  # partition of k -> [batch, n!/k! cosets, dim, dim]


def forward(
    f: Float[Tensor, "batch order"], permutations: Int[Tensor, "order degree"]
) -> Float[Tensor, "batch order"]:
    """Return orthonormal Fourier coefficients of functions on S_n, as the dense matrix gives them.

    >>> f, swap = torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[0, 1], [1, 0]])
    >>> forward(f, swap).mul(2**0.5).round().tolist()
    [[4.0, 2.0]]
    """
    degree, order = permutations.shape[1], len(permutations)
    at = _coset_position(permutations).argsort()
    parts = f.split(max(1, WORKING_NUMBERS // (order * degree)))
    return torch.cat([_analyse(rows[:, at], degree) for rows in parts])


def backward(
    coefficients: Float[Tensor, "batch order"], permutations: Int[Tensor, "order degree"]
) -> Float[Tensor, "batch order"]:
    """Return the functions with these coefficients: the transpose, so the inverse, of `forward`.

    >>> f, swap = torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[0, 1], [1, 0]])
    >>> backward(forward(f, swap), swap).round().tolist()
    [[3.0, 1.0]]
    """
    degree, order = permutations.shape[1], len(permutations)
    position = _coset_position(permutations)
    parts = coefficients.split(max(1, WORKING_NUMBERS // (order * degree)))
    return torch.cat([_synthesise(rows, degree)[:, position] for rows in parts])


def _analyse(f: Float[Tensor, "batch order"], degree: int) -> Float[Tensor, "batch order"]:
    level: Level = {(1,): f[:, :, None, None]}
    for k in range(2, degree + 1):
        level = {shape: _ascend(level, shape, k) for shape in partitions(k)}
    scaled = [
        math.sqrt(matrix.shape[-1] / f.shape[1]) * matrix.flatten(1) for matrix in level.values()
    ]
    return torch.cat(scaled, 1)


def _ascend(level: Level, shape: Partition, k: int) -> Float[Tensor, "batch coset dim dim"]:
    """Transforms at a partition of k from those at the partitions of k-1 below it."""
    dim = len(tableaux(shape))
    some = next(iter(level.values()))
    stack = some.new_zeros(some.shape[0], some.shape[1] // k, k, dim, dim)
    for below, rows in _sub_blocks(shape):
        stack[..., rows, rows] = level[below].unflatten(1, (-1, k))
    # Term i is multiplied by s_{k-1}, ..., s_i in turn: those with i <= j by s_j.
    for j in range(k - 1, 0, -1):
        stack[:, :, :j] = adjacent_transposition(shape, j).times(stack[:, :, :j])
    return stack.sum(2)


def _synthesise(
    coefficients: Float[Tensor, "batch order"], degree: int
) -> Float[Tensor, "batch order"]:
    order = coefficients.shape[1]
    level: Level = {}
    start = 0
    for shape in partitions(degree):
        dim = len(tableaux(shape))
        part = coefficients[:, start : start + dim * dim].unflatten(1, (1, dim, dim))
        level[shape] = math.sqrt(dim / order) * part
        start += dim * dim
    for k in range(degree, 1, -1):
        level = _descend(level, k)
    return level[(1,)].flatten(1)


def _descend(level: Level, k: int) -> Level:
    """The transpose of one level of `_ascend`."""
    below: Level = {}
    for shape, matrix in level.items():
        stack = matrix[:, :, None].repeat(1, 1, k, 1, 1)
        for j in range(1, k):
            stack[:, :, :j] = adjacent_transposition(shape, j).times(stack[:, :, :j])
        for smaller, rows in _sub_blocks(shape):
            part = stack[..., rows, rows].flatten(1, 2)
            below[smaller] = below[smaller] + part if smaller in below else part
    return below


def _sub_blocks(shape: Partition) -> list[tuple[Partition, slice]]:
    """Partitions one box smaller with the rows their irreps fill on restriction."""
    blocks, start = [], 0
    for _, rest in corners(shape):
        blocks.append((rest, slice(start, start + len(tableaux(rest)))))
        start += len(tableaux(rest))
    return blocks


def _coset_position(permutations: Int[Tensor, "order degree"]) -> Int[Tensor, " order"]:
    """Place of each element when sorted by coset of S_{n-1}, then of S_{n-2} in it, and so on."""
    rest, position = permutations, torch.zeros(len(permutations), dtype=torch.long)
    for k in range(permutations.shape[1], 1, -1):
        i = rest[:, k - 1 : k]  # g = c_i h sends the last letter to i
        position = position * k + i[:, 0]
        # h = c_i^-1 g: c_i^-1 sends i to the last letter and lowers every letter above i by one.
        rest = rest[:, : k - 1] - (rest[:, : k - 1] > i).long()
    return position
