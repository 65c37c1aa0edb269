"""How is the energy of a group network's neurons spread over irreps, and is that more than elements
in any order would have?

Energies per isotypic block depend on no basis and no convention. The null shuffles the elements of
left, right and unembedding, each on its own, which keeps every neuron's values and loses their
place in the group; p-values are corrected over irreps by the maximum statistic. Constants (the
trivial irrep) are never in question.

What would fool it: a spectrum says nothing of multiplication; see `answers` for what the network
does with it.

Source: Chughtai et al. 2023, arXiv:2302.03025; maximum statistic, Westfall & Young 1993.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.network import SITES, GroupNetwork
from mechinterp_toolkit.analyses.group_fourier.neurons import (
    live_neurons,
    pure_neurons,
    trivial_irrep,
)
from mechinterp_toolkit.groups import Group, irrep_labels, isotypic_energy, isotypic_projector
from mechinterp_toolkit.nulls import max_statistic_p
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap


def neuron_energy(
    group: Group, functions: Float[Tensor, "site order neuron"]
) -> Float[Tensor, "neuron site irrep"]:
    """Return the energy of each function in each isotypic block.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> neuron_energy(cyclic(2), torch.tensor([[[1.0], [-1.0]]])).round().tolist()
    [[[0.0, 2.0]]]
    """
    return isotypic_energy(group, functions.transpose(1, 2)).transpose(0, 1)


def shares(
    values: Float[Tensor, "n site irrep"], weights: Float[Tensor, "draw n"]
) -> Float[Tensor, "draw site irrep"]:
    """Return the share of each irrep in the energy of each site, over weighted neurons.

    >>> energy = torch.tensor([[[0.0, 2.0]], [[1.0, 1.0]]])  # two neurons, one site, two irreps
    >>> shares(energy, torch.tensor([[1.0, 1.0], [0.0, 2.0]])).tolist()
    [[[0.25, 0.75]], [[0.5, 0.5]]]
    """
    sums = torch.einsum("dn,nsr->dsr", weights, values)
    return sums / sums.sum(-1, keepdim=True)


def shuffled_shares(
    group: Group, functions: Float[Tensor, "site order neuron"], draws: int, seed: int
) -> Float[Tensor, "draw site irrep"]:
    """Return the shares with the elements of each site shuffled on their own.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> wave = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None].expand(3, 4, 1)  # k = 2
    >>> shuffled_shares(cyclic(4), wave, 2, seed=0).shape
    torch.Size([2, 3, 3])
    """
    projectors = torch.stack([isotypic_projector(group, label) for label in irrep_labels(group)])
    generator = torch.Generator().manual_seed(seed)
    # The energy in a projector P is the sum over x and y of P[x, y] gram[x, y]: a shuffle of the
    # elements only moves the entries of the Gram matrix.
    gram = (functions @ functions.transpose(1, 2)).flatten(1)
    flat, n = projectors.flatten(1).T.contiguous(), group.order
    rows = []
    for _ in range(draws):
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in SITES])
        moved = gram.gather(1, (orders[:, :, None] * n + orders[:, None, :]).flatten(1))
        rows.append(moved @ flat)
    energies = torch.stack(rows)
    return energies / energies.sum(-1, keepdim=True)


def energy_estimate(
    group: Group,
    neurons: Float[Tensor, "neuron site irrep"],
    shuffled: Float[Tensor, "draw site irrep"],
    seed: int,
) -> Estimate:
    """Return the shares per site and irrep, resampling neurons, beside the shuffled ones.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> functions = torch.eye(4).double().expand(3, 4, 4)
    >>> neurons = neuron_energy(cyclic(4), functions)
    >>> shuffled = shuffled_shares(cyclic(4), functions, 2, seed=0)
    >>> energy_estimate(cyclic(4), neurons, shuffled, seed=0).at(site="left", irrep="k=1").text()
    '0.5 [0.5, 0.5]'
    """
    return bootstrap(
        neurons,
        unit_name="neurons",
        measured="fraction of the site's energy in [0, 1]",
        seed=seed,
        statistic=shares,
        axes=("site", "irrep"),
        labels={"site": SITES, "irrep": irrep_labels(group)},
        control=shuffled,
        control_name="elements shuffled",
    )


def embedding_energy(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    """Return the share of each irrep in each embedding table, [table irrep], constants included.

    Control: the elements shuffled.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network, known_group
    >>> network = group_network("toy/s5")
    >>> energy = embedding_energy(network, known_group(network), draws=5, seed=0)
    >>> bool(energy.at(table="a", irrep="(4,1)").value > 0.5 > energy.control.max())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.ones(1, network.embeddings.shape[2], dtype=torch.float64)
    null = []
    for _ in range(draws):
        shuffled = network.embeddings[:, torch.randperm(group.order, generator=generator)]
        null.append(shares(neuron_energy(group, shuffled), everyone))
    return bootstrap(
        neuron_energy(group, network.embeddings),
        unit_name="embedding dimensions",
        measured="fraction of the table's energy in [0, 1]",
        seed=seed,
        statistic=shares,
        axes=("table", "irrep"),
        labels={
            "table": ("a", "b") if len(network.embeddings) == 2 else ("a and b",),
            "irrep": irrep_labels(group),
        },
        control=torch.cat(null),
        control_name="elements shuffled",
    )


