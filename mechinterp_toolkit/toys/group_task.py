"""Train a `GroupMLP` or a `GroupTransformer` on part of a Cayley table until it knows the rest.

Full-batch Adam with coupled L2 on a fraction of the table drawn by the seed; losses are taken in
float64, because a float32 log-softmax is quantised at 1.2e-7, above the losses such networks reach.

Source: recipe of Wu et al. 2024, arXiv:2410.07476.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.checkpoint import write_checkpoint
from mechinterp_toolkit.groups import Group, group_by_name
from mechinterp_toolkit.toys import group_transformer
from mechinterp_toolkit.toys.group_mlp import GroupMLP
from mechinterp_toolkit.toys.group_transformer import GroupTransformer
from mechinterp_toolkit.toys.loop import ACTIVATIONS, Progress, State, fit, training_record
from mechinterp_toolkit.toys.pairs import Split, split_pairs
from mechinterp_toolkit.toys.recipes import GroupRecipe

Network = GroupMLP | GroupTransformer

REPORT_EVERY = 20  # steps between progress calls: the test set costs as much as a training step


class Score(NamedTuple):
    """How well a network knows the product of some pairs."""

    loss: float
    """Mean cross-entropy in nats, computed in float64."""

    accuracy: float
    """Fraction of pairs whose largest logit is the product."""


def products(
    table: Int[Tensor, "order order"], pairs: Int[Tensor, "batch 2"]
) -> Int[Tensor, " batch"]:
    """Return the product ab of each pair (a, b), looked up in the Cayley table.

    >>> products(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1, 1], [0, 1]])).tolist()
    [0, 1]
    """
    return table[pairs[:, 0], pairs[:, 1]]


@torch.no_grad()
def evaluate(
    network: Network, table: Int[Tensor, "order order"], pairs: Int[Tensor, "batch 2"]
) -> Score:
    """Return loss and accuracy of `network` on `pairs` under the multiplication `table`."""
    logits, answers = _fast_logits(network, pairs).double(), products(table, pairs)
    loss = torch.nn.functional.cross_entropy(logits, answers)
    return Score(loss.item(), (logits.argmax(-1) == answers).double().mean().item())


def train_group(
    recipe: GroupRecipe,
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train by `recipe` and write the checkpoint folder; see `training.train`."""
    group = group_by_name(recipe.group)
    steps = steps or recipe.steps
    split = split_pairs(group.order, recipe.train_fraction, seed)
    network = _build(recipe, group, seed)
    history = _fit(network, recipe, group.table, split, steps, progress)
    metrics = _metrics(network, group.table, split)
    return write_checkpoint(
        folder,
        architecture=type(network).__name__,
        config=network.config,
        state=network.state_dict(),
        task={
            "kind": "group",
            "group": recipe.group,
            "order": group.order,
            "train_fraction": recipe.train_fraction,
        },
        training=training_record(recipe, seed, steps, metrics),
        history=history,
    )


def _build(recipe: GroupRecipe, group: Group, seed: int) -> Network:
    if recipe.architecture == "transformer":
        return GroupTransformer(
            group.order, d_model=recipe.d_embed, d_mlp=recipe.d_hidden, group=group, seed=seed
        )
    return GroupMLP(
        group.order,
        d_embed=recipe.d_embed,
        d_hidden=recipe.d_hidden,
        activation=recipe.activation,
        group=group,
        seed=seed,
    )


def _fit(
    network: Network,
    recipe: GroupRecipe,
    table: Int[Tensor, "order order"],
    split: Split,
    steps: int,
    progress: Progress | None,
) -> dict[int, State]:
    """Train `network` in place and return the weights at the recipe's history steps."""
    answers = products(table, split.train)
    optimiser = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.l2
    )

    def loss_at(step: int) -> Tensor:
        logits = _fast_logits(network, split.train).double()
        return torch.nn.functional.cross_entropy(logits, answers)

    return fit(
        optimiser,
        loss_at,
        steps,
        progress=progress,
        every=REPORT_EVERY,
        metrics=lambda: _metrics(network, table, split),
        history=recipe.history,
        state=network.state_dict,
    )


def _fast_logits(network: Network, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch order"]:
    """Return `network(pairs)` without its hook points: embeddings multiplied once per element."""
    if isinstance(network, GroupTransformer):
        return group_transformer.fast_logits(network, pairs)
    pre = network.left[pairs[:, 0]] + network.right[pairs[:, 1]]
    logits = ACTIVATIONS[network.activation](pre) @ network.w_out
    return logits if network.b_out is None else logits + network.b_out


def _metrics(network: Network, table: Int[Tensor, "order order"], split: Split) -> dict[str, float]:
    train, test = evaluate(network, table, split.train), evaluate(network, table, split.test)
    return {
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
    }
