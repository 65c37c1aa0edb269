"""On the cosets of which subgroup is a function constant?

For the centred function X of unit norm let A(h) = sum_x X(hx) X(x). Then the share of variance that
the cosets of H explain is the mean of A over H, for every subgroup H at once, and {h : A(h) near 1}
is the stabiliser itself: no list of subgroups is needed. Where A(h) may also be near -1, the
subgroup keeps the function up to sign.

What would fool it: the wrong side (functions of the left input are constant on right cosets Hx:
`side="left"`), and the lack of a null: a random vector of a small irrep has a stabiliser too.
Compare the order of the subgroup with that of random functions of equal rank.

Source: Stander et al. 2023, arXiv:2312.06581 (coset concentration); Wu et al. 2024,
arXiv:2410.07476 (explained variance).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups.subgroups import closure
from mechinterp_toolkit.groups.table import Group, Members, Side
from mechinterp_toolkit.groups.transform import correlation_coefficients, fourier, inverse_fourier

TOLERANCE = 0.02
"""How far below 1 the autocorrelation of an element of a stabiliser may lie."""


@dataclass(frozen=True)
class Stabiliser:
    """The elements that leave one function (nearly) unchanged."""

    members: Members
    """The subgroup, as sorted element indices."""

    explained: float
    """Mean of A(h), or of its size where signs may change, over the members, in [0, 1]: the share
    of the variance explained by their cosets."""


def autocorrelation(
    group: Group, f: Float[Tensor, "*batch order"], *, side: Side
) -> Float[Tensor, "*batch order"]:
    """Return A(h) = sum_x X(hx) X(x) (side "left") or sum_x X(xh) X(x) ("right").

    X is f, centred and of unit norm: A(identity) = 1 and every value lies in [-1, 1]. It costs one
    Fourier transform and its inverse.

    Raises:
        ToolkitError: a function is constant, so that nothing is left after centring.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> f = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> autocorrelation(cyclic(4), f, side="left").round().int().tolist()
    [1, -1, 1, -1]
    """
    centred = f.double() - f.double().mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    # Centring a constant leaves rounding of about 1e-16 of its size.
    dead = (norm[..., 0] <= 1e-12 * f.double().norm(dim=-1)).flatten().nonzero().flatten().tolist()
    if dead:
        first = ", ".join(map(str, dead[:8]))
        which = f"{len(dead)} of the functions ({first})" if f.dim() > 1 else "the function"
        raise ToolkitError(
            f"{which} constant on {group.name}: no variance to explain; leave constant functions"
            " out."
        )
    coefficients = correlation_coefficients(group, fourier(group, centred / norm), side=side)
    return inverse_fourier(group, coefficients)


def stabilisers(
    group: Group,
    f: Float[Tensor, "function order"],
    *,
    side: Side,
    tolerance: float = TOLERANCE,
    up_to_sign: bool = False,
) -> list[Stabiliser]:
    """Return the subgroup that keeps each function nearly constant, without a list of subgroups.

    For a function that is nearly constant on the cosets of H and of nothing larger this is H. Where
    the elements with A(h) > 1 - `tolerance` are no subgroup, it is the one made of them, most
    correlated first, that explains 1 - `tolerance` of the variance.

    Args:
        group: The group.
        f: Functions on it, none of them constant.
        side: The side the stabiliser multiplies from: "left" for f(hx) = f(x).
        tolerance: How far below 1 an autocorrelation still counts.
        up_to_sign: Also take elements that change the sign of f.

    Raises:
        ToolkitError: a function is constant.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> f = torch.tensor([[1.0, 5.0, 1.0, 5.0]])
    >>> stabilisers(cyclic(4), f, side="left")[0].members
    (0, 2)
    >>> stabilisers(cyclic(4), f, side="left", up_to_sign=True)[0].members
    (0, 1, 2, 3)
    """
    correlation = autocorrelation(group, f, side=side)
    correlation = correlation.abs() if up_to_sign else correlation
    least = 1 - tolerance
    # In a cyclic group a small step nearly keeps a slow wave and would generate everything: an
    # element counts only if the mean over the cyclic subgroup it generates is above `least` too.
    counts = (correlation > least) & (_means_over_powers(group, correlation) > least)
    generated = functools.cache(functools.partial(closure, group))
    stable = []
    for which, row in zip(counts, correlation, strict=True):
        members = _largest_within(group, row, which, least, generated)
        stable.append(Stabiliser(members, float(row[list(members)].mean())))
    return stable


def _means_over_powers(
    group: Group, correlation: Float[Tensor, "function order"]
) -> Float[Tensor, "function order"]:
    """For each element g, the mean over the cyclic subgroup it generates."""
    power = torch.full((group.order,), group.identity)
    total = torch.zeros_like(correlation)
    for k in range(int(group.element_orders.max())):
        total += correlation[:, power] * (k < group.element_orders)
        power = group.product(power, torch.arange(group.order))
    return total / group.element_orders


def _largest_within(
    group: Group,
    correlation: Float[Tensor, " order"],
    counts: Bool[Tensor, " order"],
    least: float,
    generated: Callable[[Members], Members],
) -> Members:
    """The elements that count where they are a subgroup, else a subgroup made of them.

    One that takes the mean of the whole below `least` is left out.
    """
    near = tuple(counts.nonzero().flatten().tolist())
    if generated(near) == near:
        return near
    members = generated(())
    for g in sorted(near, key=lambda h: -float(correlation[h])):
        # Most misfits show in the coset they would bring along, which is cheaper to look at than
        # what they generate.
        coset = group.product(torch.tensor([g]), torch.tensor(members))
        if g not in members and bool(counts[coset].all()):
            wider = generated(tuple(sorted((*members, g))))
            members = wider if float(correlation[list(wider)].mean()) > least else members
    return members
