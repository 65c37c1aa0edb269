"""Is a table of products the Cayley table of a group?

Every row and column holds each element once, some element is the identity, and the product is
associative. Each check names the first entries that fail.

Source: Light's associativity test in Clifford and Preston 1961, The Algebraic Theory of Semigroups,
section 1.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError


def check_axioms(table: Int[Tensor, "order order"]) -> None:
    """Raise unless `table[a, b]` = a·b is the product of a group.

    Raises:
        ToolkitError: an entry is out of range, a row or column repeats one, there is no identity,
            or the product is not associative; the message names the entries.

    >>> check_axioms(torch.tensor([[0, 1], [1, 0]]))
    >>> check_axioms(torch.tensor([[0, 2], [1, 0]]))
    Traceback (most recent call last):
    mechinterp_toolkit.errors.ToolkitError: table[0, 1] = 2 is not an element; expected 0 to 1 ...
    """
    _check_latin(table)
    _check_identity(table)
    _check_associative(table)


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
            first, second = [i for i, v in enumerate(line) if v == value][:2]
            raise ToolkitError(
                f"the table is not a Latin square: {way} {wrong[0]} holds {value} at positions"
                f" {first} and {second} ({len(wrong)} such {way}s of {order}); in a group every"
                f" {way} holds each element once."
            )


def _check_identity(table: Int[Tensor, "order order"]) -> None:
    element = torch.arange(len(table))
    agree = (table == element).sum(1) + (table == element[:, None]).sum(0)
    best = int(agree.argmax())
    if int(agree[best]) < 2 * len(table):
        wrong_right = (table[best] != element).nonzero()
        wrong_left = (table[:, best] != element).nonzero()
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
        count = 0
        while count < int(reached.sum()):
            members = reached.nonzero().flatten()
            count = len(members)
            reached[table[members[:, None], members].flatten()] = True
    return generators
