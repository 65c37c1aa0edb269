"""What does a head write for a token, read from the weights alone?

The OV circuit of a head takes what stands for a token, through the LayerNorm of the head's layer, W_V, W_O and the final
LayerNorm, to the logits. Published codes differ in each of these steps, and scores move by tens of points with them, so
every step is a named part of a `Convention`.

What would fool it: a tie (of a head that writes nothing, or of low precision) is no winner, so logits are float32 and a
tie counts as none.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; the conventions are those of Gould et al.
2024, arXiv:2312.09230, and of code that follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import OrdinalClass
from mechinterp_toolkit.record import activations

Representation = Literal["resid_post_0", "mlp_out_0", "mlp_0_raw", "embed"]
Candidates = Literal["class", "targets", "ordinal", "vocab"]


@dataclass(frozen=True)
class Convention:
    """How an OV circuit is read."""

    representation: Representation = "resid_post_0"
    """What stands for a token: the residual stream after block 0 or what the first MLP writes, both from running the model
    on the token alone (heads of block 0 then read the stream before it); the first MLP called directly on the embedding,
    as in the published sweep; or the embedding."""

    layer_norm: bool = True
    """Whether the LayerNorms in front of the head and of the unembedding are applied."""

    biases: bool = False
    """Whether b_V, b_O and the final LayerNorm's bias are added: the same row for every token."""

    candidates: Candidates = "class"
    """Whose logits compete: the items of the class, its successors only, all items, or the vocabulary."""

    def __str__(self) -> str:
        return (
            f"representation {self.representation}, LayerNorms {'applied' if self.layer_norm else 'left out'}, biases "
            f"{'added' if self.biases else 'left out'}, highest logit among: {self.candidates}"
        )


def final_writes(
    model: HookedModel,
    classes: Mapping[str, OrdinalClass],
    convention: Convention,
) -> Float[Tensor, "layer head item d_model"]:
    """Return what each head writes for each item of all classes, class by class, in front of the unembedding."""
    tokens = _all_tokens(model, classes)
    shown = _representations(model, tokens, convention.representation)
    rows = []
    for layer in range(model.cfg.n_layers):
        written = _written(model, layer, shown.in_block_0 if layer == 0 else shown.later, convention)
        rows.append(_final(model, written, convention).float())
    return torch.stack(rows)


def _all_tokens(model: HookedModel, classes: Mapping[str, OrdinalClass]) -> Int[Tensor, " item"]:
    return torch.cat([c.tokens for c in classes.values()]).to(model.device)


def best_candidates(
    model: HookedModel,
    final: Float[Tensor, "layer head item d_model"],
    classes: Mapping[str, OrdinalClass],
    candidates: Candidates,
) -> dict[str, Int[Tensor, "layer head of_class"]]:
    """Return which item of its class gets the highest logit, per class; -1 where none does.

    Args:
        model: whose unembedding reads.
        final: from `final_writes`.
        classes: the same, in the same order.
        candidates: whose logits compete; a winner outside the class, or a tie, is -1.
    """
    tokens, unembed = _all_tokens(model, classes), model.model.W_U.float()
    start, result = 0, {}
    for name, ordinal in classes.items():
        own = ordinal.tokens.to(model.device)
        part = final[:, :, start : start + len(own)]
        result[name] = _winner(part, unembed, own, _pool(own, ordinal, tokens, unembed, candidates))
        start += len(own)
    return result


def _pool(own: Tensor, ordinal: OrdinalClass, every: Tensor, unembed: Tensor, candidates: Candidates) -> Tensor:
    """Token ids that compete."""
    if candidates == "targets":
        return own[ordinal.pairs(1)[:, 1].unique().to(own.device)]
    pools = {"class": own, "ordinal": every.unique(), "vocab": torch.arange(unembed.shape[1], device=own.device)}
    return pools[candidates]


def _winner(
    final: Float[Tensor, "layer head item d_model"],
    unembed: Tensor,
    own: Int[Tensor, " item"],
    pool: Int[Tensor, " pool"],
) -> Int[Tensor, "layer head item"]:
    columns = unembed[:, pool]
    place = {int(token): i for i, token in enumerate(own)}
    to_item = torch.tensor([place.get(int(token), -1) for token in pool], device=own.device)
    winners = []
    for layer in final:  # one layer at a time: with candidates="vocab" the logits are large
        top = (layer @ columns).topk(min(2, len(pool)), dim=-1)
        tied = top.values[..., 0] == top.values[..., -1]
        winners.append(to_item[top.indices[..., 0]].masked_fill(tied, -1))
    return torch.stack(winners).cpu()


class _Shown(NamedTuple):
    """What stands for each item in front of a head, [item d_model]."""

    in_block_0: Tensor
    later: Tensor


def _representations(model: HookedModel, tokens: Int[Tensor, " item"], representation: Representation) -> _Shown:
    """A head of block 0 reads the stream before that block, whose output it can never see."""
    embedded: Tensor = model.model.W_E[tokens]
    if representation == "embed":
        return _Shown(embedded, embedded)
    if representation == "mlp_0_raw":  # for every head, as published
        raw: Tensor = model.model.blocks[0].mlp(embedded[None])
        return _Shown(raw[0], raw[0])
    prompt = tokens[:, None]
    if model.provenance.prepend_bos:
        bos = torch.full_like(prompt, model.require_tokenizer().bos_token_id)
        prompt = torch.cat([bos, prompt], dim=1)
    later = {"resid_post_0": "blocks.0.hook_resid_post", "mlp_out_0": "blocks.0.hook_mlp_out"}[representation]
    names = ("blocks.0.hook_resid_pre", later)
    read = activations(model, prompt, names)
    return _Shown(*(read[name][:, -1].to(tokens.device) for name in names))


def _written(
    model: HookedModel, layer: int, shown: Float[Tensor, "item d_model"], convention: Convention
) -> Float[Tensor, "head item d_model"]:
    """What each head of the layer writes when it attends to the item alone."""
    net = model.model
    read = model.layer_norm(layer, shown) if convention.layer_norm else shown
    value = torch.einsum("id,hdk->hik", read, net.W_V[layer])
    if convention.biases:
        value = value + net.b_V[layer][:, None]
    written = torch.einsum("hik,hkd->hid", value, net.W_O[layer])
    return written + net.b_O[layer] if convention.biases else written


def _final(
    model: HookedModel, written: Float[Tensor, "head item d_model"], convention: Convention
) -> Float[Tensor, "head item d_model"]:
    """The final LayerNorm; its positive scale changes no order, its bias would add the same row to every item."""
    if not convention.layer_norm:
        return written
    normal = model.layer_norm("final", written)
    return normal if convention.biases else normal - model.layer_norm("final", torch.zeros_like(written[:1, :1]))
