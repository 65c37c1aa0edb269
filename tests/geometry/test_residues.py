"""Residues: planted ones are recovered and steer, permuted labels and random activations give
nothing."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.residues import (
    residue_features,
    residue_scan,
    steer_residues,
)
from mechinterp_toolkit.stats import calibration_limit

D = 32
NUMBERS = torch.arange(100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = normal(*shape, seed=seed)
    return rows / rows.norm(dim=1, keepdim=True)


# --- features ------------------------------------------------------------------------------------

ONES, TENS = unit(10, D, seed=3), unit(10, D, seed=4)


def digits(noise: float = 0.1, ones: torch.Tensor = ONES, seed: int = 0) -> torch.Tensor:
    """Numbers 0 to 99 as direction of the last digit + direction of the tens + noise of this
    norm."""
    return (
        ones[NUMBERS % 10] + TENS[NUMBERS // 10] + noise * normal(100, D, seed=seed) / math.sqrt(D)
    )


def cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    second = second - second.mean(0)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


@pytest.mark.parametrize(("method", "least"), [("mean", 0.95), ("probe", 0.8), ("sae", 0.75)])
def test_planted_residue_directions_are_recovered(method, least):
    found = residue_features(digits(0.3), NUMBERS, 10, method)
    assert found.features.shape == (10, D)
    assert torch.allclose(found.features.norm(dim=1), torch.ones(10, dtype=torch.float64))
    assert float(cosine(found.features, ONES).mean()) > least
    assert float(cosine(found.features, ONES.roll(1, 0)).mean()) < 0.1
    assert found.items.tolist() == [10] * 10


def test_latents_of_a_residue_are_shared_by_its_items_and_not_by_random_sets():
    found = residue_features(
        digits(0.3, 2 * ONES), NUMBERS, 10, "sae"
    )  # else half the items have the tens in front
    assert float(found.share.mean()) > 0.7
    assert float(found.shuffled.mean()) < 0.5 * float(found.share.mean())
    noise = residue_features(normal(100, D), NUMBERS, 10, "sae")
    assert float(noise.share.mean()) <= float(noise.shuffled.mean(1).max())


def test_the_same_seed_trains_the_same_autoencoder():
    first, again, other = (
        residue_features(digits(), NUMBERS, 10, "sae", seed, steps=50, draws=2)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.features, again.features)
    assert not torch.allclose(first.features, other.features)


def test_a_trend_is_in_the_class_means_unless_removed():
    line = NUMBERS.double()[:, None] * unit(1, D, seed=8)
    along = unit(1, D, seed=8)[0]
    kept = residue_features(line + digits(), NUMBERS, 10).features
    removed = residue_features(line + digits(), NUMBERS, 10, detrend=True).features
    assert float(kept[9] @ along) > 0.9
    assert float((removed @ along).abs().max()) < 0.6
    assert float(cosine(removed, ONES).mean()) > float(cosine(kept, ONES).mean()) + 0.2


def test_residues_without_items_or_directions_are_refused():
    with pytest.raises(ToolkitError, match=r"no item has residue \[5, 6\] mod 7"):
        residue_features(normal(5, D), torch.arange(5), 7)
    with pytest.raises(ToolkitError, match="got period=1"):
        residue_features(normal(5, D), torch.arange(5), 1)
    with pytest.raises(ToolkitError, match=r"residues \[0, 1\] have no direction"):
        residue_features(torch.ones(6, D), torch.arange(6), 2)
    with pytest.raises(ToolkitError, match="latents=0"):
        residue_features(normal(6, D), torch.arange(6), 2, "sae", latents=0)


# --- scan ----------------------------------------------------------------------------------------


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


# --- steering ------------------------------------------------------------------------------------


def successor_head(states: torch.Tensor) -> torch.Tensor:
    """Logits of the successor, from the planted last digit and tens."""
    both = states @ torch.linalg.pinv(torch.cat([ONES, TENS]))
    here = both[:, :10][:, NUMBERS % 10] + both[:, 10:][:, NUMBERS // 10]
    return here.roll(1, 1)


@pytest.fixture(scope="module")
def steered():
    return steer_residues(
        digits(0.0),
        NUMBERS,
        residue_features(digits(0.0), NUMBERS, 10).features,
        2.0,
        successor_head,
    )


def test_exchanging_planted_residues_moves_the_answer(steered):
    assert steered.unsteered == 1
    assert float(steered.share.value) > 0.95
    assert float(steered.share.control.mean()) < 0.3
    assert float(steered.shuffled.mean()) < 0.3
    assert steered.used.outcome == "found"


def test_cells_are_all_other_residues_of_the_block(steered):
    # 90 x 9 cells up to 89 have an answer; of 90 to 99 those with target 99 have none, and 99
    # itself has nine targets.
    assert len(steered.item) + steered.left_out == 900
    assert steered.left_out == 9
    first = (steered.item == 23).nonzero()[:, 0]
    assert steered.intended[first].tolist() == [21, 22, 23, 25, 26, 27, 28, 29, 30]
    assert steered.share.n == 100


def test_features_of_other_residues_do_not_steer():
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    features = residue_features(digits(0.0), NUMBERS, 10).features[order]
    result = steer_residues(digits(0.0), NUMBERS, features, 2.0, successor_head)
    assert float(result.share.value) < 0.5
    assert result.used.outcome == "not_found"


def test_random_features_do_not_steer():
    result = steer_residues(digits(0.0), NUMBERS, unit(10, D, seed=30), 2.0, successor_head)
    assert result.used.outcome == "not_found"


def test_a_reader_that_ties_answers_nothing():
    result = steer_residues(
        digits(0.0), NUMBERS, ONES, 2.0, lambda states: torch.zeros(len(states), 100)
    )
    assert result.chosen.unique().tolist() == [-1]
    assert float(result.share.value) == 0
    assert result.used.outcome == "not_found"


def test_the_last_item_of_a_cycle_is_followed_by_the_first():
    months = unit(12, D, seed=6)
    read = lambda states: (states @ torch.linalg.pinv(months)).roll(1, 1)  # noqa: E731
    result = steer_residues(months, torch.arange(12), months, 1.0, read, cyclic=True)
    assert result.left_out == 0
    assert float(result.share.value) == 1
    assert int(result.intended[(result.item == 0) & (result.residue == 11)]) == 0
    assert steer_residues(months, torch.arange(12), months, 1.0, read).left_out == 11


def test_two_residues_have_too_few_permutations():
    result = steer_residues(digits(0.0), NUMBERS, unit(2, D), 1.0, successor_head)
    assert result.used.outcome == "undecided"


def test_what_cannot_be_steered_is_refused():
    with pytest.raises(ToolkitError, match="100 items have 10 different numbers"):
        steer_residues(digits(), NUMBERS % 10, ONES, 1.0, successor_head)
    with pytest.raises(ToolkitError, match="0 cells of 4 items have an answer, 36 have none"):
        steer_residues(normal(4, D), torch.arange(0, 40, 10), ONES, 1.0, successor_head)
    with pytest.raises(ToolkitError, match=r"read gave logits of shape \(100, 5\)"):
        steer_residues(digits(), NUMBERS, ONES, 1.0, lambda states: torch.zeros(len(states), 5))
    with pytest.raises(ToolkitError, match="got 1 features"):
        steer_residues(digits(), NUMBERS, ONES[:1], 1.0, successor_head)
