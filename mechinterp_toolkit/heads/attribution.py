"""How much does each head by itself raise the right answer, and does it do so only when the prompt
is in order?

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
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import PromptSet
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

_SCALE = "ln_final.hook_scale"


@dataclass(frozen=True)
class Attribution:
    """Result of `attribute_heads`."""

    raw: Estimate
    """Direct attribution of each head to the right answer, [layer head], in logits; control: the
    same on shuffled prompts."""

    lift: Estimate
    """`raw` minus its mean over shuffled prompts, [layer head]; control: each shuffle minus the
    mean of the others."""


def head_attribution(model: HookedModel, prompts: PromptSet) -> Float[Tensor, "batch layer head"]:
    """Return each head's direct contribution to the logit of the right answer minus the mean logit,
    in logits."""
    layers = range(model.cfg.n_layers)
    names = tuple(f"blocks.{layer}.attn.hook_z" for layer in layers)
    scaled = _SCALE in model.hook_points
    read = activations(
        model,
        prompts.tokens,
        (*names, *((_SCALE,) if scaled else ())),
        mask=prompts.mask,
        position=prompts.position,
    )
    net = model.model
    towards = (
        (net.W_U - net.W_U.mean(1, keepdim=True)).detach().cpu().double()[:, prompts.answer].T
    )  # batch d_model
    gain = getattr(getattr(net, "ln_final", None), "w", None)
    towards = towards if gain is None else towards * gain.detach().cpu().double()
    if scaled:  # a LayerNorm subtracts the mean; what a head writes along it never arrives
        towards = (towards - towards.mean(1, keepdim=True)) / read[_SCALE].double().reshape(
            len(prompts), 1
        )
    parts = [
        torch.einsum(
            "bhk,hkd,bd->bh", read[name].double(), net.W_O[layer].detach().cpu().double(), towards
        )
        for layer, name in zip(layers, names, strict=True)
    ]
    return torch.stack(parts, 1)


def attribute_heads(
    model: HookedModel,
    prompts: PromptSet,
    shuffled: Sequence[PromptSet],
    unit: Tensor,
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
    null = torch.stack([head_attribution(model, one) for one in shuffled])
    means = null.mean(1)
    others = (means.sum(0) - means) / (len(shuffled) - 1)
    common: dict[str, Any] = {
        "unit": unit,
        "unit_name": "items",
        "measured": "logits",
        "seed": seed,
        "axes": ("layer", "head"),
    }
    return Attribution(
        raw=bootstrap(real, control=means, control_name="shuffled prompts", **common),
        lift=bootstrap(
            real - null.mean(0),
            control=means - others,
            control_name="shuffled against shuffled",
            **common,
        ),
    )
