"""What does a one-layer transformer that multiplies in a group look like? `[a, b, =]` in, the
product read off at `=`.

Learned positions, no LayerNorm, attention with one or more heads, a ReLU layer, an untied
unembedding over the group's elements. Element g is token g and `=` is token `order`. Modules and
hook points carry HookedTransformer's names, so that what reads and edits one reads and edits the
other.

Only the last position is computed after attention: nothing else is read. Training needs no
attention matrix at all, because the query at `=` is one vector: keys and values are worked out once
per element, not once per pair.

Source: architecture of Nanda et al. 2023, arXiv:2301.05217, and Chughtai et al. 2023,
arXiv:2302.03025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import Group
from mechinterp_toolkit.model import hook_classes
from mechinterp_toolkit.toys.group_mlp import arguments_from_config, check_order, group_to_config

HookedRootModule, HookPoint = hook_classes()

POSITIONS = 3
"""a, b and the equals sign."""


class _Weights(nn.Module):
    """Named weights drawn from N(0, 1 / fan-in), and hook points, as one module."""

    if TYPE_CHECKING:  # torch declares the attributes of a module as Tensor | Module

        def __getattr__(self, name: str) -> Any: ...

    def __init__(
        self,
        generator: torch.Generator,
        shapes: Mapping[str, tuple[tuple[int, ...], int]],
        hooks: str,
    ) -> None:
        super().__init__()
        for name, (shape, fan_in) in shapes.items():
            normal = torch.randn(shape, generator=generator) if fan_in else torch.zeros(shape)
            setattr(self, name, nn.Parameter(normal / max(fan_in, 1) ** 0.5))
        for name in hooks.split():
            setattr(self, f"hook_{name}", HookPoint())


# The base class comes from a function, which mypy cannot follow.
class GroupTransformer(HookedRootModule):  # type: ignore[misc, valid-type]
    """A one-layer transformer on `[a, b, =]`.

    Hook points, in order: `hook_embed`, `hook_pos_embed` (batch pos d_model),
    `blocks.0.hook_resid_pre`, `blocks.0.attn.hook_pattern` (batch head 1 pos),
    `blocks.0.attn.hook_z` (batch 1 head d_head), `blocks.0.hook_attn_out`,
    `blocks.0.hook_resid_mid`, `blocks.0.mlp.hook_pre`, `blocks.0.mlp.hook_post`,
    `blocks.0.hook_mlp_out`, `blocks.0.hook_resid_post`: those after attention have the one position
    `=`.
    """

    def __init__(
        self,
        order: int,
        *,
        d_model: int = 128,
        n_heads: int = 4,
        d_mlp: int = 512,
        group: Group | None = None,
        seed: int = 0,
    ) -> None:
        """Build the network with weights drawn from N(0, 1 / fan-in), biases zero.

        Args:
            order: number of group elements.
            d_model: width of the residual stream.
            n_heads: attention heads, each of width d_model / n_heads.
            d_mlp: neurons.
            group: the group whose multiplication is learned, where it is known.
            seed: decides the initial weights.

        Raises:
            ToolkitError: the group has another order, or the heads do not divide the width.
        """
        super().__init__()
        check_order(group, order)
        if d_model % n_heads:
            raise ToolkitError(
                f"{n_heads} heads do not divide a residual stream of width {d_model}."
            )
        self.order, self.group = order, group
        self.d_model, self.n_heads, self.d_mlp = d_model, n_heads, d_mlp
        g, d_head = torch.Generator().manual_seed(seed), d_model // n_heads
        self.embed = _Weights(g, {"W_E": ((order + 1, d_model), d_model)}, "")
        self.pos_embed = _Weights(g, {"W_pos": ((POSITIONS, d_model), d_model)}, "")
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        block = _Weights(g, {}, "resid_pre attn_out resid_mid mlp_out resid_post")
        heads = {f"W_{name}": ((n_heads, d_model, d_head), d_model) for name in "QKV"}
        heads["W_O"] = ((n_heads, d_head, d_model), d_model)
        block.attn = _Weights(g, heads, "pattern z")
        neurons = {"W_in": ((d_model, d_mlp), d_model), "b_in": ((d_mlp,), 0)}
        block.mlp = _Weights(
            g, neurons | {"W_out": ((d_mlp, d_model), d_mlp), "b_out": ((d_model,), 0)}, "pre post"
        )
        self.blocks = nn.ModuleList([block])
        self.unembed = _Weights(g, {"W_U": ((d_model, order), d_model)}, "")
        self.setup()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, seed: int = 0) -> GroupTransformer:
        """Build a network from `config` (see `config`) with fresh weights.

        Raises:
            CheckpointError: a setting is missing or unknown.
        """
        known = ("d_mlp", "d_model", "group", "n_heads", "order")
        return cls(**arguments_from_config(cls, config, known), seed=seed)

    @property
    def config(self) -> dict[str, Any]:
        """Plain settings from which `from_config` builds the same architecture."""
        plain = {name: getattr(self, name) for name in ("order", "d_model", "n_heads", "d_mlp")}
        return plain | {"group": group_to_config(self.group)}

    @property
    def block(self) -> Any:
        """The one block, with its modules `attn` and `mlp`."""
        return self.blocks[0]

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:  # HookedTransformer's name
        """Embedding; the last row is the equals sign."""
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model order"]:
        """Unembedding."""
        return self.unembed.W_U

    def random_like(self, seed: int) -> GroupTransformer:
        """Return the same architecture, on the same device, with fresh random weights."""
        return type(self).from_config(self.config, seed=seed).to(self.W_U)

    def forward(
        self, tokens: Int[Tensor, "batch 3"], return_type: str = "logits"
    ) -> Float[Tensor, "batch 1 order"]:
        """Return the logits over the product at the equals sign."""
        if return_type != "logits":
            raise ToolkitError(f"a GroupTransformer returns logits, not {return_type!r}.")
        block = self.block
        positions = self.pos_embed.W_pos.expand(len(tokens), -1, -1)
        stream = block.hook_resid_pre(
            self.hook_embed(self.W_E[tokens]) + self.hook_pos_embed(positions)
        )
        attended = block.hook_attn_out(self._attention(stream))
        middle = block.hook_resid_mid(stream[:, -1:] + attended)
        hidden = block.mlp.hook_post(
            torch.relu(block.mlp.hook_pre(middle @ block.mlp.W_in + block.mlp.b_in))
        )
        out = block.hook_mlp_out(hidden @ block.mlp.W_out + block.mlp.b_out)
        return block.hook_resid_post(middle + out) @ self.W_U

    def _attention(
        self, stream: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch 1 d_model"]:
        attn = self.block.attn
        query = torch.einsum("bd,hdk->bhk", stream[:, -1], attn.W_Q)
        key = torch.einsum("bpd,hdk->bhpk", stream, attn.W_K)
        value = torch.einsum("bpd,hdk->bhpk", stream, attn.W_V)
        scores = torch.einsum("bhk,bhpk->bhp", query, key) / attn.W_Q.shape[-1] ** 0.5
        pattern = attn.hook_pattern(scores.softmax(-1)[:, :, None])
        z = attn.hook_z(torch.einsum("bhqp,bhpk->bqhk", pattern, value))
        return torch.einsum("bqhk,hkd->bqd", z, attn.W_O)


def fast_logits(
    network: GroupTransformer, pairs: Int[Tensor, "batch 2"]
) -> Float[Tensor, "batch order"]:
    """Return the network's logits without hook points: keys and values made once per element."""
    attn, mlp, order = network.block.attn, network.block.mlp, network.order
    at_a, at_b = (network.W_E[:order] + network.pos_embed.W_pos[i] for i in (0, 1))
    last = network.W_E[order] + network.pos_embed.W_pos[2]
    query = torch.einsum("d,hdk->hk", last, attn.W_Q) / attn.W_Q.shape[-1] ** 0.5
    reader = torch.einsum("hdk,hk->hd", attn.W_K, query)  # what a key is compared with
    mover = torch.einsum("hdk,hke->hde", attn.W_V, attn.W_O)
    scores = torch.stack(
        [
            (at_a @ reader.T)[pairs[:, 0]],
            (at_b @ reader.T)[pairs[:, 1]],
            (reader @ last).expand(len(pairs), -1),
        ],
        -1,
    )
    a, b, end = scores.softmax(-1).unbind(-1)
    moved_a, moved_b = (torch.einsum("nd,hde->nhe", at, mover) for at in (at_a, at_b))
    stream = last + end @ torch.einsum("d,hde->he", last, mover)
    stream = stream + (
        a[:, :, None] * moved_a[pairs[:, 0]] + b[:, :, None] * moved_b[pairs[:, 1]]
    ).sum(1)
    hidden = torch.relu(stream @ mlp.W_in + mlp.b_in)
    return (stream + hidden @ mlp.W_out + mlp.b_out) @ network.W_U
