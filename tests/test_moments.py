"""Moments: what streams past in pieces is what one look at all of it would give."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp_toolkit import moments
from mechinterp_toolkit.accumulate import Accumulator
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.moments import Moments
from tests.hooks.erasure import classes, covariance, cross, one_hot


def same_statistics(ours: Moments, theirs: Moments) -> None:
    """Equal but for the order of float64 sums over some thousand rows."""
    assert ours.n == theirs.n
    for name in ("mean_x", "mean_z", "sigma_xx", "sigma_xz", "sigma_zz"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-11, atol=1e-12)


def test_moments_by_hand():
    fed = Moments(2, 2)
    assert isinstance(fed, Accumulator)
    fed.update(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1]))
    fed.update(torch.tensor([[5.0, 2.0]]), torch.tensor([1]))
    # Mean (3, 2); deviations (-2, -2), (0, 2), (2, 0); squared sums 8 and 8, cross sum 4; over 3.
    assert fed.n == 3
    assert fed.mean_x.tolist() == pytest.approx([3, 2])
    assert fed.sigma_xx.tolist() == [pytest.approx([8 / 3, 4 / 3]), pytest.approx([4 / 3, 8 / 3])]
    assert fed.mean_z.tolist() == pytest.approx([1 / 3, 2 / 3])
    means = fed.mean_x[:, None] + fed.sigma_xz / fed.mean_z
    assert means.T.tolist() == [pytest.approx([1, 0]), pytest.approx([4, 3])]


def test_the_statistics_are_means_and_covariances():
    x, z = classes(5000)  # more than one chunk
    fed = Moments(24, 4).update(x, z)
    assert fed.n == 5000
    assert torch.allclose(fed.mean_x, x.mean(0), atol=1e-12)
    assert torch.allclose(fed.mean_z, one_hot(z).mean(0), atol=1e-12)
    assert torch.allclose(fed.sigma_xx, covariance(x), atol=1e-12)
    assert torch.allclose(fed.variance_x, covariance(x).diagonal(), atol=1e-12)
    assert torch.allclose(fed.sigma_xz, cross(x, one_hot(z)), atol=1e-12)
    assert torch.allclose(fed.sigma_zz, covariance(one_hot(z)), atol=1e-12)


def test_without_classes_labels_are_not_looked_at():
    x, z = classes()
    fed, labelled = Moments(24).update(x), Moments(24).update(x, z - 7)
    assert torch.allclose(fed.sigma_xx, covariance(x), atol=1e-12)
    assert torch.equal(fed.sigma_xx, labelled.sigma_xx)
    assert fed.sigma_xz.shape == (24, 0)


def test_blocks_of_products_cover_every_pair_of_features(monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 5)  # does not divide 24
    x, z = classes()
    exact, quick = (Moments(24, 4, dtype=d).update(x, z) for d in (torch.float64, torch.float32))
    assert torch.allclose(exact.sigma_xx, covariance(x), atol=1e-12)
    assert torch.allclose(quick.sigma_xx, covariance(x), atol=1e-5)


@given(st.lists(st.integers(0, 300), max_size=6), st.booleans(), st.integers(0, 99))
@settings(max_examples=25)
def test_batches_may_be_cut_merged_and_permuted(cuts, real, seed):
    x, z = classes(300, d=7)
    labels = one_hot(z) * 3 + 100 if real else z
    order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
    whole, parts = Moments(7, 4).update(x, labels), []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 300], strict=True):
        parts.append(Moments(7, 4).update(x[order][start:stop], labels[order][start:stop]))
    middle = len(parts) // 2
    for part in parts[1:middle]:
        parts[0].merge(part)
    for part in parts[middle + 1 :]:
        parts[middle].merge(part)
    if middle:
        parts[0].merge(parts[middle])
    same_statistics(parts[0], whole)


def test_merging_leaves_the_other_alone_and_shares_nothing_with_it():
    x, z = classes()
    fed, other, untouched = Moments(24, 4), *(Moments(24, 4).update(x, z) for _ in range(2))
    fed.merge(other).update(x + 5, z)
    same_statistics(other, untouched)
    assert fed.n == 6000
    same_statistics(other.merge(Moments(24, 4)), untouched)


def test_a_mean_a_million_times_the_spread_does_not_destroy_the_covariance():
    spread, _ = classes(1000, d=3)
    x = spread + 1e6
    expected = covariance(x - 1e6)  # what float64 still holds of the rows after the shift
    fed = Moments(3)
    for rows in x.split(100):
        fed.update(rows)
    naive = x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))
    # Rows carry 1e-10 of rounding and so does the mean of a batch; the naive sums are near 1e12,
    # where the last place is 1e-4.
    assert torch.allclose(fed.sigma_xx, expected, rtol=0, atol=1e-8)
    assert (naive - expected).abs().max() > 1e-5


def test_float32_activations_are_summed_in_float64():
    x = (classes(5000, d=2)[0] + 1000).float()
    fed = Moments(2)
    for rows in x.split(50):
        fed.update(rows)
    assert fed.sigma_xx.dtype == torch.float64
    # Exact inputs, float64 sums; in float32 the mean alone is off by 1e-5 and more.
    assert torch.allclose(fed.mean_x, x.double().mean(0), rtol=0, atol=1e-10)
    assert torch.allclose(fed.sigma_xx, covariance(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding", [0.0, 1e30, math.nan])
def test_masked_rows_do_not_count_whatever_they_hold(padding):
    x, z = classes(40 * 9)
    x, z = x.reshape(40, 9, 24), z.reshape(40, 9)
    lengths = torch.randint(1, 10, (40, 1), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < lengths
    padded, labels = x.masked_fill(~mask[..., None], padding), z.masked_fill(~mask, -100)
    columns = one_hot(z).masked_fill(~mask[..., None], padding)
    expected = Moments(24, 4).update(x[mask], z[mask])
    same_statistics(Moments(24, 4).update(padded, labels, mask), expected)
    same_statistics(Moments(24, 4).update(padded, columns, mask), expected)


def test_a_label_of_a_prompt_counts_for_all_its_positions():
    x, z = classes(40 * 9)
    x, z = x.reshape(40, 9, 24), z[:40]
    spread = z[:, None].expand(40, 9).reshape(-1)
    expected = Moments(24, 4).update(x.reshape(-1, 24), spread)
    same_statistics(Moments(24, 4).update(x, z), expected)
    same_statistics(Moments(24, 4).update(x, one_hot(z)), expected)
    mask = torch.ones(40, dtype=torch.bool)
    mask[7] = False
    kept = mask[:, None].expand(40, 9).reshape(-1)
    expected = Moments(24, 4).update(x.reshape(-1, 24)[kept], spread[kept])
    same_statistics(Moments(24, 4).update(x, z, mask=mask), expected)


def test_a_batch_that_raises_leaves_the_statistics_as_they_were():
    x, z = classes(9000)
    fed, untouched = Moments(24, 4).update(x, z), Moments(24, 4).update(x, z)
    x[8000, 3] = float("inf")  # in the second chunk
    with pytest.raises(ToolkitError, match="NaN or infinity"):
        fed.update(x, z)
    same_statistics(fed, untouched)


def test_statistics_travel_between_processes_without_their_scratch_memory():
    x, z = classes()
    fed = Moments(24, 4).update(x, z)
    sent = pickle.dumps(fed)
    same_statistics(pickle.loads(sent), fed)
    # The batch alone would be 576,000 bytes.
    assert len(sent) < 2 * 8 * (24 * 24 + 2 * 24 * 4) + 20_000


def test_gradients_are_not_kept():
    x, z = classes()
    assert not Moments(24, 4).update(x.requires_grad_(), z).sigma_xx.requires_grad


@pytest.mark.parametrize(
    ("words", "run"),
    [
        ("at least 1; got 0", lambda x, z: Moments(0)),
        ("float64 or float32, not torch.bfloat16", lambda x, z: Moments(24, dtype=torch.bfloat16)),
        ("no row has been seen", lambda x, z: Moments(24).mean_x),
        ("no row has been seen", lambda x, z: Moments(24).update(x, None, z < 0).sigma_xx),
        ("x has 24 features, but x_dim=23", lambda x, z: Moments(23).update(x)),
        ("z_dim=4 needs labels", lambda x, z: Moments(24, 4).update(x)),
        (r"mask has shape \(5,\)", lambda x, z: Moments(24).update(x, None, z[:5] > 0)),
        ("merges with its own kind", lambda x, z: Moments(24).merge("moments")),
        ("x_dim 24 and 23 do not merge", lambda x, z: Moments(24).merge(Moments(23))),
    ],
)
def test_what_does_not_fit_is_refused(words, run, as_a_user):
    with pytest.raises(ToolkitError, match=words):
        run(*classes())
