"""What does a model do without a head, a neuron or a direction? Zero, mean and resample ablation.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.accumulate import Mean
from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.measure import Metric, measure
from mechinterp_toolkit.hooks.steer import SetProjection
from mechinterp_toolkit.hooks.where import EVERYTHING, Where
from mechinterp_toolkit.intervention import Edit, Site
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.record import activations, record
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

A = TypeVar("A", bound="_Ablation")
K = TypeVar("K", int, str)

Component = tuple[int, int]
"""`(layer, head)` or `(layer, neuron)`."""


@dataclass(frozen=True)
class _Ablation:
    """Replace what some components of one layer wrote."""

    chosen: tuple[int, ...]
    """Components to replace, numbered from 0."""

    value: Float[Tensor, "*batch_pos ablated *features"]
    """What stands in their place: zeros or means, or a value for each token of the batch that is
    run."""

    where: Where = EVERYTHING
    """The tokens at which they are replaced."""

    point: ClassVar[str]
    """Where it belongs, behind `blocks.{layer}.`."""

    noun: ClassVar[str]
    """What one component is called."""

    axis: ClassVar[int]
    """Axis of the components, counted from the last."""

    def __call__(
        self, activation: Float[Tensor, "batch pos *rest"], hook: Site
    ) -> Float[Tensor, "batch pos *rest"]:
        """Return the activation with the chosen components replaced.

        Raises:
            HookError: one of them is not there, or the values are those of another batch.
        """
        size = activation.shape[self.axis]
        outside = [i for i in self.chosen if not 0 <= i < size]
        if outside:
            raise HookError(
                f"{hook.name!r} has {size} {self.noun}s, numbered from 0; there is no {self.noun}"
                f" {outside}."
            )
        by_token = self.value.dim() == activation.dim()
        if by_token and self.value.shape[:2] != activation.shape[:2]:
            raise HookError(
                f"the edit at {hook.name!r} has values for {tuple(self.value.shape[:2])} tokens"
                f" [batch pos], but {tuple(activation.shape[:2])} run; run the very batch it was"
                " made for, without a KV cache."
            )
        edited = activation.clone()
        components: tuple[Any, ...] = (..., list(self.chosen), *[slice(None)] * (-1 - self.axis))
        edited[components] = self.value.to(edited)
        return self.where.apply(activation, edited, hook)

    def to(self: A, device: torch.device | str) -> A:
        """Return the same edit with its values on `device`."""
        return replace(self, value=self.value.to(device))


class AblateHeads(_Ablation):
    """Replace the output of some heads of one layer; belongs at `blocks.{layer}.attn.hook_z`.

    >>> zero = AblateHeads((1,), torch.zeros(1, 1))
    >>> zero(torch.ones(1, 1, 3, 2), hook=Site("blocks.0.attn.hook_z"))[0, 0].tolist()
    [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    """

    point, noun, axis = "attn.hook_z", "head", -2


class AblateNeurons(_Ablation):
    """Replace the activation of some neurons; belongs at `blocks.{layer}.mlp.hook_post`.

    >>> mean = AblateNeurons((0, 2), torch.tensor([5.0, 6.0]))
    >>> mean(torch.ones(1, 1, 4), hook=Site("blocks.0.mlp.hook_post"))
    tensor([[[5., 1., 6., 1.]]])
    """

    point, noun, axis = "mlp.hook_post", "neuron", -1


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

    >>> {name: edit.chosen for name, edit in ablate_heads([(0, 3), (5, 1), (0, 2)]).items()}
    {'blocks.0.attn.hook_z': (2, 3), 'blocks.5.attn.hook_z': (1,)}
    """
    return _ablations(AblateHeads, heads, means, where)


def ablate_neurons(
    neurons: Sequence[Component],
    means: Mapping[int, Float[Tensor, " d_mlp"]] | None = None,
    *,
    where: Where = EVERYTHING,
) -> dict[str, Edit]:
    """Return the edits, for `applied`, that replace each `(layer, neuron)` by its mean or by zero.

    Args:
        neurons: what to ablate.
        means: layer -> mean activation of every neuron, from `neuron_means`; None ablates to zero.
        where: the tokens at which they are ablated.

    Raises:
        HookError: a layer's means are missing.

    >>> edits = ablate_neurons([(0, 2)], {0: torch.tensor([7.0, 8.0, 9.0])})
    >>> edits["blocks.0.mlp.hook_post"].value
    tensor([9.])
    """
    return _ablations(AblateNeurons, neurons, means, where)


@takes_model
def resample_heads(
    model: HookedModel,
    heads: Sequence[Component],
    tokens: Int[Tensor, "batch pos"],
    *,
    seed: int,
    where: Where = EVERYTHING,
) -> dict[str, Edit]:
    """Return the edits that give each `(layer, head)` what it wrote there on another prompt.

    Every prompt gets one donor, itself never, the same for all heads; each prompt gives once.

    Args:
        heads: what to ablate.
        tokens: the prompts that will be run, all of one length: at padding a donor has nothing to
            give.
        seed: of the pairing.
        where: the tokens at which they are ablated.

    Raises:
        ToolkitError: a single prompt, which has no donor.

    >>> tokens = torch.tensor([[1, 55, 56], [1, 57, 58]])
    >>> edits = resample_heads("toy/sentiment", [(1, 0), (1, 3)], tokens, seed=0)
    >>> edits["blocks.1.attn.hook_z"].value.shape  # batch pos ablated d_head
    torch.Size([2, 3, 2, 16])
    """
    if len(tokens) < 2:
        raise ToolkitError(
            "resampling needs at least two prompts; a single one has no other to take from."
        )
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    donor = torch.empty_like(order)
    donor[order] = order.roll(1)  # one cycle through all prompts, so that none is its own donor
    grouped = _by_layer(heads)
    names = {layer: f"blocks.{layer}.{AblateHeads.point}" for layer in grouped}
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

    >>> (edit,) = ablate_direction(torch.tensor([2.0, 0.0]), ["blocks.0.hook_mlp_out"]).values()
    >>> edit(torch.tensor([[[3.0, 4.0]]]), hook=Site("blocks.0.hook_mlp_out"))
    tensor([[[0., 4.]]])
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


@takes_model
def direction_means(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    direction: Float[Tensor, " d"],
    hook_points: Sequence[str],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """Return hook point -> mean projection on the unit direction, over all real positions.

    >>> tokens, first = torch.tensor([[1, 55, 56]]), torch.eye(64)[0]
    >>> list(direction_means("toy/sentiment", tokens, first, ["hook_embed"]))
    ['hook_embed']
    """
    unit = direction.double() / direction.double().norm()
    means = _means(model, tokens, {name: name for name in hook_points}, mask, batch_size)
    return {name: float(mean.cpu() @ unit.cpu()) for name, mean in means.items()}


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


@takes_model
def pair_redundancy(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    heads: Sequence[Component],
    metric: Metric,
    means: Mapping[int, Float[Tensor, "head d_head"]] | None = None,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    measured: str = "logits",
    seed: int = 0,
) -> Redundancy:
    """Ablate each head and each pair of heads, and compare.

    Args:
        tokens: prompts; intervals resample them.
        heads: two or more; every pair of them is run once.
        metric: one number per prompt, e.g. from `logit_difference`.
        means: as for `ablate_heads`.
        mask: True at real tokens.
        measured: unit of the metric.
        seed: of the intervals.

    Raises:
        ToolkitError: fewer than two different heads, or fewer than two prompts.

    >>> tokens = torch.tensor([[1, 55, 56, 57], [1, 60, 55, 61]])
    >>> metric = lambda logits: logits[:, -1, 51] - logits[:, -1, 53]
    >>> pair_redundancy("toy/sentiment", tokens, [(1, 0), (1, 3)], metric).interaction.labels
    {'pair': ('1.0 + 1.3',)}
    """
    chosen = tuple(dict.fromkeys(heads))
    if len(chosen) < 2:
        raise ToolkitError(f"got heads {list(chosen)}; pairs need two different ones.")
    before = measure(model, tokens, metric, mask=mask)

    def lost(group: Sequence[Component]) -> Float[Tensor, " batch"]:
        return before - measure(model, tokens, metric, ablate_heads(group, means), mask=mask)

    names = {head: f"{head[0]}.{head[1]}" for head in chosen}
    alone = {head: lost([head]) for head in chosen}
    extra = {(a, b): lost([a, b]) - alone[a] - alone[b] for a, b in combinations(chosen, 2)}
    labels = tuple(f"{names[a]} + {names[b]}" for a, b in extra)
    estimate = partial(bootstrap, unit_name="prompts", measured=measured, seed=seed)
    return Redundancy(
        single=estimate(
            torch.stack(list(alone.values()), 1),
            axes=("head",),
            labels={"head": tuple(names.values())},
        ),
        interaction=estimate(
            torch.stack(list(extra.values()), 1), axes=("pair",), labels={"pair": labels}
        ),
        heads=chosen,
        pairs=tuple(extra),
    )


@takes_model
def head_means(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int = 256,
) -> dict[int, Float[Tensor, "head d_head"]]:
    """Return layer -> mean output of every head over all real positions of `tokens`.

    >>> means = head_means("toy/sentiment", torch.tensor([[1, 55, 56]]), [0, 1])
    >>> {layer: tuple(mean.shape) for layer, mean in means.items()}
    {0: (4, 16), 1: (4, 16)}
    """
    names = {layer: f"blocks.{layer}.{AblateHeads.point}" for layer in layers}
    return _means(model, tokens, names, mask, batch_size)


@takes_model
def neuron_means(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int = 256,
) -> dict[int, Float[Tensor, " d_mlp"]]:
    """Return layer -> mean activation of every neuron over all real positions of `tokens`.

    >>> neuron_means("toy/sentiment", torch.tensor([[1, 55, 56]]), [1])[1].shape
    torch.Size([128])
    """
    names = {layer: f"blocks.{layer}.{AblateNeurons.point}" for layer in layers}
    return _means(model, tokens, names, mask, batch_size)


def _means(
    model: HookedModel,
    tokens: Tensor,
    names: Mapping[K, str],
    mask: Tensor | None,
    batch_size: int,
) -> dict[K, Tensor]:
    """Mean over all real positions at each hook point, under the keys of `names`."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    into = {name: Mean() for name in names.values()}
    record(model, tokens, into, mask=mask, batch_size=batch_size)
    return {key: into[name].value.to(model.device) for key, name in names.items()}


def _ablations(
    kind: type[_Ablation],
    components: Sequence[Component],
    means: Mapping[int, Tensor] | None,
    where: Where,
) -> dict[str, Edit]:
    grouped = _by_layer(components)
    missing = [] if means is None else [layer for layer in grouped if layer not in means]
    if missing:
        raise HookError(
            f"no means were given for layers {missing}; measure them with head_means or"
            " neuron_means."
        )
    zero = torch.zeros([1] * -kind.axis)  # one zero is spread over all that is ablated
    return {
        f"blocks.{layer}.{kind.point}": kind(
            chosen, zero if means is None else means[layer][list(chosen)], where
        )
        for layer, chosen in grouped.items()
    }


def _by_layer(components: Sequence[Component]) -> dict[int, tuple[int, ...]]:
    layers = sorted({layer for layer, _ in components})
    return {layer: tuple(sorted({i for own, i in components if own == layer})) for layer in layers}
