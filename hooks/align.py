"""Which direction, patched from one run into another, carries the answer with it? Found by gradient
descent.

Distributed alignment search in one dimension: the unit vector v is trained so that replacing a
token's component along v by that of the source prompt moves the metric from the base prompt's to
the source's. Unlike the directions of `steer_fit` it looks at what the model does, not at how
activations lie.

What would fool it: trained on few pairs it may find a direction that works on these alone, so judge
it on others; it may use a direction the model never does by itself (Makelov et al. 2023,
arXiv:2311.17030); and it may get stuck. On a model whose head reads one direction of a word, every
random start ended at directions that turn the head's attention away from the word: they close half
of the gap, from the wrong answer to none, and have no gradient left. Start from a candidate. A
random direction is too weak a control: one trained on pairs of which a random half is swapped
closes more of the gap.

Source: Geiger et al. 2024, Finding Alignments Between Interpretable Causal Variables and
Distributed Neural Representations, arXiv:2303.02536.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.measure import Metric
from mechinterp_toolkit.hooks.patch import PatchActivation
from mechinterp_toolkit.hooks.where import EVERYTHING, Where
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.record import activations


def align_direction(
    model: HookedModel,
    source: Int[Tensor, "batch pos"],
    base: Int[Tensor, "batch pos"],
    hook_point: str,
    metric: Metric,
    *,
    positions: tuple[int, ...] | Int[Tensor, "batch chosen"] | None = None,
    start: Float[Tensor, " d"] | None = None,
    steps: int = 64,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> Float[Tensor, " d"]:
    """Return the unit direction whose patching raises the metric most, of the steps of training the
    best.

    Args:
        source: prompts whose metric is higher; activations are taken from them.
        base: the prompts that are run; row by row of the same length.
        hook_point: one with an axis of features and no heads.
        metric: one number per prompt, differentiable, e.g. `logit_difference`.
        positions: tokens that are patched, see `Where.positions`; None patches all.
        start: direction to start from, e.g. a principal component; None draws one.
        steps: of Adam, all pairs in each.
        learning_rate: of Adam, on a vector that starts with norm 1.
        seed: of the start, where none is given.

    Raises:
        ToolkitError: fewer than one step.
    """
    if steps < 1:
        raise ToolkitError(f"steps={steps}: a direction is found in one step or more.")
    there = activations(model, source, (hook_point,))[hook_point]
    drawn = (
        torch.randn(there.shape[-1], generator=torch.Generator().manual_seed(seed))
        if start is None
        else start
    )
    vector = (drawn / drawn.norm()).to(model.device, torch.float32).requires_grad_()
    optimiser = torch.optim.Adam([vector], lr=learning_rate)
    where = EVERYTHING if positions is None else Where(positions=positions, bos=True)
    best, highest = vector.detach().clone(), -torch.inf
    for _ in range(steps):
        with torch.enable_grad():
            edit = PatchActivation(there, direction=vector, where=where)
            with applied(model, {hook_point: edit}, prompt_length=base.shape[1]):
                value = metric(model.logits(base)).mean()
            (gradient,) = torch.autograd.grad(-value, vector)
        reached = float(value.detach())
        if reached > highest:
            best, highest = vector.detach().clone(), reached
        vector.grad = gradient
        optimiser.step()
    return (best / best.norm()).double().cpu()
