"""Autocorrelation, coset concentration and stabilisers, against the direct computation."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    Side,
    Stabiliser,
    autocorrelation,
    closure,
    cosets,
    group_by_name,
    is_subgroup,
    stabilisers,
    subgroup_classes,
    subgroups,
)

NAMES = (
    "S3", "S4", "S5", "A5", "C7", "C12", "C113", "D4", "D5", "D12", "Q8", "S3xC2", "C3xC4",
    "Q8xC3",
)  # fmt: skip
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


def stabiliser(group: Group, f: Float[Tensor, " order"], side: Side, **options: Any) -> Stabiliser:
    """The stabiliser of one function."""
    return stabilisers(group, f[None], side=side, **options)[0]


def explained(
    group: Group, f: Float[Tensor, "*batch order"], members: tuple[int, ...], side: Side
) -> Float[Tensor, "*batch"]:
    """1 - E[Var(f | coset)] / Var(f), from the cosets themselves."""
    rows = cosets(group, members, side=side)
    return 1 - f[..., rows].var(-1, correction=0).mean(-1) / f.var(-1, correction=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NAMES)
def test_autocorrelation_is_the_exhaustive_sum(name: str, side: Side) -> None:
    group = get(name)
    f = functions(group)
    x = f - f.mean(-1, keepdim=True)
    x = x / x.norm(dim=-1, keepdim=True)
    moved = group.table if side == "left" else group.table.T  # moved[h] lists hx, or xh, over x
    sums = (x[:, moved] * x[:, None]).sum(-1)
    assert (autocorrelation(group, f, side=side) - sums).abs().max() < EXACT


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["S4", "S5", "A5", "D12", "Q8", "C12"])
def test_the_mean_autocorrelation_over_a_subgroup_is_what_its_cosets_explain(
    name: str, side: Side
) -> None:
    group = get(name)
    f = functions(group)
    correlation = autocorrelation(group, f, side=side)
    for cls in subgroup_classes(group):
        mean = correlation[:, list(cls[-1])].mean(1)
        assert (mean - explained(group, f, cls[-1], side)).abs().max() < EXACT


@pytest.mark.parametrize("side", SIDES)
def test_the_stabiliser_of_a_coset_function_is_its_subgroup_and_only_on_its_side(
    side: Side,
) -> None:
    group = get("S5")
    other: Side = "right" if side == "left" else "left"
    for cls in subgroup_classes(group)[:-1]:
        f = coset_function(group, cls[0], side)
        found = stabiliser(group, f, side)
        assert found.members == cls[0]
        assert found.explained == pytest.approx(1, abs=EXACT)
        if len(cls[0]) > 1 and len(cls) > 1:  # a normal subgroup has the same cosets on both sides
            assert len(stabiliser(group, f, other).members) == 1


@pytest.mark.parametrize("tolerance", [0.02, 0.3, 0.8, 0.98])
@pytest.mark.parametrize("name", ["S4", "A5", "D12", "Q8", "C12"])
def test_what_is_returned_is_always_a_subgroup(name: str, tolerance: float) -> None:
    group = get(name)
    several = functions(group, count=4)
    for f, found in zip(
        several, stabilisers(group, several, side="left", tolerance=tolerance), strict=True
    ):
        assert is_subgroup(group, found.members)
        share = float(explained(group, f, found.members, "left"))
        assert found.explained == pytest.approx(share, abs=EXACT)
        assert share > 1 - tolerance


def test_a_little_noise_leaves_the_stabiliser_and_lowers_what_it_explains() -> None:
    group = get("S5")
    members = closure(group, [group.index("(1 2)"), group.index("(1 2 3 4)")])
    clean = coset_function(group, members, "left")
    noise = functions(group, count=1)[0] - 2
    # Noise with 0.5 % of the variance lowers the autocorrelation of members by about 0.005, within
    # 0.02.
    f = clean / clean.std() + 0.07 * noise / noise.std()
    found = stabiliser(group, f, "left")
    assert found.members == members
    assert 0.99 < found.explained < 0.999
    assert len(stabiliser(group, f, "left", tolerance=1e-6).members) == 1


def test_the_lattice_free_stabiliser_is_the_largest_subgroup_that_explains_the_function() -> None:
    group = get("S4")
    listed = subgroups(group)
    for n, members in enumerate(listed[:-1]):
        f = coset_function(group, members, "left", seed=n)
        shares = {h: float(explained(group, f, h, "left")) for h in listed}
        best = max((h for h, share in shares.items() if share > 0.99), key=len)
        assert stabiliser(group, f, "left").members == best


def test_a_subgroup_that_keeps_a_function_up_to_sign_is_found() -> None:
    group = get("S5")
    members = closure(group, [group.index("(1 2)"), group.index("(1 2 3)")])  # S3
    h = torch.tensor(members)
    signs = torch.where(group.element_orders[h] == 2, -1.0, 1.0).double()  # the sign of S3
    seed = functions(group, count=1)[0]
    f = (signs[:, None] * seed[group.table[h]]).mean(0)  # f(hx) = sign(h) f(x)
    found = stabiliser(group, f, "left", up_to_sign=True)
    assert found.members == members
    assert found.explained == pytest.approx(1, abs=EXACT)
    assert len(stabiliser(group, f, "left").members) == 3
    assert float(explained(group, f, members, "left")) == pytest.approx(0, abs=EXACT)


def test_a_slow_wave_is_not_taken_for_constant() -> None:
    """cos(2 pi a / 113) moves by less than 0.2 % under a -> a + 1, which generates all of Z_113."""
    wave = (2 * math.pi * torch.arange(113, dtype=torch.float64) / 113).cos()
    assert stabiliser(get("C113"), wave, "left").members == (0,)


def test_stabilisers_are_found_where_subgroups_cannot_be_listed() -> None:
    group = get("S8")
    f = (
        group.permutations[:, 0] == 3
    ).double()  # x -> [x(1) = 4]: f(hx) = f(x) for h fixing 4, f(xh) for h fixing 1
    for side, letter in (("left", 3), ("right", 0)):
        found = stabiliser(group, f, side)
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
        autocorrelation(group, torch.zeros(24), side="left")
