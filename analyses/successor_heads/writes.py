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
from dataclasses import dataclass

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


def study_writes(
    reader: OVReader,
    classes: Mapping[str, OrdinalClass],
    best: tuple[int, int],
    *,
    draws: int = 99,
    seed: int = 0,
) -> HeadWrites:
    """Describe what the head `best` writes for each item, and the order bias of every head.

    Args:
        reader: of the items of all classes, class after class.
        classes: the classes; candidates are always the items of one class, whatever the reader's
            convention says.
        best: `(layer, head)`.
        draws: shuffled orders behind each control.
        seed: of shuffles and intervals.

    >>> from mechinterp_toolkit.heads.ov_circuit import Convention
    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> writes = study_writes(OVReader(model, item_tokens(days), Convention()), days, (1, 1))
    >>> distance = int(writes.by_distance.value.argmax())
    >>> writes.by_distance.place(distance), writes.notes[0]
    ('+1', 'No two classes share places, so nothing was asked across classes.')
    """
    tokens, notes = item_tokens(classes), []
    every = range(reader.model.cfg.n_layers)
    layers = [reader.logits(reader.states(layer), layer, tokens).cpu() for layer in every]
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
    """Return the blocks of the classes, centred within each row.

    Rows and columns of `logits` are the items of all classes, class after class.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> days = ordinal_classes(build_tokenizer(), "days").classes
    >>> class_matrices(torch.eye(7), days)[0].logits[0, :2]
    tensor([ 0.8571, -0.1429])
    """
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
    """Estimate how far the logits of later items are above those of earlier ones.

    That is the mean over items t of mean_(u>t) M[t,u] - mean_(u<t) M[t,u]. The first and the last
    item of a class have nothing on one side and are not among the t.

    Args:
        layers: logits of every head, rows and columns being the items of all classes, class after
            class.
        classes: the classes; those of fewer than four items are left out.
        draws: shuffled orders.
        seed: of shuffles and intervals.

    Returns:
        [class layer head], in logits; None where no class is long enough.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> days = ordinal_classes(build_tokenizer(), "days").classes
    >>> rising = torch.arange(7.0).expand(1, 7, 7)  # one head, one logit more per place
    >>> order_bias([rising], days).value
    tensor([[[4.]]], dtype=torch.float64)
    """
    place, bias = places(classes), {}
    for i, (name, ordinal) in enumerate(classes.items()):
        n = len(ordinal)
        if n < 4:
            continue
        block = torch.stack([m[:, place[name], place[name]].cpu().double() for m in layers])
        weight = _later_minus_earlier(n)
        rank = orders(n, draws, seed + i).argsort(1)
        shuffled = weight[rank[:, :, None], rank[:, None, :]].flatten(1)
        null = shuffled @ block.flatten(2).permute(2, 0, 1).flatten(1) / (n - 2)
        bias[name] = bootstrap(
            (block * weight).sum(-1)[..., 1:-1].permute(2, 0, 1),
            unit_name="items",
            measured="logits",
            seed=seed,
            axes=("layer", "head"),
            control=null.reshape(draws, *block.shape[:2]),
            control_name=SHUFFLED,
        )
    return along(list(bias.values()), "class", tuple(bias)) if bias else None


def logit_by_distance(
    matrices: Sequence[ClassMatrix],
    classes: Mapping[str, OrdinalClass],
    *,
    draws: int = 99,
    seed: int = 0,
) -> Estimate | None:
    """Estimate the mean centred logit of the candidate so many places after the item shown.

    Places are those in the whole class; in a cyclic class the shorter way round counts. A distance
    that fewer than two items have is left out.

    Returns:
        [distance], -`FARTHEST` to `FARTHEST`, in logits; None where no distance is left.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> days = ordinal_classes(build_tokenizer(), "days").classes
    >>> by_distance = logit_by_distance(class_matrices(torch.eye(7).roll(1, 1), days), days)
    >>> by_distance.at(distance="+1").value.item(), by_distance.at(distance="0").value.item()
    (0.8571..., -0.1428...)
    """
    logits, shuffled, distance = [], [], []
    for i, matrix in enumerate(matrices):
        order = orders(len(matrix.items), draws, seed + i)
        values = matrix.logits.double()
        logits.append(values.flatten())
        shuffled.append(values[order[:, :, None], order[:, None, :]].flatten(1))
        distance.append(_distances(classes[matrix.name]).flatten())
    values, null, far = torch.cat(logits), torch.cat(shuffled, 1), torch.cat(distance)
    by_step = {}
    for step in range(-FARTHEST, FARTHEST + 1):
        # An item has one candidate at most that far away: every value is another item's.
        at = far == step
        if int(at.sum()) >= 2:
            by_step[f"{step:+d}" if step else "0"] = bootstrap(
                values[at],
                unit_name="items",
                measured="logits",
                seed=seed,
                control=null[:, at].mean(1),
                control_name=SHUFFLED,
            )
    return along(list(by_step.values()), "distance", tuple(by_step)) if by_step else None


def cross_class_score(
    logits: Float[Tensor, "item candidate"],
    classes: Mapping[str, OrdinalClass],
    *,
    draws: int = 99,
    seed: int = 0,
) -> Estimate | None:
    """Estimate how often an item is mapped to the next place of another class ("1" to "second").

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

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> classes = ordinal_classes(build_tokenizer(), ("days", "months")).classes
    >>> place = torch.cat([c.index for c in classes.values()])
    >>> follows = (place[:, None] + 1 == place).float()  # the next place, in whichever class
    >>> cross_class_score(follows, classes).at(shown="days", answered="months").value.item()
    1.0
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
    """Return pairs of an item of one class and the next place of another, as positions in words.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> classes = ordinal_classes(build_tokenizer(), ("days", "months")).classes
    >>> successors_across(classes["months"], classes["days"]).tolist()[-1]  # June to Sunday
    [5, 6]
    """
    if shown.name == answered.name:
        return shown.pairs(1)
    return (shown.index[:, None] + 1 == answered.index).nonzero()


def _later_minus_earlier(n: int) -> Float[Tensor, "item candidate"]:
    """Weights that make of a row the mean of later candidates minus that of earlier ones."""
    later = torch.ones(n, n, dtype=torch.float64).triu(1)
    after, before = (part / part.sum(1, keepdim=True).clamp_min(1) for part in (later, later.T))
    weight = after - before
    weight[[0, -1]] = 0  # nothing lies on one side of them
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
