"""Items of a class in prompts: what their edits do to the answer, and which features of them a
position holds.

`Asked` holds prompts that each show one item and ask for the item some steps on. `edit_plane` sets,
keeps and removes a plane of the activations at the items, beside two principal components and the
whole stream, and reads the logits of the class: how far the new answer rises over the old one,
against maps from items to points that are permuted as a whole. `regression_gains` is explanation
via regression: the R2 that growing groups of features gain, each prompt predicted from the others,
against prompts that are permuted.

What would fool it: a plane set to points far from any the model knows may move every answer, which
is why the null sets the same points; and features that overlap, where what a group gains depends on
the groups in front of it.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860; the null of the edit and the
held-out prompts are this toolkit's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.regression import class_means, left_out_errors, ridge_hat
from mechinterp_toolkit.intervention import Edit, Site, applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import PromptSet
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap, permutations

EDITS = (
    "set the circle",
    "keep only the circle",
    "remove the circle",
    "set two components",
    "set the whole stream",
)
"""What `edit_plane` does, in this order; the circle is the plane it is given."""

KEPT_DRAWS = 999
"""Draws of a null that a result keeps at most."""

COMPONENTS = 20
"""Principal components that are regressed on features, as published."""

RIDGE = 0.02
"""Penalty of that regression, in mean squared norms of a prompt's features: it settles sums that
only one prompt has."""

# prompts per forward pass: their logits over a large vocabulary are what takes memory
_AT_ONCE = 64

Change = Callable[[Tensor, Tensor], Tensor]
"""`change(activations at the items [row d], places of these prompts [row])` -> new activations, all
in float64."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts that each show an item of a class and ask for the item some steps on; every template
    shows every item once."""

    prompts: PromptSet
    """With items and their positions."""

    tokens: Int[Tensor, " item"]
    """Token ids of the whole class, in order."""

    unit: Int[Tensor, " batch"]
    """Which template, from 0."""

    step: Int[Tensor, " batch"]
    """How many steps behind the item the answer lies; the class is a cycle."""

    @property
    def item(self) -> Int[Tensor, " batch"]:
        """Place of each prompt's item in the class."""
        assert self.prompts.item is not None
        return self.prompts.item

    @property
    def answer(self) -> Int[Tensor, " batch"]:
        """Place of the right answer in the class."""
        return (self.item + self.step) % len(self.tokens)


class PlaneEdits(NamedTuple):
    """Result of `edit_plane`."""

    moved: Estimate | None
    """Set the plane: rise of the new answer's logit over the old one's, in shares of what the whole
    stream does. None where the whole stream does not raise it; control: points permuted among the
    items."""

    accuracy: Float[Tensor, " edit"]
    """Share right under each of `EDITS`, in [0, 1]: of the new answer where something is set, of
    the old one where not."""


def edit_plane(
    model: HookedModel,
    asked: Asked,
    hook_point: str,
    acts: Float[Tensor, "batch d"],
    plane: Float[Tensor, "2 d"],
    *,
    draws: int = KEPT_DRAWS,
    seed: int = 0,
) -> PlaneEdits:
    """Set, keep and remove a plane at the items, from each item to each other one.

    Args:
        model: runs the prompts.
        asked: what is asked, and of which item.
        hook_point: where the items are edited.
        acts: activations there, one row per prompt.
        plane: orthonormal axes.
        draws: permutations of the points behind the null, `KEPT_DRAWS` at most.
        seed: of these and of the resampling of items.
    """
    item, n, acts = asked.item, len(asked.tokens), acts.double()
    means = class_means(acts, item, n)
    mean = means.mean(0)
    components = torch.linalg.svd(means - mean, full_matrices=False)[2][:2]
    row_of = torch.empty(int(asked.unit.max()) + 1, n, dtype=torch.long)
    row_of[asked.unit, item] = torch.arange(len(item))

    def run(change: Change) -> Float[Tensor, "batch item"]:
        return class_logits(model, asked, hook_point, change)

    def to_point(axes: Tensor, point: Tensor) -> Change:
        return lambda x, rows: x + (point - (x - mean) @ axes.T) @ axes

    def to_item(j: int) -> Change:  # in the same template
        return lambda x, rows: acts[row_of[asked.unit[rows], j]]

    def setting(axes: Float[Tensor, "2 d"]) -> Float[Tensor, "set batch item"]:
        return torch.stack([run(to_point(axes, point)) for point in (means - mean) @ axes.T])

    base, circle, pca = class_logits(model, asked), setting(plane), setting(components)
    stream = torch.stack([run(to_item(j)) for j in range(n)])
    kept = run(lambda x, rows: mean + (x - mean) @ plane.T @ plane)
    removed = run(lambda x, rows: x - (x - mean) @ plane.T @ plane)
    accuracy = [
        _share_set(circle, asked),
        share_right(kept, asked.answer),
        share_right(removed, asked.answer),
        _share_set(pca, asked),
        _share_set(stream, asked),
    ]
    whole = moves(stream, base, item, asked.step)
    scale = whole.diagonal(dim1=1, dim2=2).sum() / (n * (n - 1))
    shares = moves(circle, base, item, asked.step) / scale if scale > 0 else None
    moved = None if shares is None else moved_share(shares, draws=draws, seed=seed)
    return PlaneEdits(moved, torch.tensor(accuracy, dtype=torch.float64))


