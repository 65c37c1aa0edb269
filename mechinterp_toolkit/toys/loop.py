"""What the trainers of toys share: the loop, nonlinearities, states of weights, the record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.toys.recipes import Recipe

ACTIVATIONS = {
    "relu": torch.relu,
    "quadratic": torch.square,
    "abs": torch.abs,
    "gelu": torch.nn.functional.gelu,
}
"""Nonlinearities of a hidden layer, by name."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called as `progress(step, steps, metrics)` now and then during training, and after the last step.
"""

State = dict[str, Tensor]
"""Weights by name."""


def training_record(
    recipe: Recipe, seed: int, steps: int, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Return the training part of `checkpoint.json`: recipe, seed, steps, version, metrics."""
    plain = {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()
    }
    return {
        "recipe": plain,
        "seed": seed,
        "steps": steps,
        "metrics": {k: float(v) for k, v in metrics.items()},
        "torch": torch.__version__,
    }


def copy_state(state: Mapping[str, Tensor]) -> State:
    """Return a copy of `state` that later training steps leave alone."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def fit(
    optimiser: torch.optim.Optimizer,
    loss_at: Callable[[int], Float[Tensor, ""]],
    steps: int,
    *,
    progress: Progress | None,
    every: int,
    metrics: Callable[[], Mapping[str, float]],
    history: Collection[int] = (),
    state: Callable[[], Mapping[str, Tensor]] = dict,
) -> dict[int, State]:
    """Take `steps` steps down the loss and return the weights at the steps of `history` before the
    last.

    Args:
        optimiser: of the weights that are trained.
        loss_at: the loss of a step, counted from 1.
        steps: how many.
        progress: told of the loss and the metrics every so many steps, and after the last.
        every: how many.
        metrics: what else is told.
        history: steps whose weights are kept; 0 are the initial ones.
        state: the weights.
    """
    kept = {0: copy_state(state())} if 0 in history else {}
    for step in range(1, steps + 1):
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in history and step < steps:
            kept[step] = copy_state(state())
        if progress and (step % every == 0 or step == steps):
            progress(step, steps, {"loss": loss.item(), **metrics()})
    return kept
