"""What does a network that multiplies pairs of group elements look like, whatever its architecture?

`GroupNetwork` gives every analysis the same view: each neuron as three functions on the group (its
left share as a function of a, its right share of b, its unembedding of c), the neurons' activations
on all pairs, and the logits. For a network with one hidden layer the shares are its weights. For a
one-layer transformer over `[a, b, =]` they are the neuron's pre-activation at the last position
averaged over b and over a, and the unembedding is W_out W_U; part of its logits bypasses the
neurons.

What would fool it: an output vocabulary that is not the group's elements in the order of its
inputs, and LayerNorm before the unembedding, which makes a neuron's unembedding depend on the
input; both are refused.

Source: folded weights as in Chughtai et al. 2023, arXiv:2302.03025; averages as in Nanda et al.
2023, arXiv:2301.05217.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.groups import Group, cayley_table_from_answers, group_by_name
from mechinterp_toolkit.heads.weights import (
    embedding,
    final_norm,
    neuron_outputs,
    unembedding,
)
from mechinterp_toolkit.intervention import Edits, applied, observed
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys.loop import ACTIVATIONS
from mechinterp_toolkit.toys.pairs import all_pairs, pair_tokens

SITES = ("left", "right", "unembedding")

_TRANSFORMER_HIDDEN = "blocks.0.mlp.hook_post"
_TRANSFORMER_PRE = "blocks.0.mlp.hook_pre"

PAIRS_AT_ONCE = 2**24
"""Numbers in the logits of the pairs that `GroupNetwork.pieces` runs together: 64 MB of float32."""


class Piece(NamedTuple):
    """Some pairs of a group network, in the order of `GroupNetwork.pairs`."""

    rows: slice
    """Which pairs."""

    logits: Float[Tensor, "pairs order"]
    """Their logits, on the CPU in the model's dtype."""

    hidden: Float[Tensor, "pairs neuron"]
    """Activations of the neurons on them, on the CPU in the model's dtype."""


