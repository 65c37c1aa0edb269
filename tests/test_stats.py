"""Tests of `mechinterp_toolkit.stats`: small cases by hand, larger ones by law or by simulation
under a fixed seed."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


# --- p-values


def test_p_value_counts_exceedances_and_ties_among_the_draws_and_the_observed_one():
    observed = torch.tensor([3.0, 5.0, 9.0])
    draws = torch.tensor([[1.0, 5.0, 0.0], [3.0, 6.0, 1.0], [4.0, 7.0, 2.0]])
    # 3 is reached by 3 and 4, 5 by all three, 9 by none: (1 + 2) / 4, (1 + 3) / 4, (1 + 0) / 4.
    assert stats.p_value(observed, draws).tolist() == [0.75, 1.0, 0.25]


def test_p_value_of_an_enumeration_counts_the_observed_draw_once():
    draws = torch.tensor([3.0, 1.0, 2.0, 3.0, 0.0])
    assert stats.p_value(torch.tensor(3.0), draws, exact=True).item() == 2 / 5


def test_every_arrangement_of_an_enumeration_gets_its_rank_as_p_value():
    """The exact test is exact: of the 120 arrangements exactly k have p <= k / 120."""
    shuffled = stats.permutations(5, draws=120, seed=0)
    scores = (normal(5, seed=1)[shuffled.index] * normal(5, seed=2)).sum(1)
    p = stats.p_value(scores, scores[:, None].expand(-1, 120), exact=shuffled.exact)
    assert sorted(p.tolist()) == [k / 120 for k in range(1, 121)]


def test_sums_in_another_order_are_ties():
    one_way, other_way = (0.1 + 0.2) + 0.3, (0.3 + 0.2) + 0.1
    assert one_way > other_way  # the rounding this is about
    draws = torch.tensor([other_way, 0.0], dtype=torch.float64)
    assert (
        stats.p_value(torch.tensor(one_way, dtype=torch.float64), draws, exact=True).item() == 0.5
    )


def test_p_values_are_uniform_under_the_null():
    draws = normal(100, 5000, seed=0)
    p = stats.p_value(draws[0], draws[1:])
    for level in (
        0.01,
        0.05,
        0.1,
        0.25,
        0.5,
        0.9,
    ):  # all attainable with 99 draws, so the rate is exactly the level
        # The 1e-9 is for levels such as 0.1, which are not sums of hundredths in binary.
        assert compatible(int((p <= level + 1e-9).sum()), 5000, level), level


def test_p_value_refuses_numbers_that_are_not_finite():
    with pytest.raises(ToolkitError, match="1 drawn statistics are NaN or infinite"):
        stats.p_value(torch.tensor(0.0), torch.tensor([1.0, math.nan]))
    with pytest.raises(ToolkitError, match="1 observed"):
        stats.p_value(torch.tensor(math.inf), torch.tensor([1.0]))
    with pytest.raises(ToolkitError, match="in 0 draws; expected one draw or more"):
        stats.p_value(torch.tensor(0.0), torch.zeros(0))


def test_p_value_refuses_an_enumeration_without_the_observed_arrangement():
    with pytest.raises(ToolkitError, match="an enumeration contains the observed arrangement"):
        stats.p_value(torch.tensor(3.0), torch.tensor([1.0, 2.0]), exact=True)


# --- many items


def test_max_statistic_compares_each_item_with_the_largest_of_every_draw():
    observed = torch.tensor([3.0, 1.0])
    draws = torch.tensor([[2.0, 0.0], [1.0, 4.0], [0.0, 0.0]])  # largest: 2, 4, 0
    assert stats.max_statistic_p(observed, draws).tolist() == [(1 + 1) / 4, (1 + 2) / 4]


def test_max_statistic_of_one_item_is_its_p_value():
    draws = normal(100, 1, seed=0)
    assert torch.equal(stats.max_statistic_p(draws[0], draws), stats.p_value(draws[0], draws))


def correlated_nulls(runs: int, draws: int, items: int, seed: int) -> torch.Tensor:
    """Statistics with correlation 0.8 between items and no effect: [run, 1 + draw, item]."""
    shared, own = (
        normal(runs, 1 + draws, 1, seed=seed),
        normal(runs, 1 + draws, items, seed=seed + 1),
    )
    return math.sqrt(0.8) * shared + math.sqrt(0.2) * own


@pytest.mark.parametrize("studentise", [False, True])
@pytest.mark.parametrize("draws", [19, 99])
def test_max_statistic_keeps_the_family_wise_error_with_correlated_items(
    studentise: bool, draws: int
):
    runs = correlated_nulls(1000, draws, 20, seed=draws)
    family = sum(
        stats.max_statistic_p(run[0], run[1:], studentise=studentise).min().item() <= 0.05
        for run in runs
    )
    alone = sum(stats.p_value(run[0], run[1:]).min().item() <= 0.05 for run in runs)
    assert compatible(
        family, 1000, 0.05
    )  # both sides: with exchangeable draws the procedure is exact
    assert not stats.calibrated(alone, 1000)  # the problem the correction is there for


def test_max_statistic_over_layers_and_heads_is_that_of_the_flat_items():
    draws = normal(50, 3, 4, seed=0)
    grid = stats.max_statistic_p(draws[0], draws[1:], studentise=True)
    flat = stats.max_statistic_p(draws[0].flatten(), draws[1:].flatten(1), studentise=True)
    assert torch.equal(grid.flatten(), flat)


def test_studentised_p_values_ignore_the_scale_and_origin_of_each_item():
    draws = normal(100, 6, seed=0)
    moved = draws * torch.tensor([1e-3, 1, 10, 1e3, 2, 5]) + torch.tensor([0.0, 5, -3, 1e4, 1, 1])
    assert torch.equal(
        stats.max_statistic_p(draws[0], draws[1:], studentise=True),
        stats.max_statistic_p(moved[0], moved[1:], studentise=True),
    )


def test_studentising_finds_an_effect_in_an_item_with_a_narrow_null():
    draws = normal(999, 2, seed=0) * torch.tensor([100.0, 1.0])
    observed = torch.tensor(
        [0.0, 10.0], dtype=torch.float64
    )  # ten of its standard deviations in the narrow item
    assert stats.max_statistic_p(observed, draws)[1].item() > 0.2
    assert stats.max_statistic_p(observed, draws, studentise=True)[1].item() == 1 / 1000


@pytest.mark.parametrize("studentise", [False, True])
def test_every_arrangement_gets_its_rank_as_exact_max_statistic_p(studentise: bool):
    """Whichever of the 24 arrangements was observed, the best of three items passes at k / 24 in
    exactly k of them."""
    index = stats.permutations(4, draws=24, seed=0).index
    scores = (normal(3, 4, seed=1)[:, index] * normal(4, seed=2)).sum(-1).T  # [draw item]
    best = [
        stats.max_statistic_p(row, scores, exact=True, studentise=studentise).min().item()
        for row in scores
    ]
    assert sorted(best) == [k / 24 for k in range(1, 25)]


def test_an_item_that_never_varies_cannot_be_studentised():
    draws = normal(20, 3, seed=0)
    draws[:, 1] = 0.25
    with pytest.raises(ToolkitError, match="1 of 3 items have the same statistic in every draw"):
        stats.max_statistic_p(draws[0], draws, studentise=True)


def test_benjamini_hochberg_by_hand():
    # Times 4 / rank: 0.04, 0.06, 0.052, 0.8; then each takes the smallest of those with a larger
    # p-value.
    adjusted = stats.benjamini_hochberg(torch.tensor([0.8, 0.01, 0.03, 0.039], dtype=torch.float64))
    torch.testing.assert_close(
        adjusted, torch.tensor([0.8, 0.04, 0.052, 0.052], dtype=torch.float64)
    )


@given(
    st.lists(st.sampled_from([0.001, 0.01, 0.02, 0.05, 0.3, 0.999, 1.0]), min_size=1, max_size=40)
)
@settings(deadline=None, max_examples=50)
def test_benjamini_hochberg_agrees_with_scipy(p: list[float]):
    expected = torch.from_numpy(scipy.stats.false_discovery_control(p))
    # Same products in another order: a few rounding units.
    torch.testing.assert_close(
        stats.benjamini_hochberg(torch.tensor(p, dtype=torch.float64)), expected, rtol=1e-14, atol=0
    )


def test_benjamini_hochberg_keeps_the_shape():
    p = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).clamp(min=1e-3)
    assert torch.equal(stats.benjamini_hochberg(p).flatten(), stats.benjamini_hochberg(p.flatten()))


def test_benjamini_hochberg_refuses_what_is_no_p_value():
    with pytest.raises(ToolkitError, match="2 of 3 p-values lie outside"):
        stats.benjamini_hochberg(torch.tensor([0.0, 0.5, math.nan]))


# --- enough draws


def family_with(at_floor: int, draws: int, n_tests: int) -> torch.Tensor:
    """The best case for a few true effects: all draws exceeded by them, half of the draws by
    everything else."""
    p = torch.full((n_tests,), 0.5, dtype=torch.float64)
    p[:at_floor] = stats.smallest_p(draws)
    return p


def test_two_hundred_draws_over_144_heads_cannot_find_one_head():
    found = {
        k: bool((stats.benjamini_hochberg(family_with(k, 200, 144))[:k] <= 0.05).all())
        for k in (1, 14, 15)
    }
    assert found == {1: False, 14: False, 15: True}
    reason = stats.too_few_draws(200, n_tests=144, procedure="benjamini_hochberg")
    assert reason is not None
    assert "at least 2,879 draws" in reason
    assert stats.too_few_draws(200, n_tests=144, procedure="max_statistic") is None


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_draws_needed_is_the_least_number_with_which_one_effect_passes(alpha: float):
    for n_tests in [*range(1, 60), 144, 384, 36_864]:
        needed = stats.draws_needed(alpha, n_tests, "benjamini_hochberg")
        passes = [
            stats.benjamini_hochberg(family_with(1, d, n_tests))[0].item() <= alpha
            for d in (needed, needed - 1)
        ]
        assert passes == [True, False], n_tests
    assert stats.draws_needed(alpha, 144, "max_statistic") == round(1 / alpha) - 1


def test_an_enumeration_that_is_too_small_asks_for_more_units():
    assert stats.smallest_p(360, exact=True) == 1 / 360
    assert stats.too_few_draws(360, n_tests=12, procedure="max_statistic", exact=True) is None
    reason = stats.too_few_draws(6, n_tests=1, procedure="max_statistic", exact=True)  # 3 classes
    assert reason is not None
    assert "it takes more units" in reason


def test_draws_that_only_repeat_are_not_asked_for():
    assert stats.why_undecided(19) is None
    assert "10 draws is 0.091" in stats.why_undecided(10)
    assert "at least 19 draws are needed" in stats.why_undecided(10, arrangements=20)
    assert stats.why_undecided(999, arrangements=20) is None  # 1 / 20 is 5 %
    assert "level 0.025" in stats.why_undecided(999, arrangements=20, alpha=0.025)
    assert stats.why_undecided(39, alpha=0.025) is None
    for draws in (10, 999):
        assert "no more arrangements exist: it takes more units" in stats.why_undecided(
            draws, arrangements=19
        )


def test_units_are_drawn_with_replacement_as_many_as_there_are():
    times = stats.times_drawn(7, 500, torch.Generator().manual_seed(0))
    assert (times.sum(1) == 7).all()
    # Each unit is left out with chance (6 / 7)^7 = .34; 3,500 counts have a standard error of .008.
    assert float((times == 0).double().mean()) == pytest.approx((6 / 7) ** 7, abs=0.03)


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


def test_draw_counts_are_checked():
    with pytest.raises(ToolkitError, match="alpha in \\(0, 1\\)"):
        stats.draws_needed(5.0, 144, "max_statistic")
    with pytest.raises(ToolkitError, match="at least one test"):
        stats.draws_needed(0.05, 0, "max_statistic")
    with pytest.raises(ToolkitError, match="at least one draw"):
        stats.smallest_p(0)


# --- permutations


def canonical(order: tuple[int, ...]) -> tuple[int, ...]:
    """A closed order rotated to start at 0 and read in the direction of its smaller neighbour."""
    start = order.index(0)
    turned = order[start:] + order[:start]
    return turned if turned[1] < turned[-1] else (0, *reversed(turned[1:]))


def rows(shuffled: stats.Permutations) -> list[tuple[int, ...]]:
    return [tuple(row) for row in shuffled.index.tolist()]


def test_seven_classes_have_360_closed_orders_each_listed_once():
    shuffled = stats.permutations(7, draws=999, seed=0, kind="cyclic_orders")
    assert shuffled.exact
    assert len(shuffled.index) == 360
    assert set(rows(shuffled)) == {canonical(order) for order in itertools.permutations(range(7))}


def test_enumeration_starts_where_the_draws_reach_the_number_of_arrangements():
    every, some = stats.permutations(4, draws=24, seed=0), stats.permutations(4, draws=23, seed=0)
    assert (every.exact, some.exact) == (True, False)
    assert set(rows(every)) == set(itertools.permutations(range(4)))
    assert (0, 1, 2, 3) in rows(every)
    assert some.index.shape == (23, 4)


@pytest.mark.parametrize(("n", "kind"), [(4, "all"), (6, "cyclic_orders")])
def test_random_arrangements_are_uniform_over_all_of_them(n: int, kind: str):
    """The identity included: excluding it would bias p-values."""
    every = set(rows(stats.permutations(n, draws=10_000, seed=0, kind=kind)))
    drawn = [
        row
        for seed in range(300)
        for row in rows(stats.permutations(n, draws=20, seed=seed, kind=kind))
    ]
    counts = [drawn.count(row) for row in every]
    assert sum(counts) == 6000  # nothing else was drawn
    assert scipy.stats.chisquare(counts).pvalue > 1e-4  # one right generator in 10,000 would fail


def test_the_seed_decides_the_random_arrangements():
    first, again, other = (stats.permutations(30, draws=5, seed=seed).index for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_permutations_refuse_too_few_units():
    with pytest.raises(ToolkitError, match="at least 3 units"):
        stats.permutations(2, draws=10, seed=0, kind="cyclic_orders")
    with pytest.raises(ToolkitError, match="one draw"):
        stats.permutations(7, draws=0, seed=0)


def circle_fit(prompts: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Share of the prompts' variance along cosine and sine of the label's angle, per draw: [prompt
    d], [draw prompt]."""
    angle = 2 * math.pi * label.double() / 7
    centred = prompts - prompts.mean(0)
    waves = [(wave - wave.mean(1, keepdim=True)) @ centred for wave in (angle.cos(), angle.sin())]
    return sum((wave**2).sum(1) for wave in waves)


