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

from mechinterp_toolkit.heads.weights import output_weights
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
    names = tuple(f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers))
    scaled = _SCALE in model.hook_points
    read = activations(
        model,
        prompts.tokens,
        (*names, _SCALE) if scaled else names,
        mask=prompts.mask,
        position=prompts.position,
    )
    unembed = model.model.W_U.detach().cpu().double()
    towards = (unembed[:, prompts.answer] - unembed.mean(1, keepdim=True)).T  # batch d_model
    gain = getattr(getattr(model.model, "ln_final", None), "w", None)
    if gain is not None:
        towards = towards * gain.detach().cpu().double()
    if scaled:
        # A LayerNorm subtracts the mean: what a head writes along it never arrives.
        scale = read[_SCALE].double().reshape(-1, 1)
        towards = (towards - towards.mean(1, keepdim=True)) / scale
    z = torch.stack([read[name].double() for name in names], 1)  # batch layer head d_head
    reads = torch.einsum("bd,lhkd->blhk", towards, output_weights(model).cpu().double())
    return (z * reads).sum(-1)
