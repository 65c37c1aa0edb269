"""Zero, mean and resample ablation of heads and neurons, ablation of a direction, and heads that
back each other up.

An ablation puts another value where a component wrote: zero, the component's mean over a set of
prompts, or what it wrote on another prompt. Other heads, neurons, tokens, layers and everything
before stay bit-equal. Zero is rarely a value the component would ever take; the mean keeps what it
says on average and removes what it says about this prompt; resampling also keeps how much it
varies.

What would fool it: a mean taken over prompts of another kind than those that are run moves the
model for that reason alone; heads that back each other up hide each other's effect, which
`pair_redundancy` measures.

Source: mean ablation of heads as in Wang et al. 2023, arXiv:2211.00593; resampling as in Chan et
al. 2022, causal scrubbing; directions as in Tigges et al. 2023, arXiv:2310.15154; backup heads as
in McGrath et al. 2023, arXiv:2307.15771.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.accumulate import Mean
from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.measure import Metric, measure
from mechinterp_toolkit.hooks.steer import SetProjection
from mechinterp_toolkit.hooks.where import EVERYTHING, Where
from mechinterp_toolkit.intervention import Edit, Site
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.record import activations, record
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

Component = tuple[int, int]
"""`(layer, head)` or `(layer, neuron)`."""


@dataclass(frozen=True)
class AblateHeads:
    """Replace the output of some heads of one layer; belongs at `blocks.{layer}.attn.hook_z`."""

    heads: tuple[int, ...]
    """Heads to replace."""

    value: Float[Tensor, "ablated d_head"] | Float[Tensor, "batch pos ablated d_head"]
    """What stands in their place: zeros or means, or a value for each token of the batch that is
    run."""

    where: Where = EVERYTHING
    """The tokens at which they are replaced."""

    def __call__(
        self, activation: Float[Tensor, "batch pos head d_head"], hook: Site
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Return the activation with these heads replaced; raises `HookError` for a head that is
        not there."""
        _check_indices(self.heads, activation.shape[2], "head", hook)
        if self.value.dim() == 4 and self.value.shape[:2] != activation.shape[:2]:
            raise HookError(
                f"the edit at {hook.name!r} has values for {tuple(self.value.shape[:2])} tokens"
                f" [batch pos], but {tuple(activation.shape[:2])} run; run the very batch it was"
                " made for, without a KV cache."
            )
        edited = activation.clone()
        edited[:, :, list(self.heads)] = self.value.to(activation)
        return self.where.apply(activation, edited, hook)

    def to(self, device: torch.device | str) -> AblateHeads:
        """Return the same edit with its values on `device`."""
        return replace(self, value=self.value.to(device))


@dataclass(frozen=True)
class AblateNeurons:
    """Replace the activation of some neurons of one layer; belongs at
    `blocks.{layer}.mlp.hook_post`."""

    neurons: tuple[int, ...]
    """Neurons to replace."""

    value: Float[Tensor, " ablated"]
    """What stands in their place: zeros or means."""

    where: Where = EVERYTHING
    """The tokens at which they are replaced."""

    def __call__(
        self, activation: Float[Tensor, "*batch d_mlp"], hook: Site
    ) -> Float[Tensor, "*batch d_mlp"]:
        """Return the activation with these neurons replaced; raises `HookError` for a neuron that
        is not there."""
        _check_indices(self.neurons, activation.shape[-1], "neuron", hook)
        edited = activation.clone()
        edited[..., list(self.neurons)] = self.value.to(activation)
        return self.where.apply(activation, edited, hook)

    def to(self, device: torch.device | str) -> AblateNeurons:
        """Return the same edit with its values on `device`."""
        return replace(self, value=self.value.to(device))