@dataclass(frozen=True)
class GroupNetwork:
    """A network that answers pairs of group elements; pairs always run as (a, b) with b fastest."""

    model: HookedModel
    """The hooked model."""

    order: int
    """Number of group elements."""

    functions: Float[Tensor, "site order neuron"]
    """Left share, right share and unembedding of each neuron (`SITES`), float64 on the CPU."""

    embeddings: Float[Tensor, "table order d_embed"]
    """The embedding tables over the elements, float64: those of a and of b, or the one that both
    share."""

    bias: Float[Tensor, " order"]
    """What is added to the logits beside the neurons, float64; zero for a transformer, whose bypass
    depends on the pair."""

    activation: str
    """relu, quadratic, abs or gelu."""

    hidden_site: str
    """Hook point of the activations of the neurons."""

    pre_site: str
    """Hook point of their pre-activations."""

    is_additive: bool
    """Whether the pre-activation is left share plus right share, exactly."""

    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def pairs(self) -> Int[Tensor, "pairs 2"]:
        """Every pair of elements."""
        return all_pairs(self.order)

    @property
    def tokens(self) -> Int[Tensor, "pairs pos"]:
        """The model's input for every pair."""
        is_transformer = self.model.is_transformer
        return pair_tokens(self.pairs, self.order) if is_transformer else self.pairs

    def logits(self, edits: Edits | None = None) -> Float[Tensor, "pairs order"]:
        """Return the logits of every pair under edits, on the CPU in the model's dtype."""
        if edits:
            with applied(self.model, edits):
                return _answers(self.model.logits(self.tokens), self.order)
        return self._once("logits", lambda: _answers(self.model.logits(self.tokens), self.order))

    @property
    def hidden(self) -> Float[Tensor, "pairs neuron"]:
        """Activations of the neurons on every pair, on the CPU in the model's dtype."""
        return self.activations(self.hidden_site)

    def activations(self, site: str) -> Float[Tensor, "pairs d"]:
        """Return the activations at a hook point on every pair, on the CPU in the model's dtype.

        Of activations with positions those at the last one.
        """
        return self._once(site, lambda: _record(self.model, self.tokens, site))

    def pieces(self) -> Iterator[Piece]:
        """Yield all pairs, some left elements at a time, and keep none.

        The logits of a whole network hold |G|^3 numbers.
        """
        start = 0
        # All pairs of some left elements at a time.
        for tokens in self.tokens.split(self.order * max(1, PAIRS_AT_ONCE // self.order**2)):
            caught: list[Tensor] = []

            def keep(activation: Tensor, hook: object, caught: list[Tensor] = caught) -> None:
                caught.append(_last_position(activation).detach().cpu().clone())

            with torch.no_grad(), observed(self.model, {self.hidden_site: keep}):
                logits = _answers(self.model.logits(tokens), self.order)
            yield Piece(slice(start, start + len(tokens)), logits, caught[0])
            start += len(tokens)

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._kept:
            with torch.no_grad():
                self._kept[name] = make()
        return self._kept[name]

    def through(
        self, functions: Float[Tensor, "site order neuron"]
    ) -> Float[Tensor, "pairs order"]:
        """Return the float32 logits of a one-hidden-layer network of these neurons."""
        return self.hidden_of(functions) @ functions[2].float().T + self.bias.float()

    def hidden_of(
        self, functions: Float[Tensor, "site order neuron"]
    ) -> Float[Tensor, "pairs neuron"]:
        """Return the float32 activations of a one-hidden-layer network of these neurons."""
        left, right = functions[:2].float()
        return ACTIVATIONS[self.activation]((left[:, None] + right[None]).flatten(0, 1))


@takes_model
def group_network(model: HookedModel, *, order: int | None = None) -> GroupNetwork:
    """Return the view of a `GroupMLP`, or of a one-layer transformer over `[a, b, =]`.

    Args:
        model: any model `load_model` takes.
        order: number of elements, where the model does not say (a transformer's vocabulary less the
            equals sign else).

    Raises:
        NotApplicable: the model is neither, with the reason.

    >>> group_network("toy/s5").functions.shape  # site, element, neuron
    torch.Size([3, 120, 128])
    """
    reason = why_no_group_network(model)
    if reason:
        raise NotApplicable(
            f"{model.provenance.checkpoint} is no network on pairs of group elements: {reason}"
        )
    return _of_transformer(model, order) if model.is_transformer else _of_mlp(model)


def why_no_group_network(model: HookedModel) -> str | None:
    """Return why a model is no network on pairs of group elements, or None where it is one.

    >>> from mechinterp_toolkit.model import load_model
    >>> why_no_group_network(load_model("toy/s5")) is None
    True
    """
    net = model.model
    if not model.is_transformer:
        if all(hasattr(net, name) for name in ("left", "right", "unembed", "hook_hidden")):
            return None
        return "it has no left, right and unembedding matrices indexed by group elements"
    if len(net.blocks) != 1:
        return (
            f"it is a transformer of {len(net.blocks)} layers; one-layer ones over [a, b, =] are"
            " understood"
        )
    if (
        not all(hasattr(net, name) for name in ("W_E", "W_U"))
        or _TRANSFORMER_HIDDEN not in model.hook_points
    ):
        return "it has no W_E, W_U and blocks.0.mlp.hook_post to read"
    if not final_norm(model).is_identity:
        return (
            "LayerNorm stands between its neurons and its unembedding, so a neuron has no"
            " unembedding of its own"
        )
    return None


def recover_group(network: GroupNetwork) -> Group:
    """Return the group whose Cayley table the network answers, by the largest logit of every pair.

    Element i of the group is the network's own element i, so nothing needs to be said of their
    order.

    Raises:
        ToolkitError: "not a group operation", with the axiom that fails and the fraction of
            violated triples.

    >>> recover_group(group_network("toy/a5"))
    Group(recovered, order 60)
    """
    answers = network.logits().argmax(-1).reshape(network.order, network.order)
    return cayley_table_from_answers(answers)


def known_group(network: GroupNetwork, name: str | None = None) -> Group:
    """Return the group called `name`, else the one recorded with the network, else the recovered.

    Raises:
        NotApplicable: the group has another order than the network, or none is known and the
            answers are no group operation.

    >>> known_group(group_network("toy/a5"))
    Group(A5, order 60)
    """
    group = group_by_name(name) if name else getattr(network.model.model, "group", None)
    if group is None:
        try:
            return recover_group(network)
        except ToolkitError as error:
            raise NotApplicable(
                f"no group is named (group='S5') or recorded with the network, and {error}"
            ) from error
    if group.order != network.order:
        raise NotApplicable(
            f"{group.name} has {group.order} elements, but the network answers with"
            f" {network.order}."
        )
    return group


def _of_mlp(model: HookedModel) -> GroupNetwork:
    net = model.model
    functions = torch.stack([net.left, net.right, net.unembed]).detach().cpu().double()
    bias = torch.zeros(net.order) if net.b_out is None else net.b_out.detach().cpu()
    tables = torch.stack([net.embed_left, net.embed_right]).detach().cpu().double()
    return GroupNetwork(
        model=model,
        order=net.order,
        functions=functions,
        embeddings=tables,
        bias=bias.double(),
        activation=net.activation,
        hidden_site="hook_hidden",
        pre_site="hook_pre",
        is_additive=True,
    )


def _of_transformer(model: HookedModel, order: int | None) -> GroupNetwork:
    net, embed, unembed = model.model, embedding(model), unembedding(model).weight
    order = order or getattr(net, "order", None) or len(embed) - 1
    if not order <= unembed.shape[1] <= order + 1 or len(embed) < order + 1:
        raise NotApplicable(
            f"{model.provenance.checkpoint} reads {len(embed)} tokens and answers"
            f" {unembed.shape[1]}; a network on {order} elements reads {order + 1}, the equals sign"
            " last, and answers the elements first."
        )
    tokens = pair_tokens(all_pairs(order), order)
    pre = _record(model, tokens, _TRANSFORMER_PRE).double().unflatten(0, (order, order))
    answers = (neuron_outputs(model, 0).double() @ unembed.double()[:, :order]).T.cpu()
    functions = torch.stack([pre.mean(1), pre.mean(0), answers])
    name = getattr(getattr(net, "cfg", None), "act_fn", "relu")
    activation = "gelu" if name.startswith("gelu") else name
    if activation not in ACTIVATIONS:
        raise NotApplicable(
            f"{model.provenance.checkpoint} has activation {name!r}; known are"
            f" {', '.join(ACTIVATIONS)}."
        )
    return GroupNetwork(
        model=model,
        order=order,
        functions=functions,
        embeddings=embed.cpu().double()[None, :order],
        bias=torch.zeros(order, dtype=torch.float64),
        activation=activation,
        hidden_site=_TRANSFORMER_HIDDEN,
        pre_site=_TRANSFORMER_PRE,
        is_additive=False,
    )


def _answers(logits: Tensor, order: int) -> Float[Tensor, "pairs order"]:
    """The logits at the last position, over the group's elements."""
    last = _last_position(logits)
    if last.shape[-1] < order:
        raise ToolkitError(
            f"the network answers with {last.shape[-1]} logits, but there are {order} elements."
        )
    return last[:, :order].detach().cpu()


def _record(
    model: HookedModel, tokens: Int[Tensor, "pairs pos"], site: str
) -> Float[Tensor, "pairs neuron"]:
    return _last_position(activations(model, tokens, (site,), batch_size=len(tokens))[site])


def _last_position(activation: Tensor) -> Float[Tensor, "pairs d"]:
    return activation[:, -1] if activation.dim() == 3 else activation
