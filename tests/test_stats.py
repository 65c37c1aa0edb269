"""Tests of `mechinterp_toolkit.stats`: small cases by hand, larger ones by law or by simulation
under a fixed seed."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from mechinterp_toolkit import stats
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.results import Estimate


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compatible(count: int, n: int, rate: float) -> bool:
    """Whether a count lies in the two-sided 99.99 % range of a binomial: one right test in 10,000
    would miss it."""
    low, high = scipy.stats.binom.interval(0.9999, n, rate)
    return low <= count <= high


# --- verdicts


@pytest.mark.parametrize(("p", "outcome"), [(0.05, "found"), (0.051, "not_found")])
def test_a_test_alone_is_judged_at_five_percent_and_keeps_its_power(p: float, outcome: str):
    verdict = stats.judge_p(p, "it moves", "shuffled", power=0.9)
    assert (verdict.outcome, verdict.p, verdict.power) == (outcome, p, 0.9)
    assert verdict.reason.startswith("it moves, ")
    undecided = stats.judge_p(p, "it moves", "shuffled", short="draws are few.", power=0.9)
    assert undecided.outcome == "undecided"
    assert undecided.reason == "it moves, but draws are few."
    assert undecided.power is None


def effect_of(value: float, low: float, high: float, draws: int, null: float = 0.0) -> Estimate:
    """An effect in logits with as many draws, all `null`."""
    numbers = (torch.tensor(number, dtype=torch.float64) for number in (value, low, high))
    control = torch.full((draws,), null, dtype=torch.float64)
    return Estimate(*numbers, 9, "logits", "by hand", control=control, control_name="shuffled")


@pytest.mark.parametrize(
    ("effect", "arrangements", "outcome", "words"),
    [
        (effect_of(7.8, 5.0, 10.6, draws=19), None, "found", "it moves, more than shuffled."),
        (
            effect_of(7.8, 5.0, 10.6, draws=10),
            None,
            "undecided",
            "it moves; the smallest p-value of 10 draws is 0.091",
        ),
        (effect_of(7.8, 5.0, 10.6, draws=18), None, "undecided", "at least 19 draws are needed"),
        (effect_of(7.8, 5.0, 10.6, draws=39), 20, "found", "more than shuffled"),
        (
            effect_of(7.8, 5.0, 10.6, draws=39),
            19,
            "undecided",
            "no more arrangements exist: it takes more units",
        ),
        (effect_of(7.8, 5.0, 10.6, draws=19, null=9.0), None, "not_found", "no more than shuffled"),
        (
            effect_of(7.8, 5.0, 10.6, draws=10, null=9.0),
            None,
            "undecided",
            "at least 19 draws are needed",
        ),
        (effect_of(7.8, 0.0, 10.6, draws=19), None, "undecided", "but perhaps below 0.1"),
        (
            effect_of(0.02, 0.0, 0.05, draws=19),
            None,
            "not_found",
            "less than anything of interest (0.1)",
        ),
        (
            effect_of(0.02, 0.0, 0.05, draws=10),
            None,
            "not_found",
            "less than anything of interest (0.1)",
        ),
    ],
)
def test_an_effect_is_judged_by_draws_that_can_decide_and_by_its_size(
    effect, arrangements, outcome, words
):
    verdict = stats.judge_effect(effect, "it moves", "shuffled", 0.1, arrangements=arrangements)
    assert verdict.outcome == outcome
    assert words in verdict.reason
    assert verdict.smallest_effect == 0.1


# --- intervals


def interval(values: torch.Tensor, **options):
    defaults = {"unit_name": "items", "measured": "logits", "seed": 0}
    return stats.bootstrap(values, **(defaults | options))


def test_bootstrap_of_two_units_spans_both():
    """Resampled means are 0, 1/2 and 1 with probability 1/4, 1/2 and 1/4: the outer 2.5 % are 0 and
    1."""
    estimate = interval(torch.tensor([0.0, 1.0]), unit_name="templates")
    assert (estimate.value.item(), estimate.low.item(), estimate.high.item(), estimate.n) == (
        0.5,
        0.0,
        1.0,
        2,
    )
    assert estimate.method == "percentile bootstrap over templates, 999 draws"
    assert estimate.unit == "logits"


def test_units_count_by_their_rows_in_a_mean():
    """Means of 0, 1/4 or 1: three rows of 0 in one unit, one row of 1 in the other, each unit twice
    or both once."""
    estimate = interval(torch.tensor([0.0, 0.0, 0.0, 1.0]), unit=torch.tensor([0, 0, 0, 1]))
    assert (estimate.value.item(), estimate.low.item(), estimate.high.item(), estimate.n) == (
        0.25,
        0.0,
        1.0,
        2,
    )


def test_bootstrap_of_many_units_is_the_normal_interval():
    values = normal(400, seed=0)
    estimate = interval(values, draws=9999)
    error = values.std(correction=0) / 20  # the bootstrap's own variance has n, not n - 1, in it
    # A 2.5 % quantile of 9,999 normal draws has standard error 0.027 of theirs; 0.1 is nearly four.
    assert abs(estimate.high - values.mean() - 1.96 * error) < 0.1 * error
    assert abs(estimate.low - values.mean() + 1.96 * error) < 0.1 * error


def test_rows_of_a_unit_are_resampled_together():
    seen = []

    def spy(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        assert values.shape == (6, 2)  # no row is ever duplicated: a unit drawn twice weighs two
        seen.append(weights)
        return stats.weighted_mean(values, weights)

    estimate = interval(
        normal(6, 2, seed=0), unit=torch.tensor([4, 9, 4, 9, 9, 1]), statistic=spy, axes=("head",)
    )
    weights = torch.cat([w for w in seen if len(w) > 1])
    assert estimate.n == 3
    assert torch.equal(weights[:, 0], weights[:, 2])
    assert torch.equal(weights[:, 1], weights[:, 4])
    assert torch.equal(weights[:, 1], weights[:, 3])
    assert (weights[:, [0, 1, 5]].sum(1) == 3).all()  # three units drawn each time


def test_interval_over_units_covers_where_the_interval_over_rows_does_not():
    unit = torch.arange(20).repeat_interleave(10)
    values = normal(20, 1000, seed=0)[unit] + 0.1 * normal(
        200, 1000, seed=1
    )  # 1,000 experiments with true mean 0
    covered = {}
    for name, units in (("units", unit), ("rows", None)):
        estimate = interval(values, unit=units, axes=("run",))
        covered[name] = int(((estimate.low <= 0) & (estimate.high >= 0)).sum())
    assert (
        900 <= covered["units"] <= 960
    )  # 93 % expected with 20 units; 30 of 1,000 are nearly four binomial sd
    assert covered["rows"] < 600


def neighbour_accuracy(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Leave-one-row-out accuracy of the label (last column) of the nearest other row that is there
    at all."""
    x, label = values[:, :-1], values[:, -1]
    distance = torch.cdist(x, x).fill_diagonal_(math.inf)
    nearest = torch.stack([distance.masked_fill(w == 0, math.inf).argmin(1) for w in weights])
    return (weights * (label[nearest] == label)).sum(1) / weights.sum(1)