def ablate_heads(
    heads: Sequence[Component],
    means: Mapping[int, Float[Tensor, "head d_head"]] | None = None,
    *,
    where: Where = EVERYTHING,
) -> dict[str, Edit]:
    """Return the edits, for `applied`, that replace each `(layer, head)` by its mean, or by zero.

    Args:
        heads: what to ablate.
        means: layer -> mean output of every head, from `head_means`; None ablates to zero.
        where: the tokens at which they are ablated.

    Raises:
        HookError: a layer's means are missing.
    """
    edits: dict[str, Edit] = {}
    for layer, chosen in _by_layer(heads, means).items():
        value = (
            torch.zeros(len(chosen), 1) if means is None else means[layer][list(chosen)]
        )  # one zero is spread over the head
        edits[f"blocks.{layer}.attn.hook_z"] = AblateHeads(chosen, value, where)
    return edits


def ablate_neurons(
    neurons: Sequence[Component],
    means: Mapping[int, Float[Tensor, " d_mlp"]] | None = None,
    *,
    where: Where = EVERYTHING,
) -> dict[str, Edit]:
    """Return the edits, for `applied`, that replace each `(layer, neuron)` by its mean, or by zero.

    Args:
        neurons: what to ablate.
        means: layer -> mean activation of every neuron, from `neuron_means`; None ablates to zero.
        where: the tokens at which they are ablated.

    Raises:
        HookError: a layer's means are missing.
    """
    edits: dict[str, Edit] = {}
    for layer, chosen in _by_layer(neurons, means).items():
        value = torch.zeros(len(chosen)) if means is None else means[layer][list(chosen)]
        edits[f"blocks.{layer}.mlp.hook_post"] = AblateNeurons(chosen, value, where)
    return edits


def resample_heads(
    model: HookedModel,
    heads: Sequence[Component],
    tokens: Int[Tensor, "batch pos"],
    *,
    seed: int,
    where: Where = EVERYTHING,
) -> dict[str, Edit]:
    """Return the edits that give each `(layer, head)` what it wrote at the same place of another
    prompt.

    Every prompt gets one donor, itself never, the same for all heads; each prompt gives once.

    Args:
        heads: what to ablate.
        tokens: the prompts that will be run, all of one length: at padding a donor has nothing to
            give.
        seed: of the pairing.
        where: the tokens at which they are ablated.

    Raises:
        ToolkitError: a single prompt, which has no donor.
    """
    if len(tokens) < 2:
        raise ToolkitError(
            "resampling needs at least two prompts; a single one has no other to take from."
        )
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    donor = torch.empty_like(order)
    donor[order] = order.roll(1)  # one cycle through all prompts, so that none is its own donor
    grouped = _by_layer(heads, None)
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer in grouped}
    recorded = activations(model, tokens, tuple(names.values()))
    return {
        name: AblateHeads(grouped[layer], recorded[name][donor][:, :, list(grouped[layer])], where)
        for layer, name in names.items()
    }


def ablate_direction(
    direction: Float[Tensor, " d"],
    hook_points: Sequence[str],
    means: Mapping[str, float] | None = None,
    *,
    where: Where = EVERYTHING,
) -> dict[str, Edit]:
    """Return the edits that remove a direction, or set it to its mean, at some hook points.

    Args:
        direction: its length does not matter.
        hook_points: all that write to the stream, to remove it from the stream for good, or some.
        means: hook point -> mean projection on the unit direction, from `direction_means`; None
            ablates to zero.
        where: the tokens at which it is ablated.

    Raises:
        HookError: a hook point's mean is missing.
        ToolkitError: a direction of length zero.
    """
    if not direction.norm() > 0:
        raise ToolkitError(
            "the direction is zero, or not finite, and points nowhere; give one with a length."
        )
    missing = [] if means is None else [name for name in hook_points if name not in means]
    if missing:
        raise HookError(
            f"no mean projection was given for {missing}; measure them with direction_means."
        )
    return {
        name: SetProjection(direction, means[name] if means else 0.0, where) for name in hook_points
    }


