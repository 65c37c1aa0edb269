"""Which heads attend to the token before?

A head's score is the attention from each position to the one before it, averaged over positions and
random prompts. The control takes a random earlier position instead, one draw for all heads, and a
head has to beat the largest score of any head there. Attention is only read here, so whether the
model uses such a head stays open.

What would fool it: a head that looks one back only in real text, which random tokens do not show.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit import Estimate, Finding, HookedModel, Verdict, analysis
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.stats import bootstrap, max_statistic_p

# a head that gives the token before less than half of its attention is doing something else
SMALLEST = 0.5


@dataclass(frozen=True)
class PreviousTokenHeads(Finding):
    """Result of `previous_token_heads`."""

    score: Estimate
    """Mean attention to the position before, per layer and head, in [0, 1]."""

    @property
    def p(self) -> Float[Tensor, "layer head"]:
        """p-value of each head, corrected for looking at all of them."""
        return max_statistic_p(self.score.value, self.score.control)

    @property
    def found(self) -> list[tuple[int, int]]:
        """`(layer, head)` of each previous-token head, strongest first."""
        passed = ((self.p <= 0.05) & (self.score.low >= SMALLEST)).nonzero().tolist()
        return sorted(map(tuple, passed), key=lambda at: -self.score.value[at])

    @property
    def effect(self) -> Estimate:
        at = divmod(int(self.score.value.argmax()), self.score.value.shape[1])
        value, low, high = (x[at] for x in (self.score.value, self.score.low, self.score.high))
        control = self.score.control.amax((1, 2))
        name = f"largest score of any head, {self.score.control_name}"
        return Estimate(
            value, low, high, self.score.n, self.score.unit, self.score.method, control, name
        )

    @property
    def represented(self) -> Verdict:
        p, best = float(self.p.min()), f"the strongest head scores {self.effect.text()}"
        if self.found:
            return Verdict(
                "found",
                f"{len(self.found)} heads attend to the token before; {best}",
                p,
                0.05,
                SMALLEST,
            )
        if self.effect.high < SMALLEST:
            return Verdict(
                "not_found",
                f"no head gives the token before half of its attention; {best}",
                p,
                0.05,
                SMALLEST,
            )
        return Verdict(
            "undecided", f"{best}, too unsure for or against {SMALLEST}", p, 0.05, SMALLEST
        )

    @property
    def used(self) -> Verdict:
        return Verdict("undecided", "attention was read and nothing was edited")

    @property
    def locations(self) -> tuple[str, ...]:
        return tuple(f"L{layer}H{head}" for layer, head in self.found)

    def answer(self) -> str:
        return (
            f"{self.represented.reason} (n = {self.score.n} prompts; control"
            f" {self.effect.control_text()})."
        )

    def causal_check(self) -> str:
        return "None was made: this analysis reads attention and edits nothing."


def needs_attention(model: HookedModel) -> str | None:
    """Return why `model` has no previous-token heads to look for, or None."""
    return None if model.is_transformer else "it has no attention heads."


@analysis(
    question="Which heads attend to the token before?",
    paper="Elhage et al. 2021",
    applies=needs_attention,
)
def previous_token_heads(
    model: HookedModel, *, prompts: int = 32, length: int = 16, draws: int = 199, seed: int = 0
) -> PreviousTokenHeads:
    """Score every head on random tokens; see the module's docstring."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(
        model.cfg.d_vocab, (prompts, min(length, model.cfg.n_ctx)), generator=generator
    )
    names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers))
    pattern = torch.stack(
        [*activations(model, tokens, names).values()], dim=1
    )  # prompt layer head query key

    query = torch.arange(1, tokens.shape[1])
    earlier = ((torch.rand(len(query), generator=generator) * query).long() for _ in range(draws))
    return PreviousTokenHeads(
        bootstrap(
            pattern[..., query, query - 1].mean(-1),
            unit_name="prompts",
            measured="attention, in [0, 1]",
            seed=seed,
            axes=("layer", "head"),
            control=torch.stack([pattern[..., query, key].mean((0, -1)) for key in earlier]),
            control_name="a random earlier position",
        )
    )


def heads(checkpoints: list[str]) -> None:
    """Print the previous-token heads of each checkpoint, strongest first."""
    for checkpoint in checkpoints:
        print(*previous_token_heads(checkpoint).locations or ["none"])
