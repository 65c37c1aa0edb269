"""Which directions stand for the residues of n mod T?

One direction per residue, by class means, a logistic probe or a small sparse autoencoder.

What would fool it: class means of residues contain any trend in n, because larger residues belong
to larger numbers: `detrend` removes a cubic. A direction is no evidence by itself: whether residues
can be read off is for `residue_scan`, whether they are used for `steer_residues`.

Source: Gould et al. 2023, arXiv:2312.09230 (mod-10 features); the permuted residues of the
autoencoder are this toolkit's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, whole_numbers
from mechinterp_toolkit.geometry.regression import class_means, one_hot, polynomials, without
from mechinterp_toolkit.nulls import permutations

DECAY = 1e-3
"""Penalty of the probe's squared weights, on activations of mean squared norm 1."""

Method = Literal["mean", "probe", "sae"]


@dataclass(frozen=True)
class ResidueFeatures:
    """Result of `residue_features`."""

    period: int
    """T of n mod T."""

    method: str
    """mean, probe or sae."""

    features: Float[Tensor, "residue d"]
    """One direction per residue 0 to T - 1, of norm 1."""

    items: Int[Tensor, " residue"]
    """Items that have each residue."""

    latent: Int[Tensor, " residue"] | None = None
    """Latent of the autoencoder whose activation goes with each residue most closely; two residues
    may share one."""

    share: Float[Tensor, " residue"] | None = None
    """Share of a residue's items in which that latent exceeds its mean by more than any other
    latent, in [0, 1]."""

    shuffled: Float[Tensor, "draw residue"] | None = None
    """The same for permuted numbers, latents being chosen again."""


@dataclass(frozen=True)
class Autoencoder:
    """How an autoencoder is trained, on activations of mean squared norm 1."""

    latents: int = 64
    """Its width."""

    sparsity: float = 0.03
    """Its penalty per unit of activation."""

    steps: int = 600
    """Its updates, each on all items."""

    rate: float = 0.01
    """Its learning rate."""

    def __post_init__(self) -> None:
        if self.latents < 1 or self.steps < 1 or self.sparsity < 0 or self.rate <= 0:
            raise ToolkitError(f"got {self}; expected positive numbers.")


def residue_features(
    acts: Float[Tensor, "item d"],
    number: Int[Tensor, " item"],
    period: int,
    method: Method = "mean",
    seed: int = 0,
    *,
    detrend: bool = False,
    autoencoder: Autoencoder = Autoencoder(),
    draws: int = 99,
) -> ResidueFeatures:
    """Return one unit direction per residue of n mod `period`.

    "mean": class mean minus the mean of all items. "probe": weights of a multinomial logistic
    classifier. "sae": decoder row of the latent whose activation correlates most with the class, in
    an autoencoder with one hidden ReLU layer.

    Args:
        acts: one row per item.
        number: its number.
        period: T.
        method: how directions are found.
        seed: of the autoencoder's first weights and of the permutations.
        detrend: remove a cubic in the number first, so that no direction says "larger".
        autoencoder: of the method "sae".
        draws: permutations behind `shuffled`, of the method "sae".

    Raises:
        ToolkitError: a residue has no item or no direction, an unknown method, or arguments that
            are no tensors of finite numbers with a row each.

    >>> digits = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    >>> number = torch.arange(60)
    >>> direction = residue_features(digits[number % 10], number, 10).features[3]
    >>> other = digits[3] - digits.mean(0)
    >>> f"{torch.cosine_similarity(direction, other, dim=0):.3f}"
    '1.000'
    """
    rows = finite(acts, "acts", "item d")
    number = whole_numbers(number, "number", len(rows))
    residue, items = _residues(number, period)
    if method not in get_args(Method):
        raise ToolkitError(f"got method={method!r}; expected 'mean', 'probe' or 'sae'.")
    rows = without(rows, polynomials(number, 3)) if detrend else rows - rows.mean(0)
    if method != "sae":
        fit = class_means if method == "mean" else _probe
        return ResidueFeatures(period, method, _unit(fit(rows, residue, period)), items)
    active, decoder = _train(rows, autoencoder, seed)
    latent, share = _key_latents(active, residue, period)
    orders = permutations(len(rows), draws=draws, seed=seed).index
    shuffled = torch.stack([_key_latents(active, residue[order], period)[1] for order in orders])
    return ResidueFeatures(period, method, _unit(decoder[latent]), items, latent, share, shuffled)


