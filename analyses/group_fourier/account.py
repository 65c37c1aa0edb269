"""What are the neurons of a group network, and what does it say of the product, number by number?

Every number of `neurons`, `answers`, `interventions` and `explanations` with its interval and its
null. Neurons are resampled for what is said of neurons, left elements for what is said of answers.
Nulls: neurons that are random vectors of the very same irreps ("random irrep vectors"), random
subspaces of equal rank, a scrambled product, neurons in random order, and the same architecture
with random weights.

What would fool it: reading one column without the next. In a dihedral group random vectors of a
two-dimensional irrep are as pure and as much of rank one as trained neurons; only their cosets
differ.

Source: Chughtai et al. 2023, arXiv:2302.03025; Stander et al. 2023, arXiv:2312.06581; Wu et al.
2024, arXiv:2410.07476; Doshi et al. 2023, arXiv:2310.13061.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier import answers
from mechinterp_toolkit.analyses.group_fourier.cyclic_measures import (
    CyclicMeasures,
    cyclic_measures,
)
from mechinterp_toolkit.analyses.group_fourier.energies import embedding_energy
from mechinterp_toolkit.analyses.group_fourier.explanations import RhoSet, explain
from mechinterp_toolkit.analyses.group_fourier.interventions import intervention_table
from mechinterp_toolkit.analyses.group_fourier.network import GroupNetwork, group_network
from mechinterp_toolkit.analyses.group_fourier.neurons import (
    RANDOM_VECTORS,
    RANK_ONE,
    NeuronTable,
    constant_on_cosets,
    neuron_table,
    random_irrep_functions,
    random_subspace_shares,
    rank_one_share,
)
from mechinterp_toolkit.groups import Group, irrep_labels
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

PRUNING_ORDERS = ("low IPR first", "high IPR first")
PRUNING_STEPS = 10


@dataclass(frozen=True)
class NeuronAccount:
    """What the neurons are, one by one and together."""

    table: NeuronTable
    """The network's own live neurons."""

    random_vectors: NeuronTable
    """The same table for neurons that are random vectors of the same irreps."""

    random_weights: NeuronTable | None
    """The same table for the architecture with random weights; None where it cannot be built."""

    rank_one: Estimate
    """Fraction of live neurons whose left and right coefficients are of rank one (> 99 %), in [0,
    1]."""

    coset_constant: Estimate
    """Fraction of live neurons whose left and right shares are constant on cosets of more than one
    element, in [0, 1]."""

    embedding_energy: Estimate
    """Share of each irrep in each embedding table, [table irrep], in [0, 1]; control: elements
    shuffled."""

    explained: Estimate | None
    """Share of variance their cosets explain, over those neurons, in [0, 1]; control: random
    subspaces of that rank."""

    def text(self) -> str:
        """Return rank and cosets of the live neurons in words, beside random vectors."""
        assert self.rank_one.control is not None
        assert self.coset_constant.control is not None
        common = Counter(zip(*self.table.stabilisers, strict=True)).most_common(2)
        names = ", ".join(f"{left} and {right} ({n})" for (left, right), n in common)
        return (
            f"{self.rank_one.text()} of the live neurons are of rank one (random vectors of the"
            f" same irreps: {self.rank_one.control.mean():.3g}) and {self.coset_constant.text()}"
            f" constant on cosets ({self.coset_constant.control.mean():.3g}); most common left and"
            f" right stabilisers: {names}."
        )


