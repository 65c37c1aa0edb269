"""What does an edit do to each prompt? A metric of the logits: one number each, for intervals.

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
from mechinterp_toolkit.model import HookedModel, takes_model

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]
"""One number per prompt, larger meaning more of the behaviour."""


def logit_difference(
    right: Int[Tensor, "batch answers"],
    wrong: Int[Tensor, "batch answers2"],
    *,
    position: Int[Tensor, " batch"] | None = None,
) -> Metric:
    """Return the metric: mean logit of the right answers minus that of the wrong ones.

    Args:
        right, wrong: token ids, per prompt.
        position: column of each prompt that answers; None takes the last.

    >>> metric = logit_difference(right=torch.tensor([[0, 1]]), wrong=torch.tensor([[2]]))
    >>> metric(torch.tensor([[[9.0, 9.0, 9.0], [4.0, 2.0, 1.0]]]))
    tensor([2.], dtype=torch.float64)
    """

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        if len(logits) != len(right):
            raise ToolkitError(
                f"the metric knows the answers of {len(right)} prompts, but {len(logits)} were run."
            )
        rows = torch.arange(len(logits), device=logits.device)
        last = torch.full_like(rows, -1) if position is None else position.to(logits.device)
        answering = logits[rows, last].double()
        means = [answering.gather(1, ids.to(logits.device)).mean(1) for ids in (right, wrong)]
        return means[0] - means[1]

    return metric


@takes_model
@torch.no_grad()
def measure(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    metric: Metric,
    edits: Edits | None = None,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return the metric of each prompt with `edits` in force, float64 on the CPU.

    All columns count as prompt for edits that ask. Prompts run in one pass, because edits may know
    the rows they were made for.

    Raises:
        ToolkitError: a value is not finite.
        HookError: see `applied`.

    >>> from mechinterp_toolkit import load_model
    >>> toy = load_model("toy/sentiment")
    >>> text = "<bos> The new game looks nice, people say. I think it is"
    >>> tokens = toy.tokenizer.encode(text, return_tensors="pt")
    >>> good, bad = (torch.tensor([[token]]) for token in toy.tokenizer.encode("good bad"))
    >>> metric = logit_difference(good, bad)
    >>> edits = {"blocks.0.attn.hook_z": lambda activation, hook: torch.zeros_like(activation)}
    >>> for placed in ({}, edits):  # in logits
    ...     print(round(measure(toy, tokens, metric, placed).item(), 1))
    7.5
    0.3
    """
    place = (
        applied(model, edits, mask=mask, prompt_length=tokens.shape[1]) if edits else nullcontext()
    )
    with place:
        value = metric(model.logits(tokens, mask)).cpu().double()
    broken = int((~value.isfinite()).sum())
    if broken:
        raise ToolkitError(f"the metric is NaN or infinite for {broken} of {len(value)} prompts.")
    return value
