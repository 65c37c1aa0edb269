"""What do the answers lose when what some irreps say about the product is removed?

At the hidden layer, rows belong to the pairs (a, b). The part of an activation that depends on the
product ab alone is its mean over the pairs of each product; of that part, what the irreps hold is
kept alone ("keep", restricted loss) or taken away ("remove", excluded loss).

What would fool it: any removal of as many directions may hurt. A scrambled product of the same rank
is removed beside it.

Source: restricted and excluded loss, Nanda et al. 2023, arXiv:2301.05217; on groups, Chughtai et
al. 2023, arXiv:2302.03025.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.answers import (
    Scores,
    by_left,
    quick_score,
    removed_product,
    score,
    scrambled_product,
    training_pairs,
)
from mechinterp_toolkit.analyses.group_fourier.network import GroupNetwork
from mechinterp_toolkit.groups import Group
from mechinterp_toolkit.hooks.fourier import ProjectRows, irrep_projector
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

EDITS = ("none", "keep", "remove", "remove scrambled")


class ProductEdits(NamedTuple):
    """What each edit of the hidden layer does; all None where there is no irrep to edit."""

    edited_accuracy: Estimate | None = None
    """Fraction of all pairs answered right under each edit, [edit], in [0, 1]."""

    edited_loss: Estimate | None = None
    """Cross-entropy over all pairs under each edit, [edit], in nats."""

    logit_drop: Estimate | None = None
    """Fall of the right answer's centred logit when the product part is removed, in logits."""

    accuracy_drop: Estimate | None = None
    """Fall of the accuracy when the product part is removed, in [0, 1]."""

    training_loss: Estimate | None = None
    """Cross-entropy over the training pairs under each edit, [edit], in nats, where they are known.
    """


def edit_product(
    network: GroupNetwork, group: Group, irreps: list[str], *, draws: int, seed: int
) -> ProductEdits:
    """Keep or remove what some irreps say about ab, and about `draws` scrambled products.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network, known_group
    >>> network = group_network("toy/a5")
    >>> edits = edit_product(network, known_group(network), ["4"], draws=3, seed=0)
    >>> edits.accuracy_drop.text()
    '1 [1, 1]'
    """
    product = group.table.flatten()
    projector = irrep_projector(group, irreps)
    generator = torch.Generator().manual_seed(seed)
    scrambled = [scrambled_product(group, generator) for _ in range(draws)]

    def run(element: Int[Tensor, " pairs"], mode: Literal["keep", "remove"]) -> Scores:
        edit = ProjectRows(element, projector, mode)
        return score(network.logits({network.hidden_site: edit}), product)

    base, removed = score(network.logits(), product), run(product, "remove")
    judged = (base, run(product, "keep"), removed, run(scrambled[0], "remove"))
    null = torch.tensor(
        [quick_score(removed_product(group, network, projector, s), product) for s in scrambled]
    )
    fall = torch.tensor([float(base.logit.mean()), float(base.accuracy.mean())]) - null
    accuracy = by_left(torch.stack([scores.accuracy for scores in judged], 1), group.order)
    loss = torch.stack([scores.loss for scores in judged], 1)
    trained = training_pairs(network)
    return ProductEdits(
        _by_edit(accuracy, "fraction of pairs in [0, 1]", "left elements", seed),
        _by_edit(by_left(loss, group.order), "nats", "left elements", seed),
        _drop(by_left(base.logit - removed.logit, group.order), fall[:, 0], "logits", seed),
        _drop(
            by_left(base.accuracy - removed.accuracy, group.order),
            fall[:, 1],
            "fraction of pairs in [0, 1]",
            seed,
        ),
        None if trained is None else _by_edit(loss[trained], "nats", "training pairs", seed),
    )


def _by_edit(values: Float[Tensor, "unit edit"], measured: str, units: str, seed: int) -> Estimate:
    return bootstrap(
        values,
        unit_name=units,
        measured=measured,
        seed=seed,
        axes=("edit",),
        labels={"edit": EDITS},
    )


def _drop(
    drop: Float[Tensor, " left"], control: Float[Tensor, " draw"], measured: str, seed: int
) -> Estimate:
    return bootstrap(
        drop,
        unit_name="left elements",
        measured=measured,
        seed=seed,
        control=control,
        control_name="product scrambled",
    )
