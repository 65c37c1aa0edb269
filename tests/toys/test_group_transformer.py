"""The one-layer transformer on [a, b, =]: hook points, the fast path, configs and refusals."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import CheckpointError, ToolkitError
from mechinterp_toolkit.groups import cyclic
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys.group_transformer import GroupTransformer, fast_logits
from mechinterp_toolkit.toys.pairs import all_pairs, pair_tokens


def network(seed: int = 0) -> GroupTransformer:
    return GroupTransformer(5, d_model=16, n_heads=2, d_mlp=12, group=cyclic(5), seed=seed)


def test_the_fast_path_agrees_with_the_hooked_one() -> None:
    net, pairs = network(), all_pairs(5)
    with torch.no_grad():
        # Fresh biases are zero and would hide a forgotten one.
        net.blocks[0].mlp.b_in.add_(torch.randn(12))
        net.blocks[0].mlp.b_out.add_(torch.randn(16))
        # float32 sums in another order: a few rounding units of logits near 1
        assert (net(pair_tokens(pairs, 5))[:, 0] - fast_logits(net, pairs)).abs().max() < 1e-5


def test_attention_pays_every_position_and_adds_up_to_one() -> None:
    pattern = activations(
        load_model(network()), pair_tokens(all_pairs(5), 5), ("blocks.0.attn.hook_pattern",)
    )
    assert pattern["blocks.0.attn.hook_pattern"].shape == (25, 2, 1, 3)
    assert (pattern["blocks.0.attn.hook_pattern"].sum(-1) - 1).abs().max() < 1e-6
    assert (pattern["blocks.0.attn.hook_pattern"] > 0).all()


def test_the_config_builds_the_same_architecture_and_a_seed_the_same_weights() -> None:
    net = network()
    again = GroupTransformer.from_config(net.config, seed=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert not torch.equal(net.random_like(1).W_E, net.W_E)


def test_it_is_read_by_hookedtransformers_names() -> None:
    points = load_model(network()).hook_points
    assert {
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.0.attn.hook_z",
        "blocks.0.mlp.hook_post",
    } <= set(points)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ToolkitError, match="C5 has 5 elements, but the network is built for 6"):
        GroupTransformer(6, group=cyclic(5))
    with pytest.raises(ToolkitError, match="3 heads do not divide"):
        GroupTransformer(5, d_model=16, n_heads=3)
    with pytest.raises(CheckpointError, match=r"missing \['d_mlp'\]"):
        GroupTransformer.from_config({k: v for k, v in network().config.items() if k != "d_mlp"})
    with pytest.raises(ToolkitError, match="returns logits, not 'loss'"):
        network()(pair_tokens(all_pairs(5), 5), return_type="loss")
