"""Controls of an erasure, and settings that give some of it up on purpose."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.erase import (
    LeaceFitter,
    optimal_linear_shrinkage,
    quality,
    random_eraser,
    shuffled_eraser,
)
from tests.hooks.erasure import (
    classes,
    covariance,
)

# --- controls and shrinkage ----------------------------------------------------------------------


def test_a_random_eraser_projects_off_random_directions():
    eraser = random_eraser(24, 5, seed=1)
    assert eraser.rank == 5
    assert torch.allclose(eraser.P, eraser.P.T, atol=1e-14)
    assert torch.allclose(eraser.P @ eraser.P, eraser.P, atol=1e-14)
    assert torch.equal(random_eraser(24, 5, seed=1).P, eraser.P)
    assert not torch.allclose(random_eraser(24, 5, seed=2).P, eraser.P, atol=0.1)
    mean = torch.arange(24.0)
    assert torch.allclose(random_eraser(24, 5, mean=mean)(mean[None]), mean[None])
    with pytest.raises(ToolkitError, match=r"between 0 and 24 directions.*not 25"):
        random_eraser(24, 25)


@pytest.mark.parametrize("method", ["leace", "orth"])
def test_the_shuffled_control_has_the_rank_and_the_distance_of_the_eraser_and_leaves_the_concept(
    method,
):
    x, z = classes()
    fitter = LeaceFitter.fit(x, z, method=method)
    control = shuffled_eraser(fitter, seed=3)
    assert control.rank == fitter.eraser.rank == 3
    report = quality(control, fitter)
    assert report.distance == pytest.approx(fitter.report.distance, rel=1e-10)
    # 1 is all of it; a stretched control also mirrors what it removes.
    assert report.cross_covariance_left > 0.3
    assert torch.allclose(control(x).mean(0), x.mean(0), atol=1e-11)
    exact = shuffled_eraser(fitter, seed=3, matched=False)
    assert torch.allclose(exact.P @ exact.P, exact.P, atol=1e-11)


@pytest.mark.parametrize("method", ["leace", "orth"])
def test_the_shuffled_control_moves_rows_as_shuffled_labels_do(method):
    x, z = classes(800, d=10)
    fitter = LeaceFitter.fit(x, z, method=method)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.tensor(
        [
            LeaceFitter.fit(
                x, z[torch.randperm(800, generator=generator)], method=method
            ).report.distance
            for _ in range(150)
        ]
    )
    drawn = torch.tensor(
        [
            quality(shuffled_eraser(fitter, seed=s, matched=False), fitter).distance
            for s in range(150)
        ]
    )
    error = ((shuffled.var() + drawn.var()) / 150).sqrt()
    # One chance in 10,000 for equal means.
    assert (shuffled.mean() - drawn.mean()).abs() < 4 * error
    assert 0.7 < shuffled.std() / drawn.std() < 1.4  # the ratio's standard error is 0.08


def test_shrinkage_by_hand():
    # tr = 4, p = 2, |S|^2 - tr^2 / p = 2, tr^2 / n = 16 / 32: three quarters of S.
    shrunk = optimal_linear_shrinkage(torch.diag(torch.tensor([3.0, 1.0])), 32)
    assert torch.allclose(shrunk, torch.diag(torch.tensor([2.75, 1.25])))


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 10**9])
def test_shrinkage_mixes_within_bounds_and_keeps_the_trace(n):
    x, _ = classes(40, d=24)
    sigma = covariance(x)
    shrunk = optimal_linear_shrinkage(torch.stack([sigma, 5 * sigma]), n)
    target = torch.eye(24, dtype=torch.float64) * sigma.trace() / 24
    weight = ((shrunk[0] - target).norm() / (sigma - target).norm()).item()
    assert 0 <= weight <= 1
    assert torch.allclose(shrunk[0], weight * sigma + (1 - weight) * target, atol=1e-12)
    assert torch.allclose(shrunk[1], 5 * shrunk[0], atol=1e-12)
    assert (weight > 0.999) == (n == 10**9)


def test_shrinking_what_is_isotropic_already_changes_nothing():
    for sigma in (2 * torch.eye(5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)):
        assert torch.equal(optimal_linear_shrinkage(sigma, 100), sigma)


def test_a_threshold_on_correlations_keeps_what_is_below():
    x, z = classes()
    correlations = LeaceFitter.fit(x, z).report.correlations
    between = (correlations[1] + correlations[2]).item() / 2
    report = LeaceFitter.fit(x, z, rank_tol=between).report
    assert report.rank == 2
    assert report.correlations.tolist() == pytest.approx(correlations[:2].tolist())
    assert report.cross_covariance_left > 0.01
