"""Does one direction hold a concept of two classes, do methods agree on it, and at which tokens
does the model read it?

At the word of sentences whose answer depends on the word's class, a direction is sought by five
methods: mean difference, k-means, PCA, a logistic probe and alignment (trained on what patching
does, from the PCA's). *Represented*: words left out are nearer to the mean of their own class than
with labels shuffled over words, the search over layers repeated. *Used*: with the direction of half
of the words ablated in sentences about the other half, the right answer falls further than with
directions of shuffled labels. *Summary*: ablated at punctuation alone, it takes more than at as
many other tokens.

What would fool it: words are units, not sentences, and directions are judged on words they were not
fitted to; a mean over methods hides the one that found something else, hence its name; methods that
agree may agree on word frequency, which no shuffle sees; random directions change nothing, so the
null are directions of shuffled labels; and alignment can use a direction that the model never uses
by itself, so its effect stands beside the others.

Source: Tigges, Hollinsworth, Geiger, Nanda 2023, Linear Representations of Sentiment,
arXiv:2310.15154; Geiger et al. 2024, arXiv:2303.02536 (alignment). The nulls are this toolkit's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.analyses._concepts import (
    ConceptFinding,
    concept_twins,
    even_relabellings,
    p_of_largest,
    planted_concepts,
    read_layers,
)
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.classes import read_classes
from mechinterp_toolkit.hooks.ablate import ablate_direction
from mechinterp_toolkit.hooks.align import align_direction
from mechinterp_toolkit.hooks.measure import logit_difference, measure
from mechinterp_toolkit.hooks.patch import Place, PromptPairs, patch_effects
from mechinterp_toolkit.hooks.steer_fit import FITS, Contrast, shuffled_differences
from mechinterp_toolkit.hooks.where import only_at
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts.concepts import WordPrompts, reads_text, word_prompts
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap, judge_effect

METHODS = ("mean difference", "k-means", "PCA", "logistic", "alignment")

TOKENS = ("word", "punctuation", "all others", "all")
"""Classes of tokens at which the direction is ablated; the beginning of the sequence is in none."""

_SPOKEN = {
    "word": "the word",
    "punctuation": "punctuation",
    "all others": "all other tokens",
    "all": "all tokens",
}

LOWEST_AGREEMENT = 0.5
"""Mean |cosine| with the directions of the other methods below which a method is said to disagree
with them."""

SMALLEST_FALL = 0.1
"""Logits: a fall of the right answer over the wrong one below this is none of interest, however
surely it is one."""


@dataclass(frozen=True)
class LinearDirection(ConceptFinding):
    """Result of `linear_direction`."""

    classes: tuple[str, str]
    """Positive class, negative class."""

    words: tuple[int, int]
    """Words of either class."""

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
    """The fall at punctuation alone, in logits; control: at as many other tokens, drawn at random.
    """

    @property
    def used(self) -> Verdict:
        if self.fall is None:
            return self._not_edited("No direction was found", "so none was ablated")
        fall = self.fall.at(TOKENS.index("all"))
        said = f"Ablating it everywhere takes {fall.text()} logits from the right answer"
        there_are = even_relabellings((self.words[0] // 2, self.words[1] // 2), directed=False)
        return judge_effect(
            fall, said, "directions of shuffled labels", SMALLEST_FALL, arrangements=there_are
        )

    @property
    def summarised(self) -> Verdict:
        """Whether the direction is read at punctuation."""
        if self.fall is None:
            return self._not_edited("No direction was found", "so none was ablated")
        if self.summary is None:
            return Verdict("not_applicable", "Not every sentence has punctuation behind the word.")
        said = f"Ablating it at punctuation alone takes {self.summary.text()} logits"
        return judge_effect(self.summary, said, "at as many other tokens", SMALLEST_FALL)

    @property
    def effect(self) -> Estimate:
        return self.best_accuracy if self.fall is None else self.fall.at(TOKENS.index("all"))

    def answer(self) -> str:
        text = (
            f"Of {sum(self.words)} words, those left out are nearer to their own class' mean in"
            f" {self.best_accuracy.text()} at {self.hook_point}; control:"
            f" {self.best_accuracy.control_text()}."
        )
        if self.short:
            return f"Whether {self.concept} lies along a direction is undecided. {text}"
        if self.agreement is None:
            return f"{self.subject} lies along no direction. {text}"
        agreed = self.agreement_with_others
        least = min(agreed, key=agreed.__getitem__)
        return (
            f"{text} Directions of five methods agree with a mean |cosine| of"
            f" {sum(agreed.values()) / len(agreed):.2f}, least that of {least} with"
            f" {agreed[least]:.2f}. {self.summarised.reason}"
        )

    def causal_check(self) -> str:
        asked = f"As it is, the right answer leads by {self.difference.text()} logits."
        if self.fall is None:
            return (
                f"{asked}"
                f" {self._not_edited('No direction was found', 'so nothing was edited').reason}"
            )
        falls = ", ".join(
            f"by {self.fall.at(i).text()} at {_SPOKEN[name]}" for i, name in enumerate(TOKENS)
        )
        said = (
            f"{asked} With the direction ablated to its mean it falls {falls}; control, at all"
            f" tokens: {self.fall.at(TOKENS.index('all')).control_text()}."
        )
        if self.patched is None:
            return said
        closed = "; ".join(f"{name} {self.patched.at(i).text()}" for i, name in enumerate(METHODS))
        return (
            f"{said} Patching the word along one direction closes this share of the gap between two"
            f" sentences: {closed}; control: {self.patched.at(0).control_text()}."
        )

    @property
    def agreement_with_others(self) -> dict[str, float]:
        """Method -> mean |cosine| of its direction with those of the other methods, in [0, 1];
        empty where none was found."""
        if self.agreement is None:
            return {}
        others = (self.agreement.sum(1) - self.agreement.diagonal()) / (len(METHODS) - 1)
        return dict(zip(METHODS, others.tolist(), strict=True))

    @property
    def caveats(self) -> tuple[str, ...]:
        apart = [
            f"{name} ({cosine:.2f})"
            for name, cosine in self.agreement_with_others.items()
            if cosine < LOWEST_AGREEMENT
        ]
        named = f"{', '.join(apart[:-1])} and {apart[-1]}" if len(apart) > 1 else "".join(apart)
        low = (
            (
                "Directions that disagree with those of the other methods, by mean |cosine|:"
                f" {named}. They may hold something else."
            ),
        )
        return (*(low if apart else ()), *self.notes)

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown = {
            "Accuracy by layer": plots.spectrum(
                self.accuracy, title="Accuracy of the nearest class mean, words left out"
            )
        }
        if self.agreement is not None:
            shown["Agreement of methods"] = plots.matrix(
                self.agreement, METHODS, METHODS, title="|cosine| of directions"
            )
        if self.fall is not None:
            shown["Ablation by token"] = plots.spectrum(
                self.fall, title="Fall of the right answer, logits"
            )
        if self.patched is not None:
            shown["Patching by method"] = plots.spectrum(
                self.patched, title="Share of the gap closed"
            )
        if self.summary is not None:
            shown["Punctuation"] = plots.strip(
                self.summary, title="Fall at punctuation over as many other tokens"
            )
        return shown


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
    """
    asked = word_prompts(model, concept)
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))
    prompts = asked.prompts
    read = activations(model, prompts.tokens, names, mask=prompts.mask, position=asked.at_word)
    accuracy = read_layers(
        read,
        asked.word,
        asked.label,
        reader="nearest_mean",
        unit_name="words",
        draws=draws,
        seed=seed,
    )
    best = names[int(accuracy.value.argmax())]
    halves = asked.halves(seed)
    fitted, edited = None, _Edited(None, None, None)
    if p_of_largest(accuracy) <= 0.05:
        fitted = _fitted(model, asked, read[best], halves, best, steps)
        shuffled = shuffled_differences(
            read[best][halves], asked.word[halves], asked.label[halves], draws=edit_draws, seed=seed
        )
        edited = _edited(
            model, asked.select(~halves), names, best, fitted, shuffled, edit_draws, seed
        )
    metric = logit_difference(*_right_and_wrong(asked), position=prompts.position)
    return LinearDirection(
        concept=concept,
        classes=asked.names,
        words=asked.words,
        accuracy=accuracy,
        agreement=None if fitted is None else (fitted @ fitted.T).abs().clamp(max=1),
        difference=bootstrap(
            measure(model, prompts.tokens, metric, mask=prompts.mask),
            unit=asked.word, unit_name="words", measured="logits", seed=seed,
        ),
        patched=edited.patched,
        fall=edited.fall,
        summary=edited.summary,
        notes=tuple(f"{d.word!r} left out: {d.reason}" for d in asked.dropped[:5]),
        prompts_hash=prompts.hash,
    )  # fmt: skip


