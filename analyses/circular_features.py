"""Are days and months kept around a circle, in their order, and is the circle what the model computes with?

At the item of prompts that ask for what comes next, class means of the residual stream are fitted layer by layer.
*Represented, order*: the angle of an item is predicted from the other items better than when whole items are permuted, the
search over layers, classes and candidate orders repeated. *Represented, ring*: the order also closes (`fit_circle`).
*Used*: at the best layer, the plane of an item is set to the point of another one; the answer moves to the other item's
successor more than under maps from items to points that are permuted as a whole.

What would fool it: prompts are no units, items are, and seven items carry little evidence; an order without closure is
any smooth curve; a circle at the embedding need not be what an answer is computed from (base-10 adders have circles too),
which only the edit shows; and an edit that replaces most of the stream would move the answer whatever the plane held, so
the plane is set to wrong points as a control and the whole stream and two principal components stand beside it as ratios.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860; both verdicts on representation and the null of the
edit are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.geometry.circle import CircleFit, Order, fit_circle, harmonics, power, transfer
from mechinterp_toolkit.intervention import Edit, Site, applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import (
    ORDINAL_CLASSES,
    OrdinalClass,
    PromptSet,
    build_prompts,
    has_ordinal_tokens,
    ordinal_classes,
)
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, Finding, Verdict
from mechinterp_toolkit.stats import bootstrap, p_value, permutations

ALL_ORDERS: tuple[Order, ...] = ("natural", "harmonics", "discrete_log")
CYCLIC = ("days", "months")

EDITS = ("set the circle", "keep only the circle", "remove the circle", "set two components", "set the whole stream")

KEPT_DRAWS = 999
"""Draws of a null that a result keeps, at even distances; p-values rest on all of them."""


@dataclass(frozen=True)
class ClassCircle:
    """One class of items."""

    name: str
    """Name of the class."""

    items: tuple[str, ...]
    """Its words, in order."""

    accuracy: float
    """Share of its prompts whose right answer has the highest logit of the class, in [0, 1]."""

    hook_point: str
    """Where its order is held best."""

    p: float
    """p-value of the order there, corrected for all layers and classes."""

    order: str
    """The candidate order that fits best."""

    closure_low: float
    """Lower end of the 95 % interval of closure."""

    closure_high: float
    """Upper end."""

    linear: float
    """Held-out R2 of the item's index on a line, at most 1."""

    transfer: Estimate
    """Mean cosine of the angles' error in a template the circle was not fitted to, in [-1, 1]; control: items permuted."""

    points: Float[Tensor, "item 2"]
    """The items in the plane, in units of the activations."""

    moved: Estimate | None
    """Set the circle: rise of the new answer's logit over the old one's, in shares of what the whole stream does."""

    edits: Float[Tensor, " edit"]
    """Accuracy under each of `EDITS`: of the new answer where something is set, of the old one where not."""

    @property
    def is_ring(self) -> bool | None:
        """Whether the order closes: True and False where the interval of closure says so, else None."""
        if self.closure_low > 0.5:
            return True
        return False if self.closure_high < 0.5 else None

    @property
    def p_used(self) -> float | None:
        """p-value of the edit against permuted points."""
        if self.moved is None:
            return None
        assert self.moved.control is not None
        return float(p_value(self.moved.value, self.moved.control))


