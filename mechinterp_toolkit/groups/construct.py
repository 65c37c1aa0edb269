"""Which groups can be asked for by name, and in which order do their elements stand?

S_n and A_n: permutations in lexicographic order of their one-line notation, labelled by cycles of 1
.. n. C_n: 0 .. n-1 under addition. D_n, of order 2n: the rotations 1, r, ..., r^(n-1), then the
reflections s, rs, ... with s r s = r^-1. Q8: 1, -1, i, -i, j, -j, k, -k. A product A x B: pairs,
the second factor varying fastest.

What would fool it: the other habit of writing D_2n for the dihedral group of order 2n. Here D12 has
order 24.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re

import torch

from mechinterp_toolkit.errors import ToolkitError, nearest
from mechinterp_toolkit.groups.table import TABLE_LIMIT, Group, lexicographic_rank


def symmetric(n: int) -> Group:
    """Return S_n for n = 1 .. 8; S_8 has no Cayley table, only products and the fast transform.

    >>> symmetric(3).labels
    ('e', '(2 3)', '(1 2)', '(1 2 3)', '(1 3 2)', '(1 3)')
    """
    _check_size(f"symmetric({n})", n, 8)
    permutations = torch.tensor(list(itertools.permutations(range(n))))
    labels = tuple(map(_cycles, permutations.tolist()))
    group = Group(f"S{n}", labels, permutations=permutations, family="symmetric")
    # 203 MB from S_7 on: there the table is made when it is asked for.
    return group if n > 6 else dataclasses.replace(group, stored_table=group.table)


def alternating(n: int) -> Group:
    """Return A_n, the even permutations, for n = 1 .. 7.

    >>> alternating(3).labels
    ('e', '(1 2 3)', '(1 3 2)')
    """
    _check_size(f"alternating({n})", n, 7)
    permutations = torch.tensor(list(itertools.permutations(range(n))))
    later = torch.ones(n, n).triu(1).bool()
    inversions = ((permutations[:, :, None] > permutations[:, None, :]) & later).sum((1, 2))
    even = permutations[inversions % 2 == 0]
    place = torch.full((len(permutations),), -1)
    place[lexicographic_rank(even)] = torch.arange(len(even))
    table = torch.stack([place[lexicographic_rank(g[even])] for g in even])
    return Group(f"A{n}", tuple(map(_cycles, even.tolist())), table, even)


def cyclic(n: int) -> Group:
    """Return C_n = Z_n: addition of 0 .. n-1 modulo n.

    >>> int(cyclic(5).product(torch.tensor(3), torch.tensor(4)))
    2
    """
    _check_size(f"cyclic({n})", n, TABLE_LIMIT)
    a = torch.arange(n)
    return Group(f"C{n}", tuple(map(str, range(n))), (a[:, None] + a) % n, family="cyclic")


def dihedral(n: int) -> Group:
    """Return D_n, the symmetries of the regular n-gon: order 2n.

    >>> dihedral(3).labels
    ('1', 'r', 'r^2', 's', 'rs', 'r^2s')
    """
    _check_size(f"dihedral({n})", n, TABLE_LIMIT // 2)
    turn, flip = torch.arange(2 * n) % n, torch.arange(2 * n) // n
    # (r^a s^e)(r^b s^f) = r^(a + (-1)^e b) s^(e + f)
    turns = (turn[:, None] + (1 - 2 * flip[:, None]) * turn) % n
    flips = (flip[:, None] + flip) % 2
    powers = ["1", "r", *(f"r^{k}" for k in range(2, n))][:n]
    return Group(f"D{n}", (*powers, "s", *(f"{power}s" for power in powers[1:])), turns + n * flips)


def quaternion() -> Group:
    """Return Q8, the eight unit quaternions 1, -1, i, -i, j, -j, k, -k.

    >>> group = quaternion()
    >>> group.labels[int(group.table[group.index("i"), group.index("j")])]
    'k'
    """
    units = [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)]  # 1, i, j, k up to sign
    # ii = jj = kk = -1, ij = k, ik = -j, ...
    minus = [(0, 0, 0, 0), (0, 1, 0, 1), (0, 1, 1, 0), (0, 0, 1, 1)]
    g = torch.arange(8)
    unit, sign = g // 2, g % 2
    product = torch.tensor(units)[unit[:, None], unit]
    signs = (sign[:, None] + sign + torch.tensor(minus)[unit[:, None], unit]) % 2
    return Group("Q8", ("1", "-1", "i", "-i", "j", "-j", "k", "-k"), 2 * product + signs)


def direct_product(a: Group, b: Group) -> Group:
    """Return a x b: pairs multiplied factor by factor; (x, y) has index x * b.order + y.

    >>> direct_product(cyclic(2), cyclic(3)).labels[5]
    '(1, 2)'
    """
    if a.order * b.order > TABLE_LIMIT:
        raise ToolkitError(
            f"{a.name}x{b.name} has {a.order * b.order} elements; the limit is {TABLE_LIMIT}."
        )
    pair = torch.arange(a.order * b.order)
    x, y = pair // b.order, pair % b.order
    table = a.table[x[:, None], x] * b.order + b.table[y[:, None], y]
    labels = tuple(f"({s}, {t})" for s in a.labels for t in b.labels)
    return Group(f"{a.name}x{b.name}", labels, table, family="product", factors=(a, b))


def group_by_name(name: str) -> Group:
    """Return the group of a name: "S5", "A5", "C113" or "Z113", "D12" (order 24), "Q8", "S3xC2".

    Raises:
        ToolkitError: the name is none of these, or asks for a group beyond the sizes supported.

    >>> group_by_name("S3xC2")
    Group(S3xC2, order 12)
    """
    parts = re.split(r"[x×]", name.replace(" ", ""))
    return functools.reduce(direct_product, [_simple_group(part, name) for part in parts])


def _simple_group(part: str, name: str) -> Group:
    match = re.fullmatch(r"([SACZD])_?(\d+)", part)
    if part == "Q8":
        return quaternion()
    if not match:
        known = ("S5", "A5", "C113", "Z113", "D12", "Q8")
        inside = f" in {name!r}" if part != name else ""
        raise ToolkitError(
            f"no group is called {part!r}{inside}.{nearest(part.upper(), known)} "
            "Expected S, A, C (or Z) or D with a number, Q8, or a product of these such as 'S3xC2'."
        )
    build = {"S": symmetric, "A": alternating, "C": cyclic, "Z": cyclic, "D": dihedral}[match[1]]
    return build(int(match[2]))


def _check_size(what: str, n: int, largest: int) -> None:
    if not 1 <= n <= largest:
        raise ToolkitError(f"{what} is not supported; expected n from 1 to {largest}.")


def _cycles(permutation: list[int]) -> str:
    """Return "(1 3)(2 4 5)", or "e" for the identity."""
    seen: set[int] = set()
    text = ""
    for start in range(len(permutation)):
        cycle, x = [], start
        while x not in seen:
            seen.add(x)
            cycle.append(str(x + 1))
            x = permutation[x]
        if len(cycle) > 1:
            text += f"({' '.join(cycle)})"
    return text or "e"
