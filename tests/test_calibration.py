"""Calibration counts rejections on null models and judges the count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import scipy.stats
import torch

from mechinterp_toolkit import calibration
from mechinterp_toolkit.calibration import (
    NullCount,
    binomial_interval,
    calibrate,
    calibration_limit,
    power,
)
from mechinterp_toolkit.errors import RegistryError, ToolkitError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.results import Verdict


@dataclass(frozen=True)
class Fake(Finding):
    p: float

    @property
    def represented(self) -> Verdict:
        return Verdict("found" if self.p <= 0.05 else "not_found", "By hand.", p=self.p)

    @property
    def used(self) -> Verdict:
        return Verdict("not_applicable", "Nothing was found.")


@pytest.fixture
def entry(monkeypatch):
    """A registered analysis whose p-value on the null model of a seed is given."""
    from mechinterp_toolkit.model import load_model
    from mechinterp_toolkit.registry import Planted, get_analysis

    base, model = get_analysis("group_fourier"), load_model("toy/s5")

    def use(p_of_seed):
        nulls = {"nulls": lambda seed: Planted(model, (), {"p": p_of_seed(seed)})}
        made = replace(base, function=lambda model, seed, p: Fake(p), twins=nulls)
        monkeypatch.setattr(calibration, "get_analysis", lambda name: made)

    return use


def test_a_test_with_uniform_p_values_passes(entry):
    entry(lambda seed: (seed + 1) / 200)
    result = calibrate("fake")
    assert result.passed
    assert result.rows()[0] == {
        "analysis": "fake",
        "null model": "nulls",
        "verdict": "represented",
        "models": 200,
        "tested": 200,
        "p <= 0.05": 10,
        "found": 10,
        "limit": 18,
        "passed": True,
    }


def test_null_models_can_come_with_the_options_they_need(monkeypatch):
    from mechinterp_toolkit.model import load_model
    from mechinterp_toolkit.registry import Planted, get_analysis

    model = load_model("toy/s5")
    made = replace(
        get_analysis("group_fourier"),
        function=lambda model, seed, shift: Fake(0.5 + shift),
        twins={"nulls": lambda seed: Planted(model, (), {"shift": 0.25})},
    )
    monkeypatch.setattr(calibration, "get_analysis", lambda name: made)
    assert calibrate("fake", models=2).counts[0].rejected == 0
    assert (
        calibrate("fake", models=2, options={"shift": -0.5 + 0.01}).counts[0].rejected == 2
    )  # the caller's word wins


def test_a_test_that_rejects_twice_too_often_fails(entry):
    entry(lambda seed: (seed + 1) / 400)
    result = calibrate("fake")
    assert not result.passed
    assert "FAILED" in result.text()
    assert "20 of 200" in result.text()


def test_a_verdict_that_never_made_a_test_is_not_judged(entry):
    entry(lambda seed: 0.5)
    used = calibrate("fake", models=3).counts[1]
    assert (used.models, used.limit, used.passed) == (0, None, True)


def test_used_is_counted_over_all_models_since_it_is_only_asked_where_something_was_found():
    verdicts = [Verdict("found", "seen", p=0.01)] * 3 + [
        Verdict("not_applicable", "not asked")
    ] * 197
    used, represented = (
        calibration._count("nulls", which, verdicts) for which in ("used", "represented")
    )
    assert (used.models, used.tested, used.limit, used.passed) == (200, 3, 18, True)
    assert (represented.models, represented.tested, represented.passed) == (3, 3, False)
    assert not calibration._count(
        "nulls", "used", [Verdict("found", "seen", p=0.01)] * 19 + verdicts[3:184]
    ).passed


def test_progress_counts_every_model(entry):
    entry(lambda seed: 0.5)
    seen = []
    calibrate(
        "fake",
        models=4,
        seed=7,
        progress=lambda done, total, what: seen.append((done, total, what)),
    )
    assert seen == [(i, 4, "nulls") for i in (1, 2, 3, 4)]


def test_eighteen_of_two_hundred_is_the_limit():
    assert NullCount("x", "represented", 200, 18, 0, 200).passed
    assert not NullCount("x", "represented", 200, 19, 0, 200).passed


def test_an_analysis_without_null_models_cannot_be_calibrated(monkeypatch):
    from mechinterp_toolkit.registry import get_analysis

    bare = replace(get_analysis("group_fourier"), twins={})
    monkeypatch.setattr(calibration, "get_analysis", lambda name: bare)
    with pytest.raises(RegistryError, match="declares no null models"):
        calibrate("group_fourier")


# --- power ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recovered(Fake):
    at: str

    @property
    def used(self) -> Verdict:
        return Verdict("found" if self.p <= 0.01 else "not_found", "By hand.", p=self.p)

    @property
    def locations(self) -> tuple[str, ...]:
        return (self.at, "elsewhere")


@pytest.fixture
def planting(monkeypatch):
    """An analysis that finds a structure of strength 0.5, sees it used at 1, and looks in the wrong
    place at 0.75."""
    from mechinterp_toolkit.model import load_model
    from mechinterp_toolkit.registry import Planted, get_analysis

    model, runs = load_model("toy/s5"), []

    def function(model, *, seed, strength):
        runs.append((strength, seed))
        p = {0.25: 0.5, 0.5: 0.05, 0.75: 0.01, 1.0: 0.01}[strength]
        return Recovered(p, "elsewhere" if strength == 0.75 else "here")

    made = replace(
        get_analysis("group_fourier"),
        function=function,
        planted=lambda strength, seed: Planted(model, ("here",), {"strength": strength}),
    )
    monkeypatch.setattr(calibration, "get_analysis", lambda name: made)
    return runs


def test_power_counts_what_was_found_where_it_was_planted(planting):
    result = power("fake", models=3)
    assert result.represented.value.tolist() == [0, 1, 0, 1]
    assert result.used.value.tolist() == [0, 0, 0, 1]
    assert result.represented.labels["strength"] == ("0.25", "0.5", "0.75", "1")
    assert (
        "strength 1: represented 1 [0.292, 1], used 1 [0.292, 1]" in result.text()
    )  # 0.025 ** (1 / 3) = 0.292
    assert [row["verdict"] for row in result.rows()] == ["represented"] * 4 + ["used"] * 4


def test_power_runs_each_model_once_and_the_same_ones_at_every_strength(planting):
    seen = []
    power(
        "fake",
        strengths=[0.5, 1.0],
        models=4,
        seed=3,
        progress=lambda done, total, what: seen.append((done, total, what)),
    )
    assert len(planting) == 8
    assert [seed for strength, seed in planting if strength == 0.5] == [
        seed for strength, seed in planting if strength == 1
    ]
    assert seen[-1] == (8, 8, "strength 1")


def test_the_share_of_models_has_an_exact_interval_along_the_strength(planting):
    result = power("fake", strengths=[0.25, 0.5], models=100).represented
    assert result.value.tolist() == [0.0, 1.0]
    # 95 % limits of 0 of 100: 1 - 0.025^(1/100).
    assert result.high[0].item() == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-9)
    assert (result.n, result.axes) == (100, ("strength",))
    assert result.labels == {"strength": ("0.25", "0.5")}
    assert len({seed for _, seed in planting}) == 100


def test_power_refuses_nothing_to_run(planting):
    with pytest.raises(ToolkitError, match="0 strengths and 5 models"):
        power("fake", strengths=[], models=5)


def test_an_analysis_that_plants_nothing_has_no_power(monkeypatch):
    from mechinterp_toolkit.registry import get_analysis

    bare = replace(get_analysis("group_fourier"), planted=None)
    monkeypatch.setattr(calibration, "get_analysis", lambda name: bare)
    with pytest.raises(RegistryError, match="plants nothing"):
        power("group_fourier")


# --- counts and their limits ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 144])
def test_binomial_interval_agrees_with_scipy(n: int):
    found = binomial_interval(torch.arange(n + 1), n)
    exact = [scipy.stats.binomtest(k, n).proportion_ci(method="exact") for k in range(n + 1)]
    low, high = (torch.tensor([e[side] for e in exact], dtype=torch.float64) for side in (0, 1))
    # scipy finds these roots by bisection to within 2e-12.
    torch.testing.assert_close(found.low, low, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.high, high, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.5, 0.97])
def test_binomial_interval_covers_at_least_95_percent(rate: float):
    low, high = binomial_interval(torch.arange(31), 30)
    chance = torch.from_numpy(scipy.stats.binom.pmf(range(31), 30, rate))
    assert chance[(low <= rate) & (rate <= high)].sum() >= 0.95


def test_binomial_interval_refuses_impossible_counts():
    with pytest.raises(ToolkitError, match="expected at least one trial and 0 to n"):
        binomial_interval(torch.tensor([3, 8]), 7)


def test_eighteen_of_two_hundred_false_findings_are_the_limit():
    assert calibration_limit() == 18


def test_asking_for_at_most_five_percent_fails_a_perfect_test_42_percent_of_the_time():
    perfect = scipy.stats.binom(200, 0.05)
    assert round(perfect.sf(10), 2) == 0.42
    assert perfect.sf(calibration_limit()) < 0.01  # ours fails it in 6 of 1,000


@pytest.mark.parametrize(
    ("n", "alpha", "level"), [(1, 0.05, 0.01), (50, 0.1, 0.05), (1000, 0.05, 0.01), (20, 0.9, 0.5)]
)
def test_calibration_limit_is_the_last_count_the_binomial_test_accepts(
    n: int, alpha: float, level: float
):
    limit = calibration_limit(n, alpha=alpha, level=level)
    assert (
        limit == 0 or scipy.stats.binomtest(limit, n, alpha, alternative="greater").pvalue > level
    )
    assert (
        limit == n
        or scipy.stats.binomtest(limit + 1, n, alpha, alternative="greater").pvalue <= level
    )


def test_calibration_limit_refuses_rates_outside_zero_and_one():
    with pytest.raises(ToolkitError, match="rates in \\(0, 1\\)"):
        calibration_limit(200, alpha=5.0)
