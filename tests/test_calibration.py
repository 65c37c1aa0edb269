"""Calibration counts rejections on null models and judges the count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from mechinterp_toolkit import calibration
from mechinterp_toolkit.calibration import NullCount, calibrate, power
from mechinterp_toolkit.errors import RegistryError
from mechinterp_toolkit.results import Verdict


@dataclass(frozen=True)
class Fake:
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


def test_an_analysis_that_plants_nothing_has_no_power(monkeypatch):
    from mechinterp_toolkit.registry import get_analysis

    bare = replace(get_analysis("group_fourier"), planted=None)
    monkeypatch.setattr(calibration, "get_analysis", lambda name: bare)
    with pytest.raises(RegistryError, match="plants nothing"):
        power("group_fourier")