@dataclass(frozen=True)
class AnswerAccount:
    """What the network says of the product, and what changes it."""

    logit_similarity: Estimate
    """Cosine of the logits with chi_rho(a b c^-1), [irrep], in [-1, 1]."""

    logit_fve: Estimate
    """Share of the logits' variance that characters explain, in [0, 1]."""

    hidden_shares: Estimate
    """Share of the hidden layer's variance that depends on a, b or ab alone, [part irrep], in [0,
    1]."""

    interventions_accuracy: Estimate
    """Fraction of pairs answered right under each published intervention, [intervention], in [0,
    1]."""

    interventions_loss: Estimate
    """Cross-entropy under each published intervention, [intervention], in nats."""

    pruning: Estimate
    """Accuracy with a tenth, two tenths, ... of the live neurons zeroed by IPR, [order pruned];
    control: random order."""

    explanations: Estimate
    """FVE, accuracy and loss of the ideal, and accuracy without it, of three explanations,
    [explanation measure]."""

    rho_sets: tuple[RhoSet, ...]
    """Per irrep, what keeps its neurons from being a rho-set circuit."""

    gini: Estimate | None
    """Cyclic groups: Gini coefficient of norms over frequencies, [site], in [0, 1]."""

    distance_irrelevance: Estimate | None
    """Cyclic groups: spread of the right logit at one distance over its spread at all; near 0 a
    pizza, near 1 a clock."""

    gradient_symmetricity: Estimate | None
    """Cyclic groups, one embedding table: cosine of the gradients with respect to both embeddings;
    near 1 a pizza."""

    circularity: Estimate | None
    """Cyclic groups: share of one frequency in each of the first four components of the embeddings,
    [table], in [0, 1]."""


def neuron_account(
    network: GroupNetwork, group: Group, *, draws: int = 19, seed: int = 0
) -> NeuronAccount:
    """Describe the neurons beside `draws` sets of random vectors of their irreps.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import known_group
    >>> network = group_network("toy/a5")
    >>> neuron_account(network, known_group(network), draws=2).coset_constant.text()
    '1 [1, 1]'
    """
    functions = network.functions
    table = neuron_table(group, functions)
    randoms = [
        random[:, :, table.neuron]
        for random in random_irrep_functions(group, functions, draws=draws, seed=seed)
    ]
    ranks = [rank_one_share(group, random[:2], table.irrep) > RANK_ONE for random in randoms]
    constant = torch.stack([constant_on_cosets(group, random) for random in randoms])
    own_constant = (table.stabiliser_order > 1).all(0)
    return NeuronAccount(
        table=table,
        random_vectors=neuron_table(group, randoms[0]),
        random_weights=_twin_table(network, group, seed),
        rank_one=_fraction((table.rank_one > RANK_ONE).all(0), torch.stack(ranks).all(1), seed),
        coset_constant=_fraction(own_constant, constant, seed),
        embedding_energy=embedding_energy(network, group, draws, seed),
        explained=_explained(group, table, own_constant, seed) if own_constant.sum() > 1 else None,
    )


def answer_account(
    network: GroupNetwork,
    group: Group,
    neurons: NeuronTable,
    keys: list[str],
    *,
    draws: int = 19,
    seed: int = 0,
) -> AnswerAccount:
    """Describe the answers beside `draws` scrambled products.

    Args:
        network: the network.
        group: its group.
        neurons: its live neurons.
        keys: irreps that the characters' explanation may use.
        draws: scrambled products behind the controls.
        seed: of all draws.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import known_group
    >>> network = group_network("toy/a5")
    >>> group = known_group(network)
    >>> neurons = neuron_table(group, network.functions)
    >>> answer_account(network, group, neurons, ["4"], draws=2).logit_fve.text()
    '0.527 [0.526, 0.528]'
    """
    similarity, fve = _similarity(network, group, draws, seed)
    interventions = intervention_table(network, group, seed=seed)
    explained = explain(network, group, keys, seed=seed)
    cyclic = (
        cyclic_measures(network, group, seed=seed)._asdict()
        if group.family == "cyclic"
        else dict.fromkeys(CyclicMeasures._fields)
    )
    return AnswerAccount(
        logit_similarity=similarity,
        logit_fve=fve,
        hidden_shares=_hidden_shares(network, group, min(draws, 9), seed),
        interventions_accuracy=interventions.accuracy,
        interventions_loss=interventions.loss,
        pruning=_pruning(network, group, neurons, min(draws, 9), seed),
        explanations=explained.scores,
        rho_sets=explained.rho_sets,
        **cyclic,
    )


def _fraction(
    which: Bool[Tensor, " live"], control: Bool[Tensor, "draw live"], seed: int
) -> Estimate:
    return bootstrap(
        which.double(),
        unit_name="live neurons",
        measured="fraction of live neurons in [0, 1]",
        seed=seed,
        control=control.double().mean(1),
        control_name=RANDOM_VECTORS,
    )


