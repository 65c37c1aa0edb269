"""How strong, how reliably and at what cost does a steering vector act? Vectors (layers) by
multipliers.

For each vector and multiplier: the change of a metric on every prompt, the share of prompts that
move the wrong way, and what happens to prompts that have nothing to do with the concept (KL of the
next token). Beside them two comparisons: the same norm along directions fitted to shuffled pairs,
and logit guidance, which adds a fixed vector to the logits and needs no hook at all.

What would fool it: a mean effect that hides the prompts it harms, which is why the sample is kept;
a large multiplier that breaks the model, which the neutral prompts show.

Source: Tan et al. 2024, arXiv:2407.12404 (up to half of the inputs move the wrong way); Arditi et
al. 2024, arXiv:2406.11717 (KL on harmless prompts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.measure import Metric, measure
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.hooks.steer_fit import Contrast, differences
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.intervention import Edit, applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import PromptSet
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap


@dataclass(frozen=True)
class SteeringSweep:
    """What each vector does at each multiplier."""

    change: Float[Tensor, "vector multiplier prompt"]
    """Metric steered minus unsteered, prompt by prompt, in the unit of the metric."""

    effect: Estimate
    """Mean of `change` over prompts, [vector, multiplier]; its control are vectors of shuffled
    pairs, where they were given."""

    wrong_way: Estimate
    """Share of prompts, in [0, 1], whose change has the sign opposite to the multiplier's."""

    kl: Estimate
    """Mean KL(unsteered || steered) of the next token on the neutral prompts, in nats."""

    guidance_effect: Estimate | None
    """By multiplier: mean change of the metric under logit guidance; None where no logits were
    given."""

    guidance_kl: Estimate | None
    """By multiplier: mean KL on the neutral prompts under logit guidance, in nats."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that are run in one pass, and which of their tokens are real."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids; left-padded where lengths differ, since the last column is read."""

    mask: Bool[Tensor, "batch pos"] | None = None
    """True at real tokens; None where all are."""


def left_padded(prompts: PromptSet) -> Prompts:
    """Return the prompts moved to the right, so that the last column is the last token of each."""
    width = prompts.tokens.shape[1]
    column = (
        torch.arange(width) - (width - prompts.mask.sum(1))[:, None]
    ) % width  # padding goes round to the front
    return Prompts(prompts.tokens.gather(1, column), prompts.mask.gather(1, column))


def steering_sweep(
    model: HookedModel,
    vectors: Sequence[SteeringVector],
    multipliers: Sequence[float],
    prompts: Prompts,
    neutral: Prompts,
    metric: Metric,
    *,
    shuffled: Sequence[Sequence[SteeringVector]] = (),
    guidance: Float[Tensor, " d_vocab"] | None = None,
    where: Where | None = None,
    measured: str = "logits",
    unit: Int[Tensor, " batch"] | None = None,
    unit_name: str = "prompts",
    seed: int = 0,
) -> SteeringSweep:
    """Add each vector at each multiplier and measure; intervals resample whole units of prompts.

    Args:
        vectors: one per layer, or any others with hook points of this model.
        multipliers: none of them 0.
        prompts: what the metric is measured on.
        neutral: prompts the vector should leave alone.
        metric: one number per prompt, e.g. from `logit_difference`; a positive multiplier should
            raise it.
        shuffled: draws from `shuffled_vectors`, one row per draw with one vector for each of
            `vectors`.
        guidance: what a multiplier of 1 adds to the logits, from `logit_contrast`; the baseline of
            the same prompts.
        where: tokens that are steered; all but the beginning of the sequence by default.
        measured: unit of the metric.
        unit: which exchangeable unit each prompt belongs to (the word it is about, say); None where
            each prompt is its own. Neutral prompts always are.
        unit_name: what a unit is, in the plural.
        seed: of the intervals.

    Raises:
        ToolkitError: no vector, a multiplier of 0, a vector of another model, fewer than two units,
            or not one for each prompt.
    """
    _check(model, vectors, multipliers, shuffled)
    _check_units(unit, prompts)
    before, quiet = measure(model, prompts.tokens, metric, mask=prompts.mask), _last(model, neutral)
    run = _Sweep(model, multipliers, prompts, neutral, metric, where)
    change = run.metrics(vectors) - before
    against = change * torch.tensor(multipliers, dtype=torch.float64)[:, None] < 0
    null: dict[str, Any] = {}
    if shuffled:
        drawn = torch.stack([(run.metrics(row) - before).mean(-1) for row in shuffled])
        null = {"control": drawn, "control_name": "vectors of the same norm from shuffled pairs"}
    own: dict[str, Any] = {"unit": unit, "unit_name": unit_name, "seed": seed}
    labels = {"vector": _names(vectors), "multiplier": _labels(multipliers)}
    grid: dict[str, Any] = {"axes": ("vector", "multiplier"), "labels": labels}
    kl = run.kl(vectors, quiet).movedim(-1, 0)
    return SteeringSweep(
        change,
        effect=bootstrap(change.movedim(-1, 0), measured=measured, **null, **own, **grid),
        wrong_way=bootstrap(
            against.double().movedim(-1, 0), measured="fraction in [0, 1]", **own, **grid
        ),
        kl=bootstrap(kl, unit_name="neutral prompts", measured="nats", seed=seed, **grid),
        guidance_effect=None if guidance is None else _guided(run, guidance, before, measured, own),
        guidance_kl=None if guidance is None else _guided_kl(quiet, guidance, multipliers, seed),
    )