def test_whole_classes_must_be_permuted_where_the_claim_is_about_classes():
    """Random class means, no order: shuffled prompts call it a circle nearly always, permuted
    classes as often as asked."""
    of_prompt = torch.arange(7).repeat_interleave(7)
    orders = stats.permutations(7, draws=999, seed=0, kind="cyclic_orders")
    position = orders.index.argsort(1)  # class -> its place in the order
    by_class = by_prompt = 0
    for run in range(200):
        prompts = normal(7, 50, seed=run)[of_prompt] + normal(49, 50, seed=1000 + run)
        observed = circle_fit(prompts, of_prompt[None])[0]
        classes = stats.p_value(
            observed, circle_fit(prompts, position[:, of_prompt]), exact=orders.exact
        )
        shuffled = of_prompt[stats.permutations(49, draws=99, seed=run).index]
        by_class += classes.item() <= 0.05
        by_prompt += stats.p_value(observed, circle_fit(prompts, shuffled)).item() <= 0.05
    assert by_prompt > 190  # 49 prompts are not 49 units
    assert compatible(by_class, 200, 0.05)
    assert stats.calibrated(by_class)


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


@pytest.mark.parametrize("n", [1, 7, 144])
def test_binomial_interval_agrees_with_scipy(n: int):
    found = stats.binomial_interval(torch.arange(n + 1), n)
    exact = [scipy.stats.binomtest(k, n).proportion_ci(method="exact") for k in range(n + 1)]
    low, high = (torch.tensor([e[side] for e in exact], dtype=torch.float64) for side in (0, 1))
    # scipy finds these roots by bisection to within 2e-12.
    torch.testing.assert_close(found.low, low, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.high, high, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.5, 0.97])
