"""What does a head write for the items of ordinal classes, beyond the winner?

*Logits* of one head, centred within a class, show what a winner hides: whether later items gain on
earlier ones, how that goes with the distance, and whether the successor is named in another class
("1" to "second", "February").

What would fool it: a class whose items are all raised alike, hence logits centred within the class.
A line through a cyclic class has no sense at its ends: "later" there means later in the list of
words, distances go the shorter way round.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230 (greater-than bias); nulls are this
toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.successor_heads.items import centred, item_tokens, places, winners
from mechinterp_toolkit.analyses.successor_heads.scores import SHUFFLED, orders
from mechinterp_toolkit.heads.ov_circuit import OVReader
from mechinterp_toolkit.prompts import OrdinalClass
from mechinterp_toolkit.results import Estimate, along
from mechinterp_toolkit.stats import bootstrap

FARTHEST = 10
"""Largest distance between items that `logit_by_distance` looks at."""

MOST_DRAWN = 31
"""Items of the largest class whose matrix is drawn."""


@dataclass(frozen=True)
class ClassMatrix:
    """What one head writes for the items of a class, to the items of that class."""

    name: str
    """Name of the class."""

    items: tuple[str, ...]
    """Its words, in order."""

    logits: Float[Tensor, "item candidate"]
    """Logit of each candidate (column) where an item (row) is shown, minus the row's mean."""


@dataclass(frozen=True)
class HeadWrites:
    """Result of `study_writes`, of one head but for `order_bias`."""

    matrices: tuple[ClassMatrix, ...]
    """What the head writes for the items of each class to the items of that class, in logits."""

    cross_class: Estimate | None
    """Fraction of items mapped to the next place of another class, [shown answered], in [0, 1]."""

    order_bias: Estimate | None
    """Mean logit of later items minus that of earlier ones, [class layer head], of every head."""

    by_distance: Estimate | None
    """Centred logit of the candidate so many places after the item shown, [distance], in logits."""

    notes: tuple[str, ...]
    """What could not be measured, and why."""

    def figures(self, layer: int, head: int) -> dict[str, Any]:
        """Return title -> figure of what the head at `(layer, head)`, which was studied, writes."""
        from mechinterp_toolkit import plots

        name = f"head {layer}.{head}"
        shown: dict[str, Any] = {}
        axes: dict[str, Any]
        for one in self.matrices:
            if len(one.items) <= MOST_DRAWN:
                axes = {"row_title": "item shown", "col_title": "candidate", "unit": "logits"}
                title = f"Logits {name} writes within {one.name}"
                figure = plots.matrix(
                    one.logits, one.items, one.items, title=title, colours="diverging", **axes
                )
                shown[f"What {name} writes for {one.name}"] = figure
        if self.cross_class is not None:
            names, value = self.cross_class.labels["shown"], self.cross_class.value
            axes = {
                "row_title": "class shown",
                "col_title": "class that answers",
                "unit": self.cross_class.unit,
            }
            title = f"Items that {name} maps to the next place of a class"
            shown["Successors across classes"] = plots.matrix(
                value, names, names, title=title, **axes
            )
        if self.order_bias is not None:
            own = {
                k: getattr(self.order_bias, k)[..., layer, head]
                for k in ("value", "low", "high", "control")
            }
            bias = replace(self.order_bias, **own, axes=("class",))
            shown["Later against earlier items"] = plots.curve(
                bias, title=f"Mean logit {name} writes to later items, minus earlier ones"
            )
        if self.by_distance is not None:
            steps = [int(label) for label in self.by_distance.labels["distance"]]
            shown["Logit by distance"] = plots.curve(
                self.by_distance,
                steps,
                title=f"Centred logit {name} writes",
                x_title="places after the item shown",
            )
        return shown


