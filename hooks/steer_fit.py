"""Where does a steering vector come from? From two sets of prompts, one pair of them, single heads,
or an SAE.

`train_steering_vector` reads one activation per prompt and fits a direction to the two sets.
Whatever the method, a multiplier of 1 moves the mean of the negative prompts as far along the
direction as the positive ones lie: so methods can be compared at equal multipliers.

What would fool it: sets that differ in more than the concept (length, topic, the last token), for
then the direction does too; too few pairs to agree. `pair_agreement` says how far pairs point the
same way, and it predicts success.

Source: Rimsky et al. 2024, arXiv:2312.06681 (mean difference); Turner et al. 2023, arXiv:2308.10248
(one pair); Zou et al. 2023, arXiv:2310.01405 (PCA of pairs); Li et al. 2023, arXiv:2306.03341 (mass
mean shift of heads); Braun et al. 2025, arXiv:2505.22637 (agreement of pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechinterp_toolkit.errors import ToolkitError, nearest
from mechinterp_toolkit.geometry.classes import unit_means
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import balanced_relabellings, bootstrap

Method = Literal["mean_difference", "kmeans", "pca", "logistic"]

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


def read_contrast(
    model: HookedModel | nn.Module,
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
    """
    hooked = load_model(model)
    rows = [
        _read(
            hooked,
            tokens,
            hook_point,
            None if masks is None else masks[i],
            token if isinstance(token, int) else token[i],
        )
        for i, tokens in enumerate((positive, negative))
    ]
    return Contrast(hook_point, rows[0], rows[1])


def train_steering_vector(
    model: HookedModel | nn.Module,
    positive: Int[Tensor, "n pos"],
    negative: Int[Tensor, "m pos2"],
    hook_point: str,
    *,
    method: Method = "mean_difference",
    masks: tuple[Bool[Tensor, "n pos"], Bool[Tensor, "m pos2"]] | None = None,
    token: Token = -1,
) -> SteeringVector:
    """Return the vector that separates two sets of prompts at one hook point.

    Args:
        model: a `HookedModel` or a TransformerLens model.
        positive, negative, masks, token: as for `read_contrast`; "pca" needs partners, row by row.
        hook_point: one with an axis of features and no heads, e.g. "blocks.6.hook_resid_post".
        method: "mean_difference" (CAA), "kmeans" (difference of two centres found without
            labels), "pca" (first component of the paired states, each pair centred) or "logistic"
            (weights of an L2-penalised logistic probe).

    Raises:
        ToolkitError: too few prompts, no difference between the sets, activations with heads, or an
            unknown method.
    """
    hooked = load_model(model)
    if method not in FITS:
        raise ToolkitError(
            f"method is one of {', '.join(FITS)}, not {method!r}.{nearest(method, FITS)}"
        )
    contrast = read_contrast(hooked, positive, negative, hook_point, masks=masks, token=token)
    direction = FITS[method](contrast)
    difference = contrast.positive.double().mean(0) - contrast.negative.double().mean(0)
    unit = direction / direction.norm().clamp_min(torch.finfo(torch.float64).tiny)
    vector = unit * (
        unit @ difference
    )  # oriented from negative to positive, and as long as their distance along it
    if not vector.norm() > 0:
        raise ToolkitError(
            f"the sets don't differ along the {method} direction at {hook_point!r}; check the"
            " prompts."
        )
    return SteeringVector.of(
        hook_point, vector.float(), **_origin(hooked, method, len(positive) + len(negative), token)
    )


def mean_difference(contrast: Contrast) -> Float[Tensor, " d"]:
    """Return mean of the positive minus mean of the negative activations."""
    _check_flat(contrast, 1)
    return contrast.positive.double().mean(0) - contrast.negative.double().mean(0)


def pca_direction(contrast: Contrast) -> Float[Tensor, " d"]:
    """Return the first principal component of the states, each pair centred on its own mean; sign
    by the majority.

    Centring the differences instead would remove the very mean difference that is looked for.
    """
    _check_flat(contrast, 1)
    pairs = differences(contrast)
    first = torch.linalg.svd(pairs, full_matrices=False).Vh[0]
    return first if (pairs @ first > 0).double().mean() >= 0.5 else -first


