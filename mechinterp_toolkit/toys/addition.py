"""A small transformer that adds: "17 + 25 =" -> "42", over numbers that are one token each.

A one-layer GPT-2 shape with tied embeddings, trained on a share of all pairs and tested on the
rest. Two recipes:

- `addition`: a + b for a, b from 0 to 49. The sums, 0 to 98, are tokens too.
- `addition-mod`: a + b mod 59 for a, b from 0 to 58, with the same tokenizer; the numbers 59 to 98
  are never used.

Both answer pairs they never saw, so that they do not look the answer up.

Training works every key and value out once per number and position, not once per pair
(`answer_logits`): the logits are those of the Hugging Face model up to rounding, several times
sooner.

What would fool it: embeddings are tied, so that a number's embedding serves it as an operand and as
an answer; numbers of the `addition` toy from 50 on are answers only. The periods are the network's
choice, another seed's are others, and they need not be whole numbers: of `addition-mod` they are
59/k.

Source: this project; that such networks find periods is due to Nanda et al. 2023, arXiv:2301.05217,
and in language models to Kantamneni and Tegmark 2025, arXiv:2502.00873.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError, ToolkitError
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import PromptSet, build_prompts
from mechinterp_toolkit.toys.gpt2 import (
    bundled_gpt2,
    knows_exactly,
    random_gpt2,
    rename,
    word_level_tokenizer,
    write_gpt2,
)
from mechinterp_toolkit.toys.loop import Progress, fit, training_record
from mechinterp_toolkit.toys.pairs import all_pairs, split_pairs
from mechinterp_toolkit.toys.recipes import AdditionRecipe, get_recipe

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

LARGEST_SUM = 98
"""Numbers 0 to 98 are in the vocabulary: the sums of numbers below 50."""

A_POSITION, B_POSITION, LAST_POSITION = 1, 3, 4
"""Where a, b and the equals sign stand, behind the beginning-of-sequence token."""

_SPECIAL = ("<pad>", "<bos>", "<unk>", "+", "=")
_BOS, _PLUS, _EQUALS = (_SPECIAL.index(word) for word in ("<bos>", "+", "="))
_FIRST_NUMBER = len(_SPECIAL)
_REPORT_EVERY = 100  # steps between progress calls


class AdditionPrompts(NamedTuple):
    """Prompts "<bos> a + b =", and what they ask."""

    prompts: PromptSet
    """Tokens `[pair 5]`, answer tokens `[pair]` and texts; the item is a, at `A_POSITION`."""

    a: Int[Tensor, " pair"]
    """First number, at `A_POSITION`."""

    b: Int[Tensor, " pair"]
    """Second number, at `B_POSITION`."""

    total: Int[Tensor, " pair"]
    """The number to be said after `LAST_POSITION`: a + b, reduced by the modulus if there is one.
    """


def vocabulary() -> tuple[str, ...]:
    """Return every word of the toy, in the order of token ids."""
    return (*_SPECIAL, *(str(n) for n in range(LARGEST_SUM + 1)))


def addition_tokenizer() -> PreTrainedTokenizerFast:
    """Return the toy's word-level tokenizer; spaces separate words and belong to none."""
    return word_level_tokenizer(vocabulary())


def number_tokens(n: int = LARGEST_SUM + 1) -> Int[Tensor, " number"]:
    """Return the token ids of the numbers from 0 to n - 1."""
    return torch.arange(n) + _FIRST_NUMBER


def asks_addition(tokenizer: Any) -> bool:
    """Whether `tokenizer` is this toy's, so that its model is asked for sums ("17 + 25 =")."""
    return knows_exactly(tokenizer, vocabulary())


def totals(pairs: Int[Tensor, "pair 2"], modulus: int | None) -> Int[Tensor, " pair"]:
    """Return a + b of each pair, reduced by `modulus` unless that is None."""
    return pairs.sum(1) if modulus is None else pairs.sum(1) % modulus


