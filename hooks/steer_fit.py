"""Where does a steering vector come from? Two sets of prompts, one pair, single heads, or an SAE.

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
from mechinterp_toolkit.hooks._contrast import (
    Contrast,
    Token,
    differences,
    pair_agreement,
    read_contrast,
    separation,
    shuffled_differences,
)
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.record import activations

__all__ = [
    "FITS",
    "Contrast",
    "HeadShifts",
    "activation_addition",
    "differences",
    "head_mass_mean_shifts",
    "kmeans_direction",
    "logistic_direction",
    "mean_difference",
    "pair_agreement",
    "pca_direction",
    "read_contrast",
    "sae_decoder_row",
    "separation",
    "shuffled_differences",
    "train_steering_vector",
]

Method = Literal["mean_difference", "kmeans", "pca", "logistic"]


@takes_model
def train_steering_vector(
    model: HookedModel,
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
        positive, negative, masks, token: as for `read_contrast`; "pca" needs partners, row by row.
        hook_point: one with an axis of features and no heads, e.g. "blocks.6.hook_resid_post".
        method: "mean_difference" (CAA), "kmeans" (difference of two centres found without
            labels), "pca" (first component of the paired states, each pair centred) or "logistic"
            (weights of an L2-penalised logistic probe).

    Raises:
        ToolkitError: too few prompts, no difference between the sets, activations with heads, or an
            unknown method.

    >>> nice, foolish = torch.tensor([[1, 67, 107, 108, 25]]), torch.tensor([[1, 67, 107, 108, 49]])
    >>> name = "blocks.0.hook_resid_pre"
    >>> vector = train_steering_vector("toy/sentiment", nice, foolish, name)
    >>> vector.provenance["method"], vector.provenance["n"]
    ('mean_difference', 2)
    """
    if method not in FITS:
        raise ToolkitError(
            f"method is one of {', '.join(FITS)}, not {method!r}.{nearest(method, FITS)}"
        )
    contrast = read_contrast(model, positive, negative, hook_point, masks=masks, token=token)
    direction = FITS[method](contrast)
    unit = direction / direction.norm().clamp_min(torch.finfo(torch.float64).tiny)
    # Oriented from negative to positive, and as long as their distance along it.
    vector = unit * (unit @ mean_difference(contrast))
    if not vector.norm() > 0:
        raise ToolkitError(
            f"the sets don't differ along the {method} direction at {hook_point!r}; check the"
            " prompts."
        )
    origin = _origin(model, method, len(positive) + len(negative), token)
    return SteeringVector.of(hook_point, vector.float(), **origin)


def mean_difference(contrast: Contrast) -> Float[Tensor, " d"]:
    """Return mean of the positive minus mean of the negative activations.

    >>> sets = Contrast("hook_embed", torch.tensor([[3.0, 1.0], [5.0, 1.0]]), torch.zeros(1, 2))
    >>> mean_difference(sets).tolist()
    [4.0, 1.0]
    """
    contrast.require(1)
    return contrast.positive.double().mean(0) - contrast.negative.double().mean(0)


def pca_direction(contrast: Contrast) -> Float[Tensor, " d"]:
    """Return the first principal component of the states, each pair centred on its own mean.

    Its sign is that of the majority of pairs. To centre the differences instead would remove the
    very mean difference that is looked for.

    >>> sets = Contrast("hook_embed", torch.tensor([[3.0, 1.0], [5.0, 9.0]]),
    ...                 torch.tensor([[1.0, 1.0], [2.0, 9.0]]))
    >>> pca_direction(sets).round().int().tolist()
    [1, 0]
    """
    contrast.require(1)
    pairs = differences(contrast)
    first = torch.linalg.svd(pairs, full_matrices=False).Vh[0]
    return first if (pairs @ first > 0).double().mean() >= 0.5 else -first


