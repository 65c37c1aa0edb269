"""What edits of a class' items do to the answer, and which features of them a position holds.

`edit_plane` sets, keeps and removes a plane of the activations at the items, beside two principal
components and the whole stream, and reads the logits of the class: how far the new answer rises
over the old one, against maps from items to points that are permuted as a whole. `regression_gains`
is explanation via regression: the R2 that growing groups of features gain, each prompt predicted
from the others, against prompts that are permuted.

What would fool it: a plane set to points far from any the model knows may move every answer, which
is why the null sets the same points; and features that overlap, where what a group gains depends on
the groups in front of it.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860; the null of the edit and the
held-out prompts are this toolkit's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses._exchanges import (
    at_positions,
    followed,
    mean_by_item,
    moved_share,
)
from mechinterp_toolkit.analyses.circular_features.asked import Asked
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.regression import class_means, left_out_errors, one_hot, ridge_hat
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

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
"""`change(places of these prompts [row], activations at their items [row d])` -> new activations,
all in float64."""


class PlaneEdits(NamedTuple):
    """Result of `edit_plane`."""

    moved: Estimate | None
    """Set the plane: rise of the new answer's logit over the old one's, in shares of what the whole
    stream does. None where the whole stream does not raise it; control: points permuted among the
    items."""

    accuracy: Float[Tensor, " edit"]
    """Share right under each of `result.EDITS`, in [0, 1]: of the new answer where something is
    set, of the old one where not."""


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

    >>> from mechinterp_toolkit.analyses.circular_features.asked import asked_of
    >>> from mechinterp_toolkit.geometry import fit_circle
    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.record import activations
    >>> from mechinterp_toolkit.toys import planted_circle
    >>> made, at = planted_circle(1.0, 0), "blocks.0.hook_resid_pre"
    >>> model = load_model(made.model, tokenizer=made.tokenizer)
    >>> days = ordinal_classes(made.tokenizer, ("days",)).classes["days"]
    >>> asked = asked_of(model, days, "next", templates=1, seed=0)
    >>> tokens, item_position = asked.prompts.tokens, asked.prompts.item_position
    >>> acts = activations(model, tokens, (at,), position=item_position)[at]
    >>> plane = fit_circle(acts, asked.item, 7, draws=19).plane
    >>> edit_plane(model, asked, at, acts, plane, draws=19).moved.value > 0.8
    tensor(True)
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
        return lambda rows, acts: acts + (point - (acts - mean) @ axes.T) @ axes

    def to_item(k: int) -> Change:  # in the same template
        return lambda rows, _: acts[row_of[asked.unit[rows], k]]

    def setting(axes: Float[Tensor, "2 d"]) -> Float[Tensor, "set batch item"]:
        return torch.stack([run(to_point(axes, point)) for point in (means - mean) @ axes.T])

    base, circle, pca = class_logits(model, asked), setting(plane), setting(components)
    stream = torch.stack([run(to_item(k)) for k in range(n)])
    kept = run(lambda rows, acts: mean + (acts - mean) @ plane.T @ plane)
    removed = run(lambda rows, acts: acts - (acts - mean) @ plane.T @ plane)
    accuracy = [
        _share_set(circle, asked),
        share_right(kept, asked.answer),
        share_right(removed, asked.answer),
        _share_set(pca, asked),
        _share_set(stream, asked),
    ]
    whole = followed(_moves(stream, base, asked)).mean()
    moved = None
    if whole > 0:
        moved = moved_share(
            _moves(circle, base, asked) / whole,
            unit_name="items",
            measured="share of the whole stream's effect",
            control_name="points permuted among the items",
            draws=min(draws, KEPT_DRAWS),
            seed=seed,
        )
    return PlaneEdits(moved, torch.tensor(accuracy, dtype=torch.float64))


def class_logits(
    model: HookedModel, asked: Asked, hook_point: str = "", change: Change | None = None
) -> Float[Tensor, "batch item"]:
    """Return the logits of the class' items where the answer is asked, centred over them.

    Args:
        model: runs the prompts.
        asked: what is asked.
        hook_point: where the items are changed.
        change: of the activations there; None leaves them.

    Raises:
        HookError: no hook point is called `hook_point`, or the change gives another shape.

    >>> from mechinterp_toolkit.analyses.circular_features.asked import asked_of
    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, ("days",)).classes["days"]
    >>> asked = asked_of(model, days, "next", templates=1, seed=0)
    >>> share_right(class_logits(model, asked), asked.answer)  # it knows all seven
    1.0
    """
    parts = []
    for rows in torch.arange(len(asked.prompts)).split(_AT_ONCE):
        part, edits = asked.prompts.select(rows), {}
        if change is not None:
            assert part.item_position is not None
            edits = {hook_point: at_positions(part.item_position, partial(change, rows))}
        with applied(model, edits, mask=part.mask):
            logits = model.logits(part.tokens, part.mask)
        parts.append(part.where_asked(logits)[:, asked.tokens])
    logits = torch.cat(parts)
    return logits - logits.mean(1, keepdim=True)


def share_right(logits: Float[Tensor, "batch item"], answer: Int[Tensor, " batch"]) -> float:
    """Return the share of prompts whose answer has the highest logit of the class, alone.

    >>> share_right(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0]))  # ties choose not
    0.5
    """
    alone = (logits == logits.amax(1, keepdim=True)).sum(1) == 1
    return float(((logits.argmax(1) == answer) & alone).double().mean())


def _share_set(logits: Float[Tensor, "set batch item"], asked: Asked) -> float:
    """Share of edits to another item after which that item's answer is given."""
    n, shares = len(logits), []
    for k in range(n):
        other = asked.item != k
        shares.append(share_right(logits[k][other], (k + asked.step[other]) % n))
    return sum(shares) / n


