"""What is the Fourier transform of functions on a group?

Up to `DENSE_LIMIT` elements: one product with the orthogonal Fourier matrix. For larger symmetric
groups: the fast transform of `clausen`. Energies per isotypic subspace are sums of squared
coefficients.

What would fool it: reading single coefficients, which depend on the basis of an irrep and on the
order of composition; isotypic energies depend on neither.

Source: Diaconis 1988, Group Representations in Probability and Statistics, chapter 2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import clausen
from mechinterp_toolkit.groups.irreps import units
from mechinterp_toolkit.groups.table import DENSE_LIMIT, Group, Side


def fourier(group: Group, f: Float[Tensor, "*batch order"]) -> Float[Tensor, "*batch order"]:
    """Return orthonormal Fourier coefficients; see `Group.fourier`."""
    rows = _rows(group, f)
    if _is_fast(group):
        assert group.permutations is not None, "a symmetric group keeps its permutations"
        return clausen.forward(rows, group.permutations).reshape(f.shape)
    return (rows @ group.fourier_matrix()).reshape(f.shape)


def inverse(
    group: Group, coefficients: Float[Tensor, "*batch order"]
) -> Float[Tensor, "*batch order"]:
    """Return the functions with these coefficients; see `Group.inverse`."""
    rows = _rows(group, coefficients)
    if _is_fast(group):
        assert group.permutations is not None, "a symmetric group keeps its permutations"
        return clausen.backward(rows, group.permutations).reshape(coefficients.shape)
    return (rows @ group.fourier_matrix().T).reshape(coefficients.shape)


def isotypic_energy(
    group: Group, f: Float[Tensor, "*batch order"]
) -> Float[Tensor, "*batch irrep"]:
    """Return squared norms per isotypic subspace; see `Group.isotypic_energy`."""
    squares = fourier(group, f).square()
    return torch.stack([squares[..., block.columns].sum(-1) for block in group.blocks], -1)


def isotypic_projector(group: Group, label: str) -> Float[Tensor, "order order"]:
    """Return the projector P[x, y] = (m / |G|) chi(x y^-1), m copies of chi; see
    `Group.isotypic_projector`."""
    if group.order > DENSE_LIMIT:
        raise ToolkitError(
            f"the projector is a dense {group.order} x {group.order} matrix, refused above"
            f" {DENSE_LIMIT} elements; set the other blocks of fourier() to zero and use inverse()"
            " instead."
        )
    irrep = group.irrep(label)
    quotients = group.table[:, group.inverses]
    return irrep.multiplicity / group.order * irrep.character[quotients]


def correlation_coefficients(
    group: Group, coefficients: Float[Tensor, "*batch order"], *, side: Side
) -> Float[Tensor, "*batch order"]:
    """Return the Fourier coefficients of A(h) = sum_x f(hx) f(x) (side "left") or sum_x f(xh) f(x)
    ("right").

    With F = sum_g f(g) rho(g), the transform of A is F F^T or F^T F.
    """
    out = torch.empty_like(coefficients)
    for block in group.blocks:
        part = coefficients[..., block.columns].unflatten(-1, (block.dimension, block.multiplicity))
        # A function's F commutes with I, J, K, so its first columns give the others.
        basis = units(block.dimension // block.multiplicity, block.multiplicity)
        full = torch.cat([unit @ part for unit in basis], -1)
        gram = full @ full.mT if side == "left" else full.mT @ full
        scale = (group.order / block.dimension) ** 0.5
        out[..., block.columns] = scale * gram[..., : block.multiplicity].flatten(-2)
    return out


def _is_fast(group: Group) -> bool:
    return group.family == "symmetric" and group.order > DENSE_LIMIT


def _rows(group: Group, f: Float[Tensor, "..."]) -> Float[Tensor, "row order"]:
    if f.shape[-1] != group.order:
        raise ToolkitError(
            f"the last axis of a function on {group.name} has one entry per element"
            f" ({group.order}); got shape {tuple(f.shape)}."
        )
    return f.double().reshape(-1, group.order)
