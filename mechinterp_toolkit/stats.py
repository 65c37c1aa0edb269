"""How sure is a number? Intervals over whole units, and the verdict they lead to.

Numbers go in, an `Estimate` or a `Verdict` comes out, computed in float64 on the CPU; nothing here
knows a model. Whatever is random takes its seed. What an estimate is compared with is in `nulls`.

What would fool it: units that are not exchangeable, such as prompts where the claim is about
weekdays. No function here can see that.

Source: Efron & Tibshirani 1993 (bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.nulls import why_undecided
from mechinterp_toolkit.results import Estimate, Outcome, Verdict

WeightedStatistic = Callable[
    [Float[Tensor, "n *features"], Float[Tensor, "draw n"]], Float[Tensor, "draw *axes"]
]
"""`statistic(values, weights)`: a statistic of all rows of `values`, once per row of `weights`."""

WEIGHTS_AT_ONCE = 2**24  # resampling weights held together: 128 MB of float64


def judge_effect(
    effect: Estimate,
    statement: str,
    control: str,
    smallest: float,
    *,
    arrangements: int | None = None,
) -> Verdict:
    """Return the verdict on a scalar effect: beyond its control, and surely of interest.

    With too few draws for any p-value of 5 % it is undecided, unless the effect is surely smaller
    than anything of interest: more draws would not change that.

    Args:
        effect: with its control, a one-sided test: larger is more.
        statement: what was done and measured, a sentence without its full stop.
        control: what the control is, behind "than".
        smallest: the smallest effect of interest, in the unit of the effect.
        arrangements: as for `nulls.why_undecided`.

    >>> number, shuffled = torch.tensor([3.0, 2.5, 3.5]), torch.zeros(19)
    >>> fall = Estimate(*number, 32, "logits", "by hand", shuffled, "labels shuffled")
    >>> print(judge_effect(fall, "the logit falls by 3", "with shuffled labels", 0.1))
    found (p = 0.05): the logit falls by 3, more than with shuffled labels.
    """

    def verdict(outcome: Outcome, ending: str) -> Verdict:
        return Verdict(outcome, f"{statement}{ending}", p=p, smallest_effect=smallest)

    assert effect.control is not None
    p, low, high = float(effect.p()), float(effect.low), float(effect.high)
    short = why_undecided(len(effect.control), arrangements)
    if short is not None and high >= smallest:
        return verdict("undecided", f"; {short}")
    if short is None and p > 0.05:
        return verdict("not_found", f", no more than {control}.")
    if high < smallest:
        return verdict("not_found", f", less than anything of interest ({smallest}).")
    if low < smallest:
        return verdict("undecided", f", beyond {control}, but perhaps below {smallest}.")
    return verdict("found", f", more than {control}.")


def judge_p(
    p: float, statement: str, control: str, *, short: str | None = None, power: float | None = None
) -> Verdict:
    """Return the verdict of a test alone: found at a p-value of 5 % or less.

    Args:
        p: against the control, corrected for everything that was looked at.
        statement: what was done and measured, a sentence without its full stop.
        control: what the control is, behind "than".
        short: why no p-value could have passed, see `nulls.why_undecided`; None where one could.
        power: kept with a verdict that is not undecided.

    >>> str(judge_p(0.01, "Setting the plane moves the answer", "permuted points"))
    'found (p = 0.01): Setting the plane moves the answer, more than permuted points.'
    """
    if short:
        return Verdict("undecided", f"{statement}, but {short}", p=p)
    if p <= 0.05:
        return Verdict("found", f"{statement}, more than {control}.", p=p, power=power)
    return Verdict("not_found", f"{statement}, no more than {control}.", p=p, power=power)


def weighted_mean(
    values: Float[Tensor, "n *axes"], weights: Float[Tensor, "draw n"]
) -> Float[Tensor, "draw *axes"]:
    """Return the mean over rows, once for each row of non-negative weights."""
    sums = weights @ values.reshape(len(values), -1)
    return (sums / weights.sum(1, keepdim=True)).reshape(len(weights), *values.shape[1:])


def bootstrap(
    values: Float[Tensor, "n *features"],
    *,
    unit_name: str,
    measured: str,
    seed: int,
    unit: Int[Tensor, " n"] | None = None,
    draws: int = 999,
    statistic: WeightedStatistic = weighted_mean,
    axes: tuple[str, ...] = (),
    labels: Mapping[str, tuple[str, ...]] | None = None,
    control: Float[Tensor, "draw *axes"] | None = None,
    control_name: str = "",
) -> Estimate:
    """Estimate a statistic of rows, with a 95 % percentile interval over whole units.

    Units are drawn with replacement; all rows of a unit go together. A unit drawn twice gets weight
    two instead of a second copy, so a statistic that leaves units out leaves out every copy:
    nothing is on both sides of a fold. With few units the interval is too narrow: of a mean of
    normal units it covers 88 % (7), 93 % (20), 94 % (50).

    Args:
        values: one row per measurement.
        unit_name: what varies from unit to unit, in the plural ("templates", "items").
        measured: unit and range of the statistic ("logits", "fraction in [0, 1]").
        seed: of the resampling.
        unit: which unit each row belongs to; None where each row is its own. In a mean, units count
            by their number of rows: average within units beforehand where they shall count alike.
        draws: number of resamples.
        statistic: the mean, or another function of values and row weights.
        axes, labels, control, control_name: fields of the `Estimate`, handed on as they are.

    Raises:
        ToolkitError: fewer than two units or 39 draws, or the statistic of a resample is not
            finite.

    >>> bootstrap(torch.eye(4), unit_name="items", measured="logits", seed=0, axes=("item",)).low
    tensor([0., 0., 0., 0.], dtype=torch.float64)
    >>> heights = torch.tensor([1.6, 1.7, 1.8, 1.9])
    >>> bootstrap(heights, unit_name="people", measured="metres", seed=0).text()
    '1.75 [1.65, 1.85]'
    """
    rows = values.detach().cpu().double()
    which = torch.arange(len(rows)) if unit is None else unit.cpu().unique(return_inverse=True)[1]
    n_units = _enough(which, unit_name, draws)
    resampled = _resample(rows, which, n_units, draws, seed, statistic)
    tail = (draws + 1) // 40  # 2.5 %: the 25th from either end of 999
    return Estimate(
        value=statistic(rows, torch.ones(1, len(rows), dtype=torch.float64))[0],
        low=resampled.kthvalue(tail, dim=0).values,
        high=resampled.kthvalue(draws + 1 - tail, dim=0).values,
        n=n_units,
        unit=measured,
        method=f"percentile bootstrap over {unit_name}, {draws} draws",
        control=None if control is None else control.detach().cpu().double(),
        control_name=control_name,
        axes=axes,
        labels=labels or {},
    )


def _enough(which: Int[Tensor, " n"], unit_name: str, draws: int) -> int:
    """How many units there are, if an interval can be made of them."""
    n_units = int(which.max()) + 1 if len(which) else 0
    if n_units < 2:
        raise ToolkitError(
            f"an interval over {unit_name} needs at least two of them, got {n_units} in"
            f" {len(which)} rows; measure more, or report the number in the reason of a Verdict"
            " instead of an Estimate."
        )
    if draws < 39:
        raise ToolkitError(
            f"a 95 % interval needs at least 39 draws (one beyond each end); got {draws}, 999 is"
            " usual."
        )
    return n_units


def times_drawn(n_units: int, draws: int, generator: torch.Generator) -> Float[Tensor, "draw unit"]:
    """Return how often each unit is drawn when as many units as there are, with replacement."""
    drawn = torch.randint(n_units, (draws, n_units), generator=generator)
    times = torch.zeros(drawn.shape, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones_like(times))


def _resample(
    rows: Tensor, which: Tensor, n_units: int, draws: int, seed: int, statistic: WeightedStatistic
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, draws, step := max(1, WEIGHTS_AT_ONCE // len(which))):
        times = times_drawn(n_units, min(step, draws - start), generator)
        parts.append(statistic(rows, times[:, which]))
    resampled = torch.cat(parts)
    failed = int((~resampled.isfinite()).reshape(draws, -1).any(1).sum())
    if failed:
        raise ToolkitError(
            f"the statistic is NaN or infinite in {failed} of {draws} resamples; leave out rows"
            f" that are not finite ({int((~rows.isfinite()).sum())} values), or use a statistic"
            " that is defined when units are missing."
        )
    return resampled
