"""Does a steering vector move what the model says, for whom the wrong way, and at what cost?

The mean difference between sentences about words of two classes, read at the word in front of a
block, is added to every token of sentences about words it was not made from. *Represented*: words
left out are nearer to the mean of their own class than with labels shuffled over words, the search
over layers repeated. *Used*: the vector of the best layer moves the answer from the negative to the
positive class further than vectors of the same length from shuffled labels.

What would fool it: a vector so long that it breaks the model, hence the KL on sentences about
something else; a mean that hides the sentences moved the wrong way, hence their share; sentences
counted as if each had a word of its own, hence intervals over words; vectors in random directions,
which do nothing, as the only control; and a change that adding a constant to the logits would make
as well, hence logit guidance beside it, also brought to the same change.

Source: Rimsky et al. 2024, arXiv:2312.06681 (mean difference); Tan et al. 2024, arXiv:2407.12404
(the wrong way); Braun et al. 2025, arXiv:2505.22637 (agreement of pairs). The nulls are this
toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.analyses._concepts import (
    WordFinding,
    WordReading,
    concept_twins,
    left_out,
    planted_concepts,
    read_words,
)
from mechinterp_toolkit.geometry.classes import read_classes
from mechinterp_toolkit.hooks.measure import Metric, logit_difference, measure
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.hooks.steer_fit import (
    Contrast,
    mean_difference,
    pair_agreement,
    separation,
)
from mechinterp_toolkit.hooks.steer_sweep import (
    Prompts,
    SteeringSweep,
    VectorGrid,
    guidance_kl,
    left_padded,
    logit_contrast,
    steering_sweep,
)
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts.concepts import reads_text
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.stats import bootstrap, judge_effect

SMALLEST_CHANGE = 0.1
"""Logits: a change of the answer below this is of no interest, however sure it is."""


@dataclass(frozen=True)
class SteeringEffect(WordFinding):
    """Result of `steering_effect`."""

    separation: Estimate
    """d' of words the vector was not made from along it, [hook point], in pooled standard
    deviations."""

    agreement: Estimate
    """Mean cosine of a pair's difference with those of pairs of other words, [hook point], in [-1,
    1]."""

    change: Estimate | None
    """Rise of the positive over the negative answer when the vector of `hook_point` is added once,
    in logits; control: vectors of shuffled labels. None where nothing was found."""

    by_strength: Estimate | None
    """The same for each vector and multiplier, [vector, multiplier], without control."""

    wrong_way: Estimate | None
    """Share of sentences that move against the multiplier's sign, [vector, multiplier], in [0, 1];
    interval over words."""

    kl: Estimate | None
    """KL of the next token of sentences about something else, unsteered from steered, [vector,
    multiplier], in nats."""

    guidance: Estimate | None
    """Rise of the positive over the negative answer when logits are shifted by the classes' mean
    difference, [multiplier]."""

    guidance_kl: Estimate | None
    """KL of the next token of sentences about something else under the same shift, [multiplier], in
    nats."""

    matched_kl: Estimate | None
    """The same under the part of the shift that moves the answer by `change`, in nats; None where
    the shift does not move it that way."""

    @property
    def used(self) -> Verdict:
        """Whether the vector moves the answer further than vectors of shuffled labels."""
        if self.change is None:
            absent = "The classes differ along no direction"
            return self._not_edited(absent, "so there was no vector to add")
        return judge_effect(
            self.change,
            f"Adding the vector once at {self.hook_point} moves the answer by {self.change.text()}"
            " logits",
            "vectors of shuffled labels",
            SMALLEST_CHANGE,
            arrangements=self._arrangements(directed=True),
        )

    @property
    def effect(self) -> Estimate:
        """The change, or the accuracy where nothing was added."""
        return self.best_accuracy if self.change is None else self.change

    def answer(self) -> str:
        return _answer(self)

    def causal_check(self) -> str:
        return _causal_check(self)

    @property
    def caveats(self) -> tuple[str, ...]:
        return (*_caveats(self), *self.notes)


@analysis(
    question="Does a steering vector move the model's answer, and at what cost?",
    paper="Rimsky et al. 2024, arXiv:2312.06681",
    applies=reads_text,
    planted=planted_concepts(),
    twins=concept_twins(),
    core=read_classes,
)
def steering_effect(
    model: HookedModel,
    *,
    concept: str = "sentiment",
    multipliers: tuple[float, ...] = (-1.0, 0.5, 1.0, 2.0),
    draws: int = 999,
    edit_draws: int = 39,
    seed: int = 0,
) -> SteeringEffect:
    """Make a steering vector of each layer from half of the words, and add it to the other half.

    Args:
        model: a transformer with a tokenizer.
        concept: a concept of `concepts.WORD_CONCEPTS`.
        multipliers: strengths; 1, which the verdict is about, is added where it is missing.
        draws: shuffles of the labels behind the accuracy's null.
        edit_draws: vectors of shuffled labels behind the null of the change.
        seed: of everything drawn.

    Raises:
        NotApplicable: too few words of the concept are tokens of this model.
        ToolkitError: the concept is not known, or a multiplier is 0.

    >>> finding = steering_effect("toy/sentiment", draws=19, edit_draws=1)
    >>> finding.represented.outcome, finding.hook_point
    ('found', 'blocks.0.hook_resid_pre')
    """
    reading = read_words(model, concept, draws, seed)
    made, held_out = (_Pairs(reading, chosen) for chosen in (reading.half, ~reading.half))
    vectors = {name: mean_difference(contrast) for name, contrast in made.contrasts.items()}
    strengths = tuple(dict.fromkeys((*multipliers, 1.0)))
    steered = _Steered()
    if reading.found:
        steered = _steer_sentences(model, reading, vectors, strengths, edit_draws, seed)
    return SteeringEffect(
        concept=concept,
        accuracy=reading.accuracy,
        notes=left_out(reading.asked.dropped),
        classes=reading.asked.names,
        words=reading.asked.words,
        separation=held_out.separation(vectors, seed),
        agreement=made.agreement(seed),
        **steered._asdict(),
        prompts_hash=reading.asked.prompts.hash,
    )


class _Pairs:
    """Pairs of a positive and a negative word in one sentence.

    The same two words make a pair in every sentence.
    """

    def __init__(self, reading: WordReading, chosen: Bool[Tensor, " batch"]) -> None:
        self.positive, self.negative = reading.asked.pairs(chosen)
        self.words = (reading.asked.word[self.positive], reading.asked.word[self.negative])
        self.contrasts = {
            name: Contrast(name, stream[self.positive], stream[self.negative])
            for name, stream in reading.streams.items()
        }

    def separation(self, vectors: Mapping[str, Float[Tensor, " d"]], seed: int) -> Estimate:
        """Return d' of the words along the vector of each hook point."""
        named: dict[str, Any] = {"units": self.words, "unit_name": "words", "seed": seed}
        rows = [separation(self.contrasts[name], vectors[name], **named) for name in vectors]
        return along(rows, "hook point", tuple(vectors))

    def agreement(self, seed: int) -> Estimate:
        """Return the mean cosine of a pair's difference with those of pairs of other words."""
        rows = [
            pair_agreement(contrast, unit=self.words[0], unit_name="pairs of words", seed=seed)
            for contrast in self.contrasts.values()
        ]
        return along(rows, "hook point", tuple(self.contrasts))