def kmeans_direction(contrast: Contrast, *, seed: int = 0) -> Float[Tensor, " d"]:
    """Return the difference of the two centres of k-means, which knows no labels; sign by the sets.

    The best of ten starts.

    >>> sets = Contrast("hook_embed", torch.tensor([[3.0], [5.0]]), torch.tensor([[-3.0], [-5.0]]))
    >>> round(float(kmeans_direction(sets)), 4)
    8.0
    """
    from scipy.cluster.vq import kmeans2

    contrast.require(2)
    x, y, scale = _labelled(contrast)
    starts = [kmeans2(x.numpy(), 2, minit="++", seed=seed + i, missing="warn") for i in range(10)]

    def spread(centres: Any, own: Any) -> float:
        return float((x - torch.from_numpy(centres)[torch.from_numpy(own).long()]).square().sum())

    centres = torch.from_numpy(min(starts, key=lambda start: spread(*start))[0])
    direction = (centres[1] - centres[0]) * scale
    return direction if (x[y == 1].mean(0) - x[y == 0].mean(0)) @ direction >= 0 else -direction


def logistic_direction(contrast: Contrast, penalty: float = 1.0) -> Float[Tensor, " d"]:
    """Return the weights w of the logistic probe of least log-loss + penalty / 2 |w|^2.

    The loss is a sum over rows, and the bias is free. Rows are divided by their common root mean
    square first, so that the penalty means the same for any scale.

    >>> sets = Contrast("hook_embed", torch.tensor([[1.0], [1.0]]), torch.tensor([[-1.0], [-1.0]]))
    >>> w = logistic_direction(sets)
    >>> torch.allclose(4 * (-w).sigmoid(), w, atol=1e-6)  # where the gradient is zero
    True
    """
    from scipy.optimize import minimize

    contrast.require(2)
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


@takes_model
def activation_addition(
    model: HookedModel,
    positive: Int[Tensor, "1 pos"],
    negative: Int[Tensor, "1 pos"],
    hook_point: str,
) -> SteeringVector:
    """Return the difference of one pair of prompts at every token, for the first of a prompt.

    Add it with `where=Where(bos=True)` where both prompts begin with the beginning-of-sequence
    token and rows should line up; its own row is then zero. Pad the shorter prompt with spaces to
    the length of the other, as in the paper.

    Raises:
        ToolkitError: the prompts are the same.

    >>> nice, foolish = torch.tensor([[1, 67, 107, 108, 25]]), torch.tensor([[1, 67, 107, 108, 49]])
    >>> vector = activation_addition("toy/sentiment", nice, foolish, "blocks.0.hook_resid_pre")
    >>> vector.axis, (vector.direction != 0).any(1).tolist()
    ('pos', [False, False, False, False, True])
    """
    ours, theirs = (
        activations(model, tokens, (hook_point,))[hook_point][0] for tokens in (positive, negative)
    )
    difference = ours.double() - theirs.double()
    if not difference.norm() > 0:
        raise ToolkitError(
            f"the two prompts give the same activations at {hook_point!r}; give two that differ."
        )
    origin = _origin(model, "activation addition", 2, None)
    return SteeringVector.of(hook_point, difference.float(), axis="pos", **origin)


@takes_model
def sae_decoder_row(
    model: HookedModel, decoder: Float[Tensor, "feature d"], feature: int, hook_point: str
) -> SteeringVector:
    """Return the direction that a feature of a sparse autoencoder writes, as long as its row.

    Args:
        decoder: decoder weights of an SAE trained at `hook_point` of this model.

    Raises:
        ToolkitError: no such feature.

    >>> decoder = torch.eye(64)[:3] * 2
    >>> vector = sae_decoder_row("toy/sentiment", decoder, 1, "blocks.0.hook_resid_post")
    >>> vector.norm, vector.provenance["method"]
    (2.0, 'SAE feature 1')
    """
    if not 0 <= feature < len(decoder):
        raise ToolkitError(
            f"the decoder has {len(decoder)} features, numbered from 0; there is no feature"
            f" {feature}."
        )
    origin = _origin(model, f"SAE feature {feature}", 0, None)
    return SteeringVector.of(hook_point, decoder[feature], **origin)


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