def adjusted_p(
    group: Group, share: Float[Tensor, "*steps irrep"], null: Float[Tensor, "draw *steps irrep"]
) -> Float[Tensor, "*steps irrep"]:
    """Return p-values corrected over irreps (and steps of training); 1 for the trivial irrep.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> null = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.5, 0.4], [0.3, 0.4, 0.3]]).double()
    >>> adjusted_p(cyclic(4), torch.tensor([0.0, 0.0, 1.0]).double(), null).tolist()
    [1.0, 1.0, 0.25]
    """
    others = [i for i in range(share.shape[-1]) if i != trivial_irrep(group)]
    p = torch.ones_like(share)
    p[..., others] = max_statistic_p(share[..., others], null[..., others], studentise=True)
    return p


def concentration(
    group: Group,
    neurons: Float[Tensor, "neuron site irrep"],
    keys: list[str],
    shuffled: Float[Tensor, "draw site irrep"],
    seed: int,
) -> Estimate:
    """Return the share of the chosen irreps (of the strongest, where none is chosen).

    The control chooses as many anew among the shuffled shares.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> functions = torch.eye(4).double().expand(3, 4, 4)
    >>> neurons = neuron_energy(cyclic(4), functions)
    >>> shuffled = shuffled_shares(cyclic(4), functions, 2, seed=0)
    >>> concentration(cyclic(4), neurons, ["k=1", "k=2"], shuffled, seed=0).text()
    '0.75 [0.75, 0.75]'
    """
    null, trivial = shuffled.mean(1), trivial_irrep(group)
    # An irrep's share under the null grows with its dimension: choose by the excess over it.
    excess = (null - null.mean(0)) / null.std(0).clamp_min(torch.finfo(null.dtype).tiny)
    excess[:, trivial] = -torch.inf
    observed = neurons.sum(0).mean(0).index_fill(0, torch.tensor([trivial]), -1.0)
    chosen = [irrep_labels(group).index(key) for key in keys] or [int(observed.argmax())]
    picked = excess.topk(len(chosen), dim=1).indices

    def share(
        values: Float[Tensor, "n site irrep"], weights: Float[Tensor, "draw n"]
    ) -> Float[Tensor, " draw"]:
        return shares(values, weights)[:, :, chosen].sum(-1).mean(1)

    return bootstrap(
        neurons,
        unit_name="neurons",
        measured="fraction of the energy in [0, 1]",
        seed=seed,
        statistic=share,
        control=null.gather(1, picked).sum(1),
        control_name=f"elements shuffled, the {len(chosen)} furthest above chosen anew",
    )


def purity(
    group: Group, functions: Float[Tensor, "site order neuron"], draws: int, seed: int
) -> Estimate:
    """Return the fraction of live neurons that are pure; control: the elements shuffled.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> wave = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None].expand(3, 4, 2)  # k = 2
    >>> purity(cyclic(4), wave, draws=3, seed=0).text()
    '1 [1, 1]'
    """
    alive = functions[:, :, live_neurons(functions)]
    generator = torch.Generator().manual_seed(seed)
    control = []
    for _ in range(draws):
        order = torch.randperm(group.order, generator=generator)
        control.append(pure_neurons(group, alive[:, order]).double().mean())
    return bootstrap(
        pure_neurons(group, alive).double(),
        unit_name="live neurons",
        measured="fraction of live neurons in [0, 1]",
        seed=seed,
        control=torch.stack(control),
        control_name="elements shuffled",
    )
