"""Harmonics of class means: a circle is the first, its double the second."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.geometry.harmonics import harmonic_shares, harmonics


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_circle_is_the_first_harmonic_and_its_double_the_second(k):
    angle = 2 * math.pi * k * torch.arange(7, dtype=torch.float64).repeat_interleave(7) / 7
    noise = torch.randn(49, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    acts = torch.stack([angle.cos(), angle.sin()], 1) + 0.02 * noise
    labels, unit = torch.arange(7).repeat_interleave(7), torch.arange(7).repeat(7)
    found = harmonics(acts, labels, 7, unit=unit)
    assert found.value[k - 1] > 0.98
    assert found.value.sum() == pytest.approx(1)
    assert found.value[k - 1] > found.control[:, k - 1].quantile(0.9)
    assert found.low[k - 1] < found.value[k - 1] < found.high[k - 1]


def test_the_alternating_wave_has_no_partner():
    even = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)[:, None]
    assert harmonic_shares(even, 3).tolist() == pytest.approx([0, 0, 1])
