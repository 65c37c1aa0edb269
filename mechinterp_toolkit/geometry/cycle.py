"""Activations of the classes of a cycle: checked, averaged, and resampled within classes.

Units that occur in every class (templates) are drawn once for all classes; otherwise each class
draws from its own. A class keeps all its weight in every resample.

What would fool it: one row per class, which gives no interval; the estimate then says so.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, whole_numbers
from mechinterp_toolkit.geometry.closure import check_period
from mechinterp_toolkit.geometry.regression import class_means, one_hot
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import times_drawn

NO_INTERVAL = "no interval: one row per class"
RESAMPLES = 499


@dataclass(frozen=True, eq=False)
class Cycle:
    """Rows of every class of a cycle."""

    acts: Float[Tensor, "n d"]
    """In float64 on the CPU."""

    label: Int[Tensor, " n"]
    """Class of each row, 0 to period - 1; every class has a row."""

    period: int
    """Classes."""

    unit: Int[Tensor, " n"]
    """What varies between rows of a class, numbered from 0."""

    @property
    def means(self) -> Float[Tensor, "label d"]:
        """Mean activation of each class."""
        return class_means(self.acts, self.label, self.period)

    @property
    def shown(self) -> Tensor:
        """Whether each unit shows each class, [unit label]."""
        shown = torch.zeros(int(self.unit.max()) + 1, self.period, dtype=torch.bool)
        shown[self.unit, self.label] = True
        return shown

    def estimate(
        self,
        statistic: Callable[[Float[Tensor, "*draw label d"]], Float[Tensor, "*draw *axes"]],
        *,
        measured: str,
        seed: int,
        **kept: Any,
    ) -> Estimate:
        """Return a statistic of the class means with its interval over units.

        Args:
            statistic: of class means, with any axes of draws in front.
            measured: unit and range of the statistic.
            seed: of the resampling.
            kept: control, control_name and axes of the `Estimate`.
        """
        drawn = torch.cat([statistic(means) for means in self._resampled(seed)])
        units = int(self.shown.sum(0).min())
        method = f"percentile bootstrap over {units} rows or templates per class, {RESAMPLES} draws"
        return Estimate(
            statistic(self.means),
            low=drawn.quantile(0.025, 0),
            high=drawn.quantile(0.975, 0),
            n=self.period,
            unit=measured,
            method=method if units > 1 else NO_INTERVAL,
            **kept,
        )

    def _resampled(self, seed: int) -> Iterator[Float[Tensor, "draw label d"]]:
        """Class means of each resample, some at a time."""
        generator, shown = torch.Generator().manual_seed(seed), self.shown
        if shown.all():
            weights = times_drawn(len(shown), RESAMPLES, generator)[:, self.unit]
        else:
            weights = torch.zeros(RESAMPLES, len(self.label), dtype=torch.float64)
            for label in range(self.period):
                own = (self.label == label).nonzero().flatten()
                local = self.unit[own].unique(return_inverse=True)[1]
                times = times_drawn(int(local.max()) + 1, RESAMPLES, generator)
                weights[:, own] = times[:, local]
        member = one_hot(self.label, self.period)
        for some in weights.split(64):
            weighted = member.T * some[:, None]
            yield (weighted @ self.acts) / weighted.sum(-1, keepdim=True)


def checked_cycle(acts: Any, labels: Any, period: int, unit: Any = None) -> Cycle:
    """Return the rows of a cycle once they are what they should be.

    Args:
        acts: one row per prompt.
        labels: class of each row, 0 to period - 1, in whole numbers; each must occur.
        period: classes of a whole cycle.
        unit: what varies between rows of a class; None where each row is its own.

    Raises:
        ToolkitError: fewer than five classes, a class without rows, or arguments that are no
            tensors of finite numbers with a row each.

    >>> checked_cycle(torch.ones(10, 3), torch.arange(10) % 5, 5).means.shape
    torch.Size([5, 3])
    """
    check_period(period)
    rows = finite(acts, "acts")
    label = whole_numbers(labels, "labels", len(rows))
    units = torch.arange(len(rows)) if unit is None else whole_numbers(unit, "unit", len(rows))
    counts = torch.bincount(label.clamp(min=0), minlength=period)
    if int(label.min()) < 0 or len(counts) > period or not counts.all():
        raise ToolkitError(
            f"labels must be 0 to {period - 1}, each at least once; got {int(label.min())} to"
            f" {int(label.max())}, {int((counts[:period] == 0).sum())} of {period} classes"
            " without rows."
        )
    return Cycle(rows, label, period, units.unique(return_inverse=True)[1])
