"""Could a number have come out this large without the structure? Arrangements and p-values.

p-values compare an observed statistic with its draws under a null, large being extreme; a
correction covers the tests that were made together. Arrangements are what a null draws. Tensors go
in, tensors come out, computed in float64 on the CPU; nothing here knows a model.

What would fool it: draws that destroy more than the claimed structure, a search that the null did
not repeat, and units that are not exchangeable (prompts, where the claim is about weekdays). No
function here can see any of the three.

Source: Phipson & Smyth 2010 (p-values are never zero); Westfall & Young 1993 (maximum statistic);
Benjamini & Hochberg 1995.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError


def p_value(
    observed: Float[Tensor, "*items"], draws: Float[Tensor, "draw *items"], *, exact: bool = False
) -> Float[Tensor, "*items"]:
    """Return the chance, under the null, of a statistic as large as the observed one or larger.

    Ties count as exceedances. Numbers tie within 100 rounding units of the coarser dtype: an
    arrangement summed in another order is still the same arrangement.

    Args:
        observed: one statistic per item, large meaning more of the structure.
        draws: the same statistics under the null.
        exact: the draws enumerate every arrangement, the observed one among them
            (`Permutations.exact`).

    Returns:
        (1 + exceedances) / (1 + draws), or exceedances / draws where `exact`; in (0, 1], not
        corrected for looking at several items.

    Raises:
        ToolkitError: a number is not finite, or "exact" draws never reach the observed value.

    >>> p_value(torch.tensor([2.0, 0.5]), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.5]]))
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    return _tail(*_comparable(observed, draws), _rounding(observed, draws), exact)


