"""How often are planted circles found, and what do exact indices cost beside gradient ascent?

    python benchmarks/circles.py            # both
    python benchmarks/circles.py --runs 20  # a quick look

Power: class means of which a share of the variance is a circle, the rest random in 12 dimensions,
in seven templates with noise of the size of a class mean, 768 dimensions; the share of runs with p
<= .05, with the natural order alone and with all candidate orders. Indices: the exact mixture index
of 1,300 points against 10,000 steps of gradient ascent on its smooth form, as published.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from mechinterp_toolkit.geometry.circle import fit_circle
from mechinterp_toolkit.geometry.irreducible import EPSILON, mixture
from mechinterp_toolkit.geometry.orders import Order

D, TEMPLATES, REST = 768, 7, 12
ORDERS: dict[str, tuple[Order, ...]] = {
    "natural": ("natural",),
    "all orders": ("natural", "harmonics", "discrete_log"),
}


def planted(period: int, share: float, generator: torch.Generator) -> Tensor:
    """Activations [period * TEMPLATES, D], class by class."""
    angle = 2 * math.pi * torch.arange(period, dtype=torch.float64) / period

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    circle = torch.stack([angle.cos(), angle.sin()], 1) @ torch.linalg.qr(normal(D, 2)).Q.T
    rest = normal(period, REST) @ torch.linalg.qr(normal(D, REST)).Q.T
    parts = [part / part.square().sum().sqrt() for part in (circle, rest - rest.mean(0))]
    means = math.sqrt(period) * (math.sqrt(share) * parts[0] + math.sqrt(1 - share) * parts[1])
    return (means[:, None] + normal(period, TEMPLATES, D) / math.sqrt(D)).flatten(0, 1)


def power(runs: int) -> None:
    """Print the share of runs in which an order is found."""
    for period in (7, 12):
        labels, unit = (
            torch.arange(period).repeat_interleave(TEMPLATES),
            torch.arange(TEMPLATES).repeat(period),
        )
        for share in (0.0, 0.2, 0.3, 0.5):
            for name, orders in ORDERS.items():
                found = 0
                for seed in range(runs):
                    acts = planted(period, share, torch.Generator().manual_seed(seed))
                    fit = fit_circle(
                        acts,
                        labels,
                        period,
                        unit=unit,
                        orders=orders,
                        draws=5040 if period == 7 else 999,
                    )
                    found += fit.p <= 0.05
                print(f"{period} classes, share {share}, {name}: p <= .05 in {found} of {runs}")


def ascent(points: Tensor, steps: int, seed: int) -> float:
    """The mixture index by gradient ascent: a direction, an offset, one start."""
    generator = torch.Generator().manual_seed(seed)
    v, c = torch.randn(2, generator=generator).requires_grad_(), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([v, c], lr=0.1, maximize=True)
    points = points.float()

    def normalised() -> Tensor:
        projected = points @ v + c
        return projected / projected.square().mean().sqrt()

    for _ in range(steps):
        optimiser.zero_grad()
        torch.sigmoid(EPSILON - normalised().abs()).mean().backward()
        optimiser.step()
    return float((normalised().abs() < EPSILON).float().mean())


def indices(steps: int = 10_000) -> None:
    """Print both values and the ratio of their times."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(1300, generator=generator, dtype=torch.float64)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    points = points + 0.1 * torch.randn(1300, 2, generator=generator, dtype=torch.float64)
    mixture(points)
    began = time.perf_counter()
    exact = mixture(points)
    middle = time.perf_counter()
    climbed = [ascent(points, steps, seed) for seed in range(2)]
    taken = (time.perf_counter() - middle) / len(climbed)
    print(
        f"mixture index of 1,300 points: exact {exact:.3f}, gradient ascent"
        f" {', '.join(f'{c:.3f}' for c in climbed)} ({steps} steps); the ascent takes"
        f" {taken / (middle - began):.0f} times as long"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    torch.set_num_threads(1)
    indices()
    power(parser.parse_args().runs)