@dataclass(frozen=True)
class CircularFeatures(Finding):
    """Result of `circular_features`."""

    circles: tuple[ClassCircle, ...]
    """One entry per class, smallest p-value first."""

    order: Estimate
    """Held-out R2 of the angle, [class, hook point], at most 1; control: items permuted, best candidate order."""

    closure: Estimate
    """Closure of the natural order, [class, hook point]; 1 for a regular ring."""

    explained: Estimate
    """Share of the variance between items at the position that answers, [class, hook point, harmonic], in [0, 1]: what the
    answer's position says of the item, block by block, as circles of the first three harmonics; control: items permuted."""

    notes: tuple[str, ...]
    """Items dropped, classes left out."""

    @property
    def found(self) -> tuple[ClassCircle, ...]:
        """Classes whose order is represented."""
        return tuple(one for one in self.circles if one.p <= 0.05)

    @property
    def represented(self) -> Verdict:
        best = self.circles[0]
        chance = power(len(best.items), 0.3, searched=True)
        at = f"{best.name} at {best.hook_point}"
        if not self.found:
            return Verdict(
                "not_found", f"{at}: the order is no better held than permuted ones.", p=best.p, power=chance
            )
        words = {True: "a ring", False: "in order, but open", None: "in order; whether it closes is undecided"}
        said = "; ".join(f"{one.name} are {words[one.is_ring]} ({one.hook_point})" for one in self.found)
        return Verdict("found", f"{said}.", p=best.p, power=chance)

    @property
    def ring(self) -> Verdict:
        """Whether a represented order also closes."""
        rings = [one.is_ring for one in self.found]
        if not rings:
            return Verdict("not_applicable", "No order was found, so there is none to close.")
        closed = [one.name for one, ring in zip(self.found, rings, strict=True) if ring]
        if closed:
            return Verdict("found", f"{', '.join(closed)} close to a ring.")
        if None in rings:
            return Verdict("undecided", "Ordered, not shown closed: the interval of closure reaches one half.")
        return Verdict("not_found", "Ordered, and open: closure lies below one half.")

    @property
    def used(self) -> Verdict:
        tested = [one for one in self.found if one.moved is not None and one.p_used is not None]
        if not tested:
            return Verdict("not_applicable", "No order was found, or the model cannot be asked, so nothing was edited.")
        p = min(1.0, min(one.p_used or 1.0 for one in tested) * len(tested))
        said = "; ".join(f"setting the circle of {one.name} does {one.moved.text()} of the whole stream" for one in tested
                         if one.moved is not None)  # fmt: skip
        if p <= 0.05:
            return Verdict("found", f"{said}, more than permuted points.", p=p)
        return Verdict("not_found", f"{said}, no more than permuted points.", p=p)

    @property
    def effect(self) -> Estimate | None:
        return self.circles[0].moved or self._best_order()

    @property
    def estimates(self) -> dict[str, Estimate]:
        moved = {f"moved {one.name}": one.moved for one in self.circles if one.moved is not None}
        return super().estimates | moved | {f"transfer {one.name}": one.transfer for one in self.circles}

    @property
    def locations(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.found)

    def answer(self) -> str:
        r2, best = self._best_order(), self.circles[0]
        text = (
            f"The angle of {best.name} is predicted from the other {len(best.items) - 1} with R2 = {r2.text()} at "
            f"{best.hook_point} ({best.order} order; {r2.control_text()}), closure [{best.closure_low:.2f}, "
            f"{best.closure_high:.2f}]; fitted to other templates, its angles are off by a mean cosine of {best.transfer.text()}."
        )
        if not self.found:
            chance = power(len(best.items), 0.3, searched=True)
            known = "" if chance is None else f" A circle of share .3 would be found in {chance:.2f} of cases."
            return f"No class is held in its order. {text}{known}"
        return f"{self.represented.reason} {text}"

    def causal_check(self) -> str:
        asked = ", ".join(f"{one.accuracy:.2f} of {one.name}" for one in self.circles)
        said = f"Of prompts that ask for what comes next the model answers {asked} right within the class."
        for one in self.found:
            if one.moved is not None:
                acc = dict(zip(EDITS, one.edits.tolist(), strict=True))
                said += (
                    f" At {one.hook_point}, setting the plane of {one.name} to another item's point moves the answer "
                    f"{one.moved.text()} of what the whole stream does ({one.moved.control_text()}). The new answer is then "
                    f"right in {acc['set the circle']:.2f}, with two principal components {acc['set two components']:.2f}, with "
                    f"the whole stream {acc['set the whole stream']:.2f}; the circle alone leaves "
                    f"{acc['keep only the circle']:.2f} of the old answers, its removal {acc['remove the circle']:.2f}."
                )
        return said

    @property
    def caveats(self) -> tuple[str, ...]:
        few = [one.name for one in self.circles if len(one.items) < 9]
        power_note = (f"{', '.join(few)}: with so few items, closure is often undecided.",) if few else ()
        lines = tuple(f"{one.name}: a line explains {one.linear:.2f} of the index as well." for one in self.found
                      if one.linear > 0.5)  # fmt: skip
        return (*power_note, *lines, *self.notes)

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown: dict[str, Any] = {"Order by layer": plots.heat_map(self.order, title="Held-out R2 of the angle")}
        for one in self.circles:
            shown[f"{one.name} at {one.hook_point}"] = plots.plane(
                one.points, one.items, title=f"Means of {one.name}", order=(*one.items, one.items[0])
            )
            if one.moved is not None:
                shown[f"Setting the circle of {one.name}"] = plots.strip(
                    one.moved, title="Share of the whole stream's effect"
                )
        shown["Order and its null"] = plots.strip(self._best_order(), title="Held-out R2 over permuted items")
        return shown

    def _best_order(self) -> Estimate:
        names, points = self.order.labels["class"], self.order.labels["hook point"]
        at = (names.index(self.circles[0].name), points.index(self.circles[0].hook_point))
        assert self.order.control is not None
        return Estimate(
            value=self.order.value[at],
            low=self.order.low[at],
            high=self.order.high[at],
            n=len(self.circles[0].items),
            unit=self.order.unit,
            method=self.order.method,
            control=self.order.control.flatten(1).amax(1),
            control_name="items permuted, best of all layers",
        )


