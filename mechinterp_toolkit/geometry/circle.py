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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, same_width, some_draws, whole_numbers
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import (
    Permutations,
    bootstrap,
    p_value,
    permutations,
    times_drawn,
    why_undecided,
)

Order = Literal["natural", "harmonics", "discrete_log"]
"""Candidate orders: as given; every k-th class, for each k without a common divisor with the
period; and, for prime periods, classes 1 to p - 1 by their discrete logarithm, as a network that
multiplies would arrange them."""

CLOSURE = 0.5
"""What closure must exceed: 0 for an arc whose ends are half a cycle's distance apart, 1 for a
regular polygon."""

CLOSURE_KEPT = 5.0
"""`closure_of` lies within this of 0; at its lower end there is no closure to speak of."""

ALPHA = 0.05

NO_INTERVAL = "no interval: one row per class"
RESAMPLES = 499

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
        assert self.r2.control is not None
        return float(p_value(self.r2.value, self.r2.control, exact=self.exact))

    @property
    def represented(self) -> Verdict:
        """Whether the classes are represented in their order."""
        assert self.r2.control is not None
        said = f"held-out R2 of the angle {self.r2.text()} ({self.order} order)"
        chance = power(self.period, 0.3, searched=self.searched)
        short = why_undecided(len(self.r2.control), self.arrangements)
        if short:
            return Verdict("undecided", f"{said}, but {short}", p=self.p)
        if self.p <= ALPHA and float(self.r2.value) > 0:
            return Verdict("found", f"{said}, more than permuted classes.", p=self.p, power=chance)
        return Verdict(
            "not_found", f"{said}, no more than permuted classes.", p=self.p, power=chance
        )

    @property
    def ring(self) -> Verdict:
        """Whether the classes, being represented in order, also close to a ring."""
        if self.represented.outcome == "undecided":
            return Verdict(
                "undecided", "Whether there is an order that could close is undecided.", p=self.p
            )
        if not self.represented.found:
            return Verdict(
                "not_found", "No order was found, so there is no ring to close.", p=self.p
            )
        said = closure_text(
            *(float(x) for x in (self.closure.low, self.closure.high, self.closure.value))
        )
        if self.closure.method == NO_INTERVAL:
            return Verdict(
                "undecided", f"Ordered; {said}, of one row per class, has no interval.", p=self.p
            )
        if float(self.closure.low) > CLOSURE:
            return Verdict("found", f"Ordered and closed: {said}, above {CLOSURE}.", p=self.p)
        if float(self.closure.high) < CLOSURE:
            return Verdict("not_found", f"Ordered, and open: {said}, below {CLOSURE}.", p=self.p)
        return Verdict(
            "undecided",
            f"Ordered, not shown closed: {said}, its interval reaches {CLOSURE}.",
            p=self.p,
        )

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


