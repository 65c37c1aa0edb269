"""Residues that can be read off: planted ones are, permuted labels and smooth curves are not."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.calibration import calibration_limit
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.residue_scan import residue_scan

D = 32
NUMBERS = torch.arange(100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = normal(*shape, seed=seed)
    return rows / rows.norm(dim=1, keepdim=True)


ONES, TENS = unit(10, D, seed=3), unit(10, D, seed=4)


def digits(noise: float = 0.1, ones: torch.Tensor = ONES, seed: int = 0) -> torch.Tensor:
    """Numbers 0 to 99 as direction of the last digit + direction of the tens + noise of this
    norm."""
    return (
        ones[NUMBERS % 10] + TENS[NUMBERS // 10] + noise * normal(100, D, seed=seed) / math.sqrt(D)
    )


@pytest.mark.parametrize("period", [2, 7, 10, 12])
def test_a_planted_period_is_found_and_stands_out(period):
    rows = unit(period, D, seed=period)[NUMBERS % period] + 0.6 * normal(
        100, D, seed=1
    ) / math.sqrt(D)
    rows = rows + 300 * (NUMBERS / 99)[:, None] ** 2 * unit(1, D, seed=9)
    scan = residue_scan(rows, NUMBERS, draws=99)
    assert scan.represented.outcome == "found"
    assert scan.best == scan.found[0] == period
    assert all(math.gcd(t, period) > 1 for t in scan.found)
    at = scan.periods.index(period)
    assert float(scan.excess.low[at]) > 0.8 * (1 - 1 / period)
    assert scan.excess.labels["period"][at] == str(period)


def test_a_shuffled_period_is_not_found():
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    scan = residue_scan(digits()[order], NUMBERS, draws=99)
    assert scan.represented.outcome == "not_found"
    assert scan.found == ()


def test_random_activations_are_found_no_more_often_than_one_time_in_twenty():
    runs = [
        residue_scan(normal(60, 16, seed=s), torch.arange(60), draws=59, seed=s).found
        for s in range(60)
    ]
    assert sum(bool(found) for found in runs) <= calibration_limit(60)


@pytest.mark.parametrize(
    "curve", [torch.sqrt, torch.log1p, lambda n: torch.sigmoid(n / 8 - 5), lambda n: (n / 33).cos()]
)
def test_smooth_curves_have_no_residue(curve):
    rows = curve(NUMBERS.double())[:, None] * unit(1, D, seed=2) + 0.05 * normal(100, D, seed=3)
    assert residue_scan(rows, NUMBERS, draws=99).found == ()


def test_long_periods_are_skipped_and_named():
    scan = residue_scan(digits()[:40], NUMBERS[:40], draws=39)
    assert scan.periods == tuple(range(2, 21))
    assert scan.skipped == (21, 22, 23, 24)
    assert "longer than half the range: 21, 22, 23, 24" in scan.represented.reason


def test_several_rows_of_a_number_are_one_unit():
    once = residue_scan(digits(), NUMBERS, (5, 10), draws=39)
    thrice = residue_scan(digits().repeat(3, 1), NUMBERS.repeat(3), (5, 10), draws=39)
    assert torch.allclose(once.excess.value, thrice.excess.value)
    assert thrice.excess.n == 100


def test_what_cannot_be_scanned_is_refused():
    with pytest.raises(ToolkitError, match="got 8 different numbers; expected at least 12"):
        residue_scan(normal(8, D), torch.arange(8))
    with pytest.raises(
        ToolkitError, match=r"got periods 30 for numbers from 0 to 39; .* at most 20"
    ):
        residue_scan(normal(40, D), torch.arange(40), (30,))
    with pytest.raises(ToolkitError, match="40 of 40 rows of acts are NaN"):
        residue_scan(normal(40, D) * torch.nan, torch.arange(40))
    assert residue_scan(normal(40, D), torch.arange(40), draws=9).represented.outcome == "undecided"
