"""What findings about a concept share: how well each layer tells its classes apart.

Source: this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry.classes import read_classes, unit_means
from mechinterp_toolkit.hooks.steer_fit import shuffled_differences
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.nulls import why_undecided
from mechinterp_toolkit.prompts import Dropped
from mechinterp_toolkit.prompts.concepts import WordPrompts, word_prompts
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.toys.planted_concepts import concept_model


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
    def short(self) -> str | None:
        """Why no accuracy could pass, with the draws it takes; None where one could.

        Relabellings are no shortage: analyses ask for words enough that hundreds exist.
        """
        assert self.accuracy.control is not None
        return why_undecided(len(self.accuracy.control))

    @property
    def best(self) -> int:
        """Index of the hook point where the classes are told apart best."""
        return int(self.accuracy.value.argmax())

    @property
    def hook_point(self) -> str:
        """Its name."""
        return self.accuracy.label("hook point", self.best)

    @property
    def best_accuracy(self) -> Estimate:
        """The accuracy there; its control is the largest over hook points."""
        return self.accuracy.at(self.best, largest=True)

    @property
    def represented(self) -> Verdict:
        """Whether the best accuracy beats shuffled labels, corrected for all hook points."""
        p = float(self.accuracy.p().min())
        read_off = f"{self.subject} is read off with accuracy {self.best_accuracy.text()}"
        read_off = f"{read_off} at {self.hook_point}"
        if self.short:
            return Verdict("undecided", f"{read_off}; {self.short}", p=p)
        if p <= 0.05:
            return Verdict("found", f"{read_off}, beyond shuffled labels.", p=p)
        return Verdict("not_found", f"{read_off}, no better than with shuffled labels.", p=p)

    @property
    def locations(self) -> tuple[str, ...]:
        """Hook points where the accuracy beats shuffled labels, corrected for all, best first."""
        order = self.accuracy.value.argsort(descending=True, stable=True)
        passing = order[self.accuracy.p()[order] <= 0.05].tolist()
        return tuple(self.accuracy.label("hook point", index) for index in passing)

    def _not_edited(self, absent: str, so: str) -> Verdict:
        """The verdict where nothing was edited: the concept is `absent`, or that is undecided."""
        if self.short:
            reason = f"It is not decided whether {self.concept} is represented, {so}."
            return Verdict("undecided", reason)
        return Verdict("not_applicable", f"{absent}, {so}.")

    def opening(self, undecided: str, absent: str) -> str:
        """What an answer begins with where the concept was not found."""
        if self.represented.found:
            return ""
        return f"{undecided if self.short else absent} "


@dataclass(frozen=True)
class WordFinding(ConceptFinding):
    """A finding about a concept of two classes of words, edited in sentences about half of them."""

    classes: tuple[str, str]
    """Positive class, negative class."""

    words: tuple[int, int]
    """Words of either class; directions and vectors are made from half of them, rounded down."""

    def _arrangements(self, *, directed: bool) -> int:
        """How many relabellings of the words that an edit is made from differ, see there."""
        return even_relabellings((self.words[0] // 2, self.words[1] // 2), directed=directed)


@dataclass(frozen=True)
class WordReading:
    """What a model holds at the words of a concept, in front of each block."""

    asked: WordPrompts
    """Prompts about the words."""

    streams: Mapping[str, Float[Tensor, "batch d_model"]]
    """Hook point -> activations at the word of each prompt."""

    accuracy: Estimate
    """`ConceptFinding.accuracy`, by the nearest class mean."""

    half: Bool[Tensor, " batch"]
    """Prompts about the half of the words that edits are made from; they are tried on the rest."""

    @property
    def found(self) -> bool:
        """Whether the classes are told apart anywhere, so that there is something to edit."""
        return bool((self.accuracy.p() <= 0.05).any())

    @property
    def hook_point(self) -> str:
        """Where they are told apart best."""
        return self.accuracy.label("hook point", int(self.accuracy.value.argmax()))

    def shuffled(self, draws: int, seed: int) -> list[Float[Tensor, " d_model"]]:
        """Return mean differences there of labels shuffled over the words of the half."""
        at_words, asked, half = self.streams[self.hook_point], self.asked, self.half
        words, labels = asked.word[half], asked.label[half]
        return shuffled_differences(at_words[half], words, labels, draws=draws, seed=seed)


def read_words(model: HookedModel, concept: str, draws: int, seed: int) -> WordReading:
    """Read the classes of a concept of words in front of each block.

    Args:
        model: a transformer with a tokenizer.
        concept: a concept of `concepts.WORD_CONCEPTS`.
        draws: shuffles of the labels, the same at every hook point.
        seed: of shuffles, intervals and halves.

    >>> from mechinterp_toolkit import load_model
    >>> reading = read_words(load_model("toy/sentiment"), "sentiment", draws=19, seed=0)
    >>> reading.found, reading.hook_point
    (True, 'blocks.0.hook_resid_pre')
    """
    asked, rows = word_prompts(model, concept), []
    prompts, names = asked.prompts, stream_points(model)
    streams = activations(model, prompts.tokens, names, mask=prompts.mask, position=asked.at_word)
    for stream in streams.values():
        means, label = unit_means(stream, asked.word, asked.label)
        named: dict[str, Any] = {"reader": "nearest_mean", "unit_name": "words"}
        rows.append(read_classes(means, label, **named, draws=draws, seed=seed).accuracy)
    return WordReading(asked, streams, along(rows, "hook point", names), asked.halves(seed))


def stream_points(model: HookedModel) -> tuple[str, ...]:
    """Return the hook points of the stream in front of each block.

    >>> from mechinterp_toolkit import load_model
    >>> stream_points(load_model("toy/sentiment"))[-1]
    'blocks.1.hook_resid_pre'
    """
    return tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))


def left_out(dropped: Sequence[Dropped]) -> tuple[str, ...]:
    """Return the first five words that were left out, with the reason.

    >>> left_out([Dropped("splendid", "two tokens")])
    ("'splendid' left out: two tokens",)
    """
    return tuple(f"{d.word!r} left out: {d.reason}" for d in dropped[:5])


def even_relabellings(sizes: tuple[int, int], *, directed: bool) -> int:
    """Return how many arrangements of two classes there are, the observed one among them.

    They are those that `nulls.balanced_relabellings` draws from.

    Args:
        sizes: units of either class.
        directed: whether an edit made of them would differ if the two classes changed names.

    >>> even_relabellings((3, 3), directed=True)
    19
    """
    first, second = sizes
    even = first * second / (first + second)  # units of the first class relabelled as the second
    ways = sum(
        math.comb(first, moved) * math.comb(second, moved)
        for moved in range(min(sizes) + 1)
        if abs(moved - even) < 1
    )
    return (ways if directed or first != second else ways // 2) + 1


def planted_concepts(**options: bool) -> Callable[[float, int], Planted]:
    """Return `planted(strength, seed)`: a model that answers by the sentiment of words.

    Args:
        options: of `toys.concept_model`.

    >>> planted_concepts()(1.0, 0).locations
    ('blocks.0.hook_resid_pre', 'blocks.1.hook_resid_pre')
    """

    def planted(strength: float, seed: int) -> Planted:
        places = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")
        return Planted(concept_model(strength, seed, **options), places, {})

    return planted


def concept_twins(**options: bool) -> dict[str, Callable[[int], HookedModel]]:
    """Return the null models: random weights, and classes drawn among the words.

    >>> list(concept_twins())
    ['random weights', 'scrambled']
    """
    return {
        "random weights": lambda seed: concept_model(1.0, seed, **options).random_twin(seed),
        "scrambled": lambda seed: concept_model(1.0, seed, relabelled=True, **options),
    }
