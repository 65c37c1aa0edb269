"""Does a steering vector move what the model says, by how much, for whom the wrong way, and at what
cost elsewhere?

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
from mechinterp_toolkit.geometry.classes import read_classes
from mechinterp_toolkit.hooks.measure import Metric, logit_difference, measure
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.hooks.steer_fit import (
    Contrast,
    mean_difference,
    pair_agreement,
    separation,
    shuffled_differences,
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
from mechinterp_toolkit.prompts.concepts import WordPrompts, reads_text, word_prompts
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.stats import bootstrap, judge_effect

SMALLEST_CHANGE = 0.1
"""Logits: a change of the answer below this is none of interest, however surely it is one."""


@dataclass(frozen=True)
class SteeringEffect(ConceptFinding):
    """Result of `steering_effect`."""

    classes: tuple[str, str]
    """Positive class, which vectors point to, and negative class."""

    words: tuple[int, int]
    """Words of either class; vectors are made from half of them, rounded down."""

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
        if self.change is None:
            return self._not_edited(
                "The classes differ along no direction", "so there was no vector to add"
            )
        said = (
            f"Adding the vector once at {self.hook_point} moves the answer by {self.change.text()}"
            " logits"
        )
        there_are = even_relabellings((self.words[0] // 2, self.words[1] // 2), directed=True)
        return judge_effect(
            self.change, said, "vectors of shuffled labels", SMALLEST_CHANGE, arrangements=there_are
        )

    @property
    def effect(self) -> Estimate:
        return self.best_accuracy if self.change is None else self.change

    def answer(self) -> str:
        at = int(self.accuracy.value.argmax())
        text = (
            f"Words left out are nearer to their own class' mean in {self.best_accuracy.text()} at"
            f" {self.hook_point}; control: {self.best_accuracy.control_text()}. Along the vector"
            f" other words lie {self.separation.at(at).text()} standard deviations apart, and pairs"
            f" agree with a cosine of {self.agreement.at(at).text()}."
        )
        if self.short:
            return f"Whether there is anything to steer by is undecided. {text}"
        return (
            f"{text} {self.used.reason}"
            if self.p <= 0.05
            else f"There is nothing to steer by. {text}"
        )

    def causal_check(self) -> str:
        if self.change is None or self.wrong_way is None:
            return self._not_edited(
                "The classes differ along no direction", "so nothing was added"
            ).reason
        cost = (
            ""
            if self.kl is None
            else f" Sentences about something else change by {self._at_once(self.kl)} nats (KL)."
        )
        return (
            f"With the vector of {self.hook_point} added once to every token, the positive answer"
            f" gains {self.change.text()} logits over the negative one in sentences about other"
            f" words; control: {self.change.control_text()}. {self._at_once(self.wrong_way)} of the"
            f" sentences move the wrong way.{cost}{self._guidance_text()}"
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        missing = self.kl is None and self.change is not None
        lacks = ("The tokenizer lacks words of neutral sentences.",) if missing else ()
        return (*lacks, *self._no_more_than_guidance(), *self.notes)

    def _no_more_than_guidance(self) -> tuple[str, ...]:
        if self.kl is None or self.matched_kl is None or self.used.outcome == "not_found":
            return ()
        if float(self.matched_kl.value) > float(self.kl.value[self._once]):
            return ()
        return (
            (
                "A constant added to the logits does as much as the vector at no larger cost: it"
                f" moves the answer as far with a KL of {self.matched_kl.text()} nats on sentences"
                f" about something else, the vector with {self._at_once(self.kl)}."
            ),
        )

    def _guidance_text(self) -> str:
        if self.guidance is None:
            return ""
        once = self.guidance.labels["multiplier"].index("1")
        cost = "" if self.guidance_kl is None else f", at {self.guidance_kl.at(once).text()} nats"
        text = (
            " Shifting the logits by the classes' mean difference instead moves it by "
            f"{self.guidance.at(once).text()} logits{cost}"
        )
        if self.matched_kl is None or self.change is None:
            return f"{text}."
        part = float(self.change.value / self.guidance.value[once])
        return (
            f"{text}; {part:.3g} times that shift moves it as far as the vector, at"
            f" {self.matched_kl.text()} nats."
        )

    @property
    def _once(self) -> tuple[int, int]:
        """Where the verdict's vector and strength stand in a sweep."""
        assert self.wrong_way is not None
        labels = self.wrong_way.labels
        return labels["vector"].index(self.hook_point), labels["multiplier"].index("1")

    def _at_once(self, swept: Estimate) -> str:
        return swept.at(*self._once).text()

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown = {
            "Accuracy by layer": plots.spectrum(
                self.accuracy, title="Accuracy of the nearest class mean, words left out"
            )
        }
        if self.by_strength is not None and self.change is not None:
            x = [float(m) for m in self.by_strength.labels["multiplier"]]
            shown["Change by strength"] = plots.curve(
                self.by_strength,
                x,
                title="Rise of the positive answer, logits",
                x_title="multiplier",
            )
            shown["Change over its null"] = plots.strip(
                self.change, title="Rise of the positive answer, logits"
            )
        if self.kl is not None:
            x = [float(m) for m in self.kl.labels["multiplier"]]
            shown["Cost"] = plots.curve(
                self.kl, x, title="KL on sentences about something else", x_title="multiplier"
            )
        return shown


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
    """Make a steering vector of each layer from half of the words and add it in sentences about the
    other half.

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
    """
    asked = word_prompts(model, concept)
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))
    read = activations(
        model, asked.prompts.tokens, names, mask=asked.prompts.mask, position=asked.at_word
    )
    accuracy = read_layers(
        read,
        asked.word,
        asked.label,
        reader="nearest_mean",
        unit_name="words",
        draws=draws,
        seed=seed,
    )
    best, half = names[int(accuracy.value.argmax())], asked.halves(seed)
    made, held_out = (_Pairs(asked, chosen) for chosen in (half, ~half))
    vectors = {name: mean_difference(made.contrast(name, read)) for name in names}
    steered = _Steered(*[None] * len(_Steered._fields))
    if p_of_largest(accuracy) <= 0.05:
        strengths = tuple(dict.fromkeys((*multipliers, 1.0)))
        steered = _steered(
            model, asked, half, vectors, read[best], best, strengths, edit_draws, seed
        )
    return SteeringEffect(
        concept=concept,
        classes=asked.names,
        words=asked.words,
        accuracy=accuracy,
        separation=along(
            [held_out.separation(name, read, vectors[name], seed) for name in names],
            "hook point",
            names,
        ),
        agreement=along([made.agreement(name, read, seed) for name in names], "hook point", names),
        **steered._asdict(),
        notes=tuple(f"{d.word!r} left out: {d.reason}" for d in asked.dropped[:5]),
        prompts_hash=asked.prompts.hash,
    )


