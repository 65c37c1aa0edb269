"""How does the account of a group network come about during training? One pass over the checkpoints
its folder keeps.

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

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.answers import score, training_pairs
from mechinterp_toolkit.analyses.group_fourier.energies import (
    neuron_energy,
    shares,
    shuffled_shares,
)
from mechinterp_toolkit.analyses.group_fourier.network import (
    GroupNetwork,
    group_network,
    recover_group,
)
from mechinterp_toolkit.analyses.group_fourier.neurons import (
    SIDES,
    coset_stabilisers,
    live_neurons,
    trivial_irrep,
)
from mechinterp_toolkit.checkpoint import parse_spec, read_record
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.groups.table import Group
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap, max_statistic_p

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
        """Irrep -> first step from which it and the next checkpoint are above the null, in order of
        appearance."""
        above = self.p <= 0.05
        lasting = above[:-1] & above[1:]
        first = {
            r: int(lasting[:, r].int().argmax())
            for r in range(above.shape[1])
            if bool(lasting[:, r].any())
        }
        labels = self.spectrum.labels["irrep"]
        return {
            labels[r]: self.steps[i] for r, i in sorted(first.items(), key=lambda item: item[1])
        }

    def figure(self) -> Any:
        """Return the spectrum over training as a plotly figure: one line per irrep that
        appeared."""
        return spectrum_figure(self.spectrum)


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
    """
    names = _revisions(checkpoint)
    last = group_network(str(checkpoint))
    known = group or getattr(last.model.model, "group", None) or recover_group(last)
    energies, nulls = zip(
        *(_spectrum(network, known, draws, seed) for network in _each(names)), strict=True
    )
    spectrum = _estimate(known, list(energies), list(nulls), tuple(names.values()), seed)
    p = _adjusted(spectrum, trivial_irrep(known))
    keys = [i for i in range(p.shape[1]) if p[-1, i] <= 0.05]
    measured = torch.stack([_measures(network, known, keys) for network in _each(names)])
    return GroupProgress(tuple(names.values()), spectrum, p, measured)


def training_spectrum(
    checkpoint: str | Path, group: Group, *, draws: int = 99, seed: int = 0
) -> Estimate:
    """Return the share of each irrep over the checkpoints a folder keeps, [step irrep]; see
    `GroupProgress.spectrum`.

    Raises:
        NotApplicable: the checkpoint keeps no history.
    """
    names = _revisions(checkpoint)
    energies, nulls = zip(
        *(_spectrum(network, group, draws, seed) for network in _each(names)), strict=True
    )
    return _estimate(group, list(energies), list(nulls), tuple(names.values()), seed)


def spectrum_figure(spectrum: Estimate, *, most: int = 6) -> Any:
    """Return the irreps with the largest shares at any checkpoint as lines over training, each over
    its null."""
    from mechinterp_toolkit import plots

    shown = spectrum.value.amax(0).argsort(descending=True)[:most]
    assert spectrum.control is not None
    lines = Estimate(
        value=spectrum.value[:, shown].T,
        low=spectrum.low[:, shown].T,
        high=spectrum.high[:, shown].T,
        n=spectrum.n,
        unit=spectrum.unit,
        method=spectrum.method,
        control=spectrum.control[:, :, shown].transpose(1, 2),
        control_name=spectrum.control_name,
        axes=("irrep", "step"),
        labels={"irrep": tuple(spectrum.label("irrep", int(i)) for i in shown)},
    )
    steps = [float(name) for name in spectrum.labels["step"]]
    return plots.curve(lines, steps, title="Irreps over training", x_title="step")


