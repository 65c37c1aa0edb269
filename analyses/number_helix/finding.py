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

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.number_helix.clock import read_clock, why_no_clock
from mechinterp_toolkit.analyses.number_helix.edits import KEPT_DRAWS, HelixEdits, set_numbers
from mechinterp_toolkit.analyses.number_helix.result import NumberHelix
from mechinterp_toolkit.analyses.number_helix.tasks import (
    NumberTask,
    addition_task,
    number_tokens,
    succession_task,
)
from mechinterp_toolkit.geometry.helix import (
    MODELS,
    HelixFit,
    Period,
    PeriodScan,
    fit_helix,
    helix_basis,
    period_scan,
    period_text,
)
from mechinterp_toolkit.geometry.regression import span, without
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import OrdinalClass, hash_tokens
from mechinterp_toolkit.prompts.concepts import reads_text
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

CAN = 0.5
"""Accuracy among numbers from which on a model is taken to do a task."""


def _planted(strength: float, seed: int) -> Planted:
    """Return a model that adds by a Clock, with numbers on a helix at `strength`."""
    from mechinterp_toolkit.toys import planted_adder

    made = planted_adder(strength, seed)
    model = load_model(made.model, tokenizer=made.tokenizer)
    return Planted(model, tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(3)), {})


def _random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def _scrambled_model(seed: int) -> HookedModel:
    """Return a planted adder whose numbers are renamed: it adds by a helix of other names."""
    from mechinterp_toolkit.toys import relabelled_adder

    made = relabelled_adder(seed)
    return load_model(made.model, tokenizer=made.tokenizer)


@analysis(
    question="Are numbers represented with periods, and is the helix used?",
    paper="Kantamneni & Tegmark 2025, arXiv:2502.00873",
    applies=reads_text,
    planted=_planted,
    twins={"random weights": _random_model, "scrambled": _scrambled_model},
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
    """Look for periods in the numbers layer by layer, and set the helix of a number in prompts.

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

    >>> finding = number_helix("toy/ordinal", draws=39, targets=4)
    >>> finding.represented.outcome, finding.task, finding.accuracy.text()
    ('not_found', 'succession', '1 [1, 1]')
    """
    modulus = modulus or model.provenance.training.get("task", {}).get("modulus")
    known = number_tokens(model, largest if modulus is None else modulus - 1)
    parts = None if modulus is None else tuple(modulus / k for k in range(3, modulus // 2 + 1))
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers))
    tokens, read = _bare(model, known, names)
    given: dict[str, Any] = {"covariates": _log_probability(model, known), "seed": seed}
    scans = [
        period_scan(read[name], known.index, periods=parts, draws=draws, **given) for name in names
    ]
    layer_p = torch.stack([torch.maximum(scan.p, scan.p_separable).amin() for scan in scans])
    best = int(layer_p.argmin())
    periods = periods or ((2, 5, 10, 100) if modulus is None else _largest(scans[best], 4))
    fit = fit_helix(read[names[best]], known.index, periods, draws=19, **given)
    drawn = (*scans[best].found, *_largest(scans[best], 1))[0]
    task, accuracy = _task(model, known, modulus, seed)
    edited, clock = HelixEdits(), None
    able = task is not None and accuracy is not None and float(accuracy.value) >= CAN
    if task is not None and able:
        edited = set_numbers(
            model, task, names, best, periods, targets=targets, draws=draws, seed=seed
        )
        if task.second is not None and why_no_clock(model) is None:
            short = [t for t in periods if t <= 2 * len(task.numbers)]
            clock = read_clock(model, task, short, sum_periods=parts or (), seed=seed)
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
        r2=_r2(fit, seed),
        task=task.name if task is not None and able else "",
        accuracy=accuracy,
        moved=edited.moved,
        curve=edited.curve,
        new_answers=edited.new_answers,
        clock=clock,
        notes=_notes(known),
        prompts_hash=hash_tokens(tokens) if task is None else task.prompts.hash,
    )


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


def _r2(fit: HelixFit, seed: int) -> Estimate:
    return bootstrap(
        torch.cat([fit.missed, fit.whole[:, None]], 1),
        unit_name="numbers",
        measured="R2, at most 1",
        seed=seed,
        axes=("model",),
        labels={"model": MODELS},
        statistic=lambda v, w: 1 - (w @ v[:, :-1]) / (w @ v[:, -1:]),
    )


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