def kmeans_direction(contrast: Contrast, *, seed: int = 0) -> Float[Tensor, " d"]:
    """Return the difference of the two centres of k-means, which knows no labels; sign by the sets.

    The best of ten starts.
    """
    from scipy.cluster.vq import kmeans2

    _check_flat(contrast, 2)
    x, y, scale = _labelled(contrast)
    starts = [kmeans2(x.numpy(), 2, minit="++", seed=seed + i, missing="warn") for i in range(10)]
    spread = [
        float((x - torch.from_numpy(centres)[torch.from_numpy(own).long()]).square().sum())
        for centres, own in starts
    ]
    centres = torch.from_numpy(starts[spread.index(min(spread))][0])
    direction = (centres[1] - centres[0]) * scale
    return direction if (x[y == 1].mean(0) - x[y == 0].mean(0)) @ direction >= 0 else -direction


def logistic_direction(contrast: Contrast, penalty: float = 1.0) -> Float[Tensor, " d"]:
    """Return the weights w of the logistic probe that minimises sum of log-loss + penalty / 2
    |w|^2, bias free.

    Rows are divided by their common root mean square first, so that the penalty means the same for
    any scale.
    """
    from scipy.optimize import minimize

    _check_flat(contrast, 2)
    x, y, scale = _labelled(contrast)

    def loss_and_gradient(parameters: Any) -> tuple[float, Any]:
        w = torch.from_numpy(parameters)
        logit = x @ w[:-1] + w[-1]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, y, reduction="sum")
        wrong_by = logit.sigmoid() - y
        gradient = torch.cat([x.T @ wrong_by + penalty * w[:-1], wrong_by.sum()[None]])
        return float(loss + penalty / 2 * w[:-1].square().sum()), gradient.numpy()

    start = torch.zeros(x.shape[1] + 1, dtype=torch.float64).numpy()
    fitted = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=_LBFGS)
    if not fitted.success:
        raise ToolkitError(
            f"the logistic probe at {contrast.hook_point!r} did not converge: {fitted.message}."
        )
    return torch.from_numpy(fitted.x[:-1]) / scale


# The default ftol of 2e-9 stops where weights are still off by 1e-4.
_LBFGS = {"maxiter": 1000, "gtol": 1e-7, "ftol": 1e-14}

FITS = {
    "mean_difference": mean_difference,
    "kmeans": kmeans_direction,
    "pca": pca_direction,
    "logistic": logistic_direction,
}


def activation_addition(
    model: HookedModel | nn.Module,
    positive: Int[Tensor, "1 pos"],
    negative: Int[Tensor, "1 pos"],
    hook_point: str,
) -> SteeringVector:
    """Return the difference of one pair of prompts at every token, to be added to the first tokens
    of a prompt.

    Add it with `where=Where(bos=True)` where both prompts begin with the beginning-of-sequence
    token and rows should line up; its own row is then zero. Pad the shorter prompt with spaces to
    the length of the other, as in the paper.

    Raises:
        ToolkitError: the prompts are the same.
    """
    hooked = load_model(model)
    ours, theirs = (
        activations(hooked, tokens, (hook_point,))[hook_point][0] for tokens in (positive, negative)
    )
    difference = ours.double() - theirs.double()
    if not difference.norm() > 0:
        raise ToolkitError(
            f"the two prompts give the same activations at {hook_point!r}; give two that differ."
        )
    return SteeringVector.of(
        hook_point,
        difference.float(),
        axis="pos",
        **_origin(hooked, "activation addition", 2, None),
    )


def sae_decoder_row(
    model: HookedModel | nn.Module,
    decoder: Float[Tensor, "feature d"],
    feature: int,
    hook_point: str,
) -> SteeringVector:
    """Return the direction that a feature of a sparse autoencoder writes, as long as its row.

    Args:
        decoder: decoder weights of an SAE trained at `hook_point` of this model.

    Raises:
        ToolkitError: no such feature.
    """
    if not 0 <= feature < len(decoder):
        raise ToolkitError(
            f"the decoder has {len(decoder)} features, numbered from 0; there is no feature"
            f" {feature}."
        )
    return SteeringVector.of(
        hook_point,
        decoder[feature],
        **_origin(load_model(model), f"SAE feature {feature}", 0, None),
    )


@dataclass(frozen=True, eq=False)
class HeadShifts:
    """Mass mean shifts of the heads whose probes do best."""

    vectors: tuple[SteeringVector, ...]
    """One per layer that has a chosen head, with axis "head"; zero rows for heads that were not
    chosen."""

    heads: tuple[tuple[int, int], ...]
    """The chosen (layer, head), best probe first."""

    accuracy: Float[Tensor, "layer head"]
    """Accuracy of each head's probe on held-out prompts, in [0, 1]."""


