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
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.model import HookedModel

# Norms behind attention and MLP, as in Gemma 2 and 3, rescale what was written and would turn the
# direction back in.
_NORMS_BEHIND = ("ln1_post", "ln2_post")


def writing_hook_points(model: HookedModel) -> tuple[str, ...]:
    """Return the hook points of everything that writes to the stream, for `ablate_direction`."""
    blocks = [
        f"blocks.{i}.{part}"
        for i in range(model.cfg.n_layers)
        for part in ("hook_attn_out", "hook_mlp_out")
    ]
    start = ["hook_embed"] + ["hook_pos_embed"] * (_positions(model.model) is not None)
    return tuple(start + blocks)


def orthogonalise_weights(model: HookedModel, direction: Float[Tensor, " d_model"]) -> HookedModel:
    """Return a copy of the model whose weights write nothing along `direction`; the model itself
    stays as it is.

    Raises:
        ToolkitError: a direction of length zero or of another width.
        NotApplicable: the model is no transformer, or has a norm behind a sublayer.
    """
    _check(model, direction)
    made = _copied(model.model)
    unit = direction.double() / direction.double().norm()
    with torch.no_grad():
        _untie(made)
        for weight in _writers(made):
            along = unit.to(weight.device)
            whole = weight.double()
            weight.copy_(whole - (whole @ along)[..., None] * along)
    provenance = replace(
        model.provenance, checkpoint=f"{model.provenance.checkpoint} (one direction orthogonalised)"
    )
    return replace(model, model=made.eval(), provenance=provenance, make_twin=None)


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
    """A deep copy. What a Bridge remembers of a forward pass with gradients (its attention pattern)
    is no part of it."""
    remembered = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): None for value in remembered})


def _writers(model: Any) -> Iterator[Tensor]:
    """Views, last axis d_model, of every weight and bias that writes to the stream."""
    yield model.W_E
    positions = _positions(model)
    if positions is not None:
        yield positions
    for block in model.blocks:
        for part, names in ((block.attn, ("W_O", "b_O")), (block.mlp, ("W_out", "b_out"))):
            yield getattr(part, names[0])
            bias = _bias(part, names[1])
            if bias is not None:
                yield bias
        # A gated MLP of a Bridge with folded weights runs on these, which a copy separates from its
        # parameters.
        processed = [getattr(block.mlp, f"_processed_{name}", None) for name in ("W_out", "b_out")]
        yield from (
            tensor.mT if tensor.dim() == 2 else tensor for tensor in processed if tensor is not None
        )


def _bias(part: Any, name: str) -> Tensor | None:
    """The bias, or None where the layer has none (a Bridge raises then)."""
    try:
        bias: Tensor | None = getattr(part, name)
    except AttributeError:
        return None
    return bias


def _positions(model: Any) -> Tensor | None:
    """The table of absolute positions, or None for rotary ones."""
    module = getattr(model, "pos_embed", None)
    table = getattr(module, "W_pos", None)
    if table is None:
        table = getattr(module, "weight", None)
    return table if isinstance(table, Tensor) else None


def _untie(model: Any) -> None:
    head = getattr(model.unembed, "original_component", None)
    if head is not None and head.weight.data_ptr() == model.W_E.data_ptr():
        head.weight = nn.Parameter(head.weight.detach().clone())
