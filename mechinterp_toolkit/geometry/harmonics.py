"""How is the variance between class means spread over the harmonics of their order?

The Fourier transform of the class means along the order: the first harmonic is a circle, the second
doubles its angle, and so on. All of them together explain everything, so a share says how the
variance is spread, and only beside permuted classes whether that is more than chance.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860 (circles among class means).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.geometry.arguments import some_draws
from mechinterp_toolkit.geometry.cycle import checked_cycle
from mechinterp_toolkit.results import Estimate


def harmonics(
    acts: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    period: int,
    *,
    unit: Int[Tensor, " n"] | None = None,
    most: int = 3,
    draws: int = 199,
    seed: int = 0,
) -> Estimate:
    """Estimate the share of the variance between class means at each harmonic, [harmonic].

    Args:
        acts, labels, period, unit: as for `fit_circle`.
        most: harmonics looked at; there are half as many as classes.
        draws: permutations of the classes behind the control.
        seed: of permutations and resampling.

    Raises:
        ToolkitError: as `fit_circle`, or no draws.

    >>> angle = 2 * torch.pi * torch.arange(7) / 7
    >>> doubled = torch.stack([(2 * angle).cos(), (2 * angle).sin()], 1)
    >>> [round(share, 3) for share in harmonics(doubled, torch.arange(7), 7).value.tolist()]
    [0.0, 1.0, 0.0]
    """
    cycle = checked_cycle(acts, labels, period, unit)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(period, generator=generator) for _ in range(some_draws(draws))]
    return cycle.estimate(
        lambda means: harmonic_shares(means, most),
        measured="fraction of the variance in [0, 1]",
        seed=seed,
        control=harmonic_shares(cycle.means[torch.stack(orders)], most),
        control_name="classes permuted",
        axes=("harmonic",),
    )


def harmonic_shares(
    means: Float[Tensor, "*draw label d"], most: int
) -> Float[Tensor, "*draw harmonic"]:
    """Return the share of each of the first harmonics, in [0, 1].

    >>> harmonic_shares(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), 2)  # the last has no partner
    tensor([0., 1.])
    """
    power = torch.fft.rfft(means, dim=-2).abs().square().sum(-1)[..., 1:]
    partners = torch.full((power.shape[-1],), 2.0, dtype=power.dtype)
    if means.shape[-2] % 2 == 0:
        partners[-1] = 1.0  # the alternating wave has no partner of negative frequency
    shares = power * partners
    total = shares.sum(-1, keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
    return (shares / total)[..., :most]
