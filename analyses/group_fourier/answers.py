"""What do the logits and the hidden layer of a group network say about a, b and ab?

`score` judges every pair in float64. `logit_similarity` compares the logits with the characters
chi_rho(a b c^-1), the answer of the group-composition-via-representations algorithm.
`hidden_shares` splits the activations over what depends on a alone, on b alone, on the product ab
alone, and over irreps. `prune` zeroes neurons one after the other.

None of them builds a |G|^3 cube beside the logits themselves: characters enter through the logits
summed over the pairs of each product, a |G| x |G| matrix.

What would fool it: float32, whose log-softmax is quantised at 1.2e-7, above the losses of such
networks; and parts of the hidden layer that overlap (a function of a alone has a product part of
size zero only over all pairs), so all pairs are needed.

Source: Chughtai et al. 2023, arXiv:2302.03025; restricted and excluded loss, Nanda et al. 2023,
arXiv:2301.05217; pruning by inverse participation ratio, Doshi et al. 2023, arXiv:2310.13061, here
beside the random order their work lacks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.network import GroupNetwork
from mechinterp_toolkit.groups.table import Group

ROWS_AT_ONCE = 4096  # pairs whose logits are held in float64 together


class Scores(NamedTuple):
    """How each pair is answered, one number per pair, pairs in the order of
    `GroupNetwork.pairs`."""

    logit: Float[Tensor, " pairs"]
    """Logit of the right answer minus the mean logit, in logits."""

    accuracy: Float[Tensor, " pairs"]
    """1 where the right answer has the largest logit of all, else 0 (ties are not right)."""

    loss: Float[Tensor, " pairs"]
    """Cross-entropy in nats, in float64."""


def score(logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"]) -> Scores:
    """Judge the logits of all pairs against the products."""
    return Scores(*(torch.cat(parts) for parts in zip(*_in_pieces(logits, product), strict=True)))


def _in_pieces(logits: Tensor, product: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    pieces = []
    for some, answer in zip(logits.split(ROWS_AT_ONCE), product.split(ROWS_AT_ONCE), strict=True):
        some = some.detach().cpu().double()
        right = some.gather(1, answer[:, None])[:, 0]
        beaten = (some >= right[:, None]).sum(1) == 1
        pieces.append((right - some.mean(1), beaten.double(), some.logsumexp(1) - right))
    return pieces


def quick_score(
    logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"]
) -> tuple[float, float]:
    """Return mean centred logit of the right answer and accuracy, in the logits' own precision: for
    null draws."""
    right = logits.gather(1, product[:, None])
    accuracy = ((logits >= right).sum(1) == 1).double().mean()
    return float((right[:, 0].double() - logits.mean(1)).mean()), float(accuracy)


def by_product(
    group: Group, rows: Float[Tensor, "pairs d"], product: Int[Tensor, " pairs"]
) -> Float[Tensor, "order d"]:
    """Return the mean row of each product, in float64; every product has as many pairs."""
    grouped = rows[product.argsort()].reshape(group.order, group.order, -1)
    return grouped.mean(1, dtype=torch.float64)


def logit_similarity(
    group: Group, logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"] | None = None
) -> Float[Tensor, "left entry"]:
    """Return what the cosines between the centred logits and chi_rho(a b c^-1) are made of; see
    `similarity`.

    Per left element: the inner product with each character, over the character's norm on that slice
    (the same on all), and last the squared norm of the logits. `product` replaces ab by another
    element for each pair.
    """
    order = group.order
    by_element = (
        (group.table.flatten() if product is None else product).reshape(order, order).argsort(1)
    )
    patterns = group.characters[:, group.table[:, group.inverses]].flatten(1)
    varies = (
        patterns.std(1, keepdim=True) > 1e-9
    )  # centring leaves nothing of the trivial character
    patterns = torch.where(
        varies, patterns / patterns.norm(dim=1, keepdim=True), 0.0
    ).T.contiguous()
    parts = []
    for rows, columns in zip(
        logits.split(order), by_element, strict=True
    ):  # one left element at a time
        centred = (rows.double() - rows.double().mean(1, keepdim=True))[columns].flatten()
        parts.append(torch.cat([centred @ patterns, centred.square().sum()[None]]))
    return torch.stack(parts)


def similarity(
    parts: Float[Tensor, "left entry"], weights: Float[Tensor, "draw left"]
) -> Float[Tensor, "draw irrep"]:
    """Return the cosine between the logits, centred over c, and chi_rho(a b c^-1), per irrep; 0 for
    the trivial one.

    The sum of their squares is the share of the logits' variance that characters explain (FVE):
    characters are orthogonal.
    """
    sums = weights @ parts
    return sums[:, :-1] / (sums[:, -1:] * weights.sum(1, keepdim=True)).sqrt()


def fve(
    parts: Float[Tensor, "left entry"], weights: Float[Tensor, "draw left"]
) -> Float[Tensor, " draw"]:
    """Return the share of the logits' variance that all characters together explain, in [0, 1]."""
    return similarity(parts, weights).square().sum(1)


