"""What each toy is trained to do, and how: plain data, so that listing the recipes costs no torch.

A recipe plus a seed determines a toy on one machine. `GroupRecipe` is a one-hidden-layer network
that learns a group's multiplication table, `OrdinalRecipe` a two-layer GPT-2 shape that learns
"which item comes after this one", `AdditionRecipe` a one-layer GPT-2 shape that learns to add, and
`SentimentRecipe` a two-layer one that ends sentences by their adjective.

Source: the group recipe follows Wu et al. 2024, arXiv:2410.07476 (Adam, learning rate 1e-2, L2
2e-4), which generalises hundreds of times sooner than AdamW with weight decay 1 (Chughtai et al.
2023, arXiv:2302.03025). The other recipes are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mechinterp_toolkit.errors import ToolkitError, nearest

Activation = Literal["relu", "quadratic", "abs", "gelu"]


@dataclass(frozen=True)
class GroupRecipe:
    """Full-batch training of a group network on part of a Cayley table."""

    name: str
    """Name for `mechinterp train`."""

    group: str
    """Name understood by `groups.group_by_name`."""

    steps: int
    """Full-batch steps."""

    history: tuple[int, ...]
    """Steps whose weights are kept, step 0 being the initial weights."""

    d_embed: int = 256
    """Width of either embedding. On S_5, 256 generalised within 800 steps, 128 within 1000, 64 not
    within 600."""

    d_hidden: int = 128
    """Hidden neurons."""

    activation: Activation = "relu"
    """Nonlinearity of the hidden layer."""

    architecture: Literal["mlp", "transformer"] = "mlp"
    """`GroupMLP`, or `GroupTransformer` with d_embed its residual stream and d_hidden its neurons.
    """

    train_fraction: float = 0.4
    """Fraction of the Cayley table trained on, drawn by the seed; the rest is the test set."""

    learning_rate: float = 1e-2
    """Adam's learning rate."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's decay rates."""

    l2: float = 2e-4
    """L2 penalty coupled to the gradient (Adam's `weight_decay`, not AdamW's)."""


@dataclass(frozen=True)
class OrdinalRecipe:
    """Training of a two-layer GPT-2 shape on "item, noise words, query"."""

    name: str
    """Name for `mechinterp train`."""

    frozen: tuple[str, ...]
    """Output layers that are zero and stay so, as modules of the Hugging Face model."""

    copying_heads: bool = False
    """Whether the heads of block 1 can only copy: their OV circuits are fixed projections that add
    up to the identity."""

    scrambled: bool = False
    """Whether the items of each class stand in an order drawn by the seed."""

    steps: int = 1000
    """Optimiser steps."""

    history: tuple[int, ...] = ()
    """Steps whose weights are kept, step 0 being the initial weights."""

    d_model: int = 96
    """Width of the residual stream."""

    n_heads: int = 4
    """Heads per block."""

    d_mlp: int = 192
    """Neurons per MLP."""

    n_positions: int = 32
    """Learned positions; training sees the first eight."""

    batch: int = 256
    """Prompts per step."""

    most_noise: int = 5
    """Each step draws its number of noise words from 0 to this."""

    learning_rate: float = 2e-3
    """Learning rate."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the moments."""

    optimiser: Literal["Adam", "AdamW"] = "Adam"
    """Adam couples `weight_decay` to the gradient (an L2 penalty), which leaves one head per job;
    AdamW does not."""

    weight_decay: float = 4e-3
    """Weight decay, in the optimiser's own sense."""


@dataclass(frozen=True)
class AdditionRecipe:
    """Full-batch training of a one-layer GPT-2 shape on part of the sums "a + b ="."""

    name: str
    """Name for `mechinterp train`."""

    operands: int
    """a and b run from 0 to one less."""

    modulus: int | None
    """The answer is a + b reduced by this; None leaves the sum as it is."""

    steps: int
    """Full-batch steps."""

    train_fraction: float
    """Fraction of all pairs trained on, drawn by the seed; the rest is the test set."""

    d_model: int = 64
    """Width of the residual stream."""

    n_heads: int = 4
    """Heads."""

    d_mlp: int = 256
    """Neurons."""

    n_positions: int = 8
    """Learned positions; training sees the first five."""

    learning_rate: float = 3e-3
    """AdamW's learning rate at its highest."""

    warmup: int = 10
    """Steps in which the learning rate rises to that."""

    decay_share: float = 0.3
    """Share of the steps, the last ones, in which it falls to 0: under weight decay the loss has
    spikes, and ends low so."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the moments."""

    weight_decay: float = 0.5
    """AdamW's weight decay, of all parameters."""


