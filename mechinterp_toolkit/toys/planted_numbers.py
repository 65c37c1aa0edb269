"""Transformers that add by a Clock, written by hand: numbers on a helix, two heads that copy, an
MLP that builds the sum.

Prompts are "a + b =". The embedding of a number is its helix. In block 0 one head copies the helix
of a to the last token, another that of b; the MLP of block 1 turns both into waves of a + b; the
MLP of block 2 turns these into the answer's embedding. MLPs have random first layers and second
layers fitted by least squares, so what passes between blocks is known and how the neurons do it is
not. `planted_adder` answers a + b; `planted_calendar` answers (a + b) mod 12 and has the same
embeddings whatever passes between the blocks: waves of period 12, or the unreduced sum in base 10.

What would fool it: the second layers are fitted to all pairs there are, so nothing is held out; on
numbers without a helix (strength 0) they can only fit a part.

Source: this project; the mechanism is that of Nanda et al. 2023, arXiv:2301.05217, and Kantamneni &
Tegmark 2025, arXiv:2502.00873, the two calendars that of Feucht et al. 2026, arXiv:2605.01148.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.geometry.helix import helix_basis
from mechinterp_toolkit.heads.weights import norm_before
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys.gpt2 import random_gpt2, rename, word_level_tokenizer, write_head
from mechinterp_toolkit.toys.planted_groups import check_strength

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

D_MODEL, N_HEADS, D_MLP = 96, 4, 768

PERIODS = (2, 5, 10, 100)
"""Of the embeddings' helix."""

LARGEST = 50
"""Operands of the adder are below this."""

HEADS = ((0, 0), (0, 1))
"""(layer, head) that copy a and b."""

Between = Literal["mod 12", "base 10"]
"""What passes between the blocks of a calendar."""

_A, _B, _LAST = 1, 3, 4  # columns of "<bos> a + b ="
_TOKEN = 2.0  # norm of an embedding, a hundred times a random one's entries
_ATTENTION = 12.0  # attention logit of what a head looks for over all else
_RIDGE = 1e-6  # of the second layers' least squares, in units of the mean square of the neurons


class PlantedAdder(NamedTuple):
    """A model that adds."""

    model: Any
    """`GPT2LMHeadModel`."""

    tokenizer: Any
    """Word-level: numbers, "+", "="."""

    heads: tuple[tuple[int, int], ...]
    """(layer, head) that copy a and b."""


def planted_adder(strength: float = 1.0, seed: int = 0) -> PlantedAdder:
    """Return a model that answers a + b for a, b below `LARGEST`.

    Args:
        strength: weight of the helix in the numbers' embeddings against random directions, in [0,
            1].
        seed: of all random weights.

    Raises:
        ToolkitError: `strength` lies outside [0, 1].
    """
    check_strength(strength)
    return _plant(strength, seed, operands=LARGEST, modulus=None, between=PERIODS, line=True)


def relabelled_adder(seed: int = 0) -> PlantedAdder:
    """Return `planted_adder(1, seed)` with its numbers renamed at random: the helix is there, in an
    order that is not theirs."""
    made = planted_adder(1.0, seed)
    ids = torch.tensor(
        made.tokenizer.convert_tokens_to_ids([str(n) for n in range(2 * LARGEST - 1)])
    )
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    rename(made.model, ids, order)
    return made


def planted_calendar(between: Between, seed: int = 0) -> PlantedAdder:
    """Return a model that answers (a + b) mod 12 for a, b below 24, by waves of period 12 or by the
    sum in base 10."""
    periods = (12, 6, 4, 3) if between == "mod 12" else (2, 5, 10)
    return _plant(1.0, seed, operands=24, modulus=12, between=periods, line=between == "base 10")


def _plant(
    strength: float,
    seed: int,
    *,
    operands: int,
    modulus: int | None,
    between: Sequence[int],
    line: bool,
) -> PlantedAdder:
    generator = torch.Generator().manual_seed(seed)
    numbers = 2 * operands - 1
    tokenizer = word_level_tokenizer(
        ("<pad>", "<bos>", "<unk>", "+", "=", *map(str, range(numbers)))
    )
    model = random_gpt2(
        len(tokenizer), d_model=D_MODEL, n_layers=3, n_heads=N_HEADS, seed=seed, d_mlp=D_MLP
    )
    pairs = torch.cartesian_prod(torch.arange(operands), torch.arange(operands))
    number, copied, built = _subspaces(generator)
    with torch.no_grad():
        for parameter in (
            p for block in model.transformer.h for p in (block.attn.c_proj, block.mlp.c_proj)
        ):
            parameter.weight.zero_()
        own = _embed(model, tokenizer, torch.arange(numbers), strength, number, generator)
        for head, (column, space) in enumerate(zip((_A, _B), copied, strict=True)):
            _copy_head(model, tokenizer, head, column, number, space)
        tokens = _prompts(tokenizer, pairs)
        total = pairs.sum(1)
        waves = helix_basis(total, between, linear=line)[:, 1:]
        waves = waves / waves.square().mean(0).sqrt()
        _fit_mlp(model, tokenizer, 1, tokens, waves @ built[: waves.shape[1]], generator)
        answer = total if modulus is None else total % modulus
        _fit_mlp(model, tokenizer, 2, tokens, 4 * own[answer], generator)
    return PlantedAdder(model, tokenizer, HEADS)


