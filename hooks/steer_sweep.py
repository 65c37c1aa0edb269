"""How strong, how reliably and at what cost does a steering vector act? Vectors by multipliers.

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
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.measure import Metric, measure
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.hooks.steer_fit import Contrast, differences
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.intervention import Edits, applied
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.prompts import PromptSet
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

_SHARE = "fraction in [0, 1]"
_SHUFFLED = "vectors of the same norm from shuffled pairs"


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


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts that are run in one pass, and which of their tokens are real."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids; left-padded where lengths differ, since the last column is read."""

    mask: Bool[Tensor, "batch pos"] | None = None
    """True at real tokens; None where all are."""

    unit: Int[Tensor, " batch"] | None = None
    """Which exchangeable unit each prompt belongs to (the word it is about, say).

    Intervals resample whole units. None: each prompt is its own."""

    unit_name: str = "prompts"
    """What a unit is, in the plural."""

    def __post_init__(self) -> None:
        if self.unit is not None and len(self.unit) != len(self.tokens):
            raise ToolkitError(
                f"got units for {len(self.unit)} of {len(self.tokens)} prompts; give each prompt"
                " its own."
            )


@dataclass(frozen=True, eq=False)
class VectorGrid:
    """Vectors by multipliers, and where they are added."""

    vectors: Sequence[SteeringVector]
    """One per layer, or any others with hook points of the model."""

    multipliers: Sequence[float]
    """How often each vector is added; none of them 0."""

    where: Where = field(default_factory=Where)
    """Tokens that are steered; all but the beginning of the sequence by default."""

    shuffled: Sequence[Sequence[SteeringVector]] = ()
    """Draws from `shuffled_vectors`, each with one vector for each of `vectors`."""

    def __post_init__(self) -> None:
        if not self.vectors or not self.multipliers or 0 in self.multipliers:
            raise ToolkitError(
                f"got {len(self.vectors)} vectors and multipliers {list(self.multipliers)};"
                " expected one or more of each, none of them 0."
            )
        for row in self.shuffled:
            if [v.hook_point for v in row] != [v.hook_point for v in self.vectors]:
                raise ToolkitError(
                    "a draw of shuffled vectors needs one for each vector, at the same hook points"
                    " in order."
                )

    def run(
        self, measured: Callable[[Edits], Tensor], vectors: Sequence[SteeringVector] | None = None
    ) -> Float[Tensor, "vector multiplier prompt"]:
        """Return what is measured with each vector added, or with each of other `vectors`."""
        rows = [
            [
                measured({vector.hook_point: vector.add(multiplier, where=self.where)})
                for multiplier in self.multipliers
            ]
            for vector in vectors or self.vectors
        ]
        return torch.stack([torch.stack(row) for row in rows])

    @property
    def axes(self) -> dict[str, Any]:
        """Axes and labels of an `Estimate` of what was run."""
        names = [vector.hook_point for vector in self.vectors]
        if len(set(names)) < len(names):
            methods = [vector.provenance.get("method", "") for vector in self.vectors]
            both = enumerate(zip(names, methods, strict=True))
            names = [f"{i}: {name} {method}".strip() for i, (name, method) in both]
        return _axes(self.multipliers, vector=names)


def left_padded(
    prompts: PromptSet, *, unit: Int[Tensor, " batch"] | None = None, unit_name: str = "prompts"
) -> Prompts:
    """Return the prompts moved to the right, so that the last column is the last token of each.

    >>> prompts = PromptSet(
    ...     tokens=torch.tensor([[5, 6, 7], [5, 8, 0]]),
    ...     mask=torch.tensor([[True, True, True], [True, True, False]]),
    ...     answer=torch.tensor([9, 4]),
    ...     position=torch.tensor([2, 1]),
    ...     texts=("a b c", "a d"),
    ... )
    >>> left_padded(prompts).tokens.tolist()
    [[5, 6, 7], [0, 5, 8]]
    """
    width = prompts.tokens.shape[1]
    # Padding behind the tokens goes round to the front.
    column = (torch.arange(width) - (width - prompts.mask.sum(1))[:, None]) % width
    tokens, mask = (part.gather(1, column) for part in (prompts.tokens, prompts.mask))
    return Prompts(tokens, mask, unit, unit_name)