def addition_prompts(
    tokenizer: Any,
    pairs: Int[Tensor, "pair 2"] | None = None,
    *,
    modulus: int | None = None,
    operands: int = 50,
) -> AdditionPrompts:
    """Return the prompt "<bos> a + b =" of each pair.

    Args:
        tokenizer: the toy's.
        pairs: numbers a and b; None takes all pairs of numbers below `operands`.
        modulus: of the answers, as the model was trained: `get_recipe(name).modulus`.
        operands: as in `get_recipe(name).operands`.

    Raises:
        TokenisationError: another model's tokenizer, or a number or a sum that is no token of it.
    """
    if not asks_addition(tokenizer):
        raise TokenisationError(
            f"these prompts are for the addition toy's {len(vocabulary())}-word tokenizer; this one"
            f" has {len(tokenizer)} tokens."
        )
    pairs = all_pairs(operands) if pairs is None else pairs
    total = totals(pairs, modulus)
    asked = [(a, b, t) for (a, b), t in zip(pairs.tolist(), total.tolist(), strict=True)]
    prompts = build_prompts(
        tokenizer,
        [f"{a} + {b} =" for a, b, _ in asked],
        [f" {t}" for _, _, t in asked],
        prepend_bos=True,
        items=[a for a, _, _ in asked],
        classes=["numbers"] * len(asked),
        item_words=[(str(a), 0) for a, _, _ in asked],
    )
    return AdditionPrompts(prompts, pairs[:, 0], pairs[:, 1], total)


def build_addition_model(recipe: AdditionRecipe, seed: int) -> GPT2LMHeadModel:
    """Return the untrained Hugging Face model of `recipe`; torch's global random state stays."""
    return random_gpt2(
        len(vocabulary()),
        d_model=recipe.d_model,
        n_layers=1,
        n_heads=recipe.n_heads,
        d_mlp=recipe.d_mlp,
        n_positions=recipe.n_positions,
        seed=seed,
    ).train()


def answer_logits(
    model: GPT2LMHeadModel, pairs: Int[Tensor, "pair 2"], operands: int
) -> Float[Tensor, "pair vocab"]:
    """Return the logits at the equals sign of each pair of numbers below `operands`.

    Every prompt has the same query, and keys and values depend on one number and its position
    alone.
    """
    trunk: Any = model.transformer
    block, embedding, place = trunk.h[0], trunk.wte.weight, trunk.wpe.weight
    numbers = embedding[_FIRST_NUMBER : _FIRST_NUMBER + operands]
    fixed = torch.stack(
        [embedding[_BOS] + place[0], embedding[_PLUS] + place[2], embedding[_EQUALS] + place[4]]
    )
    rows = torch.cat([fixed, numbers + place[A_POSITION], numbers + place[B_POSITION]])
    attended = _attended(block.attn, block.ln_1(rows), operands)[pairs[:, 0], pairs[:, 1]]
    stream = fixed[2] + attended + block.attn.c_proj.bias
    hidden = torch.nn.functional.gelu(block.mlp.c_fc(block.ln_2(stream)), approximate="tanh")
    return trunk.ln_f(stream + block.mlp.c_proj(hidden)) @ embedding.T