def _twin_table(network: GroupNetwork, group: Group, seed: int) -> NeuronTable | None:
    if network.model.make_twin is None:
        return None
    twin = group_network(network.model.random_twin(seed), order=group.order)
    return neuron_table(group, twin.functions)


def _explained(
    group: Group, table: NeuronTable, constant: Bool[Tensor, " live"], seed: int
) -> Estimate:
    null = random_subspace_shares(group, table.stabiliser_order[:, constant], draws=99, seed=seed)
    return bootstrap(
        table.explained[:, constant].mean(0),
        unit_name="live neurons",
        measured="fraction of the variance in [0, 1]",
        seed=seed,
        control=null.flatten(1).mean(1),
        control_name="random subspaces of the same rank",
    )


def _similarity(
    network: GroupNetwork, group: Group, draws: int, seed: int
) -> tuple[Estimate, Estimate]:
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.ones(1, group.order, dtype=torch.float64)
    parts = answers.logit_similarity(group, network.logits())
    null = []
    for _ in range(draws):
        product = answers.scrambled_product(group, generator)
        null.append(answers.logit_similarity(group, network.logits(), product))
    similarity = bootstrap(
        parts,
        unit_name="left elements",
        measured="cosine in [-1, 1]",
        seed=seed,
        statistic=answers.similarity,
        axes=("irrep",),
        labels={"irrep": irrep_labels(group)},
        control=torch.cat([answers.similarity(scrambled, everyone) for scrambled in null]),
        control_name="product scrambled",
    )
    fve = bootstrap(
        parts,
        unit_name="left elements",
        measured="fraction of the variance in [0, 1]",
        seed=seed,
        statistic=answers.fve,
        control=torch.cat([answers.fve(scrambled, everyone) for scrambled in null]),
        control_name="product scrambled",
    )
    return similarity, fve


def _hidden_shares(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    def parts(hidden: Float[Tensor, "pairs neuron"]) -> Float[Tensor, "neuron entry"]:
        energy, whole = answers.hidden_energy(group, hidden)
        return torch.cat([energy.flatten(1), whole[:, None]], 1)

    def share(
        values: Float[Tensor, "neuron entry"], weights: Float[Tensor, "draw neuron"]
    ) -> Tensor:
        sums = weights @ values
        return (sums[:, :-1] / sums[:, -1:]).unflatten(1, (len(answers.PARTS), -1))

    everyone = torch.ones(1, network.functions.shape[2], dtype=torch.float64)
    randoms = random_irrep_functions(group, network.functions, draws=draws, seed=seed)
    return bootstrap(
        parts(network.hidden),
        unit_name="neurons",
        measured="fraction of the hidden layer's variance in [0, 1]",
        seed=seed,
        statistic=share,
        axes=("part", "irrep"),
        labels={"part": answers.PARTS, "irrep": irrep_labels(group)},
        control=torch.cat(
            [share(parts(network.hidden_of(random)), everyone) for random in randoms]
        ),
        control_name=RANDOM_VECTORS,
    )


def _pruning(
    network: GroupNetwork, group: Group, neurons: NeuronTable, draws: int, seed: int
) -> Estimate:
    generator = torch.Generator().manual_seed(seed)
    low = neurons.neuron[neurons.ipr.argsort(stable=True)]
    random = [neurons.neuron[torch.randperm(len(low), generator=generator)] for _ in range(draws)]
    curves = answers.prune(
        network, group.table.flatten(), torch.stack([low, low.flip(0), *random]), PRUNING_STEPS
    )
    control = curves[:, 2:].mean(0)
    return bootstrap(
        curves[:, :2],
        unit_name="left elements",
        measured="fraction of pairs in [0, 1]",
        seed=seed,
        axes=("order", "pruned"),
        labels={
            "order": PRUNING_ORDERS,
            "pruned": tuple(f"{100 * i // PRUNING_STEPS} %" for i in range(PRUNING_STEPS)),
        },
        control=control[:, None].expand(-1, 2, -1).clone(),
        control_name="neurons zeroed in random order",
    )
