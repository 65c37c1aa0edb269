"""Are numbers represented with periods, does a helix describe them, and does the model compute with
it?

Single-token numbers are read in front of each block. *Represented*: at some layer the share of what
a cubic in n and the token's own log-probability leave lies at a period more than for permuted
numbers, the search over periods and layers repeated, and n mod that period can be read off for
numbers left out. *Used*: in prompts the model answers ("a + b =", or the number that comes next),
the number's helix is set to another number's, one the helix was not fitted to; the answer moves to
that number's more than when the points are permuted among the numbers. Where a model adds, the
Clock is read besides: helices of a, b and a + b at the last token, head and MLP roles, neurons.

What would fool it: any smooth curve has power at long periods, and spectra have peaks nothing can
use; sin(2 pi n / 2) is zero on integers, so four periods and a line have rank 8; numbers of several
tokens share digits, so they are left out; principal components of the same rank contain the helix
and are a ratio, not a null; and circles at the input say nothing of how a sum is computed: the
periods of a + b at the last token do.

Source: Kantamneni and Tegmark 2025, arXiv:2502.00873; Zhou et al. 2024, arXiv:2406.03445; Fu et al.
2026, arXiv:2604.20817. The order of the tests and their nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.number_helix.clock import FITS, Clock, read_clock
from mechinterp_toolkit.analyses.number_helix.tasks import (
    NumberTask,
    addition_task,
    number_tokens,
    succession_task,
)
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry.helix import (
    MODELS,
    Period,
    PeriodScan,
    fit_helix,
    helix_basis,
    period_scan,
    period_text,
)
from mechinterp_toolkit.geometry.regression import (
    class_means,
    k_fold,
    polynomials,
    projected,
    span,
    without,
)
from mechinterp_toolkit.intervention import Edit, Site, applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import OrdinalClass, hash_tokens
from mechinterp_toolkit.prompts.concepts import reads_text
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, Verdict, along
from mechinterp_toolkit.stats import bootstrap, judge_effect, permutations, smallest_p

EDITS = ("helix", "largest circle", "polynomial", "principal components", "whole stream")

CAN = 0.5
"""Accuracy among numbers from which on a model is taken to do a task."""

SMALLEST_SHARE = 0.05
"""Share of the whole stream's effect below which setting the helix is of no interest."""

NEURON_SHARE = 0.8
"""Share of the neurons' direct effect for which the fewest are counted."""

KEPT_DRAWS = 199
"""Draws of a null that a result keeps."""