PARTS = ("a", "b", "ab")


def hidden_energy(
    group: Group, hidden: Float[Tensor, "pairs neuron"]
) -> tuple[Float[Tensor, "neuron part irrep"], Float[Tensor, " neuron"]]:
    """Return each neuron's energy in functions of a alone, b alone and ab alone, per irrep, and its
    whole energy.

    Activations are centred over all pairs first, so the trivial irrep holds none of it. The three
    parts of one irrep are orthogonal to each other, and what is left is a function of the pair that
    no one element carries.
    """
    square = hidden.unflatten(0, (group.order, group.order))
    whole = hidden.var(0, correction=0).double() * len(hidden)
    means = [square.mean(1, dtype=torch.float64), square.mean(0, dtype=torch.float64)]
    means.append(by_product(group, hidden, group.table.flatten()))
    centred = torch.stack([m - m.mean(0) for m in means])
    energy = group.isotypic_energy(centred.transpose(1, 2)) * group.order
    return energy.transpose(0, 1), whole


def removed_product(
    group: Group,
    network: GroupNetwork,
    projector: Float[Tensor, "order order"],
    product: Int[Tensor, " pairs"],
) -> Float[Tensor, "pairs order"]:
    """Return the logits with the projected product part of the hidden layer removed, by linearity
    of the unembedding.

    The same, up to rounding, as `ProjectRows(product, projector, "remove")` at the hidden layer, at
    the cost of one |G| x |G| matrix: for the many draws of a null.
    """
    part = projector @ by_product(group, network.hidden, product) @ network.functions[2].T
    return network.logits() - part.to(network.logits().dtype)[product]


def training_pairs(network: GroupNetwork) -> Bool[Tensor, " pairs"] | None:
    """Return which pairs the network was trained on, drawn again from the recorded fraction and
    seed, or None.

    Only checkpoints of this toolkit's own group recipes record them.
    """
    from mechinterp_toolkit.toys.group_task import split_pairs

    record = network.model.provenance.training
    task, training = record.get("task", {}), record.get("training", {})
    if task.get("kind") != "group" or "seed" not in training:
        return None
    pairs = split_pairs(network.order, task["train_fraction"], training["seed"]).train
    chosen = torch.zeros(network.order**2, dtype=torch.bool)
    chosen[pairs[:, 0] * network.order + pairs[:, 1]] = True
    return chosen


def prune(
    network: GroupNetwork,
    product: Int[Tensor, " pairs"],
    orders: Int[Tensor, "curve neuron"],
    steps: int = 10,
) -> Float[Tensor, "left curve step"]:
    """Return the accuracy per left element with the first 0, 1/steps, ... of the neurons of each
    order set to zero.

    Args:
        network: the network.
        product: the right answer of each pair.
        orders: neurons, those to go first in front; one row per curve.
        steps: how many equal parts; the last point, no neuron at all, is left out.
    """
    unembed, curves = network.functions[2].to(network.hidden.dtype), []
    for order in orders:
        left, curve = network.logits(), []
        for piece in torch.tensor_split(order, steps):
            right = left.gather(1, product[:, None])
            correct = ((left >= right).sum(1) == 1).double()
            curve.append(correct.reshape(network.order, network.order).mean(1))
            left = left - network.hidden[:, piece] @ unembed[:, piece].T
        curves.append(torch.stack(curve, 1))
    return torch.stack(curves, 1)
