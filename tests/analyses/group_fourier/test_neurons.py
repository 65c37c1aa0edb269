"""Irrep, rank and cosets of single neurons, and the sides that must not be mixed up."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.neurons import (
    coset_stabilisers,
    neuron_table,
    random_irrep_functions,
    random_subspace_shares,
    rank_one_share,
)
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    alternating,
    cyclic,
    dihedral,
    direct_product,
    irrep_labels,
    irreps,
    isotypic_projector,
    quaternion,
    stabilisers,
    symmetric,
)
from mechinterp_toolkit.groups.recognise import affine, structure_name, subgroup_name
from mechinterp_toolkit.groups.subgroups import subgroup_classes
from mechinterp_toolkit.toys.planted_groups import planted_group_mlp

EXACT = 1e-9  # float64 through a Fourier transform and back
FLOAT32 = 1e-5  # planted weights are stored in float32


def functions_of(group: Group, labels: tuple[str, ...]) -> Float[Tensor, "site order neuron"]:
    net = planted_group_mlp(group, labels)
    return torch.stack([net.left, net.right, net.unembed]).detach().double()


def test_planted_neurons_are_pure_of_rank_one_and_constant_on_the_cosets_they_are_made_of() -> None:
    table = neuron_table(symmetric(5), functions_of(symmetric(5), ("(2,2,1)", "(1,1,1,1,1)")))
    by_irrep = {table.irreps[i]: set() for i in table.irrep.tolist()}
    for i, left, right in zip(table.irrep.tolist(), *table.stabilisers, strict=True):
        by_irrep[table.irreps[i]].add((left, right))
    # The six vectors of (2,2,1) that S5 permutes are fixed by the affine groups of order 20; the
    # sign by A5.
    assert by_irrep == {"(2,2,1)": {("F20", "F20")}, "(1,1,1,1,1)": {("A5", "A5")}}
    assert table.pure.all()
    assert (table.purity - 1).abs().max() < FLOAT32
    assert (table.rank_one - 1).abs().max() < FLOAT32
    assert (table.explained - 1).abs().max() < FLOAT32
    assert (table.ipr - 1).abs().max() < FLOAT32
    # The sign itself changes sign under the rest.
    sign = table.irrep == table.irreps.index("(1,1,1,1,1)")
    assert (table.twisted_order[:, sign] == 120).all()
    assert len(table.rows()) == len(table.neuron)


def test_random_vectors_of_the_same_irreps_are_as_pure_but_of_full_rank_and_on_no_cosets() -> None:
    group = symmetric(5)
    planted = functions_of(group, ("(4,1)",))
    random = neuron_table(group, next(random_irrep_functions(group, planted, draws=1, seed=0)))
    assert (random.purity - 1).abs().max() < EXACT
    assert (random.rank_one < 0.9).all()
    assert (random.stabiliser_order == 1).all()


def test_random_vectors_keep_means_and_norms() -> None:
    group = symmetric(4)
    planted = functions_of(group, ("(3,1)",)) + 2
    random = next(random_irrep_functions(group, planted, draws=1, seed=0))
    assert (random.mean(1) - planted.mean(1)).abs().max() < EXACT
    assert (random.norm(dim=1) - planted.norm(dim=1)).abs().max() < EXACT
    assert (random - planted).abs().max() > 0.1


def test_a_reflection_is_found_among_the_slow_rotations_of_a_dihedral_group() -> None:
    group = dihedral(59)
    f = torch.randn(118, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The slowest irrep, which turns by 2 pi / 59, and the vector that the first reflection fixes.
    rho = next(i for i in irreps(group) if i.dimension == 2 and float(i.character[1]) > 1.9)
    s = 59
    fixed = torch.linalg.eigh(rho.matrices[s]).eigenvectors[:, 1]
    f = torch.einsum("i,gij,j->g", fixed, rho.matrices, f[:2])
    assert stabilisers(group, f[None], side="left")[0].members == (0, s)


def test_each_share_has_its_stabiliser_on_its_own_side() -> None:
    group = symmetric(4)
    f = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # x -> f(x(4)) is constant on left cosets of the permutations that fix 4; its inverse on right.
    right = f[group.permutations[:, 3]]
    left = right[group.inverses]
    fixing = tuple((group.permutations[:, 3] == 3).nonzero().flatten().tolist())
    own = coset_stabilisers(group, torch.stack([left, right])[:, :, None])
    wrong = coset_stabilisers(group, torch.stack([right, left])[:, :, None])
    assert [side[0].members for side in own] == [fixing, fixing]
    assert [len(side[0].members) for side in wrong] == [1, 1]


@pytest.mark.parametrize("group", [cyclic(7), quaternion()], ids=["C7", "Q8"])
def test_irreps_over_complexes_and_quaternions_of_one_dimension_are_always_of_rank_one(
    group: Group,
) -> None:
    index = len(irreps(group)) - 1
    random = torch.randn(
        4, group.order, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    part = random @ isotypic_projector(group, irrep_labels(group)[index])
    share = rank_one_share(group, part.T[None], torch.full((4,), index))
    assert (share - 1).abs().max() < EXACT


def test_the_share_of_a_random_subspace_is_its_rank_over_all_dimensions() -> None:
    draws = random_subspace_shares(symmetric(5), torch.tensor([24, 120, 1]), draws=4000, seed=0)
    # 5 cosets leave 4 of 119 dimensions; the standard error of 4,000 draws of Beta(2, 57.5) is
    # 0.0004.
    assert abs(float(draws[:, 0].mean()) - 4 / 119) < 0.002
    assert (draws[:, 1] == 0).all()
    assert (draws[:, 2] - 1).abs().max() < EXACT


def test_a_network_without_a_live_neuron_is_refused() -> None:
    with pytest.raises(ToolkitError, match="every neuron is dead"):
        neuron_table(symmetric(3), torch.ones(3, 6, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (affine(5), "F20"),
        (direct_product(symmetric(3), cyclic(2)), "D6"),
        (direct_product(cyclic(2), cyclic(2)), "C2xC2"),
        (quaternion(), "Q8"),
        (alternating(4), "A4"),
        (direct_product(cyclic(3), cyclic(3)), "C3xC3"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_small_groups_are_called_by_their_usual_names(group: Group, name: str) -> None:
    scrambled = torch.randperm(group.order, generator=torch.Generator().manual_seed(0))
    table = scrambled.argsort()[group.table[scrambled][:, scrambled]]
    assert structure_name(Group.from_table(table)) == name


def test_the_subgroups_of_s4_have_their_names() -> None:
    names = [subgroup_name(symmetric(4), cls[0]) for cls in subgroup_classes(symmetric(4))]
    assert sorted(names) == sorted(
        ["trivial", "C2", "C2", "C3", "C4", "C2xC2", "C2xC2", "S3", "D4", "A4", "S4"]
    )
