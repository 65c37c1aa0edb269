"""Which group did a network learn?

Its most likely answer for every pair of inputs is a table. The table is a group operation if and
only if it is a Latin square with an identity and associative, whatever the order of the elements;
`isomorphism` then names the group.

What would fool it: one wrong answer in the table (the fraction of violated triples says how far off
it is), and an output numbering that differs from the input numbering, which looks like a quasigroup
without identity.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups.table import Group, Members

EXACT_TRIPLES = 256
"""Up to this order all n^3 triples are counted, above it a million random ones."""


def cayley_table_from_answers(answers: Int[Tensor, "order order"]) -> Group:
    """Return the group whose Cayley table a network answers.

    Args:
        answers: Entry (a, b) is the answer to a·b, with answers numbered like the inputs.

    Raises:
        ToolkitError: the answers are not a group operation; says which axiom fails where, and the
            fraction of triples with (ab)c different from a(bc).

    >>> cayley_table_from_answers(torch.tensor([[1, 0], [0, 1]])).identity
    1
    """
    try:
        return Group.from_table(answers, name="recovered")
    except ToolkitError as error:
        if bool(((answers < 0) | (answers >= len(answers))).any()):
            raise ToolkitError(f"the answers are not a group operation: {error}") from error
        fraction, how = _violated_triples(answers.long())
        raise ToolkitError(
            f"the answers are not a group operation: {error} (ab)c differs from a(bc) for"
            f" {fraction:.2%} of {how}."
        ) from error


def isomorphism(a: Group, b: Group) -> Int[Tensor, " order"] | None:
    """Return the image in `b` of each element of `a` under some isomorphism, or None.

    Searches the images of a few generators of `a`, of the right element order, extending one
    generator at a time.

    >>> from mechinterp_toolkit.groups import dihedral, quaternion, symmetric
    >>> isomorphism(symmetric(3), dihedral(3)).tolist()
    [0, 3, 4, 1, 2, 5]
    >>> isomorphism(quaternion(), dihedral(4)) is None
    True
    """
    if a.order != b.order or not torch.equal(
        a.element_orders.sort().values, b.element_orders.sort().values
    ):
        return None
    # Up to an inner automorphism of b, the first generator goes to a class representative.
    representatives = [members[0] for members in b.conjugacy_classes]
    images = {
        g: (b.element_orders == a.element_orders[g]).nonzero().flatten().tolist()
        for g in a.generators
    }
    choices = [
        [x for x in images[g] if n or x in representatives] for n, g in enumerate(a.generators)
    ]
    return _extend(a, b, choices, ())


def _extend(
    a: Group, b: Group, choices: list[list[int]], chosen: Members
) -> Int[Tensor, " order"] | None:
    """Depth-first search over images of the generators, cut where they do not extend so far."""
    mapping = _homomorphism(a, b, a.generators[: len(chosen)], chosen)
    if mapping is None:
        return None
    if len(chosen) == len(choices):
        return mapping
    for image in choices[len(chosen)]:
        extended = _extend(a, b, choices, (*chosen, image))
        if extended is not None:
            return extended
    return None


def _homomorphism(
    a: Group, b: Group, generators: Members, images: Members
) -> Int[Tensor, " order"] | None:
    """The injective homomorphism with these images of `generators`, -1 outside; None if none."""
    mapping = torch.full((a.order,), -1)
    mapping[a.identity] = b.identity
    frontier = torch.tensor([a.identity])
    while len(frontier):
        fresh = []
        for g, image in zip(generators, images, strict=True):
            moved, target = a.table[frontier, g], b.table[mapping[frontier], image]
            new = mapping[moved] == -1
            mapping[moved[new]] = target[new]
            fresh.append(moved[new])
            if not torch.equal(mapping[moved], target):
                return None
        frontier = torch.cat(fresh) if fresh else frontier[:0]
    reached = mapping[mapping >= 0]
    return mapping if len(reached.unique()) == len(reached) else None


def _violated_triples(table: Int[Tensor, "order order"]) -> tuple[float, str]:
    order = len(table)
    if order <= EXACT_TRIPLES:
        wrong = sum(int((table[table[a]] != table[a][table]).sum()) for a in range(order))
        return wrong / order**3, f"all {order**3} triples"
    a, b, c = torch.randint(order, (3, 1_000_000), generator=torch.Generator().manual_seed(0))
    return (
        float((table[table[a, b], c] != table[a, table[b, c]]).double().mean()),
        "a million random triples",
    )