def needs_cyclic_tokens(model: HookedModel) -> str | None:
    """Return why days and months cannot be put to this model, or None."""
    if not model.is_transformer:
        return "it has no residual stream"
    if model.tokenizer is None:
        return "it comes without a tokenizer, so no words can be put to it"
    return has_ordinal_tokens(model.tokenizer, CYCLIC, d_vocab=model.cfg.d_vocab)


def planted_circles(strength: float, seed: int) -> Planted:
    """Return a model that computes successors, with days and months around circles at `strength`."""
    from mechinterp_toolkit.toys import planted_circle

    hf_model, tokenizer, _ = planted_circle(strength, seed)
    return Planted(load_model(hf_model, tokenizer=tokenizer), CYCLIC, {})


def random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def scrambled_model(seed: int) -> HookedModel:
    """Return the trained ordinal toy with the tokens of each class permuted: it learned another order."""
    from mechinterp_toolkit.toys import relabelled_ordinal

    return relabelled_ordinal("toy/ordinal", seed)


@analysis(
    question="Are days and months kept around a circle, and is the circle used?",
    paper="Engels et al. 2025, arXiv:2405.14860",
    applies=needs_cyclic_tokens,
    planted=planted_circles,
    twins={"random weights": random_model, "scrambled": scrambled_model},
    core=fit_circle,
)
def circular_features(
    model: HookedModel,
    *,
    classes: tuple[str, ...] = CYCLIC,
    orders: tuple[Order, ...] = ALL_ORDERS,
    templates: int = 7,
    draws: int = 9999,
    seed: int = 0,
) -> CircularFeatures:
    """Fit circles to class means layer by layer, and set the best circle of each class to other items' points.

    Args:
        model: a transformer with a tokenizer that knows the words.
        classes: cyclic classes of `prompts.ORDINAL_CLASSES`.
        orders: candidate orders of `fit_circle`; the null searches the same ones.
        templates: contexts in which every item is asked.
        draws: permutations of the items behind the null, and of the points behind the null of the edit.
        seed: of everything drawn.

    Raises:
        TokenisationError: no class is usable with this tokenizer.
    """
    found = ordinal_classes(model.require_tokenizer(), classes)
    cyclic = {name: c for name, c in found.classes.items() if c.cyclic and _is_whole(c)}
    if not cyclic:
        raise TokenisationError(
            f"none of {', '.join(found.classes)} is cyclic and whole; circles need classes such as {', '.join(CYCLIC)}."
        )
    names = _stream(model)
    asked = {name: _prompts(model, c, templates, seed) for name, c in cyclic.items()}
    fits = {name: _fits(model, asked[name], c, names, orders, draws, seed) for name, c in cyclic.items()}
    circles = [
        _circle(model, c, asked[name], fits[name], names, _p_of(fits[name], len(cyclic)), draws, seed)
        for name, c in cyclic.items()
    ]
    return CircularFeatures(
        circles=tuple(sorted(circles, key=lambda one: one.p)),
        order=_together(fits, names, "r2"),
        closure=_together(fits, names, "closure"),
        explained=_explained(model, asked, cyclic, seed),
        notes=tuple(found.caveats),
        prompts_hash=next(iter(asked.values())).prompts.hash,
    )