def test_binomial_interval_covers_at_least_95_percent(rate: float):
    low, high = stats.binomial_interval(torch.arange(31), 30)
    chance = torch.from_numpy(scipy.stats.binom.pmf(range(31), 30, rate))
    assert chance[(low <= rate) & (rate <= high)].sum() >= 0.95


def test_binomial_interval_refuses_impossible_counts():
    with pytest.raises(ToolkitError, match="expected at least one trial and 0 to n"):
        stats.binomial_interval(torch.tensor([3, 8]), 7)


# --- calibration and power


def test_eighteen_of_two_hundred_false_findings_are_the_limit():
    assert stats.calibration_limit() == 18
    assert stats.calibrated(18)
    assert not stats.calibrated(19)


def test_asking_for_at_most_five_percent_fails_a_perfect_test_42_percent_of_the_time():
    perfect = scipy.stats.binom(200, 0.05)
    assert round(perfect.sf(10), 2) == 0.42
    assert perfect.sf(stats.calibration_limit()) < 0.01  # ours fails it in 6 of 1,000


@pytest.mark.parametrize(
    ("n", "alpha", "level"), [(1, 0.05, 0.01), (50, 0.1, 0.05), (1000, 0.05, 0.01), (20, 0.9, 0.5)]
)
def test_calibration_limit_is_the_last_count_the_binomial_test_accepts(
    n: int, alpha: float, level: float
):
    limit = stats.calibration_limit(n, alpha=alpha, level=level)
    assert (
        limit == 0 or scipy.stats.binomtest(limit, n, alpha, alternative="greater").pvalue > level
    )
    assert (
        limit == n
        or scipy.stats.binomtest(limit + 1, n, alpha, alternative="greater").pvalue <= level
    )


