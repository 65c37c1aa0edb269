"""Norms are measured as they are, and weights of heads are those the model runs with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mechinterp_toolkit.heads import weights
from mechinterp_toolkit.heads.weights import (
    final_norm,
    head_weights,
    norm_before,
    norm_behind,
    unembedding,
    why_no_heads,
)
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations


@pytest.mark.parametrize("layer", [0, 1])
def test_queries_keys_values_and_writes_are_made_with_these_weights(wrapped, tokens, layer):
    block = f"blocks.{layer}"
    points = ("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v")
    ends = ("attn.hook_z", "hook_attn_out")
    read = activations(wrapped, tokens, tuple(f"{block}.{name}" for name in points + ends))
    stream, query, key, value, mixed, written = read.values()
    own, normal = head_weights(wrapped, layer), norm_before(wrapped, layer)(stream)
    for weight, bias, expected in (
        (own.query, own.query_bias, query),
        (own.key, own.key_bias, key),
        (own.value, own.value_bias, value),
    ):
        made = torch.einsum("bpd,hdk->bphk", normal, weight) + bias
        # float32 sums in another order
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    made = torch.einsum("bphk,hkd->bpd", mixed, own.output) + own.output_bias
    torch.testing.assert_close(made, written, rtol=0, atol=1e-5)


def test_a_model_without_biases_has_zeros(hf_folders):
    own = head_weights(load_model(hf_folders["llama"]), 1)
    for bias in (own.query_bias, own.key_bias, own.value_bias):
        assert bias.shape == (4, 8)
        assert not bias.any()
    assert own.output_bias.shape == (32,)
    assert not own.output_bias.any()


def test_networks_without_attention_have_no_heads_to_read(wrapped):
    assert why_no_heads(wrapped) is None
    assert why_no_heads(load_model("toy/s5")) == "it has no attention heads"


class RMSNorm1p(nn.RMSNorm):
    """Gemma's: what is learnt is the gain less one."""

    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:], eps=self.eps) * (1 + self.weight)


@pytest.mark.parametrize("width", [32, 7])
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, RMSNorm1p, nn.Identity])
def test_a_norm_is_measured_as_it_is(kind, eps, width):
    generator = torch.Generator().manual_seed(0)
    module = kind(width, eps=eps)
    for parameter in module.parameters():
        parameter.data = torch.randn(width, generator=generator)
    norm = weights._measured(torch.zeros(1, width), module)
    assert norm.centred == (kind is nn.LayerNorm)
    assert norm.is_identity == (kind is nn.Identity)
    for size in (100.0, 1.0, 1e-3):  # the last is where eps counts
        x = size * (torch.randn(5, width, generator=generator) + 1)
        torch.testing.assert_close(norm(x), module(x), rtol=1e-5, atol=1e-5)
        parts = torch.randn(3, width, generator=generator)
        whole = norm.linear(parts).sum(0) / norm.scale(parts.sum(0)) + norm.bias
        torch.testing.assert_close(whole, module(parts.sum(0)), rtol=1e-5, atol=1e-5)


def test_where_no_norm_stands_is_the_identity(wrapped):
    assert norm_behind(wrapped, 0, "attn").is_identity
    assert norm_behind(wrapped, 1, "mlp").is_identity
    assert not norm_before(wrapped, 1).is_identity


@torch.no_grad()
def test_norm_and_unembedding_make_the_logits(wrapped, tokens):
    stream = activations(wrapped, tokens, ("blocks.1.hook_resid_post",))
    made = unembedding(wrapped)(final_norm(wrapped)(stream["blocks.1.hook_resid_post"]))
    torch.testing.assert_close(made, wrapped.logits(tokens), rtol=0, atol=1e-5)
