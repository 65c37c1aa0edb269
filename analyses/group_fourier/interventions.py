"""What do the published interventions do to a group network?

Swap the tables, flip signs, |x| for ReLU, noise: one call.

Each intervention is an edit at a hook point on all pairs. If neurons work as |l(a) + r(b)|, zero
exactly where ab lies in their coset, then flipping both shares changes nothing, flipping one
destroys everything, |x| for ReLU improves, and a shift of the pre-activation by +1 hurts more than
one by -1.

What would fool it: reading one row alone. Swapped tables and one flip destroy networks that
memorised, too; only the pattern over the rows tells the coset circuit from them. The paper does not
say where its noise enters: here it is drawn anew per pair and neuron and added to the
pre-activation.

Source: Stander et al. 2023, arXiv:2312.06581, section 6.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.answers import Scores, by_left, score
from mechinterp_toolkit.analyses.group_fourier.network import GroupNetwork
from mechinterp_toolkit.groups import Group
from mechinterp_toolkit.intervention import Edit, Edits, Site
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

NOISE = {
    "+ N(0, 0.1)": (0.0, 0.1),
    "+ N(0, 1)": (0.0, 1.0),
    "+ N(1, 1)": (1.0, 1.0),
    "+ N(-1, 1)": (-1.0, 1.0),
}
"""Mean and standard deviation of the noise added to every pre-activation."""


class Interventions(NamedTuple):
    """The table: one row per intervention."""

    accuracy: Estimate
    """Fraction of all pairs answered right, [intervention], in [0, 1]."""

    loss: Estimate
    """Cross-entropy over all pairs, [intervention], in nats."""


def intervention_table(network: GroupNetwork, group: Group, *, seed: int = 0) -> Interventions:
    """Run every published intervention that the architecture allows.

    Swaps and flips need an untied one-hidden-layer network, |x| needs a ReLU; what does not apply
    has no row.

    Args:
        network: the network.
        group: its group.
        seed: of the noise and of the intervals, which resample left elements.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network, known_group
    >>> network = group_network("toy/a5")
    >>> accuracy = intervention_table(network, known_group(network)).accuracy
    >>> accuracy.at(intervention="flip both").text(), accuracy.at(intervention="flip left").text()
    ('1 [1, 1]', '0 [0, 0]')
    """
    product = group.table.flatten()
    scores = {"none": score(network.logits(), product)}
    for name, edits in _edits(network, seed).items():
        scores[name] = score(network.logits(edits), product)
    return Interventions(
        _estimate(network, scores, "accuracy", "fraction of pairs in [0, 1]", seed),
        _estimate(network, scores, "loss", "nats", seed),
    )


def _edits(network: GroupNetwork, seed: int) -> dict[str, Edits]:
    edits: dict[str, Edits] = {}
    if network.is_additive:
        net, pairs = network.model.model, network.pairs
        left, right = net.embed_left.detach(), net.embed_right.detach()
        edits["swap tables"] = {
            "hook_embed_left": lambda a, hook: right[pairs[:, 0]].to(a),
            "hook_embed_right": lambda b, hook: left[pairs[:, 1]].to(b),
        }
        edits["flip left"] = {"hook_left": _flip}
        edits["flip right"] = {"hook_right": _flip}
        edits["flip both"] = {"hook_left": _flip, "hook_right": _flip}
    if network.activation == "relu":
        edits["|x| for ReLU"] = {network.pre_site: lambda pre, hook: pre.abs()}
    for name, (mean, deviation) in NOISE.items():
        edits[name] = {network.pre_site: _noise(mean, deviation, seed)}
    return edits


def _flip(share: Tensor, hook: Site) -> Tensor:
    return -share


def _noise(mean: float, deviation: float, seed: int) -> Edit:
    def edit(activation: Tensor, hook: Site) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(activation.shape, generator=generator).to(activation)
        return activation + mean + deviation * draw

    return edit


def _estimate(
    network: GroupNetwork, scores: dict[str, Scores], what: str, measured: str, seed: int
) -> Estimate:
    values = torch.stack([getattr(judged, what) for judged in scores.values()], 1)
    return bootstrap(
        by_left(values, network.order),
        unit_name="left elements",
        measured=measured,
        seed=seed,
        axes=("intervention",),
        labels={"intervention": tuple(scores)},
    )
