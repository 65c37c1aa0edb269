"""How well do a head's OV circuit, or the answers of the whole model, follow the order of ordinal classes?

*Winners* (which item gets the highest logit of its class) give the score of every head. *Logits* of one head, centred within
a class, show what a winner hides: whether later items gain on earlier ones, how that goes with the distance, and whether the
successor is named in another class ("1" to "second", "February"). *Predicted states*: an item's state is worked out from
other items of its place and of its class, and the head has to name its successor from that. *Answers* of the model to
prompts that ask for a successor are compared with answers shuffled within classes.

What would fool it: a class whose items are all raised alike, hence logits centred within the class; a class far larger than
the others, hence means over classes; items of two classes that are one token. A line through a cyclic class has no sense at
its ends: "later" there means later in the list of words, distances go the shorter way round.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230 (score, greater-than bias, index and domain); nulls are this
toolkit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.factoring import factor
from mechinterp_toolkit.geometry.residues import ResidueSteering, residue_features, residue_scan, steer_residues
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.ov_circuit import OVReader
from mechinterp_toolkit.prompts import OrdinalClass, PromptSet, succession_prompts
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate, along
from mechinterp_toolkit.stats import bootstrap, max_statistic_p, permutations

FARTHEST = 10
"""Largest distance between items that `logit_by_distance` looks at."""

PERIODS = range(2, 25)
"""Periods T for which n mod T is looked for in the numbers."""

DIGITS = 10
"""The period that is exchanged where none stands out: that of the last digit."""

MOST_DRAWN = 31
"""Items of the largest class whose matrix is drawn."""

SHUFFLES = 19
"""Shuffled prompt sets."""

SHUFFLED = "item order shuffled within classes"


# --- winners of all heads --------------------------------------------------------------------------------------------


class HeadScores(NamedTuple):
    """Result of `score_heads`."""

    score: Estimate
    """Fraction of items mapped to their successor, mean over classes, [layer head], in [0, 1]."""

    difference: Estimate
    """`score` minus the same for predecessors, [layer head], in [-1, 1]."""

    p: Float[Tensor, "layer head"]
    """Larger of the adjusted p-values of `score` and `difference` (maximum over all heads)."""

    class_score: Float[Tensor, "class layer head"]
    """`score` of each class on its own, in [0, 1]."""

    profile: Float[Tensor, "offset layer head"]
    """Fraction of items mapped to predecessor, themselves, successor, mean over classes, in [0, 1]."""


def score_heads(
    best: Mapping[str, Int[Tensor, "layer head _"]], classes: Mapping[str, OrdinalClass], draws: int, seed: int
) -> HeadScores:
    """Return scores of all heads, beside those of all heads under the same shuffled orders.

    Args:
        best: which item of its class wins, per class and item, as of `ov_circuit.best_candidates`.
        classes: the classes.
        draws: shuffled orders.
        seed: of shuffles and intervals.
    """
    plus, minus, same = ({n: hits(best[n], c.pairs(o)) for n, c in classes.items()} for o in (1, -1, 0))
    null_plus, null_minus = [], []
    for i, (name, ordinal) in enumerate(classes.items()):
        order = orders(len(ordinal), draws, seed + i)
        null_plus.append(shuffled_hits(best[name], ordinal.pairs(1), order))
        null_minus.append(shuffled_hits(best[name], ordinal.pairs(-1), order))
    null_score = torch.stack(null_plus).mean(0)
    null_difference = null_score - torch.stack(null_minus).mean(0)
    score = macro_average(plus, null_score, seed)
    difference = macro_average({n: plus[n] - minus[n] for n in classes}, null_difference, seed)
    p = torch.maximum(max_statistic_p(score.value, null_score), max_statistic_p(difference.value, null_difference))
    profile = torch.stack([torch.stack([h.mean(0) for h in part.values()]).mean(0) for part in (minus, same, plus)])
    return HeadScores(score, difference, p, torch.stack([h.mean(0) for h in plus.values()]), profile)


def orders(n: int, draws: int, seed: int) -> Int[Tensor, "draw item"]:
    """Return orders of a class' items; where all of them are fewer than `draws`, they come round again."""
    index = permutations(n, draws=draws, seed=seed).index
    return index[torch.arange(draws) % len(index)]


