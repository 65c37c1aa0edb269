"""What is this small group usually called?

Candidates of the right order (cyclic, dihedral, symmetric, alternating, quaternion, affine, and
products of two of these) are tried in turn; a name is given only where an isomorphism was found.

What would fool it: nothing, but many groups have no such name and are called by their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mechinterp_toolkit.groups.construct import (
    alternating,
    cyclic,
    dihedral,
    direct_product,
    quaternion,
    symmetric,
)
from mechinterp_toolkit.groups.recover import isomorphism
from mechinterp_toolkit.groups.subgroups import restricted
from mechinterp_toolkit.groups.table import Group, Members

LARGEST_NAMED = 120
"""Largest order that is given a name; above it only the order is said."""


def structure_name(group: Group) -> str:
    """Return e.g. "S4", "F20", "C2xC2", "D6", or "order 32" where no candidate is isomorphic.

    F20 is the affine group of the field of 5 elements, of order 5 · 4; D6 is dihedral of order 12.

    >>> structure_name(direct_product(cyclic(2), cyclic(3)))
    'C6'
    """
    if group.order <= LARGEST_NAMED:
        for candidate in _candidates(group.order):
            if isomorphism(group, candidate) is not None:
                return candidate.name
    return f"order {group.order}"


def subgroup_name(group: Group, members: Members) -> str:
    """Return "trivial", the group's own name for the whole of it, else `structure_name`.

    >>> [subgroup_name(symmetric(3), members) for members in ((0,), (0, 1), (0, 3, 4))]
    ['trivial', 'C2', 'C3']
    """
    if len(members) == 1:
        return "trivial"
    return group.name if len(members) == group.order else structure_name(restricted(group, members))


def affine(prime: int) -> Group:
    """Return F_(p(p-1)), the maps x -> ax + b of the integers modulo a prime p, a not 0.

    Element (a, b) has index (a - 1) p + b, and (a, b)(c, d) = (ac, ad + b).

    >>> affine(5)
    Group(F20, order 20)
    """
    element = torch.arange(prime * (prime - 1))
    a, b = element // prime + 1, element % prime
    table = (a[:, None] * a % prime - 1) * prime + (a[:, None] * b + b[:, None]) % prime
    labels = tuple(f"{int(x)}x+{int(y)}" for x, y in zip(a, b, strict=True))
    return Group(f"F{len(element)}", labels, table)


def _candidates(order: int) -> Iterator[Group]:
    yield from _simple(order)
    for divisor in range(2, math.isqrt(order) + 1):
        if order % divisor == 0:
            for left in _simple(order // divisor):
                for right in _simple(divisor):
                    yield direct_product(left, right)
    if order == 8:
        yield direct_product(direct_product(cyclic(2), cyclic(2)), cyclic(2))


def _simple(order: int) -> Iterator[Group]:
    yield cyclic(order)
    for n in (3, 4, 5):
        if order == math.factorial(n):
            yield symmetric(n)
        if n > 3 and order == math.factorial(n) // 2:
            yield alternating(n)
    if order % 2 == 0 and order > 4:
        yield dihedral(order // 2)
    if order == 8:
        yield quaternion()
    for prime in (5, 7):
        if order == prime * (prime - 1):
            yield affine(prime)