def class_logits(
    model: HookedModel, asked: Asked, hook_point: str = "", change: Change | None = None
) -> Float[Tensor, "batch item"]:
    """Return the logits of the class' items where the answer is asked, centred over them, under a
    change at the items.

    Raises:
        HookError: no hook point is called `hook_point`, or the change gives another shape.
    """
    found = []
    for rows in torch.arange(len(asked.prompts)).split(_AT_ONCE):
        part = asked.prompts.select(rows)
        edits = (
            {} if change is None else {hook_point: at_items(part, partial(_at_rows, change, rows))}
        )
        with applied(model, edits, mask=part.mask):
            logits = model.logits(part.tokens, part.mask).detach()[
                torch.arange(len(part)), part.position
            ]
        found.append(logits.double().cpu()[:, asked.tokens])
    logits = torch.cat(found)
    return logits - logits.mean(1, keepdim=True)


def _at_rows(change: Change, rows: Tensor, activation: Tensor) -> Tensor:
    return change(activation, rows)


def at_items(prompts: PromptSet, change: Callable[[Tensor], Tensor]) -> Edit:
    """Return the edit that puts `change(activations [batch d], float64)` at each prompt's item and
    leaves the rest alone."""
    position = prompts.item_position
    assert position is not None

    def edit(activation: Float[Tensor, "batch pos d"], hook: Site) -> Float[Tensor, "batch pos d"]:
        rows, at = (
            torch.arange(len(activation), device=activation.device),
            position.to(activation.device),
        )
        changed = activation.clone()
        changed[rows, at] = change(activation[rows, at].double().cpu()).to(activation)
        return changed

    return edit


def share_right(logits: Float[Tensor, "batch item"], answer: Int[Tensor, " batch"]) -> float:
    """Return the share of prompts whose answer has the highest logit of the class, alone; in [0,
    1]."""
    alone = (logits == logits.amax(1, keepdim=True)).sum(1) == 1
    return float(((logits.argmax(1) == answer) & alone).double().mean())


def _share_set(logits: Float[Tensor, "set batch item"], asked: Asked) -> float:
    """Share of edits to another item after which that item's answer is given."""
    n = len(logits)
    other = [asked.item != j for j in range(n)]
    right = [share_right(logits[j][other[j]], (j + asked.step[other[j]]) % n) for j in range(n)]
    return sum(right) / n


def moves(
    edited: Float[Tensor, "set batch item"],
    base: Float[Tensor, "batch item"],
    item: Int[Tensor, " batch"],
    step: Int[Tensor, " batch"],
) -> Float[Tensor, "item set judged"]:
    """Return, from item i, set to k, judged as j, how far j's answer rises over i's, in logits;
    mean over templates."""
    n = base.shape[1]
    answers = ((torch.arange(n) + step[:, None]) % n).expand(len(edited), -1, -1)
    rise = (edited - base).gather(2, answers)  # set batch judged
    own = rise.gather(2, item[None, :, None].expand(len(edited), -1, 1))
    by_item = torch.nn.functional.one_hot(item, n).double()
    return torch.einsum("kbj,bi->ikj", rise - own, by_item / by_item.sum(0))


def moved_share(
    way: Float[Tensor, "item set judged"], *, draws: int = KEPT_DRAWS, seed: int = 0
) -> Estimate:
    """Estimate how far edits to another item move the answer to that item's, over items; control:
    points permuted.

    Args:
        way: `moves`, in shares of what the whole stream does.
        draws: permutations, `KEPT_DRAWS` at most.
        seed: of permutations and resampling.
    """
    n = len(way)
    other, place = ~torch.eye(n, dtype=torch.bool), torch.arange(n)
    shuffles = permutations(n, draws=min(draws, KEPT_DRAWS), seed=seed).index
    return bootstrap(
        (way.diagonal(dim1=1, dim2=2) * other).sum(1) / (n - 1),
        unit_name="items",
        measured="share of the whole stream's effect",
        seed=seed,
        control=torch.stack([way[:, order, place][other].mean() for order in shuffles]),
        control_name="points permuted among the items",
    )


