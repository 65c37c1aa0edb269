"""The register of analyses: one decorator, three look-ups, and a door for other packages.

A file in `analyses/` registers itself by decorating its function; the built-ins are found by
walking that package. Another package registers through the entry-point group
`mechinterp_toolkit.analyses`; one that does not import is listed with its reason and takes nothing
else down.

A whole third-party analysis is in the README, under "Adding an analysis".
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import shlex
import sys
import textwrap
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
    """One registered analysis: the function, and all that others know of it."""

    name: str
    """Function, file, registry and CLI name: the same word."""

    function: Callable[..., Finding]
    """The analysis as users call it: the first argument may be a spec, a model or a `HookedModel`.
    """

    question: str
    """What is asked, in one line."""

    paper: str
    """Where the finding was published."""

    source: str
    """Package it came from."""

    applies: Callable[[HookedModel], str | None] | None = None
    """Returns the reason why a model cannot be judged, or None where it can."""

    planted: Callable[[float, int], Planted] | None = None
    """`planted(strength, seed)`: a model with the structure at `strength` in [0, 1], and where it
    is."""

    twins: Mapping[str, Callable[[int], HookedModel | Planted]] = field(default_factory=dict)
    """Name -> `twin(seed)`: null models without the structure, for calibration; `Planted` where
    they need options."""

    core: Callable[..., Any] | None = None
    """`core(activations, labels, **options)`: the judgement on plain tensors, without a model; None
    where there is none."""

    cost: Cost = "quick"
    """Whether `mechinterp report` runs it without `--all`."""

    @property
    def result(self) -> type[Finding]:
        """Class of its finding, read from the return annotation."""
        finding: type[Finding] = self._types()["return"]
        return finding

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Name -> parameter of each option, read from the signature."""
        _, *options = inspect.signature(inspect.unwrap(self.function)).parameters.values()
        return {option.name: option for option in options}

    @property
    def fooled_by(self) -> str:
        """The paragraph "What would fool it" of the module's docstring, or ""."""
        module = inspect.getmodule(inspect.unwrap(self.function))
        return docstring_section(module, "What would fool it:")

    def _types(self) -> dict[str, Any]:
        return typing.get_type_hints(inspect.unwrap(self.function))

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
        RegistryError: the name is taken, an option has no default, or the return annotation is no
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
            source=function.__module__.split(".")[0],
            applies=applies,
            planted=planted,
            twins=dict(twins or {}),
            core=core,
            cost=cost,
        )
        _check(entry)
        _registered[name] = entry
        return run

    return register


def get_analysis(name: str) -> Analysis:
    """Return the analysis registered as `name`.

    Raises:
        RegistryError: no such analysis; the nearest names, and the reasons of packages that failed,
            are given.
    """
    known, broken = all_analyses()
    if name in known:
        return known[name]
    failed = "".join(
        f" ({b.name} could not be imported: {b.reason})" for b in broken if name in b.name
    )
    raise RegistryError(
        f"no analysis is called {name!r}.{nearest(name, known)}{failed} `mechinterp list` shows all"
        f" {len(known)}."
    )


def all_analyses() -> tuple[dict[str, Analysis], tuple[Broken, ...]]:
    """Return every analysis by name, and what could not be imported with its reason."""
    broken = (*_import_built_ins(), *_import_entry_points())
    return dict(sorted(_registered.items())), broken


def require_option(entry: Analysis, name: str) -> None:
    """Raise `RegistryError` where an analysis has no option called `name`."""
    if name not in entry.options:
        raise RegistryError(
            f"{entry.name} has no option {name!r}.{nearest(name, entry.options)} It has"
            f" {', '.join(entry.options)}."
        )


def parse_option(entry: Analysis, name: str, text: str) -> Any:
    """Turn a text of a command line into the value of an option: JSON where it parses, else itself.

    Raises:
        RegistryError: the analysis has no such option, or the option does not allow the value.
    """
    require_option(entry, name)
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    value = tuple(value) if isinstance(value, list) else value
    hint = entry._types().get(name)
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal and value not in choices:
        raise RegistryError(
            f"{entry.name}.{name} is one of {', '.join(map(str, choices))}, not {text!r}."
        )
    allowed: Any = (int, float) if hint is float else hint
    if hint in (int, float, bool, str) and not isinstance(value, allowed):
        raise RegistryError(f"{entry.name}.{name} is of type {hint.__name__}, not {text!r}.")
    return value


def as_planted(made: HookedModel | Planted) -> Planted:
    """Return a twin or planted model with the options it needs: none for a bare model."""
    return made if isinstance(made, Planted) else Planted(made, (), {})


def docstring_section(documented: object, heading: str) -> str:
    """Return the paragraph of a docstring behind `heading`, on one line; "" where it has none."""
    for paragraph in textwrap.dedent(inspect.getdoc(documented) or "").split("\n\n"):
        if paragraph.strip().startswith(heading):
            return " ".join(paragraph.strip()[len(heading) :].split())
    return ""


def peak_memory_mb() -> float | None:
    """Return the largest resident memory of the process so far, in MB; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    per_mb = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mb, 1)


def _check(entry: Analysis) -> None:
    function = inspect.unwrap(entry.function)
    taken = _registered.get(entry.name)
    if taken and inspect.unwrap(taken.function).__module__ != function.__module__:
        raise RegistryError(
            f"an analysis called {entry.name!r} is already registered by {taken.source}; choose"
            " another name."
        )
    bare = [
        option.name
        for option in entry.options.values()
        if option.default is option.empty or option.kind is not option.KEYWORD_ONLY
    ]
    if bare:
        raise RegistryError(f"{entry.name}: options {bare} must be keyword-only and have defaults.")
    try:
        returned = entry._types().get("return")
    except NameError:  # an annotation that its module does not know
        returned = None
    if not (isinstance(returned, type) and issubclass(returned, Finding)):
        raise RegistryError(
            f"{entry.name}: annotate what it returns with its own subclass of Finding, under a name"
            " of its module; results are read back by it."
        )


def _describe_run(
    entry: Analysis, model: HookedModel, given: Mapping[str, Any], began: datetime, seconds: float
) -> Run:
    defaults = {name: option.default for name, option in entry.options.items()}
    used = {**defaults, **given}
    plain = {
        name: value if isinstance(value, str | int | float | bool | tuple | None) else str(value)
        for name, value in used.items()
    }
    words = ["mechinterp", "run", entry.name, *_words(model)]
    for name, default in defaults.items():
        if used[name] != default:
            words += ["--set", f"{name}={json.dumps(plain[name])}"]
    return Run(
        analysis=entry.name,
        options=plain,
        date=began.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        peak_memory_mb=peak_memory_mb(),
        command=shlex.join(words),
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
    modules = (m.name for m in pkgutil.iter_modules(package.__path__))
    names = (f"{BUILT_IN}.{name}" for name in modules if not name.startswith("_"))
    tried = (_try(name, functools.partial(importlib.import_module, name)) for name in names)
    return tuple(broken for broken in tried if broken)


@functools.cache
def _import_entry_points() -> tuple[Broken, ...]:
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    tried = (_try(point.name, point.load) for point in points)
    return tuple(broken for broken in tried if broken)


def _try(name: str, load: Callable[[], Any]) -> Broken | None:
    try:
        load()
    except Exception as error:  # a broken plug-in is listed with its reason, whatever it raises
        return Broken(name, f"{type(error).__name__}: {error}")
    return None