# fmt: off
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "days": (
        "If today is {}, then tomorrow is", "The day after {} is", "Yesterday was {}, so today is", "After {} comes",
        "We leave on {} and arrive one day later, on", "The shop closes on {} and opens the next day, on",
        "One day after {} it is",
    ),
    "months": (
        "If this month is {}, then next month is", "The month after {} is", "Last month was {}, so this month is",
        "After {} comes", "The course starts in {} and ends one month later, in",
        "What we order in {} arrives the next month, in", "One month after {} it is",
    ),
}
# fmt: on
"""What is asked of a model that reads English; the blank is the item, behind a space."""


def _is_whole(ordinal: OrdinalClass) -> bool:
    """Whether no item was dropped: a circle with a gap has other angles."""
    return ordinal.index.tolist() == list(range(len(ORDINAL_CLASSES[ordinal.name].words)))


class _Asked(NamedTuple):
    prompts: PromptSet
    unit: Int[Tensor, " batch"]  # which template


class _Fit(NamedTuple):
    circle: CircleFit
    acts: Float[Tensor, "batch d"]


def _stream(model: HookedModel) -> tuple[str, ...]:
    """The residual stream in front of each block: behind the last one, nothing at the item can reach the answer."""
    return tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))


def _prompts(model: HookedModel, ordinal: OrdinalClass, templates: int, seed: int) -> _Asked:
    """Every item in every template; contexts of noise words for the toy, sentences for models that read English."""
    from mechinterp_toolkit.toys import asks_by_query, successor_queries

    tokenizer, n = model.require_tokenizer(), len(ordinal)
    unit = torch.arange(templates).repeat_interleave(n)
    if asks_by_query(tokenizer):
        parts = [successor_queries(tokenizer, {ordinal.name: ordinal}, seed=1000 * seed + t) for t in range(templates)]
        return _Asked(_joined(parts), unit)
    sentences = TEMPLATES.get(ordinal.name, ("After {} comes", "What follows {} is"))[:templates]
    following = [*ordinal.words[1:], ordinal.words[0]]
    prompts = build_prompts(
        tokenizer,
        [sentence.format(word) for sentence in sentences for word in ordinal.words],
        [f" {word}" for _ in sentences for word in following],
        prepend_bos=bool(model.provenance.prepend_bos),
        items=list(range(n)) * len(sentences),
        classes=[ordinal.name] * (n * len(sentences)),
        item_words=list(ordinal.words) * len(sentences),
    )
    return _Asked(prompts, torch.arange(len(sentences)).repeat_interleave(n))


def _joined(parts: Sequence[PromptSet]) -> PromptSet:
    """Prompt sets of one width, class and form as one."""

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return PromptSet(
        tokens=whole("tokens"),
        mask=whole("mask"),
        answer=whole("answer"),
        position=whole("position"),
        texts=tuple(text for part in parts for text in part.texts),
        item=whole("item"),
        classes=tuple(name for part in parts for name in part.classes or ()),
        item_position=whole("item_position"),
    )


def _fits(
    model: HookedModel,
    asked: _Asked,
    ordinal: OrdinalClass,
    names: Sequence[str],
    orders: Sequence[Order],
    draws: int,
    seed: int,
) -> list[_Fit]:
    """One fit per hook point, all against the same permutations of the items."""
    prompts = asked.prompts
    assert prompts.item is not None
    found = activations(model, prompts.tokens, tuple(names), mask=prompts.mask, position=prompts.item_position)
    return [
        _Fit(
            fit_circle(found[n], prompts.item, len(ordinal), unit=asked.unit, orders=orders, draws=draws, seed=seed),
            found[n].double(),
        )
        for n in names
    ]


