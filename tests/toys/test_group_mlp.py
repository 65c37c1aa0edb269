"""The group network: its forward pass by hand, hook points, configuration and clear errors."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import CheckpointError, ToolkitError
from mechinterp_toolkit.groups import Group, cyclic, symmetric
from mechinterp_toolkit.toys.group_mlp import ACTIVATIONS, GroupMLP
from mechinterp_toolkit.toys.pairs import all_pairs


def by_hand(**options: object) -> GroupMLP:
    """Two elements, one embedding dimension, one neuron: pre = 2 a + 3 b on a, b in {1, -1}."""
    sign = torch.tensor([[1.0], [-1.0]])
    w_hidden = torch.tensor([[2.0], [3.0]])
    return GroupMLP.from_weights(sign, sign, w_hidden, torch.tensor([[1.0, 10.0]]), **options)


PAIRS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("activation", "hidden"),
    [("relu", [5, 0, 1, 0]), ("quadratic", [25, 1, 1, 25]), ("abs", [5, 1, 1, 5])],
)
def test_logits_are_the_hidden_neuron_times_its_unembedding(
    activation: str, hidden: list[float]
) -> None:
    # pre-activations of the four pairs: 2 + 3, 2 - 3, -2 + 3, -2 - 3
    logits = by_hand(activation=activation)(PAIRS)
    assert torch.equal(logits, torch.tensor(hidden)[:, None].float() * torch.tensor([1.0, 10.0]))


def test_the_output_bias_is_added_to_every_row() -> None:
    bias = torch.tensor([7.0, -7.0])
    assert torch.equal(by_hand(b_out=bias)(PAIRS), by_hand()(PAIRS) + bias)


def test_left_and_right_are_the_shares_seen_at_their_hook_points() -> None:
    network = GroupMLP(6, d_embed=5, d_hidden=4, activation="gelu", bias=True, seed=3)
    pairs = all_pairs(6)
    logits, cache = network.run_with_cache(pairs)
    # The same products, summed in another order by the batched matmul: float32 rounding of numbers
    # near 1.
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(cache["hook_left"], network.left[pairs[:, 0]], **close)
    torch.testing.assert_close(cache["hook_right"], network.right[pairs[:, 1]], **close)
    assert torch.equal(cache["hook_pre"], cache["hook_left"] + cache["hook_right"])
    assert torch.equal(cache["hook_hidden"], ACTIVATIONS["gelu"](cache["hook_pre"]))
    torch.testing.assert_close(
        logits, cache["hook_hidden"] @ network.unembed.T + network.b_out, **close
    )
    assert torch.equal(cache["hook_embed_left"], network.embed_left[pairs[:, 0]])
    assert torch.equal(cache["hook_embed_right"], network.embed_right[pairs[:, 1]])
    assert torch.equal(cache["hook_logits"], logits)


def test_an_edit_at_a_hook_point_reaches_the_logits() -> None:
    network = by_hand()
    logits = network.run_with_hooks(
        PAIRS, fwd_hooks=[("hook_right", lambda right, hook: torch.zeros_like(right))]
    )
    assert torch.equal(logits[:, 0], torch.tensor([2.0, 2.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    "group", [None, symmetric(3), cyclic(6), Group.from_table(symmetric(3).table, name="mine")]
)
def test_a_network_is_rebuilt_from_its_config(group: Group | None) -> None:
    network = GroupMLP(6, d_embed=4, d_hidden=3, activation="abs", bias=True, group=group, seed=1)
    again = GroupMLP.from_config(network.config)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(all_pairs(6)), network(all_pairs(6)))
    assert (again.group is None) == (group is None)
    if group is not None:
        assert torch.equal(again.group.table, group.table)


def test_a_group_with_a_familiar_name_but_another_table_keeps_its_table() -> None:
    table = torch.tensor([[1, 2, 0], [2, 0, 1], [0, 1, 2]])  # Z_3 with identity 2
    network = GroupMLP(3, d_embed=2, d_hidden=2, group=Group.from_table(table, name="C3"))
    assert network.config["group"] == table.tolist()


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    first, same, other = (GroupMLP(6, d_embed=4, d_hidden=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.w_out, same.w_out)
    assert not torch.equal(first.w_out, other.w_out)
    assert torch.equal(other.random_like(5).w_out, first.w_out)


def test_building_a_network_leaves_the_callers_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    GroupMLP(6, d_embed=4, d_hidden=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_activation_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ToolkitError, match=r"no activation is called 'quadratics'. Did you mean 'quadratic'"
    ):
        GroupMLP.from_config({**by_hand().config, "activation": "quadratics"})


def test_a_group_of_another_order_is_refused() -> None:
    with pytest.raises(ToolkitError, match="C5 has 5 elements, but the network is built for 6"):
        GroupMLP(6, group=cyclic(5))


def test_a_config_with_a_missing_setting_is_refused_by_its_name() -> None:
    config = by_hand().config
    del config["d_hidden"]
    with pytest.raises(CheckpointError, match=r"missing \['d_hidden'\], unknown \['width'\]"):
        GroupMLP.from_config({**config, "width": 3})
