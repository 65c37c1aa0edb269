"""What are the weights of a model, whatever its architecture and its wrapper?

The one place that reads them. Of each layer: what its heads read and write, by *query* head (where
key-value heads are shared, query head h reads key-value head h // group). Of the model: its norms,
its unembedding, its embedding, and everything that writes to the residual stream. Tensors come
detached, in the dtype and on the device of the model.

A norm is measured, not looked up: what a module makes of a few vectors says whether it subtracts a
mean, what its gain is (w, 1 + w or none), its bias and its epsilon.

What would fool it: something between a head's output and its W_O, or between W_O and the stream,
that is neither a norm nor a constant. `heads.attribution.direct_contributions` finds that out,
since its parts would not sum to the stream.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (the names).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.model import HookedModel

Sublayer = Literal["attn", "mlp"]

# A norm is measured far above its epsilon (1e-12 to 1e-5), then about where it matters.
_FAR, _NEAR = 64.0, 2.0**-9


@dataclass(frozen=True)
class HeadWeights:
    """Weights of the heads of one layer, by query head. What a norm on queries or keys and rotary
    positions do in between is no part of them."""

    query: Float[Tensor, "head d_model d_key"]
    """W_Q."""

    key: Float[Tensor, "head d_model d_key"]
    """W_K."""

    value: Float[Tensor, "head d_model d_head"]
    """W_V: what a head takes from the position it attends to."""

    output: Float[Tensor, "head d_head d_model"]
    """W_O: how a head writes what it took; times the constant that the block multiplies it by."""

    query_bias: Float[Tensor, "head d_key"]
    """b_Q; zeros where there is none, as all biases."""

    key_bias: Float[Tensor, "head d_key"]
    """b_K."""

    value_bias: Float[Tensor, "head d_head"]
    """b_V."""

    output_bias: Float[Tensor, " d_model"]
    """b_O, which the heads of a layer share; times that constant."""


@dataclass(frozen=True)
class Norm:
    """A norm: x, less its mean if `centred`, over its root mean square, times gain plus bias."""

    gain: Float[Tensor, " d_model"]
    """What each coordinate is multiplied by: w, 1 + w or ones."""

    bias: Float[Tensor, " d_model"]
    """What is added in the end; zeros where nothing is."""

    centred: bool
    """Whether the mean is subtracted (LayerNorm) or not (RMSNorm)."""

    eps: float | None
    """Added to the mean square; None where nothing is divided, so that this is no norm at all."""

    @property
    def is_identity(self) -> bool:
        """Whether nothing stands here."""
        return self.eps is None

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch one"]:
        """Return what the norm divides `x` by."""
        if self.eps is None:
            return torch.ones_like(x[..., :1])
        return (self._middle(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def linear(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what the norm makes of a part `x` of its input, up to scale and bias.

        Over the scale of the whole input, and summed over all parts, plus bias: the norm itself.
        """
        return self._middle(x) * self.gain.to(x)

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return `x` through the norm.

        >>> norm = Norm(torch.ones(2), torch.zeros(2), centred=True, eps=0.0)
        >>> norm(torch.tensor([1.0, 3.0]))
        tensor([-1.,  1.])
        """
        return self.linear(x) / self.scale(x) + self.bias.to(x)

    def _middle(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Unembedding:
    """What makes logits of the stream behind the final norm."""

    weight: Float[Tensor, "d_model d_vocab"]
    """W_U, tied or not; times the constant that logits are multiplied by."""

    bias: Float[Tensor, " d_vocab"]
    """b_U, times that constant; zeros where there is none."""

    cap: float | None
    """Logits are `cap * tanh(logits / cap)` in the end; None where they are not capped."""

    def __call__(self, normal: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Return the logits of a stream that has gone through the final norm."""
        logits = normal @ self.weight.to(normal) + self.bias.to(normal)
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


def why_no_heads(model: HookedModel) -> str | None:
    """Return why the attention heads of this model cannot be read one by one, or None.

    >>> from mechinterp_toolkit.model import load_model
    >>> why_no_heads(load_model("toy/ordinal")), why_no_heads(load_model("toy/s5"))
    (None, 'it has no attention heads')
    """
    if not model.is_transformer:
        return "it has no attention heads"
    without = [i for i, block in enumerate(model.model.blocks) if not _has_heads(block)]
    if not without:
        return None
    if len(without) == len(model.model.blocks):
        return "it has no attention heads"
    return f"its blocks {', '.join(map(str, without))} have no attention heads"


