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
from types import CellType, FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.heads.weights import (
    has_positions,
    stream_writers,
    untie,
    why_not_direct,
)
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.record import activations


@takes_model
def writing_hook_points(model: HookedModel) -> tuple[str, ...]:
    """Return the hook points of everything that writes to the stream, for `ablate_direction`.

    A norm behind a sublayer is included in what it writes.

    >>> writing_hook_points("toy/sentiment")[:3]
    ('hook_embed', 'hook_pos_embed', 'blocks.0.hook_attn_out')
    """
    parts = ("hook_attn_out", "hook_mixer_out", "hook_mlp_out")
    blocks = [f"blocks.{i}.{part}" for i in range(model.cfg.n_layers) for part in parts]
    # A Bridge lists hook_pos_embed where positions are rotary, too, and it never fires.
    start = ["hook_embed"] + ["hook_pos_embed"] * has_positions(model)
    return tuple(name for name in (*start, *blocks) if name in model.hook_points)


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
    made = replace(model, model=_copied(model.model).eval(), make_twin=None)
    unit = direction.double() / direction.double().norm()
    with torch.no_grad():
        untie(made)
        for weight in stream_writers(made):
            along, whole = unit.to(weight.device), weight.double()
            weight.copy_(whole - (whole @ along)[..., None] * along)  # W - (W r) r'
    _check_gone(made, unit.cpu())
    checkpoint = f"{model.provenance.checkpoint} (one direction orthogonalised)"
    return replace(made, provenance=replace(model.provenance, checkpoint=checkpoint))


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
    if reason := why_not_direct(model):
        raise NotApplicable(
            f"{model.provenance.checkpoint} cannot lose a direction by its weights: {reason};"
            " ablate it by hooks instead."
        )


def _check_gone(model: HookedModel, unit: Tensor) -> None:
    """Refuse a model whose stream still has the direction once no weight writes it."""
    tokens = torch.arange(min(8, model.cfg.d_vocab))[None]
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    for name, stream in activations(model, tokens, ("blocks.0.hook_resid_pre", *names)).items():
        left = float((stream.double() @ unit).abs().max() / stream.double().norm(dim=-1).max())
        # 100 rounding units: each write adds one or two.
        if left > 100 * torch.finfo(stream.dtype).eps:
            raise NotApplicable(
                f"with the direction out of all weights known to write to the stream, {left:.2g} of"
                f" its length still lie along it at {name} of {model.provenance.checkpoint}: a norm"
                " (as behind BLOOM's embedding) or a bias stands behind them; ablate by hooks."
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
    memo: dict[int, Any] = {id(value): None for value in remembered}
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, FunctionType):
            module.forward = _of_the_copy(forward, memo)
    return made


def _of_the_copy(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The same function on what was copied: deepcopy leaves alone what a function encloses.

    TransformerLens gives Falcon's linear maps such a forward, which would run on the old weights.
    """
    enclosed = [cell.cell_contents for cell in function.__closure__ or ()]
    cells = tuple(CellType(memo.get(id(value), value)) for value in enclosed)
    return FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
