"""Tests of `mechinterp_toolkit.nulls`: small cases by hand, larger ones by law or by simulation."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp_toolkit import nulls
from mechinterp_toolkit.calibration import calibration_limit
from mechinterp_toolkit.errors import ToolkitError


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
    assert nulls.p_value(observed, draws).tolist() == [0.75, 1.0, 0.25]


def test_p_value_of_an_enumeration_counts_the_observed_draw_once():
    draws = torch.tensor([3.0, 1.0, 2.0, 3.0, 0.0])
    assert nulls.p_value(torch.tensor(3.0), draws, exact=True).item() == 2 / 5


def test_every_arrangement_of_an_enumeration_gets_its_rank_as_p_value():
    """The exact test is exact: of the 120 arrangements exactly k have p <= k / 120."""
    shuffled = nulls.permutations(5, draws=120, seed=0)
    scores = (normal(5, seed=1)[shuffled.index] * normal(5, seed=2)).sum(1)
    p = nulls.p_value(scores, scores[:, None].expand(-1, 120), exact=shuffled.exact)
    assert sorted(p.tolist()) == [k / 120 for k in range(1, 121)]


def test_sums_in_another_order_are_ties():
    one_way, other_way = (0.1 + 0.2) + 0.3, (0.3 + 0.2) + 0.1
    assert one_way > other_way  # the rounding this is about
    draws = torch.tensor([other_way, 0.0], dtype=torch.float64)
    assert (
        nulls.p_value(torch.tensor(one_way, dtype=torch.float64), draws, exact=True).item() == 0.5
    )


def test_p_values_are_uniform_under_the_null():
    draws = normal(100, 5000, seed=0)
    p = nulls.p_value(draws[0], draws[1:])
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
        nulls.p_value(torch.tensor(0.0), torch.tensor([1.0, math.nan]))
    with pytest.raises(ToolkitError, match="1 observed"):
        nulls.p_value(torch.tensor(math.inf), torch.tensor([1.0]))
    with pytest.raises(ToolkitError, match="in 0 draws; expected one draw or more"):
        nulls.p_value(torch.tensor(0.0), torch.zeros(0))


def test_p_value_refuses_an_enumeration_without_the_observed_arrangement():
    with pytest.raises(ToolkitError, match="an enumeration contains the observed arrangement"):
        nulls.p_value(torch.tensor(3.0), torch.tensor([1.0, 2.0]), exact=True)


# --- many items


def test_max_statistic_compares_each_item_with_the_largest_of_every_draw():
    observed = torch.tensor([3.0, 1.0])
    draws = torch.tensor([[2.0, 0.0], [1.0, 4.0], [0.0, 0.0]])  # largest: 2, 4, 0
    assert nulls.max_statistic_p(observed, draws).tolist() == [(1 + 1) / 4, (1 + 2) / 4]


def test_max_statistic_of_one_item_is_its_p_value():
    draws = normal(100, 1, seed=0)
    assert torch.equal(nulls.max_statistic_p(draws[0], draws), nulls.p_value(draws[0], draws))


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
        nulls.max_statistic_p(run[0], run[1:], studentise=studentise).min().item() <= 0.05
        for run in runs
    )
    alone = sum(nulls.p_value(run[0], run[1:]).min().item() <= 0.05 for run in runs)
    assert compatible(
        family, 1000, 0.05
    )  # both sides: with exchangeable draws the procedure is exact
    assert alone > calibration_limit(1000)  # the problem the correction is there for


def test_max_statistic_over_layers_and_heads_is_that_of_the_flat_items():
    draws = normal(50, 3, 4, seed=0)
    grid = nulls.max_statistic_p(draws[0], draws[1:], studentise=True)
    flat = nulls.max_statistic_p(draws[0].flatten(), draws[1:].flatten(1), studentise=True)
    assert torch.equal(grid.flatten(), flat)


def test_studentised_p_values_ignore_the_scale_and_origin_of_each_item():
    draws = normal(100, 6, seed=0)
    moved = draws * torch.tensor([1e-3, 1, 10, 1e3, 2, 5]) + torch.tensor([0.0, 5, -3, 1e4, 1, 1])
    assert torch.equal(
        nulls.max_statistic_p(draws[0], draws[1:], studentise=True),
        nulls.max_statistic_p(moved[0], moved[1:], studentise=True),
    )


def test_studentising_finds_an_effect_in_an_item_with_a_narrow_null():
    draws = normal(999, 2, seed=0) * torch.tensor([100.0, 1.0])
    observed = torch.tensor(
        [0.0, 10.0], dtype=torch.float64
    )  # ten of its standard deviations in the narrow item
    assert nulls.max_statistic_p(observed, draws)[1].item() > 0.2
    assert nulls.max_statistic_p(observed, draws, studentise=True)[1].item() == 1 / 1000


@pytest.mark.parametrize("studentise", [False, True])
def test_every_arrangement_gets_its_rank_as_exact_max_statistic_p(studentise: bool):
    """Whichever of the 24 arrangements was observed, the best of three items passes at k / 24 in
    exactly k of them."""
    index = nulls.permutations(4, draws=24, seed=0).index
    scores = (normal(3, 4, seed=1)[:, index] * normal(4, seed=2)).sum(-1).T  # [draw item]
    best = [
        nulls.max_statistic_p(row, scores, exact=True, studentise=studentise).min().item()
        for row in scores
    ]
    assert sorted(best) == [k / 24 for k in range(1, 25)]


def test_an_item_that_never_varies_cannot_be_studentised():
    draws = normal(20, 3, seed=0)
    draws[:, 1] = 0.25
    with pytest.raises(ToolkitError, match="1 of 3 items have the same statistic in every draw"):
        nulls.max_statistic_p(draws[0], draws, studentise=True)


def test_benjamini_hochberg_by_hand():
    # Times 4 / rank: 0.04, 0.06, 0.052, 0.8; then each takes the smallest of those with a larger
    # p-value.
    adjusted = nulls.benjamini_hochberg(torch.tensor([0.8, 0.01, 0.03, 0.039], dtype=torch.float64))
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
        nulls.benjamini_hochberg(torch.tensor(p, dtype=torch.float64)), expected, rtol=1e-14, atol=0
    )


def test_benjamini_hochberg_keeps_the_shape():
    p = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).clamp(min=1e-3)
    assert torch.equal(nulls.benjamini_hochberg(p).flatten(), nulls.benjamini_hochberg(p.flatten()))


def test_benjamini_hochberg_refuses_what_is_no_p_value():
    with pytest.raises(ToolkitError, match="2 of 3 p-values lie outside"):
        nulls.benjamini_hochberg(torch.tensor([0.0, 0.5, math.nan]))


# --- enough draws


def family_with(at_floor: int, draws: int, n_tests: int) -> torch.Tensor:
    """The best case for a few true effects: all draws exceeded by them, half of the draws by
    everything else."""
    p = torch.full((n_tests,), 0.5, dtype=torch.float64)
    p[:at_floor] = nulls.smallest_p(draws)
    return p


def test_two_hundred_draws_over_144_heads_cannot_find_one_head():
    found = {
        k: bool((nulls.benjamini_hochberg(family_with(k, 200, 144))[:k] <= 0.05).all())
        for k in (1, 14, 15)
    }
    assert found == {1: False, 14: False, 15: True}
    reason = nulls.why_undecided(200, n_tests=144)
    assert reason is not None
    assert "above the level 0.05 / 144 tests; at least 2,879 draws" in reason
    assert nulls.why_undecided(200) is None  # of a maximum statistic over as many


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_draws_needed_is_the_least_number_with_which_one_effect_passes(alpha: float):
    for n_tests in [*range(1, 60), 144, 384, 36_864]:
        needed = nulls.draws_needed(alpha, n_tests)
        passes = [
            nulls.benjamini_hochberg(family_with(1, d, n_tests))[0].item() <= alpha
            for d in (needed, needed - 1)
        ]
        assert passes == [True, False], n_tests
    assert nulls.draws_needed(alpha) == round(1 / alpha) - 1


def test_an_enumeration_that_is_too_small_asks_for_more_units():
    assert nulls.smallest_p(360, exact=True) == 1 / 360
    assert nulls.why_undecided(360, arrangements=360) is None
    reason = nulls.why_undecided(99, arrangements=6)  # 3 classes
    assert reason is not None
    assert "of 6 arrangements is 0.17, above the level 0.05;" in reason
    assert "it takes more units" in reason


def test_draws_that_only_repeat_are_not_asked_for():
    assert nulls.why_undecided(19) is None
    assert "10 draws is 0.091" in nulls.why_undecided(10)
    assert "at least 19 draws are needed" in nulls.why_undecided(10, arrangements=20)
    assert nulls.why_undecided(999, arrangements=20) is None  # 1 / 20 is 5 %
    assert "level 0.025" in nulls.why_undecided(999, arrangements=20, alpha=0.025)
    assert nulls.why_undecided(39, alpha=0.025) is None
    for draws in (10, 999):
        assert "no more arrangements exist: it takes more units" in nulls.why_undecided(
            draws, arrangements=19
        )


def test_draw_counts_are_checked():
    with pytest.raises(ToolkitError, match="alpha in \\(0, 1\\)"):
        nulls.draws_needed(5.0, 144)
    with pytest.raises(ToolkitError, match="at least one test"):
        nulls.draws_needed(0.05, 0)
    with pytest.raises(ToolkitError, match="at least one draw"):
        nulls.smallest_p(0)


# --- permutations


def canonical(order: tuple[int, ...]) -> tuple[int, ...]:
    """A closed order rotated to start at 0 and read in the direction of its smaller neighbour."""
    start = order.index(0)
    turned = order[start:] + order[:start]
    return turned if turned[1] < turned[-1] else (0, *reversed(turned[1:]))


def rows(shuffled: nulls.Permutations) -> list[tuple[int, ...]]:
    return [tuple(row) for row in shuffled.index.tolist()]


def test_seven_classes_have_360_closed_orders_each_listed_once():
    shuffled = nulls.permutations(7, draws=999, seed=0, kind="cyclic_orders")
    assert shuffled.exact
    assert len(shuffled.index) == 360
    assert set(rows(shuffled)) == {canonical(order) for order in itertools.permutations(range(7))}


def test_enumeration_starts_where_the_draws_reach_the_number_of_arrangements():
    every, some = nulls.permutations(4, draws=24, seed=0), nulls.permutations(4, draws=23, seed=0)
    assert (every.exact, some.exact) == (True, False)
    assert set(rows(every)) == set(itertools.permutations(range(4)))
    assert (0, 1, 2, 3) in rows(every)
    assert some.index.shape == (23, 4)


@pytest.mark.parametrize(("n", "kind"), [(4, "all"), (6, "cyclic_orders")])
def test_random_arrangements_are_uniform_over_all_of_them(n: int, kind: str):
    """The identity included: excluding it would bias p-values."""
    every = set(rows(nulls.permutations(n, draws=10_000, seed=0, kind=kind)))
    drawn = [
        row
        for seed in range(300)
        for row in rows(nulls.permutations(n, draws=20, seed=seed, kind=kind))
    ]
    counts = [drawn.count(row) for row in every]
    assert sum(counts) == 6000  # nothing else was drawn
    assert scipy.stats.chisquare(counts).pvalue > 1e-4  # one right generator in 10,000 would fail


def test_the_seed_decides_the_random_arrangements():
    first, again, other = (nulls.permutations(30, draws=5, seed=seed).index for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_permutations_refuse_too_few_units():
    with pytest.raises(ToolkitError, match="at least 3 units"):
        nulls.permutations(2, draws=10, seed=0, kind="cyclic_orders")
    with pytest.raises(ToolkitError, match="one draw"):
        nulls.permutations(7, draws=0, seed=0)


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
    orders = nulls.permutations(7, draws=999, seed=0, kind="cyclic_orders")
    position = orders.index.argsort(1)  # class -> its place in the order
    by_class = by_prompt = 0
    for run in range(200):
        prompts = normal(7, 50, seed=run)[of_prompt] + normal(49, 50, seed=1000 + run)
        observed = circle_fit(prompts, of_prompt[None])[0]
        classes = nulls.p_value(
            observed, circle_fit(prompts, position[:, of_prompt]), exact=orders.exact
        )
        shuffled = of_prompt[nulls.permutations(49, draws=99, seed=run).index]
        by_class += classes.item() <= 0.05
        by_prompt += nulls.p_value(observed, circle_fit(prompts, shuffled)).item() <= 0.05
    assert by_prompt > 190  # 49 prompts are not 49 units
    assert compatible(by_class, 200, 0.05)
    assert by_class <= calibration_limit()


def test_balanced_relabellings_leave_nothing_of_the_classes():
    label = torch.tensor([0] * 12 + [1] * 12)
    drawn = nulls.balanced_relabellings(label, draws=50, seed=0)
    assert (drawn.sum(1) == 12).all()
    assert (drawn[:, :12].sum(1) == 6).all()
    assert len(drawn.unique(dim=0)) == 50
    uneven = torch.tensor([0] * 5 + [1] * 9 + [2] * 4)
    drawn = nulls.balanced_relabellings(uneven, draws=200, seed=1)
    for k, n in enumerate((5, 9, 4)):
        assert ((drawn == k).sum(1) == n).all()
        for j, m in enumerate((5, 9, 4)):
            inside = (drawn[:, uneven == j] == k).sum(1)
            assert (inside - n * m / 18).abs().max() < 2
    with pytest.raises(ToolkitError, match="1 class cannot be spread"):
        nulls.balanced_relabellings(torch.zeros(4).long(), draws=1, seed=0)


def test_an_order_within_groups_moves_rows_among_their_group_only():
    group = torch.tensor([2, 0, 1, 0, 2, 2, 0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([nulls.permuted_within(group, generator) for _ in range(200)])
    assert (drawn.sort(1).values == torch.arange(7)).all()
    assert (group[drawn] == group).all()
    assert (drawn[:, 2] == 2).all()
    assert len(drawn.unique(dim=0)) == 36  # every one of the 3! * 3! orders
