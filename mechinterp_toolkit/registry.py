"""The register of analyses: one decorator, three look-ups, and a door for other packages.

A file in `analyses/` registers itself by decorating its function; the built-ins are found by
walking that package. Another package registers through the entry-point group
`mechinterp_toolkit.analyses`; one that does not import is listed with its reason and takes nothing
else down.

Example, a whole third-party analysis::

    @analysis(question="Which heads attend to the token before?", paper="Elhage et al. 2021") def
    previous_token_heads(model: HookedModel, *, draws: int = 200, seed: int = 0) ->
    PreviousTokenHeads:
        ...
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import resource
import shlex
import sys
import textwrap
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from mechinterp_toolkit.errors import NotApplicable, RegistryError, nearest
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.model import HookedModel, ModelLike, takes_model
from mechinterp_toolkit.results import Run

BUILT_IN = "mechinterp_toolkit.analyses"
ENTRY_POINTS = "mechinterp_toolkit.analyses"

P = ParamSpec("P")
F = TypeVar("F", bound=Finding)

Cost = Literal["quick", "slow"]


@dataclass(frozen=True)
class Planted:
    """A model with a structure put in by hand, and where an analysis must find it."""

    model: HookedModel
    """The model to analyse."""

    locations: tuple[str, ...]
    """The `Finding.locations` that must be reported first, in any order; empty where nothing was
    planted."""

    options: Mapping[str, Any]
    """Options the analysis needs on this model (usually none)."""


@dataclass(frozen=True)
class Analysis:
    """One registered analysis: the function and everything the CLI, the report and the tests know
    of it."""

    name: str
    """Function, file, registry and CLI name: the same word."""

    function: Callable[..., Finding]
    """The analysis as users call it: the first argument may be a spec, a model or a `HookedModel`.
    """

    question: str
    """What is asked, in one line."""

    paper: str
    """Where the finding was published."""

    applies: Callable[[HookedModel], str | None] | None
    """Returns the reason why a model cannot be judged, or None where it can."""

    planted: Callable[[float, int], Planted] | None
    """`planted(strength, seed)`: a model with the structure at `strength` in [0, 1], and where it
    is."""

    twins: Mapping[str, Callable[[int], HookedModel | Planted]]
    """Name -> `twin(seed)`: null models without the structure, for calibration; `Planted` where
    they need options."""

    core: Callable[..., Any] | None
    """`core(activations, labels, **options)`: the judgement on plain tensors, without a model; None
    where there is none."""

    cost: Cost
    """Whether `mechinterp report` runs it without `--all`."""

    source: str
    """Package it came from."""

    @property
    def result(self) -> type[Finding]:
        """Class of its finding, read from the return annotation."""
        return typing.get_type_hints(inspect.unwrap(self.function))["return"]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Name -> parameter of each option, read from the signature."""
        parameters = list(inspect.signature(inspect.unwrap(self.function)).parameters.values())
        return {p.name: p for p in parameters[1:]}

    @property
    def fooled_by(self) -> str:
        """The paragraph "What would fool it" of the module's docstring, or ""."""
        return docstring_section(
            inspect.getmodule(inspect.unwrap(self.function)), "What would fool it:"
        )

    def reason_not(self, model: HookedModel) -> str | None:
        """Return why `model` cannot be judged, or None."""
        return self.applies(model) if self.applies else None


@dataclass(frozen=True)
class Broken:
    """A registered package that could not be imported."""

    name: str
    """Entry-point or module name."""

    reason: str
    """The error, in one line."""


_registered: dict[str, Analysis] = {}


def analysis(
    *,
    question: str,
    paper: str,
    applies: Callable[[HookedModel], str | None] | None = None,
    planted: Callable[[float, int], Planted] | None = None,
    twins: Mapping[str, Callable[[int], HookedModel | Planted]] | None = None,
    core: Callable[..., Any] | None = None,
    cost: Cost = "quick",
) -> Callable[[Callable[Concatenate[HookedModel, P], F]], Callable[Concatenate[ModelLike, P], F]]:
    """Register a function `(model, *, options) -> Finding` under its own name.

    The function stays as it is but for its first argument, which may then be a checkpoint's name, a
    TransformerLens or Hugging Face model, or a `HookedModel`. The finding comes back with its
    provenance filled in.

    Raises:
        RegistryError: the name is taken, an option has no default, or the return type is not a
            `Finding`.
        NotApplicable: (when the analysis is called) `applies` gave a reason.
    """

    def register(
        function: Callable[Concatenate[HookedModel, P], F],
    ) -> Callable[Concatenate[ModelLike, P], F]:
        name = function.__name__

        @takes_model
        @functools.wraps(function)
        def run(model: HookedModel, /, *args: P.args, **options: P.kwargs) -> F:
            import torch

            reason = entry.reason_not(model)
            if reason:
                raise NotApplicable(f"{name} cannot judge {model.provenance.checkpoint}: {reason}")
            began, clock = datetime.now(UTC), time.perf_counter()
            with torch.no_grad():
                finding = function(model, *args, **options)
            record = _describe_run(entry, model, options, began, time.perf_counter() - clock)
            return replace(finding, provenance=replace(model.provenance, run=record))

        entry = Analysis(
            name,
            run,
            question,
            paper,
            applies,
            planted,
            dict(twins or {}),
            core,
            cost,
            function.__module__.split(".")[0],
        )
        _check(entry, function)
        _registered[name] = entry
        return run

    return register