def head_mass_mean_shifts(
    model: HookedModel | nn.Module,
    positive: Int[Tensor, "n pos"],
    negative: Int[Tensor, "m pos2"],
    *,
    top: int,
    masks: tuple[Bool[Tensor, "n pos"], Bool[Tensor, "m pos2"]] | None = None,
    token: Token = -1,
    seed: int = 0,
) -> HeadShifts:
    """Return inference-time-intervention vectors: for the `top` heads, sigma times the unit mean
    difference.

    Sigma is the standard deviation of all prompts along the direction, so a multiplier is in
    standard deviations (15 in the paper). Heads are ranked by a logistic probe fitted to one half
    of the prompts and scored on the other.

    Raises:
        ToolkitError: fewer than four prompts in a set, or fewer heads than asked for.
    """
    hooked = load_model(model)
    n_layers = hooked.cfg.n_layers
    contrasts = [
        read_contrast(
            hooked, positive, negative, f"blocks.{layer}.attn.hook_z", masks=masks, token=token
        )
        for layer in range(n_layers)
    ]
    n_heads = contrasts[0].positive.shape[1]
    if not 1 <= top <= n_layers * n_heads:
        raise ToolkitError(f"top={top} heads were asked for; the model has {n_layers * n_heads}.")
    accuracy = torch.tensor(
        [[_probe_accuracy(_head(c, head), seed) for head in range(n_heads)] for c in contrasts]
    )
    best = accuracy.flatten().argsort(descending=True, stable=True)[:top].tolist()
    heads = tuple(divmod(i, n_heads) for i in best)
    origin = _origin(
        hooked, f"mass mean shift of {top} heads", len(positive) + len(negative), token
    )
    vectors = tuple(
        SteeringVector.of(
            contrasts[layer].hook_point, _shifts(contrasts[layer], chosen), axis="head", **origin
        )
        for layer in range(n_layers)
        if (chosen := [h for at, h in heads if at == layer])
    )
    return HeadShifts(vectors, heads, accuracy)


def differences(contrast: Contrast) -> Float[Tensor, "pair *features"]:
    """Return positive minus negative, pair by pair; raises `ToolkitError` where rows have no
    partner."""
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
    """Return mean differences of two classes whose labels, 0 and 1, are shuffled over whole units
    (words, say).

    Where units and not prompts carry the label these are the null of a mean difference: every
    unit's prompts go together, and either class is spread evenly over the new ones.
    """
    means, own = unit_means(x, unit, label)
    drawn = balanced_relabellings(own, draws=draws, seed=seed)
    return [means[one == 1].mean(0) - means[one == 0].mean(0) for one in drawn]


def pair_agreement(
    contrast: Contrast,
    *,
    unit: Int[Tensor, " n"] | None = None,
    unit_name: str = "pairs",
    seed: int = 0,
) -> Estimate:
    """Estimate how far pairs point the same way: mean cosine of each difference to the mean of the
    others', in [-1, 1].

    The pair's whole unit is left out of the mean it is compared with: included, random differences
    would agree by 1 / sqrt(units). Pairs whose prompts give the same activation count as 0.

    Args:
        unit: which exchangeable unit each pair belongs to (a pair of words in several sentences,
            say); None where each pair is its own. The interval resamples units.
        unit_name: what a unit is, in the plural.
        seed: of the interval.

    Raises:
        ToolkitError: rows without partners, fewer than two units, or not one for each pair.
    """
    pairs = differences(contrast)
    _check_flat(contrast, 2)
    which = torch.arange(len(pairs)) if unit is None else _one_each(unit, pairs)
    of_unit = torch.zeros(int(which.max()) + 1, pairs.shape[1], dtype=torch.float64).index_add_(
        0, which, pairs
    )
    others = pairs.sum(0) - of_unit[which]  # cosines don't see the missing division
    cosine = nn.functional.cosine_similarity(pairs, others, dim=1)
    return bootstrap(
        cosine, unit=which, unit_name=unit_name, measured="cosine in [-1, 1]", seed=seed
    )


def separation(
    contrast: Contrast,
    direction: Float[Tensor, " d"],
    *,
    units: tuple[Int[Tensor, " n"], Int[Tensor, " m"]] | None = None,
    unit_name: str = "prompts",
    seed: int = 0,
) -> Estimate:
    """Estimate d' along a direction: difference of the two sets' mean projections over their pooled
    standard deviation.

    The direction must come from other prompts; on its own training prompts d' is too large.

    Args:
        units: which exchangeable unit (word, say) each positive and each negative prompt belongs
            to; None where each prompt is its own. The interval resamples units. Where a resample
            lacks a set, that set's mean is the sample's; where nothing varies within its sets, the
            standard deviation is.
        unit_name: what a unit is, in the plural.
        seed: of the interval.

    Raises:
        ToolkitError: no prompt varies within its set, fewer than two units, or not one for each
            prompt.
    """
    axis = direction.double() / direction.double().norm()
    sets = (contrast.positive.double() @ axis, contrast.negative.double() @ axis)
    label = torch.cat(
        [torch.full((len(part),), float(1 - i), dtype=torch.float64) for i, part in enumerate(sets)]
    )
    rows = torch.stack([torch.cat(sets), label], 1)
    return bootstrap(
        rows,
        unit=None if units is None else _one_each(torch.cat(units), rows),
        unit_name=unit_name,
        measured="pooled standard deviations",
        seed=seed,
        statistic=_d_prime,
    )


