"""Periods of number representations: planted helices are recovered, smooth curves and shuffled
helices are not periodic."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.helix import (
    MODELS,
    fit_helix,
    helix_basis,
    period_scan,
    period_text,
)

D = 48
NUMBERS = torch.arange(100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def helix(noise: float, seed: int = 0, periods: tuple[int, ...] = (2, 5, 10, 100)) -> torch.Tensor:
    """Numbers 0 to 99 on a helix in random directions, every column of the same size."""
    basis = helix_basis(NUMBERS, periods)[:, 1:]
    basis = basis / basis.std(0)
    directions = torch.linalg.qr(normal(D, basis.shape[1], seed=seed)).Q.T
    return basis @ directions + noise * normal(100, D, seed=seed + 1)


def named(fit) -> dict[str, float]:
    return dict(zip(MODELS, fit.r2.tolist(), strict=True))


@pytest.fixture(scope="module")
def planted():
    return fit_helix(helix(0.3), NUMBERS, draws=199)


def test_the_periods_of_a_planted_helix_are_recovered_with_noise(planted):
    assert planted.represented.outcome == "found"
    assert {2, 5, 10} <= set(planted.scan.found)
    assert set(planted.scan.found) <= {
        2,
        5,
        10,
        20,
        50,
        25,
    }  # multiples of a period have separable residues too


def test_the_helix_predicts_held_out_numbers_and_its_rivals_do_not(planted):
    r2 = named(planted)
    # Noise of .3 in 48 dimensions is 4.3 of a variance of 12.3: at most .65 can be predicted.
    assert r2["helix"] > 0.55
    assert r2["helix"] > r2["polynomial"] + 0.3
    assert r2["helix"] > r2["largest circle"] + 0.3
    assert r2["helix of shuffled numbers"] < 0.1
    assert r2["principal components"] > r2["helix"]


def test_four_periods_and_a_line_have_rank_eight(planted):
    assert planted.rank == 8
    assert helix_basis(NUMBERS, (2, 5, 10, 100)).shape == (100, 9)
    assert planted.weights.shape == (9, D)


def test_a_shuffled_helix_has_no_period():
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    assert fit_helix(helix(0.3)[order], NUMBERS, draws=199).represented.outcome == "not_found"


SMOOTH = {
    "a line": lambda t: torch.stack([t, 0 * t], 1),
    "a logarithm": lambda t: torch.stack([(1 + 20 * t).log(), t], 1),
    "a square root": lambda t: torch.stack([t.sqrt(), t**2], 1),
    "half a turn": lambda t: torch.stack([(3 * t).cos(), (3 * t).sin()], 1),
    "a logistic": lambda t: torch.stack([torch.sigmoid(10 * t - 5), t], 1),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_curves_are_not_called_periodic(name):
    curve = SMOOTH[name](NUMBERS.double() / 99)
    rows = 3 * (curve - curve.mean(0)) @ torch.linalg.qr(normal(D, 2)).Q.T
    found = [
        fit_helix(rows + 0.3 * normal(100, D, seed=s), NUMBERS, draws=99, seed=s).scan.found
        for s in range(3)
    ]
    assert all(not (set(one) - {50}) for one in found)


def test_random_activations_have_a_period_no_more_often_than_one_time_in_twenty():
    found = sum(
        period_scan(normal(40, 8, seed=s), torch.arange(40), draws=99, seed=s).p.amin() <= 0.05
        for s in range(40)
    )
    assert found <= 6  # a right test exceeds this in .3 % of 40 trials


def test_what_a_covariate_explains_is_no_period():
    frequency = (NUMBERS % 10 == 0).double()[:, None]
    rows = 3 * frequency @ normal(1, D) + 0.3 * normal(100, D, seed=1)
    assert 10 in period_scan(rows, NUMBERS, draws=199).found
    assert period_scan(rows, NUMBERS, covariates=frequency, draws=199).found == ()


def test_several_prompts_of_a_number_are_one_unit():
    rows, numbers = helix(0.0).repeat(3, 1), NUMBERS.repeat(3)
    once, thrice = period_scan(helix(0.0), NUMBERS, draws=99), period_scan(rows, numbers, draws=99)
    assert torch.allclose(once.share, thrice.share)
    assert torch.equal(once.p, thrice.p)


def test_what_cannot_be_judged_is_refused():
    rows = helix(0.0)
    with pytest.raises(ToolkitError, match="got 10 different numbers; expected at least 20"):
        fit_helix(rows[:10], NUMBERS[:10])
    with pytest.raises(
        ToolkitError, match="period 60 cannot be judged on numbers from 0 to 99: expected 2 to 50"
    ):
        period_scan(rows, NUMBERS, periods=(5, 60))
    short = fit_helix(helix(0.3), NUMBERS, draws=9).represented
    assert short.outcome == "undecided"
    assert "at least 19 draws are needed" in short.reason
    with pytest.raises(ToolkitError, match="at least one period"):
        fit_helix(rows, NUMBERS, ())
    with pytest.raises(ToolkitError, match="100 of 100 rows of acts are NaN"):
        fit_helix(rows * torch.nan, NUMBERS)


def test_periods_that_are_no_whole_numbers_are_found_by_the_part_a_number_falls_in():
    scan = period_scan(
        helix(0.3, periods=(59 / 12, 59 / 21)),
        NUMBERS,
        periods=[59 / k for k in range(3, 30)],
        draws=199,
    )
    assert set(scan.found[:2]) == {59 / 12, 59 / 21}
    assert (
        period_scan(
            normal(100, D), NUMBERS, periods=[59 / k for k in range(3, 30)], draws=199
        ).found
        == ()
    )


def test_periods_are_said_as_whole_numbers_or_parts_of_a_modulus():
    assert [period_text(t) for t in (5, 10.0, 59 / 12, 12 / 5)] == ["5", "10", "59/12", "12/5"]
