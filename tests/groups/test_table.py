"""Groups as tables: conventions stated, facts derived, each computed once."""

from __future__ import annotations

import gc
import pickle
import weakref

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    cyclic,
    dihedral,
    group_by_name,
    irrep_labels,
    irreps,
    symmetric,
)

NAMES = (
    "S3", "S4", "S5", "A4", "A5", "C1", "C7", "C12", "C113", "D1", "D4", "D5", "D12", "Q8",
    "S3xC2", "C3xC4", "Q8xC3",
)  # fmt: skip
ORDERS = (6, 24, 120, 12, 60, 1, 7, 12, 113, 2, 8, 10, 24, 8, 12, 12, 24)


@pytest.mark.parametrize(("name", "order"), list(zip(NAMES, ORDERS, strict=True)))
def test_every_constructed_group_passes_the_axioms(name: str, order: int) -> None:
    group = group_by_name(name)
    checked = Group.from_table(group.table, name=name, labels=group.labels)
    assert checked.order == group.order == order
    assert torch.equal(checked.table, group.table)


@pytest.mark.parametrize("name", NAMES)
def test_identity_inverses_and_element_orders_hold_for_every_element(name: str) -> None:
    group = group_by_name(name)
    element = torch.arange(group.order)
    assert torch.equal(group.table[group.identity], element)
    assert (group.table[element, group.inverses] == group.identity).all()
    for g in element.tolist():
        power = group.identity
        for k in range(1, int(group.element_orders[g]) + 1):
            power = int(group.table[power, g])
            assert (power == group.identity) == (k == int(group.element_orders[g]))


def test_a_product_of_permutations_applies_the_second_factor_first() -> None:
    s3 = symmetric(3)
    a, b = s3.index("(1 2)"), s3.index("(2 3)")
    # (2 3) first: 1 -> 1 -> 2, 2 -> 3 -> 3, 3 -> 2 -> 1.
    assert s3.labels[int(s3.table[a, b])] == "(1 2 3)"
    assert s3.labels[int(s3.table[b, a])] == "(1 3 2)"
    assert torch.equal(s3.permutations[s3.table[a, b]], s3.permutations[a][s3.permutations[b]])


def test_dihedral_reflections_invert_rotations() -> None:
    d5 = dihedral(5)
    r, s = d5.index("r"), d5.index("s")
    assert d5.labels[int(d5.table[r, s])] == "rs"
    assert d5.labels[int(d5.table[d5.table[s, r], s])] == "r^4"


def test_quaternions_multiply_as_hamilton_says() -> None:
    q8 = group_by_name("Q8")
    said = {
        ("i", "j"): "k",
        ("j", "k"): "i",
        ("k", "i"): "j",
        ("j", "i"): "-k",
        ("i", "i"): "-1",
        ("-1", "k"): "-k",
    }
    for (a, b), c in said.items():
        assert q8.labels[int(q8.table[q8.index(a), q8.index(b)])] == c


def test_direct_products_multiply_factor_by_factor() -> None:
    group = group_by_name("S3xC2")
    a, b = group.index("((1 2), 1)"), group.index("((2 3), 1)")
    assert group.labels[int(group.table[a, b])] == "((1 2 3), 0)"


def test_conjugacy_classes_of_s5_are_its_cycle_types() -> None:
    s5 = symmetric(5)
    assert [len(c) for c in s5.conjugacy_classes] == [1, 10, 15, 20, 30, 24, 20]
    types = [
        {tuple(sorted(map(len, label.split(")")))) for label in (s5.labels[g] for g in c)}
        for c in s5.conjugacy_classes
    ]
    assert all(len(cycle_types) == 1 for cycle_types in types)


@pytest.mark.parametrize("name", ["S4", "A5", "D12", "Q8", "C3xC4", "S3xC2"])
def test_conjugacy_classes_are_the_orbits_of_conjugation(name: str) -> None:
    group = group_by_name(name)
    g = torch.arange(group.order)
    # [x, g] -> x g x^-1
    conjugates = group.table[group.table[g[:, None], g], group.inverses[:, None]]
    for n, members in enumerate(group.conjugacy_classes):
        assert tuple(sorted(set(conjugates[:, members[0]].tolist()))) == members
        assert (group.class_of[list(members)] == n).all()


@pytest.mark.parametrize(
    ("name", "abelian"),
    [("S3", False), ("C12", True), ("C3xC4", True), ("Q8", False), ("C1", True)],
)
def test_is_abelian_agrees_with_the_symmetry_of_the_table(name: str, abelian: bool) -> None:
    group = group_by_name(name)
    assert group.is_abelian == abelian == torch.equal(group.table, group.table.T)


def test_products_without_a_table_agree_with_the_table() -> None:
    s5 = symmetric(5)
    bare = Group("S5", s5.labels, permutations=s5.permutations, family="symmetric")
    assert torch.equal(bare.table, s5.table)
    assert torch.equal(bare.inverses, s5.inverses)
    assert bare.identity == 0


def test_what_is_computed_about_a_group_is_kept_as_long_as_the_group() -> None:
    group = cyclic(3)
    assert irreps(group) is irreps(group)
    assert irreps(group) is not irreps(cyclic(3))
    kept = weakref.ref(irreps(group)[0])
    del group
    gc.collect()
    assert kept() is None


def test_a_group_survives_pickling_for_other_processes() -> None:
    copy = pickle.loads(pickle.dumps(group_by_name("S3xC2")))
    assert irrep_labels(copy) == irrep_labels(group_by_name("S3xC2"))


def test_labels_must_be_as_many_as_elements_and_different() -> None:
    with pytest.raises(ToolkitError, match="3 elements need 3 different labels; got 2 in 3"):
        Group.from_table(cyclic(3).table, labels=["a", "b", "b"])
    with pytest.raises(ToolkitError, match="the table is empty"):
        Group.from_table(torch.zeros(0, 0, dtype=torch.long))


def test_an_unknown_element_is_refused_with_the_nearest_label() -> None:
    with pytest.raises(
        ToolkitError, match=r"S3 has no element '\(1 2 \)'\. Did you mean .*'\(1 2\)'"
    ):
        symmetric(3).index("(1 2 )")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("X5", "no group is called 'X5'"),
        ("s5", r"'s5'\. Did you mean 'S5'"),
        ("S3xE2", "no group is called 'E2' in 'S3xE2'"),
        ("S9", r"symmetric\(9\) is not supported; expected n from 1 to 8"),
        ("C0", r"cyclic\(0\) is not supported"),
        ("C99xC99", "C99xC99 has 9801 elements; the limit is 5040"),
    ],
)
def test_group_by_name_says_what_it_expects(name: str, words: str) -> None:
    with pytest.raises(ToolkitError, match=words):
        group_by_name(name)


def test_names_of_the_same_group_agree() -> None:
    assert torch.equal(group_by_name("Z113").table, group_by_name("C113").table)
    assert torch.equal(group_by_name("S_4").table, symmetric(4).table)
    assert repr(group_by_name("D12")) == "Group(D12, order 24)"


def test_the_cayley_table_of_s8_is_refused_but_products_are_not() -> None:
    s8 = symmetric(8)
    with pytest.raises(
        ToolkitError, match=r"Cayley table of S8 has 1,625,702,400 entries \(13 GB\); use product"
    ):
        _ = s8.table
    a = s8.index("(1 2 3 4 5 6 7 8)")
    assert int(s8.element_orders[a]) == 8
    assert (s8.product(torch.arange(s8.order), s8.inverses) == s8.identity).all()
