"""Classifier-free guidance and negative prompts at generation, with any edit inside.

log p is the unconditional branch's plus g times what the prompt adds to it: g = 1 is ordinary
generation, 0 leaves the prompt out, above 1 follows it more closely, below 0 turns away from it.
With a negative prompt the other branch reads that instead. Both branches run as one batch; edits
can act on one of them: `Where(group=CONDITIONAL)`.

What would fool it: a large g lowers the entropy and harms long chains of reasoning (1.25 to 1.5 did
best in the paper); two prompts of different lengths put the same generated token at different
positions in the two branches.

Source: Sanchez et al. 2023, arXiv:2306.17806.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.generate import Decoding, check_left_padded
from mechinterp_toolkit.intervention import Edits
from mechinterp_toolkit.model import HookedModel, takes_model

CONDITIONAL, UNCONDITIONAL = 0, 1
"""Row groups of the two branches, for `Where(group=...)`: the prompt's own, and the one it is
compared with."""


@takes_model
def generate_guided(
    model: HookedModel,
    /,
    tokens: Int[Tensor, "batch pos"],
    scale: float,
    edits: Edits | None = None,
    *,
    negative: Int[Tensor, "batch pos2"] | None = None,
    mask: Bool[Tensor, "batch pos"] | None = None,
    negative_mask: Bool[Tensor, "batch pos2"] | None = None,
    **decoding: Any,
) -> Int[Tensor, "batch new"]:
    """Return the tokens that follow each prompt under guidance.

    Args:
        tokens: prompts, left-padded where they differ in length.
        scale: g above.
        edits: hook name -> edit, in force in both branches unless an edit names one. What an edit
            knows row by row (`Where(positions=...)`) it has to know of both branches, those of
            `tokens` first.
        negative: negative prompts, left-padded; None takes the last token of each prompt alone, as
            in the paper.
        mask, negative_mask: True at real tokens; needed where there is padding.
        **decoding: as for `generate`. Sampling draws from the guided distribution.

    Raises:
        ToolkitError: as `generate`; also a scale that is not finite, or `negative_mask` without
            `negative`.
        HookError: see `applied`; nothing is left on the model.

    >>> nice = torch.tensor([[1, 67, 106, 107, 108, 25, 60, 109, 105, 64, 55, 110, 62, 77]])
    >>> generate_guided("toy/sentiment", nice, 1.5, max_new_tokens=1).shape
    torch.Size([1, 1])
    """
    if not math.isfinite(scale):
        raise ToolkitError(
            f"got scale={scale}; expected a finite number, 1 for ordinary generation."
        )
    if negative is None and negative_mask is not None:
        raise ToolkitError(
            "negative_mask was given without negative; give the negative prompts too."
        )
    other = tokens[:, -1:] if negative is None else negative
    branches = (tokens, mask), (other, negative_mask)
    for branch in branches:
        check_left_padded(*branch)
    both, real = _stacked(branches)
    group = torch.tensor([CONDITIONAL, UNCONDITIONAL]).repeat_interleave(len(tokens))

    def combine(logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        conditional, unconditional = logits.chunk(2)
        return guided_log_probabilities(conditional, unconditional, scale)

    options = Decoding(**decoding)
    return options.run(model, both, real, edits or {}, group=group, combine=combine, copies=2)


def guided_log_probabilities(
    conditional: Float[Tensor, "batch d_vocab"],
    unconditional: Float[Tensor, "batch d_vocab"],
    scale: float,
) -> Float[Tensor, "batch d_vocab"]:
    """Return log p_u + scale (log p_c - log p_u) in nats, from logits; not normalised anew.

    >>> logits = torch.tensor([[0.0, 0.0], [1.0, -1.0]])  # sure of nothing, and of the first token
    >>> guided = guided_log_probabilities(logits[1:], logits[:1], 2.0)
    >>> round((guided[0, 0] - guided[0, 1]).item(), 4)  # twice the 2 of the conditional branch
    4.0
    """
    ours, other = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    return other + scale * (ours - other)


def _stacked(branches: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """One left-padded batch of the branches below each other, and its mask."""
    width = max(tokens.shape[1] for tokens, _ in branches)
    rows, masks = [], []
    for tokens, mask in branches:
        own = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(tokens.device)
        fill = (width - tokens.shape[1], 0)
        rows.append(nn.functional.pad(tokens, fill, value=int(tokens[0, -1])))  # any token will do
        masks.append(nn.functional.pad(own, fill, value=False))
    return torch.cat(rows), torch.cat(masks)
