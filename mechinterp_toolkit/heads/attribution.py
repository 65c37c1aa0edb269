"""How much does each head by itself raise the right answer, and only when the prompt is in order?

*Direct attribution*: what a head writes at the position that answers, through the final LayerNorm
with its scale as it was, on the answer's unembedding, centred over the vocabulary. *Lift*: the same
minus its mean over shuffled prompts, which show the same items in another order and ask for the
same answer.

What would fool it: attribution alone. A head that raises a whole class of words raises the right
one too; on GPT-2 small such a head leads, and the successor head comes 36th. Lift takes the class
away. Both see direct paths only.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Gould et al. 2024,
arXiv:2312.09230; lift as in public replications of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.heads.weights import (
    final_norm,
    head_weights,
    norm_behind,
    unembedding,
    why_no_heads,
)
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import PromptSet
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap


@dataclass(frozen=True)
class Attribution:
    """Result of `attribute_heads`."""

    raw: Estimate
    """Direct attribution of each head to the right answer, [layer head], in logits; control: the
    same on shuffled prompts."""

    lift: Estimate
    """`raw` minus its mean over shuffled prompts, [layer head]; control: each shuffle minus the
    mean of the others."""


def attribute_heads(
    model: HookedModel,
    prompts: PromptSet,
    shuffled: Sequence[PromptSet],
    unit: Int[Tensor, " batch"],
    *,
    seed: int = 0,
) -> Attribution:
    """Estimate attribution and lift of every head, with intervals over units.

    Args:
        model: a transformer.
        prompts: prompts in order.
        shuffled: the same prompts in other orders, prompt by prompt with the same answer; two sets
            or more.
        unit: which exchangeable unit (item) each prompt belongs to.
        seed: of the intervals.
    """
    real = head_attribution(model, prompts)
    null = torch.stack([head_attribution(model, order) for order in shuffled])
    means = null.mean(1)
    others = (means.sum(0) - means) / (len(shuffled) - 1)
    common: dict[str, Any] = {
        "unit": unit,
        "unit_name": "items",
        "measured": "logits",
        "seed": seed,
        "axes": ("layer", "head"),
    }
    raw = bootstrap(real, control=means, control_name="shuffled prompts", **common)
    control, named = means - others, "shuffled against shuffled"
    lift = bootstrap(real - null.mean(0), control=control, control_name=named, **common)
    return Attribution(raw, lift)


@dataclass(frozen=True)
class Contributions:
    """Result of `direct_contributions`, in logits."""

    heads: Float[Tensor, "batch layer head"]
    """What each head writes."""

    mlps: Float[Tensor, "batch layer"]
    """What each MLP or mixture of experts writes, its biases included."""

    embedding: Float[Tensor, " batch"]
    """What enters the first block: token and position."""

    biases: Float[Tensor, " batch"]
    """What is the same for every prompt but for scales: b_O and the biases of norms and
    unembedding."""

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The right answer's logit minus the mean logit."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.embedding + self.biases


def head_attribution(model: HookedModel, prompts: PromptSet) -> Float[Tensor, "batch layer head"]:
    """Return each head's direct contribution to the right answer's logit minus the mean logit.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys import successor_queries
    >>> model = load_model("toy/ordinal")
    >>> prompts = successor_queries(model.tokenizer, ordinal_classes(model.tokenizer).classes)
    >>> by_head = head_attribution(model, prompts).mean(0)
    >>> divmod(int(by_head.argmax()), 4)  # the head that counts, (layer, head)
    (1, 1)
    """
    return direct_contributions(model, prompts).heads


def direct_contributions(model: HookedModel, prompts: PromptSet) -> Contributions:
    """Return what each part adds to the right answer's logit minus the mean logit, by itself.

    The scales of the final norm, and of a norm behind a sublayer, are held as they were. All parts
    sum to that logit; where logits are capped, to what it was before.

    Raises:
        NotApplicable: no heads to read, or the blocks write more to the stream than attention and
            MLP, so that the parts are not all there is.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys import successor_queries
    >>> model = load_model("toy/ordinal")
    >>> prompts = successor_queries(model.tokenizer, ordinal_classes(model.tokenizer).classes)
    >>> parts = direct_contributions(model, prompts)
    >>> float(parts.heads[:, 1, 1].mean() / parts.total.mean()) > 0.5  # most is head 1.1
    True
    """
    if reason := why_no_heads(model):
        raise NotApplicable(f"{model.provenance.checkpoint} cannot be taken apart: {reason}.")
    layers = range(model.cfg.n_layers)
    start, end = "blocks.0.hook_resid_pre", f"blocks.{layers[-1]}.hook_resid_post"
    names = [f"blocks.{i}.{point}" for i in layers for point in ("attn.hook_z", "hook_mlp_out")]
    recorded = activations(
        model,
        prompts.tokens,
        (*names, start, end),
        mask=prompts.mask,
        position=prompts.position,
    )
    read = {name: value.double() for name, value in recorded.items()}
    reader = _Reader(model, prompts.answer, read[end])

    heads, mlps, biases = [], [], reader.constant.expand(len(prompts)).clone()
    for layer in layers:
        own, behind = head_weights(model, layer), norm_behind(model, layer, "attn")
        output, shared = (w.cpu().double() for w in (own.output, own.output_bias))
        written = torch.einsum("bhk,hkd->bhd", read[f"blocks.{layer}.attn.hook_z"], output)
        scale = behind.scale(written.sum(1) + shared)
        heads.append(reader(behind.linear(written) / scale[:, None]))
        mlps.append(reader(read[f"blocks.{layer}.hook_mlp_out"]))
        biases += reader(behind.linear(shared) / scale + behind.bias.cpu().double())
    parts = Contributions(torch.stack(heads, 1), torch.stack(mlps, 1), reader(read[start]), biases)
    _check_whole(model, parts.total, reader(read[end]) + reader.constant)
    return parts


class _Reader:
    """What a part of the stream adds to the centred logits of the answers."""

    def __init__(
        self,
        model: HookedModel,
        answer: Int[Tensor, " batch"],
        end: Float[Tensor, "batch d_model"],
    ) -> None:
        self.norm, unembed = final_norm(model), unembedding(model)
        self.scale = self.norm.scale(end)
        mean = unembed.weight.mean(1, keepdim=True, dtype=torch.float64)
        self.towards = (unembed.weight[:, answer.to(mean.device)] - mean).T.cpu()  # batch d_model
        bias = unembed.bias.cpu().double()
        self.constant = self.towards @ self.norm.bias.cpu().double() + bias[answer] - bias.mean()
        """What biases of final norm and unembedding add."""

    def __call__(self, part: Float[Tensor, "batch *part d_model"]) -> Float[Tensor, "batch *part"]:
        shape = (len(part), *[1] * (part.dim() - 2), -1)
        normal = self.norm.linear(part) / self.scale.reshape(shape)
        return (normal * self.towards.reshape(shape)).sum(-1)


def _check_whole(model: HookedModel, parts: Tensor, stream: Tensor) -> None:
    """Refuse a model whose parts are not all that reaches its logits."""
    off, size = float((parts - stream).abs().max()), float(stream.abs().max())
    # 1000 rounding units of the largest: the same sums in another order are well below.
    rounding = torch.finfo(next(model.model.parameters()).dtype).eps
    if off > 1000 * rounding * max(size, 1.0):
        raise NotApplicable(
            f"what heads and MLPs of {model.provenance.checkpoint} write does not sum to its"
            f" residual stream (off by {off:.2g} logits of {size:.2g}), so something else writes"
            " there, or stands between a head and the stream; take another model."
        )
