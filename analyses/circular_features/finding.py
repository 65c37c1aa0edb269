"""Are days and months kept around a circle, in their order, and is the circle what the model
computes with?

At the item of prompts that ask for what comes next, class means of the residual stream are fitted
layer by layer. *Represented, order*: the angle of an item is predicted from the other items better
than when whole items are permuted, the search over layers, classes and candidate orders repeated.
*Represented, ring*: the order also closes (`fit_circle`). *Used*: at the best layer, the plane of
an item is set to the point of another one; the answer moves to the other item's successor more than
under maps from items to points that are permuted as a whole. The task "b from a" asks for "b days
from a" instead of the next day: b takes the place of the template, and explanation via regression
says block by block what the last token holds of a and b.

What would fool it: prompts are no units, items are, and seven items carry little evidence; an order
without closure is any smooth curve; items that stand in the same places in prompts the circle was
not fitted to are no evidence of a circle, since the token they share is enough (random weights: a
mean cosine of .92 for days and .94 for months, beside .42 and .39 of permuted items); a circle at
the embedding need not be what an answer is computed from (base-10 adders have circles too), which
only the edit shows; an edit that moves the answers does not show that they need the circle, which
only its removal does; and an edit that replaces most of the stream would move the answer whatever
the plane held, so the plane is set to wrong points as a control and the whole stream and two
principal components stand beside it as ratios.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860; both verdicts on
representation and the null of the edit are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.analyses.circular_features.edits import (
    EDITS,
    KEPT_DRAWS,
    Asked,
    PlaneEdits,
    class_logits,
    edit_plane,
    regression_gains,
    share_right,
    sum_features,
)
from mechinterp_toolkit.errors import NotApplicable, TokenisationError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry.circle import CircleFit, fit_circle, harmonics, power, transfer
from mechinterp_toolkit.geometry.closure import closure_text
from mechinterp_toolkit.geometry.orders import Order
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
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.stats import p_value, why_undecided

ALL_ORDERS: tuple[Order, ...] = ("natural", "harmonics", "discrete_log")
CYCLIC = ("days", "months")

LEFT = 0.9
"""Share of the right answers that removing the circle leaves, from which on they are said not to
need it."""

Task = Literal["next", "b from a"]
"""What is asked: the next item, or the item b steps from a given one."""


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
    """Lower end of the 95 % interval of closure; at -5 there is none to speak of, see `closure_of`.
    """

    closure_high: float
    """Upper end."""

    linear: float
    """Held-out R2 of the item's index on a line, at most 1."""

    transfer: Estimate
    """Mean cosine of the angles' error in a template the circle was not fitted to, in [-1, 1], 1
    being no error; control: items permuted. A token that all templates share is enough for it: no
    evidence of a circle."""

    points: Float[Tensor, "item 2"]
    """The items in the plane, in units of the activations."""

    moved: Estimate | None
    """Set the circle: rise of the new answer's logit over the old one's, in shares of what the
    whole stream does."""

    edits: Float[Tensor, " edit"]
    """Accuracy under each of `edits.EDITS`: of the new answer where something is set, of the old
    one where not. Empty where nothing was edited. `dict(zip(EDITS, one.edits.tolist()))` reads them
    by name."""

    accuracies: Float[Tensor, " template"] | None = None
    """The same as `accuracy` by template; in the task "b from a" by b, from 1."""

    regression: Estimate | None = None
    """Held-out R2 that features of a and b gain at the last token, [feature group, hook point], in
    [0, 1]; of the task "b from a" alone; control: prompts permuted."""

    arrangements: int | None = None
    """Permutations of the items there are, those that always score alike counted once; None in
    results of older versions."""

    @property
    def is_ring(self) -> bool | None:
        """Whether the order closes: True and False where the interval of closure says so, else
        None."""
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
    """Held-out R2 of the angle, [class, hook point], at most 1; control: items permuted, best
    candidate order."""

    closure: Estimate
    """Closure of the natural order, [class, hook point]; 1 for a regular ring, -5 where there is
    none to speak of."""

    explained: Estimate
    """Share of the variance between items at the position that answers, [class, hook point,
    harmonic], in [0, 1]: what the answer's position says of the item, block by block, as circles of
    the first three harmonics; control: items permuted."""

    notes: tuple[str, ...]
    """Items dropped, classes left out."""

    task: str = "next"
    """What was asked."""

    draws: int | None = None
    """Permutations behind the p-values, or all there are where these are fewer; None in results of
    older versions."""

    @property
    def found(self) -> tuple[ClassCircle, ...]:
        """Classes whose order is represented."""
        return tuple(one for one in self.circles if one.p <= 0.05)

    @property
    def represented(self) -> Verdict:
        best = self.circles[0]
        chance = power(len(best.items), 0.3, searched=True)
        at = f"{best.name} at {best.hook_point}"
        short = self._too_few_draws()
        if not self.found and short:
            return Verdict("undecided", short, p=best.p)
        if not self.found:
            return Verdict(
                "not_found",
                f"{at}: the order is no better held than permuted ones.",
                p=best.p,
                power=chance,
            )
        words = {
            True: "a ring",
            False: "in order, but open",
            None: "in order; whether it closes is undecided",
        }
        said = "; ".join(
            f"{one.name} are {words[one.is_ring]} ({one.hook_point})" for one in self.found
        )
        return Verdict("found", f"{said}.", p=best.p, power=chance)

    @property
    def ring(self) -> Verdict:
        """Whether a represented order also closes."""
        rings = [one.is_ring for one in self.found]
        if self.represented.outcome == "undecided":
            return Verdict("undecided", "Whether there is an order that could close is undecided.")
        if not rings:
            return Verdict("not_applicable", "No order was found, so there is none to close.")
        closed = [one.name for one, ring in zip(self.found, rings, strict=True) if ring]
        if closed:
            return Verdict("found", f"{', '.join(closed)} close to a ring.")
        if None in rings:
            return Verdict(
                "undecided", "Ordered, not shown closed: the interval of closure reaches one half."
            )
        return Verdict("not_found", "Ordered, and open: closure lies below one half.")

    @property
    def used(self) -> Verdict:
        tested = [one for one in self.found if one.moved is not None and one.p_used is not None]
        if not tested:
            return Verdict(
                "not_applicable",
                "No order was found, or the model cannot be asked, so nothing was edited.",
            )
        p = min(1.0, min(one.p_used or 1.0 for one in tested) * len(tested))
        said = "; ".join(
            f"setting the circle of {one.name} does {one.moved.text()} of the whole stream"
            for one in tested
            if one.moved is not None
        )
        if p <= 0.05:
            return Verdict("found", f"{said}, more than permuted points.", p=p)
        return Verdict("not_found", f"{said}, no more than permuted points.", p=p)

    @property
    def effect(self) -> Estimate | None:
        return self.circles[0].moved or self._best_order()

    @property
    def estimates(self) -> dict[str, Estimate]:
        moved = {f"moved {one.name}": one.moved for one in self.circles if one.moved is not None}
        gained = {
            f"regression {one.name}": one.regression
            for one in self.circles
            if one.regression is not None
        }
        return (
            super().estimates
            | moved
            | gained
            | {f"transfer {one.name}": one.transfer for one in self.circles}
        )

    @property
    def locations(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.found)

    def answer(self) -> str:
        r2, best = self._best_order(), self.circles[0]
        text = (
            f"The angle of {best.name} is predicted from the other {len(best.items) - 1} with R2 ="
            f" {r2.text()} at {best.hook_point} ({best.order} order; {r2.control_text()}),"
            f" {closure_text(best.closure_low, best.closure_high)}. In a template left out of the"
            f" fit, the mean cosine of the angles' error is {best.transfer.text()}, 1 being no"
            f" error ({best.transfer.control_text()}): how far items stand in the same places in"
            " other prompts, for which the token they share is enough, circle or none."
        )
        if self.task == "b from a":
            text = " ".join([text, *(_regression_text(one) for one in self.circles)])
        first = "" if self.task == "next" else f"{self._accuracy_text()} "
        if self.represented.outcome == "undecided":
            return f"{first}{self.represented.reason} {text}"
        if not self.found:
            chance = power(len(best.items), 0.3, searched=True)
            known = (
                ""
                if chance is None
                else f" A circle of share .3 would be found in {chance:.2f} of cases."
            )
            return f"{first}No class is held in its order. {text}{known}"
        return f"{first}{self.represented.reason} {text}"

    def causal_check(self) -> str:
        said = self._accuracy_text()
        for one in self.found:
            if one.moved is not None:
                acc = _by_edit(one)
                said += (
                    f" At {one.hook_point}, setting the plane of {one.name} to another item's point"
                    f" moves the answer {one.moved.text()} of what the whole stream does"
                    f" ({one.moved.control_text()}). The new answer is then right in"
                    f" {acc['set the circle']:.2f}, with two principal components"
                    f" {acc['set two components']:.2f}, with the whole stream"
                    f" {acc['set the whole stream']:.2f}; the circle alone leaves"
                    f" {acc['keep only the circle']:.2f} of the old answers, its removal"
                    f" {acc['remove the circle']:.2f}."
                )
        return said

    def _accuracy_text(self) -> str:
        asked = {one.name: f"{one.accuracy:.2f} of {one.name}" for one in self.circles}
        if self.task == "next":
            return (
                "Of prompts that ask for what comes next the model answers"
                f" {', '.join(asked.values())} right within the class."
            )
        for one in self.circles:
            by_b = [] if one.accuracies is None else one.accuracies.tolist()
            asked[one.name] += (
                f" (chance {1 / len(one.items):.2f}; for b = 1, 2, ...:"
                f" {' '.join(f'{x:.2f}' for x in by_b)})"
            )
        return (
            f"Of prompts that ask for b from a the model answers {', '.join(asked.values())} right"
            " within the class."
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        few = [one.name for one in self.found if len(one.items) < 9 and one.is_ring is None]
        power_note = (
            (f"{', '.join(few)}: with so few items, closure is often undecided.",) if few else ()
        )
        lines = tuple(
            f"{one.name}: a line explains {one.linear:.2f} of the index as well."
            for one in self.found
            if one.linear > 0.5
        )
        lost = tuple(
            f"{one.name}: answers are hardly better than chance, so an edit has few right ones to"
            " move."
            for one in self.circles
            if one.accuracy < 2 / len(one.items)
        )
        return (*power_note, *lines, *self._not_needed(), *lost, *self.notes)

    def _not_needed(self) -> tuple[str, ...]:
        """Of circles that move the answers when they are set, those whose removal leaves the
        answers."""
        said = []
        for one in self.found:
            if one.p_used is None or one.p_used > 0.05:
                continue
            acc = _by_edit(one)
            if acc["remove the circle"] >= LEFT * one.accuracy:
                said.append(
                    f"{one.name}: the circle moves the answers when it is set, but they do not need"
                    f" it: with it removed {acc['remove the circle']:.2f} of the old answers are"
                    " right, and set to another item's point it makes the new answer right in"
                    f" {acc['set the circle']:.2f} (chance {1 / len(one.items):.2f})."
                )
        return tuple(said)

    def _too_few_draws(self) -> str | None:
        """Why some class could not have passed its share of the level, with the draws it takes;
        None where all could."""
        level = 0.05 / len(self.circles)
        for one in self.circles:
            if self.draws is None or one.arrangements is None:
                continue
            short = why_undecided(self.draws, one.arrangements, alpha=level)
            if short:
                shared = (
                    ""
                    if len(self.circles) == 1
                    else f"{len(self.circles)} classes share the level of 0.05, and "
                )
                return f"{one.name}: {shared}{short}"
        return None

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown: dict[str, Any] = {
            "Order by layer": plots.heat_map(self.order, title="Held-out R2 of the angle")
        }
        for one in self.circles:
            shown[f"{one.name} at {one.hook_point}"] = plots.plane(
                one.points,
                one.items,
                title=f"Means of {one.name}",
                order=(*one.items, one.items[0]),
            )
            if one.moved is not None:
                shown[f"Setting the circle of {one.name}"] = plots.strip(
                    one.moved, title="Share of the whole stream's effect"
                )
            if one.regression is not None:
                shown[f"What the last token holds of {one.name}"] = plots.curve(
                    one.regression, title=f"What features of {one.name} add, group by group"
                )
        shown["Order and its null"] = plots.strip(
            self._best_order(), title="Held-out R2 over permuted items"
        )
        return shown

    def _best_order(self) -> Estimate:
        names, points = self.order.labels["class"], self.order.labels["hook point"]
        best = self.circles[0]
        order = self.order.at(names.index(best.name), points.index(best.hook_point), largest=True)
        return replace(order, n=len(best.items))


def _by_edit(one: ClassCircle) -> dict[str, float]:
    return dict(zip(EDITS, one.edits.tolist(), strict=True))


def _regression_text(one: ClassCircle) -> str:
    """What each group of features gains behind the last block."""
    if one.regression is None:
        return ""
    groups, points = one.regression.labels["feature group"], one.regression.labels["hook point"]
    gained = [one.regression.at(i, len(points) - 1) for i in range(len(groups))]
    said = ", ".join(f"{name} {gain.text()}" for name, gain in zip(groups, gained, strict=True))
    most = max(
        float(gain.control.double().quantile(0.95)) for gain in gained if gain.control is not None
    )
    bound = f"with prompts permuted by {most:.2g} at most (95 %)"
    return f"At the last token's {points[-1]}, R2 of {one.name} grows by {said}; {bound}."


def needs_cyclic_tokens(model: HookedModel) -> str | None:
    """Return why days and months cannot be put to this model, or None."""
    if not model.is_transformer:
        return "it has no residual stream"
    if model.tokenizer is None:
        return "it comes without a tokenizer, so no words can be put to it"
    return has_ordinal_tokens(model.tokenizer, CYCLIC, d_vocab=model.cfg.d_vocab)


def planted_circles(strength: float, seed: int) -> Planted:
    """Return a model that computes successors, with days and months around circles at
    `strength`."""
    from mechinterp_toolkit.toys import planted_circle

    hf_model, tokenizer, _ = planted_circle(strength, seed)
    return Planted(load_model(hf_model, tokenizer=tokenizer), CYCLIC, {})


def random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def scrambled_model(seed: int) -> HookedModel:
    """Return the trained ordinal toy with the tokens of each class permuted: it learned another
    order."""
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
    task: Task = "next",
    classes: tuple[str, ...] = CYCLIC,
    orders: tuple[Order, ...] = ALL_ORDERS,
    templates: int = 7,
    draws: int = 9999,
    seed: int = 0,
) -> CircularFeatures:
    """Fit circles to class means layer by layer, and set the best circle of each class to other
    items' points.

    Args:
        model: a transformer with a tokenizer that knows the words.
        task: "next" asks for the item after the one shown, "b from a" for "Two days from Monday":
            every a and b.
        classes: cyclic classes of `prompts.ORDINAL_CLASSES`.
        orders: candidate orders of `fit_circle`; the null searches the same ones.
        templates: contexts in which every item is asked; in the task "b from a" these are the b, as
            many as items.
        draws: permutations of the items behind the null, and of the points behind the null of the
            edit.
        seed: of everything drawn.

    Raises:
        TokenisationError: no class is usable with this tokenizer.
        NotApplicable: the tokenizer cannot read the sentences of the task, or answer them in one
            token.
    """
    found = ordinal_classes(model.require_tokenizer(), classes)
    cyclic = {name: c for name, c in found.classes.items() if c.cyclic and _is_whole(c)}
    if not cyclic:
        raise TokenisationError(
            f"none of {', '.join(found.classes)} is cyclic and whole; circles need classes such as"
            f" {', '.join(CYCLIC)}."
        )
    names = _stream(model)
    asked = {name: _asked(model, c, task, templates, seed) for name, c in cyclic.items()}
    fits = {name: _fits(model, one, names, orders, draws, seed) for name, one in asked.items()}
    circles = [
        _circle(
            model,
            c,
            asked[name],
            dict(zip(names, fits[name], strict=True)),
            len(cyclic),
            draws,
            seed,
        )
        for name, c in cyclic.items()
    ]
    if task == "b from a":
        circles = [
            replace(one, regression=_regression(model, asked[one.name], seed)) for one in circles
        ]
    return CircularFeatures(
        circles=tuple(sorted(circles, key=lambda one: one.p)),
        order=_by_class(
            {name: [fit.circle.r2 for fit in row] for name, row in fits.items()}, names
        ),
        closure=_by_class(
            {name: [fit.circle.closure for fit in row] for name, row in fits.items()}, names
        ),
        explained=_explained(model, asked, seed),
        notes=tuple(found.caveats),
        task=task,
        draws=draws,
        prompts_hash=next(iter(asked.values())).prompts.hash,
    )


TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "days": (
        "If today is {}, then tomorrow is",
        "The day after {} is",
        "Yesterday was {}, so today is",
        "After {} comes",
        "We leave on {} and arrive one day later, on",
        "The shop closes on {} and opens the next day, on",
        "One day after {} it is",
    ),
    "months": (
        "If this month is {}, then next month is",
        "The month after {} is",
        "Last month was {}, so this month is",
        "After {} comes",
        "The course starts in {} and ends one month later, in",
        "What we order in {} arrives the next month, in",
        "One month after {} it is",
    ),
}
"""What is asked of a model that reads English; the blank is the item, behind a space."""

SUMS: Mapping[str, tuple[str, str]] = {
    "days": ("Let's do some days of the week math. {} from {} is", "day"),
    "months": ("Let's do some calendar math. {} from {} is", "month"),
}
"""The published sentences of "b from a", and what b counts. The answer is read as the token behind
a space; published code took the token without one, which several tokenizers keep apart."""


def _is_whole(ordinal: OrdinalClass) -> bool:
    """Whether no item was dropped: a circle with a gap has other angles."""
    return ordinal.index.tolist() == list(range(len(ORDINAL_CLASSES[ordinal.name].words)))


class _Fit(NamedTuple):
    circle: CircleFit
    acts: Float[Tensor, "batch d"]