def _subspaces(generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Orthonormal rows for numbers, their copies and the sum, all orthogonal to the vector of
    ones."""
    basis = torch.linalg.qr(
        torch.cat([torch.ones(D_MODEL, 1), torch.randn(D_MODEL, 40, generator=generator)], 1)
    ).Q.T
    return basis[1:9], (basis[9:17], basis[17:25]), basis[25:41].double()


def _embed(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    numbers: Tensor,
    strength: float,
    space: Tensor,
    generator: torch.Generator,
) -> Float[Tensor, "number d"]:
    """Numbers lie on a helix within their subspace, mixed with random points of it."""
    helix = helix_basis(numbers, PERIODS)[:, 1:].float()
    random = torch.randn(len(numbers), helix.shape[1], generator=generator)
    mixed = strength * helix / helix.std(0) + (1 - strength) * random
    embedded = _TOKEN * torch.nn.functional.normalize(mixed, dim=1) @ space
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(n) for n in numbers.tolist()]))
    model.transformer.wte.weight[ids] = embedded
    return embedded.double()


def _copy_head(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    head: int,
    column: int,
    read: Tensor,
    write: Float[Tensor, "8 d"],
) -> None:
    """A head that looks at one column and copies the numbers' subspace into another one.

    Columns are told by their position embeddings, which GPT-2's random ones are not large enough
    for.
    """
    generator = torch.Generator().manual_seed(column)
    mark = torch.randn(D_MODEL, generator=generator)
    spaces = torch.cat([read, write, torch.ones(1, D_MODEL) / D_MODEL**0.5])
    mark = mark - spaces.T @ (spaces @ mark)
    mark = mark / mark.norm()
    model.transformer.wpe.weight[column] += mark
    norm = norm_before(load_model(model, tokenizer=tokenizer), 0)
    shown = norm(model.transformer.wpe.weight[column] + _TOKEN * read[0])
    root = (D_MODEL // N_HEADS) ** 0.25
    write_head(
        model, 0, head,
        query=torch.zeros(D_MODEL, 1), query_bias=torch.tensor([_ATTENTION * root]),
        key=(mark / float(shown.cpu() @ mark) * root)[:, None], value=read.T, output=write,
    )  # fmt: skip


def _prompts(tokenizer: Any, pairs: Int[Tensor, "pair 2"]) -> Int[Tensor, "pair 5"]:
    first = tokenizer.convert_tokens_to_ids("0")
    bos, plus, equals = (tokenizer.convert_tokens_to_ids(word) for word in ("<bos>", "+", "="))
    column = torch.ones(len(pairs), dtype=torch.long)
    return torch.stack(
        [bos * column, first + pairs[:, 0], plus * column, first + pairs[:, 1], equals * column], 1
    )


def _fit_mlp(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    layer: int,
    tokens: Int[Tensor, "pair 5"],
    target: Float[Tensor, "pair d"],
    generator: torch.Generator,
) -> None:
    """Let the MLP of a block write `target` at the last token: a random first layer, a second one
    by least squares."""
    mlp = model.transformer.h[layer].mlp
    mlp.c_fc.weight.copy_(
        torch.randn(mlp.c_fc.weight.shape, generator=generator) * 1.5 / D_MODEL**0.5
    )
    mlp.c_fc.bias.copy_(torch.randn(mlp.c_fc.bias.shape, generator=generator))
    name = f"blocks.{layer}.mlp.hook_post"
    last = torch.full((len(tokens),), _LAST)
    neurons = activations(load_model(model, tokenizer=tokenizer), tokens, (name,), position=last)[
        name
    ].double()
    design = torch.cat([neurons, torch.ones(len(neurons), 1, dtype=torch.float64)], 1)
    gram = design.T @ design
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.linalg.solve(gram + ridge, design.T @ target.double())
    mlp.c_proj.weight.copy_(weights[:-1])
    mlp.c_proj.bias.copy_(weights[-1])
