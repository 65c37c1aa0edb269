"""What an analysis answers with: `Estimate`, `Verdict`, `Provenance`, and the `Finding` that holds
them.

A finding is a frozen dataclass in the file of its analysis. It stores numbers; its verdicts are
properties of those numbers, so a threshold stays visible and can be read again later. `save_result`
writes named tensors and JSON, `load_result` gives the same object back.
"""

from __future__ import annotations

import dataclasses
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ResultError, nearest

Outcome = Literal["found", "not_found", "undecided", "not_applicable"]


@dataclass(frozen=True)
class Estimate:
    """A measured number (or a tensor of them) that knows how sure it is and what it was compared
    with."""

    value: Float[Tensor, "*axes"]
    """The estimate itself, in `unit`."""

    low: Float[Tensor, "*axes"]
    """Lower end of the 95 % interval."""

    high: Float[Tensor, "*axes"]
    """Upper end of the 95 % interval."""

    n: int
    """Number of exchangeable units behind the estimate (items, prompts, neurons: see `method`)."""

    unit: str
    """Unit and range, e.g. "fraction in [0, 1]" or "logits"."""

    method: str
    """How the interval was made, e.g. "bootstrap over items, 999 draws"."""

    control: Float[Tensor, "draw *axes"] | None = None
    """The same statistic under the null, one row per draw."""

    control_name: str = ""
    """What the control destroyed, e.g. "item order shuffled within classes"."""

    axes: tuple[str, ...] = ()
    """Names of the axes of `value`, e.g. ("layer", "head")."""

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the positions along an axis, where numbers would not do."""

    def __post_init__(self) -> None:
        shape = tuple(self.value.shape)
        for name in ("low", "high"):
            if tuple(getattr(self, name).shape) != shape:
                raise ResultError(
                    f"Estimate.{name} has shape {tuple(getattr(self, name).shape)} but value has"
                    f" {shape}; give one interval per value."
                )
        for name in ("value", "low", "high", "control"):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                raise ResultError(
                    f"Estimate.{name} holds a NaN or infinity. What could not be measured is a"
                    " reason (a Verdict), never a number: leave it out."
                )
        if self.control is not None and (
            self.control.dim() == 0 or tuple(self.control.shape[1:]) != shape
        ):
            raise ResultError(
                f"Estimate.control has shape {tuple(self.control.shape)}; expected one row of shape"
                f" {shape} per draw."
            )
        if (self.control is None) != (not self.control_name):
            raise ResultError(
                "Estimate.control and Estimate.control_name go together: say what the control"
                " destroyed."
            )
        if len(self.axes) != self.value.dim():
            raise ResultError(
                f"Estimate.axes names {len(self.axes)} axes {self.axes}, but value has"
                f" {self.value.dim()}."
            )
        for axis, names in self.labels.items():
            if axis not in self.axes or len(names) != shape[self.axes.index(axis)]:
                raise ResultError(
                    f"Estimate.labels[{axis!r}] has {len(names)} names for axes {self.axes} of"
                    f" shape {shape}."
                )

    def label(self, axis: str, index: int) -> str:
        """Return the name of position `index` along `axis` (the number itself where no names were
        given)."""
        names = self.labels.get(axis)
        return names[index] if names else str(index)

    def at(self, *index: int, largest: bool = False, **named: int | str) -> Estimate:
        """Return the scalar estimate at one position.

        Args:
            index: one number per axis.
            largest: the position was chosen as the largest: its control is then the largest of each
                draw.
            named: instead of `index`, the position along each axis by name, as a number or a label:
                `at(layer=1, head=4)`.

        Raises:
            ResultError: an axis is missing or unknown, or has no such label.
        """
        if named:
            index = self._place(named)
        control, place = self.control, cast(Any, index)
        if control is not None:
            control = control.flatten(1).amax(1) if largest else control[(slice(None), *place)]
        return dataclasses.replace(
            self,
            **{k: getattr(self, k)[place] for k in ("value", "low", "high")},
            control=control,
            control_name=(
                f"{self.control_name}, largest of all"
                if largest and self.control_name
                else self.control_name
            ),
            axes=(),
            labels={},
        )

    def _place(self, named: Mapping[str, int | str]) -> tuple[int, ...]:
        if set(named) != set(self.axes):
            raise ResultError(
                f"got positions along {', '.join(named)}; expected one along each of {self.axes}."
            )
        place = []
        for axis in self.axes:
            at, known = named[axis], self.labels.get(axis, ())
            if isinstance(at, str) and at not in known:
                raise ResultError(
                    f"{axis} has no label {at!r}.{nearest(at, known)} Known:"
                    f" {', '.join(known) or 'none'}."
                )
            place.append(known.index(at) if isinstance(at, str) else at)
        return tuple(place)

    def text(self) -> str:
        """Return a scalar estimate as "0.81 [0.70, 0.90]"; raises `ResultError` for a tensor of
        estimates."""
        if self.value.dim():
            raise ResultError(f"only a scalar Estimate has a text; this one has axes {self.axes}.")
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def control_text(self) -> str:
        """Return the control of a scalar estimate as "0.14, 95 % below 0.31 (item order shuffled)",
        or ""."""
        if self.control is None:
            return ""
        draws = self.control.double().flatten()
        return f"{draws.mean():.3g}, 95 % below {draws.quantile(0.95):.3g} ({self.control_name})"

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return one row per value: `estimate`, one column per axis, value, interval, control, n
        and unit."""
        columns = {
            k: getattr(self, k).detach().double().flatten().tolist()
            for k in ("value", "low", "high")
        }
        if self.control is not None:
            # all positions at once, and by numpy: torch's quantile stops at 16 M values
            draws = (
                self.control.detach()
                .double()
                .cpu()
                .reshape(len(self.control), self.value.numel())
                .numpy()
            )
            columns |= {
                "control_mean": draws.mean(0).tolist(),
                "control_95": np.quantile(draws, 0.95, axis=0).tolist(),
            }
        rows = []
        for flat, index in enumerate(np.ndindex(*self.value.shape)):
            row: dict[str, Any] = {"estimate": name}
            row |= {axis: self.label(axis, i) for axis, i in zip(self.axes, index, strict=True)}
            row |= {column: values[flat] for column, values in columns.items()}
            rows.append(row | {"n": self.n, "unit": self.unit})
        return rows