class _Steered(NamedTuple):
    """What adding vectors did: the fields of `SteeringEffect` with the same names."""

    change: Estimate | None = None
    by_strength: Estimate | None = None
    wrong_way: Estimate | None = None
    kl: Estimate | None = None
    guidance: Estimate | None = None
    guidance_kl: Estimate | None = None
    matched_kl: Estimate | None = None


def _steer_sentences(
    model: HookedModel,
    reading: WordReading,
    vectors: Mapping[str, Float[Tensor, " d"]],
    multipliers: tuple[float, ...],
    draws: int,
    seed: int,
) -> _Steered:
    """Add the vectors in sentences about the words they were not made from.

    Args:
        vectors: by hook point.
        multipliers: strengths, 1 among them.
        draws: vectors of shuffled labels.
    """
    asked, half = reading.asked, reading.half
    others = asked.select(~half)
    prompts = left_padded(others.prompts, unit=others.word, unit_name="words")
    metric = logit_difference(*others.positive_minus_negative)
    neutral = None if asked.neutral is None else left_padded(asked.neutral)
    sides = [left_padded(asked.prompts.select(rows)) for rows in asked.pairs(half)]
    guidance = logit_contrast(model, *sides)
    made = [SteeringVector.of(name, vector.float()) for name, vector in vectors.items()]
    grid = VectorGrid(made, multipliers)
    swept = steering_sweep(
        model, grid, prompts, neutral or prompts, metric, guidance=guidance, seed=seed
    )
    addition = _Addition(model, reading.hook_point, prompts, metric)
    vector = vectors[reading.hook_point]
    shuffled = reading.shuffled(draws, seed + 1)
    as_long = [drawn * (vector.norm() / drawn.norm()) for drawn in shuffled]
    change = bootstrap(
        addition.change(vector),
        unit=others.word,
        unit_name="words",
        measured="logits",
        seed=seed,
        control=torch.stack([addition.change(drawn).mean() for drawn in as_long]),
        control_name="vectors of shuffled labels, as long",
    )
    steered = _Steered(change, swept.effect, swept.wrong_way, guidance=swept.guidance_effect)
    if neutral is None:
        return steered
    matched = _matched(model, swept, guidance, float(change.value), neutral, seed)
    return steered._replace(kl=swept.kl, guidance_kl=swept.guidance_kl, matched_kl=matched)


