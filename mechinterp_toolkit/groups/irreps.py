"""Which irreducible real representations does a group have?

Cyclic groups have theirs in closed form, symmetric groups by Young's orthogonal form (`young`),
direct products from their factors, and every other group by splitting its regular representation
(`splitting`).

What would fool it: a family of matrices that is a homomorphism for the opposite product, or one
that is not complete. Every family is therefore checked when it is built: homomorphism,
orthogonality, irreducibility, completeness.

Source: Serre 1977, Linear Representations of Finite Groups, sections 2 and 13.2.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError, nearest
from mechinterp_toolkit.groups.representation import COMMUTANT, Block, Irrep, units
from mechinterp_toolkit.groups.splitting import product_irreps, regular_irreps
from mechinterp_toolkit.groups.table import TABLE_LIMIT, Group, per_group
from mechinterp_toolkit.groups.young import partition_label, partitions, symmetric_irreps, tableaux

DENSE_LIMIT = 2000
"""Largest order with a dense Fourier matrix (32 MB at 2000) and with irreps from the regular
representation."""

# Products of orthogonal float64 matrices are right to about 1e-13 here, a wrong family is off by
# 0.01 or more.
TOLERANCE = 1e-9


@per_group
def irreps(group: Group) -> tuple[Irrep, ...]:
    """Return all irreducible real representations, checked; together they take 8 |G|^2 bytes.

    Raises:
        ToolkitError: the group is too large to hold their matrices.

    >>> from mechinterp_toolkit.groups import quaternion
    >>> irreps(quaternion())[-2:]
    (Irrep('1d', dimension 1, real), Irrep('4', dimension 4, quaternionic))
    """
    limit = TABLE_LIMIT if group.family == "symmetric" else DENSE_LIMIT
    if group.order > limit:
        raise ToolkitError(
            f"the irreps of {group.name} ({group.order} elements) are refused above {limit}"
            f" elements; their matrices would take {8 * group.order**2 / 1e9:.2f} GB."
        )
    if group.family == "symmetric" and group.permutations is not None:
        built = symmetric_irreps(group.permutations)
    elif group.family == "cyclic":
        built = cyclic_irreps(group.order)
    elif group.family == "product":
        left, right = group.factors
        built = product_irreps(irreps(left), irreps(right))
    else:
        built = regular_irreps(group)
    check_irreps(group, built)
    return built


def irrep(group: Group, label: str) -> Irrep:
    """Return the irrep called `label`.

    Raises:
        ToolkitError: there is none; the nearest name is given.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> irrep(symmetric(3), "(2,1)").character.round().int().tolist()
    [2, 0, 0, -1, -1, 0]
    """
    labels = irrep_labels(group)
    if label not in labels:
        more = ", ..." if len(labels) > 12 else ""
        raise ToolkitError(
            f"{group.name} has no irrep {label!r}.{nearest(label, labels)} It has"
            f" {', '.join(labels[:12])}{more}."
        )
    return irreps(group)[labels.index(label)]


@per_group
def blocks(group: Group) -> tuple[Block, ...]:
    """Return label, size and place of each irrep in the Fourier basis, in the order of `irreps`.

    For symmetric groups no matrices are built.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> blocks(cyclic(3))[1]
    Block(label='k=1', dimension=2, multiplicity=1, start=1)
    """
    if group.family == "symmetric" and group.permutations is not None:
        shapes = partitions(group.permutations.shape[1])
        sizes = [(partition_label(shape), len(tableaux(shape)), 1) for shape in shapes]
    else:
        sizes = [(i.label, i.dimension, COMMUTANT[i.frobenius_schur]) for i in irreps(group)]
    placed, start = [], 0
    for label, dimension, commutant in sizes:
        placed.append(Block(label, dimension, dimension // commutant, start))
        start += placed[-1].size
    return tuple(placed)


def irrep_labels(group: Group) -> tuple[str, ...]:
    """Return the names of the irreps, in the order of `irreps` and of `isotypic_energy`.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> irrep_labels(symmetric(3))
    ('(3)', '(2,1)', '(1,1,1)')
    """
    return tuple(block.label for block in blocks(group))


def characters(group: Group) -> Float[Tensor, "irrep order"]:
    """Return the trace of every element in every irrep: chi + conj(chi) for a complex pair.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> characters(cyclic(4)).round().int().tolist()
    [[1, 1, 1, 1], [2, 0, -2, 0], [1, -1, 1, -1]]
    """
    return torch.stack([irrep.character for irrep in irreps(group)])


def cyclic_irreps(order: int) -> tuple[Irrep, ...]:
    """Return the rotations by 2 pi k a / n for k = 0 .. n // 2.

    k = 0 and, where n is even, k = n / 2 are one-dimensional.

    >>> cyclic_irreps(4)[1].matrices[1].round().int().tolist()
    [[0, -1], [1, 0]]
    """
    element = torch.arange(order)
    rotations = []
    for k in range(order // 2 + 1):
        # Reducing k * a modulo n first keeps the angle, and so the sine, exact to the last digit.
        angle = 2 * math.pi * (k * element % order).double() / order
        cos, sin = angle.cos(), angle.sin()
        if 2 * k in (0, order):
            rotations.append(Irrep(f"k={k}", "real", cos.round()[:, None, None]))
        else:
            turn = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
            rotations.append(Irrep(f"k={k}", "complex", turn))
    return tuple(rotations)


def check_irreps(group: Group, family: tuple[Irrep, ...]) -> None:
    """Raise unless `family` are all irreducible real representations of the group, each once.

    Raises:
        ToolkitError: naming the irrep and the property that fails, with the size of the failure.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> check_irreps(cyclic(4), cyclic_irreps(4)[:2])
    Traceback (most recent call last):
    mechinterp_toolkit.errors.ToolkitError: the isotypic blocks of 2 irreps fill 3 of 4 dimensions.
    """
    for candidate in family:
        _check_homomorphism(group, candidate)
    traces = torch.stack([candidate.character for candidate in family])
    norms = [float(COMMUTANT[candidate.frobenius_schur]) for candidate in family]
    # <chi_i, chi_j> = 0 for i != j, and 1, 2 or 4 (Serre, section 2.3, for one over the complexes).
    # Inner products of characters are integers; rounding leaves about 1e-13.
    defect = (traces @ traces.T / group.order - torch.tensor(norms).double().diag()).abs()
    if defect.max() > 1e-6:
        i, j = divmod(int(defect.argmax()), len(family))
        raise ToolkitError(
            f"characters of {family[i].label} and {family[j].label} are not Schur-orthogonal (off"
            f" by {defect.max():.2g})."
        )
    filled = sum(candidate.dimension * candidate.multiplicity for candidate in family)
    if filled != group.order:
        raise ToolkitError(
            f"the isotypic blocks of {len(family)} irreps fill {filled} of {group.order}"
            " dimensions."
        )


def _check_homomorphism(group: Group, candidate: Irrep) -> None:
    eye = torch.eye(candidate.dimension, dtype=torch.float64)
    structures = units(COMMUTANT[candidate.frobenius_schur], candidate.multiplicity)[1:]
    element = torch.arange(group.order)
    for g in group.generators:
        rho, moved = candidate.matrices[g], group.product(torch.tensor([g]), element)
        defect = float((candidate.matrices[moved] - rho @ candidate.matrices).abs().max())
        if defect > TOLERANCE:
            raise ToolkitError(
                f"{candidate} is not a homomorphism: rho(gx) and rho(g) rho(x) differ by"
                f" {defect:.2g}."
            )
        if float((rho @ rho.T - eye).abs().max()) > TOLERANCE:
            raise ToolkitError(f"{candidate} is not orthogonal at generator {g}.")
        if any(float((rho @ unit - unit @ rho).abs().max()) > TOLERANCE for unit in structures):
            raise ToolkitError(
                f"{candidate} does not commute with its complex structure at generator {g}."
            )
