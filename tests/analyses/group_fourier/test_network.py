"""One view of every group network; its group read from answers; what is measured on it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mechinterp_toolkit.analyses.group_fourier import network as network_module
from mechinterp_toolkit.analyses.group_fourier.answers import (
    by_product,
    hidden_energy,
    removed_product,
    score,
    training_pairs,
)
from mechinterp_toolkit.analyses.group_fourier.cyclic_measures import circularity, cyclic_measures
from mechinterp_toolkit.analyses.group_fourier.energies import embedding_energy
from mechinterp_toolkit.analyses.group_fourier.explanations import (
    MEASURES,
    explain,
    idealise_rho_sets,
)
from mechinterp_toolkit.analyses.group_fourier.figures import spectrum_over_training
from mechinterp_toolkit.analyses.group_fourier.interventions import intervention_table
from mechinterp_toolkit.analyses.group_fourier.network import group_network, recover_group
from mechinterp_toolkit.analyses.group_fourier.progress import _measures, group_progress
from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    irrep_labels,
    isomorphism,
    isotypic_energy,
    isotypic_projector,
    symmetric,
)
from mechinterp_toolkit.model import has_hooked_transformer, load_model
from mechinterp_toolkit.toys.group_mlp import GroupMLP
from mechinterp_toolkit.toys.planted_groups import planted_group_mlp

S4 = symmetric(4)
LABELS = ("(3,1)", "(1,1,1,1)")


def planted() -> GroupMLP:
    return planted_group_mlp(S4, LABELS)


def anonymous(net: GroupMLP, order: torch.Tensor) -> GroupMLP:
    """The same network, its elements renumbered alike on all sides, and no word of its group."""
    return GroupMLP.from_weights(
        net.embed_left.detach()[order],
        net.embed_right.detach()[order],
        net.w_hidden.detach(),
        net.w_out.detach()[:, order],
    )


def test_the_neurons_of_a_one_hidden_layer_network_are_its_logits() -> None:
    network = group_network(planted())
    logits = network.logits()
    # The same float32 products, which the model sums for all pairs at once.
    away = (network.through(network.functions) - logits).abs().max()
    assert away < 1e-6 * logits.abs().max()


def test_a_bias_and_another_activation_are_carried_along() -> None:
    net = GroupMLP(6, d_embed=4, d_hidden=5, activation="gelu", bias=True)
    with torch.no_grad():
        net.b_out.add_(torch.randn(6))
    network = group_network(net)
    # float32 sums in another order
    assert (network.through(network.functions) - network.logits()).abs().max() < 1e-6


def test_the_shares_of_a_transformer_are_means_of_its_pre_activations() -> None:
    network = group_network("toy/z113-transformer")
    assert network.functions.shape == (3, 113, 256)
    pre = network.activations(network.pre_site).double().reshape(113, 113, 256)
    assert (network.functions[0, 5] - pre[5].mean(0)).abs().max() < 1e-12  # the same float64 sums
    assert (network.functions[1, 5] - pre[:, 5].mean(0)).abs().max() < 1e-12
    assert (network.functions[0, 5] - network.functions[1, 5]).abs().max() > 0.01
    unembed = network.model.model.blocks[0].mlp.W_out.detach() @ network.model.model.W_U.detach()
    assert (network.functions[2] - unembed.T).abs().max() < 1e-5  # float64 against float32 products


def test_the_group_is_read_from_the_answers_of_a_network_that_was_never_told() -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    group = recover_group(group_network(anonymous(planted(), order)))
    assert torch.equal(group.table, order.argsort()[S4.table[order][:, order]])
    assert isomorphism(group, S4) is not None


def test_a_network_that_learned_no_group_is_told_so_with_the_violated_triples() -> None:
    with pytest.raises(
        ToolkitError,
        match=r"not a group operation.*differs from a\(bc\) for \d+\.\d+% of all 216 triples",
    ):
        recover_group(group_network(GroupMLP(6, d_embed=4, d_hidden=5)))


def test_what_is_no_group_network_is_refused_with_the_reason() -> None:
    with pytest.raises(NotApplicable, match="no left, right and unembedding matrices"):
        group_network(_Empty())


class _Empty(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hook_dict: dict[str, object] = {}
        self.weight = torch.nn.Parameter(torch.zeros(2))


def test_interventions_on_a_planted_coset_network_have_the_published_pattern() -> None:
    network = group_network(planted())
    table = intervention_table(network, S4)
    accuracy = dict(
        zip(table.accuracy.labels["intervention"], table.accuracy.value.tolist(), strict=True)
    )
    loss = dict(zip(table.loss.labels["intervention"], table.loss.value.tolist(), strict=True))
    assert accuracy["none"] == accuracy["flip both"] == accuracy["|x| for ReLU"] == 1.0
    assert accuracy["flip left"] == accuracy["flip right"] == 0.0
    assert loss["|x| for ReLU"] < loss["none"]
    # Its embeddings share one basis, so it answers ba: right for the 5/24 of pairs that commute
    # (classes over order).
    assert accuracy["swap tables"] == pytest.approx(5 / 24)


def test_flips_and_swaps_have_no_row_where_embeddings_are_not_separate() -> None:
    network = group_network("toy/z113-transformer")
    table = intervention_table(network, network.model.model.group)
    assert table.accuracy.labels["intervention"][:2] == ("none", "|x| for ReLU")
    assert len(table.accuracy.value) == 6


def test_a_planted_rho_set_is_explained_by_cosets_and_rho_sets_and_its_controls_are_not() -> None:
    network = group_network(planted())
    explained = explain(network, S4, list(LABELS), draws=2)
    fve, control = explained.scores.value[:, 0], explained.scores.control[:, :, 0]
    assert (fve[1:] - 1).abs().max() < 1e-5  # planted weights are float32
    # Random vectors of the sign irrep are its neurons again, so part of a rho-set control is right.
    assert (control[:, 1] < 0.1).all()
    assert (control[:, 2] < 0.7).all()
    assert (explained.scores.value[:, MEASURES.index("accuracy of the ideal")] == 1).all()
    by_irrep = {one.irrep: one for one in explained.rho_sets}
    standard = by_irrep["(3,1)"]
    assert standard.neurons == 16
    assert (standard.orbit, standard.pairs, standard.closed) == (4, 1.0, 1.0)
    assert standard.shared_a == pytest.approx(1, abs=1e-6)


def test_a_missing_pair_of_a_rho_set_is_counted() -> None:
    network = group_network(planted())
    functions = network.functions.clone()
    main = isotypic_energy(S4, functions[0].T)[:, irrep_labels(S4).index("(3,1)")].argmax()
    functions[:, :, main] = 0
    _, sets = idealise_rho_sets(S4, functions)
    assert {one.irrep: one for one in sets}["(3,1)"].pairs == pytest.approx(15 / 16)


def test_cyclic_measures_refuse_other_groups() -> None:
    with pytest.raises(NotApplicable, match="S4 is not a cyclic group"):
        cyclic_measures(group_network(planted()), S4)


def test_a_trained_cyclic_network_is_sparse_in_frequency_and_one_table_has_gradients() -> None:
    untied = group_network("toy/z113")
    measured = cyclic_measures(untied, untied.model.model.group, draws=19)
    assert measured.gradient_symmetricity is None
    assert (measured.gini.value > measured.gini.control.amax(0) + 0.3).all()
    tied = group_network("toy/z113-transformer")
    shared = cyclic_measures(tied, tied.model.model.group, draws=19).gradient_symmetricity
    assert shared is not None
    assert -1 <= float(shared.value) <= 1


@pytest.mark.slow
def test_progress_of_s5_has_its_irreps_in_order_and_its_losses_cross() -> None:
    progress = group_progress("toy/s5", draws=99)
    assert progress.steps == (0, 200, 400, 500, 550, 600, 800)
    assert list(progress.appeared) == ["(4,1)", "(1,1,1,1,1)"]
    assert progress.p[0].min() > 0.05  # nothing before training
    restricted, excluded = progress.measures[:, 2], progress.measures[:, 3]
    assert restricted[-1] < 0.01 < 7 < excluded[-1]
    assert progress.measures[-1, 5] == 1.0
    assert spectrum_over_training(progress.spectrum).data


def test_a_checkpoint_without_a_history_has_no_progress() -> None:
    with pytest.raises(NotApplicable, match="toy/a5-memorised keeps no history"):
        group_progress("toy/a5-memorised")


def test_another_group_of_the_same_order_is_another_account() -> None:
    network = group_network(planted())
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    renumbered = Group.from_table(order.argsort()[S4.table[order][:, order]])
    own, other = (
        isotypic_energy(S4, network.functions[0].T),
        isotypic_energy(renumbered, network.functions[0].T),
    )
    assert own.max(1).values.mean() > 1.5 * other.max(1).values.mean()
    assert dataclasses.is_dataclass(load_model(network.model))


def test_a_transformer_lies_in_few_frequencies_and_its_hidden_layer_knows_the_product() -> None:
    network = group_network("toy/z113-transformer")
    group = network.model.model.group
    tables = embedding_energy(network, group, 9, 0)
    assert tables.value.shape == (1, 57)
    # Published transformers on C113: 95.2 % of W_E in the key irreps.
    assert float(tables.value[0].topk(5).values.sum()) > 2 * float(
        tables.control[:, 0].topk(5).values.sum(1).max()
    )
    held = []
    for site in ("blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post"):
        energy, whole = hidden_energy(group, network.activations(site))
        held.append(float(energy[:, 2].sum() / whole.sum()))
    assert held[1] > 3 * held[0]
    means = by_product(group, network.hidden, group.table.flatten())
    renamed = means[torch.randperm(113, generator=torch.Generator().manual_seed(0))]
    for rows, sparse in ((means, True), (renamed, False)):
        share = isotypic_energy(group, (rows - rows.mean(0)).T).sum(0)
        assert (float(share.topk(4).values.sum() / share.sum()) > 0.9) == sparse


@pytest.mark.skipif(
    not has_hooked_transformer(), reason="this TransformerLens has no HookedTransformer"
)
def test_a_hookedtransformer_with_the_same_weights_is_the_same_group_network() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    own = load_model("toy/z113-transformer").model
    config = HookedTransformerConfig(
        n_layers=1,
        d_model=64,
        n_ctx=3,
        d_head=16,
        n_heads=4,
        d_mlp=256,
        d_vocab=114,
        d_vocab_out=113,
        act_fn="relu",
        normalization_type=None,
        init_weights=False,
        device="cpu",
    )
    made = HookedTransformer(config)
    state = {
        name: torch.zeros_like(tensor)
        for name, tensor in made.state_dict().items()
        if tensor.is_floating_point()
    }
    state |= {name: tensor for name, tensor in own.state_dict().items() if name in state}
    made.load_state_dict(state, strict=False)
    ours, theirs = group_network(own), group_network(made)
    # float32 attention in another order of sums, logits of size 30
    assert (ours.logits() - theirs.logits()).abs().max() < 1e-3
    assert (ours.functions - theirs.functions).abs().max() < 1e-4


@pytest.mark.skipif(
    not has_hooked_transformer(), reason="this TransformerLens has no HookedTransformer"
)
def test_the_unembedding_of_a_transformer_with_tied_embeddings_is_read_from_the_embedding() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1,
        d_model=32,
        n_ctx=3,
        d_head=8,
        n_heads=4,
        d_mlp=20,
        d_vocab=7,
        act_fn="relu",
        normalization_type=None,
        device="cpu",
        seed=0,
    )
    made = HookedTransformer(config)
    made.unembed.W_U.data = made.embed.W_E.data.T  # one tensor
    network = group_network(made, order=6)
    assert torch.equal(network.embeddings[0], made.W_E[:6].double())
    expected = made.W_E[:6].double() @ made.blocks[0].mlp.W_out.double().T
    assert torch.allclose(network.functions[2], expected, atol=1e-12)
    assert network.logits().shape == (36, 6)


def test_networks_with_one_table_for_both_inputs_are_the_same_network() -> None:
    net = planted()
    # Both shares as weights on one-hot embeddings.
    hidden = torch.cat([net.left, net.right]).detach()
    tied = GroupMLP.from_weights(torch.eye(24), torch.eye(24), hidden, net.w_out.detach(), group=S4)
    ours, theirs = group_network(tied), group_network(net)
    # float32 products of weights
    assert torch.allclose(ours.functions, theirs.functions, atol=1e-6)
    assert torch.allclose(ours.logits(), theirs.logits(), atol=1e-4)


@pytest.mark.parametrize("wrapper", ["HookedTransformer", "TransformerBridge"])
def test_a_transformer_with_layernorm_before_its_unembedding_is_refused_on_both_wrappers(
    wrapper: str,
) -> None:
    import transformers

    if wrapper == "HookedTransformer" and not has_hooked_transformer():
        pytest.skip("this TransformerLens has no HookedTransformer")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=7, n_positions=4)
    with pytest.raises(
        NotApplicable, match="LayerNorm stands between its neurons and its unembedding"
    ):
        group_network(
            load_model(transformers.GPT2LMHeadModel(config).eval(), wrapper=wrapper), order=6
        )


def test_transformers_that_are_no_group_networks_are_refused_with_the_reason() -> None:
    own = load_model("toy/z113-transformer").model
    own.blocks.append(own.blocks[0])
    with pytest.raises(NotApplicable, match="a transformer of 2 layers"):
        group_network(own)


@pytest.mark.parametrize("name", ["toy/s5", "toy/z113-transformer"])
def test_pieces_are_the_whole_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = group_network(name)
    monkeypatch.setattr(network_module, "PAIRS_AT_ONCE", 10 * network.order**2)
    pieces = list(network.pieces())
    assert len(pieces) == -(-network.order // 10)
    assert [p.rows.start for p in pieces] == [10 * i * network.order for i in range(len(pieces))]
    # float32 sums whose order depends on the batch
    assert torch.allclose(torch.cat([p.logits for p in pieces]), network.logits(), atol=1e-4)
    assert torch.allclose(torch.cat([p.hidden for p in pieces]), network.hidden, atol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the largest tensor any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_progress_measures_are_those_of_the_whole_logits_and_hold_no_cube(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = group_network("toy/s5")
    group = network.model.model.group
    keys = ["(4,1)", "(1,1,1,1,1)"]
    projector = sum(isotypic_projector(group, label) for label in keys)
    product, seen = group.table.flatten(), training_pairs(network)
    excluded = score(removed_product(group, network, projector, product), product).loss[seen].mean()
    base = score(network.logits(), product)
    monkeypatch.setattr(network_module, "PAIRS_AT_ONCE", 4 * group.order**2)
    with Largest() as largest:
        measured = _measures(group_network("toy/s5"), group, keys)
    # float32 logits whose sums are taken in another order, under a loss of about 1e-6 and one of
    # about 8
    assert measured[3] == pytest.approx(float(excluded), rel=1e-4)
    assert measured[1] == pytest.approx(float(base.loss[~seen].mean()), rel=1e-3)
    assert measured[4] == base.accuracy.mean()
    assert largest.numbers < group.order**3 / 4


def test_circularity_is_one_for_circles_and_small_for_noise() -> None:
    angle = 2 * math.pi * torch.arange(31, dtype=torch.float64) / 31
    circles = torch.stack(
        [angle.cos(), angle.sin(), 0.5 * (3 * angle).cos(), 0.5 * (3 * angle).sin()], 1
    )
    assert torch.allclose(circularity(circles), torch.ones(4, dtype=torch.float64))
    noise = torch.randn(31, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(circularity(noise).mean()) < 0.4
    # The alternating wave has no partner of negative frequency.
    wave = (math.pi * torch.arange(8, dtype=torch.float64)).cos()[:, None] * torch.eye(1, 4)
    assert float(circularity(wave)[0]) == pytest.approx(1)


def test_embeddings_of_a_trained_cyclic_network_are_circular_and_renamed_elements_are_not() -> None:
    network = group_network("toy/z113-transformer")
    measured = cyclic_measures(network, network.model.model.group, draws=19).circularity
    assert measured.value.shape == (1,)
    assert measured.value > measured.control.amax() + 0.2
