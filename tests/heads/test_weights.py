"""Weights and biases of heads are those the model runs with, whatever wraps it."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.heads.weights import (
    has_heads,
    output_biases,
    output_weights,
    value_biases,
    value_weights,
)
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations


@pytest.mark.parametrize("layer", [0, 1])
def test_values_and_writes_are_made_with_these_weights(wrapped, tokens, layer):
    block = f"blocks.{layer}"
    names = ("hook_resid_pre", "attn.hook_v", "attn.hook_z", "hook_attn_out")
    read = activations(wrapped, tokens, tuple(f"{block}.{name}" for name in names))
    stream, value, mixed, written = (read[f"{block}.{name}"] for name in names)
    with torch.no_grad():
        normal = wrapped.layer_norm(layer, stream)
    made = torch.einsum("bpd,hdk->bphk", normal, value_weights(wrapped)[layer])
    # Tolerances are for float32 sums in another order.
    torch.testing.assert_close(made + value_biases(wrapped)[layer], value, rtol=0, atol=1e-5)
    made = torch.einsum("bphk,hkd->bpd", mixed, output_weights(wrapped)[layer])
    torch.testing.assert_close(made + output_biases(wrapped)[layer], written, rtol=0, atol=1e-5)


def test_a_model_without_biases_has_zeros(hf_folders):
    model = load_model(hf_folders["llama"])
    assert not value_biases(model).any()
    assert value_biases(model).shape == (2, 4, 8)
    assert not output_biases(model).any()
    assert output_biases(model).shape == (2, 32)


def test_networks_that_do_not_stack_their_heads_have_none_to_read(wrapped):
    assert has_heads(wrapped)
    assert not has_heads(load_model("toy/s5"))
    assert not has_heads(load_model("toy/z113-transformer"))
