"""Do class means of activations lie around a circle, in their order, and does the circle close?

*Order*: ridge regression predicts the angle 2 pi a / p of a class from the mean of its activations,
each class from the others alone; its held-out R2 is compared with the same regression after the
classes are permuted as wholes, the search over candidate orders repeated. *Ring*: a smooth open
curve passes any test of order, so a ring must also close: the mean squared distances between class
means satisfy (far - closing) / (far - adjacent) > 1/2, its interval over templates too, where
closing is from last to first, adjacent between neighbours and far half a cycle apart. Noise adds
the same to each distance and drops out of the differences.

What would fool it: few classes. Random means of 7 classes fit a circle with an R2 of .85 in the
sample, which is why nothing here is measured in the sample; prompts are no units, so shuffling
prompts proves an order where there is none; and a factor that grows along the classes opens a ring:
`closure_limit` says from which length on.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860 (circular features); the two
verdicts and their nulls are this toolkit's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, same_width, some_draws
from mechinterp_toolkit.geometry.closure import CLOSURE, closure_of, closure_text
from mechinterp_toolkit.geometry.cycle import NO_INTERVAL, checked_cycle
from mechinterp_toolkit.geometry.orders import (
    Order,
    arrangements,
    candidate_orders,
    held_out_r2,
    left_out,
    on_circle,
    order_r2,
    search_orders,
)
from mechinterp_toolkit.geometry.regression import class_means, ridge_weights
from mechinterp_toolkit.nulls import permutations, why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap

ALPHA = 0.05

# (classes, share of the circle) -> power with the natural order alone, and with all candidate
# orders.
_POWER: dict[tuple[int, float], tuple[float, float]] = {
    (7, 0.2): (0.82, 0.36),
    (7, 0.3): (1.0, 0.90),
    (7, 0.5): (1.0, 1.0),
    (12, 0.2): (1.0, 1.0),
    (12, 0.3): (1.0, 1.0),
    (12, 0.5): (1.0, 1.0),
}


@dataclass(frozen=True)
class CircleFit:
    """Result of `fit_circle`."""

    period: int
    """Classes of a whole cycle."""

    order: str
    """The candidate order with the largest held-out R2, e.g. "natural", "step 2", "discrete log of
    base 3"."""

    r2: Estimate
    """Held-out R2 of that order, at most 1 and negative where the mean predicts better; control:
    classes permuted."""

    searched: bool
    """Whether other candidate orders than the natural one were tried."""

    exact: bool
    """Whether the control enumerates every permutation."""

    arrangements: int
    """Permutations of the classes there are, those that always score alike (rotations, reflections)
    counted once."""

    closure: Estimate
    """(far - closing) / (far - adjacent) of the natural order."""

    means: Float[Tensor, "label d"]
    """Mean activation of each class."""

    plane: Float[Tensor, "2 d"]
    """Orthonormal axes of the plane that holds the circle, from a fit to all classes."""

    points: Float[Tensor, "label 2"]
    """Class means in the plane, centred, in units of the activations."""

    weights: Float[Tensor, "d 2"]
    """Ridge weights from centred activations to (cos, sin) of the class' angle."""

    linear: float
    """Held-out R2 of the class' index itself: near 1 for a line, and high for a ring with a linear
    factor."""

    share: float
    """Share of the variance between class means that lies in the plane, in [0, 1]: in the sample,
    so never evidence."""

    @property
    def p(self) -> float:
        """p-value of the order."""
        return float(self.r2.p(exact=self.exact))

    @property
    def represented(self) -> Verdict:
        """Whether the classes are represented in their order."""
        r2 = f"held-out R2 of the angle {self.r2.text()} ({self.order} order)"
        chance = power(self.period, 0.3, searched=self.searched)
        short = why_undecided(self.r2.draws, self.arrangements)
        if short:
            return Verdict("undecided", f"{r2}, but {short}", p=self.p)
        if self.p <= ALPHA and float(self.r2.value) > 0:
            return Verdict("found", f"{r2}, more than permuted classes.", p=self.p, power=chance)
        reason = f"{r2}, no more than permuted classes."
        return Verdict("not_found", reason, p=self.p, power=chance)

    @property
    def ring(self) -> Verdict:
        """Whether the classes, being represented in order, also close to a ring."""
        outcome = self.represented.outcome
        if outcome == "undecided":
            reason = "Whether there is an order that could close is undecided."
            return Verdict("undecided", reason, p=self.p)
        if outcome != "found":
            reason = "No order was found, so there is no ring to close."
            return Verdict("not_found", reason, p=self.p)
        low, high, value = map(float, (self.closure.low, self.closure.high, self.closure.value))
        closure = closure_text(low, high, value)
        if self.closure.method == NO_INTERVAL:
            reason = f"Ordered; {closure}, of one row per class, has no interval."
            return Verdict("undecided", reason, p=self.p)
        if low > CLOSURE:
            return Verdict("found", f"Ordered and closed: {closure}, above {CLOSURE}.", p=self.p)
        if high < CLOSURE:
            reason = f"Ordered, and open: {closure}, below {CLOSURE}."
            return Verdict("not_found", reason, p=self.p)
        reason = f"Ordered, not shown closed: {closure}, its interval reaches {CLOSURE}."
        return Verdict("undecided", reason, p=self.p)

    def between(self, acts: Float[Tensor, "n d"], first: int, second: int) -> Float[Tensor, ""]:
        """Return the share of rows whose angle lies on the shorter arc from class `first` to
        `second`: continuity.

        Rows that mean something between two neighbours ("Monday night") should; a third of a circle
        at random would not.

        Raises:
            ToolkitError: as `angles`.
        """
        step = 2 * math.pi / self.period
        start, length = step * first, math.remainder(step * (second - first), 2 * math.pi)
        along = torch.remainder((self.angles(acts) - start) * math.copysign(1, length), 2 * math.pi)
        return (along <= abs(length)).double().mean()

    def angles(self, acts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the angle the fit gives to each row, in radians in (-pi, pi]; a class a of the
        period lies at 2 pi a / p.

        Raises:
            ToolkitError: rows of another width than those of the fit, or numbers that are not
                finite.
        """
        rows = finite(acts, "acts")
        same_width(rows, "acts", self.means.shape[1], "the fit")
        cos, sin = ((rows - self.means.mean(0)) @ self.weights).T
        return torch.atan2(sin, cos)


def fit_circle(
    acts: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    period: int,
    *,
    unit: Int[Tensor, " n"] | None = None,
    orders: Sequence[Order] = ("natural",),
    ridge: float = 0.1,
    draws: int = 9999,
    seed: int = 0,
) -> CircleFit:
    """Judge whether activations represent `period` classes in order, and as a ring.

    Args:
        acts: one row per prompt.
        labels: class of each row, 0 to period - 1, in whole numbers; each must occur.
        period: classes of a whole cycle.
        unit: what varies between rows of a class (template, context): intervals resample it. None:
            each row on its own.
        orders: candidate orders; more of them cost power, because the null searches them too.
        ridge: penalty, in units of the mean squared distance of a class mean from their centre.
        draws: permutations of the classes; enumerated where there are no more (5,040 for 7
            classes).
        seed: of permutations and resampling.

    Raises:
        ToolkitError: fewer than five classes, a class without rows, arguments that are no tensors
            of numbers with a row each, numbers that are not finite, or an unknown order.

    >>> angle = 2 * math.pi * torch.arange(7) / 7
    >>> ring = torch.stack([angle.cos(), angle.sin()], 1).repeat(5, 1)  # in five templates
    >>> noise = 0.1 * torch.randn(35, 2, generator=torch.Generator().manual_seed(0))
    >>> template = torch.arange(5).repeat_interleave(7)
    >>> fit = fit_circle(ring + noise, torch.arange(7).repeat(5), 7, unit=template, draws=199)
    >>> fit.represented.outcome, fit.ring.outcome, fit.closure.text()
    ('found', 'found', '0.982 [0.899, 1.08]')
    """
    cycle = checked_cycle(acts, labels, period, unit)
    means = cycle.means
    candidates = candidate_orders(period, orders)
    shuffles = permutations(period, draws=draws, seed=seed)
    scores = search_orders(means, candidates, shuffles.index, ridge)
    best = candidates[int(scores.observed.argmax())]

    def r2_and_closure(means: Float[Tensor, "*draw label d"]) -> Float[Tensor, "*draw 2"]:
        r2 = order_r2(means[..., best.kept, :], best.angle[best.kept], ridge)
        return torch.stack([r2, closure_of(means)], -1)

    both = cycle.estimate(r2_and_closure, measured="R2, at most 1", seed=seed, axes=("measure",))
    weights = ridge_weights(means, on_circle(candidates[0].angle), ridge)
    plane = torch.linalg.qr(weights).Q.T
    centred = means - means.mean(0)
    points = centred @ plane.T
    index = torch.arange(period, dtype=torch.float64)[:, None]
    return CircleFit(
        period=period,
        order=best.name,
        r2=replace(both.at(0), control=scores.null, control_name="classes permuted"),
        searched=len(candidates) > 1,
        exact=shuffles.exact,
        arrangements=arrangements(period, candidates),
        closure=replace(both.at(1), unit="ratio of squared distances, 1 for a regular ring"),
        means=means,
        plane=plane,
        points=points,
        weights=weights,
        linear=float(held_out_r2(left_out(means, ridge), index)),
        share=float(points.square().sum() / centred.square().sum()),
    )


def harmonics(
    acts: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    period: int,
    *,
    unit: Int[Tensor, " n"] | None = None,
    most: int = 3,
    draws: int = 199,
    seed: int = 0,
) -> Estimate:
    """Estimate the share of the variance between class means at each harmonic, [harmonic].

    The first is the circle; the second doubles its angle, and so on. All of them together explain
    everything, so a share says how the variance is spread, and only beside permuted classes whether
    that is more than chance.

    Args:
        acts, labels, period, unit: as for `fit_circle`.
        most: harmonics looked at; there are half as many as classes.
        draws: permutations of the classes behind the control.
        seed: of permutations and resampling.

    Raises:
        ToolkitError: as `fit_circle`, or no draws.

    >>> angle = 2 * torch.pi * torch.arange(7) / 7
    >>> doubled = torch.stack([(2 * angle).cos(), (2 * angle).sin()], 1)
    >>> [round(share, 3) for share in harmonics(doubled, torch.arange(7), 7).value.tolist()]
    [0.0, 1.0, 0.0]
    """
    cycle = checked_cycle(acts, labels, period, unit)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(period, generator=generator) for _ in range(some_draws(draws))]
    return cycle.estimate(
        lambda means: harmonic_shares(means, most),
        measured="fraction of the variance in [0, 1]",
        seed=seed,
        control=harmonic_shares(cycle.means[torch.stack(orders)], most),
        control_name="classes permuted",
        axes=("harmonic",),
    )


def harmonic_shares(
    means: Float[Tensor, "*draw label d"], most: int
) -> Float[Tensor, "*draw harmonic"]:
    """Return the share of each of the first harmonics, in [0, 1].

    >>> harmonic_shares(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), 2)  # the last has no partner
    tensor([0., 1.])
    """
    power = torch.fft.rfft(means, dim=-2).abs().square().sum(-1)[..., 1:]
    partners = torch.full((power.shape[-1],), 2.0, dtype=power.dtype)
    if means.shape[-2] % 2 == 0:
        partners[-1] = 1.0  # the alternating wave has no partner of negative frequency
    shares = power * partners
    total = shares.sum(-1, keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
    return (shares / total)[..., :most]


def transfer(
    acts: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    period: int,
    unit: Int[Tensor, " n"],
    *,
    ridge: float = 0.1,
    draws: int = 199,
    seed: int = 0,
) -> Estimate:
    """Estimate how well a circle fitted to some templates gives the angles in another.

    The mean cosine of the error, in [-1, 1]; 1 is no error. It says that the classes stand in the
    same places in other prompts, and nothing of a circle: a token that all templates share brings
    it about wherever the classes stand (.92 for days in a transformer with random weights), since
    only the classes of the held-out template are permuted.

    Args:
        acts, labels, period: as for `fit_circle`.
        unit: template of each row; every template shows every class.
        ridge: penalty, as there.
        draws: permutations of the classes of the held-out template behind the control.
        seed: of the permutations.

    Raises:
        ToolkitError: as `fit_circle`; fewer than two templates, a template without some class, or
            no draws.

    >>> angle = 2 * math.pi * torch.arange(7) / 7
    >>> ring = torch.stack([angle.cos(), angle.sin()], 1).repeat(2, 1)
    >>> same = transfer(ring, torch.arange(7).repeat(2), 7, torch.arange(2).repeat_interleave(7))
    >>> f"{same.value:.3f}"
    '1.000'
    """
    cycle = checked_cycle(acts, labels, period, unit)
    templates = len(cycle.shown)
    if templates < 2 or not cycle.shown.all():
        raise ToolkitError(
            f"transfer needs two templates or more that show all {period} classes; got {templates}."
        )
    angle = 2 * math.pi * torch.arange(period, dtype=torch.float64) / period
    generator = torch.Generator().manual_seed(seed)
    shuffled = (torch.randperm(period, generator=generator) for _ in range(some_draws(draws)))
    orders = torch.stack([torch.arange(period), *shuffled])
    cosines = []
    for held_out in range(templates):
        here = cycle.unit == held_out
        elsewhere = class_means(cycle.acts[~here], cycle.label[~here], period)
        weights = ridge_weights(elsewhere, on_circle(angle), ridge)
        means = class_means(cycle.acts[here], cycle.label[here], period)
        cos, sin = ((means - elsewhere.mean(0)) @ weights).T
        cosines.append((torch.atan2(sin, cos) - angle[orders]).cos().mean(1))
    by_template = torch.stack(cosines)
    return bootstrap(
        by_template[:, 0],
        unit_name="templates",
        measured="mean cosine of the error in [-1, 1]",
        seed=seed,
        control=by_template[:, 1:].mean(0),
        control_name="classes of the held-out template permuted",
    )


def power(period: int, share: float, *, searched: bool = False) -> float | None:
    """Return the chance of finding an order at 5 %, measured in 200 runs; None where it was not.

    Measured (`benchmarks/circles.py`) for 7 and 12 classes whose circle holds .2, .3 or .5 of the
    variance between class means: seven templates with noise of the size of a class mean in 768
    dimensions, the rest of the class means random in 12 dimensions.

    Args:
        period: number of classes.
        share: of the circle.
        searched: whether harmonics and discrete logarithm were candidates too.

    >>> power(7, 0.2), power(7, 0.2, searched=True), power(8, 0.2)
    (0.82, 0.36, None)
    """
    measured = _POWER.get((period, share))
    return None if measured is None else measured[searched]
