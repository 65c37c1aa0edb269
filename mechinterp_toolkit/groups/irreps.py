"""What are the irreducible real representations of a finite group, as matrices?

An `Irrep` holds one orthogonal matrix per element. Complex and quaternionic representations come as
one real block (a complex pair rho, conj(rho) of dimension d as one of real dimension 2d), because
real functions cannot tell the two apart. Cyclic groups have theirs in closed form, symmetric groups
by Young's orthogonal form (`young`), direct products from their factors, and every other group by
splitting the regular representation: a random symmetric operator that commutes with all
translations has, with probability one, one irreducible eigenspace per eigenvalue.

What would fool it: a family of matrices that is a homomorphism for the opposite product; two
eigenvalues that happen to coincide. Every family is therefore checked when it is built:
homomorphism, orthogonality, irreducibility, completeness.

Source: Serre 1977, Linear Representations of Finite Groups, sections 2 and 13.2; Dixon 1970
(commuting operators).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError

FrobeniusSchur = Literal["real", "complex", "quaternionic"]

COMMUTANT: dict[FrobeniusSchur, int] = {"real": 1, "complex": 2, "quaternionic": 4}
"""Real dimension of the matrices that commute with an irrep of that type: the reals, complexes,
quaternions."""

# Products of orthogonal float64 matrices are right to about 1e-13 here, a wrong family is off by
# 0.01 or more.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Block:
    """Where an irrep sits in the Fourier basis; what can be said of an irrep without building its
    matrices."""

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
    def size(self) -> int:
        """Dimension of the isotypic subspace: d^2 for a real irrep, 2d^2 for a pair of complex ones
        of dimension d."""
        return self.dimension * self.multiplicity

    @property
    def columns(self) -> slice:
        """The columns of the Fourier matrix, and entries of a vector of coefficients, that belong
        to the irrep."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, eq=False)
class Irrep:
    """A real irreducible representation: one orthogonal matrix per element, with rho(a) rho(b) =
    rho(a·b)."""

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
        """Size of the matrices; twice the complex dimension for the complex and quaternionic
        types."""
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
    """Return 1, or 1 and I, or 1, I, J and K = IJ, as the matrices that commute with an irrep in
    its own basis."""
    one = torch.eye(commutant, dtype=torch.float64)
    if commutant == 1:
        left = one[None]
    elif commutant == 2:
        left = torch.stack([one, torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)])
    else:
        # Columns are the images of the basis v, Iv, Jv, Kv.
        i = _signed_permutation([(1, 1), (0, -1), (3, 1), (2, -1)])
        j = _signed_permutation([(2, 1), (3, -1), (0, -1), (1, 1)])
        left = torch.stack([one, i, j, i @ j])
    eye = torch.eye(multiplicity, dtype=torch.float64)
    return torch.stack([torch.kron(unit, eye) for unit in left])