class _Candidate(NamedTuple):
    name: str
    angle: Float[Tensor, " label"]  # of each class, nan where the order leaves it out


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
    """
    rows, labels, unit = _checked(acts, labels, period, unit)
    means = class_means(rows, labels, period)
    candidates = _candidates(period, orders)
    shuffles = permutations(period, draws=draws, seed=seed)
    observed, null = _search(means, candidates, shuffles, ridge)
    best = int(observed.argmax())
    r2, closure = _estimates(rows, labels, period, unit, candidates[best].angle, ridge, null, seed)
    weights = ridge_weights(means, _targets(candidates[0].angle), ridge)
    plane = torch.linalg.qr(weights).Q.T
    centred = means - means.mean(0)
    points = centred @ plane.T
    return CircleFit(
        period=period,
        order=candidates[best].name,
        r2=r2,
        searched=len(candidates) > 1,
        exact=shuffles.exact,
        arrangements=math.factorial(period) // _always_alike(period, candidates),
        closure=closure,
        means=means,
        plane=plane,
        points=points,
        weights=weights,
        linear=float(
            held_out_r2(smoother(means, ridge), torch.arange(period, dtype=torch.float64)[:, None])
        ),
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
    """Estimate which share of the variance between class means lies at each harmonic of the natural
    order, [harmonic].

    The first is the circle; the second doubles its angle, and so on. All of them together explain
    everything, so a share says how it is spread, and only beside permuted classes whether that is
    more than chance.

    Args:
        acts, labels, period, unit: as for `fit_circle`.
        most: harmonics looked at; there are half as many as classes.
        draws: permutations of the classes behind the control.
        seed: of permutations and resampling.

    Raises:
        ToolkitError: as `fit_circle`, or no draws.
    """
    rows, labels, unit = _checked(acts, labels, period, unit)
    weights, units = _resampling_weights(labels, unit, period, seed)
    means = class_means(rows, labels, period)
    drawn = torch.cat(
        [_harmonic_shares(some, most) for some in _resampled(rows, labels, period, weights)]
    )
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack(
        [torch.randperm(period, generator=generator) for _ in range(some_draws(draws))]
    )
    return Estimate(
        _harmonic_shares(means, most),
        low=drawn.quantile(0.025, 0),
        high=drawn.quantile(0.975, 0),
        n=period,
        unit="fraction of the variance in [0, 1]",
        method=(
            NO_INTERVAL
            if units < 2
            else f"percentile bootstrap over {units} rows or templates per class"
        ),
        control=_harmonic_shares(means[orders], most),
        control_name="classes permuted",
        axes=("harmonic",),
    )


def _harmonic_shares(
    means: Float[Tensor, "*draw label d"], most: int
) -> Float[Tensor, "*draw harmonic"]:
    power = torch.fft.rfft(means, dim=-2).abs().square().sum(-1)[..., 1:]
    partners = torch.full((power.shape[-1],), 2.0, dtype=power.dtype)
    if means.shape[-2] % 2 == 0:
        partners[-1] = 1.0  # the alternating wave has no partner of negative frequency
    shares = power * partners
    return (shares / shares.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny))[
        ..., :most
    ]


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
    """Estimate how well a circle fitted to some templates gives the angles in another: mean cosine
    of the error, in [-1, 1].

    1 is no error. It says that the classes stand in the same places in other prompts, and nothing
    of a circle: a token that all templates share brings it about wherever the classes stand (.92
    for days in a transformer with random weights), since only the classes of the held-out template
    are permuted.

    Args:
        acts, labels, period: as for `fit_circle`.
        unit: template of each row; every template shows every class.
        ridge: penalty, as there.
        draws: permutations of the classes of the held-out template behind the control.
        seed: of the permutations.

    Raises:
        ToolkitError: as `fit_circle`; fewer than two templates, a template without some class, or
            no draws.
    """
    rows, labels, unit = _checked(acts, labels, period, unit)
    which = unit.unique(return_inverse=True)[1]
    seen = torch.zeros(int(which.max()) + 1, period, dtype=torch.bool)
    seen[which, labels] = True
    if len(seen) < 2 or not seen.all():
        raise ToolkitError(
            f"transfer needs two templates or more that show all {period} classes; got {len(seen)}."
        )
    angle = 2 * math.pi * torch.arange(period, dtype=torch.float64) / period
    generator = torch.Generator().manual_seed(seed)
    shuffled = (torch.randperm(period, generator=generator) for _ in range(some_draws(draws)))
    orders = torch.stack([torch.arange(period), *shuffled])
    cosines = []
    for held_out in range(len(seen)):
        inside = which != held_out
        means = class_means(rows[inside], labels[inside], period)
        weights = ridge_weights(means, _targets(angle), ridge)
        predicted = (class_means(rows[~inside], labels[~inside], period) - means.mean(0)) @ weights
        error = torch.atan2(predicted[:, 1], predicted[:, 0]) - angle[orders]
        cosines.append(error.cos().mean(1))
    found = torch.stack(cosines)
    return bootstrap(
        found[:, 0],
        unit_name="templates",
        measured="mean cosine of the error in [-1, 1]",
        seed=seed,
        control=found[:, 1:].mean(0),
        control_name="classes of the held-out template permuted",
    )


def class_means(
    acts: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int
) -> Float[Tensor, "label d"]:
    """Return the mean row of each class."""
    member = torch.nn.functional.one_hot(labels, classes).double()
    return (member.T @ acts.double()) / member.sum(0)[:, None]


def smoother(
    means: Float[Tensor, "*draw label d"], ridge: float
) -> Float[Tensor, "*draw label label"]:
    """Return the matrix that turns targets into leave-one-class-out errors of kernel ridge
    regression with an intercept.

    For the hat matrix H of a linear smoother the error with row i left out is (y_i - (H y)_i) / (1
    - H_ii), exactly.
    """
    n = means.shape[-2]
    centred = means - means.mean(-2, keepdim=True)
    gram, eye = centred @ centred.mT, torch.eye(n, dtype=torch.float64)
    penalty = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    if not (penalty > 0).all():
        raise ToolkitError(
            f"the means of all {n} classes are the same; there is nothing to fit an order to."
        )
    hat = gram @ torch.linalg.inv(gram + penalty[..., None, None] * eye) + 1 / n
    return (eye - hat) / (1 - hat.diagonal(dim1=-2, dim2=-1))[..., None]


def held_out_r2(
    errors: Float[Tensor, "*#draw label label"], target: Float[Tensor, "*#draw label axis"]
) -> Float[Tensor, "*draw"]:
    """Return 1 - squared leave-one-class-out error over that of the mean of the other classes, for
    targets per class."""
    n = target.shape[-2]
    missed = (errors @ target).square().sum((-1, -2))
    centred = target - target.mean(-2, keepdim=True)
    return 1 - missed / (centred * n / (n - 1)).square().sum((-1, -2))


def ridge_weights(
    means: Float[Tensor, "label d"], target: Float[Tensor, "label axis"], ridge: float
) -> Float[Tensor, "d axis"]:
    """Return ridge weights from centred means to centred targets, all classes included."""
    centred = means - means.mean(0)
    gram = centred @ centred.T
    penalty = ridge * gram.trace() / len(means)
    return centred.T @ torch.linalg.solve(
        gram + penalty * torch.eye(len(means), dtype=torch.float64), target - target.mean(0)
    )


def closure_of(means: Float[Tensor, "*draw label d"]) -> Float[Tensor, "*draw"]:
    """Return (far - closing) / (far - adjacent) of mean squared distances between class means in
    their natural order.

    1 where the step from last to first is like the others, 0 where the ends are as far apart as
    half a cycle, negative where they are farther. Noise of equal size in all means leaves it alone.
    Kept within -5 and 5, and -5 where half a cycle is no farther than a neighbour: such means have
    no shape that could close. `closure_text` says so.

    Raises:
        ToolkitError: no tensor of finite means, or fewer than five classes.
    """
    rows = finite(means, "means", "*draw label d")
    _check_period(n := rows.shape[-2])

    def apart(step: int) -> Tensor:
        return (rows - rows.roll(-step, dims=-2)).square().sum(-1)

    adjacent, far = apart(1), apart(n // 2).mean(-1)
    rise, fall = far - adjacent[..., :-1].mean(-1), far - adjacent[..., -1]
    ratio = torch.where(
        rise > 0, fall / rise.clamp_min(torch.finfo(torch.float64).tiny), -CLOSURE_KEPT
    )
    return ratio.clamp(-CLOSURE_KEPT, CLOSURE_KEPT)


def closure_text(low: float, high: float, value: float | None = None) -> str:
    """Return closure and its interval in words; the ends between which `closure_of` keeps it are no
    measurements.

    >>> closure_text(0.9, 1.1), closure_text(-5.0, 3.2, 1.0)
    ('closure [0.9, 1.1]', 'closure 1 [none, 3.2]')
    >>> closure_text(-5.0, -5.0)
    'no closure to speak of (neighbours are hardly nearer than classes half a cycle apart)'
    """
    if high <= -CLOSURE_KEPT:
        return (
            "no closure to speak of (neighbours are hardly nearer than classes half a cycle apart)"
        )

    def said(x: float) -> str:
        if abs(x) < CLOSURE_KEPT:
            return f"{x:.3g}"
        return "none" if x < 0 else f"{CLOSURE_KEPT:g} or more"

    return f"closure {'' if value is None else f'{said(value)} '}[{said(low)}, {said(high)}]"


def closure_limit(period: int) -> float:
    """Return how long a linear factor may be, in radii of a regular ring, before closure falls
    below one half.

    A factor that grows by s from class to class adds (k s)^2 to the squared distance of classes k
    apart, and (p - 1)^2 s^2 to that of the closing step. Its length is (p - 1) s: 1.3 radii for 7
    classes.

    Raises:
        ToolkitError: fewer than five classes.
    """
    _check_period(period)
    half, last = period // 2, period - 1
    gain = 4 * (math.sin(math.pi * half / period) ** 2 - math.sin(math.pi / period) ** 2)
    # Pairs half a cycle apart: p - half of them are `half` apart along the line, the others wrap to
    # p - half.
    spread = ((period - half) * half**2 + half * (period - half) ** 2) / period
    step = math.sqrt(gain * (1 - CLOSURE) / (last**2 - spread + CLOSURE * (spread - 1)))
    return last * step


def power(period: int, share: float, *, searched: bool = False) -> float | None:
    """Return the chance of finding an order at 5 % whose circle holds `share` of the variance
    between class means.

    Measured in 200 runs each (`benchmarks/circles.py`) for 7 and 12 classes at shares .2, .3 and
    .5, seven templates with noise of the size of a class mean in 768 dimensions, the rest of the
    class means random in 12 dimensions; None elsewhere.

    Args:
        period: number of classes.
        share: of the circle.
        searched: whether harmonics and discrete logarithm were candidates too.
    """
    measured = _POWER.get((period, share))
    return None if measured is None else measured[searched]


def _check_period(period: int) -> None:
    if period < 5:
        raise ToolkitError(
            f"got period={period}; with fewer than five classes an order cannot be told from"
            " chance."
        )


def _checked(acts: Any, labels: Any, period: int, unit: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Activations in float64, classes and units; each row is its own unit where none are given."""
    _check_period(period)
    rows = finite(acts, "acts")
    classes = whole_numbers(labels, "labels", len(rows))
    units = torch.arange(len(rows)) if unit is None else whole_numbers(unit, "unit", len(rows))
    counts = torch.bincount(classes.clamp(min=0), minlength=period)
    if int(classes.min()) < 0 or len(counts) > period or not counts.all():
        raise ToolkitError(
            f"labels must be 0 to {period - 1}, each at least once; got {int(classes.min())} to"
            f" {int(classes.max())}, {int((counts[:period] == 0).sum())} of {period} classes"
            " without rows."
        )
    return rows, classes, units