def test_a_unit_drawn_twice_is_not_on_both_sides_of_a_fold():
    label = torch.arange(40).remainder(2).double()
    values = torch.cat(
        [normal(40, 10, seed=0), label[:, None]], dim=1
    )  # the label is unrelated to the rest
    resample = torch.randint(40, (40,), generator=torch.Generator().manual_seed(0))
    naive = neighbour_accuracy(values[resample], torch.ones(1, 40, dtype=torch.float64)).item()
    whole = neighbour_accuracy(values, torch.ones(1, 40, dtype=torch.float64)).item()
    estimate = interval(values, statistic=neighbour_accuracy)
    assert naive > 0.7  # copies find each other
    assert estimate.value.item() == whole
    assert estimate.low.item() < 0.5 < estimate.high.item() < 0.9


def test_resampling_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    values = normal(30, 4, seed=0)
    whole = interval(values, axes=("head",))
    monkeypatch.setattr(stats, "WEIGHTS_AT_ONCE", 30 * 7)
    pieces = interval(values, axes=("head",))
    # Matrix products of other sizes may round differently in the last places.
    torch.testing.assert_close(pieces.low, whole.low, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pieces.high, whole.high, rtol=1e-12, atol=1e-12)


def test_bootstrap_keeps_control_axes_and_labels():
    control = normal(99, 2, seed=1)
    estimate = interval(
        normal(8, 2, seed=0),
        axes=("head",),
        labels={"head": ("0.1", "0.2")},
        control=control,
        control_name="order shuffled",
    )
    assert torch.equal(estimate.control, control)
    assert estimate.control_name == "order shuffled"
    assert estimate.label("head", 1) == "0.2"


def test_units_are_drawn_with_replacement_as_many_as_there_are():
    times = stats.times_drawn(7, 500, torch.Generator().manual_seed(0))
    assert (times.sum(1) == 7).all()
    # Each unit is left out with chance (6 / 7)^7 = .34; 3,500 counts have a standard error of .008.
    assert float((times == 0).double().mean()) == pytest.approx((6 / 7) ** 7, abs=0.03)


def test_bootstrap_is_decided_by_its_seed():
    values = normal(20, seed=0)
    assert interval(values, seed=1).low == interval(values, seed=1).low
    assert interval(values, seed=1).low != interval(values, seed=2).low


def test_an_interval_needs_two_units():
    with pytest.raises(
        ToolkitError, match="over templates needs at least two of them, got 1 in 5 rows"
    ):
        interval(normal(5, seed=0), unit=torch.zeros(5, dtype=torch.long), unit_name="templates")
    with pytest.raises(ToolkitError, match="got 0 in 0 rows"):
        interval(torch.zeros(0))


def test_bootstrap_refuses_too_few_draws():
    with pytest.raises(ToolkitError, match="at least 39 draws"):
        interval(normal(5, seed=0), draws=38)


def test_bootstrap_refuses_a_statistic_that_is_not_finite():
    with pytest.raises(ToolkitError, match="leave out rows that are not finite \\(1 values\\)"):
        interval(torch.tensor([1.0, math.nan, 2.0]))

    def needs_the_first_row(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return values[0] / weights[:, 0]

    with pytest.raises(ToolkitError, match="defined when units are missing"):
        interval(torch.tensor([1.0, 3.0, 2.0]), statistic=needs_the_first_row)
