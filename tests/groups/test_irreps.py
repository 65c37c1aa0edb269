"""Irreps: homomorphisms, complete, of the right type, and the checks that notice otherwise."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    blocks,
    cyclic,
    group_by_name,
    irrep,
    irrep_labels,
    irreps,
    quaternion,
    symmetric,
)
from mechinterp_toolkit.groups.irreps import check_irreps
from mechinterp_toolkit.groups.representation import units
from mechinterp_toolkit.groups.young import (
    adjacent_transposition,
    corners,
    partitions,
    symmetric_irreps,
    tableaux,
)

NAMES = (
    "S3", "S4", "S5", "A4", "A5", "C1", "C7", "C12", "C113", "D4", "D5", "D12", "Q8", "S3xC2",
    "C3xC4", "Q8xC3", "Q8xQ8",
)  # fmt: skip
# Built again as bare tables, without a closed form.
RAW = ("S4", "S5", "A5", "C12", "Q8xC3", "Q8xQ8", "C2xC2xC2")

# Products of a few orthogonal float64 matrices: errors are below 1e-13.
EXACT = 1e-12


@functools.cache
def get(name: str) -> Group:
    if name.startswith("raw "):
        return Group.from_table(group_by_name(name[4:]).table, name=name)
    return group_by_name(name)


ALL = (*NAMES, *(f"raw {name}" for name in RAW))


@pytest.mark.parametrize("name", ALL)
def test_irreps_are_homomorphisms_on_every_pair(name: str) -> None:
    group = get(name)
    for rho in irreps(group):
        for a in range(0, group.order, max(1, group.order // 24)):
            defect = rho.matrices[group.table[a]] - rho.matrices[a] @ rho.matrices
            assert defect.abs().max() < EXACT


@pytest.mark.parametrize("name", ALL)
def test_isotypic_blocks_fill_the_group(name: str) -> None:
    group = get(name)
    assert sum(block.size for block in blocks(group)) == group.order
    assert [block.start for block in blocks(group)] == [
        0,
        *torch.tensor([b.size for b in blocks(group)]).cumsum(0)[:-1],
    ]
    assert len(set(irrep_labels(group))) == len(irreps(group))


@pytest.mark.parametrize("name", ALL)
def test_there_are_as_many_real_irreps_as_classes_up_to_inversion(name: str) -> None:
    group = get(name)
    up_to_inversion = {
        frozenset({int(c), int(group.class_of[group.inverses[g]])})
        for g, c in enumerate(group.class_of)
    }
    assert len(irreps(group)) == len(up_to_inversion)


@pytest.mark.parametrize("name", ALL)
def test_frobenius_schur_types_count_the_square_roots_of_one(name: str) -> None:
    # Frobenius and Schur: #{g : g^2 = 1} = sum of nu(chi) chi(1) over complex irreps, nu = 1, 0,
    # -1. A quaternionic block of real size D comes from a complex irrep of dimension D / 2.
    group = get(name)
    roots = int((group.table.diagonal() == group.identity).sum())
    real = sum(i.dimension for i in irreps(group) if i.frobenius_schur == "real")
    quaternionic = sum(
        i.dimension // 2 for i in irreps(group) if i.frobenius_schur == "quaternionic"
    )
    assert real - quaternionic == roots


@pytest.mark.parametrize("name", ["S3", "S4", "S5", "D5", "D12", "S3xC2"])
def test_all_irreps_of_symmetric_and_dihedral_groups_are_real(name: str) -> None:
    assert {irrep.frobenius_schur for irrep in irreps(get(name))} == {"real"}


def test_cyclic_irreps_are_complex_pairs_but_for_the_constant_and_the_alternating_one() -> None:
    assert [(i.label, i.dimension, i.frobenius_schur) for i in irreps(get("C12"))] == [
        ("k=0", 1, "real"), *((f"k={k}", 2, "complex") for k in range(1, 6)), ("k=6", 1, "real"),
    ]  # fmt: skip
    assert [i.frobenius_schur for i in irreps(get("C7"))] == ["real", *["complex"] * 3]
    assert len(irreps(get("C113"))) == 57
    assert irrep(get("C12"), "k=6").character.tolist() == [1, -1] * 6


def test_q8_has_one_quaternionic_irrep_and_products_with_it_get_the_right_type() -> None:
    assert [(i.label, i.dimension, i.frobenius_schur) for i in irreps(get("Q8"))] == [
        *((label, 1, "real") for label in ("1a", "1b", "1c", "1d")),
        ("4", 4, "quaternionic"),
    ]
    # quaternionic x quaternionic is real of dimension 2 * 2; quaternionic x complex is complex of
    # dimension 2, twice 2.
    for name, label, kind in (("Q8xQ8", "4×4", "real"), ("Q8xC3", "4×k=1", "complex")):
        product = irrep(get(name), label)
        assert (product.dimension, product.frobenius_schur) == (4, kind)


def test_a_product_of_two_complex_pairs_splits_in_two() -> None:
    # The 9 characters of C3 x C3: the trivial one and four complex pairs.
    assert [(i.dimension, i.frobenius_schur) for i in irreps(get("C3xC3"))] == [
        (1, "real"),
        *[(2, "complex")] * 4,
    ]
    assert {"k=1×k=1a", "k=1×k=1b"} <= set(irrep_labels(group_by_name("C3xC3")))


@pytest.mark.parametrize(("name", "labels"), [
    ("A4", ["1", "2", "3"]), ("A5", ["1", "3a", "3b", "4", "5"]), ("D5", ["1a", "1b", "2a", "2b"]),
    ("raw S5", ["1a", "1b", "4a", "4b", "5a", "5b", "6"]),
])  # fmt: skip
def test_labels_are_dimension_and_letter_with_the_trivial_one_first(
    name: str, labels: list[str]
) -> None:
    assert list(irrep_labels(get(name))) == labels
    assert (irreps(get(name))[0].character - 1).abs().max() < EXACT


def test_both_three_dimensional_irreps_of_a5_are_golden() -> None:
    # Character on 5-cycles: (1 +- sqrt 5) / 2; the two irreps are exchanged by the outer
    # automorphism.
    group = get("A5")
    for label in ("3a", "3b"):
        values = irrep(group, label).character[group.element_orders == 5].unique().tolist()
        assert min(values) == pytest.approx((1 - math.sqrt(5)) / 2, abs=EXACT)
        assert max(values) == pytest.approx((1 + math.sqrt(5)) / 2, abs=EXACT)


def test_dimensions_of_s5_and_s6_stand_in_the_order_of_partitions() -> None:
    assert [b.dimension for b in blocks(get("S5"))] == [1, 4, 5, 6, 5, 4, 1]
    assert irrep_labels(get("S5")) == (
        "(5)", "(4,1)", "(3,2)", "(3,1,1)", "(2,2,1)", "(2,1,1,1)", "(1,1,1,1,1)",
    )  # fmt: skip
    s6 = symmetric(6)
    assert [i.dimension for i in irreps(s6)] == [1, 5, 9, 10, 5, 16, 10, 5, 9, 5, 1]


def test_partitions_and_corners_of_four_by_hand() -> None:
    assert partitions(4) == ((4,), (3, 1), (2, 2), (2, 1, 1), (1, 1, 1, 1))
    assert corners((2, 2)) == ((1, (2, 1)),)
    assert corners((3, 1)) == ((0, (2, 1)), (1, (3,)))
    # Rows of the letters 1, 2, 3: last-letter order puts the tableau with 3 in the first row first.
    assert tableaux((2, 1)) == ((0, 1, 0), (0, 0, 1))


def dense(shape: tuple[int, ...], k: int) -> Float[Tensor, "dim dim"]:
    """The matrix of (k k+1) from its entries."""
    s = adjacent_transposition(shape, k)
    matrix = torch.diag(s.diagonal)
    matrix[torch.arange(len(s.swapped)), s.swapped] += s.off_diagonal
    return matrix


def test_young_s_orthogonal_form_of_s3_by_hand() -> None:
    half_root = math.sqrt(3) / 2
    # First tableau has 1 3 / 2, the second 1 2 / 3. Axial distance from 2 to 3 is 2 in the first,
    # -2 in the second.
    first = torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[0.5, half_root], [half_root, -0.5]], dtype=torch.float64)
    assert torch.allclose(dense((2, 1), 1), first, atol=1e-15)
    assert torch.allclose(dense((2, 1), 2), second, atol=1e-15)
    s3 = symmetric(3)
    assert torch.allclose(irrep(s3, "(2,1)").matrices[s3.index("(2 3)")], second, atol=1e-15)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_adjacent_transpositions_satisfy_the_coxeter_relations(n: int) -> None:
    for shape in partitions(n):
        s = [dense(shape, k) for k in range(1, n)]
        one = torch.eye(len(s[0]), dtype=torch.float64)
        for a in range(n - 1):
            assert torch.allclose(s[a] @ s[a], one, atol=EXACT)
            assert torch.equal(s[a], s[a].T)
            if a + 1 < n - 1:
                assert torch.allclose(
                    s[a] @ s[a + 1] @ s[a], s[a + 1] @ s[a] @ s[a + 1], atol=EXACT
                )
            for b in range(a + 2, n - 1):
                assert torch.allclose(s[a] @ s[b], s[b] @ s[a], atol=EXACT)


def test_transpositions_times_a_stack_are_the_dense_product() -> None:
    stack = torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k in range(1, 6):
        s = adjacent_transposition((3, 2, 1), k)
        assert torch.allclose(s.times(stack), dense((3, 2, 1), k) @ stack, atol=EXACT)


@pytest.mark.parametrize("name", ["S3", "S4", "S5"])
def test_standard_and_sign_characters_count_fixed_points_and_parity(name: str) -> None:
    group = get(name)
    degree = group.permutations.shape[1]
    fixed = (group.permutations == torch.arange(degree)).sum(1).double()
    assert torch.allclose(irrep(group, f"({degree - 1},1)").character, fixed - 1, atol=EXACT)
    later = torch.ones(degree, degree).triu(1).bool()
    inverted = group.permutations[:, :, None] > group.permutations[:, None, :]
    parity = 1.0 - 2 * ((inverted & later).sum((1, 2)) % 2).double()
    assert torch.allclose(irreps(group)[-1].character, parity, atol=EXACT)
    assert torch.allclose(irreps(group)[0].character, torch.ones(group.order).double(), atol=EXACT)


def test_the_conjugate_partition_is_the_tensor_product_with_sign() -> None:
    group = get("S5")
    sign = irrep(group, "(1,1,1,1,1)").character
    for shape in partitions(5):
        conjugate = tuple(sum(part > row for part in shape) for row in range(shape[0]))
        here, there = (irrep(group, f"({','.join(map(str, s))})") for s in (shape, conjugate))
        assert torch.allclose(here.character * sign, there.character, atol=EXACT)


def test_restriction_to_the_stabiliser_of_the_last_letter_is_block_diagonal() -> None:
    group = get("S5")
    fixing = (group.permutations[:, 4] == 4).nonzero().flatten()
    for shape, rho in zip(partitions(5), irreps(group), strict=True):
        start = 0
        for _, below in corners(shape):
            stop = start + len(tableaux(below))
            block = rho.matrices[fixing, start:stop]
            assert torch.allclose(
                block[:, :, start:stop], irrep(get("S4"), f"({','.join(map(str, below))})").matrices
            )
            assert block[:, :, :start].abs().sum() + block[:, :, stop:].abs().sum() == 0
            start = stop


@pytest.mark.parametrize(("commutant", "multiplicity"), [(1, 3), (2, 3), (4, 1), (4, 2)])
def test_units_multiply_like_numbers_complex_numbers_and_quaternions(
    commutant: int, multiplicity: int
) -> None:
    found = units(commutant, multiplicity)
    one = torch.eye(commutant * multiplicity, dtype=torch.float64)
    assert len(found) == commutant
    assert torch.equal(found[0], one)
    for unit in found[1:]:
        assert torch.equal(unit @ unit, -one)
    if commutant == 4:
        i, j, k = found[1:]
        assert torch.equal(i @ j, k)
        assert torch.equal(j @ i, -k)
    # In the basis v, Iv, Jv, Kv, unit n sends the first v to its own copy.
    for n, unit in enumerate(found):
        copy = one[:, n * multiplicity : (n + 1) * multiplicity]
        assert torch.equal(unit[:, :multiplicity], copy)


def test_the_opposite_composition_is_noticed() -> None:
    s4 = get("S4")
    opposite = Group.from_table(s4.table.T.contiguous(), name="opposite S4")
    with pytest.raises(
        ToolkitError, match=r"Irrep\('\(3,1\)', dimension 3, real\) is not a homomorphism"
    ):
        check_irreps(opposite, symmetric_irreps(s4.permutations)[1:])


def test_a_representation_that_is_not_orthogonal_is_noticed() -> None:
    s3 = get("S3")
    skewed = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    bad = dataclasses.replace(
        irreps(s3)[1], matrices=skewed @ irreps(s3)[1].matrices @ skewed.inverse()
    )
    with pytest.raises(ToolkitError, match="is not orthogonal at generator"):
        check_irreps(s3, (irreps(s3)[0], bad, irreps(s3)[2]))


def test_a_basis_without_the_standard_complex_structure_is_noticed() -> None:
    q8 = quaternion()
    turn = torch.linalg.qr(
        torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).Q
    bad = dataclasses.replace(irreps(q8)[4], matrices=turn.T @ irreps(q8)[4].matrices @ turn)
    with pytest.raises(ToolkitError, match="does not commute with its complex structure"):
        check_irreps(q8, (*irreps(q8)[:4], bad))


def test_a_missing_or_repeated_irrep_is_noticed() -> None:
    c7 = cyclic(7)
    with pytest.raises(
        ToolkitError, match="the isotypic blocks of 3 irreps fill 5 of 7 dimensions"
    ):
        check_irreps(c7, irreps(c7)[:3])
    with pytest.raises(ToolkitError, match="characters of k=2 and k=2 are not Schur-orthogonal"):
        check_irreps(c7, (*irreps(c7)[:3], irreps(c7)[2]))


def test_an_unknown_irrep_is_refused_with_the_nearest_label() -> None:
    with pytest.raises(ToolkitError, match=r"S5 has no irrep '\(4\.1\)'\. Did you mean '\(4,1\)'"):
        irrep(get("S5"), "(4.1)")


def test_irreps_too_large_to_hold_are_refused() -> None:
    with pytest.raises(
        ToolkitError, match=r"irreps of S8 \(40320 elements\) are refused above 5040 elements"
    ):
        _ = irreps(symmetric(8))
    with pytest.raises(
        ToolkitError, match=r"irreps of C2001 \(2001 elements\) are refused above 2000"
    ):
        _ = irreps(cyclic(2001))
