"""What is a finite group, as tensors?

Elements are the integers 0 .. |G|-1 and the Cayley table says `table[a, b] = a·b`; everything else
(inverses, conjugacy classes, irreps, the Fourier transform) is derived from it, on first use, in
float64.

Conventions, stated once. A product a·b of permutations applies b first: (a·b)(x) = a(b(x)).
`side="left"` always means that a subgroup multiplies from the left: h·x, whose orbits are the right
cosets Hx.

What would fool it: a table that is a Latin square but not associative (a quasigroup), or one
written for the opposite product. `Group.from_table` checks the axioms; the opposite product is
again a group, so only the caller knows it.

Source: Light's associativity test in Clifford and Preston 1961, The Algebraic Theory of Semigroups,
section 1.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError, nearest
from mechinterp_toolkit.groups.irreps import (
    COMMUTANT,
    Block,
    Irrep,
    check_irreps,
    cyclic_irreps,
    product_irreps,
    regular_irreps,
)
from mechinterp_toolkit.groups.young import partition_label, partitions, symmetric_irreps, tableaux

Family = Literal["table", "symmetric", "cyclic", "product"]
Side = Literal["left", "right"]

TABLE_LIMIT = 5040
"""Largest order with a Cayley table (203 MB at 5040)."""

DENSE_LIMIT = 2000
"""Largest order with a dense Fourier matrix (32 MB at 2000) and with irreps from the regular
representation."""


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """A finite group with named elements. Build one with `Group.from_table` or the functions of
    `construct`.

    The constructor itself trusts what it is given.
    """

    name: str
    """What it is called, e.g. "S5"."""

    labels: tuple[str, ...]
    """One name per element."""

    stored_table: Int[Tensor, "order order"] | None = None
    """The Cayley table; None where products come from `permutations`."""

    permutations: Int[Tensor, "order degree"] | None = None
    """Element g as the permutation x -> permutations[g, x], for groups of permutations."""

    family: Family = "table"
    """How the irreps are built: "symmetric" elements stand in lexicographic order, "cyclic" element
    a is a mod n."""

    factors: tuple[Group, ...] = ()
    """The two factors of a direct product; element (a, b) has index a * |second| + b."""

    @classmethod
    def from_table(
        cls,
        table: Int[Tensor, "order order"],
        *,
        name: str = "G",
        labels: Sequence[str] | None = None,
    ) -> Group:
        """Return the group with this Cayley table, after checking every axiom.

        Args:
            table: Entry (a, b) is the index of a·b.
            name: What to call it.
            labels: One name per element; "0", "1", ... if not given.

        Raises:
            ToolkitError: an entry is out of range, a row or column repeats one, there is no
                identity, or the product is not associative; the message names the entries.
        """
        order = len(table)
        if order == 0:
            raise ToolkitError("the table is empty; a group has at least its identity.")
        labels = tuple(map(str, range(order))) if labels is None else tuple(labels)
        if len(labels) != order or len(set(labels)) != order:
            raise ToolkitError(
                f"{order} elements need {order} different labels; got {len(set(labels))} in"
                f" {len(labels)}."
            )
        table = table.long().clone()
        _check_latin(table)
        _check_identity(table)
        _check_associative(table)
        return cls(name=name, labels=labels, stored_table=table)

    def __repr__(self) -> str:
        return f"Group({self.name}, order {self.order})"

    @property
    def order(self) -> int:
        """Number of elements."""
        return len(self.labels)

    @functools.cached_property
    def table(self) -> Int[Tensor, "order order"]:
        """The Cayley table: `table[a, b]` is a·b. Refused above `TABLE_LIMIT` elements; `product`
        has no limit."""
        if self.stored_table is not None:
            return self.stored_table
        if self.order > TABLE_LIMIT:
            raise ToolkitError(
                f"the Cayley table of {self.name} has {self.order**2:,} entries"
                f" ({8 * self.order**2 / 1e9:.0f} GB); use product(a, b), and fourier(), which need"
                " no table."
            )
        element = torch.arange(self.order)
        return torch.stack([self.product(element[a : a + 1], element) for a in range(self.order)])

    def product(
        self, a: Int[Tensor, "*#shape"], b: Int[Tensor, "*#shape"]
    ) -> Int[Tensor, "*shape"]:
        """Return a·b for elements given by index; the two broadcast."""
        if self.stored_table is not None:
            return self.stored_table[a, b]
        assert self.permutations is not None, "a Group has a table or permutations"
        a, b = torch.broadcast_tensors(a, b)
        return lexicographic_rank(self.permutations[a].gather(-1, self.permutations[b]))

    def index(self, label: str) -> int:
        """Return the index of the element called `label`.

        Raises:
            ToolkitError: no element has that name; the nearest ones are given.
        """
        if label not in self._index:
            known = (
                f"It has {', '.join(self.labels[:6])}, ..."
                if self.order > 6
                else f"It has {', '.join(self.labels)}."
            )
            raise ToolkitError(
                f"{self.name} has no element {label!r}.{nearest(label, self.labels)} {known}"
            )
        return self._index[label]

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}

    @functools.cached_property
    def identity(self) -> int:
        """Index of the identity."""
        element = torch.arange(self.order)
        # e·e = e has one solution in a group.
        return int((self.product(element, element) == element).nonzero()[0])

    @functools.cached_property
    def inverses(self) -> Int[Tensor, " order"]:
        """Index of the inverse of each element."""
        if self.permutations is not None and self.stored_table is None:
            return lexicographic_rank(self.permutations.argsort(1))
        return (self.table == self.identity).int().argmax(1)

    @functools.cached_property
    def element_orders(self) -> Int[Tensor, " order"]:
        """Smallest k >= 1 with g^k = identity, per element g."""
        element = torch.arange(self.order)
        orders, power = torch.zeros(self.order, dtype=torch.long), element
        for k in range(1, self.order + 1):
            orders[(power == self.identity) & (orders == 0)] = k
            if orders.all():
                break
            power = self.product(power, element)
        return orders

    @functools.cached_property
    def conjugacy_classes(self) -> tuple[tuple[int, ...], ...]:
        """Classes of conjugate elements, sorted by element order, then size, then smallest
        member."""
        members: dict[int, list[int]] = {}
        for element, smallest in enumerate(self._smallest_conjugate.tolist()):
            members.setdefault(smallest, []).append(element)
        classes = [tuple(group) for group in members.values()]
        return tuple(sorted(classes, key=lambda c: (int(self.element_orders[c[0]]), len(c), c[0])))

    @functools.cached_property
    def class_of(self) -> Int[Tensor, " order"]:
        """Position in `conjugacy_classes` of the class of each element."""
        position = torch.empty(self.order, dtype=torch.long)
        for n, members in enumerate(self.conjugacy_classes):
            position[list(members)] = n
        return position

    @functools.cached_property
    def _smallest_conjugate(self) -> Int[Tensor, " order"]:
        smallest = torch.arange(self.order)
        # Classes are the orbits of conjugation by generators: spread the smallest index until
        # nothing changes.
        moved = [self.conjugate(smallest, g) for g in self.generators]
        while True:
            spread = smallest
            for image in moved:
                spread = torch.minimum(spread, spread[image])
            if torch.equal(spread, smallest):
                return smallest
            smallest = spread

    def conjugate(self, elements: Int[Tensor, " some"], by: int) -> Int[Tensor, " some"]:
        """Return g·x·g^-1 for each x of `elements`, with g = `by`."""
        g = torch.tensor([by])
        return self.product(self.product(g, elements), self.inverses[g])

    @functools.cached_property
    def generators(self) -> tuple[int, ...]:
        """A few elements that generate the group (found greedily, elements of high order first; not
        always fewest)."""
        from mechinterp_toolkit.groups.subgroups import generators_of

        by_order = self.element_orders.argsort(descending=True, stable=True)
        return generators_of(self, by_order.tolist())

    @functools.cached_property
    def is_abelian(self) -> bool:
        """Whether a·b = b·a for all a and b."""
        g = torch.tensor(self.generators, dtype=torch.long)
        return torch.equal(self.product(g[:, None], g[None]), self.product(g[None], g[:, None]))

    @functools.cached_property
    def linear_characters(self) -> Float[Tensor, "character order"]:
        """Every homomorphism to {+1, -1}, the trivial one first: the twists a real function can
        have."""
        from mechinterp_toolkit.groups.subgroups import sign_characters

        return sign_characters(self)

    @functools.cached_property
    def irreps(self) -> tuple[Irrep, ...]:
        """All irreducible real representations, built and checked on first use; 8 |G|^2 bytes
        together.

        Raises:
            ToolkitError: the group is too large to hold their matrices.
        """
        limit = TABLE_LIMIT if self.family == "symmetric" else DENSE_LIMIT
        if self.order > limit:
            raise ToolkitError(
                f"the irreps of {self.name} ({self.order} elements) are refused above {limit}"
                f" elements; their matrices would take {8 * self.order**2 / 1e9:.2f} GB."
            )
        irreps = self._build_irreps()
        g = torch.tensor(self.generators, dtype=torch.long)
        check_irreps(
            irreps, self.generators, self.product(g[:, None], torch.arange(self.order)[None])
        )
        return irreps

    def _build_irreps(self) -> tuple[Irrep, ...]:
        if self.family == "symmetric" and self.permutations is not None:
            return symmetric_irreps(self.permutations)
        if self.family == "cyclic":
            return cyclic_irreps(self.order)
        if self.family == "product":
            left, right = self.factors
            return product_irreps(left.irreps, right.irreps)
        return regular_irreps(self.table, self.class_of)

    def irrep(self, label: str) -> Irrep:
        """Return the irrep called `label`; raises `ToolkitError` with the nearest names."""
        return self.irreps[self._irrep_index(label)]

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Label, size and place of each irrep in the Fourier basis, in the order of `irreps`."""
        if self.family == "symmetric" and self.permutations is not None:
            shapes = partitions(self.permutations.shape[1])
            sizes = [(partition_label(shape), len(tableaux(shape)), 1) for shape in shapes]
        else:
            sizes = [(i.label, i.dimension, COMMUTANT[i.frobenius_schur]) for i in self.irreps]
        blocks, start = [], 0
        for label, dimension, commutant in sizes:
            blocks.append(Block(label, dimension, dimension // commutant, start))
            start += blocks[-1].size
        return tuple(blocks)

    @property
    def irrep_labels(self) -> tuple[str, ...]:
        """Names of the irreps, in the order of `irreps` and of the last axis of
        `isotypic_energy`."""
        return tuple(block.label for block in self.blocks)

    def _irrep_index(self, label: str) -> int:
        if label not in self.irrep_labels:
            known = ", ".join(self.irrep_labels[:12]) + (
                ", ..." if len(self.irrep_labels) > 12 else ""
            )
            raise ToolkitError(
                f"{self.name} has no irrep {label!r}.{nearest(label, self.irrep_labels)} "
                f"It has {known}."
            )
        return self.irrep_labels.index(label)

    @functools.cached_property
    def characters(self) -> Float[Tensor, "irrep order"]:
        """Trace of every element in every irrep; for the real blocks of complex pairs this is chi +
        conj(chi)."""
        return torch.stack([irrep.character for irrep in self.irreps])

    def fourier_matrix(self) -> Float[Tensor, "order order"]:
        """Return the orthogonal Fourier matrix: rows are elements, columns (irrep, i, j) as laid
        out by `blocks`.

        Column (rho, i, j) is sqrt(d / |G|) rho_ij(g), with j < multiplicity. Do not write into it:
        it is kept.

        Raises:
            ToolkitError: more than `DENSE_LIMIT` elements.
        """
        return self._fourier_matrix

    @functools.cached_property
    def _fourier_matrix(self) -> Float[Tensor, "order order"]:
        if self.order > DENSE_LIMIT:
            raise ToolkitError(
                f"the dense Fourier matrix of {self.name} ({self.order} x {self.order},"
                f" {8 * self.order**2 / 1e9:.1f} GB) is refused above {DENSE_LIMIT} elements;"
                " fourier() and isotypic_energy() do without it for S_n."
            )
        scaled = [
            math.sqrt(irrep.dimension / self.order)
            * irrep.matrices[:, :, : irrep.multiplicity].flatten(1)
            for irrep in self.irreps
        ]
        return torch.cat(scaled, 1)

    def fourier(self, f: Float[Tensor, "*batch order"]) -> Float[Tensor, "*batch order"]:
        """Return the Fourier coefficients of real functions on the group, in float64.

        The transform is orthogonal: squared coefficients are energies. Coefficient (rho, i, j)
        stands where `blocks` says and equals sqrt(d / |G|) sum_g f(g) rho_ij(g). Up to
        `DENSE_LIMIT` elements this is one matrix product; S_7 and S_8 use a fast transform with a
        working memory of 6 MB per function on S_8, and at most 0.6 GB for many.

        Raises:
            ToolkitError: the last axis is not the group, or the group is too large and not a
                symmetric one.
        """
        from mechinterp_toolkit.groups.transform import fourier

        return fourier(self, f)

    def inverse(self, coefficients: Float[Tensor, "*batch order"]) -> Float[Tensor, "*batch order"]:
        """Return the functions with these Fourier coefficients (the inverse of `fourier`, with the
        same limits).

        Inverses of elements are `inverses`.
        """
        from mechinterp_toolkit.groups.transform import inverse

        return inverse(self, coefficients)

    def isotypic_energy(self, f: Float[Tensor, "*batch order"]) -> Float[Tensor, "*batch irrep"]:
        """Return the squared norm of f in each isotypic subspace; they add up to the squared norm
        of f.

        These numbers depend neither on the bases of the irreps, nor on f(g) against f(g^-1), nor on
        the order of composition, so they are the ones to compare with other work.
        """
        from mechinterp_toolkit.groups.transform import isotypic_energy

        return isotypic_energy(self, f)

    def isotypic_projector(self, label: str) -> Float[Tensor, "order order"]:
        """Return the orthogonal projector onto the isotypic subspace of one irrep, made from its
        character alone.

        Raises:
            ToolkitError: no such irrep, or more than `DENSE_LIMIT` elements.
        """
        from mechinterp_toolkit.groups.transform import isotypic_projector

        return isotypic_projector(self, label)


def lexicographic_rank(permutations: Int[Tensor, "*shape degree"]) -> Int[Tensor, "*shape"]:
    """Return the place of each permutation of 0 .. n-1 in lexicographic order."""
    degree = permutations.shape[-1]
    rank = torch.zeros(permutations.shape[:-1], dtype=torch.long)
    for i in range(degree):
        smaller_later = (permutations[..., i + 1 :] < permutations[..., i : i + 1]).sum(-1)
        rank = rank + smaller_later * math.factorial(degree - 1 - i)
    return rank


def _check_latin(table: Int[Tensor, "order order"]) -> None:
    order = len(table)
    outside = ((table < 0) | (table >= order)).nonzero()
    if len(outside):
        a, b = outside[0].tolist()
        raise ToolkitError(
            f"table[{a}, {b}] = {int(table[a, b])} is not an element; expected 0 to {order - 1}"
            f" ({len(outside)} such entries)."
        )
    for way, rows in (("row", table), ("column", table.T)):
        wrong = (rows.sort(1).values != torch.arange(order)).any(1).nonzero().flatten().tolist()
        if wrong:
            line = rows[wrong[0]].tolist()
            value = next(v for v in line if line.count(v) > 1)
            places = [i for i, v in enumerate(line) if v == value]
            raise ToolkitError(
                f"the table is not a Latin square: {way} {wrong[0]} holds {value} at positions"
                f" {places[0]} and {places[1]} ({len(wrong)} such {way}s of {order}); in a group"
                f" every {way} holds each element once."
            )


def _check_identity(table: Int[Tensor, "order order"]) -> None:
    element = torch.arange(len(table))
    agree = (table == element).sum(1) + (table == element[:, None]).sum(0)
    best = int(agree.argmax())
    if int(agree[best]) < 2 * len(table):
        wrong_right, wrong_left = (
            (table[best] != element).nonzero(),
            (table[:, best] != element).nonzero(),
        )
        a, b = (best, int(wrong_right[0])) if len(wrong_right) else (int(wrong_left[0]), best)
        raise ToolkitError(
            f"the table has no identity: the nearest element is {best}, but table[{a}, {b}] ="
            f" {int(table[a, b])}, expected {b if a == best else a}."
        )


def _check_associative(table: Int[Tensor, "order order"]) -> None:
    # Light's test: the middle elements b with (ab)c = a(bc) for all a, c are closed under the
    # product, so it is enough to try a set that generates everything.
    for b in _magma_generators(table):
        wrong = (table[table[:, b]] != table[:, table[b]]).nonzero()
        if len(wrong):
            a, c = wrong[0].tolist()
            left, right = int(table[table[a, b], c]), int(table[a, table[b, c]])
            raise ToolkitError(
                f"the product is not associative: ({a}·{b})·{c} = {left} but {a}·({b}·{c}) ="
                f" {right}; a Latin square with an identity is only a group if (ab)c = a(bc) for"
                " all triples."
            )


def _magma_generators(table: Int[Tensor, "order order"]) -> list[int]:
    """Elements whose products, in any bracketing, reach every element; needs no associativity."""
    reached = torch.zeros(len(table), dtype=torch.bool)
    generators: list[int] = []
    while not reached.all():
        generators.append(int((~reached).nonzero()[0]))
        reached[generators[-1]] = True
        while True:
            members = reached.nonzero().flatten()
            count = len(members)
            reached[table[members[:, None], members[None]].flatten()] = True
            if int(reached.sum()) == count:
                break
    return generators