def head_weights(model: HookedModel, layer: int) -> HeadWeights:
    """Return the weights of the heads of `layer`, by query head.

    Raises:
        NotApplicable: the layer has no attention heads.

    >>> from mechinterp_toolkit.model import load_model
    >>> weights = head_weights(load_model("toy/ordinal"), 1)
    >>> (weights.value[1] @ weights.output[1]).shape  # the OV circuit of head 1.1
    torch.Size([96, 96])
    """
    block = _block_with_heads(model, layer)
    attn, times = block.attn, _multiplier(block)
    output = attn.W_O.detach()
    read = {name: _by_query_head(getattr(attn, f"W_{name}"), len(output)) for name in "QKV"}
    bias = {
        name: _by_query_head(given, len(output))
        if (given := _optional(attn, f"b_{name}")) is not None
        else torch.zeros_like(read[name][:, 0])
        for name in "QKV"
    }
    shared = _optional(attn, "b_O")
    shared = torch.zeros_like(output[0, 0]) if shared is None else shared.detach()
    return HeadWeights(
        read["Q"],
        read["K"],
        read["V"],
        output if times == 1 else output * times,
        bias["Q"],
        bias["K"],
        bias["V"],
        shared if times == 1 else shared * times,
    )


def norm_before(model: HookedModel, layer: int) -> Norm:
    """Return the norm in front of the attention of `layer`; the identity where none stands.

    Raises:
        NotApplicable: the layer has no attention heads.
    """
    block = _block_with_heads(model, layer)
    module = block.ln1 if stands_before(model, layer, "ln1") else None
    return _measured(model.model.W_E, module)


def norm_behind(model: HookedModel, layer: int, sublayer: Sublayer) -> Norm:
    """Return the norm between a sublayer and the stream it writes to; mostly the identity.

    Gemma 2 and 3 and OLMo 2 have one behind attention and one behind the MLP.
    """
    block = model.model.blocks[layer]
    return _measured(model.model.W_E, getattr(block, _norm_behind(block, sublayer) or "", None))


def final_norm(model: HookedModel) -> Norm:
    """Return the norm in front of the unembedding; the identity where none stands."""
    return _measured(model.model.W_E, getattr(model.model, "ln_final", None))


def why_not_direct(model: HookedModel) -> str | None:
    """Return why what a part writes does not enter the stream as it is, or None.

    >>> from mechinterp_toolkit.model import load_model
    >>> why_not_direct(load_model("toy/ordinal")) is None
    True
    """
    for layer, block in enumerate(model.model.blocks):
        for sublayer in ("attn", "mlp"):
            name = _norm_behind(block, sublayer)
            if name is not None:
                return (
                    f"a norm stands behind a sublayer (blocks.{layer}.{name}) and rescales what is"
                    " written there, so that the write of each part depends on the others"
                )
    return None


def unembedding(model: HookedModel) -> Unembedding:
    """Return the unembedding with what is done to its logits.

    >>> from mechinterp_toolkit.model import load_model
    >>> unembedding(load_model("toy/ordinal")).weight.shape
    torch.Size([96, 124])
    """
    weight = model.model.W_U.detach()
    bias = _optional(model.model, "b_U")
    bias = torch.zeros_like(weight[0]) if bias is None else bias.detach()
    settings = getattr(model.model, "cfg", None)
    # Granite divides its logits, Cohere multiplies them.
    times = (getattr(settings, "logit_scale", None) or 1.0) / (
        getattr(settings, "logits_scaling", None) or 1.0
    )
    cap = getattr(settings, "output_logits_soft_cap", None)
    if times != 1:
        weight, bias = weight * times, bias * times
    return Unembedding(weight, bias, cap if cap and cap > 0 else None)


def embedding(model: HookedModel) -> Float[Tensor, "d_vocab d_model"]:
    """Return W_E, one row per token, without what scales or normalises it on its way."""
    weight: Tensor = model.model.W_E
    return weight.detach()