def guidance_kl(
    model: HookedModel,
    neutral: Prompts,
    guidance: Float[Tensor, " d_vocab"],
    multipliers: Sequence[float],
    *,
    seed: int = 0,
) -> Estimate:
    """Estimate what logit guidance does to prompts it should leave alone: mean KL of the next token
    by multiplier, in nats.

    Args:
        neutral: the prompts.
        guidance: what a multiplier of 1 adds to the logits.
        multipliers: one or more.
        seed: of the interval, which resamples prompts.

    Raises:
        ToolkitError: fewer than two prompts.
    """
    return _guided_kl(_last(model, neutral), guidance, multipliers, seed)


def logit_contrast(
    model: HookedModel, positive: Prompts, negative: Prompts
) -> Float[Tensor, " d_vocab"]:
    """Return mean next-token logits of the positive prompts minus those of the negative ones: what
    guidance adds."""
    return _last(model, positive).mean(0) - _last(model, negative).mean(0)


def shuffled_vectors(
    contrast: Contrast, norm: float, *, draws: int, seed: int
) -> list[SteeringVector]:
    """Return mean differences of pairs of which a random half is swapped, all with the norm given.

    Exactly half (an odd pair is left out), so that the concept cancels where all pairs differ by
    the same: were each pair swapped by a coin, a little of it would be left, and brought to the
    full norm that could be most of the vector. Where pairs differ along one line by unequal lengths
    (at a last token, say), what is left lies on that line too, and the control moves the answer
    like the vector: look at its cosine with it.

    Raises:
        ToolkitError: fewer than four pairs, rows without partners, or activations with heads.
    """
    pairs, generator = differences(contrast), torch.Generator().manual_seed(seed)
    if pairs.dim() != 2 or len(pairs) < 4:
        raise ToolkitError(
            f"got {len(pairs)} pairs of rows {tuple(pairs.shape[1:])} at {contrast.hook_point!r};"
            " expected four or more at a point without heads."
        )
    half = len(pairs) // 2
    balanced = torch.tensor(
        [1.0] * half + [-1.0] * half + [0.0] * (len(pairs) % 2), dtype=torch.float64
    )
    signs = torch.stack(
        [balanced[torch.randperm(len(pairs), generator=generator)] for _ in range(draws)]
    )
    means = signs @ pairs / len(pairs)
    if not (means.norm(dim=1) > 0).all():
        raise ToolkitError(
            f"all pairs at {contrast.hook_point!r} differ alike; shuffled, nothing is left to"
            " scale."
        )
    scaled = norm * means / means.norm(dim=1, keepdim=True)
    return [
        SteeringVector.of(contrast.hook_point, row.float(), method="shuffled pairs", seed=seed)
        for row in scaled
    ]


def mention_rates(
    generated: Int[Tensor, "batch new"], entities: Mapping[str, Sequence[int]], *, seed: int = 0
) -> Estimate:
    """Estimate the share of continuations, in [0, 1], that mention each entity: that hold any of
    its token ids.

    Raises:
        ToolkitError: two entities share a token, so that one can't be told from the other.
    """
    ids = [token for tokens in entities.values() for token in tokens]
    if not ids or len(set(ids)) < len(ids):
        raise ToolkitError(
            f"entities {dict(entities)} share tokens or have none; give each token ids of its own."
        )
    hits = [
        torch.isin(generated.cpu(), torch.tensor(list(tokens))).any(1)
        for tokens in entities.values()
    ]
    named: dict[str, Any] = {"axes": ("entity",), "labels": {"entity": tuple(entities)}}
    return bootstrap(
        torch.stack(hits, 1).double(),
        unit_name="continuations",
        measured="fraction in [0, 1]",
        seed=seed,
        **named,
    )


