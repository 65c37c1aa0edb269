"""Transformers whose ordinal head is known by construction: one head of a random GPT-2 shape is
written by hand.

The head reads what the model really shows it, the residual stream after block 0 through the
LayerNorm of its block, and its OV circuit sends each item where it is told: to the next item
(`planted_successor`; with cyclic classes around circles, `planted_circle`), to itself
(`planted_copy`), to its whole class (`planted_category_booster`), or away from itself and towards
both its neighbours (`planted_self_suppression`). Its query is a constant and its key tells items
from other words, so that it attends to the item of a prompt and the model's answer depends on it.

What would fool it: the map has the rank of a head, not of the items, so a few items may go astray;
tests say how many.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import OrdinalClass, ordinal_classes
from mechinterp_toolkit.toys.gpt2 import bundled_gpt2, random_gpt2, rename, shown_to
from mechinterp_toolkit.toys.ordinal import build_tokenizer
from mechinterp_toolkit.toys.planted_groups import check_strength

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

D_MODEL, N_HEADS = 192, 3

LAYER = 1
"""Block of the written head; which head it is depends on the seed."""

# Embeddings this many times GPT-2's initial 0.02, so that a token stands out from what random
# blocks write beside it.
_TOKEN_SCALE = 10.0
# Attention logit of an item over other words: e^12 to 1 leaves nothing elsewhere in a prompt of ten
# words.
_ATTENTION = 12.0
# Norm of what the head writes, in units of an embedding's norm: enough to decide the answer.
_WRITTEN = 3.0


class PlantedHead(NamedTuple):
    """A model with a head written by hand."""

    model: Any
    """`GPT2LMHeadModel`, random but for the head."""

    tokenizer: Any
    """The ordinal toy's tokenizer."""

    head: tuple[int, int]
    """`(layer, head)`."""


def planted_successor(strength: float = 1.0, seed: int = 0) -> PlantedHead:
    """Return a model with a head that sends every item to the next one of its class.

    Args:
        strength: weight of the written head against random weights of the same norm, in [0, 1]; 0
            is random.
        seed: of the random weights; head `seed % 3` is the written one.

    Raises:
        ToolkitError: `strength` lies outside [0, 1].
    """
    return _plant(_next, strength, seed)


def planted_circle(strength: float = 1.0, seed: int = 0) -> PlantedHead:
    """Return a model that knows every successor and keeps its cyclic classes around circles.

    The head is that of `planted_successor` at full strength; what varies is where the items of
    cyclic classes lie.

    Args:
        strength: weight of the circle in their embeddings against random directions of the same
            norm, in [0, 1].
        seed: as there.

    Raises:
        ToolkitError: `strength` lies outside [0, 1].
    """
    check_strength(strength)
    return _plant(_next, 1.0, seed, circle=strength)


def planted_copy(strength: float = 1.0, seed: int = 0) -> PlantedHead:
    """Return a model with a head that sends every item to itself; arguments are those of
    `planted_successor`."""
    return _plant(lambda own, place, n, cyclic: own[place], strength, seed)


def planted_category_booster(strength: float = 1.0, seed: int = 0) -> PlantedHead:
    """Return a model with a head that lifts every item of the class it sees alike; see
    `planted_successor`."""
    return _plant(lambda own, place, n, cyclic: own.sum(0), strength, seed)


def planted_self_suppression(strength: float = 1.0, seed: int = 0) -> PlantedHead:
    """Return a model with a head that lifts both neighbours of an item and suppresses it; see
    `planted_successor`.

    About half of its items go to the successor and half to the predecessor, which fools a score of
    successors alone.
    """

    def around(own: Tensor, place: int, n: int, cyclic: bool) -> Tensor:
        following = own[(place + 1) % n] if cyclic or place + 1 < n else own[place] * 0
        before = own[place - 1] if cyclic or place > 0 else own[place] * 0
        return following + before - own[place]

    return _plant(around, strength, seed)


def relabelled_ordinal(name: str, seed: int) -> HookedModel:
    """Return a trained ordinal toy with the tokens of each class renamed at random within the
    class.

    The recipe treats tokens as symbols, so this is what training on a scrambled order would have
    given, without training: the model knows a successor of every item, in an order that is not the
    class' own.

    Args:
        name: a bundled GPT-2-shaped toy, e.g. "toy/ordinal".
        seed: of the renaming.
    """
    hf_model, tokenizer = bundled_gpt2(name)
    generator = torch.Generator().manual_seed(seed)
    for ordinal in ordinal_classes(tokenizer).classes.values():
        rename(hf_model, ordinal.tokens, torch.randperm(len(ordinal), generator=generator))
    return load_model(hf_model, tokenizer=tokenizer)


Target = Callable[[Tensor, int, int, bool], Tensor]
"""`target(embeddings of the class, place, items, cyclic)`: what the head writes for the item at
`place`."""