def why_no_neurons(model: HookedModel) -> str | None:
    """Return why a layer has no one MLP whose neurons could be read, or None."""
    for layer, block in enumerate(model.model.blocks):
        if _optional(getattr(block, "mlp", None), "W_out") is None:
            return f"there is no one MLP in block {layer}, as in a mixture of experts"
    return None


def neuron_outputs(model: HookedModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """Return W_out of the MLP of a layer, times the constant that the block multiplies it by.

    >>> from mechinterp_toolkit.model import load_model
    >>> neuron_outputs(load_model("toy/ordinal"), 1).shape
    torch.Size([192, 96])
    """
    block = model.model.blocks[layer]
    return block.mlp.W_out.detach() * _multiplier(block)


def mlp_alone(
    model: HookedModel, layer: int, x: Float[Tensor, "item d_model"]
) -> Float[Tensor, "item d_model"]:
    """Return the MLP of a layer called on `x` directly, no norm in front.

    Raises:
        NotApplicable: the model has no MLP that can be called by itself (OPT, BLOOM).
    """
    try:
        answer: Tensor = model.model.blocks[layer].mlp(x[None])
    except (AttributeError, RuntimeError, TypeError) as error:
        raise NotApplicable(
            f"{model.provenance.checkpoint} has no MLP in block {layer} that can be called by"
            f" itself ({str(error).splitlines()[0]}); take what it writes in a forward pass."
        ) from error
    return answer[0]


def stream_writers(model: HookedModel) -> Iterator[Tensor]:
    """Yield every weight and bias that writes to the stream: views that can be edited in place,
    last axis d_model.

    Raises:
        NotApplicable: the model's embedding or a sublayer of its has no such weights.
    """
    yield model.model.W_E.data
    positions = _positions(model.model)
    if positions is not None:
        yield positions.data
    for layer, block in enumerate(model.model.blocks):
        found = list(_writers(block, model.model.W_E.shape[1]))
        if not found:
            raise NotApplicable(
                f"what block {layer} of {model.provenance.checkpoint} writes with is not known"
                f" ({type(block).__name__}); edit by hooks instead."
            )
        yield from found


def has_positions(model: HookedModel) -> bool:
    """Return whether a table of absolute positions writes to the stream."""
    return _positions(model.model) is not None


def stands_before(model: HookedModel, layer: int, norm: str) -> bool:
    """Return whether "ln1" or "ln2" of a layer is there and in front of a sublayer, not behind."""
    block = model.model.blocks[layer]
    behind = (_norm_behind(block, "attn"), _norm_behind(block, "mlp"))
    return getattr(block, norm, None) is not None and norm not in behind


def untie(model: HookedModel) -> None:
    """Give a tied unembedding weights of its own, in place, so that the embedding can be edited."""
    head = getattr(model.model.unembed, "original_component", None)
    if head is not None and head.weight.data_ptr() == model.model.W_E.data_ptr():
        head.weight = nn.Parameter(head.weight.detach().clone())


def _block_with_heads(model: HookedModel, layer: int) -> Any:
    block = model.model.blocks[layer]
    if not _has_heads(block):
        raise NotApplicable(
            f"block {layer} of {model.provenance.checkpoint} has no attention heads to read; take"
            " a transformer."
        )
    return block


def _has_heads(block: Any) -> bool:
    attn = getattr(block, "attn", None)
    return attn is not None and all(_optional(attn, f"W_{name}") is not None for name in "QKVO")


def _optional(part: Any, name: str) -> Tensor | None:
    """A weight, or None where there is none: a Bridge raises then, and so does a compressed
    attention (MLA), which has no W_V."""
    try:
        weight: Tensor | None = getattr(part, name, None)
    except NotImplementedError:
        return None
    return weight


def _by_query_head(weight: Tensor, heads: int) -> Tensor:
    """A Bridge has one entry per key-value head, which `group` query heads in a row share."""
    return weight.detach().repeat_interleave(heads // len(weight), 0)


def _multiplier(block: Any) -> float:
    """What a sublayer's output is multiplied by before it is added to the stream (Granite)."""
    return float(getattr(block, "residual_contribution_scale", 1.0))


def _norm_behind(block: Any, sublayer: Sublayer) -> str | None:
    """Name of the norm between a sublayer and the stream.

    A Bridge's own name for what a sublayer writes says it: OLMo 2 calls it ln1 on TransformerLens
    3.9 and ln1_post on 4.3.
    """
    written = getattr(block, "hook_aliases", {}).get(f"hook_{sublayer}_out", "")
    name = written.split(".")[0] if isinstance(written, str) else ""
    if name.startswith("ln"):
        return name
    plain = {"attn": "ln1_post", "mlp": "ln2_post"}[sublayer]
    return plain if hasattr(block, plain) else None


@torch.no_grad()
def _measured(weight: Float[Tensor, "d_vocab d_model"], module: Any) -> Norm:
    """What `module` does, seen from outside; `weight` gives width and dtype."""
    d = weight.shape[1]
    there = next(iter(() if module is None else module.parameters()), weight).device
    ones = torch.ones(d, dtype=weight.dtype, device=there)
    if module is None:
        return Norm(ones, 0 * ones, centred=False, eps=None)
    # Entries +-1 of mean zero, so that centring changes nothing; of odd width the last are 1 1 -2.
    probe = torch.tensor([1.0, -1.0]).repeat(d)[:d].to(ones)
    if d % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0]).to(ones)
    rows = torch.stack([_FAR * probe, -_FAR * probe, _FAR * (probe + 3), 2 * _FAR * probe, ones])
    rows[-1] = _NEAR * probe
    up, down, moved, twice, near = module(rows[None])[0].double()
    whole, size = probe.double(), probe.double().square().mean()
    if (twice - 2 * up).abs().max() < (twice - up).abs().max():
        return Norm(ones, 0 * ones, centred=False, eps=None)
    gain, bias = (up - down) / 2 * size.sqrt() / whole, (up + down) / 2
    # Of a LayerNorm the shift by 3 is gone; of an RMSNorm it makes the scale larger.
    centred = bool((moved - up).abs().max() < 0.1 * (up - bias).abs().max())
    ratio = ((near - bias) * gain * whole).sum() / (_NEAR * (gain * whole).square().sum())
    eps = float(ratio**-2 - _NEAR**2 * size)
    return Norm(gain.to(ones), bias.to(ones), centred, eps if 0 < eps < 1 else 0.0)


