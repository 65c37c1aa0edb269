"""Classes read from units left out: against loops, on planted classes, and on none."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.calibration import calibration_limit
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.classes import _NearestMean, _Ridge, read_classes, unit_means


def drawn(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_nearest_mean_of_the_others_is_that_of_a_loop():
    x, label = drawn(12, 5, 0), torch.tensor([0, 1, 2] * 4)
    expected = []
    for i in range(12):
        others = torch.arange(12) != i
        means = torch.stack([x[others & (label == k)].mean(0) for k in range(3)])
        expected.append(int((x[i] - means).square().sum(1).argmin()))
    assert _NearestMean(x).predict(label[None])[0].tolist() == expected


def test_ridge_left_out_is_ridge_fitted_to_the_others():
    x, label = drawn(14, 6, 1), torch.tensor([0, 1] * 7)
    gram = (x - x.mean(0)) @ (x - x.mean(0)).T
    penalty = gram.diagonal().mean()
    expected = []
    for i in range(14):
        others = torch.arange(14) != i
        target = torch.nn.functional.one_hot(label[others]).double()
        centre = x[others].mean(0)
        rows = x[others] - centre
        weight = torch.linalg.solve(
            rows.T @ rows + penalty * torch.eye(6), rows.T @ (target - target.mean(0))
        )
        expected.append(int(((x[i] - centre) @ weight).argmax()))
    assert _Ridge(x).predict(label[None])[0].tolist() == expected


@pytest.mark.parametrize("reader", ["ridge", "nearest_mean"])
def test_planted_classes_are_read_and_shuffled_ones_are_not(reader):
    label = torch.arange(44) % 2
    x = drawn(44, 96, 2)
    direction = torch.nn.functional.normalize(drawn(1, 96, 3), dim=1)
    found = read_classes(
        x + 2.5 * (2 * label[:, None] - 1) * direction, label, reader=reader, draws=199
    )
    assert found.represented.outcome == "found"
    assert found.accuracy.value > 0.75
    assert read_classes(x, label, reader=reader, draws=199).represented.outcome == "not_found"


@pytest.mark.parametrize("reader", ["ridge", "nearest_mean"])
def test_labels_without_meaning_are_rarely_read(reader):
    """Classes of unequal size, in a stream wide enough to separate any labels."""
    label = (torch.arange(40) >= 28).long()
    rejected = sum(
        read_classes(drawn(40, 96, s), label, reader=reader, draws=99, seed=s).p <= 0.05
        for s in range(200)
    )
    assert rejected <= calibration_limit(200)


def test_a_suppressor_helps_the_probe_and_not_the_nearest_mean():
    """Noise along the class' direction is repeated, at .8, along another one that says nothing of
    the class."""
    label = torch.arange(400) % 2
    noise = drawn(400, 2, 4)
    x = torch.stack([(2 * label - 1) + noise[:, 0], 0.8 * noise[:, 0] + 0.6 * noise[:, 1]], 1)
    ridge, nearest = (
        float(read_classes(x, label, reader=r, draws=39).accuracy.value)
        for r in ("ridge", "nearest_mean")
    )
    assert ridge > nearest + 0.05
    assert ridge == pytest.approx(0.952, abs=0.03)  # the Bayes rate of this example


def test_units_carry_their_mean_and_most_frequent_label():
    x = torch.tensor([[1.0], [3.0], [10.0]])
    means, label = unit_means(x, torch.tensor([7, 7, 2]), torch.tensor([1, 1, 0]))
    assert means.flatten().tolist() == [10.0, 2.0]
    assert label.tolist() == [0, 1]


def test_too_few_shuffles_decide_nothing_and_say_how_many_it_takes():
    label = torch.arange(44) % 2
    x = drawn(44, 8, 2) + 9 * label[:, None]
    found = read_classes(x, label, draws=10).represented
    assert found.outcome == "undecided"
    assert "at least 19 draws are needed" in found.reason
    assert read_classes(x, label, draws=19).represented.outcome == "found"


def test_what_cannot_be_left_out_is_refused():
    with pytest.raises(ToolkitError, match=r"classes have \[3, 1\] units"):
        read_classes(drawn(4, 3, 0), torch.tensor([0, 0, 0, 1]))
    with pytest.raises(ToolkitError, match="NaN"):
        read_classes(torch.full((4, 3), torch.nan), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ToolkitError, match="give one each"):
        unit_means(drawn(4, 3, 0), torch.zeros(3).long(), torch.zeros(4).long())
