"""Activations of two sets of prompts that differ in a concept, and how well the sets agree.

What would fool it: sets that differ in more than the concept (length, topic, the last token); pairs
of the same words in several sentences, which agree with each other for that reason alone, so give
the unit that each belongs to.

Source: Braun et al. 2025, arXiv:2505.22637 (agreement of pairs, which predicts whether a vector
steers, and separation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.classes import unit_means
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.nulls import balanced_relabellings
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

Token = int | tuple[Int[Tensor, " n"], Int[Tensor, " m"]]
"""A place among the real tokens, the same in all prompts, or one for each positive and each
negative prompt."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """One activation per prompt of two sets that differ in a concept."""

    hook_point: str
    """Where they were read."""

    positive: Float[Tensor, "n *features"]
    """Of the prompts that have the concept."""

    negative: Float[Tensor, "m *features"]
    """Of those that lack it; row i is the partner of positive row i where both sets are as long."""

    def require(self, least: int) -> None:
        """Raise `ToolkitError` unless each set has `least` rows of one feature axis."""
        n, m = len(self.positive), len(self.negative)
        if self.positive.dim() != 2:
            raise ToolkitError(
                f"{self.hook_point!r} has rows {tuple(self.positive.shape[1:])}; choose one head,"
                " or a point without heads."
            )
        if min(n, m) < least:
            raise ToolkitError(
                f"got {n} positive and {m} negative prompts; {least} or more are needed."
            )


@takes_model
def read_contrast(
    model: HookedModel,
    positive: Int[Tensor, "n pos"],
    negative: Int[Tensor, "m pos2"],
    hook_point: str,
    *,
    masks: tuple[Bool[Tensor, "n pos"], Bool[Tensor, "m pos2"]] | None = None,
    token: Token = -1,
) -> Contrast:
    """Return the activations of both sets at one token of each prompt.

    Args:
        positive, negative: token ids, padded on either side.
        masks: True at the real tokens of the two; None where all are.
        token: place among the real tokens of a prompt; -1 is the last, -2 the one before. One for
            all prompts, or one place for each of both sets (of a word that stands elsewhere in
            every sentence).

    Raises:
        ToolkitError: a prompt is too short for `token`, or places for another number of prompts.

    >>> nice, foolish = torch.tensor([[1, 67, 107, 108, 25]]), torch.tensor([[1, 67, 107, 108, 49]])
    >>> read_contrast("toy/sentiment", nice, foolish, "blocks.0.hook_resid_pre").positive.shape
    torch.Size([1, 64])
    """
    real = masks or (None, None)
    places = (token, token) if isinstance(token, int) else token
    return Contrast(
        hook_point,
        _read(model, positive, hook_point, real[0], places[0]),
        _read(model, negative, hook_point, real[1], places[1]),
    )


def differences(contrast: Contrast) -> Float[Tensor, "pair *features"]:
    """Return positive minus negative, pair by pair.

    Raises:
        ToolkitError: rows have no partner.

    >>> pairs = Contrast("hook_embed", torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0], [0.0]]))
    >>> differences(pairs).tolist()
    [[2.0], [4.0]]
    """
    if contrast.positive.shape != contrast.negative.shape:
        raise ToolkitError(
            f"{len(contrast.positive)} positive and {len(contrast.negative)} negative prompts are"
            " no pairs; give each prompt its partner."
        )
    return contrast.positive.double() - contrast.negative.double()


def shuffled_differences(
    x: Float[Tensor, "n d"],
    unit: Int[Tensor, " n"],
    label: Int[Tensor, " n"],
    *,
    draws: int,
    seed: int,
) -> list[Float[Tensor, " d"]]:
    """Return mean differences of two classes whose labels, 0 and 1, are shuffled over units.

    Where units (words, say) and not prompts carry the label these are the null of a mean
    difference: every unit's prompts go together, and either class is spread evenly over the new
    ones.

    >>> x, words = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.arange(4)
    >>> drawn = shuffled_differences(x, words, torch.tensor([0, 0, 1, 1]), draws=3, seed=0)
    >>> {abs(float(difference)) <= 1 for difference in drawn}  # the true one is 2
    {True}
    """
    means, own = unit_means(x, unit, label)
    relabelled = balanced_relabellings(own, draws=draws, seed=seed)
    return [means[label == 1].mean(0) - means[label == 0].mean(0) for label in relabelled]


def pair_agreement(
    contrast: Contrast,
    *,
    unit: Int[Tensor, " n"] | None = None,
    unit_name: str = "pairs",
    seed: int = 0,
) -> Estimate:
    """Estimate how far pairs point the same way: mean cosine to the mean of the others, in [-1, 1].

    The pair's whole unit is left out of the mean it is compared with: included, random differences
    would agree by 1 / sqrt(units). Pairs whose prompts give the same activation count as 0.

    Args:
        contrast: of pairs, row by row.
        unit: which exchangeable unit each pair belongs to (a pair of words in several sentences,
            say); None where each pair is its own. The interval resamples units.
        unit_name: what a unit is, in the plural.
        seed: of the interval.

    Raises:
        ToolkitError: rows without partners, fewer than two units, or not one for each pair.

    >>> up = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    >>> round(float(pair_agreement(Contrast("hook_embed", up, -up)).value), 6)
    1.0
    """
    pairs = differences(contrast)
    contrast.require(2)
    which = torch.arange(len(pairs)) if unit is None else _numbered(unit, len(pairs))
    sums = torch.zeros(int(which.max()) + 1, pairs.shape[1], dtype=torch.float64)
    others = pairs.sum(0) - sums.index_add_(0, which, pairs)[which]
    # A cosine does not see that the sum of the others is not divided by their number.
    cosine = nn.functional.cosine_similarity(pairs, others, dim=1)
    measured = "cosine in [-1, 1]"
    return bootstrap(cosine, unit=which, unit_name=unit_name, measured=measured, seed=seed)


def separation(
    contrast: Contrast,
    direction: Float[Tensor, " d"],
    *,
    units: tuple[Int[Tensor, " n"], Int[Tensor, " m"]] | None = None,
    unit_name: str = "prompts",
    seed: int = 0,
) -> Estimate:
    """Estimate d' along a direction: the sets' distance over their pooled standard deviation.

    The direction must come from other prompts; on its own training prompts d' is too large.

    Args:
        contrast: of prompts that the direction was not fitted to.
        direction: its length does not matter.
        units: which exchangeable unit (word, say) each positive and each negative prompt belongs
            to; None where each prompt is its own. The interval resamples units. Where a resample
            lacks a set, that set's mean is the sample's; where nothing varies within its sets, the
            standard deviation is.
        unit_name: what a unit is, in the plural.
        seed: of the interval.

    Raises:
        ToolkitError: no prompt varies within its set, fewer than two units, or not one for each
            prompt.

    >>> ends = torch.tensor([[-1.0], [1.0]])  # variance 2 within each set
    >>> contrast = Contrast("hook_embed", 3 + ends, -3 + ends)
    >>> round(float(separation(contrast, torch.tensor([1.0])).value), 4)  # 6 / sqrt(2)
    4.2426
    """
    axis = direction.double() / direction.double().norm()
    along = torch.cat([rows.double() @ axis for rows in (contrast.positive, contrast.negative)])
    positive = torch.arange(len(along)) < len(contrast.positive)
    return bootstrap(
        torch.stack([along, positive.double()], 1),
        unit=None if units is None else _numbered(torch.cat(units), len(along)),
        unit_name=unit_name,
        measured="pooled standard deviations",
        seed=seed,
        statistic=_d_prime,
    )


def _d_prime(
    rows: Float[Tensor, "n 2"], weights: Float[Tensor, "draw n"]
) -> Float[Tensor, " draw"]:
    """d' = (m1 - m0) / sqrt((S1 + S0) / (n - 2)), with S the squared deviations within a set."""
    x, positive = rows[:, 0], rows[:, 1]
    means, scatter = [], torch.zeros(len(weights), dtype=torch.float64)
    for own in (positive, 1 - positive):
        w, sample = weights * own, x[own > 0]
        total = w.sum(1)
        mean = torch.where(total > 0, (w @ x) / total.clamp_min(1e-12), sample.mean())
        scatter = scatter + (w * (x - mean[:, None]).square()).sum(1)
        means.append(mean)
    # Few units may be drawn so that nothing varies within a set: that says nothing of how far apart
    # they lie.
    varies = sum((x[own] - x[own].mean()).square().sum() for own in (positive > 0, positive == 0))
    scatter = torch.where(scatter > 0, scatter, varies)
    return (means[0] - means[1]) / (scatter / (weights.sum(1) - 2)).sqrt()


def _numbered(unit: Int[Tensor, " n"], rows: int) -> Int[Tensor, " n"]:
    """The units numbered from 0."""
    if len(unit) != rows:
        raise ToolkitError(f"got units for {len(unit)} of {rows} rows; give each row its own.")
    return unit.cpu().unique(return_inverse=True)[1]


def _read(
    model: HookedModel, tokens: Tensor, hook_point: str, mask: Tensor | None, token: int | Tensor
) -> Tensor:
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    count = real.sum(1)
    given = torch.full_like(count, token) if isinstance(token, int) else token.to(count)
    if given.shape != count.shape:
        raise ToolkitError(
            f"token names places {tuple(given.shape)} for {len(count)} prompts; give one for each,"
            " or a number."
        )
    place = torch.where(given >= 0, given, count + given)
    outside = ((place < 0) | (place >= count)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ToolkitError(
            f"token {int(given[first])} lies outside a prompt of {int(count[first])} tokens; choose"
            " another."
        )
    order = (real.long().cumsum(1) - 1).masked_fill(~real, -1)
    column = (order == place[:, None]).long().argmax(1)
    return activations(model, tokens, (hook_point,), mask=mask, position=column)[hook_point]