@dataclass(frozen=True)
class SentimentRecipe:
    """Training of a two-layer GPT-2 shape as a language model on sentences that end by the
    sentiment of their adjective."""

    name: str
    """Name for `mechinterp train`."""

    steps: int = 600
    """Optimiser steps."""

    d_model: int = 64
    """Width of the residual stream."""

    n_heads: int = 4
    """Heads per block."""

    d_mlp: int = 128
    """Neurons per MLP."""

    batch: int = 64
    """Sentences per step."""

    learning_rate: float = 2e-3
    """Adam's learning rate."""

    answer_weight: float = 1.0
    """Weight of the answers' loss beside that of all tokens."""

    l2: float = 1e-4
    """L2 penalty coupled to the gradient."""


_ATTENTION_0, _MLP_0, _MLP_1 = (
    f"transformer.h.{layer}.c_proj" for layer in ("0.attn", "0.mlp", "1.mlp")
)

Recipe = GroupRecipe | OrdinalRecipe | AdditionRecipe | SentimentRecipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        GroupRecipe("s5", group="S5", steps=800, history=(0, 200, 400, 500, 550, 600)),
        GroupRecipe("z113", group="Z113", steps=600, history=(0, 200, 300)),
        # The same as s5; its bundled weights are those of seed 3, which learns (2,2,1) and the
        # cosets of F20 besides.
        GroupRecipe("s5-seed3", group="S5", steps=800, history=()),
        # Not bundled: the published width and fraction. A step holds 129,600 x 720 logits, some GB,
        # and takes seconds.
        GroupRecipe(
            "s6", group="S6", steps=2000, history=(), d_embed=512, d_hidden=256, train_fraction=0.25
        ),
        GroupRecipe("a5", group="A5", steps=800, history=(200,), d_embed=128, train_fraction=0.5),
        GroupRecipe("d59", group="D59", steps=600, history=(200,), d_embed=128),
        # Without L2 the same network memorises: every training pair right, no other one. The
        # negative control.
        GroupRecipe(
            "a5-memorised",
            group="A5",
            steps=300,
            history=(),
            d_embed=128,
            train_fraction=0.5,
            l2=0.0,
        ),
        GroupRecipe(
            "z113-transformer",
            group="Z113",
            steps=500,
            history=(100, 200),
            d_embed=64,
            d_hidden=256,
            architecture="transformer",
            learning_rate=5e-3,
        ),
        OrdinalRecipe("ordinal", frozen=(_ATTENTION_0, _MLP_1), history=(0, 100, 200)),
        OrdinalRecipe("ordinal-mlp", frozen=(_ATTENTION_0, _MLP_0), copying_heads=True),
        OrdinalRecipe("ordinal-scrambled", frozen=(_ATTENTION_0, _MLP_1), scrambled=True),
        # Bundled are seed 0 of `addition` and seed 2 of `addition-mod`, chosen among a few that add
        # as well, because they have a period near a whole number (2, and 59/12): which periods a
        # network finds, rounding decides as much as the seed.
        AdditionRecipe("addition", operands=50, modulus=None, steps=4000, train_fraction=0.75),
        AdditionRecipe(
            "addition-mod",
            operands=59,
            modulus=59,
            steps=1500,
            train_fraction=0.5,
            learning_rate=2e-3,
            decay_share=0.4,
            weight_decay=1.0,
        ),
        SentimentRecipe("sentiment"),
    )
}
"""Every toy that can be trained, by name."""


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`; the prefix `toy/` of bundled checkpoints is allowed.

    Raises:
        ToolkitError: there is no such recipe.
    """
    short = name.removeprefix("toy/")
    if short not in RECIPES:
        raise ToolkitError(
            f"no toy is called {name!r}.{nearest(short, RECIPES)} There are {', '.join(RECIPES)}."
        )
    return RECIPES[short]