class _Pairs:
    """Pairs of a positive and a negative word in one sentence; the same two words make a pair in
    every sentence."""

    def __init__(self, asked: WordPrompts, chosen: Bool[Tensor, " batch"]) -> None:
        self.rows = asked.pairs(chosen)
        self.words = (asked.word[self.rows[0]], asked.word[self.rows[1]])

    def contrast(self, name: str, read: dict[str, Tensor]) -> Contrast:
        return Contrast(name, read[name][self.rows[0]], read[name][self.rows[1]])

    def separation(self, name: str, read: dict[str, Tensor], vector: Tensor, seed: int) -> Estimate:
        return separation(
            self.contrast(name, read), vector, units=self.words, unit_name="words", seed=seed
        )

    def agreement(self, name: str, read: dict[str, Tensor], seed: int) -> Estimate:
        return pair_agreement(
            self.contrast(name, read), unit=self.words[0], unit_name="pairs of words", seed=seed
        )


class _Steered(NamedTuple):
    change: Estimate | None
    by_strength: Estimate | None
    wrong_way: Estimate | None
    kl: Estimate | None
    guidance: Estimate | None
    guidance_kl: Estimate | None
    matched_kl: Estimate | None


def _steered(
    model: HookedModel,
    asked: WordPrompts,
    half: Bool[Tensor, " batch"],
    vectors: dict[str, Float[Tensor, " d"]],
    x: Float[Tensor, "batch d"],
    best: str,
    multipliers: tuple[float, ...],
    draws: int,
    seed: int,
) -> _Steered:
    """Add the vectors in sentences about the other half of the words."""
    others = asked.select(~half)
    prompts = left_padded(others.prompts, unit=others.word, unit_name="words")
    metric = logit_difference(*others.positive_minus_negative)
    ready = [
        SteeringVector.of(name, vector.float(), method="mean difference")
        for name, vector in vectors.items()
    ]
    quiet = None if asked.neutral is None else left_padded(asked.neutral)
    guidance = logit_contrast(
        model, *(left_padded(asked.prompts.select(rows)) for rows in asked.pairs(half))
    )
    grid = VectorGrid(ready, multipliers)
    swept = steering_sweep(
        model, grid, prompts, quiet or prompts, metric, guidance=guidance, seed=seed
    )
    at = ready[list(vectors).index(best)]
    before = measure(model, prompts.tokens, metric, mask=prompts.mask)
    shuffled = shuffled_differences(
        x[half], asked.word[half], asked.label[half], draws=draws, seed=seed + 1
    )
    null = [
        _added(model, best, one * (at.norm / one.norm()), prompts, metric, before).mean()
        for one in shuffled
    ]
    change = bootstrap(
        _added(model, best, at.vector, prompts, metric, before),
        unit=others.word, unit_name="words", measured="logits", seed=seed,
        control=torch.stack(null), control_name="vectors of shuffled labels, as long",
    )  # fmt: skip
    return _Steered(
        change,
        swept.effect,
        swept.wrong_way,
        None if quiet is None else swept.kl,
        swept.guidance_effect,
        None if quiet is None else swept.guidance_kl,
        (
            None
            if quiet is None
            else _matched(model, swept, guidance, float(change.value), quiet, seed)
        ),
    )


def _matched(
    model: HookedModel,
    swept: SteeringSweep,
    guidance: Tensor,
    change: float,
    quiet: Prompts,
    seed: int,
) -> Estimate | None:
    """KL under the part of the shift that moves the answer by `change`: a difference of logits
    grows with the part."""
    assert swept.guidance_effect is not None
    whole = float(
        swept.guidance_effect.value[swept.guidance_effect.labels["multiplier"].index("1")]
    )
    if not change * whole > 0:
        return None
    return guidance_kl(model, quiet, guidance, [change / whole], seed=seed).at(0)


def _added(
    model: HookedModel,
    name: str,
    vector: Float[Tensor, " d"],
    prompts: Prompts,
    metric: Metric,
    before: Tensor,
) -> Float[Tensor, " batch"]:
    """Change of the metric with the vector added once to every token."""
    edit = SteeringVector.of(name, vector.float()).add(1.0)
    return measure(model, prompts.tokens, metric, {name: edit}, mask=prompts.mask) - before
