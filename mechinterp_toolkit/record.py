"""`record(model, tokens, {hook name: accumulator})`: activations by name, in batches.

Nothing keeps all activations unless asked to (`Keep`); other accumulators hold sums. What is
recorded is a detached copy, so that no later edit, whoever makes it, can change it.

What would fool it: padding without its `mask`, which counts like any token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.accumulate import Accumulator, Keep
from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.intervention import Edits, Site, applied, observed
from mechinterp_toolkit.model import HookedModel, takes_model

A = TypeVar("A", bound=Accumulator)


@takes_model
def record(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    into: Mapping[str, A],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    position: Int[Tensor, " batch"] | None = None,
    labels: Tensor | None = None,
    edits: Edits | None = None,
    batch_size: int = 256,
) -> Mapping[str, A]:
    """Run `tokens` through the model and feed each named activation to its accumulator.

    Args:
        model: whatever `load_model` takes.
        tokens: token ids [batch pos] of a transformer, right-padded or with `mask`; [batch 2] of a
            group network.
        into: hook name -> accumulator, called as `update(activation, z=labels, mask=mask)`.
        mask: True at real tokens; handed to the model, and to the accumulators as the rows [batch
            pos] that count. Without one an accumulator takes prompts as rows: a `Mean` then keeps
            the position axis.
        position: the one position of each prompt to record; activations then lose their position
            axis.
        labels: one label (or row of labels) per prompt, or per position where `position` is not
            given.
        edits: edits in force while recording.
        batch_size: prompts per forward pass.

    Returns:
        `into`, fed.

    Raises:
        HookError: an unknown hook name, or a hook point that never fired.

    >>> from mechinterp_toolkit.accumulate import Mean
    >>> pairs = torch.tensor([[0, 1], [2, 3], [4, 5]])
    >>> record("toy/s5", pairs, {"hook_hidden": Mean()})["hook_hidden"].count
    3
    """
    for rows, caught in _passes(model, tokens, tuple(into), mask, edits or {}, batch_size):
        for name, activation in caught.items():
            row_mask = None if mask is None else mask[rows].to(activation.device)
            if position is not None:
                activation, row_mask = _at(activation, position[rows]), None
            into[name].update(activation, z=None if labels is None else labels[rows], mask=row_mask)
    return into


@takes_model
def activations(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    names: tuple[str, ...],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    position: Int[Tensor, " batch"] | None = None,
    edits: Edits | None = None,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """Return the named activations of all prompts, kept whole on the CPU.

    Arguments and errors are those of `record`. Padding keeps its place: `mask` is for the model's
    attention only.

    >>> read = activations("toy/sentiment", torch.tensor([[1, 55, 56]]), ("blocks.0.attn.hook_z",))
    >>> read["blocks.0.attn.hook_z"].shape  # batch pos head d_head
    torch.Size([1, 3, 4, 16])
    """
    kept = {name: Keep() for name in names}
    for rows, caught in _passes(model, tokens, names, mask, edits or {}, batch_size):
        for name, activation in caught.items():
            kept[name].update(activation if position is None else _at(activation, position[rows]))
    return {name: keep.value for name, keep in kept.items()}


def _at(
    activation: Float[Tensor, "batch pos *rest"], position: Int[Tensor, " batch"]
) -> Float[Tensor, "batch *rest"]:
    where = position.to(activation.device)
    return activation[torch.arange(len(activation), device=activation.device), where]


def _passes(
    model: HookedModel,
    tokens: Tensor,
    names: tuple[str, ...],
    mask: Tensor | None,
    edits: Edits,
    batch_size: int,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield which prompts ran, and their activations, one forward pass at a time."""
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        with torch.no_grad():
            caught = _catch(model, tokens[rows], names, None if mask is None else mask[rows], edits)
        yield rows, caught


def _catch(
    model: HookedModel, tokens: Tensor, names: tuple[str, ...], mask: Tensor | None, edits: Edits
) -> dict[str, Tensor]:
    """One forward pass; the activations after `edits`, copied."""
    caught: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Site) -> None:
        if hook.name not in caught:
            caught[hook.name] = activation.detach().clone()
        # A LayerNorm may run for queries, keys and values alike.
        elif not torch.equal(activation, caught[hook.name]):
            raise HookError(
                f"{hook.name!r} fired twice in one forward pass with different activations; record"
                " a hook point that fires once."
            )

    with ExitStack() as stack:
        if edits:
            stack.enter_context(applied(model, edits, mask=mask))
        stack.enter_context(observed(model, dict.fromkeys(names, keep)))
        model.logits(tokens, mask)
    return caught
