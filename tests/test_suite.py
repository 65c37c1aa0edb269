"""The common suite: what every registered analysis owes its users.

It runs over whatever is registered: `pytest tests/test_suite.py -k NAME` judges an analysis of an
installed package as well. What needs a planted model is skipped where such a package plants none.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechinterp_toolkit.calibration import calibrate
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.registry import (
    Analysis,
    Planted,
    all_analyses,
    as_planted,
    get_analysis,
)
from mechinterp_toolkit.storage import load_result, save_result

NAMES = sorted(all_analyses()[0])

# Fewer draws than the defaults, so that the suite stays short; the smallest p is 1/100, below the 5
# % level.
QUICK = {"draws": 99, "edit_draws": 19}

TOY = "toy/ordinal"


def quick(entry: Analysis) -> dict[str, Any]:
    return {name: value for name, value in QUICK.items() if name in entry.options}


@pytest.fixture(scope="module", params=NAMES)
def entry(request: pytest.FixtureRequest) -> Analysis:
    return all_analyses()[0][request.param]


def subject(entry: Analysis, seed: int = 0) -> Planted:
    """A model with the structure planted at full strength; else a bundled toy."""
    return entry.planted(1.0, seed) if entry.planted else as_planted(load_model(TOY))


def null_models(entry: Analysis) -> dict[str, Callable[[int], HookedModel | Planted]]:
    """Kind -> what makes models without the structure from a seed."""
    if entry.planted is None:
        return dict(entry.twins)
    return {**entry.twins, "planted at strength zero": functools.partial(entry.planted, 0.0)}


NULLS = [(name, kind) for name, entry in all_analyses()[0].items() for kind in null_models(entry)]
"""Every kind of null model of every analysis."""


@pytest.fixture(scope="module")
def on_planted(entry: Analysis) -> Finding:
    """The finding on the model with the structure."""
    made = subject(entry)
    return entry.function(made.model, **quick(entry), **made.options)


@pytest.fixture(scope="module")
def on_random(entry: Analysis) -> Finding:
    """The finding on the first random-weight twin."""
    make = entry.twins.get("random weights", load_model(TOY).random_twin)
    twin = as_planted(make(0))
    return entry.function(twin.model, **quick(entry), **twin.options)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_every_built_in_analysis_imports_and_has_planted_and_null_models():
    found, broken = all_analyses()
    assert broken == ()
    built_in = [entry for entry in found.values() if entry.source == "mechinterp_toolkit"]
    assert built_in
    for entry in built_in:
        assert entry.planted, entry.name
        assert "random weights" in entry.twins, entry.name
        assert len(entry.twins) > 1, f"{entry.name}: random weights alone are too easy"


def test_it_says_what_would_fool_it_and_where_it_was_published(entry):
    assert entry.question.endswith("?")
    assert len(entry.paper) > 10
    assert len(entry.fooled_by) > 100, (
        "the module's docstring needs a paragraph 'What would fool it: ...'"
    )
    module = inspect.getmodule(inspect.unwrap(entry.function))
    assert "Source:" in module.__doc__
    if entry.source == "mechinterp_toolkit":
        assert entry.name in module.__name__.split(".")


def test_all_options_have_defaults_and_are_documented(entry):
    text = inspect.getdoc(entry.function)
    for name, parameter in entry.options.items():
        assert parameter.default is not parameter.empty
        assert f"{name}:" in text, f"the docstring says nothing about {name}"


def test_it_finds_what_was_planted_where_it_was_planted(entry, on_planted):
    if entry.planted is None:
        pytest.skip("it plants nothing")
    planted = entry.planted(1.0, 0)
    assert on_planted.represented.outcome == "found", on_planted.represented.reason
    assert set(on_planted.locations[: len(planted.locations)]) == set(planted.locations)
    assert on_planted.used.outcome == "found", on_planted.used.reason


def test_what_it_finds_on_a_random_twin_is_nothing_everywhere(on_random):
    assert on_random.represented.outcome != "found", on_random.represented.reason
    assert on_random.used.outcome != "found", on_random.used.reason
    assert on_random.locations == ()


@pytest.mark.error_rate
@pytest.mark.parametrize(("name", "kind"), NULLS)
def test_findings_on_a_few_null_models_are_no_more_than_a_right_test_makes(name, kind):
    """A short form of `mechinterp calibrate`; the whole of it is a slow test.

    A right test at the 5 % level rejects some: of six, three or more once in 450 runs.
    """
    entry, verdicts = get_analysis(name), []
    for seed in range(6):
        twin = as_planted(null_models(entry)[kind](seed))
        finding = entry.function(twin.model, seed=seed, **quick(entry), **twin.options)
        verdicts.append(finding.represented)
    assert sum(v.p is not None and v.p <= 0.05 for v in verdicts) <= 2


def test_headline_numbers_carry_interval_sample_size_and_control(on_planted):
    effect = on_planted.effect
    assert effect.control is not None
    assert len(effect.control) >= 19
    assert effect.n >= 2
    assert effect.low <= effect.value <= effect.high
    assert effect.method
    assert effect.unit


def test_a_second_run_finds_the_same_and_leaves_the_model_unchanged(entry, on_planted):
    made = subject(entry)
    model = made.model
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    state = torch.get_rng_state()
    again = entry.function(model, **quick(entry), **made.options)
    assert same(
        dataclasses.replace(again, provenance=None),
        dataclasses.replace(on_planted, provenance=None),
    )
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[name], after[name])
        for name in before
        if not torch.isnan(before[name]).any()
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        not point.fwd_hooks and not point._forward_hooks for point in model.hook_points.values()
    )
    assert not model.model.training


def test_the_result_comes_back_from_disk_the_same(on_planted, on_random, tmp_path):
    for name, finding in (("planted", on_planted), ("random", on_random)):
        assert same(load_result(save_result(finding, tmp_path / name)), finding)


def test_it_reads_as_sentences_and_draws(on_planted, on_random):
    for finding in (on_planted, on_random):
        for text in (finding.answer(), finding.causal_check(), *finding.caveats):
            assert text.strip()
            assert "nan" not in text.lower().split()
        for row in finding.rows():
            assert math.isfinite(row["value"])
        for figure in finding.figures().values():
            assert figure.to_plotly_json()["data"]


def test_the_run_is_recorded_with_options_seed_and_command(entry, on_planted):
    run = on_planted.provenance.run
    assert run.analysis == entry.name
    assert set(run.options) == set(entry.options)
    assert "seed" in run.options
    assert run.command.startswith(f"mechinterp run {entry.name} ")


def test_it_refuses_what_it_cannot_judge_with_a_reason(entry):
    class Nothing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hook_dict: dict[str, Any] = {}
            self.weight = torch.nn.Parameter(torch.zeros(2))

    with pytest.raises(NotApplicable, match=rf"{entry.name} cannot judge Nothing: \w+"):
        entry.function(load_model(Nothing()))


@pytest.mark.slow
def test_calibration(entry):
    if not entry.twins:
        pytest.skip("it has no null models")
    result = calibrate(entry.name)
    assert result.passed, result.text()
