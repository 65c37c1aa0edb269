"""What an analysis answers with: `Estimate`, `Verdict`, and the `Provenance` behind them.

An `Estimate` is a number, or a tensor of them, with its interval and its control; no control, no
claim. A `Verdict` is what follows from one. The `Finding` that holds both is in `finding`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ResultError, nearest
from mechinterp_toolkit.nulls import max_statistic_p

Outcome = Literal["found", "not_found", "undecided", "not_applicable"]

Row: TypeAlias = dict[str, str | float | int | None]
"""Column -> value: one line of a table."""


@dataclass(frozen=True)
class Estimate:
    """A measured number, or a tensor of them, with its interval and what it was compared with.

    >>> number, control = torch.tensor([0.5, 0.25, 0.75]), torch.linspace(0, 0.2, 19)
    >>> score = Estimate(*number, 32, "fraction", "by hand", control, "labels shuffled")
    >>> score.text()
    '0.5 [0.25, 0.75]'
    >>> score.p().item()  # larger than all of 19 draws
    0.05
    """

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
            other = tuple(getattr(self, name).shape)
            if other != shape:
                raise ResultError(
                    f"Estimate.{name} has shape {other} but value has {shape}; give one interval"
                    " per value."
                )
        for name in ("value", "low", "high", "control"):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                raise ResultError(
                    f"Estimate.{name} holds a NaN or infinity. What could not be measured is a"
                    " reason (a Verdict), never a number: leave it out."
                )
        control = self.control
        if control is not None and (control.dim() == 0 or tuple(control.shape[1:]) != shape):
            raise ResultError(
                f"Estimate.control has shape {tuple(control.shape)}; expected one row of shape"
                f" {shape} per draw."
            )
        if (control is None) != (not self.control_name):
            raise ResultError(
                "Estimate.control and Estimate.control_name go together: say what the control"
                " destroyed."
            )
        if len(self.axes) != len(shape):
            raise ResultError(
                f"Estimate.axes names {len(self.axes)} axes {self.axes}, but value has"
                f" {len(shape)}."
            )
        for axis, names in self.labels.items():
            if axis not in self.axes or len(names) != shape[self.axes.index(axis)]:
                raise ResultError(
                    f"Estimate.labels[{axis!r}] has {len(names)} names for axes {self.axes} of"
                    f" shape {shape}."
                )

    @property
    def draws(self) -> int:
        """Draws of the control; 0 where there is none."""
        return 0 if self.control is None else len(self.control)

    def label(self, axis: str, index: int) -> str:
        """Return the name of a position along `axis`; its number where it has no name."""
        names = self.labels.get(axis)
        return names[index] if names else str(index)

    def place(self, *index: int) -> str:
        """Return the name of a position: "1.2" for layer 1, head 2; "period 5", or its label."""
        names = [self.label(axis, i) for axis, i in zip(self.axes, index, strict=True)]
        if self.axes == ("layer", "head"):
            return ".".join(names)
        return ", ".join(
            name if axis in self.labels else f"{axis} {name}"
            for axis, name in zip(self.axes, names, strict=True)
        )

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
            index = self._index(named)
        place = cast(Any, index)
        control, control_name = self.control, self.control_name
        if control is not None and largest:
            control, control_name = control.flatten(1).amax(1), f"{control_name}, largest of all"
        elif control is not None:
            control = control[(slice(None), *place)]
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[place] for name in ("value", "low", "high")},
            control=control,
            control_name=control_name,
            axes=(),
            labels={},
        )

    def _index(self, named: Mapping[str, int | str]) -> tuple[int, ...]:
        if set(named) != set(self.axes):
            raise ResultError(
                f"got positions along {', '.join(named)}; expected one along each of {self.axes}."
            )
        index = []
        for axis in self.axes:
            position, known = named[axis], self.labels.get(axis, ())
            if isinstance(position, str) and position not in known:
                raise ResultError(
                    f"{axis} has no label {position!r}.{nearest(position, known)} Known:"
                    f" {', '.join(known) or 'none'}."
                )
            index.append(known.index(position) if isinstance(position, str) else position)
        return tuple(index)

    def p(self, *, exact: bool = False) -> Float[Tensor, "*axes"]:
        """Return the p-value of each value against the control, corrected for looking at all.

        It is that of the maximum statistic: the share of draws whose largest value reaches this
        one. A scalar has no other values and is not corrected. Large is extreme.

        Args:
            exact: the draws enumerate every arrangement, see `nulls.p_value`.

        Raises:
            ResultError: there is no control.
        """
        if self.control is None:
            raise ResultError("an Estimate without a control has no p-value; give it one.")
        return max_statistic_p(self.value, self.control, exact=exact)

    def text(self) -> str:
        """Return a scalar estimate as "0.81 [0.70, 0.90]".

        Raises:
            ResultError: it is a tensor of estimates.
        """
        if self.value.dim():
            raise ResultError(f"only a scalar Estimate has a text; this one has axes {self.axes}.")
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def control_text(self) -> str:
        """Return a scalar's control as "0.14, 95 % below 0.31 (item order shuffled)", or ""."""
        if self.control is None:
            return ""
        draws = self.control.double().flatten()
        return f"{draws.mean():.3g}, 95 % below {draws.quantile(0.95):.3g} ({self.control_name})"

    def rows(self, name: str) -> list[Row]:
        """Return one row per value: `estimate`, one column per axis, the numbers, n and unit."""
        columns = {
            column: getattr(self, column).detach().double().flatten().tolist()
            for column in ("value", "low", "high")
        }
        if self.control is not None:
            # all positions at once, and by numpy: torch's quantile stops at 16 M values
            draws = self.control.detach().double().cpu().numpy()
            draws = draws.reshape(len(draws), self.value.numel())
            columns |= {
                "control_mean": draws.mean(0).tolist(),
                "control_95": np.quantile(draws, 0.95, axis=0).tolist(),
            }
        rows = []
        for flat, index in enumerate(np.ndindex(*self.value.shape)):
            row: Row = {"estimate": name}
            row |= {axis: self.label(axis, i) for axis, i in zip(self.axes, index, strict=True)}
            row |= {column: values[flat] for column, values in columns.items()}
            rows.append(row | {"n": self.n, "unit": self.unit})
        return rows


def along(estimates: Sequence[Estimate], axis: str, names: Sequence[str] = ()) -> Estimate:
    """Return estimates of one kind as a single one with a new first axis.

    Of their controls it keeps as many draws as all of them have.

    Args:
        estimates: of one shape, unit, method and kind of control.
        axis: name of the new axis.
        names: of the positions along it.

    Raises:
        ResultError: they do not fit together.

    >>> number = torch.tensor([0.5, 0.25, 0.75])
    >>> layers = along([Estimate(*number * i, 32, "nats", "by hand") for i in (1, 2)], "layer")
    >>> layers.value, layers.axes
    (tensor([0.5000, 1.0000]), ('layer',))
    """
    first = estimates[0]
    kinds = {(e.axes, e.unit, e.control_name) for e in estimates}
    if len(kinds) > 1:
        raise ResultError(
            f"estimates along {axis!r} differ in axes, unit or control; stack those of one kind."
        )
    controls = [e.control for e in estimates if e.control is not None]
    draws = min(map(len, controls), default=0)
    stacked: dict[str, Any] = {
        name: torch.stack([getattr(e, name) for e in estimates])
        for name in ("value", "low", "high")
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

    peak_memory_mb: float | None
    """Largest resident memory of the process so far, in MB; None where the system does not say."""

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
