"""What does a network that multiplies in a group look like? One hidden layer between two embeddings
and an unembedding.

The network reads a pair (a, b) of group elements and answers with logits over their product::

    logits = activation(embed_left[a] @ W_left + embed_right[b] @ W_right) @ w_out (+ b_out)

so that each neuron is three functions on the group: its left share, its right share and its
unembedding. Every stage is a TransformerLens hook point, and the product's convention is that of
the group's Cayley table, `table[a, b] = ab`.

Source: architecture of Chughtai et al. 2023, arXiv:2302.03025 (untied embeddings, no biases in the
hidden layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechinterp_toolkit.errors import CheckpointError, ToolkitError, nearest
from mechinterp_toolkit.groups import Group, group_by_name
from mechinterp_toolkit.model import hook_classes
from mechinterp_toolkit.toys.loop import ACTIVATIONS
from mechinterp_toolkit.toys.recipes import Activation

HookedRootModule, HookPoint = hook_classes()


# The base class comes from a function, which mypy cannot follow.
class GroupMLP(HookedRootModule):  # type: ignore[misc, valid-type]
    """A one-hidden-layer network on pairs of group elements.

    Hook points, in order: `hook_embed_left`, `hook_embed_right` (batch d_embed), `hook_left`,
    `hook_right` (the shares of the pre-activation, batch d_hidden), `hook_pre`, `hook_hidden`
    (after the activation), `hook_logits` (batch order).
    """

    def __init__(
        self,
        order: int,
        *,
        d_embed: int = 256,
        d_hidden: int = 128,
        activation: Activation = "relu",
        bias: bool = False,
        group: Group | None = None,
        seed: int = 0,
    ) -> None:
        """Build the network with weights drawn from N(0, 1 / fan-in).

        Args:
            order: number of group elements.
            d_embed: width of either embedding.
            d_hidden: number of hidden neurons.
            activation: nonlinearity of the hidden layer.
            bias: whether the unembedding has a bias.
            group: the group whose multiplication is learned, where it is known.
            seed: decides the initial weights.

        Raises:
            ToolkitError: the group has another order, or the activation is unknown.
        """
        super().__init__()
        _check_activation(activation)
        check_order(group, order)
        self.order, self.d_embed, self.d_hidden = order, d_embed, d_hidden
        self.activation, self.group = activation, group
        generator = torch.Generator().manual_seed(seed)

        def draw(rows: int, columns: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) / fan_in**0.5)

        self.embed_left = draw(order, d_embed, d_embed)
        self.embed_right = draw(order, d_embed, d_embed)
        self.w_hidden = draw(2 * d_embed, d_hidden, 2 * d_embed)
        self.w_out = draw(d_hidden, order, d_hidden)
        self.b_out = nn.Parameter(torch.zeros(order)) if bias else None
        for name in ("embed_left", "embed_right", "left", "right", "pre", "hidden", "logits"):
            setattr(self, f"hook_{name}", HookPoint())
        self.setup()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, seed: int = 0) -> GroupMLP:
        """Build a network from `config` (see `config`) with fresh weights.

        Raises:
            CheckpointError: a setting is missing or unknown.
            ToolkitError: the activation is unknown.
        """
        known = ("activation", "bias", "d_embed", "d_hidden", "group", "order")
        arguments = arguments_from_config(cls, config, known)
        _check_activation(arguments["activation"])
        return cls(**arguments, seed=seed)

    @classmethod
    def from_weights(
        cls,
        embed_left: Float[Tensor, "order d_embed"],
        embed_right: Float[Tensor, "order d_embed"],
        w_hidden: Float[Tensor, "2*d_embed d_hidden"],
        w_out: Float[Tensor, "d_hidden order"],
        b_out: Float[Tensor, " order"] | None = None,
        *,
        group: Group | None = None,
        activation: Activation = "relu",
    ) -> GroupMLP:
        """Build a network from its weights, which are copied."""
        order, d_embed = embed_left.shape
        network = cls(
            order,
            d_embed=d_embed,
            d_hidden=w_hidden.shape[1],
            activation=activation,
            bias=b_out is not None,
            group=group,
        )
        weights = {
            "embed_left": embed_left,
            "embed_right": embed_right,
            "w_hidden": w_hidden,
            "w_out": w_out,
        }
        weights |= {} if b_out is None else {"b_out": b_out}
        network.to(embed_left.dtype).load_state_dict(weights)
        return network

    @property
    def config(self) -> dict[str, Any]:
        """Plain settings from which `from_config` builds the same architecture."""
        return {
            "order": self.order,
            "d_embed": self.d_embed,
            "d_hidden": self.d_hidden,
            "activation": self.activation,
            "bias": self.b_out is not None,
            "group": group_to_config(self.group),
        }

    @property
    def left(self) -> Float[Tensor, "order d_hidden"]:
        """Each neuron's left share of its pre-activation, as a function of a."""
        return self.embed_left @ self.w_hidden[: self.d_embed]

    @property
    def right(self) -> Float[Tensor, "order d_hidden"]:
        """Each neuron's right share of its pre-activation, as a function of b."""
        return self.embed_right @ self.w_hidden[self.d_embed :]

    @property
    def unembed(self) -> Float[Tensor, "order d_hidden"]:
        """What each neuron adds to the logit of c per unit of activation."""
        return self.w_out.T

    def random_like(self, seed: int) -> GroupMLP:
        """Return the same architecture, on the same device, with fresh random weights."""
        return type(self).from_config(self.config, seed=seed).to(self.w_out)

    def forward(self, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch order"]:
        """Return the logits over the product of each pair (a, b)."""
        embed_left = self.hook_embed_left(self.embed_left[pairs[:, 0]])
        embed_right = self.hook_embed_right(self.embed_right[pairs[:, 1]])
        left = self.hook_left(embed_left @ self.w_hidden[: self.d_embed])
        right = self.hook_right(embed_right @ self.w_hidden[self.d_embed :])
        hidden = self.hook_hidden(ACTIVATIONS[self.activation](self.hook_pre(left + right)))
        logits = hidden @ self.w_out
        return self.hook_logits(logits if self.b_out is None else logits + self.b_out)


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ToolkitError(
            f"no activation is called {name!r}.{nearest(name, ACTIVATIONS)} There are"
            f" {', '.join(ACTIVATIONS)}."
        )


def check_order(group: Group | None, order: int) -> None:
    """Raise `ToolkitError` if a network for `order` elements is given a group of another order."""
    if group is not None and group.order != order:
        raise ToolkitError(
            f"the group {group.name} has {group.order} elements, but the network is built for"
            f" {order}."
        )


def group_to_config(group: Group | None) -> str | list[list[int]] | None:
    """Return the group's name where the name alone gives this very table, else the table."""
    if group is None:
        return None
    try:
        named = group_by_name(group.name)
    except ToolkitError:
        return group.table.tolist()
    return group.name if torch.equal(named.table, group.table) else group.table.tolist()


def arguments_from_config(
    network: type, config: Mapping[str, Any], known: Sequence[str]
) -> dict[str, Any]:
    """Return the arguments of a network in its `config`, with the group built from name or table.

    Raises:
        CheckpointError: a setting is missing or unknown.
    """
    if set(config) != set(known):
        raise CheckpointError(
            f"a {network.__name__}'s config has {', '.join(known)}; missing"
            f" {sorted(set(known) - set(config))}, unknown {sorted(set(config) - set(known))}."
        )
    group = config["group"]
    if group is not None:
        known_by_name = isinstance(group, str)
        group = group_by_name(group) if known_by_name else Group.from_table(torch.tensor(group))
    return {**config, "group": group}