def _matched(
    model: HookedModel,
    swept: SteeringSweep,
    guidance: Float[Tensor, " d_vocab"],
    change: float,
    neutral: Prompts,
    seed: int,
) -> Estimate | None:
    """KL under the part of the shift that moves the answer by `change`.

    A difference of logits grows with the part.
    """
    assert swept.guidance_effect is not None
    whole = float(swept.guidance_effect.at(multiplier="1").value)
    if not change * whole > 0:
        return None
    return guidance_kl(model, neutral, guidance, [change / whole], seed=seed).at(0)


class _Addition:
    """Adds a vector once to every token, in front of one block."""

    def __init__(
        self, model: HookedModel, hook_point: str, prompts: Prompts, metric: Metric
    ) -> None:
        self.model, self.hook_point, self.prompts, self.metric = model, hook_point, prompts, metric
        self.before = measure(model, prompts.tokens, metric, mask=prompts.mask)

    def change(self, vector: Float[Tensor, " d"]) -> Float[Tensor, " batch"]:
        """How far the metric of each prompt moves."""
        edits = {self.hook_point: SteeringVector.of(self.hook_point, vector.float()).add(1.0)}
        prompts = self.prompts
        after = measure(self.model, prompts.tokens, self.metric, edits, mask=prompts.mask)
        return after - self.before


def _answer(finding: SteeringEffect) -> str:
    accuracy, best = finding.best_accuracy, finding.best
    opening = finding.opening(
        "Whether there is anything to steer by is undecided.", "There is nothing to steer by."
    )
    text = (
        f"{opening}Words left out are nearer to their own class' mean in {accuracy.text()} at"
        f" {finding.hook_point}; control: {accuracy.control_text()}. Along the vector other words"
        f" lie {finding.separation.at(best).text()} standard deviations apart, and pairs agree with"
        f" a cosine of {finding.agreement.at(best).text()}."
    )
    return f"{text} {finding.used.reason}" if finding.represented.found else text


def _causal_check(finding: SteeringEffect) -> str:
    if finding.change is None or finding.wrong_way is None:
        return finding.used.reason
    cost = ""
    if finding.kl is not None:
        nats = _once(finding, finding.kl).text()
        cost = f" Sentences about something else change by {nats} nats (KL)."
    return (
        f"With the vector of {finding.hook_point} added once to every token, the positive answer"
        f" gains {finding.change.text()} logits over the negative one in sentences about other"
        f" words; control: {finding.change.control_text()}."
        f" {_once(finding, finding.wrong_way).text()} of the sentences move the wrong way.{cost}"
        f"{_guidance_text(finding)}"
    )


def _guidance_text(finding: SteeringEffect) -> str:
    """What a shift of the logits does instead, and the part of it that does as much."""
    if finding.guidance is None:
        return ""
    shift = finding.guidance.at(multiplier="1")
    text = (
        " Shifting the logits by the classes' mean difference instead moves it by"
        f" {shift.text()} logits"
    )
    if finding.guidance_kl is not None:
        text += f", at {finding.guidance_kl.at(multiplier='1').text()} nats"
    if finding.matched_kl is None or finding.change is None:
        return f"{text}."
    part = float(finding.change.value / shift.value)
    return (
        f"{text}; {part:.3g} times that shift moves it as far as the vector, at"
        f" {finding.matched_kl.text()} nats."
    )


def _caveats(finding: SteeringEffect) -> list[str]:
    if finding.kl is None:
        missing = "The tokenizer lacks words of neutral sentences."
        return [] if finding.change is None else [missing]
    cost, matched = _once(finding, finding.kl), finding.matched_kl
    if matched is None or finding.used.outcome == "not_found" or matched.value > cost.value:
        return []
    return [
        "A constant added to the logits does as much as the vector at no larger cost: it moves the"
        f" answer as far with a KL of {matched.text()} nats on sentences about something else, the"
        f" vector with {cost.text()}."
    ]


def _once(finding: SteeringEffect, swept: Estimate) -> Estimate:
    """Of a sweep, the vector and strength that the verdict is about."""
    return swept.at(vector=finding.hook_point, multiplier="1")