def _stream(model: HookedModel) -> tuple[str, ...]:
    """The residual stream in front of each block: behind the last one, nothing at the item can
    reach the answer."""
    return tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))


def _asked(
    model: HookedModel, ordinal: OrdinalClass, task: Task, templates: int, seed: int
) -> Asked:
    """Every item in every template; contexts of noise words for the toy, sentences for models that
    read English."""
    from mechinterp_toolkit.toys import asks_by_query, successor_queries

    tokenizer, n = model.require_tokenizer(), len(ordinal)
    if task == "b from a":
        try:
            prompts = _prompts(model, ordinal, _sums(ordinal), range(1, n + 1))
        except TokenisationError as error:
            raise NotApplicable(
                f"circular_features cannot ask {model.provenance.checkpoint} for b from a: {error}"
            ) from error
        unit = torch.arange(n).repeat_interleave(n)
        return Asked(prompts, ordinal.tokens, unit, unit + 1)
    if asks_by_query(tokenizer):
        parts = [
            successor_queries(tokenizer, {ordinal.name: ordinal}, seed=1000 * seed + t)
            for t in range(templates)
        ]
        prompts = PromptSet.joined(parts)
    else:
        sentences = TEMPLATES.get(ordinal.name, ("After {} comes", "What follows {} is"))[
            :templates
        ]
        prompts = _prompts(model, ordinal, sentences, [1] * len(sentences))
    unit = torch.arange(len(prompts) // n).repeat_interleave(n)
    return Asked(prompts, ordinal.tokens, unit, torch.ones_like(unit))


def _sums(ordinal: OrdinalClass) -> list[str]:
    """The sentences of "b from a", b = 1 first."""
    if ordinal.name not in SUMS:
        raise NotApplicable(
            f"no sentence asks for b from a of {ordinal.name}; name classes of {', '.join(SUMS)}."
        )
    sentence, noun = SUMS[ordinal.name]
    numbers = ORDINAL_CLASSES["number_words"].words[: len(ordinal)]
    spans = [f"{word.capitalize()} {noun}{'s' * (b > 0)}" for b, word in enumerate(numbers)]
    return [sentence.format(span, "{}") for span in spans]


def _prompts(
    model: HookedModel, ordinal: OrdinalClass, sentences: Sequence[str], steps: Sequence[int]
) -> PromptSet:
    """Every item in every sentence; the answer lies the sentence's number of steps behind it."""
    n, words = len(ordinal), ordinal.words
    return build_prompts(
        model.require_tokenizer(),
        [sentence.format(word) for sentence in sentences for word in words],
        [f" {words[(place + step) % n]}" for step in steps for place in range(n)],
        prepend_bos=bool(model.provenance.prepend_bos),
        items=list(range(n)) * len(sentences),
        classes=[ordinal.name] * (n * len(sentences)),
        item_words=list(words) * len(sentences),
    )


def _fits(
    model: HookedModel,
    asked: Asked,
    names: Sequence[str],
    orders: Sequence[Order],
    draws: int,
    seed: int,
) -> list[_Fit]:
    """One fit per hook point, all against the same permutations of the items."""
    prompts, n = asked.prompts, len(asked.tokens)
    found = activations(
        model, prompts.tokens, tuple(names), mask=prompts.mask, position=prompts.item_position
    )
    options: dict[str, Any] = {"unit": asked.unit, "orders": orders, "draws": draws, "seed": seed}
    return [
        _Fit(fit_circle(found[name], asked.item, n, **options), found[name].double())
        for name in names
    ]


def _by_class(rows: Mapping[str, Sequence[Estimate]], names: Sequence[str]) -> Estimate:
    """Estimates of all classes and hook points as one, [class, hook point, ...]."""
    drawn = [len(one.control) for row in rows.values() for one in row if one.control is not None]
    kept = min([KEPT_DRAWS, *drawn])
    return along(
        [along([_thinned(one, kept) for one in row], "hook point", names) for row in rows.values()],
        "class",
        tuple(rows),
    )


def _thinned(estimate: Estimate, kept: int) -> Estimate:
    """The estimate with draws at even distances: the first ones of an enumeration leave most items
    where they are."""
    if estimate.control is None:
        return estimate
    drawn = estimate.control[torch.linspace(0, len(estimate.control) - 1, kept).round().long()]
    return replace(estimate, control=drawn, control_name="items permuted")


def _at_answer(model: HookedModel, asked: Asked, names: tuple[str, ...]) -> dict[str, Tensor]:
    prompts = asked.prompts
    return activations(model, prompts.tokens, names, mask=prompts.mask, position=prompts.position)


def _explained(model: HookedModel, asked: Mapping[str, Asked], seed: int) -> Estimate:
    """Harmonics of the item at the position that answers, in front of each block and behind the
    last."""
    names = (*_stream(model), f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    rows = {}
    for name, one in asked.items():
        read = _at_answer(model, one, names)
        rows[name] = [
            harmonics(read[at], one.item, len(one.tokens), unit=one.unit, seed=seed) for at in names
        ]
    return _by_class(rows, names)


def _regression(model: HookedModel, asked: Asked, seed: int) -> Estimate:
    """What features of a and b explain at the position that answers, behind each block."""
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))
    features = sum_features(asked.item, asked.step, len(asked.tokens))
    return regression_gains(_at_answer(model, asked, names), features, seed=seed)


