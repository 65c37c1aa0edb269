"""Does one direction hold a concept, do methods agree on it, and at which tokens is it read?

At the word of sentences whose answer depends on the class of the word, one of two, a direction is
sought by five methods: mean difference, k-means, PCA, a logistic probe and alignment (trained on
what patching does, from the PCA's). *Represented*: words left out are nearer to the mean of their
own class than with labels shuffled over words, the search over layers repeated. *Used*: with the
direction of half of the words ablated in sentences about the other half, the right answer falls
further than with directions of shuffled labels. *Summary*: ablated at punctuation alone, it takes
more than at as many other tokens.

What would fool it: words are units, not sentences, and directions are judged on words they were not
fitted to; a mean over methods hides the one that found something else, hence its name; methods that
agree may agree on word frequency, which no shuffle sees; random directions change nothing, so the
null are directions of shuffled labels; and alignment can use a direction that the model never uses
by itself, so its effect stands beside the others.

Source: Tigges, Hollinsworth, Geiger, Nanda 2023, Linear Representations of Sentiment,
arXiv:2310.15154; Geiger et al. 2024, arXiv:2303.02536 (alignment). The nulls are this toolkit's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit import plots
from mechinterp_toolkit.analyses._concepts import (
    WordFinding,
    WordReading,
    concept_twins,
    left_out,
    planted_concepts,
    read_words,
)
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.classes import read_classes
from mechinterp_toolkit.hooks.ablate import ablate_direction
from mechinterp_toolkit.hooks.align import align_direction
from mechinterp_toolkit.hooks.measure import Metric, logit_difference, measure
from mechinterp_toolkit.hooks.patch import Place, PromptPairs, patch_effects
from mechinterp_toolkit.hooks.steer_fit import FITS, Contrast
from mechinterp_toolkit.hooks.where import only_at
from mechinterp_toolkit.intervention import Edits
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts.concepts import WordPrompts, reads_text
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap, judge_effect

METHODS = ("mean difference", "k-means", "PCA", "logistic", "alignment")

TOKENS = ("word", "punctuation", "all others", "all")
"""Classes of tokens at which the direction is ablated; the beginning of the sequence is in none."""

LOWEST_AGREEMENT = 0.5
"""Mean |cosine| with the other methods' directions below which a method is said to disagree."""

SMALLEST_FALL = 0.1
"""Logits: a fall of the right answer below this is of no interest, however sure it is."""


@dataclass(frozen=True)
class LinearDirection(WordFinding):
    """Result of `linear_direction`."""

    agreement: Float[Tensor, "method method"] | None
    """|Cosine| of the directions that `METHODS` find on half of the words, in [0, 1]; None where
    there is none to find."""

    difference: Estimate
    """Right minus wrong answers' logit as it is, in logits."""

    patched: Estimate | None
    """Share of the gap between a positive and a negative sentence closed by patching the word along
    each direction, [method]; interval over pairs of words; control: directions of shuffled labels.
    None where nothing was found or the model does not answer."""

    fall: Estimate | None
    """Fall of `difference` with the mean difference's direction ablated at each of `TOKENS`, in
    logits; control as above."""

    summary: Estimate | None
    """The fall at punctuation alone, in logits; control: at as many other tokens."""

    @property
    def used(self) -> Verdict:
        """Whether ablating the direction takes more than directions of shuffled labels do."""
        if self.fall is None:
            return self._not_edited("No direction was found", "so none was ablated")
        ablated = f"Ablating it everywhere takes {self.effect.text()} logits from the right answer"
        there_are = self._arrangements(directed=False)
        return judge_effect(self.effect, ablated, SHUFFLED, SMALLEST_FALL, arrangements=there_are)

    @property
    def summarised(self) -> Verdict:
        """Whether the direction is read at punctuation."""
        if self.fall is None:
            return self._not_edited("No direction was found", "so none was ablated")
        if self.summary is None:
            return Verdict("not_applicable", "Not every sentence has punctuation behind the word.")
        ablated = f"Ablating it at punctuation alone takes {self.summary.text()} logits"
        return judge_effect(self.summary, ablated, "at as many other tokens", SMALLEST_FALL)

    @property
    def effect(self) -> Estimate:
        """The fall at all tokens, or the accuracy where nothing was ablated."""
        return self.best_accuracy if self.fall is None else self.fall.at(tokens="all")

    @property
    def agreement_with_others(self) -> dict[str, float]:
        """Method -> mean |cosine| with the directions of the others, in [0, 1]; empty if none."""
        if self.agreement is None:
            return {}
        others = (self.agreement.sum(1) - self.agreement.diagonal()) / (len(METHODS) - 1)
        return dict(zip(METHODS, others.tolist(), strict=True))

    def answer(self) -> str:
        return _answer(self)

    def causal_check(self) -> str:
        return _causal_check(self)

    @property
    def caveats(self) -> tuple[str, ...]:
        return (*_disagreement(self), *self.notes)

    def figures(self) -> dict[str, Any]:
        figures, caption = super().figures(), "Agreement of methods"
        if self.agreement is not None:
            figures[caption] = plots.matrix(self.agreement, METHODS, METHODS, title="|cosine|")
        return figures


