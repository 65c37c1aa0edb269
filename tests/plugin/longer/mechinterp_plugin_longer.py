"""Which heads copy the token before?

Everything an analysis may add to the short example: a causal check with a verdict of its own,
caveats, a picture, null models and planted ones, and a sub-command. Heads are sought by their
attention to the position before. *Used*: where those found attend evenly instead, the logit of the
token before falls further than that of random earlier tokens.

What would fool it: a head that looks one back only in real text, which random tokens do not show;
and later heads that make up for an edited one, so that nothing falls.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit import (
    Estimate,
    Finding,
    HookedModel,
    Verdict,
    analysis,
    applied,
    load_model,
    plots,
)
from mechinterp_toolkit.intervention import Edit
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted
from mechinterp_toolkit.stats import bootstrap, judge_effect
from mechinterp_toolkit.toys.gpt2 import random_gpt2, write_head

SMALLEST_FALL = 0.1
"""Logits: what falls by less is of no interest."""


@dataclass(frozen=True)
class CopyingHeads(Finding):
    """Result of `copying_heads`."""

    score: Estimate
    """Mean attention to the position before, by layer and head, in [0, 1]."""

    pattern: Float[Tensor, "query key"]
    """Mean attention of the strongest head, in [0, 1]."""

    fall: Estimate | None
    """Fall of the logit of the token before, in logits; None where no head was found to edit."""

    smallest_effect = 0.5

    @property
    def used(self) -> Verdict:
        if self.fall is None:
            return Verdict("not_applicable", "No head was found, so none was edited.")
        statement = f"Attending evenly takes {self.fall.text()} logits from the token before"
        return judge_effect(self.fall, statement, "from random earlier tokens", SMALLEST_FALL)

    def causal_check(self) -> str:
        if self.fall is None:
            return self.used.reason
        heads, control = ", ".join(self.locations), self.fall.control_text()
        return f"At {heads}: {self.used.reason} Control: {control}."

    @property
    def caveats(self) -> tuple[str, ...]:
        return (*super().caveats, "Heads that only copy in real text are not seen.")

    def figures(self) -> dict[str, Any]:
        title = "Attention of the strongest head"
        positions = [str(i) for i in range(len(self.pattern))]
        figure = plots.matrix(
            self.pattern, positions, positions, title=title, row_title="query", col_title="key"
        )
        return {**super().figures(), title: figure}


def needs_attention(model: HookedModel) -> str | None:
    """Return why `model` has no heads to look for, or None."""
    return None if model.is_transformer else "it has no attention heads."


def planted(strength: float, seed: int) -> Planted:
    """A model in which head 1.1 copies the token before: fully at 1, not at all at 0."""
    return Planted(load_model(copying_gpt2(strength, seed)), ("1.1",), {})


TWINS = {
    "random weights": lambda seed: load_model(copying_gpt2(1.0, seed)).random_twin(seed),
    "scrambled": lambda seed: load_model(copying_gpt2(1.0, seed, scrambled=True)),
}


@analysis(
    question="Which heads copy the token before?",
    paper="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
    applies=needs_attention,
    planted=planted,
    twins=TWINS,
)
def copying_heads(model: HookedModel, *, draws: int = 199, seed: int = 0) -> CopyingHeads:
    """Score every head on random tokens, and edit those that pass.

    Args:
        draws: of random earlier positions, behind both controls.
        seed: of all that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(16, model.cfg.n_ctx)
    tokens = torch.randint(model.cfg.d_vocab, (32, length), generator=generator)
    names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers))
    pattern = torch.stack([*activations(model, tokens, names).values()], dim=1)
    query = torch.arange(1, length)
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
    passing = ((score.p() <= 0.05) & (score.low >= CopyingHeads.smallest_effect)).nonzero().tolist()
    edits: dict[str, list[Edit]] = {}
    for layer, head in passing:
        edits.setdefault(names[layer], []).append(attend_evenly(head))
    strongest = divmod(int(score.value.argmax()), model.cfg.n_heads)
    return CopyingHeads(
        score,
        pattern[:, strongest[0], strongest[1]].mean(0),
        fall_of_earlier(model, tokens, edits, earlier, seed) if edits else None,
    )


def attend_evenly(head: int) -> Edit:
    """Return an edit of attention patterns: `head` attends to all earlier positions alike."""

    def edit(pattern: Float[Tensor, "batch head query key"], hook: Any) -> Tensor:
        even = torch.ones_like(pattern[:, head]).tril()
        edited = pattern.clone()
        edited[:, head] = even / even.sum(-1, keepdim=True)
        return edited

    return edit


def fall_of_earlier(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    edits: Mapping[str, list[Edit]],
    earlier: Int[Tensor, "draw query"],
    seed: int,
) -> Estimate:
    """Return how far the centred logit of the token before falls, and that of earlier tokens."""
    before = model.logits(tokens)
    with applied(model, edits):
        after = model.logits(tokens)
    fall = (before - after).cpu().double()
    fall -= fall.mean(-1, keepdim=True)
    query = torch.arange(1, tokens.shape[1])
    by_key = fall[:, query].gather(-1, tokens[:, None].expand(-1, len(query), -1))
    rows = query - 1
    return bootstrap(
        by_key[:, rows, query - 1].mean(-1),
        unit_name="prompts",
        measured="logits",
        seed=seed,
        control=torch.stack([by_key[:, rows, key].mean() for key in earlier]),
        control_name="a random earlier token",
    )


def copying_gpt2(strength: float, seed: int, *, scrambled: bool = False) -> Any:
    """Return a GPT-2 in which head 1.1 alone does something: it copies the token before.

    Each position and each token has a dimension of its own.

    Args:
        strength: of its attention, from even at 0.
        seed: of the random model that it is written into, and of what is scrambled.
        scrambled: it copies the token of one random earlier position instead, drawn per position.
    """
    size = 16
    model = random_gpt2(size, d_model=2 * size, n_layers=2, n_heads=2, seed=seed, n_positions=size)
    generator = torch.Generator().manual_seed(seed)
    source = (torch.arange(size) - 1).clamp(min=0)
    if scrambled:
        source = (torch.rand(size, generator=generator) * torch.arange(size)).long()
    eye, nothing = torch.eye(size), torch.zeros(size, size)
    with torch.no_grad():
        for block in model.transformer.h:
            for parameter in (*block.attn.parameters(), *block.mlp.parameters()):
                parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.cat([eye, nothing], 1))
        model.transformer.wte.weight.copy_(torch.cat([nothing, eye], 1))
    # Behind the LayerNorm each 1 is about 4: at full strength a match scores 4 * 4 * 2 / sqrt(16).
    write_head(
        model,
        1,
        1,
        query=torch.cat([2 * strength * eye, nothing]),
        query_bias=torch.zeros(size),
        key=torch.cat([eye[source].T, nothing]),
        value=torch.cat([nothing, eye]),
        output=torch.cat([nothing, eye], 1),
    )
    return model


def heads(checkpoints: list[str]) -> None:
    """Print the copying heads of each checkpoint, strongest first."""
    for checkpoint in checkpoints:
        print(*copying_heads(checkpoint).locations or ["none"])
