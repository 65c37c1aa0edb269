"""A GPT-2 shape with random weights, and a head of it written by hand.

Source: this project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


def random_gpt2(
    d_vocab: int, *, d_model: int, n_layers: int, n_heads: int, seed: int, d_mlp: int | None = None
) -> GPT2LMHeadModel:
    """Return an untrained model with 32 positions and MLPs twice as wide as the stream; the global
    random state stays."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=d_vocab,
        n_positions=32,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        n_inner=d_mlp or 2 * d_model,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


@torch.no_grad()
def write_head(
    model: GPT2LMHeadModel,
    layer: int,
    head: int,
    *,
    query: Float[Tensor, "d_model k"],
    query_bias: Float[Tensor, " k"],
    key: Float[Tensor, "d_model k"],
    value: Float[Tensor, "d_model m"],
    output: Float[Tensor, "m d_model"],
) -> None:
    """Make one head of a GPT-2 shape this: k dimensions of query and key, m of value; the rest of
    it is zero.

    Weights are as the model applies them, to what the LayerNorm in front of it returns.
    """
    config, attention = model.config, model.transformer.h[layer].attn
    d_head = config.n_embd // config.n_head
    parts = (
        (query, query_bias),
        (key, torch.zeros(key.shape[1])),
        (value, torch.zeros(value.shape[1])),
    )
    for i, (weight, bias) in enumerate(parts):
        start = i * config.n_embd + head * d_head
        attention.c_attn.weight[:, start : start + d_head] = 0
        attention.c_attn.bias[start : start + d_head] = 0
        attention.c_attn.weight[:, start : start + weight.shape[1]] = weight.to(
            attention.c_attn.weight
        )
        attention.c_attn.bias[start : start + len(bias)] = bias.to(attention.c_attn.bias)
    attention.c_proj.weight[head * d_head : (head + 1) * d_head] = 0
    attention.c_proj.weight[head * d_head : head * d_head + len(output)] = output.to(
        attention.c_proj.weight
    )