@analysis(
    question="Does one direction hold a concept, and at which tokens is it read?",
    paper="Tigges et al. 2023, arXiv:2310.15154",
    applies=reads_text,
    planted=planted_concepts(summary=True),
    twins=concept_twins(summary=True),
    core=read_classes,
)
def linear_direction(
    model: HookedModel,
    *,
    concept: str = "sentiment",
    steps: int = 40,
    draws: int = 999,
    edit_draws: int = 39,
    seed: int = 0,
) -> LinearDirection:
    """Find the direction of a concept by five methods, and ablate it by class of token.

    Args:
        model: a transformer with a tokenizer.
        concept: a concept of `concepts.WORD_CONCEPTS`.
        steps: of the training of the alignment.
        draws: shuffles of the labels behind the accuracy's null.
        edit_draws: directions of shuffled labels, and sets of other tokens, behind the nulls of the
            edits.
        seed: of everything drawn.

    Raises:
        NotApplicable: too few words of the concept are tokens of this model.
        ToolkitError: the concept is not known.

    >>> finding = linear_direction("toy/sentiment", steps=1, draws=19, edit_draws=1)
    >>> finding.represented.outcome, finding.hook_point
    ('found', 'blocks.0.hook_resid_pre')
    """
    reading = read_words(model, concept, draws, seed)
    asked, prompts = reading.asked, reading.asked.prompts
    agreement, edited = None, _Edited()
    if reading.found:
        directions = _fit_directions(model, reading, steps)
        agreement = (directions @ directions.T).abs().clamp(max=1)
        edited = _edit_sentences(model, reading, directions, edit_draws, seed)
    metric = logit_difference(*asked.right_and_wrong, position=prompts.position)
    logits = measure(model, prompts.tokens, metric, mask=prompts.mask)
    return LinearDirection(
        concept=concept,
        accuracy=reading.accuracy,
        notes=left_out(asked.dropped),
        classes=asked.names,
        words=asked.words,
        agreement=agreement,
        difference=bootstrap(
            logits, unit=asked.word, unit_name="words", measured="logits", seed=seed
        ),
        patched=edited.patched,
        fall=edited.fall,
        summary=edited.summary,
        prompts_hash=prompts.hash,
    )


SHUFFLED = "directions of shuffled labels"


class _Edited(NamedTuple):
    """What edits did: the fields of `LinearDirection` with the same names."""

    patched: Estimate | None = None
    fall: Estimate | None = None
    summary: Estimate | None = None


def _fit_directions(
    model: HookedModel, reading: WordReading, steps: int
) -> Float[Tensor, "method d"]:
    """Return the unit direction of each of `METHODS`, from prompts about half of the words.

    Args:
        steps: of the training of the alignment, which starts from the direction of the PCA.
    """
    pairs = _Pairs.of(reading.asked, reading.half)
    stream = reading.streams[reading.hook_point]
    contrast = Contrast(reading.hook_point, stream[pairs.positive], stream[pairs.negative])
    keys = ("mean_difference", "kmeans", "pca", "logistic")
    directions = {key: FITS[key](contrast) for key in keys}
    place = Place(reading.hook_point, positions=pairs.at_word, direction=directions["pca"])
    aligned = align_direction(
        model, pairs.prompts, place, pairs.metric, steps=steps, learning_rate=0.01
    )
    stacked = torch.stack([direction.double() for direction in (*directions.values(), aligned)])
    return torch.nn.functional.normalize(stacked, dim=1)


