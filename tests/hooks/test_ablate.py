"""Ablation: what is named is replaced, everything else is bit-equal."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.ablate import (
    AblateHeads,
    AblateNeurons,
    ablate_direction,
    ablate_heads,
    ablate_neurons,
    direction_means,
    head_means,
    neuron_means,
    pair_redundancy,
    resample_heads,
)
from mechinterp_toolkit.hooks.measure import logit_difference, measure
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.intervention import Site, applied, observed
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


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (AblateHeads((4,), torch.zeros(1, 1)), r"has 4 heads.*no head \[4\]"),
        (AblateNeurons((0, -1), torch.zeros(2)), r"no neuron \[-1\]"),
    ],
)
def test_a_component_that_is_not_there_is_refused(edit, words):
    with pytest.raises(HookError, match=words):
        edit(
            torch.randn(2, 5, 4, 8) if isinstance(edit, AblateHeads) else torch.randn(2, 5, 9),
            hook=SITE,
        )


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
    # Attention's output is linear in z.
    assert (flat[0, 0] - plain.flatten(0, 1).mean(0)).abs().max() < 1e-5


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


def test_only_the_chosen_tokens_are_ablated(wrapped, tokens):
    where = Where(positions=(2, -1), bos=True)
    name = "blocks.0.attn.hook_z"
    plain = activations(wrapped, tokens, (name,))[name]
    seen = {}
    reader = {name: lambda activation, hook: seen.update(z=activation.clone())}
    with (
        torch.no_grad(),
        applied(wrapped, ablate_heads([(0, 1)], where=where), prompt_length=7),
        observed(wrapped, reader),
    ):
        wrapped.logits(tokens)
    changed = (seen["z"] != plain).any(-1)
    expected = torch.zeros(4, 7, 4, dtype=torch.bool)
    expected[:, [2, 6], 1] = True
    assert torch.equal(changed, expected)
    neurons = AblateNeurons((0,), torch.zeros(1), Where(positions=(1,), bos=True))
    site = Site(POST1, order=torch.arange(3).expand(1, -1))
    assert neurons(torch.ones(1, 3, 2), hook=site).tolist() == [[[1, 1], [0, 1], [1, 1]]]


def test_resampled_heads_write_what_they_wrote_on_another_prompt(wrapped, tokens):
    name = "blocks.0.attn.hook_z"
    edits = resample_heads(wrapped, [(0, 1), (0, 3)], tokens, seed=0)
    plain = activations(wrapped, tokens, (name,))[name]
    resampled = activations(wrapped, tokens, (name,), edits=edits)[name]
    assert torch.equal(resampled[:, :, [0, 2]], plain[:, :, [0, 2]])
    donors = [
        [
            other
            for other in range(4)
            if torch.equal(resampled[row, :, [1, 3]], plain[other, :, [1, 3]])
        ]
        for row in range(4)
    ]
    assert [len(found) for found in donors] == [1] * 4
    assert sorted(d for (d,) in donors) == [0, 1, 2, 3]
    assert all(donor != row for row, (donor,) in enumerate(donors))
    with (
        pytest.raises(HookError, match=r"values for \(4, 7\) tokens.*\(2, 7\) run"),
        applied(wrapped, edits),
    ):
        wrapped.logits(tokens[:2])
    with pytest.raises(ToolkitError, match="at least two prompts"):
        resample_heads(wrapped, [(0, 1)], tokens[:1], seed=0)


def test_a_direction_set_to_its_mean_keeps_the_mean_stream(wrapped, tokens):
    name, v = "blocks.1.hook_resid_pre", torch.randn(32)
    means = direction_means(wrapped, tokens, v, [name])
    plain = activations(wrapped, tokens, (name,))[name]
    flat = activations(wrapped, tokens, (name,), edits=ablate_direction(v, [name], means))[name]
    assert (flat.mean((0, 1)) - plain.mean((0, 1))).abs().max() < 1e-5  # float32 sums
    assert (flat @ v).std() < 1e-4 < 0.1 < (plain @ v).std()
    zero = activations(wrapped, tokens, (name,), edits=ablate_direction(v, [name]))[name]
    assert (zero @ v).abs().max() < 1e-4


def test_directions_that_can_not_be_ablated_are_refused():
    with pytest.raises(HookError, match=r"no mean projection was given for \['b'\]"):
        ablate_direction(torch.ones(3), ["a", "b"], {"a": 0.0})
    with pytest.raises(ToolkitError, match="points nowhere"):
        ablate_direction(torch.zeros(3), ["a"])


def test_the_interaction_of_a_pair_is_what_both_take_beyond_the_sum(wrapped, tokens):
    metric = logit_difference(torch.full((4, 1), 5), torch.full((4, 1), 9))
    heads = [(0, 1), (1, 2), (0, 3)]
    found = pair_redundancy(wrapped, tokens, heads, metric)
    before = measure(wrapped, tokens, metric)
    groups = ([heads[0]], [heads[2]], [heads[0], heads[2]])
    lost = [
        (before - measure(wrapped, tokens, metric, ablate_heads(group))).mean() for group in groups
    ]
    assert float(found.single.value[0]) == pytest.approx(float(lost[0]))
    at = found.pairs.index((heads[0], heads[2]))
    assert float(found.interaction.value[at]) == pytest.approx(float(lost[2] - lost[1] - lost[0]))
    assert found.interaction.labels["pair"][at] == "0.1 + 0.3"
    assert found.single.n == 4
    with pytest.raises(ToolkitError, match="pairs need two different ones"):
        pair_redundancy(wrapped, tokens, [(0, 1), (0, 1)], metric)