def max_statistic_p(
    observed: Float[Tensor, "*items"],
    draws: Float[Tensor, "draw *items"],
    *,
    studentise: bool = False,
    exact: bool = False,
) -> Float[Tensor, "*items"]:
    """Return p-values corrected for looking at all items: each meets the largest of every draw.

    One draw must be one shuffle applied to all items, so that their correlation carries over. The
    chance that any item without an effect gets p <= alpha is then at most alpha (Westfall & Young's
    single-step procedure; with true effects elsewhere it also needs the null of an item not to
    depend on whether the others have one).

    Args:
        observed: one statistic per item.
        draws: the same statistics under the null.
        studentise: first subtract each item's mean over the draws and the observed value and divide
            by their standard deviation. Without it the item with the widest null sets the bar for
            all; with it the bar is the same in each item's own standard deviations. The observed
            value counts as a draw in both: without it, it looks extreme by itself (19 draws, 20
            items: 20 % false findings at 5 %).
        exact: as in `p_value`.

    Raises:
        ToolkitError: as `p_value`; or an item never varies over the draws and was to be
            studentised.

    >>> draws = torch.tensor([[0.0, 3.0], [1.0, 1.0], [1.0, 0.0]])
    >>> max_statistic_p(torch.tensor([2.0, 0.5]), draws)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    rounding = _rounding(observed, draws)
    value, null = _comparable(observed, draws)
    if studentise:
        pool = null if exact else torch.cat([value[None], null])
        mean, sd = pool.mean(0), pool.std(0)
        constant = int((sd <= rounding * mean.abs()).sum())
        if constant:
            raise ToolkitError(
                f"{constant} of {sd.numel()} items have the same statistic in every draw and cannot"
                " be studentised; leave such items out and report them as not applicable, or use"
                " studentise=False."
            )
        value, null = (value - mean) / sd, (null - mean) / sd
    largest = null.reshape(len(null), -1).amax(1)
    return _tail(value, largest.reshape(-1, *[1] * value.dim()), rounding, exact)


def benjamini_hochberg(p: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """Return p-values adjusted for the false-discovery rate over all items of `p`.

    Rejecting where the result is <= q keeps the expected share of false findings among the findings
    at or below q, for independent or positively dependent tests. The p-values must be fine enough:
    see `draws_needed`.

    Raises:
        ToolkitError: a p-value lies outside (0, 1].

    >>> benjamini_hochberg(torch.tensor([0.01, 0.5, 0.03]))
    tensor([0.0300, 0.5000, 0.0450], dtype=torch.float64)
    """
    flat = p.detach().cpu().double().flatten()
    outside = int((~((flat > 0) & (flat <= 1))).sum())
    if outside:
        raise ToolkitError(
            f"{outside} of {len(flat)} p-values lie outside (0, 1]; count the observed draw among"
            " them."
        )
    order = flat.argsort(descending=True)
    rank = torch.arange(len(flat), 0, -1, dtype=torch.float64)
    adjusted = (flat[order] * (len(flat) / rank)).cummin(0).values
    return torch.empty_like(flat).scatter_(0, order, adjusted).reshape(p.shape)


def smallest_p(draws: int, *, exact: bool = False) -> float:
    """Return the smallest p-value that `draws` can give.

    In an enumeration (`exact`) count arrangements that always score alike once: of the 360 orders
    of 7 classes 120 are left when harmonics are searched.

    Raises:
        ToolkitError: no draws.

    >>> smallest_p(19), smallest_p(20, exact=True)
    (0.05, 0.05)
    """
    if draws < 1:
        raise ToolkitError(f"got draws={draws}; a p-value needs at least one draw under the null.")
    return 1 / draws if exact else 1 / (1 + draws)


def draws_needed(alpha: float, n_tests: int = 1) -> int:
    """Return the least number of random draws with which one true effect can pass at `alpha`.

    With just this number the effect has to exceed every draw.

    Args:
        alpha: the level of all tests together.
        n_tests: p-values that are multiplied by their number, as in Benjamini-Hochberg; 1 for a
            maximum statistic, whose correction lies inside.

    Raises:
        ToolkitError: `alpha` is no probability or there is no test.

    >>> draws_needed(0.05), draws_needed(0.05, 144)
    (19, 2879)
    """
    if not 0 < alpha < 1 or n_tests < 1:
        raise ToolkitError(
            f"got alpha={alpha} and n_tests={n_tests}; expected alpha in (0, 1) and at least one"
            " test."
        )
    draws = max(math.ceil(n_tests / alpha) - 2, 1)
    while smallest_p(draws) * n_tests > alpha:  # a step or two: the division above was rounded
        draws += 1
    return draws


def why_undecided(
    draws: int, arrangements: int | None = None, *, alpha: float = 0.05, n_tests: int = 1
) -> str | None:
    """Return why no test can pass whatever it observes, with what it takes; None where one can.

    The sentence is the reason of an `undecided` verdict.

    Args:
        draws: how many were drawn under the null, or are all there are.
        arrangements: how many arrangements differ for the statistic, the observed one among them:
            draws beyond these only repeat. None where there are far more than draws.
        alpha, n_tests: as in `draws_needed`.

    >>> why_undecided(10)
    'the smallest p-value of 10 draws is 0.091, above the level 0.05; at least 19 draws are needed.'
    """
    level = f"level {alpha:g}" + (f" / {n_tests} tests" if n_tests > 1 else "")
    if arrangements is not None:
        floor = smallest_p(arrangements, exact=True)
        if floor * n_tests > alpha:
            return (
                f"the smallest p-value of {arrangements:,} arrangements is {floor:.2g}, above the"
                f" {level}; no more arrangements exist: it takes more units."
            )
    floor, needed = smallest_p(draws), draws_needed(alpha, n_tests)
    if floor * n_tests <= alpha:
        return None
    return (
        f"the smallest p-value of {draws:,} draws is {floor:.2g}, above the {level}; at least"
        f" {needed:,} draws are needed."
    )


def _comparable(observed: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    value, null = observed.detach().cpu().double(), draws.detach().cpu().double()
    if len(null) == 0 or not value.isfinite().all() or not null.isfinite().all():
        raise ToolkitError(
            f"{int((~value.isfinite()).sum())} observed and {int((~null.isfinite()).sum())} drawn"
            f" statistics are NaN or infinite, in {len(null)} draws; expected one draw or more, all"
            " finite: leave out what was not measured."
        )
    return value, null


def _rounding(*tensors: Tensor) -> float:
    """100 relative rounding units of the coarsest dtype: what another order of a sum may change."""
    return 100 * max(torch.finfo(tensor.dtype).eps for tensor in tensors)


def _tail(value: Tensor, null: Tensor, rounding: float, exact: bool) -> Tensor:
    exceedances = (null >= value - rounding * value.abs()).sum(0)
    if not exact:
        return (1 + exceedances).double() / (1 + len(null))
    if exceedances.numel() and int(exceedances.min()) == 0:
        raise ToolkitError(
            f"exact=True, but none of the {len(null)} draws reaches an observed value; an"
            " enumeration contains the observed arrangement. Compute observed and draws with the"
            " same function, or use exact=False."
        )
    return exceedances.double() / len(null)


@dataclass(frozen=True)
class Permutations:
    """Arrangements of n exchangeable units, one per draw."""

    index: Int[Tensor, "draw n"]
    """`values[index]` is one rearranged copy per draw: position j holds unit `index[draw, j]`."""

    exact: bool
    """Whether these are all arrangements, each once, the identity among them; pass it on to
    `p_value`."""


def permutations(
    n: int, *, draws: int, seed: int, kind: Literal["all", "cyclic_orders"] = "all"
) -> Permutations:
    """Return random arrangements of `n` units, or all of them where there are at most `draws`.

    Args:
        n: number of exchangeable units (classes, not prompts, for a claim about classes).
        draws: how many to draw; uniform, with replacement, the identity not excluded.
        seed: of the draws.
        kind: "all" has n! arrangements. "cyclic_orders" has (n-1)!/2 (360 for 7), for statistics
            that rotation and reflection leave alone: unit 0 comes first and its neighbours in
            rising order.

    Raises:
        ToolkitError: fewer than one unit (three for cyclic orders) or no draws.

    >>> permutations(3, draws=6, seed=0)
    Permutations(index=tensor([[0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0]]), exact=True)
    """
    cyclic = kind == "cyclic_orders"
    if n < (3 if cyclic else 1) or draws < 1:
        raise ToolkitError(
            f"got n={n} and draws={draws}; expected at least {3 if cyclic else 1} units and one"
            " draw."
        )
    if math.factorial(n - 1) // 2 <= draws if cyclic else math.factorial(n) <= draws:
        orders = itertools.permutations(range(n))
        kept = [order for order in orders if not cyclic or (order[0] == 0 and order[1] < order[-1])]
        return Permutations(torch.tensor(kept), exact=True)
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(draws, n - cyclic, generator=generator, dtype=torch.float64).argsort(1)
    if cyclic:
        index = torch.where(index[:, :1] > index[:, -1:], index.flip(1), index)
        index = torch.cat([torch.zeros(draws, 1, dtype=torch.long), index + 1], dim=1)
    return Permutations(index, exact=False)


def balanced_relabellings(
    label: Int[Tensor, " n"], *, draws: int, seed: int
) -> Int[Tensor, "draw n"]:
    """Return labels shuffled so that every class is spread evenly over the new ones.

    Nothing of the old labels is left. Uniform shuffles of few units leave a little of the true
    classes in the new ones, and where an edit made from them is brought to a given size, that
    little can be most of it. For tests of an edit, not of a statistic: the observed labels are none
    of these, so a p-value for labels themselves needs `permutations`.

    Args:
        label: class of each unit, from 0.
        draws: how many.
        seed: of the draws.

    Returns:
        As many units of each class as before; units of one class share the new classes in
        proportion, rounded at random.

    Raises:
        ToolkitError: fewer than two classes.

    >>> drawn = balanced_relabellings(torch.tensor([0, 0, 1, 1]), draws=3, seed=0)
    >>> drawn[:, :2].sum(1)  # half of each class gets the other's label
    tensor([1, 1, 1])
    """
    count = label.bincount()
    classes = int((count > 0).sum())
    if classes < 2:
        raise ToolkitError(f"labels of {classes} class cannot be spread; give two classes or more.")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(draws):
        # Units in random order, class by class; new labels dealt in turn over that order at even
        # distances.
        order = (label + torch.rand(len(label), generator=generator)).argsort()
        dealt = torch.cat(
            [torch.arange(int(n)) / n + torch.rand(1, generator=generator) / n for n in count if n]
        )
        new = torch.repeat_interleave(torch.arange(len(count)), count)[dealt.argsort()]
        relabelled = torch.empty_like(label)
        relabelled[order] = new
        rows.append(relabelled)
    return torch.stack(rows)


def permuted_within(group: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return a random order of n rows in which every row takes the place of one of its group.

    >>> group = torch.tensor([0, 1, 0, 1])
    >>> group[permuted_within(group, torch.Generator().manual_seed(0))]
    tensor([0, 1, 0, 1])
    """
    order = torch.empty_like(group)
    for name in group.unique():
        members = (group == name).nonzero()[:, 0]
        order[members] = members[torch.randperm(len(members), generator=generator)]
    return order
