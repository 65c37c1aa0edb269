"""Circles: what is found, what only looks like one, and the sizes at which the verdicts change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry import cycle
from mechinterp_toolkit.geometry.circle import fit_circle, harmonic_shares, harmonics, transfer
from mechinterp_toolkit.geometry.closure import closure_limit
from mechinterp_toolkit.geometry.regression import ridge_weights

D, TEMPLATES = 128, 7


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frame(k: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(D, k, seed=seed)).Q.T


def ring(period: int, step: int = 1) -> torch.Tensor:
    angle = 2 * math.pi * step * torch.arange(period, dtype=torch.float64) / period
    return torch.stack([angle.cos(), angle.sin()], 1)


def planted(period: int, share: float, seed: int, *, dimensions: int = 12) -> torch.Tensor:
    """Class means of which `share` of the variance is a circle, the rest random in a few
    dimensions."""
    circle_, rest = (
        ring(period) @ frame(2, seed),
        normal(period, dimensions, seed=seed + 1) @ frame(dimensions, seed + 2),
    )
    rest = rest - rest.mean(0)
    unit = [part / part.square().sum().sqrt() for part in (circle_, rest)]
    return math.sqrt(period) * (math.sqrt(share) * unit[0] + math.sqrt(1 - share) * unit[1])


def prompts(means: torch.Tensor, seed: int, noise: float = 1.0) -> dict[str, torch.Tensor]:
    """Activations of every class in every template, noise of norm `noise` on each."""
    period = len(means)
    rows = means[:, None] + noise / math.sqrt(D) * normal(period, TEMPLATES, D, seed=seed + 9)
    return {
        "acts": rows.flatten(0, 1),
        "labels": torch.arange(period).repeat_interleave(TEMPLATES),
        "unit": torch.arange(TEMPLATES).repeat(period),
    }


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of intervals are not what most of these tests are about."""
    monkeypatch.setattr(cycle, "RESAMPLES", 99)


def fit(means: torch.Tensor, seed: int, draws: int = 5040, **options):
    return fit_circle(**prompts(means, seed), period=len(means), draws=draws, seed=seed, **options)


@pytest.mark.parametrize(("period", "share"), [(7, 0.5), (12, 0.3)])
def test_an_order_is_found_in_nearly_all_runs_at_these_shares(period, share):
    found = sum(
        fit(
            planted(period, share, 100 * seed), seed, draws=999 if period == 12 else 5040
        ).represented.found
        for seed in range(40)
    )
    assert found >= 38  # .95 of 40


@pytest.mark.parametrize("orders", [("natural",), ("natural", "harmonics", "discrete_log")])
def test_random_class_means_have_an_order_no_more_often_than_one_time_in_twenty(orders):
    found = sum(
        fit(planted(7, 0.0, 100 * seed), seed, orders=orders).p <= 0.05 for seed in range(40)
    )
    assert found <= 6  # a right test exceeds this in .3 % of 40 trials


def test_the_p_value_of_seven_classes_is_exact_and_has_its_floor():
    found = fit(planted(7, 1.0, 3), 3)
    assert found.exact
    assert found.p == pytest.approx(14 / 5040)  # rotations and reflections fit as well
    searched = fit(planted(7, 1.0, 3), 3, orders=("natural", "harmonics"))
    assert searched.p == pytest.approx(42 / 5040)  # and so do the three harmonics of each


def test_too_few_draws_decide_nothing_and_say_how_many_it_takes():
    found = fit(planted(12, 1.0, 3), 3, draws=10)
    assert found.represented.outcome == found.ring.outcome == "undecided"
    assert "at least 19 draws are needed" in found.represented.reason
    assert fit(planted(12, 1.0, 3), 3, draws=19).represented.outcome == "found"


@pytest.mark.parametrize("draws", [99, 9999])
def test_five_classes_have_too_few_orders_however_many_are_drawn(draws):
    """Of 120 orders ten score like the right one, so that no p-value lies below .083."""
    found = fit(planted(5, 1.0, 3), 3, draws=draws)
    assert found.represented.outcome == "undecided"
    assert "no more arrangements exist: it takes more units" in found.represented.reason
    assert draws == 99 or found.p == pytest.approx(10 / 120)


def test_orders_that_always_score_alike_count_once():
    alike = {
        ("natural",): 14,
        ("natural", "harmonics"): 42,
        ("natural", "harmonics", "discrete_log"): 12,
    }
    for orders, n in alike.items():
        assert fit(planted(7, 1.0, 3), 3, orders=orders).arrangements == 5040 // n
    powers = [pow(3, k, 7) for k in range(6)]
    means = normal(7, D, seed=8) / math.sqrt(D)
    means[powers] = 2 * ring(6) @ frame(2, 3)
    assert fit(means, 1, orders=("natural", "discrete_log")).p == pytest.approx(
        12 / 5040
    )  # of its logarithm: the fewest


def test_the_fit_in_the_sample_believes_random_means_and_the_held_out_one_does_not():
    means = planted(7, 0.0, 5)
    weights = ridge_weights(means, ring(7), 1e-6)
    fitted = (means - means.mean(0)) @ weights
    assert 1 - (ring(7) - fitted).square().sum() / 7 > 0.99
    assert fit(means, 5).r2.value < 0.3