def test_calibration_limit_refuses_rates_outside_zero_and_one():
    with pytest.raises(ToolkitError, match="rates in \\(0, 1\\)"):
        stats.calibration_limit(200, alpha=5.0)


def test_power_curve_counts_findings_on_the_same_seeds_at_every_strength():
    calls = []

    def run(strength: float, seed: int) -> bool:
        calls.append((strength, seed))
        return torch.rand((), generator=torch.Generator().manual_seed(seed)).item() < strength

    curve = stats.power_curve(run, [0.0, 0.5, 1.0], repeats=100, seed=3)
    seeds = {strength: [s for at, s in calls if at == strength] for strength in (0.0, 0.5, 1.0)}
    assert seeds[0.0] == seeds[0.5] == seeds[1.0]
    assert len(set(seeds[0.0])) == 100
    assert curve.value[[0, 2]].tolist() == [0.0, 1.0]
    assert compatible(round(curve.value[1].item() * 100), 100, 0.5)
    # 95 % limits of 0 of 100: 1 - 0.025^(1/100).
    assert curve.high[0].item() == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-9)
    assert (curve.n, curve.axes, curve.labels) == (
        100,
        ("strength",),
        {"strength": ("0", "0.5", "1")},
    )


def test_power_curve_refuses_nothing_to_run():
    with pytest.raises(ToolkitError, match="0 strengths and 5 repeats"):
        stats.power_curve(lambda strength, seed: True, [], repeats=5, seed=0)


