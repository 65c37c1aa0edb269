"""What is to be run on checkpoints, and how they are loaded: one object for report, sweep and CLI.

`Settings` is plain data, so that a sweep can send it to other processes. The options of the command
line have the same names; `Settings.command` is the one place that turns it into words again.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from mechinterp_toolkit.errors import RegistryError, ToolkitError, nearest
from mechinterp_toolkit.model import HookedModel, ModelLike, Processing, Wrapper, load_model
from mechinterp_toolkit.registry import Analysis, all_analyses, get_analysis, require_option

Dtype = Literal["float32", "float16", "bfloat16", "float64"]

Options = Mapping[str, Mapping[str, Any]]
"""Analysis -> option -> value; what is not named keeps its default."""


@dataclass(frozen=True)
class Loading:
    """How checkpoints are loaded, by the names of `load_model`.

    For checkpoints that `load_model` cannot read, derive a class with a `load` of its own.

    Raises:
        ToolkitError: a choice does not exist.
    """

    device: str | None = None
    """Where to load; None takes CUDA where there is any."""

    dtype: Dtype = "float32"
    """Data type of the weights."""

    processing: Processing = "none"
    """"none" keeps raw weights; "compatible" folds LayerNorm and centres weights."""

    wrapper: Wrapper = "auto"
    """Which class of TransformerLens holds the model."""

    def __post_init__(self) -> None:
        choices = {"dtype": Dtype, "processing": Processing, "wrapper": Wrapper}
        for name, allowed in choices.items():
            given, known = getattr(self, name), typing.get_args(allowed)
            if given not in known:
                raise ToolkitError(
                    f"{name} is one of {', '.join(known)}, not {given!r}.{nearest(given, known)}"
                )

    def load(self, checkpoint: ModelLike) -> HookedModel:
        """Return `checkpoint` loaded; a model given as an object stays as it is."""
        return load_model(
            checkpoint,
            device=self.device,
            dtype=getattr(torch, self.dtype),
            processing=self.processing,
            wrapper=self.wrapper,
        )

    def words(self) -> list[str]:
        """Return what differs from the defaults as words of a command line."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return [word for f in changed for word in (f"--{f.name}", str(getattr(self, f.name)))]


@dataclass(frozen=True)
class Settings:
    """What is to be run on each checkpoint."""

    analyses: Sequence[str] = ()
    """Names of analyses; empty takes every quick one."""

    all_costs: bool = False
    """Run the slow ones too; without effect where `analyses` are named."""

    options: Options = field(default_factory=dict)
    """Options by analysis."""

    twin: bool = True
    """Run each analysis on the random-weight twin too."""

    seed: int | None = None
    """Seed of the twins, and of every analysis whose option `seed` is left open by `options`."""

    loading: Loading = field(default_factory=Loading)
    """How checkpoints are loaded."""

    def chosen(self) -> tuple[Analysis, ...]:
        """Return the analyses to run, in the order given, else in that of the alphabet.

        Raises:
            RegistryError: a name is not registered.
        """
        if self.analyses:
            return tuple(get_analysis(name) for name in dict.fromkeys(self.analyses))
        registered, _ = all_analyses()
        return tuple(a for a in registered.values() if self.all_costs or a.cost == "quick")

    def work(self) -> list[tuple[Analysis, dict[str, Any]]]:
        """Return every chosen analysis with the options given for it, `seed` included.

        Raises:
            RegistryError: an analysis or option does not exist, or the analysis is not chosen.
        """
        chosen = {analysis.name: analysis for analysis in self.chosen()}
        for name, given in self.options.items():
            analysis = get_analysis(name)  # names a misspelt one better than this run could
            if name not in chosen:
                raise RegistryError(
                    f"options were given for {name}, which this report does not run;"
                    f"{nearest(name, chosen)} add `--analysis {name}` or `--all`."
                )
            for option in given:
                require_option(analysis, option)
        seed = {} if self.seed is None else {"seed": self.seed}
        return [
            (
                analysis,
                (seed if "seed" in analysis.options else {}) | dict(self.options.get(name, {})),
            )
            for name, analysis in chosen.items()
        ]

    def command(self, checkpoints: Sequence[str]) -> str:
        """Return the command line that makes this report on `checkpoints` again.

        >>> Settings(analyses=["group_fourier"], seed=3).command(["toy/s5"])
        'mechinterp report toy/s5 --analysis group_fourier --seed 3'
        """
        words = ["mechinterp", "report", *checkpoints]
        words += [word for name in self.analyses for word in ("--analysis", name)]
        words += ["--all"] * self.all_costs + ["--no-twin"] * (not self.twin)
        words += [] if self.seed is None else ["--seed", str(self.seed)]
        for analysis, given in self.options.items():
            for name, value in given.items():
                text = value if isinstance(value, str) else json.dumps(value)
                words += ["--set", f"{analysis}.{name}={text}"]
        return shlex.join(words + self.loading.words())


DEFAULTS = Settings()
"""Every quick analysis with its default options, beside its twin."""
