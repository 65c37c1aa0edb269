"""What is the Fourier transform of functions on a group?

Up to `DENSE_LIMIT` elements: one product with the orthogonal Fourier matrix. For larger symmetric
groups: the fast transform of `clausen`. Energies per isotypic subspace are sums of squared
coefficients.

What would fool it: reading single coefficients, which depend on the basis of an irrep and on the
order of composition; isotypic energies depend on neither.

Source: Diaconis 1988, Group Representations in Probability and Statistics, chapter 2; inversion and
projectors, Serre 1977, Linear Representations of Finite Groups, sections 6.2 and 2.6.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import clausen
from mechinterp_toolkit.groups.irreps import DENSE_LIMIT, blocks, irrep, irreps
from mechinterp_toolkit.groups.representation import Block, units
from mechinterp_toolkit.groups.table import Group, Side, per_group


@per_group
def fourier_matrix(group: Group) -> Float[Tensor, "order order"]:
    """Return the orthogonal Fourier matrix: one row per element, columns as in `blocks`.

    Column (rho, i, j) is sqrt(d / |G|) rho_ij(g), with j < multiplicity. Do not write into it: it
    is kept.

    Raises:
        ToolkitError: more than `DENSE_LIMIT` elements.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> fourier_matrix(cyclic(2)).mul(2**0.5).round().tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    if group.order > DENSE_LIMIT:
        raise ToolkitError(
            f"the dense Fourier matrix of {group.name} ({group.order} x {group.order},"
            f" {8 * group.order**2 / 1e9:.1f} GB) is refused above {DENSE_LIMIT} elements;"
            " fourier() and isotypic_energy() do without it for S_n."
        )
    # Dividing by the length of each column: sum_g rho_ij(g)^2 = |G| / d (Serre, section 2.2).
    columns = [
        math.sqrt(rho.dimension / group.order) * rho.matrices[:, :, : rho.multiplicity].flatten(1)
        for rho in irreps(group)
    ]
    return torch.cat(columns, 1)


def fourier(group: Group, f: Float[Tensor, "*batch order"]) -> Float[Tensor, "*batch order"]:
    """Return the Fourier coefficients of real functions on the group, in float64.

    The transform is orthogonal: squared coefficients are energies. Coefficient (rho, i, j) stands
    where `blocks` says and equals sqrt(d / |G|) sum_g f(g) rho_ij(g). Up to `DENSE_LIMIT` elements
    this is one matrix product; S_7 and S_8 use a fast transform with a working memory of 6 MB per
    function on S_8, and at most 0.6 GB for many.

    Raises:
        ToolkitError: the last axis is not the group, or the group is too large and not a symmetric
            one.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> fourier(cyclic(4), torch.tensor([1.0, -1.0, 1.0, -1.0])).round().int().tolist()
    [0, 0, 0, 2]
    """
    rows, large = _rows(group, f), _large_symmetric(group)
    moved = rows @ fourier_matrix(group) if large is None else clausen.forward(rows, large)
    return moved.reshape(f.shape)


def inverse_fourier(
    group: Group, coefficients: Float[Tensor, "*batch order"]
) -> Float[Tensor, "*batch order"]:
    """Return the functions with these Fourier coefficients; limits and errors are `fourier`'s.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> f = torch.tensor([3.0, 0.0, 1.0, 0.0, 0.0, 2.0])
    >>> inverse_fourier(symmetric(3), fourier(symmetric(3), f)).round().int().tolist()
    [3, 0, 1, 0, 0, 2]
    """
    rows, large = _rows(group, coefficients), _large_symmetric(group)
    moved = rows @ fourier_matrix(group).T if large is None else clausen.backward(rows, large)
    return moved.reshape(coefficients.shape)