def _p_of(fits: Sequence[_Fit], n_classes: int) -> float:
    """p-value of the best hook point, corrected for all hook points (largest of each draw) and
    classes (Bonferroni)."""
    value = torch.stack([fit.circle.r2.value for fit in fits]).amax()
    null = torch.stack(
        [fit.circle.r2.control for fit in fits if fit.circle.r2.control is not None]
    ).amax(0)
    return min(1.0, n_classes * float(p_value(value, null, exact=fits[0].circle.exact)))


def _circle(
    model: HookedModel,
    ordinal: OrdinalClass,
    asked: Asked,
    fits: Mapping[str, _Fit],
    n_classes: int,
    draws: int,
    seed: int,
) -> ClassCircle:
    best = max(fits, key=lambda name: float(fits[name].circle.r2.value))
    circle, acts = fits[best]
    p = _p_of(list(fits.values()), n_classes)
    base, units = class_logits(model, asked), range(int(asked.unit.max()) + 1)
    right = [share_right(base[asked.unit == t], asked.answer[asked.unit == t]) for t in units]
    edits = PlaneEdits(None, torch.zeros(0, dtype=torch.float64))
    if p <= 0.05:
        edits = edit_plane(model, asked, best, acts, circle.plane, draws=draws, seed=seed)
    return ClassCircle(
        name=ordinal.name,
        items=ordinal.words,
        accuracy=share_right(base, asked.answer),
        hook_point=best,
        p=p,
        order=circle.order,
        closure_low=float(circle.closure.low),
        closure_high=float(circle.closure.high),
        linear=circle.linear,
        transfer=transfer(acts, asked.item, len(ordinal), asked.unit, seed=seed),
        points=circle.points,
        moved=edits.moved,
        edits=edits.accuracy,
        accuracies=torch.tensor(right, dtype=torch.float64),
        arrangements=circle.arrangements,
    )
