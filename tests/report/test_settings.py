"""Settings: what is chosen, what is refused, and the words of a command line they become."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from mechinterp_toolkit.errors import RegistryError, ToolkitError
from mechinterp_toolkit.report.run import ReportSummary
from mechinterp_toolkit.report.settings import Loading, Settings


def test_slow_analyses_wait_to_be_asked_for(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    for settings, ran in (
        ({}, ["heads"]),
        ({"all_costs": True}, ["heads", "late"]),
        ({"analyses": ["late"]}, ["late"]),
    ):
        assert [row["analysis"] for row in reported(tmp_path, "m", **settings).rows()] == ran


def test_the_seed_reaches_every_analysis_with_a_seed_unless_an_option_says_otherwise(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "m", all_costs=True, seed=7, options={"late": {"seed": 3}})
    results = [entry.result for _, entry in summary.document.entries()]
    assert [result.options["seed"] for result in results] == [7, 3]
    assert "--seed 7 --set late.seed=3" in summary.document.command


def test_options_reach_their_analysis(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "m", options={"heads": {"draws": 5}})
    assert summary.document.checkpoints[0].entries[0].result.effect.control.draws == 5


def test_misspelt_and_idle_options_are_refused_before_anything_runs(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    with pytest.raises(RegistryError, match=r"heads has no option 'drws'\. Did you mean 'draws'"):
        reported(tmp_path, "missing", options={"heads": {"drws": 5}})
    with pytest.raises(RegistryError, match=r"no analysis is called 'heds'\. Did you mean 'heads'"):
        reported(tmp_path, "missing", options={"heds": {"draws": 5}})
    with pytest.raises(
        RegistryError, match="options were given for late, which this report does not run"
    ):
        reported(tmp_path, "missing", options={"late": {"seed": 5}})


@pytest.mark.usefixtures("as_a_user")
def test_a_way_of_loading_that_does_not_exist_is_refused_with_the_nearest_one() -> None:
    for wrong, words in (
        ({"dtype": "float23"}, "dtype is one of float32, float16, .* Did you mean 'float"),
        ({"processing": "folded"}, "processing is one of none, compatible, not 'folded'"),
        ({"wrapper": "Hooked"}, "wrapper is one of auto, HookedTransformer, TransformerBridge"),
    ):
        with pytest.raises(ToolkitError, match=words):
            Loading(**wrong)


def test_the_command_holds_every_setting_that_differs_from_its_default() -> None:
    assert Settings().command(["a b", "m"]) == "mechinterp report 'a b' m"
    settings = Settings(
        analyses=("heads", "late"),
        all_costs=True,
        options={"heads": {"words": ("a", "b c"), "text": "plain"}},
        twin=False,
        seed=0,
        loading=Loading("cuda:1", "bfloat16", "compatible", "TransformerBridge"),
    )
    assert shlex.split(settings.command(["m"])) == [
        *("mechinterp", "report", "m", "--analysis", "heads", "--analysis", "late"),
        *("--all", "--no-twin", "--seed", "0"),
        *("--set", 'heads.words=["a", "b c"]', "--set", "heads.text=plain"),
        *("--device", "cuda:1", "--dtype", "bfloat16"),
        *("--processing", "compatible", "--wrapper", "TransformerBridge"),
    ]