@takes_model
def head_mass_mean_shifts(
    model: HookedModel,
    positive: Int[Tensor, "n pos"],
    negative: Int[Tensor, "m pos2"],
    *,
    top: int,
    masks: tuple[Bool[Tensor, "n pos"], Bool[Tensor, "m pos2"]] | None = None,
    token: Token = -1,
    seed: int = 0,
) -> HeadShifts:
    """Return inference-time-intervention vectors: sigma times the unit mean difference of heads.

    Sigma is the standard deviation of all prompts along the direction, so a multiplier is in
    standard deviations (15 in the paper). Heads are ranked by a logistic probe fitted to one half
    of the prompts and scored on the other.

    Args:
        positive, negative, masks, token: as for `read_contrast`.
        top: number of heads, the best ones.
        seed: of the halves.

    Raises:
        ToolkitError: fewer than four prompts in a set, or fewer heads than asked for.

    >>> good = torch.tensor([[1, 67, 107, 108, word] for word in (3, 4, 25, 26)])  # ... looks nice
    >>> bad = torch.tensor([[1, 67, 107, 108, word] for word in (27, 28, 49, 50)])  # ... foolish
    >>> shifts = head_mass_mean_shifts("toy/sentiment", good, bad, top=2)
    >>> len(shifts.heads), shifts.accuracy.shape
    (2, torch.Size([2, 4]))
    """
    n_layers = model.cfg.n_layers
    contrasts = [
        read_contrast(
            model, positive, negative, f"blocks.{layer}.attn.hook_z", masks=masks, token=token
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
    prompts = len(positive) + len(negative)
    origin = _origin(model, f"mass mean shift of {top} heads", prompts, token)
    vectors = tuple(
        SteeringVector.of(
            contrasts[layer].hook_point, _shifts(contrasts[layer], chosen), axis="head", **origin
        )
        for layer in range(n_layers)
        if (chosen := [head for own, head in heads if own == layer])
    )
    return HeadShifts(vectors, heads, accuracy)


def _labelled(contrast: Contrast) -> tuple[Tensor, Tensor, Tensor]:
    """All rows, centred and of root mean square 1; 1 for positive ones; and what they were."""
    x = torch.cat([contrast.positive, contrast.negative]).double()
    centred = x - x.mean(0)
    scale = centred.square().mean().sqrt()
    y = (torch.arange(len(x)) < len(contrast.positive)).double()
    return centred / scale, y, scale


def _head(contrast: Contrast, head: int) -> Contrast:
    return Contrast(contrast.hook_point, contrast.positive[:, head], contrast.negative[:, head])


def _probe_accuracy(contrast: Contrast, seed: int) -> float:
    """Held-out accuracy of a logistic probe, half of each set against the other half."""
    if min(len(contrast.positive), len(contrast.negative)) < 4:
        raise ToolkitError("a held-out probe needs at least four prompts in each set.")
    generator = torch.Generator().manual_seed(seed)
    fit, held_out = [], []
    for rows in (contrast.positive, contrast.negative):
        order, half = torch.randperm(len(rows), generator=generator), len(rows) // 2
        fit.append(rows[order[:half]])
        held_out.append(rows[order[half:]].double())
    w = logistic_direction(Contrast(contrast.hook_point, *fit))
    middle = (torch.cat(fit).double() @ w).mean()
    right = [held_out[0] @ w > middle, held_out[1] @ w < middle]
    return float(torch.stack([part.double().mean() for part in right]).mean())


def _shifts(contrast: Contrast, heads: list[int]) -> Float[Tensor, "head d_head"]:
    """sigma_h theta_h of Li et al., zero for the heads that were not chosen."""
    shift = torch.zeros(contrast.positive.shape[1:])
    for head in heads:
        own = _head(contrast, head)
        unit = nn.functional.normalize(mean_difference(own), dim=0)
        sigma = (torch.cat([own.positive, own.negative]).double() @ unit).std()
        shift[head] = (sigma * unit).float()
    return shift


def _origin(model: HookedModel, method: str, n: int, token: Token | None) -> dict[str, Any]:
    keys = ("checkpoint", "revision", "fingerprint", "processing", "dtype")
    place = token if token is None or isinstance(token, int) else "one place per prompt"
    known = {key: getattr(model.provenance, key) for key in keys}
    return {"method": method, "n": n, "token": place, **known}
