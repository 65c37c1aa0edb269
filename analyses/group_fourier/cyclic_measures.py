"""Does a network on a cyclic group work like a clock or a pizza, and on how few frequencies?

*Distance irrelevance*: the standard deviation of the right answer's logit over pairs with a - b =
d, averaged over d, divided by its standard deviation over all pairs. Near 0: the logit depends on a
- b alone, as in a pizza; near 1: it does not, as in a clock. *Gradient symmetricity*: cosine
between the gradients of a logit with respect to the embeddings of a and of b, which live in one
space only where both tokens share a table; near 1 in a pizza. *Gini*: how unevenly norms are spread
over frequencies, 0 to 1. *Circularity*: how much of each of the first four principal components of
an embedding table is one frequency; 1 where each is a cosine wave along the elements.

What would fool it: distance irrelevance of a constant logit, and any number without its null:
elements are renamed at random.

Source: Zhong et al. 2023, arXiv:2306.17844 (clock and pizza); Nanda et al. 2023, arXiv:2301.05217
(Gini over frequencies).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.energies import neuron_energy
from mechinterp_toolkit.analyses.group_fourier.network import SITES, GroupNetwork
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.groups import Group
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap
from mechinterp_toolkit.toys.pairs import pair_tokens

PRINCIPAL = 4  # components of circularity, as in its paper
TRIPLES = 100  # random (a, b, c) of gradient symmetricity, as in its paper


class CyclicMeasures(NamedTuple):
    """Measures that only a cyclic group has."""

    gini: Estimate
    """Gini coefficient of norms over frequencies, [site], in [0, 1]; control: elements renamed."""

    distance_irrelevance: Estimate
    """Spread of the right answer's logit at one distance a - b over its spread at all, in [0, 1];
    control: elements renamed."""

    gradient_symmetricity: Estimate | None
    """Cosine of the gradients with respect to the two embeddings, in [-1, 1]; None where each has
    its own table."""

    circularity: Estimate
    """Share of one frequency in the first four principal components of the embeddings, [table], in
    [0, 1]; control: renamed."""


def cyclic_measures(
    network: GroupNetwork, group: Group, *, draws: int = 99, seed: int = 0
) -> CyclicMeasures:
    """Return the measures; the group must be cyclic with element a being the number a.

    Args:
        network: the network.
        group: built by `cyclic`.
        draws: renamings of the elements behind each control.
        seed: of all draws.

    Raises:
        NotApplicable: the group is not cyclic, or its elements are in another order.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network, known_group
    >>> network = group_network("toy/z113")
    >>> cyclic_measures(network, known_group(network), draws=5).distance_irrelevance.text()
    '0.981 [0.966, 0.995]'
    """
    if group.family != "cyclic":
        raise NotApplicable(
            f"{group.name} is not a cyclic group in its usual order, so pairs have no distance a"
            " - b."
        )
    return CyclicMeasures(
        gini=_gini(network, group, draws, seed),
        distance_irrelevance=_distance(network, group, draws, seed),
        gradient_symmetricity=_symmetricity(network, group, seed),
        circularity=_circularity(network, group, draws, seed),
    )


def circularity(
    table: Float[Tensor, "*batch order d"], order: Int[Tensor, " order"] | None = None
) -> Float[Tensor, "*batch component"]:
    """Return the largest share that one frequency has in each of the first principal components.

    Args:
        table: embeddings of the elements of a cyclic group.
        order: the element that stands at each place; in their own order by default.

    >>> wave = torch.tensor([0.0, 1.0, 0.0, -1.0])[:, None]  # the sine of frequency 1
    >>> circularity(wave).round(decimals=6).tolist()
    [1.0]
    """
    centred = table.double() - table.double().mean(-2, keepdim=True)
    # Components run along the elements and have norm 1.
    components = torch.linalg.svd(centred, full_matrices=False).U[..., :PRINCIPAL]
    components = components if order is None else components[..., order, :]
    power = torch.fft.rfft(components, dim=-2).abs().square()[..., 1:, :]
    n = table.shape[-2]
    partners = torch.full((power.shape[-2], 1), 2.0, dtype=torch.float64)
    if n % 2 == 0:
        partners[-1] = 1.0  # the alternating wave has no partner of negative frequency
    return (power * partners / n).amax(-2)


def _circularity(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(group.order, generator=generator) for _ in range(draws)]
    return bootstrap(
        circularity(network.embeddings).T,
        unit_name="principal components",
        measured="fraction of the variance in [0, 1]",
        seed=seed,
        axes=("table",),
        labels={"table": ("left", "right") if len(network.embeddings) == 2 else ("both",)},
        control=torch.stack([circularity(network.embeddings, order).mean(-1) for order in orders]),
        control_name="elements renamed",
    )


def gini(sizes: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Return the Gini coefficient of non-negative numbers.

    It is 0 where all are equal and 1 - 1/n where one has everything.

    >>> gini(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]])).tolist()
    [0.0, 0.75]
    """
    # Half the mean difference of two sizes over the mean: sum_i (2i - n - 1) x_i / (n sum_i x_i).
    ordered, n = sizes.sort(-1).values, sizes.shape[-1]
    rank = torch.arange(1, n + 1, dtype=sizes.dtype)
    whole = (n * ordered.sum(-1)).clamp_min(torch.finfo(sizes.dtype).tiny)
    return (ordered * (2 * rank - n - 1)).sum(-1) / whole


