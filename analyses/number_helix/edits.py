"""What does setting a number's helix to another number's do to the answer?

Each number of a few is moved to each other one, in front of each block: by the difference of two
points on the helix, on the largest circle alone, on a polynomial of the same rank, on as many
principal components, or of the whole stream. The descriptions are fitted to the other numbers.

What would fool it: a set of points far from any the model knows may move every answer, which is why
the null permutes the same points among the numbers.

Source: Kantamneni and Tegmark 2025, arXiv:2502.00873; the null is this toolkit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses._exchanges import (
    at_positions,
    followed,
    mean_by_item,
    moved_share,
)
from mechinterp_toolkit.analyses.number_helix.result import EDITS
from mechinterp_toolkit.analyses.number_helix.tasks import NumberTask
from mechinterp_toolkit.geometry.helix import Period, helix_basis
from mechinterp_toolkit.geometry.regression import class_means, k_fold, polynomials, projected
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate, along
from mechinterp_toolkit.stats import bootstrap

KEPT_DRAWS = 199
"""Draws of a null that a result keeps."""


@dataclass(frozen=True)
class HelixEdits:
    """Result of `set_numbers`; empty where the whole stream does not move the answer."""

    moved: Estimate | None = None
    """What setting the helix does at the best hook point, in shares of the whole stream."""

    curve: Estimate | None = None
    """The same for each of `EDITS` and hook point, [edit, hook point]."""

    new_answers: Float[Tensor, "edit hook_point"] | None = None
    """Share of edits after which the new number's answer is highest among all numbers."""


def set_numbers(
    model: HookedModel,
    task: NumberTask,
    names: tuple[str, ...],
    best: int,
    periods: Sequence[Period],
    *,
    targets: int,
    draws: int,
    seed: int,
) -> HelixEdits:
    """Set each target number to every other one, by each of `EDITS` at each hook point.

    Args:
        model: runs the prompts.
        task: what is asked.
        names: hook points where numbers are set.
        best: which of them the verdict is about.
        periods: of the helix.
        targets: numbers that are exchanged, at even distances; the others are fitted.
        draws: permutations of the points, `KEPT_DRAWS` at most.
        seed: of these and of the resampling of numbers.

    >>> from mechinterp_toolkit.analyses.number_helix.tasks import number_tokens, succession_task
    >>> from mechinterp_toolkit.model import load_model
    >>> model, at = load_model("toy/ordinal"), ("blocks.0.hook_resid_pre",)
    >>> task = succession_task(model, number_tokens(model))
    >>> with torch.no_grad():
    ...     edits = set_numbers(model, task, at, 0, (2, 5), targets=4, draws=19, seed=0)
    >>> f"{float(edits.curve.at(EDITS.index('whole stream'), 0).value):.2f}"  # by definition
    '1.00'
    """
    most = min(targets, len(task.numbers) // 2)
    chosen = torch.linspace(0, len(task.numbers) - 1, most).round().long().unique()
    asked = task.select(torch.isin(task.which, chosen))
    item, judged = torch.searchsorted(chosen, asked.which), asked.answers[:, chosen]
    base = asked.logits(model).gather(1, judged)
    read = activations(model, task.prompts.tokens, names, mask=task.prompts.mask, position=task.at)

    def moves(name: str, points: Float[Tensor, "target d"]) -> tuple[Tensor, float]:
        """From item i, set to k, judged as j: rise of j's answer, centred over all judged."""
        rises, right = [], []
        for k in range(len(points)):
            shift = points[k] - points[item]
            with applied(model, {name: at_positions(asked.at, shift.add)}, mask=asked.prompts.mask):
                logits = asked.logits(model)
            rises.append(logits.gather(1, judged) - base)
            right.append(asked.right(logits, judged[:, k])[item != k])
        rise = torch.stack(rises)
        way = mean_by_item(rise - rise.mean(2, keepdim=True), item)
        return way, float(torch.cat(right).mean())

    found = [
        [moves(name, points) for points in _points(read[name], task, chosen, periods)]
        for name in names
    ]
    # edit, hook point, item, set, judged
    way = torch.stack([torch.stack([ways for ways, _ in edits]) for edits in found], 1)
    new_answers = torch.tensor([[right for _, right in edits] for edits in found]).double().T
    whole = followed(way[-1]).mean(-1)
    if not whole[best] > 0:
        return HelixEdits()
    measured = "share of the whole stream's effect"
    moved = moved_share(
        way[0, best] / whole[best],
        unit_name="numbers",
        measured=measured,
        control_name="points permuted among the numbers",
        draws=min(draws, KEPT_DRAWS),
        seed=seed,
    )
    curves = [
        bootstrap(
            by_item.T,
            unit_name="numbers",
            measured=measured,
            seed=seed,
            axes=("hook point",),
            labels={"hook point": names},
        )
        for by_item in followed(way) / whole[best]
    ]
    return HelixEdits(moved, along(curves, "edit", EDITS), new_answers)


def _points(
    acts: Float[Tensor, "batch d"],
    task: NumberTask,
    chosen: Int[Tensor, " target"],
    periods: Sequence[Period],
) -> list[Float[Tensor, "target d"]]:
    """Where each of `EDITS` puts the targets: predicted from the other numbers' means, but the last
    the means themselves."""
    means = class_means(acts, task.which, len(task.numbers))
    fold = torch.isin(torch.arange(len(means)), chosen).long()
    basis = helix_basis(task.numbers, periods)
    rank = int(torch.linalg.matrix_rank(basis)) - 1
    circle = helix_basis(task.numbers, (max(periods),), linear=False)
    designs = (basis, circle, polynomials(task.numbers, rank))
    predicted = [k_fold(design, fold)(means)[chosen] for design in designs]
    return [*predicted, projected(means, fold, rank)[chosen], means[chosen]]
