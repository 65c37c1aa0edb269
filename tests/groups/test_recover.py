"""Recovering the group from a table of answers, and naming it."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import Group, cayley_table_from_answers, group_by_name, isomorphism


def shuffled(group: Group, seed: int = 0) -> Int[Tensor, "order order"]:
    """The table of `group` with its elements renumbered at random."""
    order = torch.randperm(group.order, generator=torch.Generator().manual_seed(seed))
    return order.argsort()[group.table[order][:, order]]


NAMES = ("S3", "S5", "S6", "A5", "C1", "C12", "C113", "D12", "Q8", "C3xC4", "C2xC2xC2xC2")


@pytest.mark.parametrize("name", NAMES)
def test_a_renumbered_group_is_recovered_and_recognised(name: str) -> None:
    group = group_by_name(name)
    found = cayley_table_from_answers(shuffled(group))
    mapping = isomorphism(found, group)
    assert mapping is not None
    assert mapping.sort().values.tolist() == list(range(group.order))
    assert torch.equal(mapping[found.table], group.table[mapping[:, None], mapping])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("C3xC4", "C12", True),
        ("S3xC2", "D6", True),
        ("S3", "D3", True),
        ("C2xC2", "D2", True),
        ("A5xC2", "S5", False),
        ("Q8", "D4", False),
        ("C2xC2", "C4", False),
        ("C2xC4", "C8", False),
        ("S4", "A4xC2", False),
        ("S4", "S5", False),
    ],
)
def test_isomorphic_groups_are_told_from_others(a: str, b: str, same: bool) -> None:
    assert (isomorphism(group_by_name(a), group_by_name(b)) is not None) == same


def test_groups_with_equal_element_orders_are_told_apart() -> None:
    # C4 x C4 and C4 semidirect C4: both have 3 elements of order 2 and 12 of order 4.
    a = torch.arange(16)
    x, y = a // 4, a % 4
    twisted = ((x[:, None] + torch.where(y[:, None] % 2 == 0, x, -x)) % 4) * 4 + (
        y[:, None] + y
    ) % 4
    semidirect, direct = Group.from_table(twisted), group_by_name("C4xC4")
    assert torch.equal(semidirect.element_orders.sort().values, direct.element_orders.sort().values)
    assert isomorphism(semidirect, direct) is None
    assert isomorphism(direct, semidirect) is None


def test_one_wrong_answer_is_reported_with_the_fraction_of_violated_triples() -> None:
    answers = shuffled(group_by_name("S3")).clone()
    answers[2, 3] = (answers[2, 3] + 1) % 6
    wrong = sum(
        bool(answers[answers[a, b], c] != answers[a, answers[b, c]])
        for a in range(6)
        for b in range(6)
        for c in range(6)
    )
    with pytest.raises(
        ToolkitError,
        match=rf"not a group operation: .*Latin square.* {wrong / 216:.2%} of all 216 triples",
    ):
        cayley_table_from_answers(answers)


def test_a_quasigroup_is_not_a_group_operation() -> None:
    a = torch.arange(7)
    with pytest.raises(ToolkitError, match="not a group operation: the table has no identity"):
        cayley_table_from_answers((2 * a[:, None] + 3 * a) % 7)


def test_random_answers_violate_most_triples_of_a_large_table() -> None:
    answers = torch.randint(300, (300, 300), generator=torch.Generator().manual_seed(0))
    # Two random answers agree with probability 1/300; the sampled fraction has a standard error of
    # 6e-5.
    with pytest.raises(
        ToolkitError, match=r"differs from a\(bc\) for 99\.6\d% of a million random triples"
    ):
        cayley_table_from_answers(answers)


def test_answers_outside_the_inputs_are_named() -> None:
    answers = group_by_name("C4").table.clone()
    answers[3, 3] = 4
    with pytest.raises(
        ToolkitError, match=r"not a group operation: table\[3, 3\] = 4 is not an element"
    ):
        cayley_table_from_answers(answers)