# --- answers

LOGITS = torch.tensor([[5.0, 1.0, 2.0, 9.0, 3.0], [0.0, 4.0, 2.0, 9.0, 3.0]])
ANSWER, CLASS = torch.tensor([2, 1]), torch.tensor([1, 2, 4])


def test_centred_logit_is_the_answer_minus_the_mean_of_its_class():
    # Class logits: 1, 2, 3 with answer 2; 4, 2, 3 with answer 4. Tokens outside the class do not
    # count.
    assert stats.centred_logit(LOGITS, ANSWER, CLASS).tolist() == [0.0, 1.0]
    assert stats.accuracy_among(LOGITS, ANSWER, CLASS).tolist() == [0.0, 1.0]


def test_what_moves_the_whole_class_moves_neither_measure():
    logits = normal(10, 5, seed=0)
    answer = CLASS[torch.arange(10) % 3]
    moved = logits.clone()
    moved[:, CLASS] += normal(10, 1, seed=1)
    # An added constant cancels up to rounding.
    torch.testing.assert_close(
        stats.centred_logit(moved, answer, CLASS),
        stats.centred_logit(logits, answer, CLASS),
        rtol=0,
        atol=1e-12,
    )
    assert torch.equal(
        stats.accuracy_among(moved, answer, CLASS), stats.accuracy_among(logits, answer, CLASS)
    )


