"""What does a language model predict when no layer can read a concept linearly?

Concept scrubbing erases a concept from the normalised input of every sublayer, in the order they
run: each eraser is fitted on the model as the earlier ones have edited it, since what they remove
changes what later layers write. At the end every hooked site of the edited model has equal class
means. Blocks may be sequential (GPT-2) or parallel (GPT-NeoX), where both sublayers of a block read
the same stream through LayerNorms of their own.

What would fool it: erasing so many directions that any would hurt, hence random directions and
shuffled labels of equal rank; the guarantee holds on the tokens it was fitted on, all of them
together: what a class looks like at one position may still differ from what another looks like
there; and bits per byte say how much the model needs the concept, not what for.

Source: Belrose et al. 2023, LEACE, arXiv:2306.03819, section 6 (concept scrubbing).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable, ToolkitError, nearest
from mechinterp_toolkit.heads.weights import stands_before
from mechinterp_toolkit.hooks.erase import (
    ErasureMethod,
    LeaceEraser,
    LeaceFitter,
    random_eraser,
    shuffled_eraser,
)
from mechinterp_toolkit.intervention import Edits, applied
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.record import record
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

ScrubMethod = Literal["leace", "orth", "random", "shuffled"]
"""LEACE; its orthogonal variant; as many random directions; LEACE of labels without meaning."""

_FLOAT64 = 8  # bytes


@dataclass(frozen=True)
class ScrubbedModel:
    """What `scrub` made: an eraser for every sublayer's input, to be applied together."""

    erasers: Mapping[str, LeaceEraser]
    """Hook point -> eraser, in the order the model runs them; itself what `applied` takes."""

    method: ScrubMethod
    """How they were fitted."""

    rank: Mapping[str, int]
    """Directions erased at each site."""

    n: int
    """Tokens each eraser was fitted on."""


@takes_model
def scrub_sites(model: HookedModel) -> tuple[str, ...]:
    """Return the normalised input of every sublayer, in the order they run.

    Raises:
        NotApplicable: the model is no transformer with normalised sublayers.

    >>> scrub_sites("toy/sentiment")[:2]
    ('blocks.0.ln1.hook_normalized', 'blocks.0.ln2.hook_normalized')
    """
    if not model.is_transformer:
        raise NotApplicable(
            f"{model.provenance.checkpoint} has no sublayers to scrub: it is no transformer."
        )
    names = [
        f"blocks.{layer}.{norm}.hook_normalized"
        for layer in range(model.cfg.n_layers)
        for norm in ("ln1", "ln2")
        if stands_before(model, layer, norm)
    ]
    sites = tuple(name for name in names if name in model.hook_points)
    if not sites:
        raise NotApplicable(
            f"{model.provenance.checkpoint} has no norm in front of its sublayers; concepts are"
            " scrubbed from their normalised input."
        )
    return sites


@takes_model
def scrub_memory(model: HookedModel, z_dim: int) -> int:
    """Return about how many bytes `scrub` holds beside the model: moments of a site, and erasers.

    >>> scrub_memory("toy/sentiment", 2)
    139392
    """
    d = model.cfg.d_model
    moments = _FLOAT64 * (d * d + d * z_dim + z_dim * z_dim)
    return 4 * moments + len(scrub_sites(model)) * 2 * _FLOAT64 * d * max(z_dim - 1, 1)


