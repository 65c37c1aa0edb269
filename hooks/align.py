"""Which direction, patched into another run, carries the answer with it? By gradient descent.

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

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.measure import Metric
from mechinterp_toolkit.hooks.patch import Place, PromptPairs
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.record import activations


@takes_model
def align_direction(
    model: HookedModel,
    pairs: PromptPairs,
    place: Place,
    metric: Metric,
    *,
    steps: int = 64,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> Float[Tensor, " d"]:
    """Return the unit direction whose patching raises the metric most: of all steps, the best.

    Args:
        pairs: prompts of which the source's metric is higher.
        place: where it is patched. Its direction is what training starts from, e.g. a principal
            component; without one it starts from a random direction.
        metric: one number per prompt, differentiable, e.g. `logit_difference`.
        steps: of Adam, all pairs in each.
        learning_rate: of Adam, on a vector that starts with norm 1.
        seed: of the start, where the place has no direction.

    Raises:
        ToolkitError: fewer than one step.

    >>> nice, foolish = torch.tensor([[1, 67, 107, 108, 25]]), torch.tensor([[1, 67, 107, 108, 49]])
    >>> place = Place("blocks.0.hook_resid_pre", positions=(4,))
    >>> metric = lambda logits: logits[:, -1, 60]
    >>> align_direction("toy/sentiment", PromptPairs(nice, foolish), place, metric, steps=2).shape
    torch.Size([64])
    """
    if steps < 1:
        raise ToolkitError(f"steps={steps}: a direction is found in one step or more.")
    source = activations(model, pairs.source, (place.hook_point,))[place.hook_point]
    start = place.direction
    if start is None:
        start = torch.randn(source.shape[-1], generator=torch.Generator().manual_seed(seed))
    vector = (start / start.norm()).to(model.device, torch.float32).requires_grad_()
    optimiser = torch.optim.Adam([vector], lr=learning_rate)
    best, highest = vector.detach().clone(), -torch.inf
    for _ in range(steps):
        with torch.enable_grad():
            edits = {place.hook_point: replace(place, direction=vector).patch(source)}
            with applied(model, edits, prompt_length=pairs.base.shape[1]):
                value = metric(model.logits(pairs.base)).mean()
            # Of the vector alone: a backward pass would leave gradients on the model's weights.
            (gradient,) = torch.autograd.grad(-value, vector)
        reached = float(value.detach())
        if reached > highest:
            best, highest = vector.detach().clone(), reached
        vector.grad = gradient
        optimiser.step()
    return (best / best.norm()).double().cpu()
