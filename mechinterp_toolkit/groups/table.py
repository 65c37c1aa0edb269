"""What is a finite group, as tensors?

Elements are the integers 0 .. |G|-1 and the Cayley table says `table[a, b] = a·b`. A `Group` keeps
what it is made of: products, inverses, conjugacy classes, generators. What is computed about one
(`irreps`, `fourier`, `subgroups`, ...) are functions that take a group.

Conventions, stated once. A product a·b of permutations applies b first: (a·b)(x) = a(b(x)).
`side="left"` always means that a subgroup multiplies from the left: h·x, whose orbits are the right
cosets Hx.

What would fool it: a table that is a Latin square but not associative (a quasigroup), or one
written for the opposite product. `Group.from_table` checks the axioms; the opposite product is
again a group, so only the caller knows it.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError, nearest
from mechinterp_toolkit.groups.axioms import check_axioms

Family = Literal["table", "symmetric", "cyclic", "product"]
Side = Literal["left", "right"]
Members = tuple[int, ...]  # a subgroup, as sorted element indices

Value = TypeVar("Value")

TABLE_LIMIT = 5040
"""Largest order with a Cayley table (203 MB at 5040)."""


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """A finite group with named elements, made by `Group.from_table` or a function of `construct`.

    The constructor itself trusts what it is given.

    >>> group = Group.from_table(torch.tensor([[0, 1], [1, 0]]), name="C2")
    >>> group
    Group(C2, order 2)
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
            ToolkitError: there is no element, labels are missing or repeated, or an axiom fails
                (see `check_axioms`).
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
        check_axioms(table)
        return cls(name=name, labels=labels, stored_table=table)

    def __repr__(self) -> str:
        return f"Group({self.name}, order {self.order})"

    @property
    def order(self) -> int:
        """Number of elements."""
        return len(self.labels)

    @functools.cached_property
    def table(self) -> Int[Tensor, "order order"]:
        """The Cayley table: `table[a, b]` is a·b.

        Refused above `TABLE_LIMIT` elements; `product` has no limit.
        """
        if self.stored_table is not None:
            return self.stored_table
        if self.order > TABLE_LIMIT:
            raise ToolkitError(
                f"the Cayley table of {self.name} has {self.order**2:,} entries"
                f" ({8 * self.order**2 / 1e9:.0f} GB); use product(a, b), and fourier(), which need"
                " no table."
            )
        element = torch.arange(self.order)
        # 64 rows at a time keep the permutations of S_7 below 20 MB.
        return torch.cat([self.product(a[:, None], element) for a in element.split(64)])

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
        if label not in self.labels:
            more = ", ..." if self.order > 6 else ""
            raise ToolkitError(
                f"{self.name} has no element {label!r}.{nearest(label, self.labels)} It has"
                f" {', '.join(self.labels[:6])}{more}."
            )
        return self.labels.index(label)

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
    def conjugacy_classes(self) -> tuple[Members, ...]:
        """Classes of conjugate elements, by element order, then size, then smallest member."""
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
    def generators(self) -> Members:
        """A few elements that generate the group: greedy, high orders first, not always fewest."""
        by_order = self.element_orders.argsort(descending=True, stable=True)
        return generate(self, by_order.tolist()).generators

    @functools.cached_property
    def is_abelian(self) -> bool:
        """Whether a·b = b·a for all a and b."""
        g = torch.tensor(self.generators, dtype=torch.long)
        return torch.equal(self.product(g[:, None], g[None]), self.product(g[None], g[:, None]))


class Generated(NamedTuple):
    """Result of `generate`."""

    members: Members
    """The subgroup, sorted."""

    generators: Members
    """Those of the elements given that each enlarged the subgroup made by the ones before."""


def generate(group: Group, elements: Iterable[int]) -> Generated:
    """Return the subgroup generated by `elements`, and those of them that were needed.

    Raises:
        ToolkitError: an index is not an element of the group.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> generate(cyclic(12), [8, 4, 6])
    Generated(members=(0, 2, 4, 6, 8, 10), generators=(8, 6))
    """
    member = torch.zeros(group.order, dtype=torch.bool)
    member[group.identity] = True
    generators: list[int] = []
    for g in elements:
        if not 0 <= g < group.order:
            raise ToolkitError(
                f"{g} is not an element of {group.name}; expected an index from 0 to"
                f" {group.order - 1}."
            )
        if member[g]:
            continue
        generators.append(g)
        steps, frontier = torch.tensor(generators), member.nonzero().flatten()
        while len(frontier):
            reached = group.product(frontier[:, None], steps[None]).unique()
            frontier = reached[~member[reached]]
            member[frontier] = True
    return Generated(tuple(member.nonzero().flatten().tolist()), tuple(generators))


def per_group(compute: Callable[[Group], Value]) -> Callable[[Group], Value]:
    """Return `compute` with a memory: it runs once per group and is kept while the group lives.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> count = per_group(lambda group: print("counting") or group.order)
    >>> group = cyclic(3)
    >>> count(group) + count(group)
    counting
    6
    """
    known: weakref.WeakKeyDictionary[Group, Value] = weakref.WeakKeyDictionary()

    @functools.wraps(compute)
    def once(group: Group) -> Value:
        if group not in known:
            known[group] = compute(group)
        return known[group]

    return once


def lexicographic_rank(permutations: Int[Tensor, "*shape degree"]) -> Int[Tensor, "*shape"]:
    """Return the place of each permutation of 0 .. n-1 in lexicographic order.

    >>> lexicographic_rank(torch.tensor([[0, 1, 2], [0, 2, 1], [2, 1, 0]])).tolist()
    [0, 1, 5]
    """
    degree = permutations.shape[-1]
    rank = torch.zeros(permutations.shape[:-1], dtype=torch.long)
    for i in range(degree):
        smaller_later = (permutations[..., i + 1 :] < permutations[..., i : i + 1]).sum(-1)
        rank = rank + smaller_later * math.factorial(degree - 1 - i)
    return rank