def along(estimates: Sequence[Estimate], axis: str, names: Sequence[str] = ()) -> Estimate:
    """Return estimates of one kind as a single one with a new first axis; of their controls as many
    draws as all have.

    Args:
        estimates: of one shape, unit, method and kind of control, with the same number of draws or
            more.
        axis: name of the new axis.
        names: of the positions along it.

    Raises:
        ResultError: they do not fit together.
    """
    first = estimates[0]
    if any(
        (e.axes, e.unit, e.control_name) != (first.axes, first.unit, first.control_name)
        for e in estimates
    ):
        raise ResultError(
            f"estimates along {axis!r} differ in axes, unit or control; stack those of one kind."
        )
    controls = [e.control for e in estimates if e.control is not None]
    draws = min(map(len, controls), default=0)
    stacked: dict[str, Any] = {
        k: torch.stack([getattr(e, k) for e in estimates]) for k in ("value", "low", "high")
    }
    return dataclasses.replace(
        first,
        **stacked,
        n=min(e.n for e in estimates),
        control=torch.stack([control[:draws] for control in controls], 1) if controls else None,
        axes=(axis, *first.axes),
        labels={**first.labels, **({axis: tuple(names)} if names else {})},
    )


@dataclass(frozen=True)
class Verdict:
    """One of four outcomes with the sentence, p-value and thresholds it rests on."""

    outcome: Outcome
    """found, not_found, undecided or not_applicable."""

    reason: str
    """One sentence a reader can quote."""

    p: float | None = None
    """p-value against the control, (1 + exceedances) / (1 + draws); None where no test was made."""

    alpha: float = 0.05
    """The level `p` was judged at."""

    smallest_effect: float | None = None
    """The smallest effect of interest the verdict asks for, in the unit of the estimate."""

    power: float | None = None
    """Probability of finding an effect of that size in this design, in [0, 1], where it was worked
    out."""

    def __post_init__(self) -> None:
        if not self.reason:
            raise ResultError("a Verdict needs its reason in a sentence.")
        if self.p is not None and not 0 < self.p <= 1:
            raise ResultError(
                f"a Verdict's p must lie in (0, 1], not {self.p}; count the observed draw among the"
                " draws."
            )

    def __bool__(self) -> bool:
        raise TypeError(
            "a Verdict has four outcomes; compare `.outcome`, e.g. finding.represented.outcome =="
            " 'found'."
        )

    def __str__(self) -> str:
        p = "" if self.p is None else f" (p = {self.p:.3g})"
        return f"{self.outcome.replace('_', ' ')}{p}: {self.reason}"

    @property
    def found(self) -> bool:
        """Whether the outcome is "found"."""
        return self.outcome == "found"


