"""What does fitting every neuron of an adder in closed form cost beside gradient descent per
neuron?

    python benchmarks/helix.py

4,587 neurons on 1,000 pairs: one least-squares problem with held-out sums against 2,500 epochs of
gradient descent on the same columns for one neuron (as published), times the number of neurons. The
last column is a sanity check, not a comparison: the closed form must not fit worse.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from mechinterp_toolkit.geometry.neurons import _design, fit_neurons

NEURONS, PAIRS = 4587, 1000
PERIODS = (2, 5, 10, 100)


def descend(design: Tensor, neuron: Tensor, epochs: int) -> float:
    """Fit one neuron by gradient descent; return its R2."""
    weights = torch.zeros(design.shape[1], requires_grad=True)
    optimiser = torch.optim.SGD([weights], lr=0.05)
    for _ in range(epochs):
        optimiser.zero_grad()
        (design @ weights - neuron).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        return float(
            1 - (neuron - design @ weights).square().sum() / (neuron - neuron.mean()).square().sum()
        )


def main(epochs: int) -> None:
    """Print the ratio."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(100, (2, PAIRS), generator=generator)
    design = _design(a, b, PERIODS)[1]
    design = (design - design.mean(0)) / design.std(0).clamp_min(
        1e-9
    )  # descent diverges on lines up to 99
    truth = torch.randn(design.shape[1], NEURONS, generator=generator, dtype=torch.float64)
    neurons = design @ truth + torch.randn(PAIRS, NEURONS, generator=generator, dtype=torch.float64)
    fit_neurons(neurons[:, :8], a, b, PERIODS)
    began = time.perf_counter()
    fits = fit_neurons(neurons, a, b, PERIODS)
    middle = time.perf_counter()
    reached = descend(design.float(), neurons[:, 0].float(), epochs)
    one = time.perf_counter() - middle
    print(
        f"{NEURONS} neurons on {PAIRS} pairs: closed form {middle - began:.2f} s with five folds;"
        f" descent, {epochs} epochs, takes {one * NEURONS / (middle - began):.0f} times as long;"
        f" held-out R2 {fits.r2[0]:.3f}, descent in the sample {reached:.3f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2500)
    torch.set_num_threads(1)
    main(parser.parse_args().epochs)