def direction_means(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    direction: Float[Tensor, " d"],
    hook_points: Sequence[str],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """Return hook point -> mean projection on the unit direction over all real positions of
    `tokens`."""
    unit = direction.double() / direction.double().norm()
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    fed = record(
        model, tokens, {name: Mean() for name in hook_points}, mask=mask, batch_size=batch_size
    )
    return {name: float(fed[name].value.cpu() @ unit.cpu()) for name in hook_points}


@dataclass(frozen=True)
class Redundancy:
    """What ablating heads alone and in pairs takes from a metric."""

    single: Estimate
    """Metric before minus after, by head, in the unit of the metric: positive where the head helps.
    """

    interaction: Estimate
    """By pair: what both take together minus what each takes alone. Positive: each hides the
    other's absence."""

    heads: tuple[Component, ...]
    """The heads, in the order of `single`."""

    pairs: tuple[tuple[Component, Component], ...]
    """The pairs, in the order of `interaction`."""


def pair_redundancy(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    heads: Sequence[Component],
    metric: Metric,
    means: Mapping[int, Float[Tensor, "head d_head"]] | None = None,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    where: Where = EVERYTHING,
    unit: str = "logits",
    seed: int = 0,
) -> Redundancy:
    """Ablate each head and each pair of heads, and compare; intervals resample prompts.

    Args:
        heads: two or more; every pair of them is run once.
        metric: one number per prompt, e.g. from `logit_difference`.
        means: as for `ablate_heads`.
        unit: of the metric.

    Raises:
        ToolkitError: fewer than two different heads, or fewer than two prompts.
    """
    chosen = tuple(dict.fromkeys(heads))
    if len(chosen) < 2:
        raise ToolkitError(f"got heads {list(chosen)}; pairs need two different ones.")
    before = measure(model, tokens, metric, mask=mask)

    def lost(group: Sequence[Component]) -> Float[Tensor, " batch"]:
        return before - measure(
            model, tokens, metric, ablate_heads(group, means, where=where), mask=mask
        )

    alone = {head: lost([head]) for head in chosen}
    pairs = tuple(combinations(chosen, 2))
    extra = torch.stack([lost(pair) - alone[pair[0]] - alone[pair[1]] for pair in pairs], 1)
    names = {head: f"{head[0]}.{head[1]}" for head in chosen}
    common: dict[str, Any] = {"unit_name": "prompts", "measured": unit, "seed": seed}
    return Redundancy(
        single=bootstrap(
            torch.stack(list(alone.values()), 1),
            axes=("head",),
            labels={"head": tuple(names.values())},
            **common,
        ),
        interaction=bootstrap(
            extra,
            axes=("pair",),
            labels={"pair": tuple(f"{names[a]} + {names[b]}" for a, b in pairs)},
            **common,
        ),
        heads=chosen,
        pairs=pairs,
    )


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
    model: HookedModel,
    tokens: Tensor,
    layers: Sequence[int],
    point: str,
    mask: Tensor | None,
    batch_size: int,
) -> dict[int, Tensor]:
    names = {layer: f"blocks.{layer}.{point}" for layer in layers}
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    fed = record(
        model, tokens, {name: Mean() for name in names.values()}, mask=mask, batch_size=batch_size
    )
    return {layer: fed[name].value.to(model.device) for layer, name in names.items()}


def _by_layer(
    components: Sequence[Component], means: Mapping[int, Tensor] | None
) -> dict[int, tuple[int, ...]]:
    grouped: defaultdict[int, list[int]] = defaultdict(list)
    for layer, index in components:
        grouped[layer].append(index)
    missing = sorted(set(grouped) - set(means)) if means is not None else []
    if missing:
        raise HookError(
            f"no means were given for layers {missing}; measure them with head_means or"
            " neuron_means."
        )
    return {layer: tuple(sorted(set(chosen))) for layer, chosen in sorted(grouped.items())}


def _check_indices(indices: tuple[int, ...], size: int, what: str, hook: Site) -> None:
    outside = [i for i in indices if not 0 <= i < size]
    if outside:
        raise HookError(
            f"{hook.name!r} has {size} {what}s, numbered from 0; there is no {what} {outside}."
        )