def _together(fits: Mapping[str, list[_Fit]], names: Sequence[str], what: str) -> Estimate:
    """The estimates of all classes and hook points as one, [class, hook point]; of the control, as many draws for all."""
    rows = [[getattr(fit.circle, what) for fit in of_class] for of_class in fits.values()]
    one = rows[0][0]
    control = None
    if one.control is not None:
        fewest = min(len(row[0].control) for row in rows)
        kept = min(fewest, KEPT_DRAWS)
        control = torch.stack(
            [torch.stack([e.control for e in row], 1)[_evenly(len(row[0].control), kept)] for row in rows], 1
        )
    stacked = {
        k: torch.stack([torch.stack([getattr(e, k) for e in row]) for row in rows]) for k in ("value", "low", "high")
    }
    return Estimate(
        **stacked,
        n=min(row[0].n for row in rows),
        unit=one.unit,
        method=one.method,
        control=control,
        control_name=one.control_name,
        axes=("class", "hook point"),
        labels={"class": tuple(fits), "hook point": tuple(names)},
    )


def _explained(
    model: HookedModel, asked: Mapping[str, _Asked], classes: Mapping[str, OrdinalClass], seed: int
) -> Estimate:
    """Harmonics of the item at the position that answers, in front of each block and behind the last."""
    names = (*_stream(model), f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    rows = []
    for name, ordinal in classes.items():
        prompts, unit = asked[name]
        assert prompts.item is not None
        read = activations(model, prompts.tokens, names, mask=prompts.mask, position=prompts.position)
        rows.append([harmonics(read[n], prompts.item, len(ordinal), unit=unit, seed=seed) for n in names])
    stacked = {
        k: torch.stack([torch.stack([getattr(e, k) for e in row]) for row in rows]) for k in ("value", "low", "high")
    }
    control = torch.stack([torch.stack([e.control for e in row if e.control is not None], 1) for row in rows], 1)
    one = rows[0][0]
    return Estimate(
        **stacked,
        n=min(row[0].n for row in rows),
        unit=one.unit,
        method=one.method,
        control=control,
        control_name="items permuted",
        axes=("class", "hook point", "harmonic"),
        labels={"class": tuple(classes), "hook point": names},
    )


def _evenly(n: int, kept: int) -> Int[Tensor, " kept"]:
    return torch.linspace(0, n - 1, kept).round().long()


def _p_of(fits: Sequence[_Fit], n_classes: int) -> float:
    """p-value of the best hook point, corrected for all hook points (largest of each draw) and classes (Bonferroni)."""
    value = torch.stack([fit.circle.r2.value for fit in fits]).amax()
    null = torch.stack([fit.circle.r2.control for fit in fits if fit.circle.r2.control is not None]).amax(0)
    return min(1.0, n_classes * float(p_value(value, null, exact=fits[0].circle.exact)))


def _circle(
    model: HookedModel,
    ordinal: OrdinalClass,
    asked: _Asked,
    fits: Sequence[_Fit],
    names: Sequence[str],
    p: float,
    draws: int,
    seed: int,
) -> ClassCircle:
    best = max(range(len(fits)), key=lambda i: float(fits[i].circle.r2.value))
    fit = fits[best]
    base = _class_logits(model, asked.prompts, ordinal)
    moved, edits = None, torch.zeros(0, dtype=torch.float64)
    if p <= 0.05:
        moved, edits = _edited(model, asked.prompts, ordinal, fit, names[best], base, draws, seed)
    assert asked.prompts.item is not None
    return ClassCircle(
        name=ordinal.name,
        items=ordinal.words,
        accuracy=_share_right(base, _next(asked.prompts.item, len(ordinal))),
        hook_point=names[best],
        p=p,
        order=fit.circle.order,
        closure_low=float(fit.circle.closure.low),
        closure_high=float(fit.circle.closure.high),
        linear=fit.circle.linear,
        transfer=transfer(fit.acts, asked.prompts.item, len(ordinal), asked.unit, seed=seed),
        points=fit.circle.points,
        moved=moved,
        edits=edits,
    )


def _next(item: Tensor, n: int) -> Tensor:
    return (item + 1) % n


def _class_logits(
    model: HookedModel, prompts: PromptSet, ordinal: OrdinalClass, edits: Mapping[str, Edit] | None = None
) -> Float[Tensor, "batch item"]:
    """Logits of the class' items where the answer is asked, centred over them."""
    if edits:
        with applied(model, edits, mask=prompts.mask):
            return _class_logits(model, prompts, ordinal)
    logits = model.logits(prompts.tokens, prompts.mask)[torch.arange(len(prompts)), prompts.position]
    of_class = logits.detach().double().cpu()[:, ordinal.tokens]
    return of_class - of_class.mean(1, keepdim=True)


def _share_right(logits: Float[Tensor, "batch item"], answer: Int[Tensor, " batch"]) -> float:
    top = logits.amax(1, keepdim=True)
    alone = (logits == top).sum(1) == 1
    return float(((logits.argmax(1) == answer) & alone).double().mean())


def _edited(
    model: HookedModel,
    prompts: PromptSet,
    ordinal: OrdinalClass,
    fit: _Fit,
    name: str,
    base: Float[Tensor, "batch item"],
    draws: int,
    seed: int,
) -> tuple[Estimate | None, Float[Tensor, " edit"]]:
    """Set, keep and remove the circle at the item; set two principal components and the whole stream beside it."""
    assert prompts.item is not None
    item, n, mean = prompts.item, len(ordinal), fit.circle.means.mean(0)
    components = torch.linalg.svd(fit.circle.means - mean, full_matrices=False)[2][:2]

    def run(change: Change) -> Float[Tensor, "batch item"]:
        return _class_logits(model, prompts, ordinal, {name: _at_items(prompts.item_position, change)})

    def setting(plane: Float[Tensor, "2 d"]) -> Float[Tensor, "set batch item"]:
        points = (fit.circle.means - mean) @ plane.T
        return torch.stack([run(lambda x, j=j: x + (points[j] - (x - mean) @ plane.T) @ plane) for j in range(n)])

    others = fit.acts.reshape(-1, n, fit.acts.shape[1]).repeat_interleave(n, 0)  # of the same template, every item
    circle, pca = setting(fit.circle.plane), setting(components)
    stream = torch.stack([run(lambda x, j=j: others[:, j]) for j in range(n)])
    kept = run(lambda x: mean + (x - mean) @ fit.circle.plane.T @ fit.circle.plane)
    removed = run(lambda x: x - (x - mean) @ fit.circle.plane.T @ fit.circle.plane)
    answer = _next(item, n)
    accuracies = torch.tensor([_share_set(circle, item), _share_right(kept, answer), _share_right(removed, answer),
                               _share_set(pca, item), _share_set(stream, item)], dtype=torch.float64)  # fmt: skip
    whole = _moves(stream, base, item)
    scale = whole.diagonal(dim1=1, dim2=2).sum() / (n * (n - 1))
    if not scale > 0:
        return None, accuracies
    return _estimate(_moves(circle, base, item) / scale, draws, seed), accuracies


Change = Any
"""`change(activations at the items [batch d], float64) -> the same shape`."""


def _at_items(position: Int[Tensor, " batch"] | None, change: Change) -> Edit:
    assert position is not None

    def edit(activation: Float[Tensor, "batch pos d"], hook: Site) -> Float[Tensor, "batch pos d"]:
        rows, at = torch.arange(len(activation), device=activation.device), position.to(activation.device)
        changed = activation.clone()
        changed[rows, at] = change(activation[rows, at].double().cpu()).to(activation)
        return changed

    return edit


def _share_set(logits: Float[Tensor, "set batch item"], item: Int[Tensor, " batch"]) -> float:
    """Share of edits to another item after which that item's successor is the answer."""
    n = len(logits)
    right = [_share_right(logits[j][item != j], torch.full((int((item != j).sum()),), (j + 1) % n)) for j in range(n)]
    return sum(right) / n


def _moves(
    edited: Float[Tensor, "set batch item"], base: Float[Tensor, "batch item"], item: Int[Tensor, " batch"]
) -> Float[Tensor, "item set judged"]:
    """From item i, set to k, judged as j: rise of the logit of j's successor over that of i's, mean over templates."""
    n = len(edited)
    following = _next(torch.arange(n), n)
    rise = (edited - base)[..., following]  # set batch judged
    own = rise.gather(2, item[None, :, None].expand(n, -1, 1))
    by_item = torch.nn.functional.one_hot(item, n).double()
    return torch.einsum("kbj,bi->ikj", rise - own, by_item / by_item.sum(0))


def _estimate(way: Float[Tensor, "item set judged"], draws: int, seed: int) -> Estimate:
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