def test_a_ring_closes():
    assert fit(planted(12, 0.7, 2), 2, draws=999).ring.found


def test_no_closure_to_speak_of_is_no_ring_and_no_number():
    found = fit(planted(12, 1.0, 3), 3, draws=99)
    least = torch.tensor(-5.0, dtype=torch.float64)
    open_ = replace(found, closure=replace(found.closure, value=least, low=least, high=least))
    assert open_.ring.outcome == "not_found"
    assert "-5" not in open_.ring.reason


CURVES = {
    "letters: an arc of 3.8 radians": lambda t: torch.stack([(3.8 * t).cos(), (3.8 * t).sin()], 1),
    "years: a parabola": lambda t: torch.stack([t, (2 * t - 1) ** 2], 1),
    "a cubic": lambda t: torch.stack([t, 2 * (2 * t - 1) ** 2, (2 * t - 1) ** 3], 1),
    "an open helix": lambda t: torch.stack([(6.28 * t).cos(), (6.28 * t).sin(), 3 * t], 1),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("period", [7, 12, 26])
def test_open_curves_are_ordered_and_no_rings(name, period):
    t = torch.arange(period, dtype=torch.float64) / (period - 1)
    curve = CURVES[name](t)
    means = 3 * (curve - curve.mean(0)) @ frame(curve.shape[1], 7)
    found = [fit(means, seed, draws=999) for seed in range(5)]
    assert sum(f.represented.found for f in found) >= 4
    assert not any(f.ring.found for f in found)


@pytest.mark.parametrize("period", [7, 12])
def test_a_ring_with_a_long_line_is_ordered_and_not_shown_closed(period):
    line = torch.linspace(-0.5, 0.5, period, dtype=torch.float64)[:, None]
    with_line = torch.cat([ring(period), 3 * closure_limit(period) * line], 1) @ frame(3, 1)
    found = fit(3 * with_line, 1, draws=999)
    assert found.represented.found
    assert not found.ring.found
    assert found.linear > 0.5  # and the line is said


def test_one_row_per_class_has_an_order_and_no_interval():
    means = planted(7, 1.0, 1)
    found = fit_circle(means, torch.arange(7), 7, draws=5040)
    assert found.represented.found
    assert found.ring.outcome == "undecided"
    assert "has no interval" in found.ring.reason


def test_a_multiplicative_order_is_found_by_its_discrete_logarithm():
    powers = [pow(3, k, 7) for k in range(6)]
    means = normal(7, D, seed=8) / math.sqrt(D)
    means[powers] = 2 * ring(6) @ frame(2, 3)
    assert not fit(means, 1).represented.found
    found = fit(means, 1, orders=("natural", "harmonics", "discrete_log"))
    assert found.represented.found
    assert found.order == "discrete log of base 3"


def test_angles_are_those_of_the_classes_and_what_lies_between_falls_between():
    means = planted(7, 1.0, 4)
    found = fit(means, 4)
    step = 2 * math.pi / 7
    missed = (
        torch.remainder(found.angles(means) - step * torch.arange(7) + math.pi, 2 * math.pi)
        - math.pi
    )
    assert missed.abs().max() < 0.2 * step
    middle = (means[6] + means[0])[None] / 2
    assert found.between(middle, 6, 0) == 1
    assert found.between(middle, 0, 6) == 1
    assert found.between(middle, 2, 3) == 0


def test_a_circle_of_some_templates_gives_the_angles_in_another_and_random_means_do_not():
    found = transfer(**prompts(planted(12, 0.5, 3), 3), period=12)
    assert found.value > 0.9
    assert found.value > found.control.max()
    generator = normal(7 * TEMPLATES, D, seed=2)
    random = transfer(
        generator,
        torch.arange(7).repeat_interleave(TEMPLATES),
        7,
        torch.arange(TEMPLATES).repeat(7),
    )
    assert random.value < random.control.quantile(0.99)


def test_templates_that_do_not_show_every_class_cannot_be_held_out():
    with pytest.raises(ToolkitError, match="two templates or more that show all 7 classes; got 7"):
        transfer(normal(7, 4, seed=0), torch.arange(7), 7, torch.arange(7))


def test_what_cannot_be_judged_is_refused():
    acts = normal(14, 4, seed=0)
    labels = torch.arange(7).repeat(2)
    with pytest.raises(ToolkitError, match="period=4; with fewer than five classes"):
        fit_circle(acts, labels % 4, 4)
    with pytest.raises(
        ToolkitError, match="0 to 7, each at least once; got 0 to 6, 1 of 8 classes"
    ):
        fit_circle(acts, labels, 8)
    with pytest.raises(ToolkitError, match="14 of 14 rows of acts are NaN"):
        fit_circle(acts * torch.nan, labels, 7)
    with pytest.raises(ToolkitError, match="means of all 7 classes are the same"):
        fit_circle(torch.ones(14, 4), labels, 7)


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