def has_history(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is a toolkit folder that keeps weights from along its training."""
    spec = parse_spec(str(checkpoint))
    return spec.kind == "toolkit" and bool(read_record(spec.path)["history"])


def _revisions(checkpoint: str | Path) -> dict[str, int]:
    """Checkpoint names, with the step of each, ascending."""
    if not has_history(checkpoint):
        raise NotApplicable(
            f"{checkpoint} keeps no history of its training; give a toolkit checkpoint folder that"
            " does."
        )
    record = read_record(parse_spec(str(checkpoint)).path)
    steps = {f"{checkpoint}@step{step}": int(step) for step in record["history"]}
    return steps | {str(checkpoint): int(record["training"]["steps"])}


def _each(names: dict[str, int]) -> Iterator[GroupNetwork]:
    for name in names:
        yield group_network(load_model(name))


def _spectrum(network: GroupNetwork, group: Group, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    energy = neuron_energy(group, network.functions)
    return energy, shuffled_shares(group, network.functions, draws, seed).mean(1)


def _estimate(
    group: Group, energies: list[Tensor], nulls: list[Tensor], steps: tuple[int, ...], seed: int
) -> Estimate:
    def share(
        values: Float[Tensor, "neuron step site irrep"], weights: Float[Tensor, "draw neuron"]
    ) -> Tensor:
        return torch.stack([shares(values[:, i], weights).mean(1) for i in range(len(steps))], 1)

    return bootstrap(
        torch.stack(energies, 1),
        unit_name="neurons",
        measured="fraction of the energy in [0, 1]",
        seed=seed,
        statistic=share,
        axes=("step", "irrep"),
        labels={"step": tuple(map(str, steps)), "irrep": group.irrep_labels},
        control=torch.stack(nulls, 1),
        control_name="elements shuffled",
    )


def _adjusted(spectrum: Estimate, trivial: int) -> Float[Tensor, "step irrep"]:
    assert spectrum.control is not None
    others = [i for i in range(spectrum.value.shape[1]) if i != trivial]
    p = torch.ones_like(spectrum.value)
    p[:, others] = max_statistic_p(
        spectrum.value[:, others], spectrum.control[:, :, others], studentise=True
    )
    return p


def _measures(network: GroupNetwork, group: Group, keys: list[int]) -> Float[Tensor, " measure"]:
    """One pass for the product part of the hidden layer, one for the losses; the logits of all
    pairs are never held."""
    product, trained = group.table.flatten(), training_pairs(network)
    seen = torch.ones(len(product), dtype=torch.bool) if trained is None else trained
    other = ~seen if bool((~seen).any()) else seen
    unembed = network.functions[2]
    part = _projector(group, keys) @ _product_means(network, product) @ unembed.T
    pieces = []
    for block in network.blocks():
        answer = product[block.rows]
        removed = part[answer].to(block.logits.dtype)
        through = (block.hidden.double() @ unembed.T).to(block.logits.dtype)
        base = score(block.logits, answer)
        excluded, restricted = (
            score(block.logits - removed, answer),
            score(block.logits - through + removed, answer),
        )
        pieces.append(torch.stack([base.loss, restricted.loss, excluded.loss, base.accuracy]))
    loss, restricted_loss, excluded_loss, accuracy = torch.cat(pieces, dim=1)
    losses = [
        loss[seen].mean(),
        loss[other].mean(),
        restricted_loss.mean(),
        excluded_loss[seen].mean(),
    ]
    return torch.stack([*losses, accuracy.mean(), _coset_constant(network, group)])


def _projector(group: Group, keys: list[int]) -> Float[Tensor, "order order"]:
    zero = torch.zeros(group.order, group.order, dtype=torch.float64)
    return sum((group.isotypic_projector(group.irrep_labels[i]) for i in keys), zero)


def _product_means(network: GroupNetwork, product: Tensor) -> Float[Tensor, "order neuron"]:
    """Mean activation over the pairs of each product; every product has as many."""
    sums = torch.zeros(network.order, network.functions.shape[2], dtype=torch.float64)
    for block in network.blocks():
        sums.index_add_(0, product[block.rows], block.hidden.double())
    return sums / network.order


def _coset_constant(network: GroupNetwork, group: Group) -> Float[Tensor, ""]:
    """Share of live neurons whose left and right shares are constant on cosets."""
    alive = live_neurons(network.functions)
    found = [
        coset_stabilisers(group, network.functions[s][:, alive].T, of=side)
        for s, side in enumerate(SIDES)
    ]
    constant = [len(a.members) > 1 and len(b.members) > 1 for a, b in zip(*found, strict=True)]
    return torch.tensor(constant).double().mean()
