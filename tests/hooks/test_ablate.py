"""Ablation: what is named is replaced, everything else is bit-equal."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.hooks.ablate import (
    AblateHeads,
    AblateNeurons,
    ablate_heads,
    ablate_neurons,
    head_means,
    neuron_means,
)
from mechinterp_toolkit.intervention import Site, applied
from mechinterp_toolkit.record import activations

Z0, POST1 = "blocks.0.attn.hook_z", "blocks.1.mlp.hook_post"
SITE = Site(Z0)


def test_only_the_named_heads_change():
    activation = torch.randn(2, 5, 4, 8)
    edited = AblateHeads((1, 3), torch.zeros(2, 1))(activation, hook=SITE)
    assert torch.equal(edited[:, :, [0, 2]], activation[:, :, [0, 2]])
    assert edited[:, :, [1, 3]].abs().max() == 0
    assert activation[:, :, 1].abs().min() > 0  # the input was not touched


def test_each_head_gets_its_own_mean():
    means = torch.randn(2, 8)
    edited = AblateHeads((3, 0), means)(torch.randn(2, 5, 4, 8), hook=SITE)
    assert torch.equal(edited[1, 4, 3], means[0])
    assert torch.equal(edited[1, 4, 0], means[1])


def test_only_the_named_neurons_change():
    activation = torch.randn(2, 5, 9)
    edited = AblateNeurons((4, 2), torch.tensor([7.0, 8.0]))(activation, hook=SITE)
    rest = [i for i in range(9) if i not in (2, 4)]
    assert torch.equal(edited[..., rest], activation[..., rest])
    assert (edited[..., 4] == 7).all()
    assert (edited[..., 2] == 8).all()


@pytest.mark.parametrize(("edit", "words"), [(AblateHeads((4,), torch.zeros(1, 1)), r"has 4 heads.*no head \[4\]"),
                                             (AblateNeurons((0, -1), torch.zeros(2)), r"no neuron \[-1\]")])  # fmt: skip
def test_a_component_that_is_not_there_is_refused(edit, words):
    with pytest.raises(HookError, match=words):
        edit(torch.randn(2, 5, 4, 8) if isinstance(edit, AblateHeads) else torch.randn(2, 5, 9), hook=SITE)


def test_zero_ablating_a_head_equals_zeroing_its_output_weights(wrapped, tokens):
    if wrapped.is_bridge:
        pytest.skip("HookedTransformer's W_O can be edited in place")
    with torch.no_grad(), applied(wrapped, ablate_heads([(1, 2)])):
        ablated = wrapped.logits(tokens)
    weight = wrapped.model.blocks[1].attn.W_O
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[2] = 0
        reference = wrapped.logits(tokens)
        weight.copy_(kept)
    assert (ablated - reference).abs().max() < 1e-5  # the same sums with zeros in another place


def test_mean_ablating_every_head_makes_attention_the_same_everywhere(wrapped, tokens):
    means = head_means(wrapped, tokens, [1])
    heads = [(1, head) for head in range(4)]
    name = "blocks.1.hook_attn_out"
    plain = activations(wrapped, tokens, (name,))[name]
    flat = activations(wrapped, tokens, (name,), edits=ablate_heads(heads, means))[name]
    assert plain.std((0, 1)).max() > 0.01
    assert flat.std((0, 1)).max() < 1e-5
    assert (flat[0, 0] - plain.flatten(0, 1).mean(0)).abs().max() < 1e-5  # attention's output is linear in z


def test_mean_ablating_all_neurons_leaves_the_mean_output(wrapped, tokens):
    means = neuron_means(wrapped, tokens, [1])
    neurons = [(1, i) for i in range(72)]
    name = "blocks.1.hook_mlp_out"
    plain = activations(wrapped, tokens, (name,))[name]
    flat = activations(wrapped, tokens, (name,), edits=ablate_neurons(neurons, means))[name]
    assert (flat - plain.flatten(0, 1).mean(0)).abs().max() < 1e-5
    assert flat.std((0, 1)).max() < 1e-5 < plain.std((0, 1)).max()


def test_earlier_layers_and_positions_before_are_bit_equal(wrapped, tokens):
    names = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    before = activations(wrapped, tokens, names)
    after = activations(wrapped, tokens, names, edits=ablate_heads([(1, 0)]))
    assert torch.equal(before[names[0]], after[names[0]])
    assert not torch.equal(before[names[1]], after[names[1]])


def test_missing_means_are_refused():
    with pytest.raises(HookError, match=r"no means were given for layers \[3\]"):
        ablate_heads([(1, 0), (3, 1)], {1: torch.zeros(4, 8)})
