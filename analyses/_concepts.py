"""What findings about a concept share: how well each layer tells its classes apart, and how an
edit's effect is judged.

Source: this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry.classes import Reader, read_classes, unit_means
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import Planted
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.stats import p_value, why_undecided


@dataclass(frozen=True)
class ConceptFinding(Finding):
    """A finding that rests on reading the classes of left-out units in front of each block."""

    concept: str
    """What was asked for."""

    accuracy: Estimate
    """Balanced accuracy on units left out, [hook point], in [0, 1]; control: labels shuffled over
    whole units."""

    notes: tuple[str, ...]
    """Words and classes left out."""

    @property
    def subject(self) -> str:
        """The concept as a sentence begins with it; capitals in it, of a path perhaps, are kept."""
        return self.concept[:1].upper() + self.concept[1:]

    @property
    def p(self) -> float:
        """p-value of the best hook point's accuracy, corrected for all of them."""
        return p_of_largest(self.accuracy)

    @property
    def short(self) -> str | None:
        """Why no accuracy could pass, with the draws it takes; None where one could.

        Relabellings are no shortage: analyses ask for words enough that hundreds exist.
        """
        assert self.accuracy.control is not None
        return why_undecided(len(self.accuracy.control))

    @property
    def hook_point(self) -> str:
        """Where the classes are told apart best."""
        return self.accuracy.label("hook point", int(self.accuracy.value.argmax()))

    @property
    def best_accuracy(self) -> Estimate:
        """The accuracy there; its control is the largest over hook points."""
        return self.accuracy.at(int(self.accuracy.value.argmax()), largest=True)

    @property
    def represented(self) -> Verdict:
        said = (
            f"{self.subject} is read off with accuracy {self.best_accuracy.text()} at"
            f" {self.hook_point}"
        )
        if self.short:
            return Verdict("undecided", f"{said}; {self.short}", p=self.p)
        if self.p <= 0.05:
            return Verdict("found", f"{said}, beyond shuffled labels.", p=self.p)
        return Verdict("not_found", f"{said}, no better than with shuffled labels.", p=self.p)

    @property
    def locations(self) -> tuple[str, ...]:
        """Hook points at which the accuracy lies beyond the largest of shuffled labels, best
        first."""
        if self.short:
            return ()
        null = _largest(self.accuracy)
        order = self.accuracy.value.argsort(descending=True, stable=True).tolist()
        passed = [i for i in order if float(p_value(self.accuracy.value[i], null)) <= 0.05]
        return tuple(self.accuracy.label("hook point", i) for i in passed)

    def _not_edited(self, absent: str, so: str) -> Verdict:
        """The verdict where nothing was edited, because the concept is `absent` or that was not
        decided."""
        if self.short:
            return Verdict(
                "undecided", f"It is not decided whether {self.concept} is represented, {so}."
            )
        return Verdict("not_applicable", f"{absent}, {so}.")


def read_layers(
    read: dict[str, Tensor],
    unit: Tensor,
    label: Tensor,
    *,
    reader: Reader,
    unit_name: str,
    draws: int,
    seed: int,
) -> Estimate:
    """Return `ConceptFinding.accuracy`: hook point by hook point, all against the same shuffles of
    the labels.

    Args:
        read: activations of the labelled tokens by hook point.
        unit, label: which word or text each of them belongs to, and its class.
        unit_name: what a unit is, in the plural ("words").
        reader, draws, seed: of `read_classes`.
    """
    rows = []
    for activation in read.values():
        means, own = unit_means(activation, unit, label)
        read_off = read_classes(
            means, own, reader=reader, unit_name=unit_name, draws=draws, seed=seed
        )
        rows.append(read_off.accuracy)
    return along(rows, "hook point", tuple(read))


def even_relabellings(sizes: tuple[int, int], *, directed: bool) -> int:
    """Return how many arrangements of two classes `stats.balanced_relabellings` draws from, and the
    observed one.

    Args:
        sizes: units of either class.
        directed: whether an edit made of them would differ if the two classes changed names.

    >>> even_relabellings((3, 3), directed=True)
    19
    """
    first, second = sizes
    even = (
        first * second / (first + second)
    )  # units of the first class that get the second one's label
    ways = sum(
        math.comb(first, k) * math.comb(second, k)
        for k in range(min(sizes) + 1)
        if abs(k - even) < 1
    )
    return (ways if directed or first != second else ways // 2) + 1


def about(estimate: Estimate, digit: float) -> str:
    """Return `Estimate.text()` in whole multiples of `digit`; "about 0" where nothing is left of
    it.

    >>> import torch
    >>> value, low, high = torch.tensor([3e-8, -2e-6, 2e-6])
    >>> about(Estimate(value, low, high, 9, "nats", "by hand"), 0.001)
    'about 0'
    """
    kept: dict[str, Any] = {
        name: _whole(getattr(estimate, name), digit) for name in ("value", "low", "high")
    }
    return replace(estimate, **kept).text() if any(map(bool, kept.values())) else "about 0"


def about_control(estimate: Estimate, digit: float) -> str:
    """Return `Estimate.control_text()` in whole multiples of `digit`; "about 0 (its name)" where
    nothing is left of it."""
    assert estimate.control is not None
    draws = estimate.control.double().flatten()
    mean, most = _whole(draws.mean(), digit), _whole(draws.quantile(0.95), digit)
    numbers = f"{mean:.3g}, 95 % below {most:.3g}" if mean or most else "about 0"
    return f"{numbers} ({estimate.control_name})"


def _whole(number: Tensor, digit: float) -> Tensor:
    return (number / digit).round() * digit + 0.0  # plus 0 makes 0 of -0


def p_of_largest(estimate: Estimate) -> float:
    """Return the p-value of the largest value against the largest of each draw."""
    return float(p_value(estimate.value.amax(), _largest(estimate)))


def _largest(estimate: Estimate) -> Tensor:
    assert estimate.control is not None
    return estimate.control.flatten(1).amax(1)


def planted_concepts(**options: bool) -> Callable[[float, int], Planted]:
    """Return `planted(strength, seed)` of an analysis of concepts: a model that answers by the
    sentiment of words.

    Args:
        options: of `toys.planted_concept`.
    """

    def planted(strength: float, seed: int) -> Planted:
        from mechinterp_toolkit.toys import concept_model

        model = concept_model(strength, seed, **options)
        return Planted(model, ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"), {})

    return planted


def concept_twins(**options: bool) -> dict[str, Callable[[int], HookedModel]]:
    """Return the null models: the same architecture at random, and the same model with classes
    drawn among the words."""

    def random_model(seed: int) -> HookedModel:
        from mechinterp_toolkit.toys import concept_model

        return concept_model(1.0, seed, **options).random_twin(seed)

    def relabelled_model(seed: int) -> HookedModel:
        from mechinterp_toolkit.toys import concept_model

        return concept_model(1.0, seed, relabelled=True, **options)

    return {"random weights": random_model, "scrambled": relabelled_model}
