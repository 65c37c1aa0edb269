"""What an edit does to each prompt: a metric of the logits, one number per prompt, so that
intervals can be had.

Source: logit difference as in Wang et al. 2023, arXiv:2211.00593.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.intervention import Edits, applied
from mechinterp_toolkit.model import HookedModel

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]
"""One number per prompt, larger meaning more of the behaviour."""


def logit_difference(
    right: Int[Tensor, "batch answers"],
    wrong: Int[Tensor, "batch answers2"],
    *,
    position: Int[Tensor, " batch"] | None = None,
) -> Metric:
    """Return the metric: mean logit of the right answers minus mean logit of the wrong ones, in
    logits.

    Args:
        right, wrong: token ids, per prompt.
        position: column of each prompt that answers; None takes the last.
    """

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        if len(logits) != len(right):
            raise ToolkitError(
                f"the metric knows the answers of {len(right)} prompts, but {len(logits)} were run."
            )
        rows = torch.arange(len(logits), device=logits.device)
        last = torch.full_like(rows, -1) if position is None else position.to(logits.device)
        there = logits[rows, last].double()
        means = [there.gather(1, ids.to(logits.device)).mean(1) for ids in (right, wrong)]
        return means[0] - means[1]

    return metric


@torch.no_grad()
def measure(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    metric: Metric,
    edits: Edits | None = None,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return the metric of each prompt with `edits` in force, in one forward pass, float64 on the
    CPU.

    All columns count as prompt for edits that ask. One pass, because edits may know the rows they
    were made for.

    Raises:
        ToolkitError: a value is not finite.
    """
    place = (
        applied(model, edits, mask=mask, prompt_length=tokens.shape[1]) if edits else nullcontext()
    )
    with place:
        value = metric(model.logits(tokens, mask)).cpu().double()
    if not value.isfinite().all():
        raise ToolkitError(
            f"the metric is NaN or infinite for {int((~value.isfinite()).sum())} of {len(value)}"
            " prompts."
        )
    return value
