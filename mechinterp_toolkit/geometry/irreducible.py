"""Is a cloud of points in a plane more than two independent coordinates, and more than a line with
something beside it?

Two indices of Engels et al., exactly instead of by gradient ascent. *Separability* S: the mutual
information of the two coordinates in bits, at the rotation where it is least; 0 means that some
rotation makes them independent. *Mixture* M: the largest share of points within eps of a line, in
standard deviations of the distance from it; near 1 means that most of the cloud lies on a line. An
irreducible feature has a high S and a low M.

S is estimated on a histogram, whose bias for few points is large (.25 bits for 200 points on 10 x
10 bins): the mean over permutations of one coordinate is subtracted, and these draws are the null
of S. M needs no null: in two dimensions every offset of the line is tried for each of many
directions, on sorted projections.

What would fool it: a few tight clusters of points have a high S wherever they lie, so S alone shows
no ring; points of one cluster on a line through it make M at least their share.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860 (both indices); Miller 1955
(the bias).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, some_draws
from mechinterp_toolkit.nulls import p_value, why_undecided
from mechinterp_toolkit.results import Verdict

BINS = 10
"""Bins per coordinate, as published."""

ANGLES = 50
"""Rotations in [0, pi / 2): beyond, the coordinates only change places."""

DIRECTIONS = 360
"""Directions of lines in [0, pi)."""

MIXTURE = 0.5
"""Largest mixture index of an irreducible cloud: circles have .23, the cross of two lines .62."""

EPSILON = 0.1
"""Half width of a line, in standard deviations from it."""

_FEWEST = 20  # points: below, a 10 x 10 histogram says nothing


@dataclass(frozen=True)
class Irreducibility:
    """Both indices of a cloud of points in two dimensions or more."""

    separability: float
    """S in bits, bias subtracted, at least 0; in more than two dimensions the least over planes of
    principal components."""

    separability_raw: float
    """S as published, with its bias."""

    null: Float[Tensor, " draw"]
    """Raw S with one coordinate permuted: what independent coordinates of these spreads give, the
    same search included."""

    mixture: float
    """M in [0, 1]; a lower bound where `exact` is not."""

    exact: bool
    """Whether M was searched over every line: in two dimensions. Else directions were sampled and
    refined."""

    n: int
    """Points."""

    @property
    def p(self) -> float:
        """p-value of independent coordinates at some rotation."""
        return float(p_value(torch.tensor(self.separability_raw).double(), self.null))

    @property
    def represented(self) -> Verdict:
        """Whether the cloud is irreducible: dependent at every rotation, and no mixture."""
        bound = "" if self.exact else " at least"
        indices = f"S = {self.separability:.2f} bits, M = {self.mixture:.2f}{bound}"
        short = why_undecided(len(self.null))
        if short:
            return Verdict("undecided", f"{indices}; {short}", p=self.p)
        if self.p > 0.05:
            reason = f"{indices}: at some rotation the coordinates are independent."
            return Verdict("not_found", reason, p=self.p)
        if self.mixture > MIXTURE:
            reason = f"{indices}: most points lie along one line, so it is a mixture."
            return Verdict("not_found", reason, p=self.p)
        reason = f"{indices}: no rotation separates it, and it is no mixture."
        return Verdict("found", reason, p=self.p, smallest_effect=MIXTURE)

    @property
    def score(self) -> float:
        """(1 - M) S: large for an irreducible feature."""
        return (1 - self.mixture) * self.separability


def irreducibility(
    points: Float[Tensor, "n d"], *, draws: int = 19, seed: int = 0
) -> Irreducibility:
    """Measure both indices.

    Args:
        points: a cloud, centred or not; in any units.
        draws: permutations behind the bias and the null of S; 19 give a p-value of .05 at best.
        seed: of the permutations, and of the directions in more than two dimensions.

    Raises:
        ToolkitError: no tensor, fewer than 20 points, fewer than two dimensions, a number that is
            not finite, or no draws.

    >>> angle = 2 * torch.pi * torch.rand(300, generator=torch.Generator().manual_seed(0))
    >>> cloud = irreducibility(torch.stack([angle.cos(), angle.sin()], 1))
    >>> f"S = {cloud.separability:.1f}, M = {cloud.mixture:.1f}", cloud.represented.outcome
    ('S = 1.3, M = 0.3', 'found')
    """
    cloud, draws = _checked(points), some_draws(draws)
    generator = torch.Generator().manual_seed(seed)
    planes = [cloud[:, i : i + 2] for i in range(cloud.shape[1] - 1)]
    raw, null = min(
        (_against_permuted(plane, draws, generator) for plane in planes),
        key=lambda raw_and_null: raw_and_null[0] - float(raw_and_null[1].mean()),
    )
    exact = cloud.shape[1] == 2
    on_line = mixture(cloud) if exact else _sampled_mixture(cloud, generator)
    return Irreducibility(max(0.0, raw - float(null.mean())), raw, null, on_line, exact, len(cloud))


def separability(
    points: Float[Tensor, "n 2"], *, bins: int = BINS, angles: int = ANGLES
) -> tuple[float, int]:
    """Return the least mutual information over rotations in bits, bias included, and its angle.

    The angle is an index: one of `angles` at even distances in [0, pi / 2).

    Raises:
        ToolkitError: no tensor [n 2] of finite numbers.

    >>> square = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))  # independent
    >>> [round(number, 9) for number in separability(square)]
    [0.0, 0]
    """
    turned = _turned(finite(points, "points", "n 2"), angles)
    information = _information(turned[..., 0], turned[..., 1], bins)
    least = int(information.argmin())
    return float(information[least]), least


def mixture(
    points: Float[Tensor, "n 2"], *, epsilon: float = EPSILON, directions: int = DIRECTIONS
) -> float:
    """Return the largest share of points within `epsilon` of a line of any offset and direction.

    The distance from a line at offset c is measured in its own root mean square, sqrt(E[(v.x -
    c)^2]), as published, so that lines far from the cloud are wider.

    Args:
        points: a cloud in the plane.
        epsilon: half width of a line, in these units.
        directions: how many are tried, at even angles in [0, pi).

    Raises:
        ToolkitError: no tensor [n 2] of finite numbers.

    >>> cross = torch.tensor([[1.0, 0], [2, 0], [-1, 0], [-2, 0], [0, 1], [0, -1]])
    >>> f"{mixture(cross):.2f}"  # four of six points lie on the first axis
    '0.67'
    """
    angle = torch.arange(directions, dtype=torch.float64) * torch.pi / directions
    axes = torch.stack([angle.cos(), angle.sin()])
    return float(_most_within(finite(points, "points", "n 2") @ axes, epsilon).max())


def _checked(points: Any) -> Float[Tensor, "n d"]:
    cloud = finite(points, "points")
    if len(cloud) < _FEWEST or cloud.shape[1] < 2:
        raise ToolkitError(
            f"got points of shape {tuple(cloud.shape)}; expected at least {_FEWEST} rows of two or"
            " more coordinates."
        )
    if cloud.shape[1] > 2:
        cloud = cloud - cloud.mean(0)
        cloud = cloud @ torch.linalg.svd(cloud, full_matrices=False)[2].T
    return cloud


def _turned(points: Float[Tensor, "n 2"], angles: int) -> Float[Tensor, "angle n 2"]:
    angle = torch.arange(angles, dtype=torch.float64) * torch.pi / 2 / angles
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    return points @ rotation


def _against_permuted(
    points: Float[Tensor, "n 2"], draws: int, generator: torch.Generator
) -> tuple[float, Float[Tensor, " draw"]]:
    """Raw S, and raw S of the points turned to its angle with the second coordinate permuted."""
    observed, angle = separability(points)
    first, second = _turned(points, ANGLES)[angle].T
    null = [
        separability(
            torch.stack([first, second[torch.randperm(len(second), generator=generator)]], 1)
        )[0]
        for _ in range(draws)
    ]
    return observed, torch.tensor(null, dtype=torch.float64)


def _information(
    x: Float[Tensor, "angle n"], y: Float[Tensor, "angle n"], bins: int
) -> Float[Tensor, " angle"]:
    """Mutual information in bits of two coordinates, each cut into equal bins over its range, one
    histogram per angle."""
    cell = _bin(x, bins) * bins + _bin(y, bins)
    offset = torch.arange(len(cell))[:, None] * bins * bins
    count = torch.bincount((cell + offset).flatten(), minlength=len(cell) * bins * bins)
    joint = count.reshape(len(cell), bins, bins).double() / x.shape[1]

    def entropy(p: Tensor) -> Tensor:
        return -torch.special.xlogy(p, p).sum(-1) / math.log(2)

    return entropy(joint.sum(2)) + entropy(joint.sum(1)) - entropy(joint.flatten(1))


def _bin(x: Float[Tensor, "angle n"], bins: int) -> Tensor:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    width = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
    return ((x - low) / width * bins).long().clamp(max=bins - 1)


def _most_within(
    projected: Float[Tensor, "n direction"], epsilon: float
) -> Float[Tensor, " direction"]:
    """Largest share of points within epsilon root mean squares of a point on the line, per
    direction.

    With variance s^2 and mean m, the points within epsilon sqrt(s^2 + (m - c)^2) of c are counted
    for every c at which the count can rise: where the lower or the upper end of the window meets a
    point.
    """
    sorted_, n = projected.T.sort(dim=1).values, len(projected)
    mean = sorted_.mean(1, keepdim=True)
    spread = sorted_.sub(mean).square().mean(1, keepdim=True)
    ends = torch.cat([_centre(sorted_ - mean, spread, epsilon, sign) for sign in (-1, 1)], dim=1)
    width = (
        epsilon * (spread + ends.square()).sqrt() * (1 + 1e-12)
    )  # the point that sets the window counts
    centred = (sorted_ - mean).contiguous()
    upper = torch.searchsorted(centred, (ends + width).contiguous(), right=True)
    lower = torch.searchsorted(centred, (ends - width).contiguous())
    return (upper - lower).amax(1).double() / n


def _centre(x: Tensor, spread: Tensor, epsilon: float, sign: int) -> Tensor:
    """The c with x - c = sign * epsilon sqrt(spread + c^2), both measured from the mean."""
    squared = epsilon * epsilon
    root = (x.square() - (1 - squared) * (x.square() - squared * spread)).clamp(min=0).sqrt()
    return (x - sign * root) / (1 - squared)


def _sampled_mixture(cloud: Float[Tensor, "n d"], generator: torch.Generator) -> float:
    """The best of random directions, then of directions ever closer around the best so far: a lower
    bound."""
    best, value = torch.zeros(cloud.shape[1], dtype=torch.float64), -1.0
    for spread in (1.0, 0.5, 0.25, 0.12, 0.06, 0.03):
        around = torch.randn(500, cloud.shape[1], generator=generator, dtype=torch.float64)
        tried = best + spread * around  # the first round is around the origin: anywhere
        tried = tried / tried.norm(dim=1, keepdim=True)
        shares = _most_within(cloud @ tried.T, EPSILON)
        top = int(shares.argmax())
        if float(shares[top]) > value:
            best, value = tried[top], float(shares[top])
    return value
