"""How is a representation split into irreducible ones?

The regular representation holds every irrep of a group; a tensor product of two irreps holds those
of a direct product. A random symmetric operator that commutes with all group elements has, with
probability one, one irreducible eigenspace per eigenvalue.

What would fool it: two eigenvalues that happen to coincide. An eigenspace that is a sum of two is
told by its character, and the draw is repeated.

Source: Dixon 1970 (commuting operators); Serre 1977, Linear Representations of Finite Groups,
sections 2.4 and 13.2.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups.representation import COMMUTANT, FrobeniusSchur, Irrep
from mechinterp_toolkit.groups.table import Group

Key = tuple[float, ...]  # a rounded character


def product_irreps(left: tuple[Irrep, ...], right: tuple[Irrep, ...]) -> tuple[Irrep, ...]:
    """Return the irreps of a direct product; element (a, b) has index a * |right| + b.

    They are called "left×right". The tensor product of two irreps is irreducible if one of them is
    of real type, and is split where neither is.

    >>> from mechinterp_toolkit.groups.irreps import cyclic_irreps
    >>> [found.label for found in product_irreps(cyclic_irreps(3), cyclic_irreps(3))]
    ['k=0×k=0', 'k=0×k=1', 'k=1×k=0', 'k=1×k=1a', 'k=1×k=1b']
    """
    irreps: list[Irrep] = []
    for a in left:
        for b in right:
            tensor = torch.einsum("aij,bkl->abikjl", a.matrices, b.matrices)
            matrices = tensor.flatten(4, 5).flatten(2, 3).flatten(0, 1)
            real = "real" in (a.frobenius_schur, b.frobenius_schur)
            parts = [matrices] if real else _split(matrices)
            for n, part in enumerate(parts):
                suffix = _letters(n) if len(parts) > 1 else ""
                irreps.append(_in_standard_basis(f"{a.label}×{b.label}{suffix}", part))
    return tuple(irreps)


def regular_irreps(group: Group, *, seed: int = 0) -> tuple[Irrep, ...]:
    """Return the irreps of any group, split off its regular representation.

    They are sorted by dimension, then by character over the classes in falling order (the trivial
    one comes first), and labelled by dimension plus a letter where a dimension occurs more than
    once. The matrices depend on `seed`, which draws the operator, up to a change of basis; isotypic
    energies do not.

    Raises:
        ToolkitError: no draw in eight separated the eigenvalues.

    >>> from mechinterp_toolkit.groups import dihedral
    >>> [found.label for found in regular_irreps(dihedral(5))]
    ['1a', '1b', '2a', '2b']
    """
    for attempt in range(8):
        irreps = _regular_once(group, torch.Generator().manual_seed(seed + attempt))
        if irreps is not None:
            return irreps
    raise ToolkitError(
        f"could not split the regular representation of this group of order {group.order} in 8"
        " draws; try another seed."
    )


def _regular_once(group: Group, generator: torch.Generator) -> tuple[Irrep, ...] | None:
    """One attempt at `regular_irreps`; None if the isotypic blocks do not fill the group."""
    # differences[x, y] = x^-1 y: functions of it commute with left translation
    differences = group.table[group.inverses]
    draw = torch.randn(group.order, dtype=torch.float64, generator=generator)
    values, vectors = torch.linalg.eigh((draw + draw[group.inverses])[differences])
    spaces: dict[Key, tuple[float, Tensor]] = {}
    for lower, upper, gap in _clusters(values):
        space = vectors[:, lower:upper]
        key = _class_character(space, group)
        # Of the copies of an irrep, keep the one whose eigenvalue stands most alone: its space is
        # the most exact.
        if key not in spaces or gap > spaces[key][0]:
            spaces[key] = (gap, space)
    parts = {key: _translations_on(space, differences) for key, (_, space) in spaces.items()}
    sized: dict[int, list[Key]] = {}
    for key, part in parts.items():
        sized.setdefault(part.shape[-1], []).append(key)
    irreps = []
    for dimension in sorted(sized):
        keys = sorted(sized[dimension], reverse=True)
        for n, key in enumerate(keys):
            label = f"{dimension}{_letters(n) if len(keys) > 1 else ''}"
            try:
                irreps.append(_in_standard_basis(label, parts[key]))
            except _Reducible:
                return None
    filled = sum(irrep.dimension * irrep.multiplicity for irrep in irreps)
    return tuple(irreps) if filled == group.order else None


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


def _class_character(space: Float[Tensor, "order dim"], group: Group) -> Key:
    """Character of the translations on `space` per class, the same key for copies of an irrep."""
    # The projector onto the space is translation-invariant: one row of it is all of it.
    kernel = space @ space[group.identity]
    sums = torch.zeros(len(group.conjugacy_classes), dtype=torch.float64)
    sums.index_add_(0, group.class_of, kernel)
    return _rounded(sums / group.class_of.bincount() * len(space))


def _rounded(character: Float[Tensor, " n"]) -> Key:
    """A character as a key: different ones differ by far more than 1e-5, equal ones by 1e-13."""
    # + 0.0 makes -0.0 and 0.0 the same
    return tuple((character.mul(1e5).round().div(1e5) + 0.0).tolist())


class _Reducible(Exception):
    """A space that was taken for irreducible is a sum: the draw is repeated."""


def _in_standard_basis(label: str, matrices: Float[Tensor, "order dim dim"]) -> Irrep:
    """Find the type of an irreducible family and put its complex structure into standard form."""
    order, dim, _ = matrices.shape
    character = matrices.diagonal(dim1=1, dim2=2).sum(-1)
    norm = round(float(character @ character) / order)
    types: dict[int, FrobeniusSchur] = {size: name for name, size in COMMUTANT.items()}
    # The Frobenius-Schur sum of chi(g^2) / |G| is 1, 0, -2 for the three real types (Serre, section
    # 13.2); a reducible sum of two gives 2 or 0 with norm 4.
    square = round(float(torch.einsum("gij,gji->", matrices, matrices)) / order)
    if (norm, square) not in {(1, 1), (2, 0), (4, -2)}:
        raise _Reducible(label)
    structures = _complex_structures(matrices, norm)
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
    matrices: Float[Tensor, "order dim dim"], commutant: int
) -> list[Float[Tensor, "dim dim"]]:
    """Return 1, or 1 and I, or 1, I, J and IJ: orthogonal matrices that commute with the family."""
    dim, generator = matrices.shape[-1], torch.Generator().manual_seed(0)
    structures = [torch.eye(dim, dtype=torch.float64)]
    for _ in range(commutant // 2):
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
    """Mean of rho(g) seed rho(g)^T over the group: it commutes with the family."""
    return (matrices @ seed @ matrices.mT).mean(0)


def _split(matrices: Float[Tensor, "order dim dim"]) -> list[Float[Tensor, "order part part"]]:
    """Return one irreducible constituent per isomorphism type, sorted by character."""
    generator = torch.Generator().manual_seed(0)
    seed = torch.randn(matrices.shape[1:], dtype=torch.float64, generator=generator)
    values, vectors = torch.linalg.eigh(_average(matrices, seed + seed.T))
    parts: dict[Key, Tensor] = {}
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
