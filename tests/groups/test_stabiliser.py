"""Autocorrelation, coset concentration and stabilisers, against the direct computation."""

from __future__ import annotations

import functools

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    Side,
    approximate_stabiliser,
    autocorrelation,
    closure,
    cosets,
    explained_by_cosets,
    group_by_name,
    is_subgroup,
    restricted,
    subgroup_classes,
    subgroups,
)

NAMES = (
    "S3",
    "S4",
    "S5",
    "A5",
    "C7",
    "C12",
    "C113",
    "D4",
    "D5",
    "D12",
    "Q8",
    "S3xC2",
    "C3xC4",
    "Q8xC3",
)
SIDES: tuple[Side, ...] = ("left", "right")

# Through the Fourier transform and back: a few hundred float64 operations on numbers below 1.
EXACT = 1e-12


@functools.cache
def get(name: str) -> Group:
    return group_by_name(name)


def functions(group: Group, count: int = 3, seed: int = 0) -> Float[Tensor, "count order"]:
    return (
        torch.randn(
            count, group.order, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        + 2
    )


def coset_function(
    group: Group, members: tuple[int, ...], side: Side, seed: int = 0
) -> Float[Tensor, " order"]:
    """A random function that is constant on the cosets of `members`."""
    rows = cosets(group, members, side=side)
    f = torch.empty(group.order, dtype=torch.float64)
    f[rows] = torch.randn(
        len(rows), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return f


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NAMES)
def test_autocorrelation_is_the_exhaustive_sum(name: str, side: Side) -> None:
    group = get(name)
    f = functions(group)
    x = f - f.mean(-1, keepdim=True)
    x = x / x.norm(dim=-1, keepdim=True)
    moved = group.table if side == "left" else group.table.T  # moved[h] lists hx, or xh, over x
    assert (
        autocorrelation(group, f, side=side) - (x[:, moved] * x[:, None]).sum(-1)
    ).abs().max() < EXACT


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["S4", "S5", "A5", "D12", "Q8", "C12"])
def test_explained_variance_is_one_minus_the_mean_variance_within_cosets(
    name: str, side: Side
) -> None:
    group = get(name)
    f = functions(group)
    for cls in subgroup_classes(group):
        rows = cosets(group, cls[-1], side=side)
        within = f[:, rows].var(-1, unbiased=False).mean(-1) / f.var(-1, unbiased=False)
        assert (
            explained_by_cosets(group, f, cls[-1], side=side) - (1 - within)
        ).abs().max() < EXACT


@pytest.mark.parametrize("side", SIDES)
def test_the_stabiliser_of_a_coset_function_is_its_subgroup_and_only_on_its_side(
    side: Side,
) -> None:
    group = get("S5")
    other: Side = "right" if side == "left" else "left"
    for cls in subgroup_classes(group)[:-1]:
        found = approximate_stabiliser(group, coset_function(group, cls[0], side), side=side)
        assert found.members == cls[0]
        assert found.explained == pytest.approx(1, abs=EXACT)
        if found.order > 1 and len(cls) > 1:  # a normal subgroup has the same cosets on both sides
            assert (
                approximate_stabiliser(group, coset_function(group, cls[0], side), side=other).order
                == 1
            )


@pytest.mark.parametrize("tolerance", [0.02, 0.3, 0.8, 0.98])
@pytest.mark.parametrize("name", ["S4", "A5", "D12", "Q8", "C12"])
def test_what_is_returned_is_always_a_subgroup(name: str, tolerance: float) -> None:
    group = get(name)
    for f in functions(group, count=4):
        found = approximate_stabiliser(group, f, side="left", tolerance=tolerance)
        assert is_subgroup(group, found.members)
        explained = explained_by_cosets(group, f, found.members, side="left")
        assert found.explained == pytest.approx(float(explained), abs=EXACT)


def test_a_little_noise_leaves_the_stabiliser_and_lowers_what_it_explains() -> None:
    group = get("S5")
    members = closure(group, [group.index("(1 2)"), group.index("(1 2 3 4)")])
    clean = coset_function(group, members, "left")
    noise = functions(group, count=1)[0] - 2
    # Noise with 0.5 % of the variance lowers the autocorrelation of members by about 0.005, within
    # 0.02.
    f = clean / clean.std() + 0.07 * noise / noise.std()
    found = approximate_stabiliser(group, f, side="left")
    assert found.members == members
    assert 0.99 < found.explained < 0.999
    assert approximate_stabiliser(group, f, side="left", tolerance=1e-6).order == 1


