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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses._concepts import (
    ConceptFinding,
    about,
    about_control,
    concept_twins,
    p_of_largest,
    planted_concepts,
)
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.classes import read_classes, unit_means
from mechinterp_toolkit.hooks.erase import (
    LeaceEraser,
    LeaceFitter,
    optimal_linear_shrinkage,
    quality,
    random_eraser,
)
from mechinterp_toolkit.hooks.where import only_at
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts.concepts import LabelledTokens, labelled_tokens, reads_text
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.stats import balanced_relabellings, bootstrap, judge_effect, p_value

ERASURES = ("LEACE", "orthogonal", "random directions")

SMALLEST_RISE = 0.05
"""Nats: a rise of the loss below this is none of interest, however surely it is one."""

_DIGIT = 0.001
"""Nats that rises of the loss are written in: a fiftieth of the smallest of interest. Rounding
makes rises of 1e-8."""

BATCH = 32

_FEWEST = 3
"""Units a class needs to be read: one is left out, two make a mean."""


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
        if self.rise is None:
            return self._not_edited(
                "The concept cannot be read off linearly", "so nothing was erased"
            )
        at = self.rise.label("hook point", int(self.rise.value.argmax()))
        said = f"Erasing it at {at} raises the loss by {about(self.effect, _DIGIT)} nats"
        return judge_effect(
            self.effect, said, f"erasing shuffled labels of {self.unit_name} as far", SMALLEST_RISE
        )

    @property
    def effect(self) -> Estimate:
        if self.rise is None:
            return self.best_accuracy
        return self.rise.at(int(self.rise.value.argmax()), largest=True)

    def answer(self) -> str:
        best = int(self.accuracy.value.argmax())
        text = (
            f"Of {sum(self.units)} {self.unit_name} in {len(self.classes)} classes, left-out ones"
            f" are classified with a balanced accuracy of {self.best_accuracy.text()} at"
            f" {self.hook_point}; control: {self.best_accuracy.control_text()}. With an eraser"
            f" fitted to one half of the {self.unit_name}, the other half is classified with"
            f" {self.erased.at(best).text()}. What a probe reads along and what the classes differ"
            f" along have a cosine of {self.cosine[best]:.2f}."
        )
        if self.short:
            return f"Whether {self.concept} is represented linearly is undecided. {text}"
        return text if self.p <= 0.05 else f"{self.subject} is not represented linearly. {text}"

    def causal_check(self) -> str:
        asked = (
            f"As it is, the model is right in {self.right.text()} and its loss is"
            f" {self.loss.text()} nats."
        )
        if self.rise is None or self.by_erasure is None:
            why = self._not_edited("No layer holds the concept linearly", "so nothing was erased")
            return f"{asked} {why.reason}"
        at = int(self.rise.value.argmax())
        rises = "; ".join(
            f"{name} {about(self.by_erasure.at(at, i), _DIGIT)}" for i, name in enumerate(ERASURES)
        )
        return (
            f"{asked} With the classes erased at their tokens in front of block {at}, the loss"
            f" rises by {about(self.effect, _DIGIT)} nats; control:"
            f" {about_control(self.effect, _DIGIT)}. By kind of erasure: {rises}."
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        few = (
            (
                f"With {min(self.units)} {self.unit_name} in a class, accuracies below about .7 are"
                " hard to tell from chance."
            ),
        )
        low = self.cosine[int(self.accuracy.value.argmax())] < 0.5
        lean = (
            (
                "The probe's direction is far from the classes' difference: it leans on suppressors"
                " or on noise."
            ),
        )
        return (
            *(few if min(self.units) < 30 else ()),
            *(lean if low else ()),
            *self._not_erased(),
            *self.notes,
        )

    def _not_erased(self) -> tuple[str, ...]:
        """Whether the classes of units that the eraser was not fitted to can still be told from
        shuffled labels."""
        erased = self.erased.at(int(self.accuracy.value.argmax()))
        assert erased.control is not None
        if not self.represented.found or float(p_value(erased.value, erased.control)) > 0.05:
            return ()
        return (
            (
                f"Erasure of {self.unit_name} that the eraser was not fitted to leaves an accuracy"
                f" of {erased.text()}; control: {erased.control_text()}. What is said of erasure"
                f" holds for the {self.unit_name} it was fitted to."
            ),
        )

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown = {
            "Accuracy by layer": plots.spectrum(
                self.accuracy, title="Balanced accuracy on words left out"
            )
        }
        if self.rise is not None:
            shown["Loss without the concept"] = plots.spectrum(
                self.rise, title="Rise of the loss under erasure, nats"
            )
        shown["The headline number over its null"] = plots.strip(
            self.effect, title="Largest over layers, and its null"
        )
        return shown


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
    """
    text = labelled_tokens(model, concept)
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))
    read = activations(model, text.tokens, names, mask=text.mask)
    labelled = _Labelled(text.label[text.labelled], text.unit[text.labelled], text.unit_name)
    sites = [_Site(name, read[name][text.labelled].double(), labelled) for name in names]
    plain, right = _losses(model, text, {})
    accuracy = along([_read(site.x, labelled, draws, seed) for site in sites], "hook point", names)
    common: dict[str, Any] = {"unit": _row_units(text), "unit_name": text.unit_name, "seed": seed}
    rise = by_erasure = None
    if p_of_largest(accuracy) <= 0.05:
        rise, by_erasure = _rises(model, text, sites, plain, edit_draws, common)
    return ConceptReliance(
        concept=concept,
        classes=text.names,
        unit_name=text.unit_name,
        units=tuple(_units_of_classes(labelled, len(text.names))),
        accuracy=accuracy,
        erased=along([_read_after_erasure(site, seed) for site in sites], "hook point", names),
        cross_covariance_left=torch.tensor(
            [site.fitter.report.cross_covariance_left for site in sites]
        ).double(),
        cosine=torch.stack([_filter_and_pattern(site) for site in sites]),
        loss=bootstrap(plain, measured="nats", **common),
        right=bootstrap(right, measured="fraction in [0, 1]", **common),
        rise=rise,
        by_erasure=by_erasure,
        notes=tuple(f"{d.word!r} left out: {d.reason}" for d in text.dropped[:5]),
        prompts_hash=text.hash,
    )


class _Labelled(NamedTuple):
    """Class and unit of each labelled token."""

    label: Int[Tensor, " token"]
    unit: Int[Tensor, " token"]
    unit_name: str


class _Site:
    """The labelled tokens' activations at one hook point, and the statistics of their classes."""

    def __init__(self, name: str, x: Float[Tensor, "token d"], labelled: _Labelled) -> None:
        self.name, self.x, self.labelled = name, x, labelled
        self.fitter = _fitted(x, labelled.label)


def _fitted(x: Float[Tensor, "token d"], label: Int[Tensor, " token"]) -> LeaceFitter:
    """The covariance is shrunk, as words are few: still exact on these tokens, and less beside the
    point on others."""
    return LeaceFitter.fit(x, label, shrinkage=True)


def _read(x: Tensor, labelled: _Labelled, draws: int, seed: int) -> Estimate:
    """Read the classes of whole units; classes of too few units are left out."""
    means, label = unit_means(x, labelled.unit, labelled.label)
    enough = label.bincount()[label] >= _FEWEST
    if len(label[enough].unique()) < 2:
        raise ToolkitError(
            f"fewer than two classes have {_FEWEST} words or texts of their own; give more text."
        )
    return read_classes(
        means[enough], label[enough], unit_name=labelled.unit_name, draws=draws, seed=seed
    ).accuracy


def _units_of_classes(labelled: _Labelled, n_classes: int) -> list[int]:
    _, label = unit_means(labelled.label[:, None].double(), labelled.unit, labelled.label)
    return label.bincount(minlength=n_classes).tolist()


def _read_after_erasure(site: _Site, seed: int) -> Estimate:
    """Read half of the words after the erasure fitted to the other half, both ways round being
    alike."""
    units = site.labelled.unit.unique()
    generator = torch.Generator().manual_seed(seed)
    half = torch.isin(
        site.labelled.unit,
        units[torch.randperm(len(units), generator=generator)[: len(units) // 2]],
    )
    eraser = _fitted(site.x[half], site.labelled.label[half]).eraser
    held_out = _Labelled(
        site.labelled.label[~half], site.labelled.unit[~half], site.labelled.unit_name
    )
    return _read(eraser(site.x[~half]), held_out, 99, seed)


def _filter_and_pattern(site: _Site) -> Float[Tensor, ""]:
    """Mean |cosine| of S^-1 C (what a linear probe reads) and C (what the classes differ by), S
    shrunk for few words."""
    cross, units = site.fitter.sigma_xz, len(site.labelled.unit.unique())
    covariance = optimal_linear_shrinkage(site.fitter.sigma_xx, units)
    probe = torch.linalg.lstsq(covariance, cross, driver="gelsd").solution
    there = cross.norm(dim=0) > 0
    return (
        torch.nn.functional.cosine_similarity(probe[:, there], cross[:, there], dim=0).abs().mean()
    )


def _rises(
    model: HookedModel,
    text: LabelledTokens,
    sites: Sequence[_Site],
    plain: Tensor,
    draws: int,
    common: dict[str, Any],
) -> tuple[Estimate, Estimate]:
    """Loss with LEACE minus loss as it is at each site, over erasures of shuffled labels; and the
    same for `ERASURES`."""
    by_leace, by_erasure = [], []
    for i, site in enumerate(sites):

        def rise(eraser: LeaceEraser, name: str = site.name) -> Float[Tensor, " batch"]:
            return _losses(model, text, {name: eraser})[0] - plain

        seed, leace = common["seed"] + i, site.fitter.eraser
        orthogonal = LeaceFitter.fit(site.x, site.labelled.label, method="orth").eraser
        random = random_eraser(site.x.shape[1], leace.rank, mean=site.fitter.mean_x, seed=seed)
        risen = torch.stack([rise(one) for one in (leace, orthogonal, random)], 1)
        null = torch.stack(
            [rise(_shuffled(site, seed + 1000 * (draw + 1))).mean() for draw in range(draws)]
        )
        named: dict[str, Any] = {
            "control_name": f"labels shuffled over {text.unit_name}, moved as far"
        }
        by_leace.append(bootstrap(risen[:, 0], measured="nats", control=null, **named, **common))
        axes: dict[str, Any] = {"axes": ("erasure",), "labels": {"erasure": ERASURES}}
        by_erasure.append(bootstrap(risen, measured="nats", **axes, **common))
    names = [site.name for site in sites]
    return along(by_leace, "hook point", names), along(by_erasure, "hook point", names)


def _shuffled(site: _Site, seed: int) -> LeaceEraser:
    """LEACE of labels shuffled over units, classes spread evenly, scaled to move the tokens as far
    as the true one."""
    which = site.labelled.unit.unique(return_inverse=True)[1]
    _, label = unit_means(site.x[:, :1], site.labelled.unit, site.labelled.label)
    fitter = _fitted(site.x, balanced_relabellings(label, draws=1, seed=seed)[0][which])
    return fitter.eraser.scaled(
        (site.fitter.report.distance / quality(fitter.eraser, fitter).distance) ** 0.5
    )


def _losses(
    model: HookedModel, text: LabelledTokens, erasers: Mapping[str, LeaceEraser]
) -> tuple[Tensor, Tensor]:
    """Loss and rightness of each prompt, the erasers acting on labelled tokens alone."""
    losses, right = [], []
    for start in range(0, len(text.tokens), BATCH):
        part = slice(start, start + BATCH)
        edits = {name: only_at(text.labelled[part], eraser) for name, eraser in erasers.items()}
        with applied(model, edits, mask=text.mask[part]):
            logits = model.logits(text.tokens[part], text.mask[part])
        losses.append(text.loss(logits, part))
        right.append(text.right(logits, part))
    return torch.cat(losses), torch.cat(right)


def _row_units(text: LabelledTokens) -> Int[Tensor, " batch"]:
    """What resampling keeps together: the word of a prompt about one word, else the text."""
    if text.answers is None:
        return torch.arange(len(text.tokens))
    return text.unit.amax(1)
