"""Options that several commands have, and what becomes of their words."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mechinterp_toolkit.errors import ToolkitError, nearest

if TYPE_CHECKING:
    from mechinterp_toolkit.registry import Analysis
    from mechinterp_toolkit.report.settings import Loading

AnalysisName = Annotated[str, typer.Argument(help="An analysis; `mechinterp list` shows all.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Analyses = Annotated[list[str] | None, typer.Option(help="Run only this one; may be repeated.")]
AllCosts = Annotated[bool, typer.Option("--all", help="Run the slow analyses too.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set an option; may be repeated."),
]
SetByAnalysis = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="ANALYSIS.NAME=VALUE",
        help="Set an option of an analysis; may be repeated.",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every analysis and of the random weights.")]
Device = Annotated[
    str | None,
    typer.Option(help="Where to load: cpu, cuda, cuda:1, mps. By default CUDA if there is any."),
]
Dtype = Annotated[
    str, typer.Option(help="Data type of the weights: float32, float16, bfloat16 or float64.")
]
Processing = Annotated[
    str, typer.Option(help="none (raw weights) or compatible (LayerNorm folded, weights centred).")
]
Wrapper = Annotated[str, typer.Option(help="auto, HookedTransformer or TransformerBridge.")]


def folder_option(text: str, **shown: Any) -> Any:
    """Return the option `--out` with its help."""
    return typer.Option("--out", "-o", "--output_path", help=text, **shown)


def loading(device: str | None, dtype: str, processing: str, wrapper: str) -> Loading:
    """Return how checkpoints are to be loaded; a word that is no choice is refused there."""
    from mechinterp_toolkit.report.settings import Loading

    return Loading(device, cast(Any, dtype), cast(Any, processing), cast(Any, wrapper))


def options_of(analysis: Analysis, words: Sequence[str] | None) -> dict[str, Any]:
    """Return the options of one analysis from `NAME=VALUE`."""
    from mechinterp_toolkit.registry import parse_option

    return {name: parse_option(analysis, name, text) for name, text in _pairs(words)}


def options_by_analysis(words: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Return analysis -> option -> value from `ANALYSIS.NAME=VALUE`."""
    from mechinterp_toolkit.registry import get_analysis, parse_option

    options: dict[str, dict[str, Any]] = {}
    for full, text in _pairs(words):
        analysis, dot, name = full.partition(".")
        if not (dot and name):
            raise ToolkitError(
                f"--set takes ANALYSIS.NAME=VALUE here, not {full!r}; e.g. --set"
                " successor_heads.draws=500."
            )
        options.setdefault(analysis, {})[name] = parse_option(get_analysis(analysis), name, text)
    return options


def core_options(analysis: Analysis, words: Sequence[str] | None, n_classes: int) -> dict[str, Any]:
    """Return the options of an analysis' core from `NAME=VALUE`, where a value is JSON.

    The period of a circle is by default the number of classes.
    """
    known = list(inspect.signature(cast(Any, analysis.core)).parameters)[2:]
    options: dict[str, Any] = {}
    for name, text in _pairs(words):
        if name not in known:
            raise ToolkitError(
                f"the core of {analysis.name} has no option {name!r}.{nearest(name, known)} It has"
                f" {', '.join(known)}."
            )
        try:
            options[name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ToolkitError(
                f"--set {name}={text} is no JSON value; text stands in quotes."
            ) from error
    return ({"period": n_classes} if "period" in known else {}) | options


def _pairs(words: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ToolkitError(f"--set takes NAME=VALUE, not {word!r}; e.g. --set draws=500.")
        yield name, value
