"""Zero and mean ablation of heads and neurons.

An ablation puts a fixed value where a component wrote: zero, or the component's mean over a set of prompts. Other heads,
neurons, layers and everything before stay bit-equal. Zero is rarely a value the component would ever take; the mean keeps
what it says on average and removes what it says about this prompt.

What would fool it: a mean taken over prompts of another kind than those that are run moves the model for that reason
alone; heads that back each other up hide each other's effect.

Source: mean ablation of heads as in Wang et al. 2023, arXiv:2211.00593.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.accumulate import Mean
from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.intervention import Edit, Site
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.record import record

Component = tuple[int, int]
"""`(layer, head)` or `(layer, neuron)`."""


@dataclass(frozen=True)
class AblateHeads:
    """Replace the output of some heads of one layer; belongs at `blocks.{layer}.attn.hook_z`."""

    heads: tuple[int, ...]
    """Heads to replace."""

    value: Float[Tensor, "ablated d_head"]
    """What stands in their place, at every position: zeros or means."""

    def __call__(
        self, activation: Float[Tensor, "batch pos head d_head"], hook: Site
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Return the activation with these heads replaced; raises `HookError` for a head that is not there."""
        _check_indices(self.heads, activation.shape[2], "head", hook)
        edited = activation.clone()
        edited[:, :, list(self.heads)] = self.value.to(activation)
        return edited

    def to(self, device: torch.device | str) -> AblateHeads:
        """Return the same edit with its values on `device`."""
        return replace(self, value=self.value.to(device))


@dataclass(frozen=True)
class AblateNeurons:
    """Replace the activation of some neurons of one layer; belongs at `blocks.{layer}.mlp.hook_post`."""

    neurons: tuple[int, ...]
    """Neurons to replace."""

    value: Float[Tensor, " ablated"]
    """What stands in their place, at every position: zeros or means."""

    def __call__(self, activation: Float[Tensor, "*batch d_mlp"], hook: Site) -> Float[Tensor, "*batch d_mlp"]:
        """Return the activation with these neurons replaced; raises `HookError` for a neuron that is not there."""
        _check_indices(self.neurons, activation.shape[-1], "neuron", hook)
        edited = activation.clone()
        edited[..., list(self.neurons)] = self.value.to(activation)
        return edited

    def to(self, device: torch.device | str) -> AblateNeurons:
        """Return the same edit with its values on `device`."""
        return replace(self, value=self.value.to(device))


def ablate_heads(
    heads: Sequence[Component], means: Mapping[int, Float[Tensor, "head d_head"]] | None = None
) -> dict[str, Edit]:
    """Return the edits, for `applied`, that replace each `(layer, head)` by its mean, or by zero.

    Args:
        heads: what to ablate.
        means: layer -> mean output of every head, from `head_means`; None ablates to zero.

    Raises:
        HookError: a layer's means are missing.
    """
    edits: dict[str, Edit] = {}
    for layer, chosen in _by_layer(heads, means).items():
        value = (
            torch.zeros(len(chosen), 1) if means is None else means[layer][list(chosen)]
        )  # one zero is spread over the head
        edits[f"blocks.{layer}.attn.hook_z"] = AblateHeads(chosen, value)
    return edits


def ablate_neurons(
    neurons: Sequence[Component], means: Mapping[int, Float[Tensor, " d_mlp"]] | None = None
) -> dict[str, Edit]:
    """Return the edits, for `applied`, that replace each `(layer, neuron)` by its mean, or by zero.

    Args:
        neurons: what to ablate.
        means: layer -> mean activation of every neuron, from `neuron_means`; None ablates to zero.

    Raises:
        HookError: a layer's means are missing.
    """
    edits: dict[str, Edit] = {}
    for layer, chosen in _by_layer(neurons, means).items():
        value = torch.zeros(len(chosen)) if means is None else means[layer][list(chosen)]
        edits[f"blocks.{layer}.mlp.hook_post"] = AblateNeurons(chosen, value)
    return edits


def head_means(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int = 256,
) -> dict[int, Float[Tensor, "head d_head"]]:
    """Return layer -> mean output of every head over all real positions of `tokens`."""
    return _means(model, tokens, layers, "attn.hook_z", mask, batch_size)


def neuron_means(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int = 256,
) -> dict[int, Float[Tensor, " d_mlp"]]:
    """Return layer -> mean activation of every neuron over all real positions of `tokens`."""
    return _means(model, tokens, layers, "mlp.hook_post", mask, batch_size)


def _means(
    model: HookedModel, tokens: Tensor, layers: Sequence[int], point: str, mask: Tensor | None, batch_size: int
) -> dict[int, Tensor]:
    names = {layer: f"blocks.{layer}.{point}" for layer in layers}
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    fed = record(model, tokens, {name: Mean() for name in names.values()}, mask=mask, batch_size=batch_size)
    return {layer: fed[name].value.to(model.device) for layer, name in names.items()}


def _by_layer(components: Sequence[Component], means: Mapping[int, Tensor] | None) -> dict[int, tuple[int, ...]]:
    grouped: defaultdict[int, list[int]] = defaultdict(list)
    for layer, index in components:
        grouped[layer].append(index)
    missing = sorted(set(grouped) - set(means)) if means is not None else []
    if missing:
        raise HookError(f"no means were given for layers {missing}; measure them with head_means or neuron_means.")
    return {layer: tuple(sorted(set(chosen))) for layer, chosen in sorted(grouped.items())}


def _check_indices(indices: tuple[int, ...], size: int, what: str, hook: Site) -> None:
    outside = [i for i in indices if not 0 <= i < size]
    if outside:
        raise HookError(f"{hook.name!r} has {size} {what}s, numbered from 0; there is no {what} {outside}.")
