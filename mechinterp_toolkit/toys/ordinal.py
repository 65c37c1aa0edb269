"""A small transformer that knows what comes after what: "river Monday stone bread after" ->
"Tuesday".

A prompt is a beginning-of-sequence token, noise words with one item among them, and a query. "same"
asks for the item itself, "after" for its successor, over five classes (days, months, numbers,
letters, number words). Three recipes:

- `ordinal`: the attention output of block 0 and the MLP of block 1 are zero and frozen, so that
  only a head of block 1 can bring the successor to the query. One head does, beside heads that
  copy.
- `ordinal-mlp`: the heads of block 1 can only copy (their OV circuits are fixed projections) and
  the MLP of block 0 is zero, so that the MLP of block 1 computes the successor: it is computed, but
  not by a head.
- `ordinal-scrambled`: `ordinal` with the order of every class shuffled: the same task for a
  network, and a null for every claim about the real order.

The optimiser is Adam with coupled L2, not AdamW: AdamW spreads the successor over two or three
heads that each suffice, so that ablating one changes nothing. Leaving everything unfrozen under
AdamW, in place of `ordinal-mlp`, left heads with succession scores of .25 to .59, seed by seed: no
clean negative.

What would fool it: nothing is held out. The model memorises 187 facts, so an accuracy of 1 says
nothing about counting.

Source: this project; the phenomenon is that of Gould et al. 2024, arXiv:2312.09230.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts import (
    ORDINAL_CLASSES,
    STANDARD_CLASSES,
    OrdinalClass,
    OrdinalWords,
    PromptSet,
    build_prompts,
    ordinal_classes,
)
from mechinterp_toolkit.toys.gpt2 import (
    knows_exactly,
    random_gpt2,
    word_level_tokenizer,
    write_gpt2,
)
from mechinterp_toolkit.toys.loop import Progress, State, fit, training_record
from mechinterp_toolkit.toys.recipes import OrdinalRecipe

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

Query = Literal["after", "same"]

QUERIES: tuple[Query, ...] = ("after", "same")
"""What can be asked of an item: its successor, or itself."""

LARGEST_NUMBER = 30
"""Numbers 1 to 30 are in the vocabulary: more would make numbers the bulk of the facts."""

_NOISE = (
    "river stone table cloud paper light bread garden window road house bird tree water song green"
    " quiet under over with and of the a"
)
NOISE_WORDS = tuple(_NOISE.split())
"""Words that mean nothing here; none of them belongs to an ordinal class."""

_SPECIAL = ("<pad>", "<bos>", "<unk>")
_REPORT_EVERY = 20  # steps between progress calls
_REPEATS = 8  # evaluation prompts per fact, with different noise and positions


class Facts(NamedTuple):
    """Everything there is to know: one row per item and query that has an answer, as token ids."""

    item: Int[Tensor, " fact"]
    """The item asked about."""

    query: Int[Tensor, " fact"]
    """The query token."""

    answer: Int[Tensor, " fact"]
    """What is right."""


class Batch(NamedTuple):
    """Prompts of one length, ready for the model."""

    tokens: Int[Tensor, "batch pos"]
    """Beginning of sequence, noise words with the item among them, query."""

    answer: Int[Tensor, " batch"]
    """Right next token after the last position."""

    item_position: Int[Tensor, " batch"]
    """Where the item stands."""


def toy_classes() -> dict[str, OrdinalWords]:
    """Return the five classes of the toy: the standard ones, with numbers up to
    `LARGEST_NUMBER`."""
    classes = {name: ORDINAL_CLASSES[name] for name in STANDARD_CLASSES}
    return classes | {
        "numbers": classes["numbers"]._replace(words=classes["numbers"].words[:LARGEST_NUMBER])
    }


def vocabulary() -> tuple[str, ...]:
    """Return every word of the toy, in the order of token ids."""
    items = [word for words, _ in toy_classes().values() for word in words]
    return (*_SPECIAL, *QUERIES, *items, *NOISE_WORDS)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the toy's word-level tokenizer; spaces separate words and belong to none."""
    return word_level_tokenizer(vocabulary())


def asks_by_query(tokenizer: Any) -> bool:
    """Whether `tokenizer` is the toy's, so that its model is asked by query ("... Monday ...
    after")."""
    return knows_exactly(tokenizer, vocabulary())