def _attended(
    attention: Any, rows: Float[Tensor, "row d_model"], operands: int
) -> Float[Tensor, "a b d_model"]:
    """What attention moves to the equals sign; rows are "<bos>", "+", "=", every a, every b."""
    d_model, heads = rows.shape[1], attention.num_heads
    query, key, value = attention.c_attn(rows).view(len(rows), 3, heads, d_model // heads).unbind(1)
    score = torch.einsum("hk,rhk->rh", query[2], key) / (d_model // heads) ** 0.5
    moved = torch.einsum("rhk,hkd->rhd", value, attention.c_proj.weight.view(heads, -1, d_model))
    a, b = slice(3, 3 + operands), slice(3 + operands, None)
    grid = (operands, operands, heads)
    scores = [score[i].expand(grid) for i in range(3)] + [
        score[a][:, None].expand(grid),
        score[b].expand(grid),
    ]
    pattern = torch.stack(scores, 2).softmax(2)
    from_fixed = pattern[:, :, :3].flatten(2) @ moved[:3].flatten(0, 1)
    from_a = pattern[:, :, 3] @ moved[a]  # one product of matrices per a
    from_b = (pattern[:, :, 4].transpose(0, 1) @ moved[b]).transpose(0, 1)
    return from_fixed + from_a + from_b


@torch.no_grad()
def addition_metrics(model: GPT2LMHeadModel, recipe: AdditionRecipe, seed: int) -> dict[str, float]:
    """Return accuracy over the whole vocabulary and loss in nats, on the pairs trained on and on
    those held out."""
    metrics = {}
    split = split_pairs(recipe.operands, recipe.train_fraction, seed)
    for name, pairs in split._asdict().items():
        logits = answer_logits(model, pairs, recipe.operands)
        answer = totals(pairs, recipe.modulus) + _FIRST_NUMBER
        metrics[f"{name}_accuracy"] = (logits.argmax(1) == answer).double().mean().item()
        metrics[f"{name}_loss"] = torch.nn.functional.cross_entropy(logits.double(), answer).item()
    return metrics


def train_addition(
    recipe: AdditionRecipe,
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train by `recipe` and write a Hugging Face folder with `checkpoint.json`; see
    `training.train`.

    Raises:
        ToolkitError: a sum would be larger than the largest number, or nothing is trained on or
            held out.
    """
    _check(recipe)
    steps = steps or recipe.steps
    model = build_addition_model(recipe, seed)
    _fit(model, recipe, seed, steps, progress)
    return write_gpt2(
        folder,
        model,
        addition_tokenizer(),
        task={"kind": "addition", "operands": recipe.operands, "modulus": recipe.modulus},
        training=training_record(recipe, seed, steps, addition_metrics(model, recipe, seed)),
    )


def _check(recipe: AdditionRecipe) -> None:
    largest = (
        2 * recipe.operands if recipe.modulus is None else max(recipe.operands, recipe.modulus)
    ) - 1
    largest -= recipe.modulus is None  # the largest sum is twice the largest number
    if largest > LARGEST_SUM:
        raise ToolkitError(
            f"{recipe.name} needs the number {largest}; the toy's largest is {LARGEST_SUM}."
        )
    if not all(len(part) for part in split_pairs(recipe.operands, recipe.train_fraction, 0)):
        raise ToolkitError(
            f"{recipe.name}: a train fraction of {recipe.train_fraction} leaves no pair on one"
            " side."
        )


def _fit(
    model: GPT2LMHeadModel, recipe: AdditionRecipe, seed: int, steps: int, progress: Progress | None
) -> None:
    """Train `model` in place on all training pairs at once.

    The learning rate rises at first and falls to 0 at the end.
    """
    pairs, _ = split_pairs(recipe.operands, recipe.train_fraction, seed)
    answer = totals(pairs, recipe.modulus) + _FIRST_NUMBER
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )
    falling = max(1.0, recipe.decay_share * steps)

    def loss_at(step: int) -> Tensor:
        share = min(1.0, step / recipe.warmup) * min(1.0, (steps - step + 1) / falling)
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * share
        logits = answer_logits(model, pairs, recipe.operands)
        return torch.nn.functional.cross_entropy(logits, answer)

    fit(
        optimiser,
        loss_at,
        steps,
        progress=progress,
        every=_REPORT_EVERY,
        metrics=lambda: addition_metrics(model, recipe, seed),
    )


def number_renaming(name: str, seed: int) -> Int[Tensor, " number"]:
    """Return the numbers drawn by `seed` in whose place each number of `relabelled_addition`
    stands.

    Operands are renamed among themselves, so that every prompt stays one that the network knows,
    and so are the others.
    """
    recipe = _addition_recipe(name)
    generator, n = torch.Generator().manual_seed(seed), recipe.operands
    others = torch.randperm(LARGEST_SUM + 1 - n, generator=generator) + n
    return torch.cat([torch.randperm(n, generator=generator), others])


def relabelled_addition(name: str, seed: int) -> HookedModel:
    """Return a trained addition toy with its number tokens renamed at random; see
    `number_renaming`.

    The network computes what it did before, on numbers whose order says nothing: its answer to "a +
    b =" is the number that stands for the sum of the numbers a and b stand for. A scan of the
    operands finds periods by chance only. In a scan over all 99 numbers operands and other numbers
    still differ, in kind though not in order.

    Args:
        name: a bundled addition toy, e.g. "toy/addition".
        seed: of the renaming.

    Raises:
        ToolkitError: no such toy, or not one that adds.
    """
    renaming = number_renaming(name, seed)
    hf_model, tokenizer = bundled_gpt2(name)
    rename(hf_model, number_tokens(), renaming)
    return load_model(hf_model, tokenizer=tokenizer)


def _addition_recipe(name: str) -> AdditionRecipe:
    recipe = get_recipe(name)
    if not isinstance(recipe, AdditionRecipe):
        raise ToolkitError(f"{name!r} does not add; toy/addition and toy/addition-mod do.")
    return recipe
