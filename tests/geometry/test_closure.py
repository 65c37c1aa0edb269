"""Closure: what closes, what does not, and the line that opens a ring."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.geometry.closure import closure_limit, closure_of, closure_text


def ring(period: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.arange(period, dtype=torch.float64) / period
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_a_regular_ring_closes_whatever_its_size_and_noise_of_equal_size_leaves_it_alone():
    assert closure_of(ring(12)) == pytest.approx(1)
    apart = torch.cat([0.1 * ring(12), torch.eye(12, dtype=torch.float64)], 1)
    assert closure_of(apart) == pytest.approx(1)


@pytest.mark.parametrize("period", [7, 12])
def test_a_linear_factor_opens_a_ring_at_the_length_that_is_said(period):
    line = torch.linspace(-0.5, 0.5, period, dtype=torch.float64)[:, None]
    limit = closure_limit(period)
    shorter, longer, at = (
        closure_of(torch.cat([ring(period), f * limit * line], 1)) for f in (0.98, 1.02, 1)
    )
    assert shorter > 0.5 > longer
    assert at == pytest.approx(0.5, abs=0.02)


def test_where_closure_is_kept_it_is_said_in_words():
    assert closure_text(0.9, 1.1) == "closure [0.9, 1.1]"
    assert closure_text(-5.0, 3.5, 1.0) == "closure 1 [none, 3.5]"
    assert closure_text(0.2, 5.0) == "closure [0.2, 5 or more]"
    assert (
        closure_text(-5.0, -5.0)
        == "no closure to speak of (neighbours are hardly nearer than classes half a cycle apart)"
    )
