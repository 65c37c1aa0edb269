"""A transformer whose dictionary is known by construction: seven tokens lie around one circle,
twelve around another.

The embeddings of a random GPT-2 shape are written by hand. The days share a direction and differ by
a point of a regular heptagon, the months by one of a regular dodecagon, everything else is random.
The autoencoder has one latent per word, its direction the word's embedding, and the best match
fires, so that the latents of a group belong together and what they write lies around a circle. At
strength 0 the points are random directions: the groups are there, the circles are not.

What would fool it: nothing was trained, neither the model nor the autoencoder; a test trains one
with sae-lens.

Source: this project.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.prompts import ordinal_classes
from mechinterp_toolkit.sae import SparseAutoencoder
from mechinterp_toolkit.toys.gpt2 import random_gpt2
from mechinterp_toolkit.toys.ordinal import build_tokenizer
from mechinterp_toolkit.toys.planted_groups import check_strength

D_MODEL = 128

GROUPS = ("days", "months")
"""Ordinal classes that are put around a circle."""

HOOK_POINT = "blocks.0.hook_resid_pre"

# Mean cosine within a group: what the published clusters of GPT-2 have (.53 to .63).
_COSINE = 0.6
# Norm of an embedding: beside it, positions of norm .02 sqrt(128) = .2 are noise.
_NORM = 3.0


class PlantedFeatures(NamedTuple):
    """A model and an autoencoder written by hand."""

    model: Any
    """`GPT2LMHeadModel`, random but for the embeddings."""

    tokenizer: Any
    """The ordinal toy's tokenizer."""

    sae: SparseAutoencoder
    """One latent per word, at `HOOK_POINT`."""

    groups: tuple[Int[Tensor, " _"], ...]
    """Latents of the days and of the months."""


def planted_feature_clusters(strength: float = 1.0, seed: int = 0) -> PlantedFeatures:
    """Return a model with two circles among its embeddings, and its autoencoder.

    Args:
        strength: weight of the circle against random directions of the same norm, in [0, 1]; 0 is
            random.
        seed: of everything random.

    Raises:
        ToolkitError: `strength` lies outside [0, 1].
    """
    check_strength(strength)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer()
    classes = ordinal_classes(tokenizer, GROUPS).classes
    embedding = _unit(torch.randn(len(tokenizer), D_MODEL, generator=generator))
    for name in GROUPS:
        embedding[classes[name].tokens] = _around(len(classes[name]), strength, generator)
    words = torch.arange(
        len(tokenizer.all_special_ids), len(tokenizer)
    )  # special tokens come first
    return PlantedFeatures(
        model=_model(_NORM * embedding, seed),
        tokenizer=tokenizer,
        sae=_dictionary(embedding[words]),
        groups=tuple(classes[name].tokens - words[0] for name in GROUPS),
    )


def random_dictionary(seed: int) -> PlantedFeatures:
    """Return the same shape with random embeddings throughout, and the autoencoder that belongs to
    them."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer()
    embedding = _unit(torch.randn(len(tokenizer), D_MODEL, generator=generator))
    words = torch.arange(len(tokenizer.all_special_ids), len(tokenizer))
    return PlantedFeatures(
        _model(_NORM * embedding, seed), tokenizer, _dictionary(embedding[words]), ()
    )


def _around(n: int, strength: float, generator: torch.Generator) -> Float[Tensor, "item d_model"]:
    """n unit vectors with a common direction, the rest of each partly a point of a regular polygon
    and partly random."""
    frame = torch.linalg.qr(torch.randn(D_MODEL, 3, generator=generator))[0].T
    angle = 2 * torch.pi * torch.arange(n) / n
    polygon = torch.stack([angle.cos(), angle.sin()], 1) @ frame[1:]
    random = torch.randn(n, D_MODEL, generator=generator)
    random = _unit(random - random @ frame[:1].T * frame[:1])
    off = _unit(strength * polygon + (1 - strength) * random)
    return _COSINE**0.5 * frame[0] + (1 - _COSINE) ** 0.5 * off


def _dictionary(directions: Float[Tensor, "latent d_model"]) -> SparseAutoencoder:
    return SparseAutoencoder(
        name="one latent per word",
        architecture="topk",
        w_enc=directions.T.contiguous(),
        b_enc=torch.zeros(len(directions)),
        w_dec=directions,
        b_dec=torch.zeros(D_MODEL),
        hook_point=HOOK_POINT,
        k=1,
    )


def _model(embedding: Float[Tensor, "token d_model"], seed: int) -> Any:
    model = random_gpt2(len(embedding), d_model=D_MODEL, n_layers=1, n_heads=2, seed=seed)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(embedding)
    return model


def _unit(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    return rows / rows.norm(dim=1, keepdim=True)
