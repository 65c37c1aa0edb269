"""Beside `concept-erasure` 0.2.4, on the same arrays: the same map, and exact where it is not.

Where the two differ the arrays are ordinary ones: a rare class, labels in small units, a residual
stream's large mean and outlier dimensions in float32.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp_toolkit.hooks.erase import (
    LeaceFitter,
    OracleEraser,
    OracleFitter,
    optimal_linear_shrinkage,
)
from tests.hooks.erasure import classes, cross, left_over, one_hot

peer = pytest.importorskip(
    "concept_erasure", reason="concept-erasure, the package compared with, is not installed"
)


def columns(**options: Any) -> tuple[Tensor, Tensor]:
    """Rows around class means, and one-hot labels, which is all that the peer takes."""
    x, z = classes(**options)
    return x, one_hot(z)


def fit_both(x: Tensor, z: Tensor, **options):
    """Return our eraser and the peer's, each from its fitter called with the same words."""
    erasers = []
    for fitter in (LeaceFitter, peer.LeaceFitter):
        fitted = fitter(x_dim=x.shape[1], z_dim=z.shape[1], dtype=x.dtype, **options)
        for start in range(0, len(x), 1000):
            fitted.update(x[start : start + 1000], z[start : start + 1000])
        erasers.append(fitted.eraser)
    return erasers


@pytest.mark.parametrize("shrinkage", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("method", ["leace", "orth"])
def test_the_same_words_give_the_same_map(method, affine, shrinkage):
    x, z = columns()
    ours, theirs = fit_both(x, z, method=method, affine=affine, shrinkage=shrinkage)
    assert torch.allclose(ours.P, theirs.P, rtol=0, atol=1e-10)
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-9)  # rows reach a size of 10
    assert (ours.bias is None) == (theirs.bias is None)


@pytest.mark.parametrize(
    "case", ["fewer rows than dimensions", "repeated dimensions", "rows that sum to zero", "real z"]
)
def test_the_map_is_the_same_where_the_covariance_is_singular_or_the_concept_real(case):
    x, z = columns()
    if case == "fewer rows than dimensions":
        x, z = x[:20], z[:20]
    elif case == "repeated dimensions":
        x = torch.cat([x, x[:, :5]], 1)
    elif case == "rows that sum to zero":
        x = x - x.mean(1, keepdim=True)
    else:
        z = x[:, :3] + z[:, :3]
    ours, theirs = fit_both(x, z, shrinkage=False)
    assert torch.allclose(ours.P, theirs.P, rtol=0, atol=1e-10)


def test_the_oracle_and_the_shrinkage_are_the_same():
    x, z = columns()
    assert torch.allclose(
        OracleEraser.fit(x, z)(x, z), peer.OracleEraser.fit(x, z)(x, z), atol=1e-10
    )
    ours, theirs = (
        fitter(24, 4, dtype=x.dtype).update(x, z).eraser
        for fitter in (OracleFitter, peer.OracleFitter)
    )
    assert torch.allclose(ours(x, z), theirs(x, z), atol=1e-10)
    sigma = cross(x[:60], x[:60])
    assert torch.allclose(
        optimal_linear_shrinkage(sigma, 60), peer.optimal_linear_shrinkage(sigma, 60), atol=1e-12
    )


def test_a_class_of_one_row_in_ten_thousand_is_erased():
    x, z = columns(n=40_000, shares=[0.5, 0.4999, 1e-4])
    ours, theirs = fit_both(x, z)
    assert left_over(theirs(x), x, z) > 0.5
    assert left_over(ours(x), x, z) < 1e-10


def test_labels_in_units_of_a_millionth_are_erased():
    x, z = columns()
    ours, theirs = fit_both(x, 1e-6 * z)
    assert left_over(theirs(x), x, z) == pytest.approx(1)  # nothing was erased
    assert left_over(ours(x), x, z) < 1e-10


def test_under_a_mean_of_ten_thousand_standard_deviations_the_map_is_exact():
    x, z = columns()
    plain, _ = fit_both(x, z)
    far = x + 1e4 * x.std(0)
    (ours,) = [LeaceFitter(24, 4).update(far, z).eraser]
    theirs = peer.LeaceFitter(24, 4, dtype=torch.float64, shrinkage=False).update(far, z).eraser
    assert left_over(ours(far), far, z) < 1e-10
    # The rows moved, so the map must not change; they know 1e-12.
    assert torch.allclose(ours.P, plain.P, atol=1e-9)
    assert not torch.allclose(theirs.P, plain.P, atol=1e-7)


def test_under_a_large_mean_in_float32_the_concept_is_erased():
    x, z = columns()
    far = (x + 1e4 * x.std(0)).float()
    ours = LeaceFitter(24, 4, dtype=torch.float32).update(far, z).eraser
    theirs = peer.LeaceFitter(24, 4, dtype=torch.float32).update(far, z.float()).eraser
    assert left_over(theirs(far), far, z) > 0.1
    # The result is written in steps of 1e4 eps = 1e-3 sd, over 3000 rows.
    assert left_over(ours(far), far, z) < 1e-4
    assert left_over(ours(far.double()), far, z) < 1e-6


def test_three_dimensions_ten_thousand_times_larger_are_erased_with_the_rest_in_float32():
    x, z = columns()
    x[:, :3] *= 1e4
    x, z = x.float(), z.float()
    ours, theirs = fit_both(x, z, shrinkage=False)
    assert left_over(theirs(x), x, z) > 0.3
    assert left_over(ours(x), x, z) < 1e-5  # eps is 1.2e-7