def study_writes(
    reader: OVReader,
    classes: Mapping[str, OrdinalClass],
    best: tuple[int, int],
    *,
    draws: int = 99,
    seed: int = 0,
) -> HeadWrites:
    """Describe what the head `best` writes for each item to all items, and the order bias of every
    head.

    Args:
        reader: of the items of all classes, class after class.
        classes: the classes; candidates are always the items of one class, whatever the reader's
            convention says.
        best: `(layer, head)`.
        draws: shuffled orders behind each control.
        seed: of shuffles and intervals.
    """
    tokens, notes = item_tokens(classes), []
    layers = [
        reader.logits(reader.states(i), i, tokens).cpu() for i in range(reader.model.cfg.n_layers)
    ]
    own = layers[best[0]][best[1]]
    matrices = class_matrices(own, classes)
    cross = cross_class_score(own, classes, draws=draws, seed=seed)
    bias = order_bias(layers, classes, draws=draws, seed=seed)
    if cross is None:
        notes.append("No two classes share places, so nothing was asked across classes.")
    elif left := [name for name in classes if name not in cross.labels["shown"]]:
        notes.append(f"Not asked across classes, for want of shared places: {', '.join(left)}.")
    if bias is None or len(bias.labels["class"]) < len(classes):
        notes.append(
            "Later and earlier items were not compared in classes of fewer than four items."
        )
    by_distance = logit_by_distance(matrices, classes, draws=draws, seed=seed)
    return HeadWrites(matrices, cross, bias, by_distance, tuple(notes))


def class_matrices(
    logits: Float[Tensor, "item candidate"], classes: Mapping[str, OrdinalClass]
) -> tuple[ClassMatrix, ...]:
    """Return the blocks of the classes; rows and columns of `logits` are the items of all classes,
    class after class."""
    place = places(classes)
    return tuple(
        ClassMatrix(name, ordinal.words, centred(logits[place[name], place[name]].cpu()))
        for name, ordinal in classes.items()
    )


def order_bias(
    layers: Sequence[Float[Tensor, "head item candidate"]],
    classes: Mapping[str, OrdinalClass],
    *,
    draws: int = 99,
    seed: int = 0,
) -> Estimate | None:
    """Estimate how far later items are above earlier ones: mean over t of mean_(u>t) M[t,u] -
    mean_(u<t) M[t,u].

    The first and the last item of a class have nothing on one side and are not among the t.

    Args:
        layers: logits of every head, rows and columns being the items of all classes, class after
            class.
        classes: the classes; those of fewer than four items are left out.
        draws: shuffled orders.
        seed: of shuffles and intervals.

    Returns:
        [class layer head], in logits; None where no class is long enough.
    """
    place, found = places(classes), {}
    for i, (name, ordinal) in enumerate(classes.items()):
        n = len(ordinal)
        if n < 4:
            continue
        block = torch.stack([one[:, place[name], place[name]].cpu().double() for one in layers])
        weight = _later_minus_earlier(n)
        rank = orders(n, draws, seed + i).argsort(1)
        shuffled = weight[rank[:, :, None], rank[:, None, :]].flatten(1)
        null = shuffled @ block.flatten(2).permute(2, 0, 1).flatten(1) / (n - 2)
        found[name] = bootstrap(
            (block * weight).sum(-1)[..., 1:-1].permute(2, 0, 1),
            unit_name="items",
            measured="logits",
            seed=seed,
            axes=("layer", "head"),
            control=null.reshape(draws, *block.shape[:2]),
            control_name=SHUFFLED,
        )
    return along(list(found.values()), "class", tuple(found)) if found else None