def cyclic_irreps(order: int) -> tuple[Irrep, ...]:
    """Return rotations by 2 pi k a / n for k = 0 .. n // 2; k = 0 and (n even) k = n / 2 are
    one-dimensional."""
    element = torch.arange(order)
    irreps = []
    for k in range(order // 2 + 1):
        # Reducing k * a modulo n first keeps the angle, and so the sine, exact to the last digit.
        angle = 2 * math.pi * (k * element % order).double() / order
        cos, sin = angle.cos(), angle.sin()
        if 2 * k in (0, order):
            irreps.append(Irrep(f"k={k}", "real", cos.round()[:, None, None]))
        else:
            turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
            irreps.append(Irrep(f"k={k}", "complex", turn))
    return tuple(irreps)


def product_irreps(left: tuple[Irrep, ...], right: tuple[Irrep, ...]) -> tuple[Irrep, ...]:
    """Return the irreps of a direct product, labelled "left×right"; element (a, b) has index a *
    |right| + b.

    The tensor product of two irreps is irreducible if one of them is of real type, and is split
    where neither is.
    """
    irreps: list[Irrep] = []
    for a in left:
        for b in right:
            size = a.dimension * b.dimension
            matrices = torch.einsum("aij,bkl->abikjl", a.matrices, b.matrices).reshape(
                -1, size, size
            )
            parts = (
                _split(matrices)
                if "real" not in (a.frobenius_schur, b.frobenius_schur)
                else [matrices]
            )
            for n, part in enumerate(parts):
                suffix = _letters(n) if len(parts) > 1 else ""
                irreps.append(_in_standard_basis(f"{a.label}×{b.label}{suffix}", part))
    return tuple(irreps)


def regular_irreps(
    table: Int[Tensor, "order order"], class_of: Int[Tensor, " order"], *, seed: int = 0
) -> tuple[Irrep, ...]:
    """Return the irreps of any group, split off its regular representation with a random commuting
    operator.

    They are sorted by dimension, then by character over the classes in falling order (the trivial
    one comes first), and labelled by dimension plus a letter where a dimension occurs more than
    once. The matrices depend on `seed` up to a change of basis; isotypic energies do not.

    Args:
        table: The Cayley table.
        class_of: Number of the conjugacy class of each element.
        seed: Of the random operators.

    Raises:
        ToolkitError: no draw in eight separated the eigenvalues.
    """
    for attempt in range(8):
        found = _regular_once(table, class_of, torch.Generator().manual_seed(seed + attempt))
        if found is not None:
            return found
    raise ToolkitError(
        f"could not split the regular representation of this group of order {len(table)} in 8"
        " draws; try another seed."
    )


def check_irreps(
    irreps: tuple[Irrep, ...],
    generators: tuple[int, ...],
    translations: Int[Tensor, "generator order"],
) -> None:
    """Raise unless `irreps` are all the irreducible real representations of the group, each once.

    Args:
        irreps: The candidates.
        generators: Elements that generate the group.
        translations: `translations[i, x]` is `generators[i]`·x.

    Raises:
        ToolkitError: naming the irrep and the property that fails, with the size of the failure.
    """
    for irrep in irreps:
        _check_homomorphism(irrep, generators, translations)
    characters = torch.stack([irrep.character for irrep in irreps])
    order = characters.shape[1]
    expected = torch.diag(
        torch.tensor([float(COMMUTANT[irrep.frobenius_schur]) for irrep in irreps]).double()
    )
    # Inner products of characters are integers; rounding leaves about 1e-13.
    defect = (characters @ characters.T / order - expected).abs()
    if defect.max() > 1e-6:
        i, j = divmod(int(defect.argmax()), len(irreps))
        raise ToolkitError(
            f"characters of {irreps[i].label} and {irreps[j].label} are not Schur-orthogonal (off"
            f" by {defect.max():.2g})."
        )
    blocks = sum(irrep.dimension * irrep.multiplicity for irrep in irreps)
    if blocks != order:
        raise ToolkitError(
            f"the isotypic blocks of {len(irreps)} irreps fill {blocks} of {order} dimensions."
        )


def _check_homomorphism(
    irrep: Irrep, generators: tuple[int, ...], translations: Int[Tensor, "generator order"]
) -> None:
    eye = torch.eye(irrep.dimension, dtype=torch.float64)
    for g, moved in zip(generators, translations, strict=True):
        rho = irrep.matrices[g]
        defect = float((irrep.matrices[moved] - rho @ irrep.matrices).abs().max())
        if defect > TOLERANCE:
            raise ToolkitError(
                f"{irrep} is not a homomorphism: rho(gx) and rho(g) rho(x) differ by {defect:.2g}."
            )
        if float((rho @ rho.T - eye).abs().max()) > TOLERANCE:
            raise ToolkitError(f"{irrep} is not orthogonal at generator {g}.")
        for unit in units(COMMUTANT[irrep.frobenius_schur], irrep.multiplicity)[1:]:
            if float((rho @ unit - unit @ rho).abs().max()) > TOLERANCE:
                raise ToolkitError(
                    f"{irrep} does not commute with its complex structure at generator {g}."
                )


def _regular_once(
    table: Int[Tensor, "order order"], class_of: Int[Tensor, " order"], generator: torch.Generator
) -> tuple[Irrep, ...] | None:
    """One attempt at `regular_irreps`; None if the isotypic blocks found do not fill the group."""
    order = len(table)
    identity = int((table == torch.arange(order)).all(1).nonzero())
    inverses = (table == identity).int().argmax(1)
    differences = table[
        inverses
    ]  # differences[x, y] = x^-1 y: functions of it commute with left translation
    draw = torch.randn(order, dtype=torch.float64, generator=generator)
    values, vectors = torch.linalg.eigh((draw + draw[inverses])[differences])
    found: dict[tuple[float, ...], tuple[float, Tensor]] = {}
    for lower, upper, gap in _clusters(values):
        space = vectors[:, lower:upper]
        key = _class_character(space, identity, class_of)
        # Of the copies of an irrep, keep the one whose eigenvalue stands most alone: its space is
        # the most exact.
        if key not in found or gap > found[key][0]:
            found[key] = (gap, space)
    parts = {key: _translations_on(space, differences) for key, (_, space) in found.items()}
    sized: dict[int, list[tuple[float, ...]]] = {}
    for key in parts:
        sized.setdefault(parts[key].shape[-1], []).append(key)
    irreps = []
    for dimension in sorted(sized):
        keys = sorted(sized[dimension], reverse=True)
        for n, key in enumerate(keys):
            label = f"{dimension}{_letters(n) if len(keys) > 1 else ''}"
            try:
                irreps.append(_in_standard_basis(label, parts[key]))
            except _Reducible:
                return None
    return tuple(irreps) if sum(i.dimension * i.multiplicity for i in irreps) == order else None


def _translations_on(
    space: Float[Tensor, "order dim"], differences: Int[Tensor, "order order"]
) -> Float[Tensor, "order dim dim"]:
    """Matrices of left translation, (L_g f)(x) = f(g^-1 x), on an invariant space of functions."""
    # differences[g] lists g^-1 x over x. Pieces of 2^22 numbers keep the gathered copies at 32 MB.
    pieces = differences.split(max(1, 2**22 // space.numel()))
    return torch.cat([space.T @ space[moved] for moved in pieces])


def _clusters(values: Float[Tensor, " order"]) -> list[tuple[int, int, float]]:
    """Ranges of equal eigenvalues with the distance to the nearest other one."""
    scale = float(values.abs().max()) or 1.0
    # eigh leaves about 1e-13 of the largest eigenvalue; distinct ones of these random operators lie
    # further apart.
    steps = values.diff()
    cuts = (steps > 1e-10 * scale).nonzero().flatten().tolist()
    lower, upper = [0, *(c + 1 for c in cuts)], [*(c + 1 for c in cuts), len(values)]
    gaps = [math.inf, *(float(steps[c]) for c in cuts), math.inf]
    return [
        (a, b, min(gaps[n], gaps[n + 1])) for n, (a, b) in enumerate(zip(lower, upper, strict=True))
    ]


def _class_character(
    space: Float[Tensor, "order dim"], identity: int, class_of: Int[Tensor, " order"]
) -> tuple[float, ...]:
    """Character of the translations on `space` per class, rounded so that copies of an irrep
    compare equal."""
    kernel = (
        space @ space[identity]
    )  # the projector is translation-invariant: one row of it is all of it
    sums = torch.zeros(int(class_of.max()) + 1, dtype=torch.float64).index_add(0, class_of, kernel)
    return _rounded(sums / class_of.bincount() * len(space))


def _rounded(character: Float[Tensor, " n"]) -> tuple[float, ...]:
    """A character as a key: different ones differ by far more than 1e-5, equal ones by about
    1e-13."""
    return tuple(
        (character.mul(1e5).round().div(1e5) + 0.0).tolist()
    )  # + 0.0 makes -0.0 and 0.0 the same


class _Reducible(Exception):
    """A space that was taken for irreducible is a sum: the draw is repeated."""


def _in_standard_basis(label: str, matrices: Float[Tensor, "order dim dim"]) -> Irrep:
    """Find the Frobenius-Schur type of an irreducible family and put its complex structure into
    standard form."""
    order, dim, _ = matrices.shape
    generator = torch.Generator().manual_seed(0)
    character = matrices.diagonal(dim1=1, dim2=2).sum(-1)
    norm = round(float(character @ character) / order)
    types: dict[int, FrobeniusSchur] = {size: name for name, size in COMMUTANT.items()}
    # sum over g of chi(g^2) / |G| is 1, 0, -2 for the three real types; a reducible sum of two
    # gives 2 or 0 with norm 4.
    square = round(float(torch.einsum("gij,gji->", matrices, matrices)) / order)
    if (norm, square) not in {(1, 1), (2, 0), (4, -2)}:
        raise _Reducible(label)
    structures = _complex_structures(matrices, norm, generator)
    basis = torch.empty(dim, 0, dtype=torch.float64)
    lines: list[Tensor] = []
    for _ in range(dim // norm):
        residual = torch.eye(dim, dtype=torch.float64) - basis @ basis.T
        vector = residual[:, residual.diagonal().argmax()]
        lines.append(torch.stack([unit @ (vector / vector.norm()) for unit in structures]))
        basis = torch.cat([basis, lines[-1].T], 1)
    basis = torch.stack(lines, 1).reshape(dim, dim).T  # all v first, then all Iv, Jv, Kv
    return Irrep(label, types[norm], basis.T @ matrices @ basis if norm > 1 else matrices)


def _complex_structures(
    matrices: Float[Tensor, "order dim dim"], commutant: int, generator: torch.Generator
) -> list[Float[Tensor, "dim dim"]]:
    """Return 1, or 1 and I, or 1, I, J and IJ: orthogonal matrices that commute with the family."""
    dim = matrices.shape[-1]
    structures = [torch.eye(dim, dtype=torch.float64)]
    for _ in range({1: 0, 2: 1, 4: 2}[commutant]):
        skew = _average(matrices, torch.randn(dim, dim, dtype=torch.float64, generator=generator))
        skew = skew - skew.T
        for unit in structures[1:]:
            skew = skew - unit * (unit * skew).sum() / dim
        structures.append(skew * math.sqrt(dim) / skew.norm())
    if commutant == 4:
        structures.append(structures[1] @ structures[2])
    return structures


def _average(
    matrices: Float[Tensor, "order dim dim"], seed: Float[Tensor, "dim dim"]
) -> Float[Tensor, "dim dim"]:
    """Mean of rho(g) seed rho(g)^T over the group: the nearest matrix that commutes with the
    family."""
    return (matrices @ seed @ matrices.mT).mean(0)


def _split(matrices: Float[Tensor, "order dim dim"]) -> list[Float[Tensor, "order part part"]]:
    """Return one irreducible constituent per isomorphism type, sorted by character."""
    seed = torch.randn(
        matrices.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    values, vectors = torch.linalg.eigh(_average(matrices, seed + seed.T))
    parts: dict[tuple[float, ...], Tensor] = {}
    for lower, upper, _ in _clusters(values):
        space = vectors[:, lower:upper]
        part = space.T @ matrices @ space
        parts.setdefault(_rounded(part.diagonal(dim1=1, dim2=2).sum(-1)), part)
    return [parts[key] for key in sorted(parts, reverse=True)]


def _letters(index: int) -> str:
    """0 -> "a", 25 -> "z", 26 -> "aa"."""
    word = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        word = chr(ord("a") + letter) + word
    return word


def _signed_permutation(images: list[tuple[int, int]]) -> Float[Tensor, "size size"]:
    matrix = torch.zeros(len(images), len(images), dtype=torch.float64)
    for column, (row, sign) in enumerate(images):
        matrix[row, column] = sign
    return matrix
