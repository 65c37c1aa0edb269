"""Does a head follow states put together: from place and class, or with another residue?

*Predicted states*: an item's state is worked out from other items of its place and of its class,
and the head has to name its successor from that. *Residues*: n mod T is looked for in the states of
the numbers, and exchanged for another.

What would fool it: an item that is the only one of its place, of which no other item says anything;
it is not asked. What fools the split and the residues is said in `geometry.factoring` and
the modules `geometry.residue_*`.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230 (index and domain, mod-10 features);
nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.successor_heads.items import item_tokens, places, winners
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.factoring import factor
from mechinterp_toolkit.geometry.regression import left_out_errors, one_hot, span
from mechinterp_toolkit.geometry.residue_features import residue_features
from mechinterp_toolkit.geometry.residue_scan import residue_scan
from mechinterp_toolkit.geometry.residue_steering import ResidueSteering, steer_residues
from mechinterp_toolkit.heads.ov_circuit import OVReader
from mechinterp_toolkit.nulls import permuted_within
from mechinterp_toolkit.prompts import OrdinalClass
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

PERIODS = range(2, 25)
"""Periods T for which n mod T is looked for in the numbers."""

DIGITS = 10
"""The period that is exchanged where none stands out: that of the last digit."""


@dataclass(frozen=True)
class ItemStates:
    """Result of `study_states`; None is what could not be measured, or rests on no found head."""

    factoring: Estimate | None = None
    """Share of items recognised from place and class, as other items tell them, in [0, 1]; control:
    places permuted."""

    factor_shares: Float[Tensor, " factor"] | None = None
    """Share of the variance that place, class and both explain, in [0, 1]
    (`geometry.factoring.FACTORS`)."""

    factored_succession: Estimate | None = None
    """Share of items whose successor the head names, given what other items tell of the item, in
    [0, 1]."""

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


def study_states(
    reader: OVReader,
    classes: Mapping[str, OrdinalClass],
    best: tuple[int, int],
    *,
    follow: bool,
    draws: int = 99,
    seed: int = 0,
) -> ItemStates:
    """Look for place and class, and for residues of the numbers, in front of the head `best`.

    Args:
        reader: of the items of all classes, class after class.
        classes: the classes; residues are those of the class "numbers".
        best: `(layer, head)`.
        follow: whether to ask what the head makes of predicted states and exchanged residues as
            well.
        draws: of each control.
        seed: of controls and intervals.

    >>> from mechinterp_toolkit.heads.ov_circuit import Convention
    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> classes = ordinal_classes(model.tokenizer, ("days", "months")).classes
    >>> reader = OVReader(model, item_tokens(classes), Convention())
    >>> study = study_states(reader, classes, (1, 1), follow=True, draws=39)
    >>> study.factored_succession.text()  # the toy learned its facts by heart
    '0 [0, 0]'
    """
    layer, head = best
    states, tokens = reader.states(layer).detach(), item_tokens(classes)

    def read(given: Tensor) -> Tensor:
        return reader.logits(given, layer, tokens, head=head)[0]

    study = _split(states, classes, read if follow else None, draws, seed)
    if "numbers" not in classes:
        note = "Residues were not looked for: there is no class of numbers."
        return replace(study, notes=(*study.notes, note))
    own = places(classes)["numbers"]
    number = torch.tensor([int(word) for word in classes["numbers"].words])
    try:
        scan = residue_scan(states[own], number, PERIODS, draws=draws, seed=seed)
        study = replace(study, residues=scan.excess, residue_p=scan.p)
        if not follow:
            return study
        period = scan.found[0] if scan.found else DIGITS
        steered = exchange_residues(
            states[own], number, period, lambda given: read(given)[:, own], seed=seed
        )
    except ToolkitError as error:
        undone = "exchanged" if study.residues else "looked for"
        return replace(study, notes=(*study.notes, f"Residues were not {undone}: {error}"))
    return replace(
        study,
        steering_period=period,
        steering=steered.share,
        steering_permuted=steered.shuffled,
    )


def _split(
    states: Float[Tensor, "item d_model"],
    classes: Mapping[str, OrdinalClass],
    read: Callable[[Tensor], Tensor] | None,
    draws: int,
    seed: int,
) -> ItemStates:
    """Split states into place and class; `read`, where given, names successors from the parts."""
    try:
        split = factor(states, *place_and_class(classes), seed, draws=draws)
    except ToolkitError as error:
        return ItemStates(notes=(f"Items were not split into place and class: {error}",))
    after = None
    if read is not None:
        after = predicted_successors(states, classes, read, draws=draws, seed=seed)
    return ItemStates(factoring=split.held_out, factor_shares=split.r2, factored_succession=after)


def place_and_class(
    classes: Mapping[str, OrdinalClass],
) -> tuple[Int[Tensor, " item"], Int[Tensor, " item"]]:
    """Return place in its whole class, and number of its class, of every item, class after class.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> classes = ordinal_classes(build_tokenizer(), ("days", "months")).classes
    >>> place, number = place_and_class(classes)
    >>> place[6:9].tolist(), number[6:9].tolist()  # Sunday, January, February
    ([6, 0, 1], [0, 1, 1])
    """
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
    """Estimate how often a head names an item's successor from what other items say of the item.

    The state of item i of class d is mean + place i + class d, fitted to all items but this one.

    Args:
        states: of the items of all classes, class after class.
        classes: the classes.
        read: from states [state d_model] to logits of all items [state item].
        draws: fits to states permuted within each class.
        seed: of permutations and interval.

    Returns:
        Fraction of items in [0, 1]; None where fewer than two items have a successor and can be
        predicted.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> classes = ordinal_classes(build_tokenizer(), ("days", "months")).classes
    >>> place, number = place_and_class(classes)
    >>> states = torch.cat([one_hot(place, 12), one_hot(number, 2)], 1)
    >>> predicted_successors(states, classes, lambda given: given[:, (place - 1) % 12]).text()
    '0.929 [0.786, 1]'
    """
    index, domain = place_and_class(classes)
    ones = torch.ones(len(index), 1, dtype=torch.float64)
    design = torch.cat([ones, *(one_hot(part, int(part.max()) + 1) for part in (index, domain))], 1)
    axes = span(design)
    follows = _followers(classes)
    # An item with leverage 1 is the only one of its place: no other item says anything of it.
    asked = ((axes.square().sum(1) < 1 - 1e-8) & (follows >= 0)).nonzero()[:, 0]
    if len(asked) < 2:
        return None
    errors = left_out_errors(axes @ axes.T)[asked]
    rows, other = states.detach().cpu().double(), domain != domain[asked, None]

    def right(given: Float[Tensor, "table item d_model"]) -> Float[Tensor, "table asked"]:
        predicted = (given[:, asked] - errors @ given).to(states)
        logits = read(predicted.flatten(0, 1)).cpu().double().unflatten(0, (len(given), -1))
        named = winners(logits.masked_fill(other, -torch.inf).flatten(0, 1))
        return (named.reshape(len(given), -1) == follows[asked]).double()

    generator = torch.Generator().manual_seed(seed)
    tables = torch.stack([permuted_within(domain, generator) for _ in range(draws)])
    return bootstrap(
        right(rows[None])[0],
        unit_name="items",
        measured="fraction of items in [0, 1]",
        seed=seed,
        # A few tables at a time: cheaper than one by one, and still small.
        control=torch.cat([right(rows[some]).mean(1) for some in tables.split(8)]),
        control_name="states permuted within classes",
    )


def _followers(classes: Mapping[str, OrdinalClass]) -> Int[Tensor, " item"]:
    """Where each item's successor stands among the items of all classes; -1 where it has none."""
    follows = torch.full((len(item_tokens(classes)),), -1)
    for name, place in places(classes).items():
        first, second = (classes[name].pairs(1) + place.start).T
        follows[first] = second
    return follows


def exchange_residues(
    states: Float[Tensor, "item d_model"],
    number: Int[Tensor, " item"],
    period: int,
    read: Callable[[Tensor], Tensor],
    *,
    seed: int = 0,
) -> ResidueSteering:
    """Exchange features of n mod `period`, at their own size: what items have of them on average.

    Raises:
        ToolkitError: as `residue_features` and `steer_residues`.

    >>> number = torch.arange(60)
    >>> states = torch.cat([one_hot(number % 10, 10), 0.1 * one_hot(number // 10, 6)], 1)
    >>> def read(given):  # names the item after the one whose digits the state holds
    ...     return (given[:, number % 10] + 10 * given[:, 10 + number // 10]).roll(1, 1)
    >>> exchange_residues(states, number, 10, read).share.value.item()
    1.0
    """
    features = residue_features(states, number, period).features
    rows = states.detach().cpu().double()
    scale = float(((rows - rows.mean(0)) * features[number % period]).sum(1).mean())
    return steer_residues(states, number, features, scale, read, seed=seed)