@dataclass(frozen=True)
class Run:
    """What ran: the analysis, its options, and what the run cost."""

    analysis: str
    """Registered name of the analysis."""

    options: Mapping[str, Any]
    """Every option with the value used, defaults included (seed among them)."""

    date: str
    """Start of the run, ISO 8601, UTC."""

    seconds: float
    """Wall time of the run in seconds."""

    peak_memory_mb: float
    """Largest resident memory of the process so far, in MB."""

    command: str = ""
    """The command that makes this section again."""


@dataclass(frozen=True)
class Provenance:
    """Where the weights came from and in which form they were analysed."""

    checkpoint: str
    """The checkpoint as it was named."""

    revision: str | None
    """Hub revision, or None."""

    fingerprint: str
    """SHA-256 of names, shapes and bytes of the weights before any processing (first 16 hex
    digits)."""

    wrapper: str
    """HookedTransformer, TransformerBridge or the class of a hooked module."""

    processing: str
    """"none" (raw weights), "compatible" (LayerNorm folded, writing weights and unembedding
    centred) or "unknown"."""

    prepend_bos: bool | None
    """Whether a beginning-of-sequence token is put before prompts; None where there is no text."""

    dtype: str
    """Data type of the weights."""

    device: str
    """Device of the first weight."""

    versions: Mapping[str, str]
    """Versions of the packages that decide numbers."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """Task and training record of a toolkit checkpoint; empty elsewhere."""

    run: Run | None = None
    """The run that made a finding; None on a model that was only loaded."""


@dataclass(frozen=True)
class Finding(ABC):
    """Base of every result: the two verdicts, what they rest on, and how a reader sees them.

    A subclass is a frozen dataclass of tensors, `Estimate`s, plain data and small dataclasses of
    the same module; it derives everything below from its fields.
    """

    provenance: Provenance | None = field(default=None, kw_only=True, repr=False)
    """Model and run behind this finding; filled in by the registry."""

    prompts_hash: str | None = field(default=None, kw_only=True)
    """Hash of the token ids that were run, or None for an analysis of weights alone."""

    @property
    @abstractmethod
    def represented(self) -> Verdict:
        """Whether the structure is there."""

    @property
    @abstractmethod
    def used(self) -> Verdict:
        """Whether the model's answers depend on it."""

    @property
    @abstractmethod
    def effect(self) -> Estimate | None:
        """The scalar headline estimate of the verdict table, or None where nothing could be
        measured."""

    @property
    @abstractmethod
    def locations(self) -> tuple[str, ...]:
        """Where it is (heads, irreps, hook points), strongest first; empty where nothing was
        found."""

    @abstractmethod
    def answer(self) -> str:
        """One or two sentences a reader can quote, with number, interval, n and control."""

    @abstractmethod
    def causal_check(self) -> str:
        """What was edited where, what the answer did, what the scrambled edit did."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """What this run cannot say: power, tokens dropped, hooks missing."""
        return ()

    def __str__(self) -> str:
        """Everything in words, in lines of at most 100 characters: `print(finding)`."""
        rest = (self.answer(), self.causal_check(), *self.caveats)
        verdicts = (
            (f"represented {self.represented}", self.represented),
            (f"used {self.used}", self.used),
        )
        said = "\n".join(rest)
        parts = (
            *(
                text.removesuffix(f": {v.reason}") if v.reason in said else text
                for text, v in verdicts
            ),
            *rest,
        )
        return "\n\n".join(
            textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)
            for part in parts
        )

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Every estimate stored in a field, by field name."""
        stored = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in stored.items() if isinstance(value, Estimate)}

    def rows(self) -> list[dict[str, Any]]:
        """Return every estimate as tidy rows (one value per row), ready for a data frame."""
        return [row for name, estimate in self.estimates.items() for row in estimate.rows(name)]

    def figures(self) -> dict[str, Any]:
        """Return title -> plotly figure; import `mechinterp_toolkit.plots` inside the method."""
        return {}