@takes_model
def steering_sweep(
    model: HookedModel,
    grid: VectorGrid,
    prompts: Prompts,
    neutral: Prompts,
    metric: Metric,
    *,
    guidance: Float[Tensor, " d_vocab"] | None = None,
    measured: str = "logits",
    seed: int = 0,
) -> SteeringSweep:
    """Add each vector at each multiplier and measure; intervals resample whole units of prompts.

    Args:
        grid: what is added.
        prompts: what the metric is measured on.
        neutral: prompts the vector should leave alone.
        metric: one number per prompt, which a positive multiplier should raise.
        guidance: what a multiplier of 1 adds to the logits, from `logit_contrast`; the baseline.
        measured: unit of the metric.
        seed: of the intervals.

    Raises:
        ToolkitError: a vector of another model, or fewer than two units.

    >>> tokens = torch.tensor([[1, 67, 107, 108, 25], [1, 67, 107, 108, 49]])
    >>> grid = VectorGrid([SteeringVector.of("blocks.0.hook_resid_pre", torch.ones(64))], [1.0])
    >>> ask = Prompts(tokens), Prompts(tokens[:, :3]), lambda logits: logits[:, -1, 60]
    >>> steering_sweep("toy/sentiment", grid, *ask).effect.value.shape
    torch.Size([1, 1])
    """
    for vector in grid.vectors:
        vector.check_fits(model)
    ask = partial(measure, model, prompts.tokens, mask=prompts.mask)
    before, quiet = ask(metric), _last(model, neutral)
    change = grid.run(partial(ask, metric)) - before
    drawn = [(grid.run(partial(ask, metric), row) - before).mean(-1) for row in grid.shuffled]
    null: dict[str, Any] = (
        {"control": torch.stack(drawn), "control_name": _SHUFFLED} if drawn else {}
    )
    opposed = change * torch.tensor(grid.multipliers, dtype=torch.float64)[:, None] < 0
    cost = grid.run(lambda edits: _kl(quiet, _last(model, neutral, edits)))
    estimate = partial(bootstrap, unit=prompts.unit, unit_name=prompts.unit_name, seed=seed)
    guided = cost_guided = None
    if guidance is not None:
        moved = [ask(shifted) - before for shifted in _shifted(metric, guidance, grid.multipliers)]
        guided = estimate(torch.stack(moved, 1), measured=measured, **_axes(grid.multipliers))
        cost_guided = _guided_kl(quiet, guidance, grid.multipliers, seed)
    return SteeringSweep(
        change,
        effect=estimate(change.movedim(-1, 0), measured=measured, **null, **grid.axes),
        wrong_way=estimate(opposed.double().movedim(-1, 0), measured=_SHARE, **grid.axes),
        kl=_mean_kl(cost.movedim(-1, 0), seed, **grid.axes),
        guidance_effect=guided,
        guidance_kl=cost_guided,
    )


@takes_model
def guidance_kl(
    model: HookedModel,
    neutral: Prompts,
    guidance: Float[Tensor, " d_vocab"],
    multipliers: Sequence[float],
    *,
    seed: int = 0,
) -> Estimate:
    """Estimate what logit guidance does to prompts it should leave alone, by multiplier.

    The mean KL of the next token, in nats.

    Args:
        neutral: the prompts.
        guidance: what a multiplier of 1 adds to the logits.
        multipliers: one or more.
        seed: of the interval, which resamples prompts.

    Raises:
        ToolkitError: fewer than two prompts.

    >>> train = Prompts(torch.tensor([[1, 67, 111, 112], [1, 67, 114, 115]]))
    >>> guidance_kl("toy/sentiment", train, torch.ones(133), [1.0]).value.round(decimals=6)
    tensor([0.], dtype=torch.float64)
    """
    return _guided_kl(_last(model, neutral), guidance, multipliers, seed)


