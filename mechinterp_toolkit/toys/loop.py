"""What the trainers of toys share: nonlinearities, states of weights, the record of a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
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
    """Return the training part of `checkpoint.json`: recipe, seed, steps taken, versions and final
    metrics."""
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