def _edit_sentences(
    model: HookedModel,
    reading: WordReading,
    directions: Float[Tensor, "method d"],
    draws: int,
    seed: int,
) -> _Edited:
    """Patch and ablate in sentences about the other half of the words.

    Args:
        directions: by method.
        draws: directions of shuffled labels, and sets of other tokens.
    """
    asked, shuffled = reading.asked.select(~reading.half), reading.shuffled(draws, seed)
    ablation = _Ablation(model, asked, tuple(reading.streams))
    direction, tokens = directions[METHODS.index("mean difference")], _token_classes(asked)
    falls = torch.stack([ablation.fall(direction, tokens[name]) for name in TOKENS], 1)
    null = [[ablation.fall(drawn, tokens[name]).mean() for name in TOKENS] for drawn in shuffled]
    interval = functools.partial(
        bootstrap, unit=asked.word, unit_name="words", measured="logits", seed=seed
    )
    fall = interval(
        falls,
        control=torch.tensor(null, dtype=torch.float64),
        control_name=SHUFFLED,
        axes=("tokens",),
        labels={"tokens": TOKENS},
    )
    summary = None
    if bool(tokens["punctuation"].any(1).all()):
        elsewhere = [
            ablation.fall(direction, chosen).mean()
            for chosen in _other_tokens(asked, tokens["all others"], draws, seed)
        ]
        summary = interval(
            falls[:, TOKENS.index("punctuation")],
            control=torch.stack(elsewhere),
            control_name="as many other tokens",
        )
    patched = _patched(model, asked, reading.hook_point, [*directions, *shuffled], seed)
    return _Edited(patched, fall, summary)