def _candidates(period: int, orders: Sequence[Order]) -> list[_Candidate]:
    known = get_args(Order)
    if isinstance(orders, str) or not set(orders) <= set(known):
        raise ToolkitError(f"got orders={orders!r}; expected a tuple of {', '.join(known)}.")
    place = torch.arange(period, dtype=torch.float64)
    found = [_Candidate("natural", 2 * math.pi * place / period)]
    if "harmonics" in orders:
        steps = [k for k in range(2, period // 2 + 1) if math.gcd(k, period) == 1]
        found += [_Candidate(f"step {k}", 2 * math.pi * k * place / period) for k in steps]
    if "discrete_log" in orders:
        found += _discrete_logs(period)
    return found


def _discrete_logs(period: int) -> list[_Candidate]:
    """Classes 1 to p - 1 around a circle by their discrete logarithm; other generators are
    harmonics of the first."""
    if any(period % k == 0 for k in range(2, period)):
        return []
    base = next(
        g
        for g in range(2, period)
        if len({pow(g, k, period) for k in range(period - 1)}) == period - 1
    )
    angle = torch.full((period,), math.nan, dtype=torch.float64)
    for k in range(period - 1):
        angle[pow(base, k, period)] = 2 * math.pi * k / (period - 1)
    return [_Candidate(f"discrete log of base {base}", angle)]


def _always_alike(period: int, candidates: Sequence[_Candidate]) -> int:
    """How many permutations of the classes score like any given one, whatever the means; the fewest
    of any candidate order.

    A circle has its rotations and reflections, and the natural order those of its harmonics too
    where they are searched.
    """
    harmonics_ = 1 + sum(one.name.startswith("step") for one in candidates)
    logarithm = any(one.angle.isnan().any() for one in candidates)  # moves all classes but one
    return 2 * (period - 1) if logarithm else 2 * period * harmonics_


def _targets(angle: Float[Tensor, "*draw label"]) -> Float[Tensor, "*draw label 2"]:
    return torch.stack([angle.cos(), angle.sin()], -1)


def _search(
    means: Float[Tensor, "label d"],
    candidates: list[_Candidate],
    shuffles: Permutations,
    ridge: float,
) -> tuple[Float[Tensor, " candidate"], Float[Tensor, " draw"]]:
    """Held-out R2 of every candidate, and the largest of them for every permutation of the
    classes."""
    identity = torch.arange(len(means))[None]
    observed = torch.stack([_scored(means, one, identity, ridge)[0] for one in candidates])
    null = torch.stack([_scored(means, one, shuffles.index, ridge) for one in candidates])
    return observed, null.amax(0)


def _scored(
    means: Float[Tensor, "label d"],
    candidate: _Candidate,
    index: Int[Tensor, "draw label"],
    ridge: float,
) -> Float[Tensor, " draw"]:
    """Held-out R2 where class i takes the place of class `index[draw, i]`."""
    angle = candidate.angle[index]
    if not angle.isnan().any():
        return held_out_r2(smoother(means, ridge), _targets(angle))
    left_out, out = angle.isnan().int().argmax(1), torch.zeros(len(index), dtype=torch.float64)
    for label in range(len(means)):
        draws, kept = left_out == label, torch.arange(len(means)) != label
        if draws.any():
            out[draws] = held_out_r2(smoother(means[kept], ridge), _targets(angle[draws][:, kept]))
    return out


def _estimates(
    rows: Tensor,
    labels: Tensor,
    period: int,
    unit: Tensor,
    angle: Tensor,
    ridge: float,
    null: Tensor,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """Held-out R2 of one order, and closure, with intervals over the same resamples of units within
    classes."""
    kept = ~angle.isnan()

    def both(means: Float[Tensor, "*draw label d"]) -> tuple[Tensor, Tensor]:
        return held_out_r2(smoother(means[..., kept, :], ridge), _targets(angle[kept])), closure_of(
            means
        )

    weights, units = _resampling_weights(labels, unit, period, seed)
    value = both(class_means(rows, labels, period))
    drawn = [
        torch.cat(part)
        for part in zip(*(both(m) for m in _resampled(rows, labels, period, weights)), strict=True)
    ]
    method = f"percentile bootstrap over {units} rows or templates per class, {RESAMPLES} draws"
    if units < 2:
        method = NO_INTERVAL
    ends = [torch.stack([d.quantile(0.025), d.quantile(0.975)]) for d in drawn]
    r2 = Estimate(
        value[0],
        low=ends[0][0],
        high=ends[0][1],
        n=period,
        unit="R2, at most 1",
        method=method,
        control=null,
        control_name="classes permuted",
    )
    ratio = "ratio of squared distances, 1 for a regular ring"
    return r2, Estimate(
        value[1], low=ends[1][0], high=ends[1][1], n=period, unit=ratio, method=method
    )


def _resampling_weights(
    labels: Tensor, unit: Tensor, period: int, seed: int
) -> tuple[Float[Tensor, "draw n"], int]:
    """How often each row is drawn, and the least number of units a class has.

    Units that occur in every class (templates) are drawn once for all classes; else each class
    draws from its own.
    """
    generator = torch.Generator().manual_seed(seed)
    which = unit.unique(return_inverse=True)[1]
    occurs = torch.zeros(int(which.max()) + 1, period, dtype=torch.bool)
    occurs[which, labels] = True
    if occurs.all():
        return times_drawn(len(occurs), RESAMPLES, generator)[:, which], len(occurs)
    weights = torch.zeros(RESAMPLES, len(labels), dtype=torch.float64)
    for label in range(period):
        own = (labels == label).nonzero().flatten()
        local = which[own].unique(return_inverse=True)[1]
        weights[:, own] = times_drawn(int(local.max()) + 1, RESAMPLES, generator)[:, local]
    return weights, int(occurs.sum(0).min())


def _resampled(
    rows: Tensor, labels: Tensor, period: int, weights: Tensor
) -> Iterator[Float[Tensor, "draw label d"]]:
    """Class means under each row of weights, some rows at a time."""
    member = torch.nn.functional.one_hot(labels, period).double()
    for some in weights.split(64):
        weighted = member.T * some[:, None]
        yield (weighted @ rows) / weighted.sum(-1, keepdim=True)