def hits(best: Int[Tensor, "layer head item"], pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, "pair layer head"]:
    """Return 1 where the first item of a pair is mapped to the second."""
    return (best[:, :, pairs[:, 0]] == pairs[:, 1]).double().permute(2, 0, 1)


def shuffled_hits(
    best: Int[Tensor, "layer head item"], pairs: Int[Tensor, "pair 2"], order: Int[Tensor, "draw item"]
) -> Float[Tensor, "draw layer head"]:
    """Return scores with the items put in other orders: the pair (i, j) becomes (order[i], order[j])."""
    given, wanted = order[:, pairs[:, 0]], order[:, pairs[:, 1]]
    rows = [(best[:, :, g] == w).double().mean(-1) for g, w in zip(given, wanted, strict=True)]
    return torch.stack(rows)


def macro_average(values: Mapping[str, Float[Tensor, "_ layer head"]], null: Tensor, seed: int) -> Estimate:
    """Return the mean over classes of the mean over items; a resample without items of a class leaves that class out."""
    which = torch.cat([torch.full((len(h),), i) for i, h in enumerate(values.values())])
    member = torch.nn.functional.one_hot(which, len(values)).double()

    def over_classes(rows: Float[Tensor, "n layer head"], weights: Float[Tensor, "draw n"]) -> Tensor:
        size = weights @ member
        scaled = weights * (member @ (1 / size.clamp_min(1e-9)).T).T / (size > 0).sum(1, keepdim=True)
        return (scaled @ rows.flatten(1)).reshape(-1, *rows.shape[1:])

    return bootstrap(
        torch.cat(list(values.values())),
        unit_name="items",
        measured="fraction of items",
        seed=seed,
        statistic=over_classes,
        axes=("layer", "head"),
        control=null,
        control_name=SHUFFLED,
    )


# --- logits of heads -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassMatrix:
    """What one head writes for the items of a class, to the items of that class."""

    name: str
    """Name of the class."""

    items: tuple[str, ...]
    """Its words, in order."""

    logits: Float[Tensor, "item candidate"]
    """Logit of each candidate (column) where an item (row) is shown, minus the row's mean."""