def _residues(number: Int[Tensor, " item"], period: int) -> tuple[Tensor, Tensor]:
    """Residue of each item, and items of each residue."""
    if period < 2:
        raise ToolkitError(f"got period={period}; expected at least 2 residues.")
    residue = number % period
    items = torch.bincount(residue, minlength=period)
    if int(items.min()) == 0:
        missing = (items == 0).nonzero()[:, 0].tolist()
        raise ToolkitError(
            f"no item has residue {missing} mod {period} among {len(number)} items; add items or"
            " take a shorter period."
        )
    return residue, items


def _probe(rows: Tensor, residue: Tensor, period: int) -> Float[Tensor, "residue d"]:
    """Weights of a penalised multinomial logistic regression, the mean over residues (which changes
    nothing) removed."""
    with torch.enable_grad():
        scaled = rows / _size(rows)
        weight = torch.zeros(period, rows.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(period, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            solver.zero_grad()
            loss = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, residue)
            loss = loss + DECAY * weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)
    return (weight - weight.mean(0)).detach()


def _train(
    rows: Float[Tensor, "item d"], options: Autoencoder, seed: int
) -> tuple[Float[Tensor, "item latent"], Float[Tensor, "latent d"]]:
    """Activations and decoder of a sparse autoencoder whose decoder rows have norm 1."""
    generator = torch.Generator().manual_seed(seed)
    scaled, shape = rows / _size(rows), (options.latents, rows.shape[1])
    decoder = torch.randn(shape, generator=generator, dtype=torch.float64)
    decoder = (decoder / decoder.norm(dim=1, keepdim=True)).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    bias, centre = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in shape)
    solver = torch.optim.Adam([encoder, decoder, bias, centre], lr=options.rate)

    def activations() -> Tensor:
        return torch.relu((scaled - centre) @ encoder + bias)

    with torch.enable_grad():
        for _ in range(options.steps):
            solver.zero_grad()
            active = activations()
            missed = (scaled - centre - active @ decoder).square().sum(1).mean()
            (missed + options.sparsity * active.sum(1).mean()).backward()
            solver.step()
            with torch.no_grad():
                decoder /= decoder.norm(dim=1, keepdim=True)
    return activations().detach(), decoder.detach()


def _key_latents(
    active: Float[Tensor, "item latent"], residue: Tensor, period: int
) -> tuple[Tensor, Tensor]:
    """The latent that correlates most with each residue, and the share of its items in which it
    stands out most."""
    above = active - active.mean(0)
    spread = above.norm(dim=0)
    alive = spread > 1e-9 * spread.max().clamp_min(1e-300)
    members = one_hot(residue, period)
    inside = members - members.mean(0)
    correlation = (inside.T @ above) / (spread * inside.norm(dim=0)[:, None]).clamp_min(1e-300)
    latent = correlation.masked_fill(~alive, -torch.inf).argmax(1)
    stands_out = above.argmax(1)
    share = ((stands_out == latent[residue]).double() @ members) / members.sum(0)
    return latent, share


def _size(rows: Tensor) -> Tensor:
    """Root of the mean squared norm of a row."""
    return rows.square().sum(1).mean().sqrt().clamp_min(1e-300)


def _unit(vectors: Float[Tensor, "residue d"]) -> Float[Tensor, "residue d"]:
    norm = vectors.norm(dim=1, keepdim=True)
    none = (norm[:, 0] <= 1e-9 * norm.max()).nonzero()[:, 0].tolist()
    if none:
        raise ToolkitError(
            f"residues {none} have no direction: their items are like all others; check the"
            " activations."
        )
    return vectors / norm