@takes_model
def logit_contrast(
    model: HookedModel, positive: Prompts, negative: Prompts
) -> Float[Tensor, " d_vocab"]:
    """Return mean next-token logits of positive minus those of negative prompts, for guidance.

    >>> nice, foolish = (Prompts(torch.tensor([[1, 67, 107, 108, word]])) for word in (25, 49))
    >>> logit_contrast("toy/sentiment", nice, foolish).shape
    torch.Size([133])
    """
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

    >>> contrast = Contrast("blocks.0.hook_resid_pre", torch.eye(4) + 3, torch.zeros(4, 4))
    >>> [round(vector.norm, 4) for vector in shuffled_vectors(contrast, 2.0, draws=3, seed=0)]
    [2.0, 2.0, 2.0]
    """
    pairs, generator = differences(contrast), torch.Generator().manual_seed(seed)
    contrast.require(4)
    half = len(pairs) // 2
    signs = torch.zeros(len(pairs), dtype=torch.float64)
    signs[:half], signs[half : 2 * half] = 1, -1
    orders = [torch.randperm(len(pairs), generator=generator) for _ in range(draws)]
    means = torch.stack([signs[order] for order in orders]) @ pairs / len(pairs)
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
    """Estimate the share of continuations, in [0, 1], that hold any token id of each entity.

    Raises:
        ToolkitError: two entities share a token, so that one can't be told from the other.

    >>> rates = mention_rates(torch.tensor([[1, 2], [3, 3], [2, 9]]), {"a": [1], "b": [2, 7]})
    >>> dict(zip(rates.labels["entity"], rates.value.tolist()))
    {'a': 0.3333333333333333, 'b': 0.6666666666666666}
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
    return bootstrap(
        torch.stack(hits, 1).double(),
        unit_name="continuations",
        measured=_SHARE,
        seed=seed,
        axes=("entity",),
        labels={"entity": tuple(entities)},
    )


def _shifted(
    metric: Metric, guidance: Float[Tensor, " d_vocab"], multipliers: Sequence[float]
) -> list[Metric]:
    """The metric of logits to which the guidance was added, for each multiplier."""

    def shifted(added: Tensor, logits: Tensor) -> Tensor:
        return metric(logits.cpu().double() + added)

    return [partial(shifted, m * guidance.cpu().double()) for m in multipliers]


def _guided_kl(
    quiet: Tensor, guidance: Tensor, multipliers: Sequence[float], seed: int
) -> Estimate:
    kl = torch.stack([_kl(quiet, quiet + m * guidance.cpu().double()) for m in multipliers], 1)
    return _mean_kl(kl, seed, **_axes(multipliers))


def _mean_kl(kl: Float[Tensor, "prompt *axes"], seed: int, **named: Any) -> Estimate:
    """Neutral prompts are units of their own, whatever the others are."""
    return bootstrap(kl, unit_name="neutral prompts", measured="nats", seed=seed, **named)


def _axes(multipliers: Sequence[float], **before: Sequence[str]) -> dict[str, Any]:
    """Axes and labels of an `Estimate`, the multipliers last."""
    names = {**before, "multiplier": [f"{m:g}" for m in multipliers]}
    return {"axes": tuple(names), "labels": {axis: tuple(own) for axis, own in names.items()}}


@torch.no_grad()
def _last(
    model: HookedModel, prompts: Prompts, edits: Edits | None = None
) -> Float[Tensor, "batch d_vocab"]:
    """Logits of the last column, float64 on the CPU."""
    columns = prompts.tokens.shape[1]
    place = (
        applied(model, edits, mask=prompts.mask, prompt_length=columns) if edits else nullcontext()
    )
    with place:
        return model.logits(prompts.tokens, prompts.mask)[:, -1].cpu().double()


def _kl(
    before: Float[Tensor, "batch d_vocab"], after: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, " batch"]:
    """KL(before || after) = sum p (log p - log q), in nats."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
