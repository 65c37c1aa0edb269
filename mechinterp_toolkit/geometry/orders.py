"""In which order do class means stand around a circle? The orders that are tried, and their scores.

Ridge regression predicts the angle of each class from the means of the other classes. Its held-out
R2 is compared with the same regression after the classes are permuted as wholes, and the search
over candidate orders is repeated for every permutation.

Source: this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.regression import left_out_errors, ridge_hat

Order = Literal["natural", "harmonics", "discrete_log"]
"""Candidate orders: as given; every k-th class, for each k without a common divisor with the
period; and, for prime periods, classes 1 to p - 1 by their discrete logarithm, as a network that
multiplies would arrange them."""


class Candidate(NamedTuple):
    """One order."""

    name: str
    """Such as "natural", "step 2" or "discrete log of base 3"."""

    angle: Float[Tensor, " label"]
    """Of each class, in radians; NaN for a class that the order leaves out."""

    @property
    def kept(self) -> Tensor:
        """Which classes the order has."""
        return ~self.angle.isnan()


def candidate_orders(period: int, orders: Sequence[Order]) -> list[Candidate]:
    """Return the candidates of these kinds, the natural order first.

    Raises:
        ToolkitError: an unknown kind.

    >>> [order.name for order in candidate_orders(7, ("natural", "harmonics", "discrete_log"))]
    ['natural', 'step 2', 'step 3', 'discrete log of base 3']
    """
    known = get_args(Order)
    if isinstance(orders, str) or not set(orders) <= set(known):
        raise ToolkitError(f"got orders={orders!r}; expected a tuple of {', '.join(known)}.")
    place = torch.arange(period, dtype=torch.float64)
    candidates = [Candidate("natural", 2 * math.pi * place / period)]
    if "harmonics" in orders:
        steps = [k for k in range(2, period // 2 + 1) if math.gcd(k, period) == 1]
        candidates += [Candidate(f"step {k}", 2 * math.pi * k * place / period) for k in steps]
    is_prime = all(period % k for k in range(2, period))
    if "discrete_log" in orders and is_prime:
        candidates.append(_discrete_log(period))
    return candidates


def _discrete_log(period: int) -> Candidate:
    """The logarithm of the smallest generator; those of other generators are its harmonics."""
    place = range(period - 1)
    base = next(
        g for g in range(2, period) if len({pow(g, k, period) for k in place}) == len(place)
    )
    angle = torch.full((period,), math.nan, dtype=torch.float64)
    for k in place:
        angle[pow(base, k, period)] = 2 * math.pi * k / len(place)
    return Candidate(f"discrete log of base {base}", angle)


def arrangements(period: int, candidates: Sequence[Candidate]) -> int:
    """Return how many permutations of the classes differ for the search, at the least.

    A circle scores like its rotations and reflections, and the natural order like its harmonics too
    where they are searched; a logarithm moves all classes but one.

    >>> arrangements(7, candidate_orders(7, ("natural",)))  # 5,040 / 14
    360
    """
    harmonics = 1 + sum(order.name.startswith("step") for order in candidates)
    logarithm = not all(order.kept.all() for order in candidates)
    alike = 2 * (period - 1) if logarithm else 2 * period * harmonics
    return math.factorial(period) // alike


class Scores(NamedTuple):
    """Result of `search_orders`."""

    observed: Float[Tensor, " candidate"]
    """Held-out R2 of each candidate."""

    null: Float[Tensor, " draw"]
    """The largest of them for each permutation of the classes."""


def search_orders(
    means: Float[Tensor, "label d"],
    candidates: Sequence[Candidate],
    shuffles: Int[Tensor, "draw label"],
    ridge: float,
) -> Scores:
    """Score every candidate, on the classes as they are and permuted.

    >>> natural = candidate_orders(7, ("natural",))
    >>> every_third = 3 * torch.arange(7)[None] % 7
    >>> observed, null = search_orders(on_circle(natural[0].angle), natural, every_third, ridge=0.1)
    >>> f"{observed[0]:.2f}, permuted {null[0]:.2f}"
    '1.00, permuted -1.19'
    """
    identity = torch.arange(len(means))[None]
    observed = torch.stack([_scored(means, order, identity, ridge)[0] for order in candidates])
    null = torch.stack([_scored(means, order, shuffles, ridge) for order in candidates])
    return Scores(observed, null.amax(0))


def _scored(
    means: Float[Tensor, "label d"],
    order: Candidate,
    index: Int[Tensor, "draw label"],
    ridge: float,
) -> Float[Tensor, " draw"]:
    """Held-out R2 where class i takes the place of class `index[draw, i]`."""
    angle = order.angle[index]
    if order.kept.all():
        return order_r2(means, angle, ridge)
    left_out, scores = (~order.kept)[index].int().argmax(1), torch.zeros(len(index)).double()
    for label in range(len(means)):
        draws, kept = left_out == label, torch.arange(len(means)) != label
        if draws.any():
            scores[draws] = order_r2(means[kept], angle[draws][:, kept], ridge)
    return scores


def order_r2(
    means: Float[Tensor, "*#draw label d"], angle: Float[Tensor, "*#draw label"], ridge: float
) -> Float[Tensor, "*draw"]:
    """Return the held-out R2 of these angles, at most 1.

    >>> angle = 2 * math.pi * torch.arange(7).double() / 7
    >>> f"{order_r2(on_circle(angle), angle, ridge=0.01):.2f}"
    '1.00'
    """
    return held_out_r2(left_out(means, ridge), on_circle(angle))


def on_circle(angle: Float[Tensor, "*draw label"]) -> Float[Tensor, "*draw label 2"]:
    """Return (cos, sin) of each angle.

    >>> on_circle(torch.zeros(1))
    tensor([[1., 0.]])
    """
    return torch.stack([angle.cos(), angle.sin()], -1)


def left_out(means: Float[Tensor, "*draw label d"], ridge: float) -> Tensor:
    """Return the matrix that turns targets into leave-one-class-out errors, with an intercept.

    Args:
        means: one row per class.
        ridge: penalty, in mean squared distances of a class mean from their centre.

    Raises:
        ToolkitError: all class means are the same.

    >>> left_out(torch.eye(5).double(), ridge=0.1).shape
    torch.Size([5, 5])
    """
    n = means.shape[-2]
    if not (means - means[..., :1, :]).any((-1, -2)).all():
        raise ToolkitError(
            f"the means of all {n} classes are the same; there is nothing to fit an order to."
        )
    return left_out_errors(ridge_hat(means, ridge) + 1 / n)


def held_out_r2(
    errors: Float[Tensor, "*#draw label label"], target: Float[Tensor, "*#draw label axis"]
) -> Float[Tensor, "*draw"]:
    """Return 1 - squared leave-one-class-out error over that of the mean of the other classes.

    >>> mean = left_out_errors(torch.full((4, 4), 0.25))  # of the mean itself
    >>> held_out_r2(mean, torch.arange(4.0)[:, None])
    tensor(0.)
    """
    n = target.shape[-2]
    missed = (errors @ target).square().sum((-1, -2))
    centred = target - target.mean(-2, keepdim=True)
    return 1 - missed / (centred * n / (n - 1)).square().sum((-1, -2))
