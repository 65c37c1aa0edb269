"""Erasure by hand, on rows where rounding or scale would break it, and as an edit of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechinterp_toolkit.accumulate import Accumulator
from mechinterp_toolkit.hooks.erase import (
    LeaceEraser,
    LeaceFitter,
    quality,
)
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.record import activations, record
from tests.hooks.erasure import (
    CASES,
    EXACT,
    classes,
    cross,
    large_mean,
    left_over,
    one_hot,
    repeated_dimensions,
)

# --- worked by hand ------------------------------------------------------------------------------


# Mean 0, S = [[1, 1], [1, 2]], class means -(1, 1) and (1, 1): C ~ (1, 1), S^-1 C = (1, 0), C' S^-1
# C = 1.
HAND_X = torch.tensor([[-1.0, -2.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
HAND_Z = torch.tensor([0, 0, 1, 1])


def test_two_classes_in_two_dimensions_by_hand():
    eraser = LeaceEraser.fit(HAND_X, HAND_Z)
    assert torch.allclose(
        eraser.P, torch.tensor([[0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64), atol=1e-15
    )
    expected = torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(eraser(HAND_X), expected, atol=1e-15)


def test_the_orthogonal_variant_by_hand():
    eraser = LeaceEraser.fit(HAND_X, HAND_Z, method="orth")
    assert torch.allclose(
        eraser.P, torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64), atol=1e-15
    )


def test_the_report_by_hand():
    report = LeaceFitter.fit(HAND_X, HAND_Z).report
    # Variance 3 falls to 1. x' - x = -(x1, x1) has mean square 2. S^-1/2 C / sd(z) has length 1: z
    # is read off exactly.
    assert report.n == 4
    assert report.rank == 1
    assert report.variance_removed == pytest.approx(2 / 3, abs=1e-14)
    assert report.distance == pytest.approx(2, abs=1e-14)
    assert report.correlations.tolist() == pytest.approx([1], abs=1e-14)
    assert report.cross_covariance_left < 1e-14
    assert report.absent == ()


def test_without_affine_only_the_slope_is_applied():
    eraser = LeaceEraser.fit(HAND_X + torch.tensor([1.0, 0.0]), HAND_Z, affine=False)
    assert eraser.bias is None
    x = torch.tensor([[2.0, 5.0]], dtype=torch.float64)
    assert torch.allclose(eraser(x), torch.tensor([[0.0, 3.0]], dtype=torch.float64), atol=1e-14)


# --- nothing linear is left, however awkward the numbers -----------------------------------------


@pytest.mark.parametrize("method", ["leace", "orth"])
@pytest.mark.parametrize("case", CASES)
def test_no_covariance_with_the_concept_is_left(case, method):
    x, z = CASES[case]()
    columns = one_hot(z) if z.dim() == 1 else z
    fitter = LeaceFitter.fit(x, z, method=method)
    erased = fitter.eraser(x)
    assert cross(erased, columns).norm() < EXACT * cross(x, columns).norm()
    assert left_over(erased, x, columns) < EXACT
    assert fitter.report.cross_covariance_left < EXACT


@pytest.mark.parametrize("shrinkage", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_neither_shrinkage_nor_leaving_out_the_mean_weakens_the_guarantee(shrinkage, affine):
    x, z = classes(n=60, d=24)
    eraser = LeaceEraser.fit(x, z, shrinkage=shrinkage, affine=affine)
    assert left_over(eraser(x), x, one_hot(z)) < EXACT


def test_a_concept_along_a_direction_of_almost_no_variance_is_erased():
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(4000, 24, generator=generator, dtype=torch.float64), torch.arange(4000) % 3
    across = torch.nn.functional.normalize(
        torch.randn(24, generator=generator, dtype=torch.float64), dim=0
    )
    x = x - (x @ across)[:, None] * across + 1e-8 * (z[:, None] - 1) * across
    # The direction's share of variance is 1e-17, below what an eigenvalue can tell from zero. Rows
    # are known to 1e-16 of their size, which is 1e-8 of the concept's.
    assert left_over(LeaceEraser.fit(x, z)(x), x, one_hot(z)) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_activations_are_erased_to_their_rounding(dtype):
    for case in (
        "balanced",
        "class of one row in 10,000",
        "three dimensions 10,000 times larger",
        "repeated dimensions",
    ):
        x, z = CASES[case]()
        x = x.float()
        erased = LeaceEraser.fit(x, z, dtype=dtype)(x)
        assert erased.dtype == torch.float32
        # Eps is 1.2e-7; a whole class or dimension would be 1.
        assert left_over(erased, x, one_hot(z)) < 1e-5, case


def test_float32_products_under_a_large_mean_are_as_good_as_float64():
    x, z = large_mean()
    x = x.float()
    exact = LeaceFitter.fit(x, z)
    quick = LeaceFitter.fit(x, z, dtype=torch.float32)
    assert quality(quick.eraser, exact).cross_covariance_left < 1e-5
    # Variances are about 5, eps is 1.2e-7.
    assert torch.allclose(quick.sigma_xx, exact.sigma_xx, atol=1e-5)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision_activations_are_erased_to_their_rounding(dtype, most):
    x, z = classes()
    x = x.to(dtype)
    eraser = LeaceEraser.fit(x, z)
    erased = eraser(x)
    assert erased.dtype == dtype
    # What is left is the rounding of the result, a part in 2^9 and 2^12 of each number, averaged
    # over rows.
    assert left_over(erased, x, one_hot(z)) < most
    assert left_over(eraser(x.double()), x, one_hot(z)) < EXACT


# --- streaming -----------------------------------------------------------------------------------


def test_the_eraser_is_fitted_anew_after_an_update_or_a_merge_and_only_then():
    x, z = classes()
    fitter = LeaceFitter.fit(x[:1000], z[:1000])
    first = fitter.eraser
    assert fitter.eraser is first
    fitter.update(x[1000:2000], z[1000:2000])
    assert torch.allclose(fitter.eraser.P, LeaceEraser.fit(x[:2000], z[:2000]).P, atol=1e-11)
    fitter.merge(LeaceFitter(24, 4).update(x[2000:], z[2000:]))
    assert torch.allclose(fitter.eraser.P, LeaceEraser.fit(x, z).P, atol=1e-11)
    # An eraser handed out stays what it was.
    assert torch.allclose(first.bias, x[:1000].mean(0), atol=1e-12)


def test_a_merge_with_float32_statistics_is_judged_as_float32():
    x, z = repeated_dimensions()
    merged = LeaceFitter.fit(x, z).merge(LeaceFitter.fit(x, z, dtype=torch.float32))
    # Repeated dimensions are singular only to the rounding of float32; taken for regular they would
    # be noise over noise.
    assert merged.eraser.proj_right.abs().max() < 100
    assert left_over(merged.eraser(x), x, one_hot(z)) < 1e-5


# --- as an edit ----------------------------------------------------------------------------------


def test_the_eraser_gives_a_new_tensor_of_the_same_shape_and_dtype():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    activation = x[:60].reshape(4, 3, 5, 24).float()
    kept = activation.clone()
    erased = eraser(activation, hook=None)
    assert erased.shape == activation.shape
    assert erased.dtype == torch.float32
    assert torch.equal(activation, kept)
    assert torch.allclose(erased.reshape(60, 24).double(), eraser(x[:60]), atol=1e-5)


def test_erasing_by_blocks_in_place_and_with_gradients_is_the_same():
    x, z = classes(6000)
    eraser = LeaceEraser.fit(x, z)
    expected = x - (x - eraser.bias) @ eraser.proj_right.T @ eraser.proj_left.T
    assert torch.allclose(eraser(x), expected, atol=1e-12)
    # Columns one after the other.
    assert torch.allclose(eraser(x.T.contiguous().T), expected, atol=1e-12)
    leaf = x.clone().requires_grad_()
    assert torch.allclose(eraser(leaf), expected, atol=1e-12)
    for dtype, most in (
        (torch.float64, 1e-12),
        (torch.bfloat16, 0.05),
    ):  # numbers up to 10, eps of bfloat16 is 1/128
        again = x.to(dtype)
        assert eraser.erase_(again) is again
        assert torch.allclose(again.double(), expected, atol=most)
    slope = LeaceEraser(eraser.proj_left, eraser.proj_right, None)
    assert torch.allclose(slope(x), x @ eraser.P.T, atol=1e-12)


def test_gradients_flow_through_the_projection():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    leaf = x[:5].clone().requires_grad_()
    direction = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (eraser(leaf) @ direction).sum().backward()
    assert torch.allclose(leaf.grad, (eraser.P.T @ direction).expand(5, 24), atol=1e-12)


def test_class_means_are_equal_at_the_hook_point_of_the_edited_model(wrapped):
    tokens = torch.randint(3, 60, (24, 7), generator=torch.Generator().manual_seed(2))
    name, labels = "blocks.1.hook_resid_pre", tokens % 3
    mask = torch.arange(7) < torch.randint(
        4, 8, (24, 1), generator=torch.Generator().manual_seed(3)
    )
    fitter = LeaceFitter(32, 3)
    assert isinstance(fitter, Accumulator)
    record(wrapped, tokens, {name: fitter}, mask=mask, labels=labels, batch_size=5)
    assert fitter.n == int(mask.sum())

    def class_means(edits: dict[str, Any]) -> Tensor:
        x = activations(wrapped, tokens, (name,), mask=mask, edits=edits)[name][mask]
        return torch.stack([x[labels[mask] == c].mean(0) for c in range(3)])

    before, after = class_means({}), class_means({name: fitter.eraser})
    assert (before - before.mean(0)).abs().max() > 0.01
    # Rounding of float32 sums of some hundred numbers of size 1.
    assert (after - after.mean(0)).abs().max() < 1e-5 * before.abs().max().clamp(min=1)
    with torch.no_grad():
        plain = wrapped.logits(tokens, mask)
        with applied(wrapped, {name: fitter.eraser}):
            edited = wrapped.logits(tokens, mask)
        assert torch.equal(wrapped.logits(tokens, mask), plain)
    assert (edited - plain)[mask].abs().max() > 1e-3


def test_an_eraser_is_saved_and_loaded_bit_by_bit(tmp_path):
    x, z = classes()
    for affine in (True, False):
        eraser = LeaceEraser.fit(x, z, affine=affine).to(dtype=torch.float32)
        eraser.save(tmp_path / "eraser.safetensors")
        again = LeaceEraser.load(tmp_path / "eraser.safetensors")
        assert torch.equal(again.proj_left, eraser.proj_left)
        assert torch.equal(again.proj_right, eraser.proj_right)
        assert (again.bias is None) if eraser.bias is None else torch.equal(again.bias, eraser.bias)
        # A BLAS may sum a product otherwise where the loaded numbers lie otherwise in memory.
        assert torch.allclose(again(x.float()), eraser(x.float()), rtol=1e-5, atol=1e-5)


def test_a_saved_eraser_holds_its_own_numbers_only(tmp_path):
    x, z = classes(d=24)
    LeaceEraser.fit(x, z).save(tmp_path / "eraser.safetensors")
    numbers = 8 * (2 * 3 * 24 + 24)  # a view of a larger tensor would bring all of it along
    assert numbers < (tmp_path / "eraser.safetensors").stat().st_size < numbers + 1000


def test_dtype_and_device_moves_keep_the_map():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    assert eraser.proj_left.dtype == torch.float64
    assert torch.equal(eraser.to("cpu").P, eraser.P)
    small = eraser.to(dtype=torch.float32)
    assert {part.dtype for part in (small.proj_left, small.proj_right, small.bias)} == {
        torch.float32
    }
    assert torch.allclose(small.P.double(), eraser.P, atol=1e-5)
    if torch.cuda.is_available():
        assert torch.allclose(eraser.to("cuda")(x.cuda()).cpu(), eraser(x), atol=1e-12)
        fitter = LeaceFitter.fit(x.cuda(), z.cuda())
        assert fitter.sigma_xx.is_cuda
        assert torch.allclose(fitter.eraser.P.cpu(), eraser.P, atol=1e-10)