def sum_features(
    item: Int[Tensor, " n"], step: Int[Tensor, " n"], period: int
) -> dict[str, Float[Tensor, "n column"]]:
    """Return groups of features of "b steps from a": the published ones, each one-hot with as many
    columns as it has values.

    Args:
        item: a, from 0 to period - 1.
        step: b, from 1 to period.
        period: items of the class; c is a + b modulo it.
    """

    def one_hot(place: Tensor, n: int) -> Tensor:
        return torch.nn.functional.one_hot(place, n).double()

    def circle(place: Tensor) -> Tensor:
        angle = 2 * math.pi * place.double() / period
        return torch.stack([angle.cos(), angle.sin()], 1)

    total = item + step
    return {
        "one-hot a and b": torch.cat([one_hot(item, period), one_hot(step - 1, period)], 1),
        "circle in c": circle(total),
        "circle in a - b": circle(item - step),
        "second harmonic of c": circle(2 * total),
        "parity of c": 1.0 - 2.0 * (total % period % 2).double()[:, None],
        "one-hot unreduced a + b": one_hot(total - 1, 2 * period - 1),
    }


def regression_gains(
    acts: Mapping[str, Float[Tensor, "n d"]],
    features: Mapping[str, Float[Tensor, "n column"]],
    *,
    draws: int = 199,
    seed: int = 0,
) -> Estimate:
    """Estimate how far each group of features raises the best held-out R2 so far, [feature group,
    hook point].

    Ridge regression predicts the first `COMPONENTS` principal components of each prompt from the
    other prompts, first with the first group, then with the first two, and so on. Where a and b
    take every pair of values, their one-hots predict a function of the sum worse than the mean does
    (R2 down to -.7 for days), which counts as nothing gained, 0.

    Args:
        acts: hook point -> one row per prompt, of one width.
        features: group -> columns, in the order in which they are added.
        draws: permutations of the prompts behind the control.
        seed: of permutations and resampling.

    Raises:
        ToolkitError: the rows at some hook point are all the same.
    """
    rows = torch.stack([_components(name, one) for name, one in acts.items()])  # hook n k
    n, columns = rows.shape[1], list(features.values())
    alone = (torch.eye(n, dtype=torch.float64) - 1 / n) * (
        n / (n - 1)
    )  # the mean of the other prompts
    hats = [ridge_hat(torch.cat(columns[: i + 1], 1), RIDGE) for i in range(len(columns))]
    grown = [left_out_errors(hat + 1 / n) for hat in hats]
    errors = torch.stack([alone, *grown])  # model n n
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(draws)])
    drawn = torch.stack(
        [_squared(errors, one[orders]).sum(1) for one in rows], 1
    )  # draw hook model
    return bootstrap(
        torch.stack([_squared(errors, one) for one in rows], 1),
        unit_name="prompts, each held out",
        measured="R2 gained, in [0, 1]",
        seed=seed,
        statistic=lambda values, weights: _gains(torch.einsum("rn,nhm->rhm", weights, values)),
        axes=("feature group", "hook point"),
        labels={"feature group": tuple(features), "hook point": tuple(acts)},
        control=_gains(drawn),
        control_name="prompts permuted",
    )


def _components(name: str, acts: Tensor) -> Float[Tensor, "n component"]:
    centred = acts.detach().double().cpu()
    size, centred = centred.norm(), centred - centred.mean(0)
    if not centred.norm() > 1e-6 * size:
        raise ToolkitError(
            f"the {len(acts)} rows at {name} are all the same; there is nothing to explain."
        )
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    return (left * scale)[:, :COMPONENTS]


def _squared(
    errors: Float[Tensor, "model n n"], rows: Float[Tensor, "*draw n k"]
) -> Float[Tensor, "*draw n model"]:
    """Squared held-out error of each prompt under each model."""
    return torch.stack([(one @ rows).square().sum(-1) for one in errors], -1)


def _gains(missed: Float[Tensor, "draw hook model"]) -> Float[Tensor, "draw group hook"]:
    r2 = 1 - missed / missed[..., :1]  # of the first model, the mean: 0
    return r2.cummax(-1).values.diff(dim=-1).transpose(1, 2)
