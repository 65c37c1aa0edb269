"""What are the weights of attention heads, each by its (layer, head)?

TransformerLens stacks the weights of all layers anew each time it is asked, so callers keep what
they get. Tensors come detached, in the dtype and on the device of the model.

What would fool it: a model whose heads share their keys and values with others has fewer W_V than
heads; these functions are for as many of one as of the other.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (the names).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.model import HookedModel


def has_heads(model: HookedModel) -> bool:
    """Return whether the weights of this model's attention heads can be read one by one.

    >>> from mechinterp_toolkit.model import load_model
    >>> has_heads(load_model("toy/ordinal")), has_heads(load_model("toy/s5"))
    (True, False)
    """
    return model.is_transformer and hasattr(model.model, "W_V")


def value_weights(model: HookedModel) -> Float[Tensor, "layer head d_model d_head"]:
    """Return W_V: what a head takes from the position it attends to."""
    return model.model.W_V.detach()


def output_weights(model: HookedModel) -> Float[Tensor, "layer head d_head d_model"]:
    """Return W_O: how a head writes what it took into the residual stream.

    >>> from mechinterp_toolkit.model import load_model
    >>> model = load_model("toy/ordinal")
    >>> (value_weights(model)[1, 1] @ output_weights(model)[1, 1]).shape  # the OV circuit of 1.1
    torch.Size([96, 96])
    """
    return model.model.W_O.detach()


def value_biases(model: HookedModel) -> Float[Tensor, "layer head d_head"]:
    """Return b_V; zeros where the model has none."""
    if model.model.blocks[0].attn.b_V is None:
        return torch.zeros_like(value_weights(model)[:, :, 0])
    return model.model.b_V.detach()


def output_biases(model: HookedModel) -> Float[Tensor, "layer d_model"]:
    """Return b_O, which the heads of a layer share; zeros where the model has none."""
    if model.model.blocks[0].attn.b_O is None:
        return torch.zeros_like(output_weights(model)[:, 0, 0])
    return model.model.b_O.detach()