@dataclass(frozen=True)
class NumberHelix(Finding):
    """Result of `number_helix`."""

    n_numbers: int
    """Numbers that are one token each."""

    periods: tuple[Period, ...]
    """Periods of the helix."""

    rank: int
    """Columns of the helix that are not zero or dependent, the constant left out."""

    found_periods: tuple[tuple[Period, ...], ...]
    """Hook point by hook point, the periods found, largest share first."""

    draws: int
    """Permutations behind the p-values."""

    layer_p: Float[Tensor, " hook_point"]
    """p-value of the best period at each hook point, corrected for all periods there, but not for
    hook points."""

    share: Float[Tensor, "hook_point period"]
    """Share of the variance left by the cubic at each period, in [0, 1]."""

    residues: Estimate
    """Accuracy of reading n mod T from numbers left out minus that for permuted numbers, [period],
    at the best hook point."""

    numbers: Int[Tensor, " number"]
    """The numbers."""

    points: Float[Tensor, "number 2"]
    """Their coordinates at the best hook point in the plane of `drawn_period`, in units of the
    activations."""

    drawn_period: float
    """The period whose plane is drawn: the found one of largest share, or else the one of largest
    share."""

    r2: Estimate
    """R2 of `MODELS` on held-out numbers at the best hook point, [model], at most 1; the last one
    is the control."""

    task: str
    """What was asked: "addition", "addition mod p", "succession", or "" where the model does none
    of them."""

    accuracy: Estimate | None
    """Share of the task's prompts with the right answer highest among all numbers; None where
    nothing could be asked."""

    moved: Estimate | None
    """Rise of the new number's answer, centred over the numbers exchanged, when the helix is set,
    in shares of what the whole stream does; control: points permuted among the numbers."""

    curve: Estimate | None
    """The same without control for each of `EDITS` and hook point, [edit, hook point]."""

    new_answers: Float[Tensor, "edit hook_point"] | None
    """Share of edits after which the new number's answer is highest among all numbers, in [0, 1].
    """

    clock: Clock | None
    """How the sum is computed; None where the model does not add."""

    notes: tuple[str, ...]
    """Numbers left out, tasks that could not be asked."""

    @property
    def p(self) -> float:
        """p-value of the best hook point, corrected for all of them."""
        return min(1.0, float(self.layer_p.min()) * len(self.layer_p))

    @property
    def best(self) -> int:
        """Which hook point represents numbers best: smallest p-value, then the first."""
        return int(self.layer_p.argmin())

    @property
    def hook_points(self) -> tuple[str, ...]:
        """The stream in front of each block."""
        return tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(len(self.layer_p)))

    @property
    def represented(self) -> Verdict:
        at, periods = self.hook_points[self.best], self.found_periods[self.best]
        if smallest_p(self.draws) * len(self.layer_p) > 0.05:
            needed = 20 * len(self.layer_p) - 1
            reason = (
                f"{self.draws} draws allow no p-value below .05 over {len(self.layer_p)} layers;"
                f" {needed} are needed."
            )
            return Verdict("undecided", reason, p=self.p)
        if self.p <= 0.05 and periods:
            said = ", ".join(map(period_text, periods[:6]))
            return Verdict(
                "found",
                f"Numbers have periods {said} at {at}, with residues that can be read off.",
                p=self.p,
            )
        return Verdict(
            "not_found",
            "No period exceeds permuted numbers' with residues that can be read off.",
            p=self.p,
        )

    @property
    def used(self) -> Verdict:
        if self.p > 0.05:
            return Verdict("not_applicable", "No period was found, so there is no helix to set.")
        if self.moved is None:
            return Verdict("not_applicable", f"Representation only: {self._cannot()}.")
        said = f"Setting the helix does {self.moved.text()} of what the whole stream does"
        return judge_effect(self.moved, said, "points permuted among the numbers", SMALLEST_SHARE)

    @property
    def effect(self) -> Estimate:
        if self.moved is not None:
            return self.moved
        return self.residues.at(int(self.residues.value.argmax()), largest=True)

    @property
    def locations(self) -> tuple[str, ...]:
        """Hook points with a period, smallest p-value first."""
        order = self.layer_p.argsort(stable=True).tolist()
        return tuple(
            self.hook_points[i] for i in order if float(self.layer_p[i]) * len(self.layer_p) <= 0.05
        )

    def answer(self) -> str:
        residue = int(self.residues.value.argmax())
        period = self.residues.labels["period"][residue]
        best = self.residues.at(residue, largest=True)
        r2 = "; ".join(f"{name} {self.r2.at(i).text()}" for i, name in enumerate(MODELS))
        return (
            f"{self.represented.reason} Of {self.n_numbers} numbers, n mod {period} of those left"
            f" out is read {best.text()} above chance at {self.hook_points[self.best]}"
            f" ({best.control_text()}). R2 on held-out numbers (rank {self.rank}): {r2}."
        )

    def causal_check(self) -> str:
        if self.accuracy is None:
            return "No prompt about numbers could be put to the model, so nothing was edited."
        asked = (
            f"The model answers {self.accuracy.text()} of {self.task or 'these'} prompts right"
            " among all numbers."
        )
        if self.moved is None or self.curve is None or self.new_answers is None:
            return f"{asked} Nothing was edited: {self._cannot()}."
        at = self.best
        shares = "; ".join(f"{name} {self.curve.at(i, at).text()}" for i, name in enumerate(EDITS))
        right = "; ".join(f"{name} {self.new_answers[i, at]:.2f}" for i, name in enumerate(EDITS))
        return (
            f"{asked} At {self.hook_points[at]}, setting the number's helix to that of one it was"
            f" not fitted to moves the answer by {self.moved.text()} of what the whole stream does"
            f" ({self.moved.control_text()}). By what is set: {shares}. New answer highest of all:"
            f" {right}.{self._clock_text()}"
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        loses = self.r2.value[0] < self.r2.value[2]
        return (
            *(
                ("A polynomial of the same rank describes numbers better than the helix.",)
                if loses
                else ()
            ),
            *self.notes,
        )

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown = {
            "Residues that can be read off": plots.spectrum(
                self.residues, title="Accuracy of n mod T above chance"
            ),
            "Descriptions of held-out numbers": plots.spectrum(
                self.r2, title="R2 on held-out numbers"
            ),
        }
        shown[f"Numbers in the plane of period {period_text(self.drawn_period)}"] = plots.plane(
            self.points,
            [str(n) for n in self.numbers.tolist()],
            title=f"Numbers at {self.hook_points[self.best]}",
        )
        if self.curve is not None:
            shown["Setting a number, by layer"] = plots.curve(
                self.curve, title="Share of the whole stream's effect", x_title="layer"
            )
        if self.moved is not None:
            shown["The helix over its null"] = plots.strip(
                self.moved, title="Share of the whole stream's effect"
            )
        if self.clock is not None:
            shown["Heads at the last token"] = plots.heat_map(
                self.clock.heads,
                title="Total effect, logits",
                colours="diverging",
                hover={"direct": self.clock.heads_direct},
            )
            shown["Helices at the last token"] = plots.curve(
                self.clock.fits, title="R2 on held-out pairs"
            )
        return shown

    def _cannot(self) -> str:
        if self.accuracy is None:
            return "no prompt about numbers could be put to the model"
        if not self.task:
            return f"the model answers only {self.accuracy.text()} of prompts about numbers"
        return "the whole stream at the number does not move the answer"

    def _clock_text(self) -> str:
        if self.clock is None:
            return ""
        heads = "; ".join(f"{head} ({kind})" for head, kind in self.clock.head_types[:8]) or "none"
        built, read = (
            ", ".join(map(str, layers)) or "none"
            for layers in (self.clock.builders, self.clock.readers)
        )
        fits = "; ".join(
            f"{name} {float(self.clock.fits.value[i].max()):.2f}" for i, name in enumerate(FITS)
        )
        return (
            f" Clock: heads at the last token {heads}; MLPs that act through later layers {built},"
            f" directly {read}; best R2 there of helices of {fits}; periods of the unreduced sum"
            f" behind the last block: {self.clock.sum_periods[-1]}.{self._neuron_text()}"
        )

    def _neuron_text(self) -> str:
        assert self.clock is not None
        some = self.clock.neurons_for(NEURON_SHARE)
        if not some:
            return " Neurons together do not raise the answer directly."
        layers = {layer for layer, _ in some}
        return (
            f" {len(some)} of {self.clock.neuron_direct.numel()} neurons, in"
            f" block{'s' * (len(layers) > 1)} {', '.join(map(str, sorted(layers)))}, bring"
            f" {NEURON_SHARE:g} of the neurons' direct effect."
        )


def planted(strength: float, seed: int) -> Planted:
    """Return a model that adds by a Clock, with numbers on a helix at `strength`."""
    from mechinterp_toolkit.toys import planted_adder

    made = planted_adder(strength, seed)
    model = load_model(made.model, tokenizer=made.tokenizer)
    return Planted(model, tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(3)), {})


