"""What is said of logits and hidden layers, against the cubes it avoids and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.analyses.group_fourier.answers import (
    fve,
    hidden_energy,
    logit_similarity,
    prune,
    quick_score,
    removed_product,
    score,
    similarity,
    training_pairs,
)
from mechinterp_toolkit.analyses.group_fourier.cyclic_measures import gini
from mechinterp_toolkit.analyses.group_fourier.network import group_network
from mechinterp_toolkit.groups import irrep, irreps, symmetric
from mechinterp_toolkit.hooks.fourier import ProjectRows, irrep_projector
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.toys.pairs import split_pairs
from mechinterp_toolkit.toys.planted_groups import planted_group_mlp

S3 = symmetric(3)
PRODUCT = S3.table.flatten()
ONE = torch.ones(1, 6, dtype=torch.float64)
EXACT = 1e-12  # float64 sums of some thousand terms near 1


def test_scores_worked_by_hand_and_ties_are_not_right() -> None:
    logits = torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    judged = score(logits, torch.tensor([0, 1]))
    assert judged.accuracy.tolist() == [1.0, 0.0]
    assert judged.logit.tolist() == [0.5, 0.0]
    assert judged.loss[0].item() == pytest.approx(math.log(1 + math.exp(-1)), abs=EXACT)
    assert judged.loss[1].item() == pytest.approx(math.log(2), abs=EXACT)
    assert quick_score(logits, torch.tensor([0, 1])) == (0.25, 0.5)


def test_losses_below_the_rounding_of_float32_are_seen() -> None:
    judged = score(torch.tensor([[25.0, 0.0]]), torch.tensor([0]))
    # 1.4e-11; float32 would say 0.
    assert judged.loss.item() == pytest.approx(math.exp(-25), rel=1e-4)


def test_similarity_is_the_cosine_with_the_whole_cube() -> None:
    logits = torch.randn(36, 6, generator=torch.Generator().manual_seed(0)).double()
    found = similarity(logit_similarity(S3, logits), ONE)[0]
    centred = (logits - logits.mean(1, keepdim=True)).reshape(6, 6, 6)
    a, b, c = torch.meshgrid(*[torch.arange(6)] * 3, indexing="ij")
    for value, rho in zip(found.tolist(), irreps(S3), strict=True):
        cube = rho.character[S3.table[S3.table[a, b], S3.inverses[c]]]
        if bool((rho.character == 1).all()):
            assert value == 0
            continue
        assert value == pytest.approx(
            float((centred * cube).sum() / centred.norm() / cube.norm()), abs=EXACT
        )


def test_logits_made_of_characters_are_explained_by_them_and_by_no_scrambled_product() -> None:
    quotients = S3.table[:, S3.inverses]
    logits = (2 * irrep(S3, "(2,1)").character + irrep(S3, "(1,1,1)").character)[quotients][
        PRODUCT
    ].float()
    assert fve(logit_similarity(S3, logits), ONE).item() == pytest.approx(1, abs=EXACT)
    other = S3.table[torch.tensor([1, 0, 2, 3, 4, 5])].flatten()
    assert fve(logit_similarity(S3, logits, other), ONE).item() < 0.9


def test_functions_of_a_of_b_and_of_ab_are_told_apart() -> None:
    values = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
    a, b = torch.arange(36) // 6, torch.arange(36) % 6
    hidden = torch.stack([values[a], values[b], values[PRODUCT]], 1)
    energy, whole = hidden_energy(S3, hidden)
    shares = energy.sum(-1) / whole[:, None]
    # A function of one of the three has nothing that depends on either of the others alone.
    assert (shares - torch.eye(3, dtype=torch.float64)).abs().max() < EXACT


def test_removing_by_linearity_is_the_edit_at_the_hook_point() -> None:
    network = group_network(planted_group_mlp(S3, ("(2,1)", "(1,1,1)"), strength=0.7))
    projector = irrep_projector(S3, ["(2,1)"])
    edited = network.logits({"hook_hidden": ProjectRows(PRODUCT, projector, "remove")})
    # float32 logits of size 1: a few rounding units
    assert (removed_product(S3, network, projector, PRODUCT) - edited).abs().max() < 1e-5
    assert (edited - network.logits()).abs().max() > 0.01


@pytest.mark.parametrize("name", ["toy/s5", "toy/a5", "toy/d59", "toy/z113-transformer"])
def test_training_pairs_are_those_the_recorded_loss_was_taken_on(name: str) -> None:
    network = group_network(name)
    trained = training_pairs(network)
    assert trained is not None
    loss = score(network.logits(), network.model.model.group.table.flatten()).loss
    recorded = network.model.provenance.training["training"]["metrics"]
    # The record was taken with the same float32 weights in another order of summation.
    assert loss[trained].mean().item() == pytest.approx(recorded["train_loss"], rel=1e-4)
    assert loss[~trained].mean().item() == pytest.approx(recorded["test_loss"], rel=1e-4)


def test_a_network_without_a_record_has_no_training_pairs() -> None:
    assert training_pairs(group_network(planted_group_mlp(S3, ("(2,1)", "(1,1,1)")))) is None


def test_pruning_starts_from_the_whole_network_and_dead_neurons_cost_nothing() -> None:
    net = planted_group_mlp(S3, ("(2,1)", "(1,1,1)"))
    width = net.d_hidden
    padded = type(net).from_weights(
        torch.cat([net.embed_left.detach(), torch.zeros(6, width)], 1),
        torch.cat([net.embed_right.detach(), torch.zeros(6, width)], 1),
        torch.cat(
            [
                torch.block_diag(w, torch.zeros(width, width))
                for w in net.w_hidden.detach().split(width)
            ]
        ),
        torch.cat([net.w_out.detach(), torch.zeros(width, 6)]),
    )
    network = group_network(padded)
    dead_first = torch.arange(2 * width).flip(0)
    curve = prune(network, PRODUCT, torch.stack([dead_first, dead_first.flip(0)]), steps=4).mean(0)
    assert curve[0, :3].tolist() == [1.0, 1.0, 1.0]  # the second half is zero to begin with
    assert curve[1, 0] == 1.0
    assert curve[1, 2] < 0.5  # all live neurons gone: nothing but ties


def test_gini_of_equal_and_of_single_entries() -> None:
    assert gini(torch.ones(5)).item() == pytest.approx(0, abs=1e-6)
    assert gini(torch.tensor([0.0, 0.0, 0.0, 3.0])).item() == pytest.approx(0.75, abs=1e-6)


def test_the_recorded_split_needs_the_right_seed() -> None:
    network = group_network("toy/a5")
    wrong = load_model("toy/a5").provenance.training["training"]["seed"] + 1
    other = split_pairs(60, 0.5, wrong).train
    mask = torch.zeros(3600, dtype=torch.bool)
    mask[other[:, 0] * 60 + other[:, 1]] = True
    assert not torch.equal(mask, training_pairs(network))