class _Edited(NamedTuple):
    patched: Estimate | None
    fall: Estimate | None
    summary: Estimate | None


def _fitted(
    model: HookedModel,
    asked: WordPrompts,
    x: Float[Tensor, "batch d"],
    rows: Bool[Tensor, " batch"],
    hook_point: str,
    steps: int,
) -> Float[Tensor, "method d"]:
    """The unit direction of each method, from the prompts `rows`."""
    ours, theirs = asked.pairs(rows)
    contrast = Contrast(hook_point, x[ours], x[theirs])
    named = {
        "k-means": "kmeans",
        "PCA": "pca",
        "logistic": "logistic",
        "mean difference": "mean_difference",
    }
    found = {name: FITS[key](contrast) for name, key in named.items()}
    source, base = asked.prompts.select(ours), asked.prompts.select(theirs)
    answers = tuple(ids[ours] for ids in asked.positive_minus_negative)
    metric = logit_difference(answers[0], answers[1], position=source.position)
    place = Place(hook_point, positions=asked.at_word[ours][:, None], direction=found["PCA"])
    found["alignment"] = align_direction(
        model,
        PromptPairs(source.tokens, base.tokens),
        place,
        metric,
        steps=steps,
        learning_rate=0.01,
    )
    return torch.nn.functional.normalize(
        torch.stack([found[name].double() for name in METHODS]), dim=1
    )


