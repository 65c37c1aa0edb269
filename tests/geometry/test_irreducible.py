"""Separability and mixture indices: known clouds, exactness, bias, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.irreducible import EPSILON, irreducibility, mixture, separability

N = 4096


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def around(angle: torch.Tensor, noise: float) -> torch.Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1) + noise * normal(len(angle), 2)


def clusters(k: int) -> torch.Tensor:
    return around(2 * math.pi / k * (k * uniform(N)).floor(), 0.1)


def cross(share: float) -> torch.Tensor:
    """A point lies on the first axis with this probability, else on the second."""
    return normal(N, 2) * torch.nn.functional.one_hot((uniform(N) > share).long(), 2)


# S at 10 and 20 bins and M of 4,096 points, computed independently, but for S at 20 bins of the
# cross, which is the mean of 30 draws made with this code (standard deviation .02; a single
# independent figure of .45 lies below all of them).
KNOWN = {
    "gaussian": (normal(N, 2), 0.008, 0.045, 0.093),
    "uniform square": (uniform(N, 2), 0.013, 0.065, 0.115),
    "circle": (around(2 * math.pi * uniform(N), 0.0), 1.49, 2.18, 0.229),
    "circle with noise": (around(2 * math.pi * uniform(N), 0.1), 0.77, 0.94, 0.171),
    "7 clusters": (clusters(7), 1.20, 1.43, 0.222),
    "12 clusters": (clusters(12), 0.80, 1.00, 0.177),
    "60/40 cross": (cross(0.6), 0.32, 0.52, 0.623),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_clouds_have_their_known_indices(name):
    points, s10, s20, m = KNOWN[name]
    assert separability(points)[0] == pytest.approx(
        s10, abs=0.04
    )  # the published bins move with the extreme points
    assert separability(points, bins=20)[0] == pytest.approx(s20, abs=0.06)
    assert mixture(points) == pytest.approx(m, abs=0.02)


def test_the_line_with_most_points_is_found_exactly_in_one_direction():
    x = normal(60, 2)[:, :1] * torch.tensor([[1.0, 0.0]])
    offset = torch.linspace(-4, 4, 400_001, dtype=torch.float64)
    width = EPSILON * (x[:, 0].var(correction=0) + (x[:, 0].mean() - offset) ** 2).sqrt()
    within = ((x[:, :1] - offset).abs() <= width).double().mean(0).max()
    assert mixture(x, directions=1) == pytest.approx(float(within), abs=1e-12)


def test_the_mixture_index_does_not_depend_on_place_and_scale():
    points = normal(300, 2)
    assert mixture(1e-3 * points + 50) == mixture(points)


def test_half_of_the_points_on_a_line_are_a_mixture_of_at_least_one_half():
    points = torch.cat([normal(200, 2), normal(200, 1, seed=2) * torch.tensor([[0.8, 0.6]])])
    assert mixture(points) >= 0.5


@pytest.mark.parametrize("n", [200, 500])
def test_the_bias_of_few_points_is_subtracted(n):
    raw = torch.tensor([irreducibility(normal(n, 2, seed=s)).separability_raw for s in range(20)])
    left = torch.tensor([irreducibility(normal(n, 2, seed=s)).separability for s in range(20)])
    assert raw.mean() > {200: 0.15, 500: 0.06}[n]  # least over rotations of .25 and .085
    assert left.mean() < 0.02  # what is left is the half of a symmetric error that lies above 0


def test_independent_coordinates_are_rejected_no_more_often_than_one_in_twenty():
    rejected = sum(
        irreducibility(uniform(300, 2, seed=s) ** 2, seed=s).p <= 0.05 for s in range(100)
    )
    assert rejected <= 11  # a right test exceeds this in .4 % of 100 trials


def test_a_circle_is_irreducible_and_a_cross_is_a_mixture():
    circle, crossed = irreducibility(KNOWN["circle"][0]), irreducibility(KNOWN["60/40 cross"][0])
    assert circle.p == 1 / 20
    assert circle.score > 1
    assert crossed.mixture > 0.5
    assert crossed.score < 0.2


def test_in_three_dimensions_the_mixture_is_a_lower_bound_that_finds_a_plane_of_points():
    flat = torch.cat([normal(300, 3), normal(700, 3, seed=3) * torch.tensor([1.0, 1.0, 0.0])])
    turned = flat @ torch.linalg.qr(normal(3, 3, seed=4))[0]
    found = irreducibility(turned)
    assert not found.exact
    assert (
        0.65 < found.mixture <= 1
    )  # 700 of 1,000 lie in the plane; sampled directions come close to its normal


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (torch.zeros(19, 2), r"shape \(19, 2\); expected at least 20 rows"),
        (torch.zeros(30, 1), r"shape \(30, 1\)"),
        (torch.full((30, 2), torch.nan), "30 of 30 rows of points are NaN"),
    ],
)
def test_clouds_that_cannot_be_judged_are_refused(points, words):
    with pytest.raises(ToolkitError, match=words):
        irreducibility(points)


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("circle with noise", "found"),
        ("7 clusters", "found"),
        ("gaussian", "not_found"),
        ("60/40 cross", "not_found"),
    ],
)
def test_the_verdict_tells_circles_from_clouds_and_mixtures(name, outcome):
    cloud = irreducibility(KNOWN[name][0][:1000])
    assert cloud.represented.outcome == outcome
    short = irreducibility(KNOWN[name][0][:100], draws=9).represented
    assert short.outcome == "undecided"
    assert "at least 19 draws are needed" in short.reason
