"""Neurons of an adder fitted in closed form: planted waves, rank, folds over sums."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.neurons import FAMILIES, fit_neurons

A, B = torch.cartesian_prod(torch.arange(30), torch.arange(30)).T


def wave(number: torch.Tensor, period: int, phase: float = 0.3) -> torch.Tensor:
    return (2 * math.pi * number.double() / period + phase).cos()


@pytest.fixture(scope="module")
def fits():
    noise = torch.randn(900, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    neurons = [
        wave(A, 10),
        wave(B, 5),
        wave(A + B, 10) + 0.1 * noise,
        0.1 * A.double() - 2,
        noise,
        0 * noise,
    ]
    return fit_neurons(torch.stack(neurons, 1), A, B, (2, 5, 10))


def test_waves_are_fitted_exactly_and_noise_is_not(fits):
    assert fits.r2[:2].tolist() == pytest.approx([1, 1])
    assert fits.r2[2] > 0.95
    assert fits.r2[3] == pytest.approx(1)
    assert fits.r2[4] < 0.05
    assert fits.variance[5] == 0


def test_each_neuron_loses_its_fit_without_its_own_family(fits):
    assert fits.family[:, :3].argmax(0).tolist() == [0, 1, 2]
    assert fits.family[:, 3].abs().max() < 1e-9  # a line is no wave
    assert len(FAMILIES) == len(fits.family)


def test_the_coefficients_are_amplitude_and_phase(fits):
    cos, sin = (fits.weights[fits.columns.index(f"{f} 10 of a"), 0].item() for f in ("cos", "sin"))
    assert (cos, sin) == (pytest.approx(math.cos(0.3)), pytest.approx(-math.sin(0.3)))


def test_columns_that_are_zero_on_integers_are_left_out(fits):
    assert "cos 2 of a" in fits.columns
    assert "sin 2 of a" not in fits.columns


def test_a_neuron_of_single_sums_is_not_predicted_for_others():
    table = torch.randn(59, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[A + B]
    assert fit_neurons(table[:, None], A, B, (2, 5, 10)).r2[0] < 0.2


def test_too_few_pairs_are_refused():
    with pytest.raises(ToolkitError, match="got 10 pairs with 10 sums"):
        fit_neurons(torch.zeros(10, 2), A[:10], B[:10])


def test_waves_are_represented_and_noise_is_not(fits):
    noise = torch.randn(900, 80, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert fit_neurons(noise, A, B, (2, 5, 10)).represented.outcome == "not_found"
    assert fits.represented.outcome == "found"
    waves = torch.stack([wave(A, 10, i / 10) + wave(B, 10, i / 7) for i in range(80)], 1)
    found = fit_neurons(waves + 0.5 * noise, A, B, (2, 5, 10))
    assert found.represented.outcome == "found"
    assert found.judged == 64
    assert found.observed > 0.7 > found.null.max()
