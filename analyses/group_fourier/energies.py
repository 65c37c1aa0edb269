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

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.network import SITES, GroupNetwork
from mechinterp_toolkit.analyses.group_fourier.neurons import LIVE, PURE
from mechinterp_toolkit.groups.table import Group
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap, max_statistic_p


def neuron_energy(
    group: Group, functions: Float[Tensor, "site order neuron"]
) -> Float[Tensor, "neuron site irrep"]:
    """Return the energy of each function in each isotypic block."""
    return group.isotypic_energy(functions.transpose(1, 2)).transpose(0, 1)


def shares(
    values: Float[Tensor, "n site irrep"], weights: Float[Tensor, "draw n"]
) -> Float[Tensor, "draw site irrep"]:
    """Return the share of each irrep in the energy of each site, over weighted neurons."""
    sums = torch.einsum("dn,nsr->dsr", weights, values)
    return sums / sums.sum(-1, keepdim=True)


def shuffled_shares(
    group: Group, functions: Float[Tensor, "site order neuron"], draws: int, seed: int
) -> Float[Tensor, "draw site irrep"]:
    """Return the shares with the elements of each site shuffled on their own, by way of the Gram
    matrix of the elements."""
    projectors = torch.stack([group.isotypic_projector(label) for label in group.irrep_labels])
    generator = torch.Generator().manual_seed(seed)
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
    """Return the shares per site and irrep, resampling neurons, beside the shuffled ones."""
    return bootstrap(
        neurons,
        unit_name="neurons",
        measured="fraction of the site's energy in [0, 1]",
        seed=seed,
        statistic=shares,
        axes=("site", "irrep"),
        labels={"site": SITES, "irrep": group.irrep_labels},
        control=shuffled,
        control_name="elements shuffled",
    )


def embedding_energy(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    """Return the share of each irrep in each embedding table, [table irrep], constants included,
    beside shuffled elements."""
    tables = network.embeddings
    generator = torch.Generator().manual_seed(seed)

    def share(
        values: Float[Tensor, "d_embed table irrep"], weights: Float[Tensor, "draw d_embed"]
    ) -> Tensor:
        return shares(values, weights)

    def energies(
        moved: Float[Tensor, "table order d_embed"],
    ) -> Float[Tensor, "d_embed table irrep"]:
        return group.isotypic_energy(moved.transpose(1, 2)).transpose(0, 1)

    one = torch.ones(1, tables.shape[2], dtype=torch.float64)
    null = [
        share(energies(tables[:, torch.randperm(group.order, generator=generator)]), one)
        for _ in range(draws)
    ]
    return bootstrap(
        energies(tables),
        unit_name="embedding dimensions",
        measured="fraction of the table's energy in [0, 1]",
        seed=seed,
        statistic=share,
        axes=("table", "irrep"),
        labels={
            "table": ("a", "b") if len(tables) == 2 else ("a and b",),
            "irrep": group.irrep_labels,
        },
        control=torch.cat(null),
        control_name="elements shuffled",
    )


def activation_energy(
    network: GroupNetwork, group: Group, site: str, *, by: Literal["a", "b", "ab"], seed: int = 0
) -> Estimate:
    """Return, at any hook point, the share of each irrep in what its activations say of a, of b or
    of ab alone, [irrep].

    Rows are averaged over the pairs of each element and centred; activations with positions are
    read at the last one. Control: the elements renamed at random.

    Args:
        network: the network.
        group: its group.
        site: a hook point that fires on all pairs, e.g. "blocks.0.hook_resid_mid".
        by: the element that rows belong to.
        seed: of the intervals and of 19 renamings.
    """
    rows = network.activations(site).double()
    generator = torch.Generator().manual_seed(seed)
    elements = {"a": network.pairs[:, 0], "b": network.pairs[:, 1], "ab": group.table.flatten()}

    def energies(renamed: Int[Tensor, " order"]) -> Float[Tensor, "d site irrep"]:
        means = rows[renamed[elements[by]].argsort()].reshape(group.order, group.order, -1).mean(1)
        return group.isotypic_energy((means - means.mean(0)).T)[:, None]

    one = torch.ones(1, rows.shape[1], dtype=torch.float64)
    null = [
        shares(energies(torch.randperm(group.order, generator=generator)), one)[:, 0]
        for _ in range(19)
    ]
    return bootstrap(
        energies(torch.arange(group.order)),
        unit_name="dimensions",
        measured="fraction of the variance in [0, 1]",
        seed=seed,
        statistic=lambda values, weights: shares(values, weights)[:, 0],
        axes=("irrep",),
        labels={"irrep": group.irrep_labels},
        control=torch.cat(null),
        control_name="elements renamed",
    )


def adjusted_p(
    share: Float[Tensor, " irrep"], null: Float[Tensor, "draw irrep"], trivial: int
) -> Float[Tensor, " irrep"]:
    """Return p-values corrected over irreps; 1 for the trivial one."""
    others = [i for i in range(len(share)) if i != trivial]
    p = torch.ones(len(share), dtype=torch.float64)
    p[others] = max_statistic_p(share[others], null[:, others], studentise=True)
    return p


def concentration(
    neurons: Float[Tensor, "neuron site irrep"],
    keys: list[int],
    trivial: int,
    shuffled: Float[Tensor, "draw site irrep"],
    seed: int,
) -> Estimate:
    """Return the share of the chosen irreps (of the strongest, where none is chosen); the control
    chooses as many anew."""
    null = shuffled.mean(1)
    excess = (null - null.mean(0)) / null.std(0).clamp_min(torch.finfo(null.dtype).tiny)
    excess[:, trivial] = -torch.inf
    observed = neurons.sum(0).mean(0).index_fill(0, torch.tensor([trivial]), -1.0)
    chosen = keys or [int(observed.argmax())]
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


def pure(energy: Float[Tensor, "neuron site irrep"], trivial: int) -> Float[Tensor, " live"]:
    """Return which live neurons have 95 % of their left and right energy, constants aside, in the
    same irrep, as 0 or 1."""
    energy = energy[:, :2].index_fill(2, torch.tensor([trivial]), 0.0)
    size = energy.sum(-1).amin(1)
    live = size > LIVE**2 * size.max()
    best = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    return (best.amin(1).amax(1) > PURE)[live].double()


def purity(
    group: Group, functions: Float[Tensor, "site order neuron"], trivial: int, draws: int, seed: int
) -> Estimate:
    """Return the fraction of live neurons that are pure, beside the same with the elements
    shuffled."""
    generator = torch.Generator().manual_seed(seed)
    control = []
    for _ in range(draws):
        order = torch.randperm(group.order, generator=generator)
        control.append(pure(neuron_energy(group, functions[:, order]), trivial).mean())
    return bootstrap(
        pure(neuron_energy(group, functions), trivial),
        unit_name="live neurons",
        measured="fraction of live neurons in [0, 1]",
        seed=seed,
        control=torch.stack(control),
        control_name="elements shuffled",
    )
