"""Which heads attend to the token before?

A head's score is its attention from each position to the one before, averaged over random tokens.
The control takes a random earlier position instead, one draw for all heads.

What would fool it: a head that looks one back only in real text, which random tokens do not show;
and one that does so for nothing, since what it reads may be of no use.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
"""

from dataclasses import dataclass

import torch

from mechinterp_toolkit import Estimate, Finding, HookedModel, analysis
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.stats import bootstrap


@dataclass(frozen=True)
class PreviousTokenHeads(Finding):
    """Result of `previous_token_heads`."""

    score: Estimate
    """Mean attention to the position before, by layer and head, in [0, 1]."""

    smallest_effect = 0.5  # what gives it less than half of its attention does something else


@analysis(
    question="Which heads attend to the token before?",
    paper="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
    applies=lambda model: None if model.is_transformer else "it has no attention heads.",
)
def previous_token_heads(
    model: HookedModel, *, draws: int = 199, seed: int = 0
) -> PreviousTokenHeads:
    """Score every head on random tokens; see the module's docstring.

    Args:
        draws: of random earlier positions, behind the control.
        seed: of all that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(16, model.cfg.n_ctx)
    tokens = torch.randint(model.cfg.d_vocab, (32, length), generator=generator)
    names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers))
    pattern = torch.stack([*activations(model, tokens, names).values()], dim=1)

    query = torch.arange(1, length)  # pattern is [prompt layer head query key]
    earlier = (torch.rand(draws, length - 1, generator=generator) * query).long()
    score = bootstrap(
        pattern[..., query, query - 1].mean(-1),
        unit_name="prompts",
        measured="attention, in [0, 1]",
        seed=seed,
        axes=("layer", "head"),
        control=torch.stack([pattern[..., query, key].mean((0, -1)) for key in earlier]),
        control_name="a random earlier position",
    )
    return PreviousTokenHeads(score)