def _one_each(unit: Int[Tensor, " n"], rows: Tensor) -> Int[Tensor, " n"]:
    """The units numbered from 0."""
    if len(unit) != len(rows):
        raise ToolkitError(f"got units for {len(unit)} of {len(rows)} rows; give each row its own.")
    return unit.cpu().unique(return_inverse=True)[1]


def _d_prime(rows: Tensor, weights: Tensor) -> Tensor:
    x, positive = rows[:, 0], rows[:, 1]
    means, scatter = [], torch.zeros(len(weights), dtype=torch.float64)
    for own in (positive, 1 - positive):
        w = weights * own
        total = w.sum(1)
        mean = torch.where(total > 0, (w @ x) / total.clamp_min(1e-12), x[own > 0].mean())
        scatter = scatter + (w * (x - mean[:, None]).square()).sum(1)
        means.append(mean)
    # Few units may be drawn so that nothing varies within a set: that says nothing of how far apart
    # they lie.
    scatter = torch.where(
        scatter > 0, scatter, _scatter(x[positive > 0]) + _scatter(x[positive == 0])
    )
    return (means[0] - means[1]) / (scatter / (weights.sum(1) - 2)).sqrt()


def _scatter(x: Tensor) -> Tensor:
    return (x - x.mean()).square().sum()


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


def _check_flat(contrast: Contrast, least: int) -> None:
    shapes = tuple(contrast.positive.shape), tuple(contrast.negative.shape)
    if contrast.positive.dim() != 2:
        raise ToolkitError(
            f"{contrast.hook_point!r} has rows {shapes[0][1:]}; choose one head, or a point without"
            " heads."
        )
    if min(len(contrast.positive), len(contrast.negative)) < least:
        raise ToolkitError(
            f"got {shapes[0][0]} positive and {shapes[1][0]} negative prompts; {least} or more are"
            " needed."
        )


def _labelled(contrast: Contrast) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.cat([contrast.positive, contrast.negative]).double()
    centred = x - x.mean(0)
    scale = centred.square().mean().sqrt()
    y = torch.zeros(len(x), dtype=torch.float64)
    y[: len(contrast.positive)] = 1
    return centred / scale, y, scale


def _head(contrast: Contrast, head: int) -> Contrast:
    return Contrast(contrast.hook_point, contrast.positive[:, head], contrast.negative[:, head])


def _probe_accuracy(contrast: Contrast, seed: int) -> float:
    """Held-out accuracy of a logistic probe, half of each set against the other half."""
    if min(len(contrast.positive), len(contrast.negative)) < 4:
        raise ToolkitError("a held-out probe needs at least four prompts in each set.")
    generator = torch.Generator().manual_seed(seed)
    fit, held = [], []
    for rows in (contrast.positive, contrast.negative):
        order, half = torch.randperm(len(rows), generator=generator), len(rows) // 2
        fit.append(rows[order[:half]])
        held.append(rows[order[half:]].double())
    w = logistic_direction(Contrast(contrast.hook_point, *fit))
    middle = torch.cat([rows.double() @ w for rows in fit]).reshape(-1).mean()
    right = [held[0] @ w > middle, held[1] @ w < middle]
    return float(torch.stack([part.double().mean() for part in right]).mean())


def _shifts(contrast: Contrast, heads: list[int]) -> Float[Tensor, "head d_head"]:
    shift = torch.zeros(contrast.positive.shape[1:])
    for head in heads:
        one = _head(contrast, head)
        unit = nn.functional.normalize(mean_difference(one), dim=0)
        sigma = (torch.cat([one.positive, one.negative]).double() @ unit).std()
        shift[head] = (sigma * unit).float()
    return shift


def _origin(model: HookedModel, method: str, n: int, token: Token | None) -> dict[str, Any]:
    known = {
        k: getattr(model.provenance, k)
        for k in ("checkpoint", "revision", "fingerprint", "processing", "dtype")
    }
    place = token if token is None or isinstance(token, int) else "one place per prompt"
    return {"method": method, "n": n, "token": place, **known}