def random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def scrambled_model(seed: int) -> HookedModel:
    """Return a planted adder whose numbers are renamed at random: it adds by a helix of other
    names."""
    from mechinterp_toolkit.toys import relabelled_adder

    made = relabelled_adder(seed)
    return load_model(made.model, tokenizer=made.tokenizer)


@analysis(
    question="Are numbers represented with periods, and is the helix used?",
    paper="Kantamneni & Tegmark 2025, arXiv:2502.00873",
    applies=reads_text,
    planted=planted,
    twins={"random weights": random_model, "scrambled": scrambled_model},
    core=fit_helix,
)
def number_helix(
    model: HookedModel,
    *,
    periods: tuple[Period, ...] | None = None,
    largest: int = 199,
    modulus: int | None = None,
    targets: int = 12,
    draws: int = 999,
    seed: int = 0,
) -> NumberHelix:
    """Look for periods in the numbers layer by layer, and set the helix of a number in prompts the
    model answers.

    Args:
        model: a transformer with a tokenizer.
        periods: of the helix; None takes 2, 5, 10 and 100, or, where sums are taken modulo p, the
            four of largest share. Looked for are all whole numbers up to half the range, or p / k.
        largest: numbers from 0 to this are read.
        modulus: of the addition; None takes a toy's own, and plain sums elsewhere.
        targets: numbers between which the helix is exchanged; the helix is fitted to the others.
        draws: permutations behind the nulls; of the helix' edits at most `KEPT_DRAWS`.
        seed: of everything drawn.

    Raises:
        NotApplicable: fewer than 20 numbers are one token each.
    """
    modulus = (
        modulus if modulus is not None else model.provenance.training.get("task", {}).get("modulus")
    )
    known = number_tokens(model, largest if modulus is None else modulus - 1)
    looked_for = None if modulus is None else tuple(modulus / k for k in range(3, modulus // 2 + 1))
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))
    tokens, read = _bare(model, known, names)
    surprise = _log_probability(model, known)
    scans = [
        period_scan(
            read[name], known.index, periods=looked_for, covariates=surprise, draws=draws, seed=seed
        )
        for name in names
    ]
    layer_p = torch.stack([torch.maximum(scan.p, scan.p_separable).amin() for scan in scans])
    best = int(layer_p.argmin())
    periods = periods or ((2, 5, 10, 100) if modulus is None else _largest(scans[best], 4))
    fit = fit_helix(
        read[names[best]], known.index, periods, covariates=surprise, draws=19, seed=seed
    )
    drawn = (*scans[best].found, *_largest(scans[best], 1))[0]
    task, accuracy = _task(model, known, modulus, seed)
    edited, clock = _Edited(None, None, None), None
    able = task is not None and accuracy is not None and float(accuracy.value) >= CAN
    if task is not None and able:
        edited = _edited(model, task, names, best, periods, targets, draws, seed)
        if task.second is not None:
            short = [t for t in periods if t <= 2 * len(task.numbers)]
            clock = read_clock(model, task, short, sum_periods=looked_for or (), seed=seed)
    return NumberHelix(
        n_numbers=len(known),
        periods=periods,
        rank=fit.rank,
        found_periods=tuple(scan.found for scan in scans),
        draws=draws,
        layer_p=layer_p,
        share=torch.stack([scan.share for scan in scans]),
        residues=_residues(scans[best], seed),
        numbers=known.index,
        points=_plane_points(read[names[best]], known.index, drawn),
        drawn_period=float(drawn),
        r2=_r2(fit.missed, fit.whole, seed),
        task=task.name if task is not None and able else "",
        accuracy=accuracy,
        **edited._asdict(),
        clock=clock,
        notes=_notes(known),
        prompts_hash=hash_tokens(
            tokens if task is None else task.prompts.tokens,
            None if task is None else task.prompts.mask,
        ),
    )


