"""Which irreps of the group does a network that multiplies in it use?

Each neuron is three functions on the group: its left share l(a), its right share r(b) and its
unembedding u(c). Their energy is split over the isotypic blocks of the group's Fourier transform,
which depends on no basis and no convention. *Represented*: some non-trivial irrep holds more of the
energy, averaged over the three, than in any irrep when the elements are shuffled. *Used*: removing
from the hidden layer what these irreps say about the product ab takes the answer away, and removing
what they say about a scrambled product of the same rank does not. Every neuron is then accounted
for (irrep, rank, cosets), and so are the answers (characters, interventions, pruning, three
explanations side by side).

What would fool it: energy alone. Neurons that are random vectors of the right irreps have the same
spectrum and multiply nothing, so the accuracy of such networks stands beside the accuracy; a
network that memorised its table may carry a weak sign irrep; and a group given in another order of
its elements than the network's is another group to it: give the network's own Cayley table, or
leave it out and let it be read from the network's answers.

Source: Chughtai, Chan, Nanda 2023, A Toy Model of Universality, arXiv:2302.03025; restricted and
excluded loss: Nanda et al. 2023, arXiv:2301.05217; energies by projectors, so that they can be
compared between papers.
"""

from __future__ import annotations

import torch

from mechinterp_toolkit.analyses.group_fourier.account import answer_account, neuron_account
from mechinterp_toolkit.analyses.group_fourier.answers import by_left, quick_score, score
from mechinterp_toolkit.analyses.group_fourier.edits import ProductEdits, edit_product
from mechinterp_toolkit.analyses.group_fourier.energies import (
    adjusted_p,
    concentration,
    energy_estimate,
    neuron_energy,
    purity,
    shuffled_shares,
)
from mechinterp_toolkit.analyses.group_fourier.network import (
    GroupNetwork,
    group_network,
    known_group,
    why_no_group_network,
)
from mechinterp_toolkit.analyses.group_fourier.neurons import RANDOM_VECTORS, random_irrep_functions
from mechinterp_toolkit.analyses.group_fourier.progress import training_spectrum
from mechinterp_toolkit.analyses.group_fourier.result import GroupFourier
from mechinterp_toolkit.analyses.group_fourier.twins import (
    planted_irreps,
    random_network,
    scrambled_network,
)
from mechinterp_toolkit.groups import Group, irrep_labels
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap


@analysis(
    question="Which irreps of the group does a network that multiplies in it use?",
    paper="Chughtai, Chan, Nanda 2023, arXiv:2302.03025",
    applies=why_no_group_network,
    planted=planted_irreps,
    twins={"random weights": random_network, "scrambled": scrambled_network},
)
def group_fourier(
    model: HookedModel,
    *,
    group: str | None = None,
    draws: int = 999,
    edit_draws: int = 39,
    account_draws: int = 19,
    seed: int = 0,
) -> GroupFourier:
    """Split the energy of a group network over irreps, and remove what the key ones say about ab.

    Args:
        model: a network with one hidden layer on pairs of group elements (`GroupMLP`), or a
            one-layer transformer without LayerNorm over `[a, b, =]`.
        group: name of the group, e.g. "S5" or "C113"; None takes the one recorded with the network,
            and where none is recorded the group whose Cayley table the network answers.
        draws: shuffles of the elements behind `p` and the controls of the energies.
        edit_draws: scrambled products behind the controls of the edits.
        account_draws: networks of random irrep vectors and scrambled products behind the controls
            of the account.
        seed: of all draws.

    Raises:
        NotApplicable: the group has another order than the network, or none is known and the
            answers are no group operation.

    >>> group_fourier("toy/a5", draws=99, edit_draws=3, account_draws=2).key_irreps
    ('4',)
    """
    network = group_network(model)
    known = known_group(network, group)
    neurons = neuron_energy(known, network.functions)
    shuffled = shuffled_shares(known, network.functions, draws, seed)
    energy = energy_estimate(known, neurons, shuffled, seed)
    p = adjusted_p(known, energy.value.mean(0), shuffled.mean(1))
    keys = [label for label, chance in zip(irrep_labels(known), p, strict=True) if chance <= 0.05]
    about = neuron_account(network, known, draws=account_draws, seed=seed)
    edits, answers = ProductEdits(), None
    if keys:
        edits = edit_product(network, known, keys, draws=edit_draws, seed=seed)
        answers = answer_account(network, known, about.table, keys, draws=account_draws, seed=seed)
    return GroupFourier(
        group=known.name,
        energy=energy,
        p=p,
        concentration=concentration(known, neurons, keys, shuffled, seed),
        purity=purity(known, network.functions, min(draws, 99), seed),
        accuracy=_accuracy(network, known, account_draws, seed),
        **edits._asdict(),
        training_spectrum=training_spectrum(network, known, draws=min(draws, 99), seed=seed),
        neurons=about,
        answers=answers,
    )


def _accuracy(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    """Accuracy, and that of networks whose neurons are random vectors of their irreps."""
    product = group.table.flatten()
    randoms = random_irrep_functions(group, network.functions, draws=draws, seed=seed)
    control = [quick_score(network.through(random), product)[1] for random in randoms]
    return bootstrap(
        by_left(score(network.logits(), product).accuracy, group.order),
        unit_name="left elements",
        measured="fraction of pairs in [0, 1]",
        seed=seed,
        control=torch.tensor(control, dtype=torch.float64),
        control_name=RANDOM_VECTORS,
    )
