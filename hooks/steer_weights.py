"""The same ablation in the weights: a model that can't write along a direction.

Every matrix and bias that writes to the residual stream loses its component along the direction
(embeddings, attention output, MLP output), which equals ablating all writes by hooks at every
forward pass.

What would fool it: weights that are folded or centred afterwards; a direction found in processed
weights and used on raw ones. A tied unembedding is untied first: it reads the stream, and reading
is left alone.

Source: Arditi et al. 2024, arXiv:2406.11717, section on weight orthogonalisation.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.model import HookedModel, takes_model

# Norms behind attention and MLP, as in Gemma 2 and 3, rescale what was written and would turn the
# direction back in.
_NORMS_BEHIND = ("ln1_post", "ln2_post")


@takes_model
def writing_hook_points(model: HookedModel) -> tuple[str, ...]:
    """Return the hook points of everything that writes to the stream, for `ablate_direction`.

    >>> writing_hook_points("toy/sentiment")[:3]
    ('hook_embed', 'hook_pos_embed', 'blocks.0.hook_attn_out')
    """
    blocks = [
        f"blocks.{i}.{part}"
        for i in range(model.cfg.n_layers)
        for part in ("hook_attn_out", "hook_mlp_out")
    ]
    start = ["hook_embed"] + ["hook_pos_embed"] * (_positions(model.model) is not None)
    return tuple(start + blocks)


@takes_model
def orthogonalise_weights(model: HookedModel, direction: Float[Tensor, " d_model"]) -> HookedModel:
    """Return a copy of the model whose weights write nothing along `direction`.

    The model itself stays as it is.

    Raises:
        ToolkitError: a direction of length zero or of another width.
        NotApplicable: the model is no transformer, or has a norm behind a sublayer.

    >>> blind = orthogonalise_weights("toy/sentiment", torch.eye(64)[5])
    >>> bool((blind.model.W_E[:, 5] == 0).all())
    True
    """
    _check(model, direction)
    copied = _copied(model.model)
    unit = direction.double() / direction.double().norm()
    with torch.no_grad():
        _untie(copied)
        for weight in _writers(copied):
            along, whole = unit.to(weight.device), weight.double()
            weight.copy_(whole - (whole @ along)[..., None] * along)  # W - (W r) r'
    checkpoint = f"{model.provenance.checkpoint} (one direction orthogonalised)"
    provenance = replace(model.provenance, checkpoint=checkpoint)
    return replace(model, model=copied.eval(), provenance=provenance, make_twin=None)


def _check(model: HookedModel, direction: Tensor) -> None:
    if not model.is_transformer:
        raise NotApplicable(
            f"{model.provenance.checkpoint} has no residual stream to orthogonalise."
        )
    if len(direction) != model.cfg.d_model or not direction.norm() > 0:
        raise ToolkitError(
            f"the direction has {len(direction)} entries and norm {direction.norm():.3g}; expected"
            f" {model.cfg.d_model} entries that are not all zero."
        )
    behind = [name for name in _NORMS_BEHIND if hasattr(model.model.blocks[0], name)]
    if behind:
        raise NotApplicable(
            f"{', '.join(behind)} rescale what is written; ablate with hooks behind them instead."
        )


def _copied(model: Any) -> Any:
    """A deep copy, without what a Bridge remembers of a forward pass (its attention pattern).

    A tensor that has a history of gradients cannot be copied.
    """
    remembered = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): None for value in remembered})


def _writers(model: Any) -> list[Tensor]:
    """Views, last axis d_model, of every weight and bias that writes to the stream."""
    writers = [model.W_E, _positions(model)]
    for block in model.blocks:
        writers += [block.attn.W_O, block.mlp.W_out]
        # A layer without a bias has None, or, on a Bridge, no such name.
        writers += [getattr(block.attn, "b_O", None), getattr(block.mlp, "b_out", None)]
        # A gated MLP of a Bridge with folded weights runs on these, which a copy separates from its
        # parameters.
        weight = getattr(block.mlp, "_processed_W_out", None)
        writers += [None if weight is None else weight.mT]
        writers += [getattr(block.mlp, "_processed_b_out", None)]
    return [tensor for tensor in writers if tensor is not None]


def _positions(model: Any) -> Tensor | None:
    """The table of absolute positions, or None for rotary ones."""
    module = getattr(model, "pos_embed", None)
    tables = (getattr(module, name, None) for name in ("W_pos", "weight"))
    return next((table for table in tables if isinstance(table, Tensor)), None)


def _untie(model: Any) -> None:
    head = getattr(model.unembed, "original_component", None)
    if head is not None and head.weight.data_ptr() == model.W_E.data_ptr():
        head.weight = nn.Parameter(head.weight.detach().clone())