def isotypic_energy(
    group: Group, f: Float[Tensor, "*batch order"]
) -> Float[Tensor, "*batch irrep"]:
    """Return the squared norm of f in each isotypic subspace; they add up to that of f.

    These numbers depend neither on the bases of the irreps, nor on f(g) against f(g^-1), nor on the
    order of composition, so they are the ones to compare with other work.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> isotypic_energy(cyclic(4), torch.tensor([2.0, 0.0, 0.0, 0.0])).round().tolist()
    [1.0, 2.0, 1.0]
    """
    squares = fourier(group, f).square()
    return torch.stack([squares[..., block.columns].sum(-1) for block in blocks(group)], -1)


def isotypic_projector(group: Group, label: str) -> Float[Tensor, "order order"]:
    """Return the orthogonal projector onto the isotypic subspace of one irrep.

    It is made from the character alone: P[x, y] = (m / |G|) chi(x y^-1), m copies of chi.

    Raises:
        ToolkitError: no such irrep, or more than `DENSE_LIMIT` elements.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> isotypic_projector(cyclic(2), "k=1").tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    if group.order > DENSE_LIMIT:
        raise ToolkitError(
            f"the projector is a dense {group.order} x {group.order} matrix, refused above"
            f" {DENSE_LIMIT} elements; set the other blocks of fourier() to zero and use"
            " inverse_fourier() instead."
        )
    rho = irrep(group, label)
    quotients = group.table[:, group.inverses]
    return rho.multiplicity / group.order * rho.character[quotients]  # Serre, theorem 8


def correlation_coefficients(
    group: Group, coefficients: Float[Tensor, "*batch order"], *, side: Side
) -> Float[Tensor, "*batch order"]:
    """Return the Fourier coefficients of A(h) = sum_x f(hx) f(x), or of sum_x f(xh) f(x).

    Args:
        group: The group.
        coefficients: Those of f.
        side: "left" for f(hx), "right" for f(xh).

    >>> from mechinterp_toolkit.groups import cyclic
    >>> point = fourier(cyclic(4), torch.tensor([0.0, 1.0, 0.0, 0.0]))  # A is 1 at the identity
    >>> correlation = correlation_coefficients(cyclic(4), point, side="left")
    >>> inverse_fourier(cyclic(4), correlation).round().int().tolist()
    [1, 0, 0, 0]
    """
    out = torch.empty_like(coefficients)
    for block in blocks(group):
        full = block_matrices(block, coefficients)
        # With F = sum_g f(g) rho(g), the transform of A is F F^T (left) or F^T F (right).
        gram = full @ full.mT if side == "left" else full.mT @ full
        scale = (group.order / block.dimension) ** 0.5
        out[..., block.columns] = scale * gram[..., : block.multiplicity].flatten(-2)
    return out


def block_matrices(
    block: Block, coefficients: Float[Tensor, "*batch order"]
) -> Float[Tensor, "*batch dim dim"]:
    """Return the coefficients of one irrep as square matrices, sqrt(d / |G|) sum_g f(g) rho(g).

    >>> from mechinterp_toolkit.groups import cyclic
    >>> point = fourier(cyclic(4), torch.tensor([1.0, 0.0, 0.0, 0.0]))  # the matrix of the identity
    >>> block_matrices(blocks(cyclic(4))[1], point * 2**0.5).round().int().tolist()
    [[1, 0], [0, 1]]
    """
    part = coefficients[..., block.columns].unflatten(-1, (block.dimension, block.multiplicity))
    # The matrix of a real function commutes with I, J, K, so its first columns give the others.
    return torch.cat([unit @ part for unit in units(block.commutant, block.multiplicity)], -1)


def _large_symmetric(group: Group) -> Int[Tensor, "order degree"] | None:
    """The permutations of a symmetric group that is too large for a dense matrix."""
    large = group.family == "symmetric" and group.order > DENSE_LIMIT
    return group.permutations if large else None


def _rows(group: Group, f: Float[Tensor, "..."]) -> Float[Tensor, "row order"]:
    if f.shape[-1] != group.order:
        raise ToolkitError(
            f"the last axis of a function on {group.name} has one entry per element"
            f" ({group.order}); got shape {tuple(f.shape)}."
        )
    return f.double().reshape(-1, group.order)