def test_centred_logit_passes_gradients():
    logits = LOGITS.clone().requires_grad_()
    stats.centred_logit(logits, ANSWER, CLASS).sum().backward()
    expected = torch.tensor([[0, -1, 2, 0, -1], [0, 2, -1, 0, -1]]) / 3
    torch.testing.assert_close(logits.grad, expected)


def test_a_tie_is_not_a_right_answer():
    assert stats.accuracy_among(torch.zeros(2, 5), ANSWER, CLASS).tolist() == [0.0, 0.0]


def test_answers_and_candidates_are_checked():
    with pytest.raises(ToolkitError, match=r"answers \[3\] are not among the 3 candidates"):
        stats.centred_logit(LOGITS, torch.tensor([3, 1]), CLASS)
    with pytest.raises(ToolkitError, match="at least two candidates, each once"):
        stats.centred_logit(LOGITS, ANSWER, torch.tensor([1, 2, 2]))
    with pytest.raises(ToolkitError, match="at least two candidates"):
        stats.accuracy_among(LOGITS, torch.tensor([1, 1]), torch.tensor([1]))
    with pytest.raises(ToolkitError, match="logit is NaN or infinite"):
        stats.accuracy_among(LOGITS.masked_fill(LOGITS == 3, math.nan), ANSWER, CLASS)


def test_balanced_relabellings_leave_nothing_of_the_classes():
    label = torch.tensor([0] * 12 + [1] * 12)
    drawn = stats.balanced_relabellings(label, draws=50, seed=0)
    assert (drawn.sum(1) == 12).all()
    assert (drawn[:, :12].sum(1) == 6).all()
    assert len(drawn.unique(dim=0)) == 50
    uneven = torch.tensor([0] * 5 + [1] * 9 + [2] * 4)
    drawn = stats.balanced_relabellings(uneven, draws=200, seed=1)
    for k, n in enumerate((5, 9, 4)):
        assert ((drawn == k).sum(1) == n).all()
        for j, m in enumerate((5, 9, 4)):
            inside = (drawn[:, uneven == j] == k).sum(1)
            assert (inside - n * m / 18).abs().max() < 2
    with pytest.raises(ToolkitError, match="1 class cannot be spread"):
        stats.balanced_relabellings(torch.zeros(4).long(), draws=1, seed=0)


def test_an_order_within_groups_moves_rows_among_their_group_only():
    group = torch.tensor([2, 0, 1, 0, 2, 2, 0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([stats.permuted_within(group, generator) for _ in range(200)])
    assert (drawn.sort(1).values == torch.arange(7)).all()
    assert (group[drawn] == group).all()
    assert (drawn[:, 2] == 2).all()
    assert len(drawn.unique(dim=0)) == 36  # every one of the 3! * 3! orders