@dataclass(frozen=True)
class _Sweep:
    """Runs of vectors by multipliers."""

    model: HookedModel
    multipliers: Sequence[float]
    prompts: Prompts
    neutral: Prompts
    metric: Metric
    where: Where | None

    def metrics(self, row: Sequence[SteeringVector]) -> Float[Tensor, "vector multiplier prompt"]:
        """The metric of each prompt with one vector added."""
        return self._each(row, lambda edits: self.measured(self.metric, edits))

    def kl(
        self, row: Sequence[SteeringVector], quiet: Tensor
    ) -> Float[Tensor, "vector multiplier neutral"]:
        """KL of the next token of each neutral prompt, whose logits without a vector are
        `quiet`."""
        return self._each(row, lambda edits: _kl(quiet, _last(self.model, self.neutral, edits)))

    def measured(self, metric: Metric, edits: Mapping[str, Edit]) -> Float[Tensor, " prompt"]:
        return measure(self.model, self.prompts.tokens, metric, edits, mask=self.prompts.mask)

    def _each(
        self, row: Sequence[SteeringVector], run: Callable[[dict[str, Edit]], Tensor]
    ) -> Tensor:
        return torch.stack(
            [
                torch.stack(
                    [run({one.hook_point: one.add(m, where=self.where)}) for m in self.multipliers]
                )
                for one in row
            ]
        )


def _guided(
    run: _Sweep, guidance: Tensor, before: Tensor, measured: str, own: dict[str, Any]
) -> Estimate:
    """Mean change of the metric by multiplier with `guidance` added to the logits."""
    added = guidance.cpu().double()

    def guided_metric(multiplier: float) -> Metric:
        return lambda logits: run.metric(logits.cpu().double() + multiplier * added)

    after = torch.stack([run.measured(guided_metric(m), {}) for m in run.multipliers], 1)
    labels = {"multiplier": _labels(run.multipliers)}
    return bootstrap(
        after - before[:, None], measured=measured, axes=("multiplier",), labels=labels, **own
    )


def _guided_kl(
    quiet: Tensor, guidance: Tensor, multipliers: Sequence[float], seed: int
) -> Estimate:
    kl = torch.stack([_kl(quiet, quiet + m * guidance.cpu().double()) for m in multipliers], 1)
    named: dict[str, Any] = {
        "axes": ("multiplier",),
        "labels": {"multiplier": _labels(multipliers)},
        "seed": seed,
    }
    return bootstrap(kl, unit_name="neutral prompts", measured="nats", **named)


def _labels(multipliers: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{m:g}" for m in multipliers)


@torch.no_grad()
def _last(
    model: HookedModel, prompts: Prompts, edits: Mapping[str, Edit] | None = None
) -> Float[Tensor, "batch d_vocab"]:
    """Logits of the last column, float64 on the CPU."""
    if not edits:
        return model.logits(prompts.tokens, prompts.mask)[:, -1].cpu().double()
    with applied(model, edits, mask=prompts.mask, prompt_length=prompts.tokens.shape[1]):
        return model.logits(prompts.tokens, prompts.mask)[:, -1].cpu().double()


def _kl(
    before: Float[Tensor, "batch d_vocab"], after: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, " batch"]:
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def _names(vectors: Sequence[SteeringVector]) -> tuple[str, ...]:
    names = [vector.hook_point for vector in vectors]
    if len(set(names)) == len(names):
        return tuple(names)
    return tuple(
        f"{i}: {name} {vectors[i].provenance.get('method', '')}".strip()
        for i, name in enumerate(names)
    )


def _check_units(unit: Tensor | None, prompts: Prompts) -> None:
    if unit is not None and len(unit) != len(prompts.tokens):
        raise ToolkitError(
            f"got units for {len(unit)} of {len(prompts.tokens)} prompts; give each prompt its own."
        )


def _check(
    model: HookedModel,
    vectors: Sequence[SteeringVector],
    multipliers: Sequence[float],
    shuffled: Sequence[Sequence[SteeringVector]],
) -> None:
    if not vectors or not multipliers or 0 in multipliers:
        raise ToolkitError(
            f"got {len(vectors)} vectors and multipliers {list(multipliers)}; expected one or more"
            " of each, none of them 0."
        )
    for vector in vectors:
        vector.check_fits(model)
    for row in shuffled:
        if [v.hook_point for v in row] != [v.hook_point for v in vectors]:
            raise ToolkitError(
                "a draw of shuffled vectors needs one for each vector, at the same hook points in"
                " order."
            )
