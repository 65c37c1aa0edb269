"""How does the account of a group network come about during training?

One pass over the checkpoints its folder keeps.

Checkpoints are loaded one after the other and none is kept, and of each only the logits of some
pairs at a time: S_6 with its 373 million logits fits. At each: the share of every irrep, restricted
and excluded loss for the irreps that are key at the end, losses on training and other pairs, and
the share of neurons that are constant on cosets.

What would fool it: looking at many checkpoints until one irrep leaves its null. The p-values are
corrected over irreps and over checkpoints together, and an irrep has appeared only where two
neighbouring checkpoints say so.

Source: progress measures of Nanda et al. 2023, arXiv:2301.05217; irreps in order of appearance,
Chughtai et al. 2023, arXiv:2302.03025.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.answers import score, training_pairs
from mechinterp_toolkit.analyses.group_fourier.energies import (
    adjusted_p,
    neuron_energy,
    shares,
    shuffled_shares,
)
from mechinterp_toolkit.analyses.group_fourier.network import (
    GroupNetwork,
    group_network,
    known_group,
)
from mechinterp_toolkit.analyses.group_fourier.neurons import constant_on_cosets, live_neurons
from mechinterp_toolkit.checkpoint import parse_spec, read_record
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.groups import Group, irrep_labels
from mechinterp_toolkit.hooks.fourier import irrep_projector
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

MEASURES = (
    "training loss",
    "loss on other pairs",
    "restricted loss",
    "excluded loss",
    "accuracy",
    "coset-constant neurons",
)


@dataclass(frozen=True)
class GroupProgress:
    """Result of `group_progress`."""

    steps: tuple[int, ...]
    """Training steps of the checkpoints, ascending; the last one is the end of training."""

    spectrum: Estimate
    """Share of each irrep in the energy, averaged over sites, [step irrep], in [0, 1]; control:
    elements shuffled."""

    p: Float[Tensor, "step irrep"]
    """p-value of each share, corrected over irreps and checkpoints; 1 for the trivial irrep."""

    measures: Float[Tensor, "step measure"]
    """`MEASURES`: training loss, loss on all other pairs, restricted loss over all pairs and
    excluded loss over training pairs for the irreps that are key at the end (nats, float64),
    accuracy over all pairs and share of live neurons constant on cosets."""

    @property
    def appeared(self) -> dict[str, int]:
        """Irrep -> first step from which two checkpoints are above the null, as they appeared."""
        above = self.p <= 0.05
        lasting = above[:-1] & above[1:]
        first = {
            label: self.steps[int(steps.int().argmax())]
            for label, steps in zip(self.spectrum.labels["irrep"], lasting.T, strict=True)
            if steps.any()
        }
        return dict(sorted(first.items(), key=lambda item: item[1]))


def group_progress(
    checkpoint: str | Path, *, group: Group | None = None, draws: int = 199, seed: int = 0
) -> GroupProgress:
    """Follow a group network through the checkpoints its folder keeps.

    Args:
        checkpoint: a toolkit folder or bundled name with a history, e.g. "toy/s5".
        group: its group; None takes the one recorded, or the one the final network answers.
        draws: shuffles behind the control of the spectrum, at every checkpoint.
        seed: of all draws.

    Raises:
        NotApplicable: the checkpoint keeps no history.

    >>> group_progress("toy/s5", draws=19).appeared
    {'(4,1)': 200, '(1,1,1,1,1)': 400}
    """
    names = _revisions(checkpoint)
    if names is None:
        raise NotApplicable(
            f"{checkpoint} keeps no history of its training; give a toolkit checkpoint folder that"
            " does."
        )
    group = group or known_group(group_network(str(checkpoint)))
    spectrum = _spectrum(names, group, draws, seed)
    assert spectrum.control is not None
    p = adjusted_p(group, spectrum.value, spectrum.control)
    keys = [label for label, last in zip(irrep_labels(group), p[-1], strict=True) if last <= 0.05]
    measured = [_measures(network, group, keys) for network in map(group_network, names)]
    return GroupProgress(tuple(names.values()), spectrum, p, torch.stack(measured))


def training_spectrum(
    network: GroupNetwork, group: Group, *, draws: int = 99, seed: int = 0
) -> Estimate | None:
    """Return the share of each irrep over the checkpoints of a network's folder, [step irrep].

    None where it came from elsewhere, is not the final one, or its folder keeps no history. See
    `GroupProgress.spectrum`.

    >>> network = group_network("toy/a5-memorised")
    >>> training_spectrum(network, known_group(network)) is None
    True
    """
    provenance = network.model.provenance
    if "training" not in provenance.training or provenance.revision is not None:
        return None
    names = _revisions(provenance.checkpoint)
    return None if names is None else _spectrum(names, group, draws, seed)


def _revisions(checkpoint: str | Path) -> dict[str, int] | None:
    """Checkpoint names, with the step of each, ascending; None where no history is kept."""
    spec = parse_spec(str(checkpoint))
    if spec.kind != "toolkit":
        return None
    record = read_record(spec.path)
    steps = {f"{checkpoint}@step{step}": int(step) for step in record.steps}
    return steps | {str(checkpoint): int(record.training["steps"])} if steps else None


def _spectrum(names: dict[str, int], group: Group, draws: int, seed: int) -> Estimate:
    """The shares at every checkpoint, resampling neurons, beside shuffled elements."""
    energies, nulls = [], []
    for network in map(group_network, names):
        energies.append(neuron_energy(group, network.functions))
        nulls.append(shuffled_shares(group, network.functions, draws, seed).mean(1))

    def share(
        values: Float[Tensor, "neuron step site irrep"], weights: Float[Tensor, "draw neuron"]
    ) -> Float[Tensor, "draw step irrep"]:
        return torch.stack([shares(step, weights).mean(1) for step in values.unbind(1)], 1)

    return bootstrap(
        torch.stack(energies, 1),
        unit_name="neurons",
        measured="fraction of the energy in [0, 1]",
        seed=seed,
        statistic=share,
        axes=("step", "irrep"),
        labels={"step": tuple(map(str, names.values())), "irrep": irrep_labels(group)},
        control=torch.stack(nulls, 1),
        control_name="elements shuffled",
    )


def _measures(network: GroupNetwork, group: Group, keys: list[str]) -> Float[Tensor, " measure"]:
    """One pass for the product part of the hidden layer, one for the losses.

    The logits of all pairs are never held.
    """
    product, trained = group.table.flatten(), training_pairs(network)
    seen = torch.ones(len(product), dtype=torch.bool) if trained is None else trained
    other = ~seen if bool((~seen).any()) else seen
    unembed = network.functions[2]
    part = _product_means(network, product) @ unembed.T
    part = irrep_projector(group, keys) @ part if keys else torch.zeros_like(part)
    judged = []
    for piece in network.pieces():
        answer = product[piece.rows]
        removed = part[answer].to(piece.logits.dtype)
        through = (piece.hidden.double() @ unembed.T).to(piece.logits.dtype)
        base = score(piece.logits, answer)
        excluded = score(piece.logits - removed, answer)
        restricted = score(piece.logits - through + removed, answer)
        judged.append(torch.stack([base.loss, restricted.loss, excluded.loss, base.accuracy]))
    loss, restricted_loss, excluded_loss, accuracy = torch.cat(judged, dim=1)
    losses = (loss[seen], loss[other], restricted_loss, excluded_loss[seen], accuracy)
    constant = constant_on_cosets(group, network.functions[:, :, live_neurons(network.functions)])
    return torch.stack([values.mean() for values in (*losses, constant.double())])


def _product_means(network: GroupNetwork, product: Tensor) -> Float[Tensor, "order neuron"]:
    """Mean activation over the pairs of each product; every product has as many."""
    sums = torch.zeros(network.order, network.functions.shape[2], dtype=torch.float64)
    for piece in network.pieces():
        sums.index_add_(0, product[piece.rows], piece.hidden.double())
    return sums / network.order
