"""A GPT-2 shape with random weights, for structure to be written into by hand.

Source: this project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


def random_gpt2(d_vocab: int, *, d_model: int, n_layers: int, n_heads: int, seed: int) -> GPT2LMHeadModel:
    """Return an untrained model with 32 positions and MLPs twice as wide as the stream; the global random state stays."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=d_vocab, n_positions=32, n_embd=d_model, n_layer=n_layers, n_head=n_heads, n_inner=2 * d_model,
        attn_implementation="eager", bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()
