"""Tests of `mechinterp_toolkit.accumulate`: what streams past in pieces is what one look at all of
it would give."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp_toolkit.accumulate import Accumulator, ClassMean, Keep, Mean, Moments, PositionMean
from mechinterp_toolkit.errors import ToolkitError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: torch.Tensor, expected: torch.Tensor, *, within: float = 1e-12) -> None:
    """Equal up to the rounding of float64 sums of some hundred numbers near one, unless more is
    said."""
    torch.testing.assert_close(found, expected, rtol=0, atol=within)


def moments_of(*batches: torch.Tensor) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


EVERY = [Keep, Mean, PositionMean, ClassMean, Moments]


@pytest.mark.parametrize("kind", EVERY)
def test_every_accumulator_can_be_fed(kind: type):
    assert isinstance(kind(), Accumulator)


# --- moments


def test_moments_by_hand():
    moments = moments_of(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[5.0, 2.0]]))
    # Mean (3, 2); deviations (-2, -2), (0, 2), (2, 0); squared sums 8 and 8, cross sum 4; over n -
    # 1 = 2.
    assert moments.n == 3
    assert moments.mean.tolist() == [3.0, 2.0]
    close(moments.covariance, torch.tensor([[4.0, 2.0], [2.0, 4.0]], dtype=torch.float64))


@given(cuts=st.lists(st.integers(0, 200), max_size=8))
@settings(deadline=None, max_examples=30)
def test_moments_in_batches_are_those_of_all_rows(cuts: list[int]):
    x = normal(200, 5) + 3
    edges = [0, *sorted(cuts), 200]  # empty batches among them
    moments = moments_of(*(x[a:b] for a, b in itertools.pairwise(edges)))
    assert moments.n == 200
    close(moments.mean, x.mean(0))
    close(moments.covariance, torch.cov(x.T))


@given(st.integers(1, 60), st.integers(61, 119))
@settings(deadline=None, max_examples=30)
def test_merging_is_associative_and_gives_one_pass(first: int, second: int):
    x, z = normal(120, 4) * 10, torch.arange(120) % 3
    parts = [slice(0, first), slice(first, second), slice(second, 120)]

    def fed(where: slice) -> Moments:
        moments = Moments()
        moments.update(x[where], z[where])
        return moments

    left, right, tail = fed(parts[0]), fed(parts[0]), fed(parts[1])
    left.merge(fed(parts[1]))
    left.merge(fed(parts[2]))
    tail.merge(fed(parts[2]))
    right.merge(tail)
    for merged in (left, right):
        assert merged.n == 120
        close(merged.mean, x.mean(0))
        close(merged.covariance, torch.cov(x.T), within=1e-10)  # entries near 100
        close(merged.class_mean, torch.stack([x[z == k].mean(0) for k in range(3)]))
        assert merged.class_count.tolist() == [40, 40, 40]


def test_merging_leaves_the_other_alone_and_shares_nothing_with_it():
    one, other = Moments(), moments_of(normal(10, 3))
    before = other.covariance
    one.merge(other)
    one.update(normal(10, 3, seed=1) + 5)
    assert torch.equal(other.covariance, before)
    assert (one.n, other.n) == (20, 10)


def test_merging_with_one_that_saw_nothing_changes_nothing():
    moments = moments_of(normal(10, 3))
    before = moments.covariance
    moments.merge(Moments())
    assert torch.equal(moments.covariance, before)


def test_a_mean_a_million_times_the_spread_does_not_destroy_the_covariance():
    spread = (
        normal(1000, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]).double()
    )
    x = spread + 1e6
    expected = torch.cov((x - 1e6).T)  # what float64 still holds of the rows after the shift
    found = moments_of(*x.split(100)).covariance
    naive = (x.T @ x - len(x) * torch.outer(x.mean(0), x.mean(0))) / (len(x) - 1)
    # Rows carry 1e-10 of rounding and so does the mean of a batch; the naive sums are near 1e15,
    # where the last place is 0.1, and are divided by 1,000: errors of 1e-4 and more.
    close(found, expected, within=1e-8)
    assert (naive - expected).abs().max() > 1e-4


def test_float32_activations_are_summed_in_float64():
    x = (normal(5000, 2) + 1000).float()
    moments = moments_of(*x.split(50))
    assert moments.covariance.dtype == torch.float64
    # Exact inputs, float64 sums; in float32 the mean alone is off by 1e-5 and more.
    close(moments.mean, x.double().mean(0), within=1e-10)
    close(moments.covariance, torch.cov(x.double().T), within=1e-10)


def test_total_scatter_is_scatter_between_and_within_classes():
    x, z = normal(60, 3) + torch.arange(60)[:, None] % 4, torch.arange(60) % 4
    moments = Moments()
    moments.update(x, z)
    apart = moments.class_mean - moments.mean
    between = (apart.T * moments.class_count) @ apart
    within = sum(torch.cov(x[z == k].T) * 14 for k in range(4))
    close(moments.covariance * 59, between + within, within=1e-10)  # entries near 100


@pytest.mark.parametrize("padding", [0.0, 1e30, math.nan])
def test_masked_rows_do_not_count_whatever_they_hold(padding: float):
    x, z = normal(4, 6, 3), torch.arange(24).reshape(4, 6) % 2
    mask = torch.arange(6) < torch.tensor([6, 4, 2, 5])[:, None]
    padded = x.masked_fill(~mask[..., None], padding)
    moments, mean, by_class = Moments(), Mean(), ClassMean()
    for accumulator in (moments, mean, by_class):
        accumulator.update(padded, z.masked_fill(~mask, -100), mask)
    rows = x[mask]
    assert moments.n == mean.count.item() == 17
    close(moments.covariance, torch.cov(rows.T))
    close(mean.value, rows.mean(0))
    for found in (moments.class_mean, by_class.value):
        close(found, torch.stack([rows[z[mask] == k].mean(0) for k in (0, 1)]))


def test_a_label_of_a_prompt_counts_for_all_its_positions():
    x, z = normal(4, 3, 2), torch.tensor([0, 1, 1, 0])
    by_prompt, by_row = ClassMean(), ClassMean()
    by_prompt.update(x, z, torch.ones(4, 3, dtype=torch.bool))
    by_row.update(x, z[:, None].expand(4, 3))
    assert torch.equal(by_prompt.value, by_row.value)
    assert by_prompt.count.tolist() == [6, 6]


def test_classes_seen_later_are_added():
    x = normal(6, 2)
    by_class = ClassMean()
    by_class.update(x[:2], torch.tensor([0, 0]))
    by_class.update(x[2:5], torch.tensor([2, 1, 2]))
    by_class.update(x[5:], torch.tensor([0]))  # fewer classes than are known by now
    close(by_class.value, torch.stack([x[[0, 1, 5]].mean(0), x[3], x[[2, 4]].mean(0)]))
    assert by_class.count.tolist() == [3, 1, 2]


def test_an_update_that_raises_changes_nothing():
    moments = Moments()
    moments.update(normal(10, 3), torch.arange(10) % 2)
    before = moments.covariance
    with pytest.raises(ToolkitError):
        moments.update(normal(10, 4), torch.arange(10) % 2)
    with pytest.raises(ToolkitError):
        moments.update(normal(10, 3), torch.arange(10) - 5)
    with pytest.raises(ToolkitError):
        moments.update(normal(10, 3).log(), torch.arange(10) % 2)
    by_class = ClassMean()
    by_class.update(normal(10, 3), torch.arange(10) % 2)
    with pytest.raises(ToolkitError):
        by_class.update(normal(10, 4), torch.arange(10))
    assert by_class.count.tolist() == [5, 5]
    assert moments.n == 10
    assert moments.class_count.tolist() == [5, 5]
    assert torch.equal(moments.covariance, before)


def test_gradients_are_not_kept():
    x = normal(5, 2).requires_grad_()
    keep, moments = Keep(), Moments()
    for accumulator in (keep, moments):
        accumulator.update(x)
    assert not keep.value.requires_grad
    assert not moments.covariance.requires_grad


# --- means


def test_mean_of_heads_keeps_the_feature_axes():
    x = normal(4, 5, 2, 3)  # batch pos head d_head
    mean = Mean()
    mean.update(x[:1], mask=torch.ones(1, 5, dtype=torch.bool))
    mean.update(x[1:], mask=torch.ones(3, 5, dtype=torch.bool))
    close(mean.value, x.mean((0, 1)))
    assert mean.count.item() == 20


def test_position_means_are_over_the_prompts_that_reach_the_position():
    x, mask = normal(3, 4, 2), torch.arange(4) < torch.tensor([4, 3, 1])[:, None]
    mean = PositionMean()
    mean.update(x[:2], mask=mask[:2])
    mean.update(x[2:], mask=mask[2:])
    assert mean.count.tolist() == [3, 2, 2, 1]
    close(mean.value, torch.stack([x[mask[:, p], p].mean(0) for p in range(4)]))


def test_position_means_without_a_mask_are_over_all_prompts():
    x = normal(3, 4, 2)
    mean = PositionMean()
    mean.update(x)
    close(mean.value, x.mean(0))


@pytest.mark.parametrize("kind", [Mean, PositionMean, ClassMean])
def test_merged_means_are_those_of_all_rows(kind: type):
    x, z = normal(9, 4, 2), torch.arange(9) % 3
    whole, left, right = kind(), kind(), kind()
    for accumulator, where in ((whole, slice(None)), (left, slice(0, 2)), (right, slice(2, 9))):
        accumulator.update(x[where], z[where])
    left.merge(kind())
    left.merge(right)
    close(left.value, whole.value)
    assert torch.equal(left.count, whole.count)


def test_a_mean_that_was_read_may_be_edited():
    x, mean = normal(4, 3), Mean()
    mean.update(x)
    mean.value.zero_()
    mean.count.zero_()
    close(mean.value, x.mean(0))


def test_means_of_different_kinds_do_not_merge():
    mean = Mean()
    with pytest.raises(ToolkitError, match="a Mean merges with its own kind, not with a ClassMean"):
        mean.merge(ClassMean())


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
    one, other = Keep(), Keep()
    one.update(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1]))
    other.update(torch.zeros(1, 3, dtype=torch.bfloat16), torch.tensor([2]))
    one.merge(other)
    assert one.value.dtype == torch.bfloat16
    assert one.value.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]
    assert one.z.tolist() == [0, 1, 2]


# --- refusals


@pytest.mark.parametrize("kind", EVERY)
def test_nothing_can_be_read_before_anything_was_fed(kind: type):
    with pytest.raises(ToolkitError, match="no row has been seen yet"):
        _ = kind().mean if kind is Moments else kind().value


def test_a_mask_that_leaves_no_row_is_said_to():
    mean = Mean()
    mean.update(normal(2, 3), mask=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ToolkitError, match="check that the mask leaves rows"):
        _ = mean.value


@pytest.mark.parametrize("kind", EVERY)
def test_a_mask_or_label_of_another_shape_is_refused(kind: type):
    with pytest.raises(ToolkitError, match=r"mask has shape \(3, 4\), but x begins with \(4, 3\)"):
        kind().update(normal(4, 3, 2), torch.arange(4), torch.ones(3, 4, dtype=torch.bool))
    if kind is not PositionMean:  # which has no use for labels
        with pytest.raises(ToolkitError, match=r"z has shape \(5,\), but x begins with \(4"):
            kind().update(normal(4, 3), torch.arange(5))


@pytest.mark.parametrize("kind", [Mean, PositionMean, ClassMean, Moments])
def test_a_row_that_is_not_finite_is_refused(kind: type):
    x = normal(4, 3)
    x[2, 1] = math.inf
    with pytest.raises(ToolkitError, match="a row holds a NaN or infinity"):
        kind().update(x, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("kind", EVERY)
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


def test_moments_need_one_feature_axis():
    with pytest.raises(
        ToolkitError, match=r"has 2 behind its rows. Select a position or a head, or give a mask"
    ):
        Moments().update(normal(4, 3, 2))


def test_position_means_need_positions():
    with pytest.raises(ToolkitError, match="needs x \\[batch pos"):
        PositionMean().update(normal(4))


def test_a_covariance_needs_two_rows():
    with pytest.raises(ToolkitError, match="at least two rows; 1 has been seen"):
        _ = moments_of(normal(1, 3)).covariance


@pytest.mark.parametrize("z", [torch.tensor([0.5, 1.0]), torch.tensor([0, -1])])
def test_labels_must_be_class_numbers(z: torch.Tensor):
    for accumulator in (ClassMean(), Moments()):
        with pytest.raises(ToolkitError, match=r"z holds class numbers 0, 1, .*; got torch"):
            accumulator.update(normal(2, 3), z)


def test_labels_are_given_for_all_batches_or_none():
    moments = Moments()
    moments.update(normal(4, 3), torch.arange(4))
    with pytest.raises(ToolkitError, match="z was given for some of the data only"):
        moments.update(normal(4, 3))
    keep = Keep()
    keep.update(normal(4, 3))
    with pytest.raises(ToolkitError, match="a batch came without z"):
        _ = keep.z


def test_class_means_need_classes():
    moments = moments_of(normal(4, 3))
    for name in ("class_mean", "class_count"):
        with pytest.raises(ToolkitError, match="pass z to update"):
            getattr(moments, name)
    with pytest.raises(ToolkitError, match="pass z to update"):
        ClassMean().update(normal(4, 3))


def test_a_class_or_position_without_rows_has_no_mean():
    by_class, by_position = ClassMean(), PositionMean()
    by_class.update(normal(3, 2), torch.tensor([1, 3, 3]))
    by_position.update(
        normal(2, 3, 2), mask=torch.tensor([[True, False, True], [True, False, False]])
    )
    with pytest.raises(ToolkitError, match=r"classes \[0, 2\] of 4 have no rows"):
        _ = by_class.value
    with pytest.raises(ToolkitError, match=r"positions \[1\] of 3 have no rows"):
        _ = by_position.value