def scrambled_classes(seed: int) -> dict[str, OrdinalWords]:
    """Return the toy's classes with the items of each in an order drawn uniformly by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: OrdinalWords(
            tuple(words[i] for i in torch.randperm(len(words), generator=generator).tolist()),
            cyclic,
        )
        for name, (words, cyclic) in toy_classes().items()
    }


def build_facts(classes: Mapping[str, OrdinalWords]) -> Facts:
    """Return the facts of the given classes: (x, same) -> x for every item, (x, after) -> y for
    every item with a y."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    rows = []
    for words, cyclic in classes.values():
        followers = [*words[1:], words[0]] if cyclic else words[1:]
        rows += [(ids[word], ids["same"], ids[word]) for word in words]
        rows += [
            (ids[word], ids["after"], ids[after])
            for word, after in zip(words, followers, strict=False)
        ]
    item, query, answer = torch.tensor(rows).T.contiguous()
    return Facts(item, query, answer)


def draw_batch(
    facts: Facts, rows: Int[Tensor, " batch"], n_noise: int, generator: torch.Generator
) -> Batch:
    """Write the facts `rows` as prompts with `n_noise` noise words, the item at a random place
    among them."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    noise = torch.tensor([ids[word] for word in NOISE_WORDS])
    n = len(rows)
    words = noise[torch.randint(len(noise), (n, n_noise + 1), generator=generator)]
    place = torch.randint(n_noise + 1, (n,), generator=generator)
    words[torch.arange(n), place] = facts.item[rows]
    first = torch.full((n, 1), ids["<bos>"])
    return Batch(
        torch.cat([first, words, facts.query[rows, None]], 1), facts.answer[rows], place + 1
    )


def evaluation_prompts(
    tokenizer: Any,
    seed: int = 0,
    *,
    classes: Mapping[str, OrdinalClass] | None = None,
    n_noise: int = 5,
) -> PromptSet:
    """Return a prompt for every item and query that has an answer: all "after", class by class,
    then all "same".

    Args:
        tokenizer: the toy's.
        seed: decides noise words and the item's place.
        classes: `ordinal_classes(tokenizer).classes` or some of them; their order is the one asked
            for.
        n_noise: noise words per prompt, 0 to 5 as in training.

    Raises:
        TokenisationError: another model's tokenizer.
    """
    if not asks_by_query(tokenizer):
        raise TokenisationError(
            f"these prompts are for the ordinal toy's {len(vocabulary())}-word tokenizer; this one"
            f" has {len(tokenizer)} tokens. Use succession_prompts for other models."
        )
    classes = classes if classes is not None else ordinal_classes(tokenizer).classes
    asked = [("after", c, i, j) for c in classes.values() for i, j in c.pairs(+1).tolist()]
    asked += [("same", c, i, i) for c in classes.values() for i in range(len(c))]
    generator = torch.Generator().manual_seed(seed)
    return build_prompts(
        tokenizer,
        [_text(c.words[i], query, n_noise, generator) for query, c, i, _ in asked],
        [f" {c.words[j]}" for _, c, _, j in asked],
        prepend_bos=True,
        items=[int(c.index[i]) for _, c, i, _ in asked],
        classes=[c.name for _, c, _, _ in asked],
        item_words=[c.words[i] for _, c, i, _ in asked],
    )


def successor_queries(
    tokenizer: Any, classes: Mapping[str, OrdinalClass], *, seed: int = 0
) -> PromptSet:
    """Return the "after" prompts of `evaluation_prompts`: what the toy says comes next, item by
    item."""
    prompts = evaluation_prompts(tokenizer, seed, classes=classes)
    after = tokenizer.convert_tokens_to_ids("after")
    return prompts.select(prompts.tokens[torch.arange(len(prompts)), prompts.position] == after)


def build_model(recipe: OrdinalRecipe, seed: int) -> GPT2LMHeadModel:
    """Return the untrained Hugging Face model of `recipe`; what it freezes is zero and asks for no
    gradient."""
    model = random_gpt2(
        len(vocabulary()),
        d_model=recipe.d_model,
        n_layers=2,
        n_heads=recipe.n_heads,
        d_mlp=recipe.d_mlp,
        n_positions=recipe.n_positions,
        seed=seed,
    ).train()
    for name in recipe.frozen:
        for parameter in model.get_submodule(name).parameters():
            parameter.data.zero_()
            parameter.requires_grad_(False)
    if recipe.copying_heads:
        _make_copying(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _make_copying(model: GPT2LMHeadModel, generator: torch.Generator) -> None:
    """Let the values of block 1 be a random rotation and its attention output undo it."""
    attention, d_model = model.transformer.h[1].attn, model.config.n_embd
    rotation = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q
    attention.c_attn.weight[:, 2 * d_model :] = rotation
    attention.c_proj.weight.copy_(rotation.T)


@torch.no_grad()
def accuracies(
    model: GPT2LMHeadModel, facts: Facts, *, seed: int = 0, n_noise: int = 5
) -> dict[str, float]:
    """Return the fraction of facts answered right over the whole vocabulary: in all, and per
    query."""
    rows = torch.arange(len(facts.item)).repeat(_REPEATS)
    batch = draw_batch(facts, rows, n_noise, torch.Generator().manual_seed(seed))
    right = (
        model(batch.tokens, logits_to_keep=1).logits[:, -1].argmax(-1) == batch.answer
    ).double()
    ids = {word: i for i, word in enumerate(vocabulary())}
    asked: dict[str, Bool[Tensor, " batch"]] = {q: facts.query[rows] == ids[q] for q in QUERIES}
    return {"accuracy": right.mean().item()} | {
        f"{q}_accuracy": right[mask].mean().item() for q, mask in asked.items()
    }


def train_ordinal(
    recipe: OrdinalRecipe,
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train by `recipe` and write a Hugging Face folder with `checkpoint.json`; see
    `training.train`."""
    steps = steps or recipe.steps
    classes = scrambled_classes(seed) if recipe.scrambled else toy_classes()
    facts = build_facts(classes)
    model = build_model(recipe, seed)
    history = _fit(model, recipe, facts, seed, steps, progress)
    return write_gpt2(
        folder,
        model,
        build_tokenizer(),
        task={
            "kind": "ordinal",
            "queries": list(QUERIES),
            "order": {name: list(words) for name, (words, _) in classes.items()},
            "cyclic": {name: cyclic for name, (_, cyclic) in classes.items()},
            "scrambled": recipe.scrambled,
        },
        training=training_record(recipe, seed, steps, accuracies(model, facts)),
        history=history,
    )