def _edited(
    model: HookedModel,
    asked: WordPrompts,
    names: tuple[str, ...],
    best: str,
    fitted: Float[Tensor, "method d"],
    shuffled: list[Tensor],
    draws: int,
    seed: int,
) -> _Edited:
    """Patch and ablate in sentences about the other half of the words."""
    run = _Ablation(model, asked, names)
    direction = fitted[METHODS.index("mean difference")]
    tokens = _token_classes(asked)
    falls = torch.stack([run.fall(direction, tokens[name]) for name in TOKENS], 1)
    null = torch.stack(
        [torch.stack([run.fall(one, tokens[name]).mean() for name in TOKENS]) for one in shuffled]
    )
    common: dict[str, Any] = {
        "unit": asked.word,
        "unit_name": "words",
        "measured": "logits",
        "seed": seed,
    }
    fall = bootstrap(
        falls,
        control=null,
        control_name="directions of shuffled labels",
        axes=("tokens",),
        labels={"tokens": TOKENS},
        **common,
    )
    summary = None
    if bool(tokens["punctuation"].any(1).all()):
        elsewhere = _other_tokens(asked, tokens, draws, seed)
        summary = bootstrap(
            falls[:, TOKENS.index("punctuation")],
            control=torch.stack([run.fall(direction, chosen).mean() for chosen in elsewhere]),
            control_name="as many other tokens",
            **common,
        )
    return _Edited(_patched(model, asked, best, fitted, shuffled, seed), fall, summary)