def _writers(block: Any, d_model: int) -> Iterator[Tensor]:
    """Of one block: W_O, b_O, W_out, b_out; experts' W_out; what a state space writes with."""
    written = {"attn": ("W_O", "b_O"), "mlp": ("W_out", "b_out")}
    for part, name in ((part, name) for part, names in written.items() for name in names):
        weight = _optional(getattr(block, part, None), name)
        if weight is not None:
            yield weight.data
    mixer = getattr(getattr(block, "mixer", None), "out_proj", None)
    for weight in () if mixer is None else mixer.original_component.parameters():
        yield weight.data.mT if weight.dim() == 2 else weight.data
    mlp = getattr(block, "mlp", None)
    yield from _experts(mlp, d_model)
    # A gated MLP of a Bridge with folded weights runs on these, which a copy separates from its
    # parameters.
    for name in ("W_out", "b_out"):
        weight = getattr(mlp, f"_processed_{name}", None)
        if weight is not None:
            yield weight.mT if weight.dim() == 2 else weight


def _experts(mlp: Any, d_model: int) -> Iterator[Tensor]:
    """W_out of each expert of a mixture, shared ones included; [expert d_mlp d_model]."""
    if _optional(mlp, "W_out") is not None:
        return
    module = getattr(mlp, "original_component", None)
    for name, weight in () if module is None else module.named_parameters():
        leaf = name.removesuffix(".weight").split(".")[-1]
        if leaf in ("down_proj", "w2", "output_linear"):
            yield weight.data.mT if weight.shape[-2] == d_model else weight.data


def _positions(model: Any) -> Tensor | None:
    """The table of absolute positions, or None for rotary ones."""
    module = getattr(model, "pos_embed", None)
    table = getattr(module, "W_pos", None)
    if table is None:
        table = getattr(module, "weight", None)
    return table if isinstance(table, Tensor) else None