def test_the_lattice_free_stabiliser_is_the_largest_subgroup_that_explains_the_function() -> None:
    group = get("S4")
    listed = subgroups(group)
    for n, members in enumerate(listed[:-1]):
        f = coset_function(group, members, "left", seed=n)
        explained = {h: float(explained_by_cosets(group, f, h, side="left")) for h in listed}
        best = max((h for h, value in explained.items() if value > 0.99), key=len)
        assert approximate_stabiliser(group, f, side="left").members == best


def test_sign_twisted_stabilisers_are_found_with_their_character() -> None:
    group = get("S5")
    members = closure(
        group, [group.index("(1 2)"), group.index("(1 2 3)")]
    )  # S3, twisted by its sign
    h = torch.tensor(members)
    signs = restricted(group, members).linear_characters[1]
    seed = functions(group, count=1)[0]
    f = (signs[:, None] * seed[group.table[h]]).mean(0)  # f(hx) = sign(h) f(x)
    found = approximate_stabiliser(group, f, side="left", twisted=True)
    assert found.members == members
    assert found.signs == tuple(int(s) for s in signs)
    assert found.is_twisted
    assert found.explained == pytest.approx(1, abs=EXACT)
    assert found.explained == pytest.approx(
        float(explained_by_cosets(group, f, members, side="left", signs=found.signs)), abs=EXACT
    )
    plain = approximate_stabiliser(group, f, side="left")
    assert plain.order == 3
    assert not plain.is_twisted
    assert float(explained_by_cosets(group, f, members, side="left")) == pytest.approx(0, abs=EXACT)


def test_a_twist_that_is_no_character_is_refused() -> None:
    # At this tolerance nearly every element counts, and the signs of a random function follow no
    # rule.
    group = get("S4")
    with pytest.raises(
        ToolkitError,
        match=r"within 0\.98 generate 24 elements, on which the sign .* is no character",
    ):
        approximate_stabiliser(
            group, functions(group)[0], side="left", tolerance=0.98, twisted=True
        )


def test_twisted_explained_variance_is_the_norm_of_the_twisted_projection() -> None:
    group = get("S4")
    members = closure(group, [group.index("(1 2 3 4)"), group.index("(1 3)")])
    h = torch.tensor(members)
    f = functions(group)
    x = f - f.mean(-1, keepdim=True)
    for signs in restricted(group, members).linear_characters:
        projected = (signs[:, None] * x[:, group.table[h]]).mean(1)
        share = projected.square().sum(-1) / x.square().sum(-1)
        found = explained_by_cosets(group, f, members, side="left", signs=[int(s) for s in signs])
        assert (found - share).abs().max() < EXACT


def test_stabilisers_are_found_where_subgroups_cannot_be_listed() -> None:
    group = get("S8")
    f = (
        group.permutations[:, 0] == 3
    ).double()  # x -> [x(1) = 4]: f(hx) = f(x) for h fixing 4, f(xh) for h fixing 1
    for side, letter in (("left", 3), ("right", 0)):
        found = approximate_stabiliser(group, f, side=side)
        assert found.members == tuple(
            (group.permutations[:, letter] == letter).nonzero().flatten().tolist()
        )
        assert found.explained == pytest.approx(1, abs=EXACT)


def test_a_constant_function_is_refused_by_number() -> None:
    group = get("S4")
    f = functions(group)
    f[1] = 3.7
    with pytest.raises(
        ToolkitError, match=r"1 of the functions \(1\) constant on S4: no variance to explain"
    ):
        autocorrelation(group, f, side="left")
    with pytest.raises(ToolkitError, match="the function constant on S4"):
        approximate_stabiliser(group, torch.zeros(24), side="left")


def test_elements_that_are_no_subgroup_and_signs_that_are_no_character_are_refused() -> None:
    group = get("C12")
    f = functions(group)
    with pytest.raises(ToolkitError, match="these 2 elements are not a subgroup of C12"):
        explained_by_cosets(group, f, [0, 4], side="left")
    with pytest.raises(
        ToolkitError, match=r"these signs are not a character: sign\(4\) sign\(8\) differs"
    ):
        explained_by_cosets(group, f, [0, 4, 8], side="left", signs=[1, -1, 1])
    with pytest.raises(
        ToolkitError, match="a character of 3 elements has as many signs, each \\+1 or -1; got 2"
    ):
        explained_by_cosets(group, f, [0, 4, 8], side="left", signs=[1, -1])
