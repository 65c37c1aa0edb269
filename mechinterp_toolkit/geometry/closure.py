"""Do class means that stand in their order close to a ring, or is it an open curve?

A smooth open curve passes any test of order. A ring must also close: the mean squared distances
between class means satisfy (far - closing) / (far - adjacent) > 1/2, where closing is from last to
first, adjacent between neighbours and far half a cycle apart. Noise adds the same to each distance
and drops out of the differences.

What would fool it: a factor that grows along the classes opens a ring; `closure_limit` says from
which length on.

Source: this project.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite

CLOSURE = 0.5
"""What closure must exceed: 0 for an arc whose ends are half a cycle's distance apart, 1 for a
regular polygon."""

CLOSURE_KEPT = 5.0
"""`closure_of` lies within this of 0; at its lower end there is no closure to speak of."""


def closure_of(means: Float[Tensor, "*draw label d"]) -> Float[Tensor, "*draw"]:
    """Return (far - closing) / (far - adjacent) of class means in their natural order.

    1 where the step from last to first is like the others, 0 where the ends are as far apart as
    half a cycle, negative where they are farther. Noise of equal size in all means leaves it alone.
    Kept within -5 and 5, and -5 where half a cycle is no farther than a neighbour: such means have
    no shape that could close. `closure_text` says so.

    Raises:
        ToolkitError: no tensor of finite means, or fewer than five classes.

    >>> angle = 2 * math.pi * torch.arange(7) / 7
    >>> ring = torch.stack([angle.cos(), angle.sin()], 1)
    >>> half = torch.stack([(angle / 2).cos(), (angle / 2).sin()], 1)
    >>> round(float(closure_of(ring)), 3), round(float(closure_of(half)), 3)
    (1.0, -1.073)
    """
    rows = finite(means, "means", "*draw label d")
    check_period(n := rows.shape[-2])

    def apart(step: int) -> Tensor:
        return (rows - rows.roll(-step, dims=-2)).square().sum(-1)

    adjacent, far = apart(1), apart(n // 2).mean(-1)
    rise, fall = far - adjacent[..., :-1].mean(-1), far - adjacent[..., -1]
    tiny = torch.finfo(torch.float64).tiny
    ratio = torch.where(rise > 0, fall / rise.clamp_min(tiny), -CLOSURE_KEPT)
    return ratio.clamp(-CLOSURE_KEPT, CLOSURE_KEPT)


def closure_text(low: float, high: float, value: float | None = None) -> str:
    """Return closure and its interval in words; the ends at which it is kept are no measurements.

    >>> closure_text(0.9, 1.1), closure_text(-5.0, 3.2, 1.0)
    ('closure [0.9, 1.1]', 'closure 1 [none, 3.2]')
    >>> closure_text(-5.0, -5.0)
    'no closure to speak of (neighbours are hardly nearer than classes half a cycle apart)'
    """
    if high <= -CLOSURE_KEPT:
        return (
            "no closure to speak of (neighbours are hardly nearer than classes half a cycle apart)"
        )

    def words(closure: float) -> str:
        if abs(closure) < CLOSURE_KEPT:
            return f"{closure:.3g}"
        return "none" if closure < 0 else f"{CLOSURE_KEPT:g} or more"

    return f"closure {'' if value is None else f'{words(value)} '}[{words(low)}, {words(high)}]"


def closure_limit(period: int) -> float:
    """Return how long a linear factor may be, in radii of a regular ring, before it opens the ring.

    A factor that grows by s from class to class adds (k s)^2 to the squared distance of classes k
    apart, and (p - 1)^2 s^2 to that of the closing step; closure is one half where the length
    (p - 1) s is the one returned.

    Raises:
        ToolkitError: fewer than five classes.

    >>> round(closure_limit(7), 2), round(closure_limit(12), 2)
    (1.36, 1.48)
    """
    check_period(period)
    half, last = period // 2, period - 1
    gain = 4 * (math.sin(math.pi * half / period) ** 2 - math.sin(math.pi / period) ** 2)
    # Of the pairs half a cycle apart p - half are `half` apart along the line, the others p - half.
    spread = ((period - half) * half**2 + half * (period - half) ** 2) / period
    step = math.sqrt(gain * (1 - CLOSURE) / (last**2 - spread + CLOSURE * (spread - 1)))
    return last * step


def check_period(period: int) -> None:
    """Raise `ToolkitError` for fewer than five classes.

    >>> check_period(5)
    """
    if period < 5:
        raise ToolkitError(
            f"got period={period}; with fewer than five classes an order cannot be told from"
            " chance."
        )
