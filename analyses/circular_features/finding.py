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
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.analyses.circular_features.asked import Asked, Task, asked_of
from mechinterp_toolkit.analyses.circular_features.edits import (
    KEPT_DRAWS,
    PlaneEdits,
    class_logits,
    edit_plane,
    regression_gains,
    share_right,
    sum_features,
)
from mechinterp_toolkit.analyses.circular_features.result import CircularFeatures, ClassCircle
from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.geometry.circle import CircleFit, fit_circle, harmonics, transfer
from mechinterp_toolkit.geometry.orders import Order
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import (
    ORDINAL_CLASSES,
    OrdinalClass,
    has_ordinal_tokens,
    ordinal_classes,
)
from mechinterp_toolkit.prompts.concepts import reads_text
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, along

ALL_ORDERS: tuple[Order, ...] = ("natural", "harmonics", "discrete_log")
CYCLIC = ("days", "months")


def _needs_cyclic_tokens(model: HookedModel) -> str | None:
    """Return why days and months cannot be put to this model, or None."""
    return reads_text(model) or has_ordinal_tokens(
        model.require_tokenizer(), CYCLIC, d_vocab=model.cfg.d_vocab
    )


def _planted_circles(strength: float, seed: int) -> Planted:
    """Return a model that computes successors, days and months around circles at `strength`."""
    from mechinterp_toolkit.toys import planted_circle

    hf_model, tokenizer, _ = planted_circle(strength, seed)
    return Planted(load_model(hf_model, tokenizer=tokenizer), CYCLIC, {})


def _random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def _scrambled_model(seed: int) -> HookedModel:
    """Return the ordinal toy with the tokens of each class permuted: it learned another order."""
    from mechinterp_toolkit.toys import relabelled_ordinal

    return relabelled_ordinal("toy/ordinal", seed)


@analysis(
    question="Are days and months kept around a circle, and is the circle used?",
    paper="Engels et al. 2025, arXiv:2405.14860",
    applies=_needs_cyclic_tokens,
    planted=_planted_circles,
    twins={"random weights": _random_model, "scrambled": _scrambled_model},
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
    """Fit circles to class means layer by layer, and set each best circle to other items' points.

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

    >>> finding = circular_features("toy/ordinal", classes=("days",), templates=2, draws=99)
    >>> finding.represented.outcome, finding.locations
    ('found', ('days',))
    """
    known = ordinal_classes(model.require_tokenizer(), classes)
    cyclic = {name: c for name, c in known.classes.items() if c.cyclic and _is_whole(c)}
    if not cyclic:
        raise TokenisationError(
            f"none of {', '.join(known.classes)} is cyclic and whole; circles need classes such as"
            f" {', '.join(CYCLIC)}."
        )
    names = _stream(model)
    asked = {name: asked_of(model, c, task, templates, seed) for name, c in cyclic.items()}
    options = {"orders": orders, "draws": draws, "seed": seed}
    fits = {name: _fits(model, prompts, names, **options) for name, prompts in asked.items()}
    circles = [
        _circle(model, c, asked[name], fits[name], len(cyclic), draws, seed)
        for name, c in cyclic.items()
    ]
    if task == "b from a":
        circles = [
            replace(circle, regression=_regression(model, asked[circle.name], seed))
            for circle in circles
        ]
    r2, closure = (
        {name: [getattr(fit.circle, kind) for fit in row.values()] for name, row in fits.items()}
        for kind in ("r2", "closure")
    )
    return CircularFeatures(
        circles=tuple(sorted(circles, key=lambda circle: circle.p)),
        order=_by_class(r2, names),
        closure=_by_class(closure, names),
        explained=_explained(model, asked, seed),
        notes=tuple(known.caveats),
        task=task,
        draws=draws,
        prompts_hash=next(iter(asked.values())).prompts.hash,
    )


def _is_whole(ordinal: OrdinalClass) -> bool:
    """Whether no item was dropped: a circle with a gap has other angles."""
    return ordinal.index.tolist() == list(range(len(ORDINAL_CLASSES[ordinal.name].words)))


def _stream(model: HookedModel) -> tuple[str, ...]:
    """The residual stream in front of each block: behind the last one, nothing at the item can
    reach the answer."""
    return tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))


class _Fit(NamedTuple):
    circle: CircleFit
    acts: Float[Tensor, "batch d"]


def _fits(
    model: HookedModel, asked: Asked, names: tuple[str, ...], **options: Any
) -> dict[str, _Fit]:
    """One fit per hook point, all against the same permutations of the items."""
    prompts, n = asked.prompts, len(asked.tokens)
    read = activations(
        model, prompts.tokens, names, mask=prompts.mask, position=prompts.item_position
    )
    return {
        name: _Fit(fit_circle(read[name], asked.item, n, unit=asked.unit, **options), read[name])
        for name in names
    }


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


def _p_of(fits: Sequence[_Fit], n_classes: int) -> float:
    """p-value of the best hook point, corrected for all of them and for classes (Bonferroni)."""
    r2 = along([fit.circle.r2 for fit in fits], "hook point")
    return min(1.0, n_classes * float(r2.p(exact=fits[0].circle.exact).min()))


def _regression(model: HookedModel, asked: Asked, seed: int) -> Estimate:
    """What features of a and b explain at the position that answers, behind each block."""
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))
    features = sum_features(asked.item, asked.step, len(asked.tokens))
    return regression_gains(_at_answer(model, asked, names), features, seed=seed)


def _at_answer(model: HookedModel, asked: Asked, names: tuple[str, ...]) -> dict[str, Tensor]:
    prompts = asked.prompts
    return activations(model, prompts.tokens, names, mask=prompts.mask, position=prompts.position)


def _by_class(rows: Mapping[str, Sequence[Estimate]], names: Sequence[str]) -> Estimate:
    """Estimates of all classes and hook points as one, [class, hook point, ...]."""
    every = [estimate for row in rows.values() for estimate in row]
    kept = min([KEPT_DRAWS, *(estimate.draws for estimate in every)])
    by_class = [
        along([_thinned(estimate, kept) for estimate in row], "hook point", names)
        for row in rows.values()
    ]
    return along(by_class, "class", tuple(rows))


def _thinned(estimate: Estimate, kept: int) -> Estimate:
    """The estimate with draws at even distances: the first ones of an enumeration leave most items
    where they are."""
    if estimate.control is None:
        return estimate
    drawn = estimate.control[torch.linspace(0, estimate.draws - 1, kept).round().long()]
    return replace(estimate, control=drawn, control_name="items permuted")


def _explained(model: HookedModel, asked: Mapping[str, Asked], seed: int) -> Estimate:
    """Harmonics of the item at the position that answers, in front of each block and behind the
    last."""
    names = (*_stream(model), f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    rows = {}
    for name, prompts in asked.items():
        read, n = _at_answer(model, prompts, names), len(prompts.tokens)
        rows[name] = [
            harmonics(read[at], prompts.item, n, unit=prompts.unit, seed=seed) for at in names
        ]
    return _by_class(rows, names)