def _next(own: Tensor, place: int, n: int, cyclic: bool) -> Tensor:
    return own[(place + 1) % n] if cyclic or place + 1 < n else own[place] * 0


def _plant(target: Target, strength: float, seed: int, *, circle: float = 0.0) -> PlantedHead:
    check_strength(strength)
    head, tokenizer = seed % N_HEADS, build_tokenizer()
    hf_model = _random_model(len(tokenizer), seed)
    with torch.no_grad():
        classes = ordinal_classes(tokenizer).classes
        if circle:
            _put_around_circles(hf_model.transformer.wte.weight, classes, circle, seed)
        shown = shown_to(hf_model, tokenizer, LAYER)
        _write_ov(hf_model, head, shown, classes, target, strength)
        _write_qk(hf_model, head, shown, torch.cat([c.tokens for c in classes.values()]), strength)
    return PlantedHead(hf_model, tokenizer, (LAYER, head))


def _put_around_circles(
    embedding: Float[Tensor, "token d_model"],
    classes: Mapping[str, OrdinalClass],
    circle: float,
    seed: int,
) -> None:
    """Items of cyclic classes become partly points of a regular polygon in a plane of their class;
    norms stay."""
    generator = torch.Generator().manual_seed(seed)
    for ordinal in (c for c in classes.values() if c.cyclic):
        random = embedding[ordinal.tokens]
        plane = torch.linalg.qr(torch.randn(D_MODEL, 2, generator=generator)).Q.T
        angle = 2 * torch.pi * torch.arange(len(ordinal)) / len(ordinal)
        polygon = (
            torch.stack([angle.cos(), angle.sin()], 1) @ plane * random.norm(dim=1, keepdim=True)
        )
        mixed = circle * polygon + (1 - circle) * random
        embedding[ordinal.tokens] = mixed * (random.norm(dim=1) / mixed.norm(dim=1))[:, None]


def _random_model(d_vocab: int, seed: int) -> GPT2LMHeadModel:
    model = random_gpt2(d_vocab, d_model=D_MODEL, n_layers=2, n_heads=N_HEADS, seed=seed)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(_TOKEN_SCALE)
    return model


def _write_ov(
    hf_model: GPT2LMHeadModel,
    head: int,
    shown: Float[Tensor, "token d_model"],
    classes: Mapping[str, OrdinalClass],
    target: Target,
    strength: float,
) -> None:
    """The map from what is shown to what is wanted, at the best approximation of a head's rank."""
    embedding = hf_model.transformer.wte.weight.double()
    tokens = torch.cat([c.tokens for c in classes.values()])
    wanted = torch.cat(
        [
            torch.stack(
                [target(embedding[c.tokens], place, len(c), c.cyclic) for place in range(len(c))]
            )
            for c in classes.values()
        ]
    )
    left, size, right = torch.linalg.svd(
        torch.linalg.pinv(shown[tokens]) @ wanted * _WRITTEN, full_matrices=False
    )
    d_head = D_MODEL // N_HEADS
    root = size[:d_head].sqrt()
    attention = hf_model.transformer.h[LAYER].attn
    columns = slice(2 * D_MODEL + head * d_head, 2 * D_MODEL + (head + 1) * d_head)
    rows = slice(head * d_head, (head + 1) * d_head)
    _mix(attention.c_attn.weight[:, columns], left[:, :d_head] * root, strength)
    _mix(attention.c_proj.weight[rows], root[:, None] * right[:d_head], strength)


def _write_qk(
    hf_model: GPT2LMHeadModel,
    head: int,
    shown: Float[Tensor, "token d_model"],
    items: Int[Tensor, " item"],
    strength: float,
) -> None:
    """A constant query, and a key that is long for items only."""
    is_item = torch.zeros(len(shown), dtype=torch.float64)
    is_item[items] = 1
    towards = torch.linalg.pinv(shown) @ (is_item - 0.5)
    d_head = D_MODEL // N_HEADS
    unit = torch.ones(d_head, dtype=torch.float64) / d_head**0.5
    attention = hf_model.transformer.h[LAYER].attn
    query, key = (
        slice(part * D_MODEL + head * d_head, part * D_MODEL + (head + 1) * d_head)
        for part in (0, 1)
    )
    _mix(
        attention.c_attn.weight[:, query],
        torch.zeros(D_MODEL, d_head, dtype=torch.float64),
        strength,
    )
    _mix(attention.c_attn.bias[query], unit * _ATTENTION * d_head**0.5, strength)
    _mix(attention.c_attn.weight[:, key], towards[:, None] * unit, strength)


def _mix(weight: Tensor, planted: Tensor, strength: float) -> None:
    """Put `planted` in place of random weights; what is left of these is scaled to its norm, or
    power would be a step."""
    noise = weight * (planted.norm() / weight.norm().clamp_min(1e-12)).to(weight.dtype)
    weight.copy_((1 - strength) * noise + strength * planted.to(weight.dtype))
