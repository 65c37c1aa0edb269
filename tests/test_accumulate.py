"""Means and kept rows: what streams past in pieces is what one look at all of it would give."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.accumulate import Accumulator, Keep, Mean
from mechinterp_toolkit.errors import ToolkitError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of float64 sums of some hundred numbers near one."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Keep, Mean])
def test_every_accumulator_can_be_fed(kind: type):
    assert isinstance(kind(), Accumulator)


@pytest.mark.parametrize("padding", [0.0, 1e30, math.nan])
def test_masked_rows_do_not_count_whatever_they_hold(padding: float):
    x, z = normal(4, 6, 3), torch.arange(24).reshape(4, 6) % 2
    mask = torch.arange(6) < torch.tensor([6, 4, 2, 5])[:, None]
    padded = x.masked_fill(~mask[..., None], padding)
    mean, keep = Mean(), Keep()
    for accumulator in (mean, keep):
        accumulator.update(padded, z.masked_fill(~mask, -100), mask)
    assert mean.count == 17
    close(mean.value, x[mask].mean(0))
    assert torch.equal(keep.value, x[mask])
    assert torch.equal(keep.z, z[mask])


def test_an_update_that_raises_changes_nothing():
    mean, x = Mean(), normal(10, 3)
    mean.update(x)
    for wrong in (normal(10, 4), normal(10, 3).log()):
        with pytest.raises(ToolkitError):
            mean.update(wrong)
    assert mean.count == 10
    close(mean.value, x.mean(0))


def test_gradients_are_not_kept():
    x = normal(5, 2).requires_grad_()
    for accumulator in (Keep(), Mean()):
        accumulator.update(x)
        assert not accumulator.value.requires_grad


def test_float32_activations_are_averaged_in_float64():
    x, mean = (normal(5000, 2) + 1000).float(), Mean()
    for rows in x.split(50):
        mean.update(rows)
    # Exact inputs; in float32 the mean is off by 1e-5 and more.
    torch.testing.assert_close(mean.value, x.double().mean(0), rtol=0, atol=1e-10)


# --- means


def test_mean_of_heads_keeps_the_feature_axes():
    x = normal(4, 5, 2, 3)  # batch pos head d_head
    mean = Mean()
    mean.update(x[:1], mask=torch.ones(1, 5, dtype=torch.bool))
    mean.update(x[1:], mask=torch.ones(3, 5, dtype=torch.bool))
    close(mean.value, x.mean((0, 1)))
    assert mean.count == 20


def test_merged_means_are_those_of_all_rows():
    x, z = normal(9, 4, 2), torch.arange(9) % 3
    whole, left, right = Mean(), Mean(), Mean()
    for mean, rows in ((whole, slice(None)), (left, slice(0, 2)), (right, slice(2, 9))):
        mean.update(x[rows], z[rows])
    left.merge(Mean())
    left.merge(right)
    close(left.value, whole.value)
    assert left.count == whole.count == 9
    assert right.count == 7


def test_a_mean_that_was_read_may_be_edited():
    x, mean = normal(4, 3), Mean()
    mean.update(x)
    mean.value.zero_()
    close(mean.value, x.mean(0))


# --- rows kept


def test_keep_holds_copies_of_what_it_was_fed():
    x = normal(4, 3, 2)
    fed = x.clone()
    keep = Keep()
    keep.update(fed[:1])
    keep.update(fed[1:])
    fed.zero_()  # caches are reused and edited in place
    assert torch.equal(keep.value, x)


def test_keep_with_a_mask_keeps_rows_and_labels_in_order():
    x, z = normal(2, 3, 2), torch.tensor([7, 8])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    keep = Keep()
    keep.update(x, z, mask)
    keep.update(x[:, :2], z, mask[:, :2])  # another length: rows fit all the same
    assert torch.equal(keep.value, torch.stack([x[0, 0], x[0, 2], x[1, 1], x[0, 0], x[1, 1]]))
    assert keep.z.tolist() == [7, 7, 8, 7, 8]


def test_keep_without_a_mask_keeps_the_axes_of_batch_and_labels():
    x, z = normal(4, 3, 2), normal(4, 5)  # a row of five labels for each prompt
    keep = Keep()
    keep.update(x, z)
    assert torch.equal(keep.value, x)
    assert torch.equal(keep.z, z)


def test_keep_leaves_the_dtype_and_merges():
    keep, other = Keep(), Keep()
    keep.update(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1]))
    other.update(torch.zeros(1, 3, dtype=torch.bfloat16), torch.tensor([2]))
    keep.merge(other)
    assert keep.value.dtype == torch.bfloat16
    assert keep.value.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]
    assert keep.z.tolist() == [0, 1, 2]


# --- refusals


@pytest.mark.parametrize("kind", [Keep, Mean])
def test_nothing_can_be_read_before_anything_was_fed(kind: type):
    with pytest.raises(ToolkitError, match="no row has been seen yet"):
        _ = kind().value


def test_a_mask_that_leaves_no_row_is_said_to():
    mean = Mean()
    mean.update(normal(2, 3), mask=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ToolkitError, match="check that the mask leaves rows"):
        _ = mean.value


@pytest.mark.parametrize("kind", [Keep, Mean])
def test_a_mask_or_label_of_another_shape_is_refused(kind: type):
    with pytest.raises(ToolkitError, match=r"mask has shape \(3, 4\), but x begins with \(4, 3\)"):
        kind().update(normal(4, 3, 2), torch.arange(4), torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ToolkitError, match=r"z has shape \(5,\), but x begins with \(4"):
        kind().update(normal(4, 3), torch.arange(5))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_row_that_is_not_finite_is_refused(bad: float):
    x = normal(4, 3)
    x[2, 1] = bad
    with pytest.raises(ToolkitError, match=r"x holds NaN or infinity.*1 of 3 columns, first \[1\]"):
        Mean().update(x)


@pytest.mark.parametrize("kind", [Keep, Mean])
def test_other_features_than_before_are_refused(kind: type):
    accumulator = kind()
    accumulator.update(normal(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ToolkitError, match=r"\(.*2.*\).*\(.*3.*\)"):
        accumulator.update(normal(4, 2), torch.zeros(4, dtype=torch.long))


def test_keep_refuses_another_dtype():
    keep = Keep()
    keep.update(normal(4, 3))
    with pytest.raises(
        ToolkitError, match=r"torch.float32 do not fit the \(3,\) and torch.float64"
    ):
        keep.update(normal(4, 3).float())


def test_labels_are_given_for_all_batches_or_none():
    keep = Keep()
    keep.update(normal(4, 3))
    with pytest.raises(ToolkitError, match="a batch came without z"):
        _ = keep.z