def _gini(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    generator = torch.Generator().manual_seed(seed)

    def of(
        energy: Float[Tensor, "neuron site irrep"], weights: Float[Tensor, "draw neuron"]
    ) -> Float[Tensor, "draw site"]:
        return gini(torch.einsum("dn,nsr->dsr", weights, energy)[..., 1:].sqrt())

    everyone, null = torch.ones(1, network.functions.shape[2], dtype=torch.float64), []
    for _ in range(draws):
        order = torch.randperm(group.order, generator=generator)
        renamed = neuron_energy(group, network.functions[:, order])
        null.append(of(renamed, everyone)[0])
    return bootstrap(
        neuron_energy(group, network.functions),
        unit_name="neurons",
        measured="Gini coefficient in [0, 1]",
        seed=seed,
        statistic=of,
        axes=("site",),
        labels={"site": SITES},
        control=torch.stack(null),
        control_name="elements renamed",
    )


def _distance(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    generator = torch.Generator().manual_seed(seed)
    right = network.logits().gather(1, group.table.flatten()[:, None]).double()
    answer, element = right.reshape(group.order, group.order), torch.arange(group.order)

    def by_distance(values: Float[Tensor, "order order"]) -> Float[Tensor, "distance order"]:
        # Row d holds the pairs (a, a - d).
        return values[element, (element[None] - element[:, None]) % group.order]

    def share(
        rows: Float[Tensor, "distance order"], weights: Float[Tensor, "draw distance"]
    ) -> Float[Tensor, " draw"]:
        # Mean over d of std(logit | a - b = d), over std(logit), as in Zhong et al.
        return weights @ rows.std(1, correction=0) / weights.sum(1) / answer.std(correction=0)

    everyone, null = torch.ones(1, group.order, dtype=torch.float64), []
    for _ in range(draws):
        order = torch.randperm(group.order, generator=generator)
        null.append(share(by_distance(answer[order]), everyone)[0])
    return bootstrap(
        by_distance(answer),
        unit_name="distances",
        measured="fraction of the standard deviation in [0, 1]",
        seed=seed,
        statistic=share,
        control=torch.stack(null),
        control_name="left elements renamed",
    )


def _symmetricity(network: GroupNetwork, group: Group, seed: int) -> Estimate | None:
    if network.is_additive:
        return None
    generator = torch.Generator().manual_seed(seed)
    triples = torch.randint(group.order, (TRIPLES, 3), generator=generator)
    left, right = _gradients(network, triples).unbind(1)
    # The gradients of different triples say what cosine any two gradients of this network have.
    null = []
    for _ in range(99):
        other = right[torch.randperm(TRIPLES, generator=generator)]
        null.append(torch.cosine_similarity(left, other, dim=-1).mean())
    return bootstrap(
        torch.cosine_similarity(left, right, dim=-1),
        unit_name="triples",
        measured="cosine in [-1, 1]",
        seed=seed,
        control=torch.stack(null),
        control_name="gradients of different triples",
    )


def _gradients(network: GroupNetwork, triples: Tensor) -> Float[Tensor, "triple side d_model"]:
    """Gradient of logit c with respect to the embeddings of a and b at their positions."""
    tokens = pair_tokens(triples[:, :2], network.order)
    kept: list[Tensor] = []

    def catch(activation: Tensor, hook: object) -> Tensor:
        leaf = activation.detach().requires_grad_(True)
        kept.append(leaf)
        return leaf

    with torch.enable_grad():
        logits = network.model.model.run_with_hooks(
            tokens.to(network.model.device), fwd_hooks=[("hook_embed", catch)]
        )
        chosen = logits[:, -1].gather(1, triples[:, 2:].to(logits.device))
        gradient = torch.autograd.grad(chosen.sum(), kept[0])[0]
    return gradient[:, :2].detach().cpu().double()
