"""What do the logits and the hidden layer of a group network say about a, b and ab?

`score` judges every pair in float64. `logit_similarity` compares the logits with the characters
chi_rho(a b c^-1), the answer of the group-composition-via-representations algorithm.
`hidden_energy` splits the activations over what depends on a alone, on b alone, on the product ab
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
from mechinterp_toolkit.groups import Group, characters, isotypic_energy
from mechinterp_toolkit.toys.pairs import split_pairs

ROWS_AT_ONCE = 4096  # pairs whose logits are held in float64 together


class Scores(NamedTuple):
    """How each pair is answered: one number per pair, in the order of `GroupNetwork.pairs`."""

    logit: Float[Tensor, " pairs"]
    """Logit of the right answer minus the mean logit, in logits."""

    accuracy: Float[Tensor, " pairs"]
    """1 where the right answer has the largest logit of all, else 0 (ties are not right)."""

    loss: Float[Tensor, " pairs"]
    """Cross-entropy in nats, in float64."""


def score(logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"]) -> Scores:
    """Judge the logits of all pairs against the products.

    >>> score(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1])).accuracy.tolist()
    [1.0, 0.0]
    """
    pieces = []
    for some, answer in zip(logits.split(ROWS_AT_ONCE), product.split(ROWS_AT_ONCE), strict=True):
        rows = some.detach().cpu().double()
        chosen, right = rows.gather(1, answer[:, None])[:, 0], answers_right(rows, answer)
        pieces.append((chosen - rows.mean(1), right, rows.logsumexp(1) - chosen))
    return Scores(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def quick_score(
    logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"]
) -> tuple[float, float]:
    """Return mean centred logit of the right answer and accuracy, in the logits' own precision.

    For null draws.

    >>> quick_score(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1]))
    (0.25, 0.5)
    """
    chosen = logits.gather(1, product[:, None])[:, 0]
    accuracy = answers_right(logits, product).mean()
    return float((chosen.double() - logits.mean(1)).mean()), float(accuracy)


def answers_right(
    logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """Return 1 where the right answer has the largest logit of all, else 0; ties are not right.

    >>> answers_right(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1])).tolist()
    [1.0, 0.0]
    """
    return ((logits >= logits.gather(1, product[:, None])).sum(1) == 1).double()


def by_left(values: Float[Tensor, "pairs *axes"], order: int) -> Float[Tensor, "left *axes"]:
    """Return means over the right element: the left one is the unit that is resampled.

    >>> by_left(torch.tensor([0.0, 2.0, 5.0, 7.0]), 2).tolist()
    [1.0, 6.0]
    """
    return values.unflatten(0, (order, order)).mean(1)


def scrambled_product(group: Group, generator: torch.Generator) -> Int[Tensor, " pairs"]:
    """Return a product with a, b and ab renamed at random: as frequent answers, but no group.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> scrambled_product(cyclic(3), torch.Generator().manual_seed(0)).bincount().tolist()
    [3, 3, 3]
    """
    a, b, c = (torch.randperm(group.order, generator=generator) for _ in range(3))
    return c[group.table[a][:, b]].flatten()


def by_product(
    group: Group, rows: Float[Tensor, "pairs d"], product: Int[Tensor, " pairs"]
) -> Float[Tensor, "order d"]:
    """Return the mean row of each product, in float64; every product has as many pairs.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> rows = torch.tensor([[0.0], [1.0], [3.0], [2.0]])  # of 0+0, 0+1, 1+0, 1+1
    >>> by_product(cyclic(2), rows, cyclic(2).table.flatten()).tolist()
    [[1.0], [2.0]]
    """
    grouped = rows[product.argsort()].reshape(group.order, group.order, -1)
    return grouped.mean(1, dtype=torch.float64)


def logit_similarity(
    group: Group, logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"] | None = None
) -> Float[Tensor, "left entry"]:
    """Return what the cosines of the centred logits with chi_rho(a b c^-1) are made of.

    Per left element: the inner product with each character, over the character's norm on that slice
    (the same on all), and last the squared norm of the logits; see `similarity`. `product` replaces
    ab by another element for each pair.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # a + b mod 2
    >>> logit_similarity(cyclic(2), logits).tolist()
    [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    product = group.table.flatten() if product is None else product
    # Sorted by product, the logits of one left element meet the same |G| x |G| patterns each time:
    # row p of a pattern is chi_rho(p c^-1) over c.
    by_element = product.reshape(group.order, group.order).argsort(1)
    patterns = characters(group)[:, group.table[:, group.inverses]].flatten(1)
    # Centring leaves nothing of the trivial character: rounding of 1e-16 where others vary by 1.
    varies = patterns.std(1, keepdim=True) > 1e-9
    patterns = (varies * patterns / patterns.norm(dim=1, keepdim=True)).T.contiguous()
    parts = []
    for rows, columns in zip(logits.split(group.order), by_element, strict=True):
        centred = (rows.double() - rows.double().mean(1, keepdim=True))[columns].flatten()
        parts.append(torch.cat([centred @ patterns, centred.square().sum()[None]]))
    return torch.stack(parts)


def similarity(
    parts: Float[Tensor, "left entry"], weights: Float[Tensor, "draw left"]
) -> Float[Tensor, "draw irrep"]:
    """Return the cosine between the logits, centred over c, and chi_rho(a b c^-1), per irrep.

    It is 0 for the trivial one. The sum of the squares is the share of the logits' variance that
    characters explain (FVE): characters are orthogonal.

    Args:
        parts: what `logit_similarity` returns.
        weights: of the left elements, a row for each draw.

    >>> parts, everyone = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), torch.ones(1, 2)
    >>> similarity(parts, everyone).tolist()
    [[0.0, 0.5]]
    """
    sums = weights @ parts
    return sums[:, :-1] / (sums[:, -1:] * weights.sum(1, keepdim=True)).sqrt()


def fve(
    parts: Float[Tensor, "left entry"], weights: Float[Tensor, "draw left"]
) -> Float[Tensor, " draw"]:
    """Return the share of the logits' variance that all characters together explain, in [0, 1].

    >>> fve(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), torch.ones(1, 2)).tolist()
    [0.25]
    """
    return similarity(parts, weights).square().sum(1)


PARTS = ("a", "b", "ab")


def hidden_energy(
    group: Group, hidden: Float[Tensor, "pairs neuron"]
) -> tuple[Float[Tensor, "neuron part irrep"], Float[Tensor, " neuron"]]:
    """Return each neuron's energy in functions of a, of b and of ab alone, and its whole energy.

    Activations are centred over all pairs first, so the trivial irrep holds none of it. The three
    parts of one irrep are orthogonal to each other, and what is left is a function of the pair that
    no one element carries.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> parity = torch.tensor([[1.0], [-1.0], [-1.0], [1.0]])  # of a + b mod 2
    >>> energy, whole = hidden_energy(cyclic(2), parity)
    >>> energy.round()[0].tolist(), whole.tolist()
    ([[0.0, 0.0], [0.0, 0.0], [0.0, 4.0]], [4.0])
    """
    square = hidden.unflatten(0, (group.order, group.order))
    whole = hidden.var(0, correction=0).double() * len(hidden)
    means = [square.mean(1, dtype=torch.float64), square.mean(0, dtype=torch.float64)]
    means.append(by_product(group, hidden, group.table.flatten()))
    centred = torch.stack([m - m.mean(0) for m in means])
    energy = isotypic_energy(group, centred.transpose(1, 2)) * group.order
    return energy.transpose(0, 1), whole


def removed_product(
    group: Group,
    network: GroupNetwork,
    projector: Float[Tensor, "order order"],
    product: Int[Tensor, " pairs"],
) -> Float[Tensor, "pairs order"]:
    """Return the logits with the projected product part of the hidden layer removed.

    The same, up to rounding, as `ProjectRows(product, projector, "remove")` at the hidden layer, by
    linearity of the unembedding and at the cost of one |G| x |G| matrix: for the many draws of a
    null.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network
    >>> from mechinterp_toolkit.groups import isotypic_projector, symmetric
    >>> network, group = group_network("toy/s5"), symmetric(5)
    >>> product, standard = group.table.flatten(), isotypic_projector(group, "(4,1)")
    >>> quick_score(removed_product(group, network, standard, product), product)[1] < 0.1
    True
    """
    part = projector @ by_product(group, network.hidden, product) @ network.functions[2].T
    return network.logits() - part.to(network.logits().dtype)[product]


def training_pairs(network: GroupNetwork) -> Bool[Tensor, " pairs"] | None:
    """Return which pairs the network was trained on, or None where nothing is recorded.

    They are drawn again from the recorded fraction and seed, which only checkpoints of this
    toolkit's own group recipes hold.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network
    >>> int(training_pairs(group_network("toy/s5")).sum())  # 40 % of 14,400
    5760
    """
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
    """Return the accuracy per left element with the first 0, 1/steps, ... of the neurons zeroed.

    Args:
        network: the network.
        product: the right answer of each pair.
        orders: neurons, those to go first in front; one row per curve.
        steps: how many equal parts; the last point, no neuron at all, is left out.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network
    >>> from mechinterp_toolkit.groups import symmetric
    >>> network, product = group_network("toy/s5"), symmetric(5).table.flatten()
    >>> prune(network, product, torch.arange(128)[None], 4).mean(0)[0, 0]
    tensor(1., dtype=torch.float64)
    """
    unembed, curves = network.functions[2].to(network.hidden.dtype), []
    for order in orders:
        logits, curve = network.logits(), []
        for piece in torch.tensor_split(order, steps):
            curve.append(by_left(answers_right(logits, product), network.order))
            logits = logits - network.hidden[:, piece] @ unembed[:, piece].T
        curves.append(torch.stack(curve, 1))
    return torch.stack(curves, 1)