def _moves(
    edited: Float[Tensor, "set batch item"], base: Float[Tensor, "batch item"], asked: Asked
) -> Float[Tensor, "item set judged"]:
    """Return how far the answer of the item judged rises over the prompt's own one, in logits.

    Args:
        edited: logits with each item set.
        base: logits without an edit.
        asked: of which item, and how many steps on the answer lies.
    """
    n = base.shape[1]
    answers = ((torch.arange(n) + asked.step[:, None]) % n).expand(len(edited), -1, -1)
    rise = (edited - base).gather(2, answers)  # set batch judged
    own = rise.gather(2, asked.item[None, :, None].expand(len(edited), -1, 1))
    return mean_by_item(rise - own, asked.item)


def sum_features(
    item: Int[Tensor, " n"], step: Int[Tensor, " n"], period: int
) -> dict[str, Float[Tensor, "n column"]]:
    """Return the published groups of features of "b steps from a".

    A one-hot has as many columns as it has values.

    Args:
        item: a, from 0 to period - 1.
        step: b, from 1 to period.
        period: items of the class; c is a + b modulo it.

    >>> features = sum_features(torch.tensor([6]), torch.tensor([2]), 7)
    >>> features["parity of c"].item(), features["one-hot unreduced a + b"].argmax().item()
    (-1.0, 7)
    """

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
    """Estimate how far each group of features raises the held-out R2, [feature group, hook point].

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

    >>> a, b = torch.arange(7).repeat(7), torch.arange(1, 8).repeat_interleave(7)
    >>> features = sum_features(a, b, 7)
    >>> acts = {"here": features["circle in c"] + 0.5 * features["circle in a - b"]}
    >>> gained = regression_gains(acts, features, draws=9).value[:, 0]
    >>> [round(r2, 1) for r2 in gained.tolist()]  # in the order of the groups
    [0.0, 0.6, 0.4, 0.0, 0.0, 0.0]
    """
    rows = torch.stack([_components(name, part) for name, part in acts.items()])  # hook n k
    n, columns = rows.shape[1], list(features.values())
    hats = [ridge_hat(torch.cat(columns[: i + 1], 1), RIDGE) for i in range(len(columns))]
    hats = [torch.zeros(n, n, dtype=torch.float64), *hats]  # first, the mean of the other prompts
    errors = torch.stack([left_out_errors(hat + 1 / n) for hat in hats])  # model n n
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(draws)])
    drawn = [_squared(errors, part[orders]).sum(1) for part in rows]
    return bootstrap(
        torch.stack([_squared(errors, part) for part in rows], 1),
        unit_name="prompts, each held out",
        measured="R2 gained, in [0, 1]",
        seed=seed,
        statistic=lambda values, weights: _gains(torch.einsum("rn,nhm->rhm", weights, values)),
        axes=("feature group", "hook point"),
        labels={"feature group": tuple(features), "hook point": tuple(acts)},
        control=_gains(torch.stack(drawn, 1)),
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
    return torch.stack([(model @ rows).square().sum(-1) for model in errors], -1)


def _gains(missed: Float[Tensor, "draw hook model"]) -> Float[Tensor, "draw group hook"]:
    r2 = 1 - missed / missed[..., :1]  # of the first model, the mean: 0
    return r2.cummax(-1).values.diff(dim=-1).transpose(1, 2)