def _token_classes(asked: WordPrompts) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Return which tokens belong to each of `TOKENS`.

    The first column is left out where it is the beginning of the sequence.
    """
    prompts, rows = asked.prompts, torch.arange(len(asked.prompts))
    real = prompts.mask.clone()
    if len(prompts.tokens[:, 0].unique()) == 1:
        real[:, 0] = False
    word = torch.zeros_like(real)
    word[rows, asked.at_word] = True
    others = real & ~word & ~asked.summary
    return dict(zip(TOKENS, (word, asked.summary, others, real | word), strict=True))


class _Pairs(NamedTuple):
    """Pairs of a positive and a negative sentence of one template."""

    positive: Int[Tensor, " pair"]
    negative: Int[Tensor, " pair"]
    prompts: PromptPairs
    metric: Metric
    at_word: Int[Tensor, "pair 1"]

    @classmethod
    def of(cls, asked: WordPrompts, rows: Bool[Tensor, " batch"] | None = None) -> _Pairs:
        positive, negative = asked.pairs(rows)
        source = asked.prompts.select(positive)
        prompts = PromptPairs(
            source.tokens,
            asked.prompts.tokens[negative],
            asked.word[positive],
            unit_name="pairs of words",
        )
        answers = [ids[positive] for ids in asked.positive_minus_negative]
        metric = logit_difference(*answers, position=source.position)
        return cls(positive, negative, prompts, metric, asked.at_word[positive][:, None])


class _Ablation:
    """Ablates a direction to its mean at chosen tokens, in front of every block."""

    def __init__(self, model: HookedModel, asked: WordPrompts, names: tuple[str, ...]) -> None:
        self.model, self.prompts, self.names = model, asked.prompts, names
        self.metric = logit_difference(*asked.right_and_wrong, position=asked.prompts.position)
        self.streams = activations(model, asked.prompts.tokens, names, mask=asked.prompts.mask)
        self.before = self._measure({})

    def fall(
        self, direction: Float[Tensor, " d"], chosen: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, " batch"]:
        """How far the right answer falls, prompt by prompt."""
        unit = (direction / direction.norm()).double()
        means = {
            name: float(stream[chosen].double().mean(0) @ unit)
            for name, stream in self.streams.items()
        }
        edits = ablate_direction(unit, self.names, means)
        return self.before - self._measure({n: only_at(chosen, edit) for n, edit in edits.items()})

    def _measure(self, edits: Edits) -> Float[Tensor, " batch"]:
        return measure(self.model, self.prompts.tokens, self.metric, edits, mask=self.prompts.mask)


def _other_tokens(
    asked: WordPrompts, others: Bool[Tensor, "batch pos"], draws: int, seed: int
) -> list[Bool[Tensor, "batch pos"]]:
    """Sets of other tokens, as many as each prompt has punctuation; fewer where it has no more."""
    generator, count = torch.Generator().manual_seed(seed + 2), asked.summary.sum(1)
    sets = []
    for _ in range(draws):
        drawn = torch.rand(others.shape, generator=generator).masked_fill(~others, 2)
        rank = drawn.argsort(1).argsort(1)
        sets.append((rank < count[:, None]) & others)
    return sets


def _patched(
    model: HookedModel,
    asked: WordPrompts,
    hook_point: str,
    directions: Sequence[Float[Tensor, " d"]],
    seed: int,
) -> Estimate | None:
    """Patch the word of negative sentences from positive ones, along each direction.

    The first directions are those of `METHODS`, the others their null. None where both sentences
    get the same answer, so that there is no gap to close.
    """
    pairs = _Pairs.of(asked)
    places = [
        Place(hook_point, positions=pairs.at_word, direction=direction, name=str(number))
        for number, direction in enumerate(directions)
    ]
    try:
        effects = patch_effects(model, pairs.prompts, places, pairs.metric, seed=seed).normalised
    except ToolkitError:
        return None
    n = len(METHODS)
    return replace(
        effects,
        value=effects.value[:n],
        low=effects.low[:n],
        high=effects.high[:n],
        control=effects.value[n:, None].expand(-1, n).contiguous(),
        control_name=SHUFFLED,
        axes=("method",),
        labels={"method": METHODS},
    )


def _answer(finding: LinearDirection) -> str:
    accuracy = finding.best_accuracy
    text = finding.opening(
        f"Whether {finding.concept} lies along a direction is undecided.",
        f"{finding.subject} lies along no direction.",
    )
    text += (
        f"Of {sum(finding.words)} words, those left out are nearer to their own class' mean in"
        f" {accuracy.text()} at {finding.hook_point}; control: {accuracy.control_text()}."
    )
    if finding.agreement is None:
        return text
    agreed = finding.agreement_with_others
    least = min(agreed, key=agreed.__getitem__)
    return (
        f"{text} Directions of five methods agree with a mean |cosine| of"
        f" {sum(agreed.values()) / len(agreed):.2f}, least that of {least} with"
        f" {agreed[least]:.2f}. {finding.summarised.reason}"
    )


def _causal_check(finding: LinearDirection) -> str:
    text = f"As it is, the right answer leads by {finding.difference.text()} logits."
    if finding.fall is None:
        return f"{text} {finding.used.reason}"
    spoken = ("the word", "punctuation", "all other tokens", "all tokens")
    falls = [f"by {finding.fall.at(i).text()} at {name}" for i, name in enumerate(spoken)]
    text += (
        f" With the direction ablated to its mean it falls {', '.join(falls)}; control, at all"
        f" tokens: {finding.effect.control_text()}."
    )
    if finding.patched is None:
        return text
    closed = [f"{name} {finding.patched.at(i).text()}" for i, name in enumerate(METHODS)]
    return (
        f"{text} Patching the word along one direction closes this share of the gap between two"
        f" sentences: {'; '.join(closed)}; control: {finding.patched.at(0).control_text()}."
    )


def _disagreement(finding: LinearDirection) -> tuple[str, ...]:
    apart = [
        f"{name} ({cosine:.2f})"
        for name, cosine in finding.agreement_with_others.items()
        if cosine < LOWEST_AGREEMENT
    ]
    if not apart:
        return ()
    *first, last = apart
    named = f"{', '.join(first)} and {last}" if first else last
    return (
        "Directions that disagree with those of the other methods, by mean |cosine|:"
        f" {named}. They may hold something else.",
    )
