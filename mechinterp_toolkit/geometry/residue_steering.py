"""Does the answer follow when one residue of n mod T is exchanged for another?

One residue's direction is exchanged for another's, and the reader of the state has to answer with
the successor of the item with the new residue.

What would fool it: random directions rarely steer anything, so the features must also beat
themselves with residues exchanged.

Source: Gould et al. 2023, arXiv:2312.09230 (vector arithmetic); the nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, same_width, whole_numbers
from mechinterp_toolkit.nulls import p_value, permutations, why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap, judge_p


@dataclass(frozen=True)
class ResidueSteering:
    """Result of `steer_residues`; a cell is an item and a residue that is not its own."""

    share: Estimate
    """Share of cells in which the answer is the successor of the intended item; control: random
    directions."""

    shuffled: Float[Tensor, " draw"]
    """The share with the features' residues permuted."""

    exact: bool
    """Whether `shuffled` holds every permutation, the identity among them."""

    item: Int[Tensor, " cell"]
    """Position of the item that was steered."""

    residue: Int[Tensor, " cell"]
    """Residue it was given."""

    intended: Int[Tensor, " cell"]
    """Position of the right answer."""

    chosen: Int[Tensor, " cell"]
    """Position of the largest logit; -1 where several tie."""

    left_out: int
    """Cells without an intended item, or whose intended item has no successor."""

    unsteered: float
    """Share of items whose own successor is answered without steering, in [0, 1]."""

    @property
    def used(self) -> Verdict:
        """Whether exchanging features moves the answer beyond random directions and residues."""
        share, permuted = float(self.share.value), float(self.shuffled.mean())
        p_permuted = p_value(self.share.value, self.shuffled, exact=self.exact)
        return judge_p(
            float(torch.maximum(self.share.p(), p_permuted)),
            f"{share:.0%} of {len(self.item)} cells are answered as intended",
            f"with permuted residues, {permuted:.0%}, and controls, {self.share.control_text()}",
            short=why_undecided(self.share.draws, len(self.shuffled) if self.exact else None),
        )


def steer_residues(
    items: Float[Tensor, "item d"],
    number: Int[Tensor, " item"],
    features: Float[Tensor, "residue d"],
    scale: float,
    read: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n item"]],
    *,
    draws: int = 39,
    seed: int = 0,
    cyclic: bool = False,
) -> ResidueSteering:
    """Add `scale` times (feature of residue j - feature of the own residue) to every item, and read
    the answer.

    The right answer is the successor of the item with residue j in the same block of T numbers. An
    item's own residue changes nothing and is no cell: see `unsteered`.

    Args:
        items: one state per item.
        number: its number, each once.
        features: one direction per residue, such as `ResidueFeatures.features`.
        scale: how far to move.
        read: from states, in the dtype of `items`, to one logit per item.
        draws: random directions of the features' norms, and permutations of their residues.
        seed: of both and of the bootstrap.
        cyclic: whether the smallest number follows the largest.

    Raises:
        ToolkitError: a number comes twice, no cell is left, arguments that are no tensors of finite
            numbers with a row each, features of another width, or logits that are not finite or
            have the wrong shape.

    >>> months = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    >>> following = torch.linalg.pinv(months).roll(1, 1)  # reads the month after a state
    >>> steered = steer_residues(
    ...     months, torch.arange(12), months, 1.0, lambda states: states @ following, cyclic=True
    ... )
    >>> steered.share.text(), steered.unsteered, steered.used.outcome
    ('1 [1, 1]', 1.0, 'found')
    """
    rows, directions = finite(items, "items", "item d"), finite(features, "features", "residue d")
    number = whole_numbers(number, "number", len(rows))
    same_width(directions, "features", rows.shape[1], "items")
    cells = _cells(number, len(directions), cyclic)
    own, follows = number[cells.item] % len(directions), _successors(number, cyclic)

    def chosen(states: Tensor) -> Tensor:
        return _largest(read(states.to(items)), len(states), len(rows))

    def answers(by: Tensor) -> Tensor:
        return chosen(rows[cells.item] + scale * (by[cells.residue] - by[own]))

    def shares(draws: Float[Tensor, "draw residue d"]) -> Float[Tensor, " draw"]:
        return torch.stack([(answers(by) == cells.intended).double().mean() for by in draws])

    plain, answered = chosen(rows), answers(directions)
    orders = permutations(len(directions), draws=draws, seed=seed)
    share = bootstrap(
        (answered == cells.intended).double(),
        unit_name="items",
        measured="share of cells answered as intended, in [0, 1]",
        seed=seed,
        unit=cells.item,
        control=shares(_random_like(directions, draws, seed)),
        control_name="random directions of the same norm",
    )
    return ResidueSteering(
        share=share,
        shuffled=shares(directions[orders.index]),
        exact=orders.exact,
        **cells._asdict(),
        chosen=answered,
        unsteered=float((plain == follows)[follows >= 0].double().mean()),
    )


def _random_like(
    directions: Float[Tensor, "residue d"], draws: int, seed: int
) -> Float[Tensor, "draw residue d"]:
    """Random directions of the same norms."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(draws, *directions.shape, generator=generator, dtype=torch.float64)
    return drawn * (directions.norm(dim=1) / drawn.norm(dim=2))[:, :, None]


def _successors(number: Int[Tensor, " item"], cyclic: bool) -> Int[Tensor, " item"]:
    """Position of the item with the next number, -1 where there is none."""
    at = {n: k for k, n in enumerate(number.tolist())}
    after = {max(at): at[min(at)]} if cyclic else {}
    return torch.tensor([at.get(n + 1, after.get(n, -1)) for n in number.tolist()])


class _Cells(NamedTuple):
    item: Int[Tensor, " cell"]
    residue: Int[Tensor, " cell"]
    intended: Int[Tensor, " cell"]
    left_out: int


def _cells(number: Int[Tensor, " item"], period: int, cyclic: bool) -> _Cells:
    """Every item with every residue that is not its own."""
    at = {n: k for k, n in enumerate(number.tolist())}
    if len(at) < len(number):
        raise ToolkitError(
            f"{len(number)} items have {len(at)} different numbers; expected each number once."
        )
    if period < 2:
        raise ToolkitError(
            f"got {period} features; expected one for each residue of a period of at least 2."
        )
    follows = _successors(number, cyclic).tolist()
    cells, left_out = [], 0
    for n, k in at.items():
        for j in set(range(period)) - {n % period}:
            target = at.get(n - n % period + j, -1)
            if target < 0 or follows[target] < 0:
                left_out += 1
            else:
                cells.append((k, j, follows[target]))
    if len({k for k, _, _ in cells}) < 2:
        raise ToolkitError(
            f"{len(cells)} cells of {len(number)} items have an answer, {left_out} have none;"
            " expected cells of at least two items: give numbers that follow each other within"
            f" blocks of {period}."
        )
    item, residue, intended = torch.tensor(cells).T
    return _Cells(item, residue, intended, left_out)


def _largest(logits: Any, n: int, items: int) -> Int[Tensor, " n"]:
    """Position of the largest logit, -1 where several tie: equal logits choose nothing."""
    values = finite(logits, "logits", "n item")
    if tuple(values.shape) != (n, items):
        raise ToolkitError(
            f"read gave logits of shape {tuple(values.shape)}; expected {(n, items)}: one per item."
        )
    most = values.amax(1, keepdim=True)
    return values.argmax(1).where((values == most).sum(1) == 1, torch.tensor(-1))