class _Edited(NamedTuple):
    moved: Estimate | None
    curve: Estimate | None
    new_answers: Tensor | None


def _bare(
    model: HookedModel, known: OrdinalClass, names: tuple[str, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each number alone, behind the beginning of the sequence where the model has one."""
    tokens = known.tokens[:, None]
    if model.provenance.prepend_bos:
        bos = torch.full_like(tokens, model.require_tokenizer().bos_token_id)
        tokens = torch.cat([bos, tokens], 1)
    last = torch.full((len(tokens),), tokens.shape[1] - 1)
    return tokens, activations(model, tokens, names, position=last)


def _log_probability(model: HookedModel, known: OrdinalClass) -> Float[Tensor, "number 1"]:
    """What the model itself takes for the number's frequency: its log-probability as the first
    token of a text."""
    bos = model.require_tokenizer().bos_token_id
    start = known.tokens[:1, None] if bos is None else torch.tensor([[bos]])
    logits = model.logits(start)[0, -1].detach().double().cpu()
    return logits.log_softmax(-1)[known.tokens][:, None]


def _task(
    model: HookedModel, known: OrdinalClass, modulus: int | None, seed: int
) -> tuple[NumberTask | None, Estimate | None]:
    """The first task the model does, or else the one it does best, and its accuracy."""
    possible = [
        addition_task(model, known, modulus=modulus, seed=seed),
        succession_task(model, known, seed=seed),
    ]
    tried = []
    for task in possible:
        if task is None:
            continue
        right = task.right(task.logits(model))
        accuracy = bootstrap(
            right, unit=task.number, unit_name="numbers", measured="fraction in [0, 1]", seed=seed
        )
        tried.append((task, accuracy))
        if float(accuracy.value) >= CAN:
            return task, accuracy
    return max(tried, key=lambda pair: float(pair[1].value), default=(None, None))


def _largest(scan: PeriodScan, most: int) -> tuple[Period, ...]:
    order = scan.share.argsort(descending=True, stable=True)[:most]
    return tuple(scan.periods[i] for i in order.tolist())


def _plane_points(
    x: Float[Tensor, "number d"], numbers: Int[Tensor, " number"], period: Period
) -> Float[Tensor, "number 2"]:
    """Projections on the plane of a period's fitted cosine and sine (of period 2, on the cosine and
    the largest rest)."""
    centred = x.double() - x.double().mean(0)
    waves = helix_basis(numbers, (period,), linear=False)[:, 1:]
    fitted = centred - without(centred, span(waves))
    plane = torch.linalg.svd(fitted, full_matrices=False)[2][: waves.shape[1]]
    if len(plane) == 1:
        rest = centred - centred @ plane.T @ plane
        plane = torch.cat([plane, torch.linalg.svd(rest, full_matrices=False)[2][:1]])
    return centred @ plane.T


def _residues(scan: PeriodScan, seed: int) -> Estimate:
    """Accuracy above what permuted numbers give on average, period by period."""
    return bootstrap(
        scan.right.double() - scan.chance,
        unit_name="numbers",
        measured="accuracy above chance",
        seed=seed,
        axes=("period",),
        labels={"period": tuple(map(period_text, scan.periods))},
        control=scan.by_chance[:KEPT_DRAWS] - scan.chance,
        control_name="numbers permuted",
    )


def _r2(
    missed: Float[Tensor, "number model"], whole: Float[Tensor, " number"], seed: int
) -> Estimate:
    return bootstrap(
        torch.cat([missed, whole[:, None]], 1),
        unit_name="numbers",
        measured="R2, at most 1",
        seed=seed,
        axes=("model",),
        labels={"model": MODELS},
        statistic=lambda v, w: 1 - (w @ v[:, :-1]) / (w @ v[:, -1:]),
    )


def _edited(
    model: HookedModel,
    task: NumberTask,
    names: tuple[str, ...],
    best: int,
    periods: Sequence[Period],
    targets: int,
    draws: int,
    seed: int,
) -> _Edited:
    """Set each target number to every other one, by each of `EDITS` in front of each block."""
    chosen = (
        torch.linspace(0, len(task.numbers) - 1, min(targets, len(task.numbers) // 2))
        .round()
        .long()
        .unique()
    )
    run = _Exchange(model, task, chosen)
    read = activations(model, task.prompts.tokens, names, mask=task.prompts.mask, position=task.at)
    ways, right = [], []
    for name in names:
        moves = [run.moves(name, points) for points in _points(read[name], task, chosen, periods)]
        ways.append(torch.stack([one.way for one in moves]))
        right.append(torch.tensor([one.right for one in moves], dtype=torch.float64))
    way = torch.stack(ways, 1)  # edit, hook point, item, set, judged
    k = len(chosen)
    whole = way[-1].diagonal(dim1=-2, dim2=-1).sum((-1, -2)) / (k * (k - 1))
    if not whole[best] > 0:
        return _Edited(None, None, None)
    place, other = torch.arange(k), ~torch.eye(k, dtype=torch.bool)
    own = way.diagonal(dim1=-2, dim2=-1).sum(-1) / (k - 1) / whole[best]  # edit, hook point, item
    common: dict[str, Any] = {
        "unit_name": "numbers",
        "measured": "share of the whole stream's effect",
        "seed": seed,
    }
    at_best = way[0, best] / whole[best]
    orders = permutations(k, draws=min(draws, KEPT_DRAWS), seed=seed).index
    moved = bootstrap(
        own[0, best],
        control=torch.stack([at_best[:, order, place][other].mean() for order in orders]),
        control_name="points permuted among the numbers",
        **common,
    )
    curve = along(
        [
            bootstrap(one.T, axes=("hook point",), labels={"hook point": names}, **common)
            for one in own
        ],
        "edit",
        EDITS,
    )
    return _Edited(moved, curve, torch.stack(right, 1))


def _points(
    x: Float[Tensor, "batch d"],
    task: NumberTask,
    chosen: Int[Tensor, " target"],
    periods: Sequence[Period],
) -> list[Float[Tensor, "target d"]]:
    """Where each edit puts the targets: predicted from the other numbers' means, or the means
    themselves."""
    means = class_means(x, task.which, len(task.numbers))
    fold = torch.isin(torch.arange(len(means)), chosen).long()
    basis = helix_basis(task.numbers, periods)
    rank = int(torch.linalg.matrix_rank(basis)) - 1
    circle = helix_basis(task.numbers, (max(periods),), linear=False)
    designs = (basis, circle, polynomials(task.numbers, rank))
    predicted = [k_fold(design, fold)(means)[chosen] for design in designs]
    return [*predicted, projected(means, fold, rank)[chosen], means[chosen]]


class _Moves(NamedTuple):
    way: Float[Tensor, "item set judged"]
    right: float


class _Exchange:
    """Prompts about the targets, in which a number is moved by the difference of two points."""

    def __init__(
        self, model: HookedModel, task: NumberTask, chosen: Int[Tensor, " target"]
    ) -> None:
        self.model, self.task = model, task.select(torch.isin(task.which, chosen))
        self.item = torch.searchsorted(chosen, self.task.which)
        self.judged = self.task.answers[:, chosen]
        self.base = self.task.logits(model).gather(1, self.judged)

    def moves(self, name: str, points: Float[Tensor, "target d"]) -> _Moves:
        """From item i, set to k, judged as j: rise of j's answer, centred over all judged, mean
        over prompts."""
        k = len(points)
        edited, right = [], []
        for j in range(k):
            shift = points[j] - points[self.item]
            with applied(
                self.model, {name: _shifted(self.task.at, shift)}, mask=self.task.prompts.mask
            ):
                logits = self.task.logits(self.model)
            edited.append(logits.gather(1, self.judged))
            right.append(self.task.right(logits, self.judged[:, j])[self.item != j])
        rise = torch.stack(edited) - self.base
        by_item = torch.nn.functional.one_hot(self.item, k).double()
        way = torch.einsum(
            "kbj,bi->ikj", rise - rise.mean(2, keepdim=True), by_item / by_item.sum(0)
        )
        return _Moves(way, float(torch.cat(right).mean()))


def _shifted(position: Int[Tensor, " batch"], shift: Float[Tensor, "batch d"]) -> Edit:
    def edit(activation: Float[Tensor, "batch pos d"], hook: Site) -> Float[Tensor, "batch pos d"]:
        rows, at = (
            torch.arange(len(activation), device=activation.device),
            position.to(activation.device),
        )
        changed = activation.clone()
        changed[rows, at] = (activation[rows, at].double() + shift.to(activation.device)).to(
            activation.dtype
        )
        return changed

    return edit


def _notes(known: OrdinalClass) -> tuple[str, ...]:
    if not known.dropped:
        return ()
    first = known.dropped[0]
    return (
        (
            f"{len(known.dropped)} of {known.order} numbers are not one token each ({first.word!r}:"
            f" {first.reason})."
        ),
    )
