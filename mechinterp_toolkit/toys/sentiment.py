"""A small transformer that ends sentences by the sentiment of their adjective: "... the book dull
... the book is" -> "bad".

A two-layer GPT-2 shape trained as a language model on the sentences of the concept "sentiment",
each with its answer, and on the neutral sentences. The words of a class are learned one by one;
nothing in a word's spelling says which class it has.

What would fool it: nothing is held out. The model memorises 48 words, so that its accuracy says
nothing of sentiment; what analyses find is how it keeps the classes.

Source: this project; the task is in the manner of Tigges et al. 2023, arXiv:2310.15154.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.prompts.concepts import WORD_CONCEPTS
from mechinterp_toolkit.toys.gpt2 import random_gpt2, write_gpt2
from mechinterp_toolkit.toys.loop import Progress, fit, training_record
from mechinterp_toolkit.toys.planted_concepts import CONCEPT, concept_tokenizer
from mechinterp_toolkit.toys.recipes import SentimentRecipe

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

_REPORT_EVERY = 50  # steps between progress calls
_LONGEST = 32


class Sentences(NamedTuple):
    """Everything the toy is trained on, one row per sentence and answer."""

    tokens: Int[Tensor, "sentence pos"]
    """Beginning of sequence, sentence, and its answer where it has one; padded on the right."""

    mask: Bool[Tensor, "sentence pos"]
    """True at real tokens."""

    answered: Bool[Tensor, " sentence"]
    """Whether the last real token is an answer."""


def all_sentences() -> Sentences:
    """Return every word in every template with every right answer, and the neutral sentences."""
    concept, tokenizer = WORD_CONCEPTS[CONCEPT], concept_tokenizer()
    texts = [
        f"{template.format(word)} {answer}"
        for side, words in concept.words.items() for word in words
        for template in concept.templates for answer in concept.answers[side]
    ]  # fmt: skip
    rows = [
        [tokenizer.bos_token_id, *tokenizer.encode(text)] for text in (*texts, *concept.neutral)
    ]
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return Sentences(
        tokens,
        torch.arange(tokens.shape[1]) < lengths[:, None],
        torch.arange(len(rows)) < len(texts),
    )


def build_sentiment_model(recipe: SentimentRecipe, seed: int) -> GPT2LMHeadModel:
    """Return the untrained Hugging Face model of `recipe`; torch's global random state stays."""
    return random_gpt2(
        len(concept_tokenizer()),
        d_model=recipe.d_model,
        n_layers=2,
        n_heads=recipe.n_heads,
        d_mlp=recipe.d_mlp,
        n_positions=_LONGEST,
        seed=seed,
    ).train()


@torch.no_grad()
def sentiment_accuracy(model: GPT2LMHeadModel) -> float:
    """Return the share of sentences after which a right answer has the highest logit of the whole
    vocabulary."""
    sentences, tokenizer, concept = all_sentences(), concept_tokenizer(), WORD_CONCEPTS[CONCEPT]
    sides = [
        set(tokenizer.convert_tokens_to_ids(list(words))) for words in concept.answers.values()
    ]
    tokens, mask = sentences.tokens[sentences.answered], sentences.mask[sentences.answered]
    at = mask.sum(1) - 1
    rows = torch.arange(len(tokens))
    said = model(tokens).logits[rows, at - 1].argmax(1).tolist()
    right = [next(side for side in sides if answer in side) for answer in tokens[rows, at].tolist()]
    return sum(token in side for token, side in zip(said, right, strict=True)) / len(said)


def _loss(
    model: GPT2LMHeadModel, sentences: Sentences, rows: Int[Tensor, " batch"], answer_weight: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the next token in nats, mean over tokens, plus that of the answers with
    their own weight."""
    tokens, mask = sentences.tokens[rows], sentences.mask[rows]
    nats = torch.nn.functional.cross_entropy(
        model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    ).reshape(len(rows), -1)
    real = mask[:, 1:].float()
    last = real.sum(1).long() - 1
    answered = sentences.answered[rows].float()
    answers = (nats[torch.arange(len(rows)), last] * answered).sum() / answered.sum()
    return (nats * real).sum() / real.sum() + answer_weight * answers


def train_sentiment(
    recipe: SentimentRecipe,
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train by `recipe` and write a Hugging Face folder with `checkpoint.json`; see
    `training.train`."""
    steps = steps or recipe.steps
    model, sentences = build_sentiment_model(recipe, seed), all_sentences()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2
    )

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(sentences.tokens), (recipe.batch,), generator=generator)
        return _loss(model, sentences, rows, recipe.answer_weight)

    fit(
        optimiser,
        loss_at,
        steps,
        progress=progress,
        every=_REPORT_EVERY,
        metrics=lambda: {"accuracy": sentiment_accuracy(model)},
    )
    return write_gpt2(
        folder,
        model,
        concept_tokenizer(),
        task={"kind": "sentiment", "concept": CONCEPT},
        training=training_record(recipe, seed, steps, {"accuracy": sentiment_accuracy(model)}),
    )
