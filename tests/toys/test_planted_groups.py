"""Planted group networks multiply as they were built to; their twins do it in another order."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    blocks,
    cyclic,
    group_by_name,
    irrep_labels,
    isotypic_energy,
    symmetric,
)
from mechinterp_toolkit.toys import planted_group_mlp, planted_successor, relabelled_group_mlp
from mechinterp_toolkit.toys.group_mlp import GroupMLP
from mechinterp_toolkit.toys.group_task import evaluate
from mechinterp_toolkit.toys.pairs import all_pairs
from mechinterp_toolkit.toys.planted_groups import Relabelling, relabelling


def accuracy(network: GroupMLP, table: torch.Tensor) -> float:
    return evaluate(network, table, all_pairs(network.order)).accuracy


FAITHFUL = [
    ("S3", ["(2,1)"]),
    ("S4", ["(3,1)"]),
    ("S5", ["(4,1)", "(1,1,1,1,1)"]),
    ("S5", ["(2,2,1)"]),
    ("A5", ["3a"]),
    ("Q8", ["4"]),
    ("C12", ["k=1"]),
    ("C113", ["k=3", "k=10", "k=22"]),
]


@pytest.mark.parametrize(("name", "labels"), FAITHFUL)
@pytest.mark.parametrize("seed", [0, 1])
def test_faithful_irreps_multiply_every_pair_right(name: str, labels: list[str], seed: int) -> None:
    group = group_by_name(name)
    assert accuracy(planted_group_mlp(group, labels, seed=seed), group.table) == 1.0


def test_an_irrep_with_a_kernel_tells_only_its_cosets_apart() -> None:
    # k = 4 of Z_12 sees a mod 3: the right product ties with three others, and every answer lies in
    # its coset.
    group = cyclic(12)
    network = planted_group_mlp(group, ["k=4"])
    answers = network(all_pairs(12)).argmax(-1).reshape(12, 12)
    assert torch.equal(answers % 3, group.table % 3)


@pytest.mark.parametrize(("name", "labels"), FAITHFUL)
def test_every_neuron_is_a_function_of_the_planted_irreps_alone(
    name: str, labels: list[str]
) -> None:
    group = group_by_name(name)
    network = planted_group_mlp(group, labels)
    kept = [irrep_labels(group).index(label) for label in labels]
    for functions in (network.left, network.right):
        energy = isotypic_energy(group, functions.detach().T.double())
        # One irrep each; the rest is float32 rounding of weights near 1, squared.
        assert (energy[:, kept].max(1).values / energy.sum(1)).min() > 1 - 1e-10


def test_left_functions_are_constant_on_cosets_of_the_point_stabiliser() -> None:
    # The smallest orbit of (4,1) is the five points, fixed by subgroups of order 24: each function
    # takes five values.
    left = planted_group_mlp(symmetric(5), ["(4,1)"]).left.detach()
    assert left.shape[1] == 25
    for column in left.T:
        assert len(torch.unique(column.mul(1e4).round())) == 5


def test_strength_runs_from_random_to_planted() -> None:
    group = symmetric(4)
    reached = [
        accuracy(planted_group_mlp(group, ["(3,1)"], strength=s, seed=1), group.table)
        for s in (0.0, 0.8, 1.0)
    ]
    assert reached[0] < 0.15  # chance is 1/24
    assert reached[0] < reached[1] < reached[2] == 1.0


def test_planting_leaves_the_callers_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (
        planted_group_mlp(symmetric(3), ["(2,1)"], strength=0.5, seed=4) for _ in range(2)
    )
    planted_successor(1.0, 0)
    assert torch.equal(first.w_out, second.w_out)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("labels", "strength", "message"),
    [
        (["(4)"], 1.0, "the trivial irrep"),
        (["(5,1)"], 1.0, "no irrep '\\(5,1\\)'"),
        ([], 1.0, "at least one irrep"),
        (["(3,1)"], 1.5, "from 0 to 1, not 1.5"),
    ],
)
def test_what_cannot_be_planted_is_refused(
    labels: list[str], strength: float, message: str
) -> None:
    with pytest.raises(ToolkitError, match=message):
        planted_group_mlp(symmetric(4), labels, strength=strength)


def test_an_irrep_without_a_small_orbit_is_refused_with_its_size() -> None:
    # Dihedral of order 118: reflections fix a vector, whose orbit is the 59 corners.
    group = group_by_name("D59")
    label = next(block.label for block in blocks(group) if block.dimension == 2)
    with pytest.raises(ToolkitError, match="fewer than 59 vectors, which would need 3481 neurons"):
        planted_group_mlp(group, [label])


def relabelled_table(
    table: Int[Tensor, "order order"], by: Relabelling
) -> Int[Tensor, "order order"]:
    """The Latin square a relabelled network computes: out^-1(table[left(a), right(b)])."""
    return by.out.argsort()[table[by.left[:, None], by.right[None]]]


def test_a_relabelled_table_by_hand() -> None:
    # Z_2 with left inputs swapped and outputs swapped: 0 * 0 -> out^-1(1 + 0) = out^-1(1) = 0.
    swap, keep = torch.tensor([1, 0]), torch.tensor([0, 1])
    by = Relabelling(left=swap, right=keep, out=swap)
    assert relabelled_table(cyclic(2).table, by).tolist() == [[0, 1], [1, 0]]
    by = Relabelling(left=swap, right=keep, out=keep)
    assert relabelled_table(cyclic(2).table, by).tolist() == [[1, 0], [0, 1]]


def test_a_relabelled_network_knows_its_own_table_and_not_the_groups() -> None:
    group = symmetric(4)
    model = planted_group_mlp(group, ["(3,1)"])
    twin = relabelled_group_mlp(model, seed=3)
    assert accuracy(twin, relabelled_table(group.table, relabelling(24, seed=3))) == 1.0
    assert accuracy(twin, group.table) < 0.15
    assert torch.equal(twin.left.sort(0).values, model.left.sort(0).values)
    assert twin.config == model.config