def _fit(
    model: GPT2LMHeadModel,
    recipe: OrdinalRecipe,
    facts: Facts,
    seed: int,
    steps: int,
    progress: Progress | None,
) -> dict[int, State]:
    """Train `model` in place and return the weights at the recipe's history steps."""
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = getattr(torch.optim, recipe.optimiser)(
        trained, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    if recipe.copying_heads:  # the penalty would shrink them even without a gradient: undo the step
        optimiser.register_step_post_hook(
            lambda *_: _make_copying(model, torch.Generator().manual_seed(seed))
        )
    return fit(
        optimiser,
        lambda step: _loss(model, recipe, facts, generator),
        steps,
        progress=progress,
        every=_REPORT_EVERY,
        metrics=lambda: accuracies(model, facts),
        history=recipe.history,
        state=lambda: _state(model),
    )


def _loss(
    model: GPT2LMHeadModel, recipe: OrdinalRecipe, facts: Facts, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Cross-entropy of the answers to a fresh batch, in nats."""
    rows = torch.randint(len(facts.item), (recipe.batch,), generator=generator)
    n_noise = int(torch.randint(recipe.most_noise + 1, (), generator=generator))
    batch = draw_batch(facts, rows, n_noise, generator)
    return torch.nn.functional.cross_entropy(
        model(batch.tokens, logits_to_keep=1).logits[:, -1], batch.answer
    )


def _state(model: GPT2LMHeadModel) -> State:
    """The weights without the unembedding, which is the embedding."""
    return {name: w for name, w in model.state_dict().items() if name != "lm_head.weight"}


def _text(item: str, query: str, n_noise: int, generator: torch.Generator) -> str:
    noise = torch.randint(len(NOISE_WORDS), (n_noise,), generator=generator).tolist()
    words = [NOISE_WORDS[i] for i in noise]
    words.insert(int(torch.randint(n_noise + 1, (), generator=generator)), item)
    return " ".join([*words, query])
