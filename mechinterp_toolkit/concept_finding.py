"""What findings about a concept share: how well each layer tells its classes apart, and how an edit's effect is judged.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mechinterp_toolkit.geometry.classes import Reader, read_classes, unit_means
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import Planted
from mechinterp_toolkit.results import Estimate, Finding, Verdict, along
from mechinterp_toolkit.stats import p_value


@dataclass(frozen=True)
class ConceptFinding(Finding):
    """A finding that rests on reading the classes of left-out units in front of each block."""

    concept: str
    """What was asked for."""

    accuracy: Estimate
    """Balanced accuracy on units left out, [hook point], in [0, 1]; control: labels shuffled over units."""

    notes: tuple[str, ...]
    """Words and classes left out."""

    @property
    def p(self) -> float:
        """p-value of the best hook point's accuracy, corrected for all of them."""
        return p_of_largest(self.accuracy)

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
        said = f"{self.concept.capitalize()} is read off with accuracy {self.best_accuracy.text()} at {self.hook_point}"
        if self.p <= 0.05:
            return Verdict("found", f"{said}, beyond shuffled labels.", p=self.p)
        return Verdict("not_found", f"{said}, no better than with shuffled labels.", p=self.p)

    @property
    def locations(self) -> tuple[str, ...]:
        """Hook points at which the accuracy lies beyond the largest of shuffled labels, best first."""
        null = _largest(self.accuracy)
        order = self.accuracy.value.argsort(descending=True, stable=True).tolist()
        passed = [i for i in order if float(p_value(self.accuracy.value[i], null)) <= 0.05]
        return tuple(self.accuracy.label("hook point", i) for i in passed)


def read_layers(
    read: dict[str, Tensor], unit: Tensor, label: Tensor, *, reader: Reader, draws: int, seed: int
) -> Estimate:
    """Return `ConceptFinding.accuracy`: hook point by hook point, all against the same shuffles of the labels."""
    rows = []
    for activation in read.values():
        means, own = unit_means(activation, unit, label)
        rows.append(read_classes(means, own, reader=reader, draws=draws, seed=seed).accuracy)
    return along(rows, "hook point", tuple(read))


def p_of_largest(estimate: Estimate) -> float:
    """Return the p-value of the largest value against the largest of each draw."""
    return float(p_value(estimate.value.amax(), _largest(estimate)))


def _largest(estimate: Estimate) -> Tensor:
    assert estimate.control is not None
    return estimate.control.flatten(1).amax(1)


def planted_concepts(**options: bool) -> Callable[[float, int], Planted]:
    """Return `planted(strength, seed)` of an analysis of concepts: a model that answers by the sentiment of words.

    Args:
        options: of `toys.planted_concept`.
    """

    def planted(strength: float, seed: int) -> Planted:
        from mechinterp_toolkit.toys import concept_model

        model = concept_model(strength, seed, **options)
        return Planted(model, ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"), {})

    return planted


def concept_twins(**options: bool) -> dict[str, Callable[[int], HookedModel]]:
    """Return the null models: the same architecture at random, and the same model with classes drawn among the words."""

    def random_model(seed: int) -> HookedModel:
        from mechinterp_toolkit.toys import concept_model

        return concept_model(1.0, seed, **options).random_twin(seed)

    def relabelled_model(seed: int) -> HookedModel:
        from mechinterp_toolkit.toys import concept_model

        return concept_model(1.0, seed, relabelled=True, **options)

    return {"random weights": random_model, "scrambled": relabelled_model}
