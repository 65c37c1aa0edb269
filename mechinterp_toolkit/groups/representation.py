"""What is an irreducible real representation, and where does it stand in the Fourier basis?

An `Irrep` holds one orthogonal matrix per element. Complex and quaternionic representations come as
one real block (a complex pair rho, conj(rho) of dimension d as one of real dimension 2d), because
real functions cannot tell the two apart.

Source: Serre 1977, Linear Representations of Finite Groups, section 13.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

FrobeniusSchur = Literal["real", "complex", "quaternionic"]

COMMUTANT: dict[FrobeniusSchur, int] = {"real": 1, "complex": 2, "quaternionic": 4}
"""Real dimension of the matrices that commute with an irrep of that type: the reals, complexes,
quaternions."""


@dataclass(frozen=True)
class Block:
    """Where an irrep sits in the Fourier basis; all of it can be said without its matrices."""

    label: str
    """Name of the irrep, e.g. "(4,1)", "k=3" or "5a"."""

    dimension: int
    """Size of its real matrices."""

    multiplicity: int
    """Copies of it in the regular representation: `dimension`, halved or quartered for complex and
    quaternionic."""

    start: int
    """First of its columns in the Fourier matrix; column `start + i * multiplicity + j` belongs to
    entry (i, j)."""

    @property
    def commutant(self) -> int:
        """Real dimension of what commutes with the irrep: 1, 2 (complex) or 4 (quaternionic)."""
        return self.dimension // self.multiplicity

    @property
    def size(self) -> int:
        """Dimension of the isotypic subspace: d^2 for a real irrep, 2d^2 for a complex pair."""
        return self.dimension * self.multiplicity

    @property
    def columns(self) -> slice:
        """Its columns of the Fourier matrix, and its entries of a vector of coefficients."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, eq=False, repr=False)
class Irrep:
    """One orthogonal matrix per element, with rho(a) rho(b) = rho(a·b)."""

    label: str
    """Name: a partition for symmetric groups, a frequency for cyclic ones, else dimension and a
    letter."""

    frobenius_schur: FrobeniusSchur
    """Real, or a real block made of a complex pair, or of a quaternionic representation."""

    matrices: Float[Tensor, "order dim dim"]
    """The matrices, orthogonal. For the complex and quaternionic types the basis is (v, Iv) or (v,
    Iv, Jv, Kv) for orthonormal v, so that the first `multiplicity` columns hold every matrix
    coefficient once."""

    @property
    def dimension(self) -> int:
        """Size of the matrices: twice the complex dimension for complex and quaternionic types."""
        return self.matrices.shape[-1]

    @property
    def multiplicity(self) -> int:
        """Copies of it in the regular representation."""
        return self.dimension // COMMUTANT[self.frobenius_schur]

    @property
    def character(self) -> Float[Tensor, " order"]:
        """Trace of each matrix (for a complex pair: chi + conj(chi))."""
        return self.matrices.diagonal(dim1=1, dim2=2).sum(-1)

    def __repr__(self) -> str:
        return f"Irrep({self.label!r}, dimension {self.dimension}, {self.frobenius_schur})"


def units(commutant: int, multiplicity: int) -> Float[Tensor, "unit dim dim"]:
    """Return 1, or 1 and I, or 1, I, J and K = IJ: what commutes with an irrep in its own basis.

    >>> units(2, 1)[1].tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    real = torch.eye(commutant, dtype=torch.float64)
    if commutant == 1:
        left = real[None]
    elif commutant == 2:
        left = torch.stack([real, _signed_permutation([(1, 1), (0, -1)])])
    else:
        # Columns are the images of the basis v, Iv, Jv, Kv.
        i = _signed_permutation([(1, 1), (0, -1), (3, 1), (2, -1)])
        j = _signed_permutation([(2, 1), (3, -1), (0, -1), (1, 1)])
        left = torch.stack([real, i, j, i @ j])
    eye = torch.eye(multiplicity, dtype=torch.float64)
    return torch.stack([torch.kron(unit, eye) for unit in left])


def _signed_permutation(images: list[tuple[int, int]]) -> Float[Tensor, "size size"]:
    """The matrix with one entry `sign` in each column, in row `row` of its image."""
    matrix = torch.zeros(len(images), len(images), dtype=torch.float64)
    for column, (row, sign) in enumerate(images):
        matrix[row, column] = sign
    return matrix
