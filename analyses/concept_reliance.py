"""Can a concept be read off linearly, layer by layer, and does the model do worse when it cannot?

At tokens that carry a class (the sentiment of an adjective, a part of speech, the label of a text)
a linear reader is fitted in front of each block. *Represented*: words it has never seen are
classified better than with labels shuffled over words, the search over layers repeated. *Used*:
LEACE erases the classes at these tokens, and the model's loss rises more than when the same number
of directions, moved as far, is erased for shuffled labels.

What would fool it: words are units, not tokens: any labels of forty words are separable in a wide
stream. Words of a class stand in like contexts, which any network mixes into them: in running text,
behind the first block, the random-weight twin is the control to look at. A reader may lean on
directions that only cancel noise (suppressors), so the direction it reads along (filter) and the
one the classes differ along (pattern) stand beside each other with their cosine. Erasing anything
costs something, hence the matched erasure of shuffled labels. A concept already moved to another
token is not erased here.

Source: Belrose et al. 2023, LEACE, arXiv:2306.03819; Hewitt & Liang 2019, arXiv:1909.03368 (control
tasks); Wilming et al. 2023, arXiv:2306.01464 (suppressors). The nulls are this toolkit's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses._concepts import (
    ConceptFinding,
    concept_twins,
    left_out,
    planted_concepts,
    stream_points,
)
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.classes import read_classes, unit_means
from mechinterp_toolkit.hooks.erase import (
    LeaceEraser,
    LeaceFitter,
    optimal_linear_shrinkage,
    random_eraser,
)
from mechinterp_toolkit.hooks.where import only_at
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.nulls import balanced_relabellings
from mechinterp_toolkit.prompts.concepts import labelled_tokens, reads_text
from mechinterp_toolkit.prompts.labelled import LabelledTokens
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.stats import bootstrap, judge_effect

ERASURES = ("LEACE", "orthogonal", "random directions")

SMALLEST_RISE = 0.05
"""Nats: a rise of the loss below this is of no interest, however sure it is."""

_DIGIT = 0.001
"""Nats that rises of the loss are written in: a fiftieth of the smallest of interest. Rounding
makes rises of 1e-8."""


@dataclass(frozen=True)
class ConceptReliance(ConceptFinding):
    """Result of `concept_reliance`."""

    classes: tuple[str, ...]
    """Names of the classes."""

    unit_name: str
    """What is left out and shuffled: "words" or "texts"."""

    units: tuple[int, ...]
    """How many of them each class has."""

    erased: Estimate
    """The same for one half of the words when LEACE fitted to the other half has erased the
    classes, [hook point]."""

    cross_covariance_left: Float[Tensor, " hook_point"]
    """Largest part of a class' correlations left on the tokens the eraser was fitted to, in [0, 1]:
    0 is guarded."""

    cosine: Float[Tensor, " hook_point"]
    """Cosine of the direction a probe reads along and the one the classes differ along, mean over
    classes, in [0, 1]."""

    loss: Estimate
    """The model's loss as it is, in nats: of right answers against wrong ones, or per next token.
    """

    right: Estimate
    """Share of right answers (of right next tokens) as it is, in [0, 1]."""

    rise: Estimate | None
    """Rise of the loss when LEACE erases the classes at their tokens, [hook point], in nats;
    control: shuffled labels. None where there was nothing to erase."""

    by_erasure: Estimate | None
    """Rise of the loss under each of `ERASURES`, [hook point, erasure], in nats."""

    @property
    def used(self) -> Verdict:
        """Whether erasing the classes costs more than erasing shuffled labels as far."""
        if self.rise is None:
            return self._not_edited(
                "The concept cannot be read off linearly", "so nothing was erased"
            )
        at = self.rise.label("hook point", int(self.rise.value.argmax()))
        erased = f"Erasing it at {at} raises the loss by {_about(self.effect)} nats"
        control = f"erasing shuffled labels of {self.unit_name} as far"
        return judge_effect(self.effect, erased, control, SMALLEST_RISE)

    @property
    def effect(self) -> Estimate:
        """The largest rise over hook points, or the accuracy where nothing was erased."""
        if self.rise is None:
            return self.best_accuracy
        return self.rise.at(int(self.rise.value.argmax()), largest=True)

    def answer(self) -> str:
        return _answer(self)

    def causal_check(self) -> str:
        return _causal_check(self)

    @property
    def caveats(self) -> tuple[str, ...]:
        return (*_caveats(self), *self.notes)


@analysis(
    question="Is a concept linearly represented, and does the model rely on it?",
    paper="Belrose et al. 2023, arXiv:2306.03819",
    applies=reads_text,
    planted=planted_concepts(),
    twins=concept_twins(),
    core=read_classes,
)
def concept_reliance(
    model: HookedModel,
    *,
    concept: str = "sentiment",
    draws: int = 999,
    edit_draws: int = 39,
    seed: int = 0,
) -> ConceptReliance:
    """Read a concept off each layer, erase it there, and see what the model's loss does.

    Args:
        model: a transformer with a tokenizer.
        concept: a concept of `concepts.WORD_CONCEPTS`; a CoNLL-U file or folder (part of speech);
            or a corpus with columns "text" and "label": a file, a folder or a dataset's name.
        draws: shuffles of the labels behind the accuracy's null.
        edit_draws: shuffles of the labels whose erasure is the null of the loss.
        seed: of everything drawn.

    Raises:
        NotApplicable: too few words of the concept are tokens of this model.
        ToolkitError: the concept is not known, or has fewer than two classes with enough words.

    >>> finding = concept_reliance("toy/sentiment", draws=19, edit_draws=1)
    >>> finding.represented.outcome, finding.units
    ('found', (24, 24))
    """
    text, names = labelled_tokens(model, concept), stream_points(model)
    streams = activations(model, text.tokens, names, mask=text.mask)
    tokens = (text.label[text.labelled], text.unit[text.labelled], text.unit_name)
    sites = [_Site(name, streams[name][text.labelled].double(), *tokens) for name in names]
    accuracy = along([site.accuracy(draws, seed) for site in sites], "hook point", names)
    left = [site.fitter.report.cross_covariance_left for site in sites]
    plain, estimate = _losses(model, text, {}), _interval(text, seed)
    risen = _Rises()
    if bool((accuracy.p() <= 0.05).any()):
        risen = _rises(model, text, sites, edit_draws, seed)
    return ConceptReliance(
        concept=concept,
        accuracy=accuracy,
        notes=left_out(text.dropped),
        classes=text.names,
        unit_name=text.unit_name,
        units=tuple(sites[0].means[1].bincount(minlength=len(text.names)).tolist()),
        erased=along([site.accuracy_erased(seed) for site in sites], "hook point", names),
        cross_covariance_left=torch.tensor(left, dtype=torch.float64),
        cosine=torch.stack([site.filter_and_pattern() for site in sites]),
        loss=estimate(plain.loss, measured="nats"),
        right=estimate(plain.right, measured="fraction in [0, 1]"),
        rise=risen.rise,
        by_erasure=risen.by_erasure,
        prompts_hash=text.hash,
    )


_BATCH = 32

_FEWEST = 3
"""Units a class needs to be read: one is left out, two make a mean."""


@dataclass(frozen=True, eq=False)
class _Site:
    """The labelled tokens at one hook point."""

    hook_point: str
    """Where they were read."""

    x: Float[Tensor, "token d"]
    """Their activations."""

    label: Int[Tensor, " token"]
    """Their classes."""

    unit: Int[Tensor, " token"]
    """Which word or text each belongs to."""

    unit_name: str
    """What a unit is, in the plural."""

    @functools.cached_property
    def fitter(self) -> LeaceFitter:
        """LEACE of the classes.

        The covariance is shrunk, as words are few: still exact on these tokens, and less beside the
        point on others.
        """
        return LeaceFitter.fit(self.x, self.label, shrinkage=True)

    @functools.cached_property
    def means(self) -> tuple[Float[Tensor, "unit d"], Int[Tensor, " unit"]]:
        """Mean activation and class of each unit."""
        return unit_means(self.x, self.unit, self.label)

    def at(self, tokens: Bool[Tensor, " token"], eraser: LeaceEraser | None = None) -> _Site:
        """Return the site of some tokens alone, with a concept erased."""
        x = self.x[tokens] if eraser is None else eraser(self.x[tokens])
        return _Site(self.hook_point, x, self.label[tokens], self.unit[tokens], self.unit_name)

    def accuracy(self, draws: int, seed: int) -> Estimate:
        """Return how well the classes of left-out units are read.

        Classes of too few units are left out.
        """
        means, label = self.means
        enough = label.bincount()[label] >= _FEWEST
        if len(label[enough].unique()) < 2:
            raise ToolkitError(
                f"fewer than two classes have {_FEWEST} words or texts of their own; give more"
                " text."
            )
        named: dict[str, Any] = {"unit_name": self.unit_name, "draws": draws, "seed": seed}
        return read_classes(means[enough], label[enough], **named).accuracy

    def accuracy_erased(self, seed: int) -> Estimate:
        """Return the same of half of the units after the erasure fitted to the other half."""
        units, generator = self.unit.unique(), torch.Generator().manual_seed(seed)
        chosen = units[torch.randperm(len(units), generator=generator)[: len(units) // 2]]
        half = torch.isin(self.unit, chosen)
        return self.at(~half, self.at(half).fitter.eraser).accuracy(99, seed)

    def filter_and_pattern(self) -> Float[Tensor, ""]:
        """Return the mean |cosine| of S^-1 C, what a probe reads, and C, what classes differ by.

        S is the covariance, shrunk for few words, and C the cross-covariance with the classes.
        """
        pattern = self.fitter.sigma_xz
        covariance = optimal_linear_shrinkage(self.fitter.sigma_xx, len(self.unit.unique()))
        probe = torch.linalg.lstsq(covariance, pattern, driver="gelsd").solution
        varies = pattern.norm(dim=0) > 0
        cosine = torch.nn.functional.cosine_similarity(probe[:, varies], pattern[:, varies], dim=0)
        return cosine.abs().mean()

    def shuffled_eraser(self, seed: int) -> LeaceEraser:
        """Return LEACE of labels shuffled over units, moving the tokens as far as the true one.

        Classes are spread evenly over the new labels.
        """
        which = self.unit.unique(return_inverse=True)[1]
        label = balanced_relabellings(self.means[1], draws=1, seed=seed)[0][which]
        fitter = LeaceFitter.fit(self.x, label, shrinkage=True)
        further = self.fitter.report.distance / fitter.report.distance
        return fitter.eraser.scaled(further**0.5)  # distances grow with the square of the strength


class _Losses(NamedTuple):
    """How the model does on each prompt."""

    loss: Float[Tensor, " batch"]
    right: Float[Tensor, " batch"]


class _Rises(NamedTuple):
    """Rises of the loss: the fields of `ConceptReliance` with the same names."""

    rise: Estimate | None = None
    by_erasure: Estimate | None = None


def _losses(
    model: HookedModel, text: LabelledTokens, erasers: Mapping[str, LeaceEraser]
) -> _Losses:
    """Return loss and rightness, the erasers acting on labelled tokens alone."""
    parts = []
    for start in range(0, len(text.tokens), _BATCH):
        part = slice(start, start + _BATCH)
        edits = {name: only_at(text.labelled[part], eraser) for name, eraser in erasers.items()}
        with applied(model, edits, mask=text.mask[part]):
            logits = model.logits(text.tokens[part], text.mask[part])
        parts.append((text.loss(logits, part), text.right(logits, part)))
    return _Losses(*map(torch.cat, zip(*parts, strict=True)))


def _interval(text: LabelledTokens, seed: int) -> Callable[..., Estimate]:
    """Return `bootstrap` over words where a prompt is about one, else over texts."""
    if text.answers is None:
        return functools.partial(bootstrap, unit_name="texts", seed=seed)
    return functools.partial(bootstrap, unit=text.unit.amax(1), unit_name="words", seed=seed)


def _rises(
    model: HookedModel, text: LabelledTokens, sites: Sequence[_Site], draws: int, seed: int
) -> _Rises:
    """Return the rise of the loss with each of `ERASURES` at each site.

    The control are erasures of shuffled labels.
    """
    plain, estimate = _losses(model, text, {}).loss, _interval(text, seed)
    by_leace, by_erasure = [], []
    for number, site in enumerate(sites):

        def rise(eraser: LeaceEraser, hook_point: str = site.hook_point) -> Tensor:
            return _losses(model, text, {hook_point: eraser}).loss - plain

        leace = site.fitter.eraser
        orthogonal = LeaceFitter.fit(site.x, site.label, method="orth").eraser
        random = random_eraser(
            site.x.shape[1], leace.rank, mean=site.fitter.mean_x, seed=seed + number
        )
        risen = torch.stack([rise(eraser) for eraser in (leace, orthogonal, random)], 1)
        shuffled = [site.shuffled_eraser(seed + number + 1000 * (i + 1)) for i in range(draws)]
        by_leace.append(
            estimate(
                risen[:, 0],
                measured="nats",
                control=torch.stack([rise(eraser).mean() for eraser in shuffled]),
                control_name=f"labels shuffled over {site.unit_name}, moved as far",
            )
        )
        by_erasure.append(
            estimate(risen, measured="nats", axes=("erasure",), labels={"erasure": ERASURES})
        )
    names = [site.hook_point for site in sites]
    return _Rises(along(by_leace, "hook point", names), along(by_erasure, "hook point", names))


def _answer(finding: ConceptReliance) -> str:
    best, units, accuracy = finding.best, finding.unit_name, finding.best_accuracy
    opening = finding.opening(
        f"Whether {finding.concept} is represented linearly is undecided.",
        f"{finding.subject} is not represented linearly.",
    )
    return (
        f"{opening}Of {sum(finding.units)} {units} in {len(finding.classes)} classes, left-out ones"
        f" are classified with a balanced accuracy of {accuracy.text()} at {finding.hook_point};"
        f" control: {accuracy.control_text()}. With an eraser fitted to one half of the {units},"
        f" the other half is classified with {finding.erased.at(best).text()}. What a probe reads"
        f" along and what the classes differ along have a cosine of {finding.cosine[best]:.2f}."
    )


def _causal_check(finding: ConceptReliance) -> str:
    text = (
        f"As it is, the model is right in {finding.right.text()} and its loss is"
        f" {finding.loss.text()} nats."
    )
    if finding.rise is None or finding.by_erasure is None:
        return f"{text} {finding.used.reason}"
    at = int(finding.rise.value.argmax())
    kinds = [f"{name} {_about(finding.by_erasure.at(at, i))}" for i, name in enumerate(ERASURES)]
    return (
        f"{text} With the classes erased at their tokens in front of block {at}, the loss rises by"
        f" {_about(finding.effect)} nats; control: {_about_control(finding.effect)}. By kind of"
        f" erasure: {'; '.join(kinds)}."
    )


def _caveats(finding: ConceptReliance) -> list[str]:
    units, caveats = finding.unit_name, []
    if min(finding.units) < 30:
        caveats.append(
            f"With {min(finding.units)} {units} in a class, accuracies below about .7 are hard to"
            " tell from chance."
        )
    if finding.cosine[finding.best] < 0.5:
        caveats.append(
            "The probe's direction is far from the classes' difference: it leans on suppressors or"
            " on noise."
        )
    erased = finding.erased.at(finding.best)
    if finding.represented.found and float(erased.p()) <= 0.05:
        caveats.append(
            f"Erasure of {units} that the eraser was not fitted to leaves an accuracy of"
            f" {erased.text()}; control: {erased.control_text()}. What is said of erasure holds for"
            f" the {units} it was fitted to."
        )
    return caveats


def _about(estimate: Estimate, digit: float = _DIGIT) -> str:
    """Return `Estimate.text()` in whole multiples of `digit`; "about 0" where nothing is left.

    >>> value, low, high = torch.tensor([3e-8, -2e-6, 2e-6])
    >>> _about(Estimate(value, low, high, 9, "nats", "by hand"), 0.001)
    'about 0'
    """
    kept: dict[str, Any] = {
        end: _whole(getattr(estimate, end), digit) for end in ("value", "low", "high")
    }
    return replace(estimate, **kept).text() if any(map(bool, kept.values())) else "about 0"


def _about_control(estimate: Estimate, digit: float = _DIGIT) -> str:
    """Return `Estimate.control_text()` in whole multiples of `digit`; "about 0 (its name)"."""
    assert estimate.control is not None
    draws = estimate.control.double().flatten()
    mean, most = _whole(draws.mean(), digit), _whole(draws.quantile(0.95), digit)
    numbers = f"{mean:.3g}, 95 % below {most:.3g}" if mean or most else "about 0"
    return f"{numbers} ({estimate.control_name})"


def _whole(number: Tensor, digit: float) -> Tensor:
    return (number / digit).round() * digit + 0.0  # plus 0 makes 0 of -0
