"""Subgroups and cosets: counts from the literature, laws on both sides."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    Side,
    closure,
    conjugates,
    cosets,
    group_by_name,
    is_subgroup,
    restricted,
    subgroup_classes,
    subgroups,
)


@functools.cache
def get(name: str) -> Group:
    return group_by_name(name)


# Subgroups and conjugacy classes of subgroups: OEIS A005432 and A000638 for S_n; Q8: 1, -1, <i>,
# <j>, <k>, all; C_n: one per divisor; D_n: d(n) cyclic ones and sigma(n) dihedral ones.
COUNTS = [
    ("S3", 6, 4),
    ("S4", 30, 11),
    ("S5", 156, 19),
    ("A4", 10, 5),
    ("A5", 59, 9),
    ("Q8", 6, 6),
    ("C1", 1, 1),
    ("C12", 6, 6),
    ("C113", 2, 2),
    ("D5", 8, 4),
    ("D12", 34, 16),
    ("C2xC2xC2", 16, 16),
    ("S6", 1455, 56),
]


@pytest.mark.parametrize(("name", "count", "classes"), COUNTS)
def test_subgroups_are_as_many_as_the_literature_says(name: str, count: int, classes: int) -> None:
    found = subgroup_classes(get(name))
    assert len(found) == classes
    assert sum(map(len, found)) == count
    assert len({members for cls in found for members in cls}) == count


@pytest.mark.parametrize("name", ["S4", "A5", "D12", "Q8", "C2xC2xC2"])
def test_every_listed_subgroup_is_one_and_joins_stay_in_the_list(name: str) -> None:
    group = get(name)
    listed = subgroups(group)
    assert all(is_subgroup(group, members) for members in listed)
    assert all(group.order % len(members) == 0 for members in listed)
    known = set(listed)
    assert {closure(group, a + b) for a in listed[:12] for b in listed} <= known
    assert listed[0] == (group.identity,)
    assert listed[-1] == tuple(range(group.order))


def test_classes_of_s5_have_the_known_orders_and_sizes() -> None:
    found = Counter((len(cls[0]), len(cls)) for cls in subgroup_classes(get("S5")))
    assert found == Counter(
        {
            (1, 1): 1,
            (2, 10): 1,
            (2, 15): 1,
            (3, 10): 1,
            (4, 5): 1,
            (4, 15): 2,
            (5, 6): 1,
            (6, 10): 3,
            (8, 15): 1,
            (10, 6): 1,
            (12, 5): 1,
            (12, 10): 1,
            (20, 6): 1,
            (24, 5): 1,
            (60, 1): 1,
            (120, 1): 1,
        }
    )


def test_conjugates_of_a_point_stabiliser_are_the_point_stabilisers() -> None:
    s4 = get("S4")
    stabilisers = {
        tuple((s4.permutations[:, x] == x).nonzero().flatten().tolist()) for x in range(4)
    }
    assert set(conjugates(s4, next(iter(stabilisers)))) == stabilisers


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["S4", "D12", "Q8", "C12"])
def test_cosets_partition_the_group_and_are_orbits_of_the_named_side(name: str, side: Side) -> None:
    group = get(name)
    for cls in subgroup_classes(group):
        h = list(cls[-1])
        rows = cosets(group, h, side=side)
        assert rows.flatten().sort().values.tolist() == list(range(group.order))
        assert rows[:, 0].tolist() == sorted(rows[:, 0].tolist())
        for row in rows:
            x = int(row[0])
            orbit = group.table[h, x] if side == "left" else group.table[x, h]
            assert orbit.sort().values.tolist() == row.tolist()


def test_left_and_right_cosets_differ_by_hand_in_s3() -> None:
    s3 = get("S3")
    h = [s3.index("e"), s3.index("(1 2)")]
    # (1 2)·(2 3) = (1 2 3), and (2 3)·(1 2) = (1 3 2).
    assert {"(2 3)", "(1 2 3)"} in [
        {s3.labels[g] for g in row} for row in cosets(s3, h, side="left")
    ]
    assert {"(2 3)", "(1 3 2)"} in [
        {s3.labels[g] for g in row} for row in cosets(s3, h, side="right")
    ]


def test_closure_by_hand() -> None:
    c12 = get("C12")
    assert closure(c12, [8]) == (0, 4, 8)
    assert closure(c12, [4, 6]) == (0, 2, 4, 6, 8, 10)
    assert closure(c12, []) == (0,)
    assert is_subgroup(c12, (6, 0))
    assert not is_subgroup(c12, (0, 4))
    assert not is_subgroup(c12, (0, 6, 6))
    assert not is_subgroup(c12, ())


def test_generators_generate() -> None:
    for name in ("S5", "A5", "C113", "D12", "Q8", "C2xC2xC2"):
        assert len(closure(get(name), get(name).generators)) == get(name).order
    assert len(get("S5").generators) == 2
    assert len(get("C2xC2xC2").generators) == 3


def test_a_subgroup_becomes_a_group_of_its_own() -> None:
    s4 = get("S4")
    a4 = restricted(s4, subgroups(s4)[-2], name="A4")
    assert Group.from_table(a4.table).order == 12
    assert [len(c) for c in a4.conjugacy_classes] == [1, 3, 4, 4]
    here, there = (
        group.labels[int(group.table[group.index("(1 2 3)"), group.index("(2 3 4)")])]
        for group in (a4, s4)
    )
    assert here == there


def test_closure_works_where_there_is_no_cayley_table() -> None:
    s8 = get("S8")
    elements = [s8.index("(1 2)"), s8.index("(2 3 4 5 6 7 8)")]
    assert len(closure(s8, elements[:1])) == 2
    assert len(closure(s8, elements)) == 40320
    assert len(closure(s8, [s8.index("(1 2 3)"), s8.index("(3 4 5 6 7)")])) == 2520


def test_what_is_not_a_subgroup_is_refused() -> None:
    with pytest.raises(
        ToolkitError, match="these 2 elements are not a subgroup of C12: they generate 3 elements"
    ):
        cosets(get("C12"), [0, 4], side="left")
    with pytest.raises(ToolkitError, match="not a subgroup of C12"):
        conjugates(get("C12"), [0, 4])
    with pytest.raises(
        ToolkitError, match="12 is not an element of C12; expected an index from 0 to 11"
    ):
        closure(get("C12"), [12])


def test_groups_too_large_to_list_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        ToolkitError, match=r"subgroups of S7 \(order 5040\) are not listed .* stabilisers\(\)"
    ):
        subgroups(get("S7"))


def test_cosets_are_index_tensors() -> None:
    assert cosets(get("S3"), [0], side="left").dtype == torch.int64