def logit_by_distance(
    matrices: Sequence[ClassMatrix],
    classes: Mapping[str, OrdinalClass],
    *,
    draws: int = 99,
    seed: int = 0,
) -> Estimate | None:
    """Estimate the mean centred logit of the candidate that lies a given number of places after the
    item shown.

    Places are those in the whole class; in a cyclic class the shorter way round counts. A distance
    that fewer than two items have is left out.

    Returns:
        [distance], -`FARTHEST` to `FARTHEST`, in logits; None where no distance is left.
    """
    logits, shuffled, distance = [], [], []
    for i, one in enumerate(matrices):
        order = orders(len(one.items), draws, seed + i)
        values = one.logits.double()
        logits.append(values.flatten())
        shuffled.append(values[order[:, :, None], order[:, None, :]].flatten(1))
        distance.append(_distances(classes[one.name]).flatten())
    values, null, far = torch.cat(logits), torch.cat(shuffled, 1), torch.cat(distance)
    found = {}
    for step in range(-FARTHEST, FARTHEST + 1):
        at = (
            far == step
        )  # an item has one candidate at most that far away: every value is another item's
        if int(at.sum()) >= 2:
            found[f"{step:+d}" if step else "0"] = bootstrap(
                values[at],
                unit_name="items",
                measured="logits",
                seed=seed,
                control=null[:, at].mean(1),
                control_name=SHUFFLED,
            )
    return along(list(found.values()), "distance", tuple(found)) if found else None


def cross_class_score(
    logits: Float[Tensor, "item candidate"],
    classes: Mapping[str, OrdinalClass],
    *,
    draws: int = 99,
    seed: int = 0,
) -> Estimate | None:
    """Estimate how often an item is mapped to the next place of another class ("1" to "second",
    "February").

    A pair counts where the other class has the item's place plus one, without going round; within a
    class its own pairs count. A class that shares fewer than two such pairs with one taken before
    it is left out.

    Args:
        logits: of one head; rows and columns are the items of all classes, class after class.
        classes: the classes.
        draws: shuffled orders of the class that answers.
        seed: of shuffles and intervals.

    Returns:
        Fraction of items, [shown answered], in [0, 1]; None where fewer than two classes are left.
    """
    place, names = places(classes), _comparable(classes)
    if len(names) < 2:
        return None
    shuffles = {name: orders(len(classes[name]), draws, seed + i) for i, name in enumerate(names)}
    rows = []
    for shown in names:
        cells = []
        for answered in names:
            pairs = successors_across(classes[shown], classes[answered])
            best = winners(logits[place[shown], place[answered]].cpu())[pairs[:, 0]]
            cells.append(
                bootstrap(
                    (best == pairs[:, 1]).double(),
                    unit_name="items",
                    measured="fraction of items in [0, 1]",
                    seed=seed,
                    control=(best == shuffles[answered][:, pairs[:, 1]]).double().mean(1),
                    control_name="order of the class that answers shuffled",
                )
            )
        rows.append(along(cells, "answered", names))
    return along(rows, "shown", names)


def successors_across(shown: OrdinalClass, answered: OrdinalClass) -> Int[Tensor, "pair 2"]:
    """Return the pairs of an item of one class and the next place of another, as positions in their
    words."""
    if shown.name == answered.name:
        return shown.pairs(1)
    place = {index: position for position, index in enumerate(answered.index.tolist())}
    found = [
        (i, place[index + 1]) for i, index in enumerate(shown.index.tolist()) if index + 1 in place
    ]
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def _later_minus_earlier(n: int) -> Float[Tensor, "item candidate"]:
    """Weights that make of a row the mean of later candidates minus that of earlier ones; zero in
    first and last row."""
    later = torch.ones(n, n, dtype=torch.float64).triu(1)
    weight = later / later.sum(1, keepdim=True).clamp_min(1) - later.T / later.sum(0)[
        :, None
    ].clamp_min(1)
    weight[[0, -1]] = 0
    return weight


def _distances(ordinal: OrdinalClass) -> Int[Tensor, "item candidate"]:
    far = ordinal.index[None, :] - ordinal.index[:, None]
    half = (ordinal.order - 1) // 2
    return (far + half) % ordinal.order - half if ordinal.cyclic else far


def _comparable(classes: Mapping[str, OrdinalClass]) -> tuple[str, ...]:
    """Classes of which each has two items or more whose next place each has."""
    kept: list[str] = []
    for name in classes:
        both = [pair for other in (*kept, name) for pair in ((name, other), (other, name))]
        if all(len(successors_across(classes[a], classes[b])) >= 2 for a, b in both):
            kept.append(name)
    return tuple(kept)
