"""Where published numbers of group networks are wrong, the true values.

Each test says what was published.
The networks themselves belong to their authors, so what is asserted is the fact each error came
from.
"""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses.group_fourier.answers import (
    fve,
    hidden_energy,
    logit_similarity,
    score,
)
from mechinterp_toolkit.analyses.group_fourier.network import group_network
from mechinterp_toolkit.groups import alternating, blocks, cyclic, fourier_matrix, irreps, symmetric

EXACT = 1e-9  # float64 through irreps built from a split of the regular representation


def test_the_irreps_3_of_a5_turn_about_different_axes_and_explain_at_most_everything() -> None:
    """Published with one constant axis, which made a share of 101.04 %."""
    group = alternating(5)
    for irrep in (i for i in irreps(group) if i.dimension == 3):
        a, b = (irrep.matrices[g] for g in group.generators[:2])
        product = group.table[group.generators[0], group.generators[1]]
        assert (irrep.matrices[product] - a @ b).abs().max() < EXACT
        assert irrep.character.square().mean().item() == pytest.approx(1, abs=EXACT)  # irreducible
        axes = irrep.matrices - torch.eye(3, dtype=torch.float64)
        common = torch.linalg.svdvals(axes.flatten(0, 1))
        assert common[-1] > 0.1  # no vector is fixed by all
    golden = {round(float(c), 6) for i in irreps(group) if i.dimension == 3 for c in i.character}
    assert sorted(golden) == [-1.0, -0.618034, 0.0, 1.618034, 3.0]
    network = group_network("toy/a5")
    energy, whole = hidden_energy(group, network.hidden)
    assert float(energy.sum() / whole.sum()) <= 1
    assert float(fve(logit_similarity(group, network.logits()), torch.ones(1, 60).double())) <= 1


def test_shares_of_cyclic_networks_count_every_direction_once() -> None:
    """Published shares of C113 and C118 came from a rank-deficient basis: .911 for a true .870."""
    for n in (113, 118):
        group = cyclic(n)
        basis = fourier_matrix(group)
        assert (basis.T @ basis - torch.eye(n, dtype=torch.float64)).abs().max() < EXACT
        sizes = [block.size for block in blocks(group)]
        assert sum(sizes) == n
        # The alternating frequency n / 2 is one of them.
        assert sizes.count(1) == (2 if n % 2 == 0 else 1)
    network = group_network("toy/z113")
    energy, whole = hidden_energy(cyclic(113), network.hidden)
    assert ((energy.sum((1, 2)) <= whole * (1 + EXACT)) & (energy >= -EXACT).all(2).all(1)).all()


def test_s6_has_eleven_irreps_whose_squares_fill_the_group() -> None:
    """Some were missing from the published analysis; two exceptional ones have dimension 5."""
    group = symmetric(6)
    dimensions = {irrep.label: irrep.dimension for irrep in irreps(group)}
    assert sorted(dimensions.values()) == [1, 1, 5, 5, 5, 5, 9, 9, 10, 10, 16]
    assert sum(d * d for d in dimensions.values()) == 720
    assert dimensions["(2,2,2)"] == dimensions["(5,1)"] == 5


def test_a_loss_is_a_mean_over_pairs_whatever_the_batches() -> None:
    """Published losses of S6 transformers are a sum over eight batches: eight times too large."""
    network = group_network("toy/s5")
    product = network.model.model.group.table.flatten()
    whole = score(network.logits(), product).loss
    parts = [score(network.logits()[i::8], product[i::8]).loss.mean() for i in range(8)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.mean().item(), rel=1e-12)
    assert len(whole) == 14400