def get_analysis(name: str) -> Analysis:
    """Return the analysis registered as `name`.

    Raises:
        RegistryError: no such analysis; the nearest names, and the reasons of packages that failed,
            are given.
    """
    found, broken = all_analyses()
    if name in found:
        return found[name]
    failed = "".join(
        f" ({b.name} could not be imported: {b.reason})" for b in broken if name in b.name
    )
    raise RegistryError(
        f"no analysis is called {name!r}.{nearest(name, found)}{failed} `mechinterp list` shows all"
        f" {len(found)}."
    )


def all_analyses() -> tuple[dict[str, Analysis], tuple[Broken, ...]]:
    """Return every analysis by name, and what could not be imported with its reason."""
    broken = (*_import_built_ins(), *_import_entry_points())
    return dict(sorted(_registered.items())), broken


def parse_option(entry: Analysis, name: str, text: str) -> Any:
    """Turn `text` from a command line into the value of option `name`: JSON where it parses, else
    the text itself.

    Raises:
        RegistryError: the analysis has no such option, or a `Literal` option does not allow the
            value.
    """
    if name not in entry.options:
        raise RegistryError(
            f"{entry.name} has no option {name!r}.{nearest(name, entry.options)} It has"
            f" {', '.join(entry.options)}."
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    value = tuple(value) if isinstance(value, list) else value
    hint = typing.get_type_hints(inspect.unwrap(entry.function)).get(name)
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise RegistryError(
            f"{entry.name}.{name} is one of {', '.join(map(str, typing.get_args(hint)))}, not"
            f" {text!r}."
        )
    if (
        hint in (int, float, bool, str)
        and not isinstance(value, hint)
        and not (hint is float and isinstance(value, int))
    ):
        raise RegistryError(f"{entry.name}.{name} is of type {hint.__name__}, not {text!r}.")
    return value


def model_and_options(made: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the model of a twin or `Planted`, and the options it needs: none for a bare model."""
    return (made.model, made.options) if isinstance(made, Planted) else (made, {})


def docstring_section(module: Any, heading: str) -> str:
    """Return the paragraph of a module's docstring that starts with `heading`, without the heading,
    on one line."""
    for paragraph in textwrap.dedent(inspect.getdoc(module) or "").split("\n\n"):
        if paragraph.strip().startswith(heading):
            return " ".join(paragraph.strip()[len(heading) :].split())
    return ""


def _check(entry: Analysis, function: Callable[..., Any]) -> None:
    taken = _registered.get(entry.name)
    if taken and inspect.unwrap(taken.function).__module__ != function.__module__:
        raise RegistryError(
            f"an analysis called {entry.name!r} is already registered by {taken.source}; choose"
            " another name."
        )
    bare = [
        p.name
        for p in entry.options.values()
        if p.default is p.empty or p.kind is not p.KEYWORD_ONLY
    ]
    if bare:
        raise RegistryError(f"{entry.name}: options {bare} must be keyword-only and have defaults.")


def _describe_run(
    entry: Analysis, model: HookedModel, given: Mapping[str, Any], began: datetime, seconds: float
) -> Run:
    used = {name: given.get(name, p.default) for name, p in entry.options.items()}
    plain = {
        k: v if isinstance(v, str | int | float | bool | tuple | None) else str(v)
        for k, v in used.items()
    }
    changed = [
        f"{k}={json.dumps(plain[k])}" for k, p in entry.options.items() if used[k] != p.default
    ]
    unit = 1024 if sys.platform != "darwin" else 1024**2
    return Run(
        analysis=entry.name,
        options=plain,
        date=began.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1),
        command=shlex.join(
            [
                "mechinterp",
                "run",
                entry.name,
                *_words(model),
                *(w for text in changed for w in ("--set", text)),
            ]
        ),
    )


def _words(model: HookedModel) -> list[str]:
    """Return what a command line needs to load these weights in this form again."""
    p = model.provenance
    words = [f"{p.checkpoint}@{p.revision}" if p.revision else p.checkpoint]
    words += ["--processing", p.processing] if p.processing == "compatible" else []
    return words + (["--dtype", p.dtype] if p.dtype != "float32" else [])


@functools.cache
def _import_built_ins() -> tuple[Broken, ...]:
    package = importlib.import_module(BUILT_IN)
    names = [
        f"{BUILT_IN}.{m.name}"
        for m in pkgutil.iter_modules(package.__path__)
        if not m.name.startswith("_")
    ]
    return tuple(
        b
        for b in (_try(name, functools.partial(importlib.import_module, name)) for name in names)
        if b
    )


@functools.cache
def _import_entry_points() -> tuple[Broken, ...]:
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return tuple(b for b in (_try(point.name, point.load) for point in points) if b)


def _try(name: str, load: Callable[[], Any]) -> Broken | None:
    try:
        load()
    except (
        Exception
    ) as error:  # a broken plug-in must be listed with its reason, whatever it raises
        return Broken(name, f"{type(error).__name__}: {error}")
    return None