@takes_model
def scrub(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    labels: Int[Tensor, "batch pos"],
    z_dim: int,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    method: ScrubMethod = "leace",
    batch_size: int = 64,
    seed: int = 0,
) -> ScrubbedModel:
    """Fit an eraser at every sublayer's input, each on the model edited by the ones before it.

    Costs one pass over the tokens per sublayer; `scrub_memory` says beforehand what is held.

    Args:
        tokens: text; right-padded, or with `mask`.
        labels: class of each token, 0 to z_dim - 1; -1 where it has none: it is read and edited,
            and no eraser is fitted on it.
        z_dim: number of classes.
        mask: True at real tokens, False at padding: the model's attention mask.
        method: of all erasers; "random" and "shuffled" erase as many directions as LEACE would at
            the same site.
        batch_size: prompts per forward pass.
        seed: of the controls.

    Raises:
        NotApplicable: as `scrub_sites`.
        ToolkitError: labels of another shape, fewer than two classes with tokens, or an unknown
            method.

    >>> tokens = torch.tensor([[1, 67, 107, 108, 25], [1, 78, 79, 80, 57]])
    >>> set(scrub("toy/sentiment", tokens, tokens % 2, 2).rank.values())
    {1}
    """
    known = get_args(ScrubMethod)
    if method not in known:
        raise ToolkitError(
            f"method is one of {', '.join(known)}, not {method!r}.{nearest(method, known)}"
        )
    if labels.shape != tokens.shape:
        raise ToolkitError(
            f"labels have shape {tuple(labels.shape)}, tokens {tuple(tokens.shape)}; give one label"
            " per token."
        )
    erasers: dict[str, LeaceEraser] = {}
    projection: ErasureMethod = "orth" if method == "orth" else "leace"
    for i, site in enumerate(scrub_sites(model)):
        fitter = LeaceFitter(model.cfg.d_model, z_dim, method=projection)
        into = {site: _WithClass(fitter)}
        record(model, tokens, into, mask=mask, labels=labels, edits=erasers, batch_size=batch_size)
        erasers[site] = _eraser(fitter, method, seed + i)
    rank = {site: eraser.rank for site, eraser in erasers.items()}
    return ScrubbedModel(erasers, method, rank, fitter.n)


@takes_model
def bits_per_byte(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    n_bytes: Int[Tensor, " batch"],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    edits: Edits | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Estimate:
    """Estimate the cross-entropy of the next token in bits per byte of text.

    Args:
        tokens: text; right-padded, or with `mask`.
        n_bytes: bytes of text that the predicted tokens of each prompt stand for (UTF-8), the first
            token's not among them.
        mask: True at real tokens.
        edits: edits in place, e.g. `ScrubbedModel.erasers`.
        batch_size: prompts per forward pass.
        seed: of the interval, which resamples prompts.

    Raises:
        ToolkitError: a prompt without bytes.

    >>> tokens = torch.tensor([[1, 67, 107, 108, 25], [1, 78, 79, 80, 57]])  # The game looks nice
    >>> bits_per_byte("toy/sentiment", tokens, torch.tensor([19, 21])).unit
    'bits per byte'
    """
    if bool((n_bytes <= 0).any()):
        raise ToolkitError(
            f"{int((n_bytes <= 0).sum())} prompts have no bytes of text; leave them out."
        )
    bits = []
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        bits.append(_bits(model, tokens[rows], None if mask is None else mask[rows], edits))
    return bootstrap(
        torch.stack([torch.cat(bits), n_bytes.double()], 1),
        unit_name="prompts",
        measured="bits per byte",
        seed=seed,
        statistic=lambda values, weights: (weights @ values[:, 0]) / (weights @ values[:, 1]),
    )


@dataclass(frozen=True)
class _WithClass:
    """Hands on to a fitter the rows that have a class, those of label -1 left out."""

    fitter: LeaceFitter

    def update(self, x: Tensor, z: Tensor | None = None, mask: Tensor | None = None) -> None:
        assert z is not None
        has_class = (z >= 0).to(x.device)
        self.fitter.update(x, z.clamp(min=0), has_class if mask is None else has_class & mask)


def _eraser(fitter: LeaceFitter, method: ScrubMethod, seed: int) -> LeaceEraser:
    if method == "random":
        return random_eraser(fitter.x_dim, fitter.eraser.rank, mean=fitter.mean_x, seed=seed)
    if method == "shuffled":
        return shuffled_eraser(fitter, seed=seed, matched=False)
    return fitter.eraser


@torch.no_grad()
def _bits(
    model: HookedModel, tokens: Tensor, mask: Tensor | None, edits: Edits | None
) -> Float[Tensor, " batch"]:
    """Bits of all next tokens of each prompt."""
    with applied(model, edits or {}, mask=mask):
        logits = model.logits(tokens, mask).double().cpu()
    predicted, following = logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    nats = torch.nn.functional.cross_entropy(predicted, following, reduction="none")
    nats = nats.reshape(len(tokens), -1)
    return (nats if mask is None else nats * mask[:, 1:]).sum(1) / math.log(2)