class _Ablation:
    """Ablates a direction to its mean at chosen tokens, in front of every block."""

    def __init__(self, model: HookedModel, asked: WordPrompts, names: tuple[str, ...]) -> None:
        self.model, self.prompts, self.names = model, asked.prompts, names
        self.metric = logit_difference(*_right_and_wrong(asked), position=asked.prompts.position)
        self.streams = activations(model, asked.prompts.tokens, names, mask=asked.prompts.mask)
        self.before = self._measure({})

    def fall(
        self, direction: Float[Tensor, " d"], chosen: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, " batch"]:
        """How far the right answer falls, prompt by prompt."""
        unit = (direction / direction.norm()).double()
        means = {
            name: float(self.streams[name][chosen].double().mean(0) @ unit) for name in self.names
        }
        edits = ablate_direction(unit, self.names, means)
        return self.before - self._measure(
            {name: only_at(chosen, edit) for name, edit in edits.items()}
        )

    def _measure(self, edits: dict[str, Any]) -> Float[Tensor, " batch"]:
        return measure(self.model, self.prompts.tokens, self.metric, edits, mask=self.prompts.mask)


def _right_and_wrong(asked: WordPrompts) -> tuple[Tensor, Tensor]:
    answers = asked.labelled().answers
    assert answers is not None
    return answers


def _token_classes(asked: WordPrompts) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Which tokens belong to each of `TOKENS`; the first column is left out where it is the
    beginning of the sequence."""
    prompts, rows = asked.prompts, torch.arange(len(asked.prompts))
    real = prompts.mask.clone()
    if len(prompts.tokens[:, 0].unique()) == 1:
        real[:, 0] = False
    word = torch.zeros_like(real)
    word[rows, asked.at_word] = True
    return {
        "word": word,
        "punctuation": asked.summary,
        "all others": real & ~word & ~asked.summary,
        "all": real | word,
    }


def _other_tokens(
    asked: WordPrompts, tokens: dict[str, Bool[Tensor, "batch pos"]], draws: int, seed: int
) -> list[Bool[Tensor, "batch pos"]]:
    """Sets of other tokens, as many in each prompt as it has punctuation; fewer where it has no
    more."""
    generator = torch.Generator().manual_seed(seed + 2)
    count, others = asked.summary.sum(1), tokens["all others"]
    sets = []
    for _ in range(draws):
        order = (
            torch.rand(others.shape, generator=generator)
            .masked_fill(~others, 2)
            .argsort(1)
            .argsort(1)
        )
        sets.append((order < count[:, None]) & others)
    return sets


def _patched(
    model: HookedModel,
    asked: WordPrompts,
    hook_point: str,
    fitted: Float[Tensor, "method d"],
    shuffled: list[Tensor],
    seed: int,
) -> Estimate | None:
    """Patch the word of negative sentences along each direction from positive ones; None where
    their answers are alike."""
    ours, theirs = asked.pairs()
    source, base = asked.prompts.select(ours), asked.prompts.select(theirs)
    answers = tuple(ids[ours] for ids in asked.positive_minus_negative)
    metric = logit_difference(answers[0], answers[1], position=source.position)
    at = asked.at_word[ours][:, None]
    directions = [
        *zip(METHODS, fitted, strict=True),
        *((f"shuffled {i}", one) for i, one in enumerate(shuffled)),
    ]
    places = [Place(hook_point, positions=at, direction=one, name=name) for name, one in directions]
    try:
        pairs = PromptPairs(source.tokens, base.tokens, asked.word[ours], "pairs of words")
        effects = patch_effects(model, pairs, places, metric, seed=seed).normalised
    except ToolkitError:
        return None  # sentences of either class get the same answer, so there is no gap to close
    n = len(METHODS)
    null = effects.value[n:, None].expand(-1, n)
    return Estimate(
        value=effects.value[:n],
        low=effects.low[:n],
        high=effects.high[:n],
        n=effects.n,
        unit=effects.unit,
        method=effects.method,
        control=null.contiguous(),
        control_name="directions of shuffled labels",
        axes=("method",),
        labels={"method": METHODS},
    )