def class_matrices(
    logits: Float[Tensor, "item candidate"], classes: Mapping[str, OrdinalClass]
) -> tuple[ClassMatrix, ...]:
    """Return the blocks of the classes; rows and columns of `logits` are the items of all classes, class after class."""
    place = _places(classes)
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
    """Estimate how far later items are above earlier ones: mean over t of mean_(u>t) M[t,u] - mean_(u<t) M[t,u].

    The first and the last item of a class have nothing on one side and are not among the t.

    Args:
        layers: logits of every head, rows and columns being the items of all classes, class after class.
        classes: the classes; those of fewer than four items are left out.
        draws: shuffled orders.
        seed: of shuffles and intervals.

    Returns:
        [class layer head], in logits; None where no class is long enough.
    """
    place, found = _places(classes), {}
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
    matrices: Sequence[ClassMatrix], classes: Mapping[str, OrdinalClass], *, draws: int = 99, seed: int = 0
) -> Estimate | None:
    """Estimate the mean centred logit of the candidate that lies a given number of places after the item shown.

    Places are those in the whole class; in a cyclic class the shorter way round counts. A distance that fewer than two
    items have is left out.

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
        at = far == step  # an item has one candidate at most that far away: every value is another item's
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
    logits: Float[Tensor, "item candidate"], classes: Mapping[str, OrdinalClass], *, draws: int = 99, seed: int = 0
) -> Estimate | None:
    """Estimate how often an item is mapped to the next place of another class ("1" to "second", "February").

    A pair counts where the other class has the item's place plus one, without going round; within a class its own pairs
    count. A class that shares fewer than two such pairs with one taken before it is left out.

    Args:
        logits: of one head; rows and columns are the items of all classes, class after class.
        classes: the classes.
        draws: shuffled orders of the class that answers.
        seed: of shuffles and intervals.

    Returns:
        Fraction of items, [shown answered], in [0, 1]; None where fewer than two classes are left.
    """
    place, names = _places(classes), _comparable(classes)
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
    """Return the pairs of an item of one class and the next place of another, as positions in their words."""
    if shown.name == answered.name:
        return shown.pairs(1)
    place = {index: position for position, index in enumerate(answered.index.tolist())}
    found = [(i, place[index + 1]) for i, index in enumerate(shown.index.tolist()) if index + 1 in place]
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def winners(logits: Float[Tensor, "item candidate"]) -> Int[Tensor, " item"]:
    """Return the position of the highest logit, -1 where several tie: equal logits choose nothing."""
    alone = chosen(logits).bool()
    return torch.where(alone.any(1), alone.int().argmax(1), -1)


# --- states predicted from other items -------------------------------------------------------------------------------


def place_and_class(classes: Mapping[str, OrdinalClass]) -> tuple[Int[Tensor, " item"], Int[Tensor, " item"]]:
    """Return the place of every item in its whole class, and the number of that class, class after class."""
    domain = torch.cat([torch.full((len(c),), i) for i, c in enumerate(classes.values())])
    return torch.cat([c.index for c in classes.values()]), domain


def predicted_successors(
    states: Float[Tensor, "item d_model"],
    classes: Mapping[str, OrdinalClass],
    read: Callable[[Tensor], Tensor],
    *,
    draws: int = 99,
    seed: int = 0,
) -> Estimate | None:
    """Estimate how often a head names the successor of an item of which it sees only what other items say of it.

    The state of item i of class d is mean + place i + class d, fitted to all items but this one.

    Args:
        states: of the items of all classes, class after class.
        classes: the classes.
        read: from states [state d_model] to logits of all items [state item].
        draws: fits to states permuted within each class.
        seed: of permutations and interval.

    Returns:
        Fraction of items in [0, 1]; None where fewer than two items have a successor and can be predicted.
    """
    index, domain = place_and_class(classes)
    columns = [torch.ones(len(index), 1), *(_one_hot(part) for part in (index, domain))]
    design = torch.cat([c.double() for c in columns], 1)
    hat = design @ torch.linalg.pinv(design)
    follows = torch.full((len(index),), -1)
    for place, ordinal in zip(_places(classes).values(), classes.values(), strict=True):
        first, second = (ordinal.pairs(1) + place.start).T
        follows[first] = second
    # An item with leverage 1 is the only one of its place: no other item says anything of it.
    asked = ((hat.diagonal() < 1 - 1e-8) & (follows >= 0)).nonzero()[:, 0]
    if len(asked) < 2:
        return None
    rows = states.detach().cpu().double()
    other = domain != domain[asked, None]

    def right(given: Float[Tensor, "table item d_model"]) -> Float[Tensor, "table asked"]:
        left = (given - hat @ given)[:, asked] / (1 - hat.diagonal()[asked, None])
        logits = read((given[:, asked] - left).flatten(0, 1).to(states)).cpu().double().unflatten(0, (len(given), -1))
        named = winners(logits.masked_fill(other, -torch.inf).flatten(0, 1)).reshape(len(given), -1)
        return (named == follows[asked]).double()

    generator = torch.Generator().manual_seed(seed)
    tables = torch.stack([_within(domain, generator) for _ in range(draws)])
    null = [right(rows[part]).mean(1) for part in tables.split(8)]  # a few at a time: cheaper, and still small
    return bootstrap(
        right(rows[None])[0],
        unit_name="items",
        measured="fraction of items in [0, 1]",
        seed=seed,
        control=torch.cat(null),
        control_name="states permuted within classes",
    )


# --- what one head writes, and the states it reads -------------------------------------------------------------------


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
                figure = plots.matrix(one.logits, one.items, one.items, title=title, colours="diverging", **axes)
                shown[f"What {name} writes for {one.name}"] = figure
        if self.cross_class is not None:
            names, value = self.cross_class.labels["shown"], self.cross_class.value
            axes = {"row_title": "class shown", "col_title": "class that answers", "unit": self.cross_class.unit}
            title = f"Items that {name} maps to the next place of a class"
            shown["Successors across classes"] = plots.matrix(value, names, names, title=title, **axes)
        if self.order_bias is not None:
            own = {k: getattr(self.order_bias, k)[..., layer, head] for k in ("value", "low", "high", "control")}
            bias = replace(self.order_bias, **own, axes=("class",))
            shown["Later against earlier items"] = plots.curve(
                bias, title=f"Mean logit {name} writes to later items, minus earlier ones"
            )
        if self.by_distance is not None:
            steps = [int(label) for label in self.by_distance.labels["distance"]]
            shown["Logit by distance"] = plots.curve(
                self.by_distance, steps, title=f"Centred logit {name} writes", x_title="places after the item shown"
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
    """Describe what the head `best` writes for each item to all items, and the order bias of every head.

    Args:
        reader: of the items of all classes, class after class.
        classes: the classes; candidates are always the items of one class, whatever the reader's convention says.
        best: `(layer, head)`.
        draws: shuffled orders behind each control.
        seed: of shuffles and intervals.
    """
    tokens, notes = _tokens(classes), []
    layers = [reader.logits(reader.states(i), i, tokens).cpu() for i in range(reader.model.cfg.n_layers)]
    own = layers[best[0]][best[1]]
    matrices = class_matrices(own, classes)
    cross = cross_class_score(own, classes, draws=draws, seed=seed)
    bias = order_bias(layers, classes, draws=draws, seed=seed)
    if cross is None:
        notes.append("No two classes share places, so nothing was asked across classes.")
    elif left := [name for name in classes if name not in cross.labels["shown"]]:
        notes.append(f"Not asked across classes, for want of shared places: {', '.join(left)}.")
    if bias is None or len(bias.labels["class"]) < len(classes):
        notes.append("Later and earlier items were not compared in classes of fewer than four items.")
    by_distance = logit_by_distance(matrices, classes, draws=draws, seed=seed)
    return HeadWrites(matrices, cross, bias, by_distance, tuple(notes))


@dataclass(frozen=True)
class ItemStates:
    """Result of `study_states`; None is what could not be measured, or rests on a head that was not found."""

    factoring: Estimate | None = None
    """Share of items recognised from place and class, as other items tell them, in [0, 1]; control: places permuted."""

    factor_shares: Float[Tensor, " factor"] | None = None
    """Share of the variance that place, class and both explain, in [0, 1] (`geometry.factoring.FACTORS`)."""

    factored_succession: Estimate | None = None
    """Share of items whose successor the head names, given what other items tell of the item, in [0, 1]."""

    residues: Estimate | None = None
    """Accuracy of n mod T for held-out numbers minus 1/T, [period]; control: numbers permuted."""

    residue_p: Float[Tensor, " period"] | None = None
    """p-values of `residues`, corrected for all periods."""

    steering_period: int | None = None
    """T of the residues that were exchanged: the one that stands out most, 10 where none does."""

    steering: Estimate | None = None
    """Share of exchanged residues that the head follows, in [0, 1]; control: random directions."""

    steering_permuted: Float[Tensor, " draw"] | None = None
    """`steering` with the residues of the features permuted."""

    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    def figures(self) -> dict[str, Any]:
        """Return title -> figure of each estimate there is."""
        from mechinterp_toolkit import plots

        titles = {
            "Items recognised from place and class": self.factoring,
            "Successors named from place and class": self.factored_succession,
            "Exchanged residues that the head follows": self.steering,
        }
        shown = {title: plots.strip(found, title=title) for title, found in titles.items() if found is not None}
        if self.residues is not None:
            periods = [int(label) for label in self.residues.labels["period"]]
            title = "Held-out accuracy of n mod T above 1/T"
            shown["Residues of numbers"] = plots.curve(self.residues, periods, title=title, x_title="T")
        return shown


def study_states(
    reader: OVReader,
    classes: Mapping[str, OrdinalClass],
    best: tuple[int, int],
    *,
    follow: bool,
    draws: int = 99,
    seed: int = 0,
) -> ItemStates:
    """Look for place and class, and for residues of the numbers, in the states in front of the head `best`.

    Args:
        reader: of the items of all classes, class after class.
        classes: the classes; residues are those of the class "numbers".
        best: `(layer, head)`.
        follow: whether to ask what the head makes of predicted states and exchanged residues as well.
        draws: of each control.
        seed: of controls and intervals.
    """
    layer, head = best
    states, tokens, notes = reader.states(layer).detach(), _tokens(classes), []
    found = ItemStates()

    def read(given: Tensor) -> Tensor:
        return reader.logits(given, layer, tokens, head=head)[0]

    try:
        split = factor(states, *place_and_class(classes), seed, draws=draws)
    except ToolkitError as error:
        notes.append(f"Items were not split into place and class: {error}")
    else:
        found = replace(found, factoring=split.held_out, factor_shares=split.r2)
        if follow:
            after = predicted_successors(states, classes, read, draws=draws, seed=seed)
            found = replace(found, factored_succession=after)
    if "numbers" not in classes:
        return replace(found, notes=(*notes, "Residues were not looked for: there is no class of numbers."))
    own = _places(classes)["numbers"]
    number = torch.tensor([int(word) for word in classes["numbers"].words])
    try:
        scan = residue_scan(states[own], number, PERIODS, draws=draws, seed=seed)
        found = replace(found, residues=scan.excess, residue_p=scan.p)
        if follow:
            period = scan.found[0] if scan.found else DIGITS
            steered = exchange_residues(states[own], number, period, lambda given: read(given)[:, own], seed=seed)
            found = replace(
                found, steering_period=period, steering=steered.share, steering_permuted=steered.shuffled
            )  # fmt: skip
    except ToolkitError as error:
        notes.append(f"Residues were not {'exchanged' if found.residues else 'looked for'}: {error}")
    return replace(found, notes=tuple(notes))


def exchange_residues(
    states: Float[Tensor, "item d_model"],
    number: Int[Tensor, " item"],
    period: int,
    read: Callable[[Tensor], Tensor],
    *,
    seed: int = 0,
) -> ResidueSteering:
    """Exchange features of n mod `period`, found by means, at their own size: what items have of theirs on average.

    Raises:
        ToolkitError: as `residue_features` and `steer_residues`.
    """
    features = residue_features(states, number, period).features
    rows = states.detach().cpu().double()
    scale = float(((rows - rows.mean(0)) * features[number % period]).sum(1).mean())
    return steer_residues(states, number, features, scale, read, seed=seed)


# --- answers of the model --------------------------------------------------------------------------------------------


def successor_prompts(model: HookedModel, classes: Mapping[str, OrdinalClass], seed: int) -> PromptSet:
    """Return prompts whose answer is the successor of their item, in the form this model knows."""
    from mechinterp_toolkit.toys import asks_by_query, successor_queries

    tokenizer = model.require_tokenizer()
    if asks_by_query(tokenizer):
        return successor_queries(tokenizer, classes, seed=seed)
    return _succession(model, classes, seed)


def _succession(
    model: HookedModel, classes: Mapping[str, OrdinalClass], seed: int, *, shuffled: bool = False
) -> PromptSet:
    """Three items that ask for a fourth, separated by commas where the tokenizer knows them."""
    tokenizer = model.require_tokenizer()
    comma = tokenizer.encode(",", add_special_tokens=False)
    known = bool(comma) and tokenizer.unk_token_id not in comma
    return succession_prompts(
        tokenizer,
        classes,
        prepend_bos=bool(model.provenance.prepend_bos),
        per_class=30,
        seed=seed,
        shuffled=shuffled,
        separator="," if known else "",
    )


def shuffled_prompts(
    model: HookedModel, prompts: PromptSet, classes: Mapping[str, OrdinalClass], seed: int
) -> list[PromptSet]:
    """Return `SHUFFLES` times the same prompts with what they show in another order, and the same answers."""
    from mechinterp_toolkit.toys import asks_by_query

    tokenizer = model.require_tokenizer()
    if asks_by_query(tokenizer):
        return [_other_items(prompts, classes, seed + draw) for draw in range(SHUFFLES)]
    return [_succession(model, classes, seed + draw, shuffled=True) for draw in range(SHUFFLES)]


def _other_items(prompts: PromptSet, classes: Mapping[str, OrdinalClass], seed: int) -> PromptSet:
    """Prompts that show one item each, with another item of the class in its place."""
    assert prompts.item_position is not None
    generator, tokens, rows = torch.Generator().manual_seed(seed), prompts.tokens.clone(), torch.arange(len(prompts))
    for name, ordinal in classes.items():
        own = of_class(prompts, name)
        shown = tokens[rows[own], prompts.item_position[own]]
        place = (shown[:, None] == ordinal.tokens).int().argmax(1)
        step = torch.randint(1, len(ordinal), (len(place),), generator=generator)
        tokens[rows[own], prompts.item_position[own]] = ordinal.tokens[(place + step) % len(ordinal)]
    return replace(prompts, tokens=tokens)


def item_units(prompts: PromptSet, classes: Mapping[str, OrdinalClass]) -> Int[Tensor, " batch"]:
    """Return the item each prompt is about, numbered over all classes."""
    assert prompts.item is not None
    assert prompts.classes is not None
    first = {name: 1000 * i for i, name in enumerate(classes)}
    return prompts.item + torch.tensor([first[name] for name in prompts.classes])


def of_class(prompts: PromptSet, name: str) -> Tensor:
    """Return True where a prompt is about an item of the class."""
    assert prompts.classes is not None
    return torch.tensor([c == name for c in prompts.classes])


@torch.no_grad()
def class_logits(
    model: HookedModel, prompts: PromptSet, classes: Mapping[str, OrdinalClass], *, batch_size: int = 256
) -> dict[str, Float[Tensor, "_ _"]]:
    """Return logits of the items of each class where the model answers, for the prompts of that class [prompt item]."""
    rows = []
    for part in prompts.batches(batch_size):
        logits = model.logits(part.tokens, part.mask)
        rows.append(logits[torch.arange(len(part)), part.position].detach().double().cpu())
    last = torch.cat(rows)
    return {n: last[of_class(prompts, n)][:, c.tokens] for n, c in classes.items() if n in (prompts.classes or ())}


def right_answer(
    prompts: PromptSet, classes: Mapping[str, OrdinalClass]
) -> Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]:
    """Return the metric of `hooks.measure`: logit of the right answer minus the mean of its class, in logits."""
    pool = {n: c.tokens for n, c in classes.items() if n in (prompts.classes or ())}

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        last = logits[torch.arange(len(prompts)), prompts.position].double().cpu()
        value = last[torch.arange(len(prompts)), prompts.answer]
        for name, tokens in pool.items():
            own = of_class(prompts, name)
            value[own] -= last[own][:, tokens].mean(1)
        return value

    return metric


def chosen(logits: Float[Tensor, "prompt item"]) -> Float[Tensor, "prompt item"]:
    """Return 1 where an item has the highest logit of its row, alone."""
    top = logits == logits.amax(1, keepdim=True)
    return (top & (top.sum(1, keepdim=True) == 1)).double()


def centred(logits: Float[Tensor, "prompt item"]) -> Float[Tensor, "prompt item"]:
    """Return logits minus the mean of their row."""
    return logits - logits.mean(1, keepdim=True)


def answer_estimate(
    value: Mapping[str, Float[Tensor, "_ _"]],
    prompts: PromptSet,
    classes: Mapping[str, OrdinalClass],
    shuffles: Mapping[str, Int[Tensor, "_ _"]],
    measured: str,
    seed: int,
) -> Estimate:
    """Return the mean of `value` [prompt item] at the right answers; the control's are shuffled as whole items in a class.

    Args:
        value: per class, one number per prompt of that class and item.
        prompts: all prompts.
        classes: the classes.
        shuffles: per class, orders of its items [draw item].
        measured: unit and range.
        seed: of the interval.
    """
    observed = torch.zeros(len(prompts), dtype=torch.float64)
    draws = len(next(iter(shuffles.values())))
    null = torch.zeros(draws, dtype=torch.float64)
    for name, part in value.items():
        rows = of_class(prompts, name)
        place = {int(t): i for i, t in enumerate(classes[name].tokens)}
        answer = torch.tensor([place[int(t)] for t in prompts.answer[rows]])
        observed[rows] = part[torch.arange(len(part)), answer]
        null += part[torch.arange(len(part)), shuffles[name][:, answer]].sum(1)
    return bootstrap(
        observed,
        unit=item_units(prompts, classes),
        unit_name="items",
        measured=measured,
        seed=seed,
        control=null / len(prompts),
        control_name="answers shuffled within classes",
    )


def attention_to_items(model: HookedModel, prompts: PromptSet, unit: Tensor, seed: int) -> Estimate | None:
    """Return attention from the position that answers to the item, [layer head]; control: another position before it."""
    if prompts.item_position is None:
        return None
    names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers))
    if not all(name in model.hook_points for name in names):
        return None
    rows = torch.arange(len(prompts))
    patterns = activations(model, prompts.tokens, names, mask=prompts.mask)
    last = torch.stack(
        [patterns[n].cpu()[rows, :, prompts.position] for n in names], 1
    ).double()  # batch layer head key
    to_item = last[rows, :, :, prompts.item_position]
    generator = torch.Generator().manual_seed(seed)
    elsewhere = []
    for _ in range(99):
        key = (torch.rand(len(prompts), generator=generator) * prompts.position).long()
        key = key + (key >= prompts.item_position).long()
        elsewhere.append(last[rows, :, :, key].mean(0))
    return bootstrap(
        to_item,
        unit=unit,
        unit_name="items",
        measured="attention in [0, 1]",
        seed=seed,
        axes=("layer", "head"),
        control=torch.stack(elsewhere),
        control_name="another position",
    )


# --- shared ----------------------------------------------------------------------------------------------------------


def _places(classes: Mapping[str, OrdinalClass]) -> dict[str, slice]:
    """Where the items of each class stand among those of all."""
    found, start = {}, 0
    for name, ordinal in classes.items():
        found[name] = slice(start, start + len(ordinal))
        start += len(ordinal)
    return found


def _tokens(classes: Mapping[str, OrdinalClass]) -> Int[Tensor, " item"]:
    return torch.cat([c.tokens for c in classes.values()])


def _later_minus_earlier(n: int) -> Float[Tensor, "item candidate"]:
    """Weights that make of a row the mean of later candidates minus that of earlier ones; zero in first and last row."""
    later = torch.ones(n, n, dtype=torch.float64).triu(1)
    weight = later / later.sum(1, keepdim=True).clamp_min(1) - later.T / later.sum(0)[:, None].clamp_min(1)
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


def _one_hot(label: Int[Tensor, " item"]) -> Int[Tensor, "item label"]:
    which = label.unique(return_inverse=True)[1]
    return torch.nn.functional.one_hot(which)


def _within(group: Int[Tensor, " item"], generator: torch.Generator) -> Int[Tensor, " item"]:
    """A random order of the items in which each takes the place of one of its group; groups stand one after another."""
    parts = [(group == one).nonzero()[:, 0] for one in group.unique()]
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts])
