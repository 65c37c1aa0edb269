"""Transformers that read a concept of words along one direction, all of it written by hand into a
random GPT-2 shape.

The embedding of each word of "sentiment" holds its class along a direction, noise along it, and the
same noise once more along another direction: a *suppressor*, which says nothing of the class and
from which a probe can read the noise away. A head of block 1 reads the direction and writes the
answer. With `summary`, it reads commas instead of words, and a head of block 0 brings the class
from the word to the comma. Without `used`, nothing reads the direction.

What would fool it: LayerNorm scales what heads read, so how far a word moves the answer varies from
word to word.

Source: this project; suppressor variables as in Wilming et al. 2023, arXiv:2306.01464, summary
tokens as in Tigges et al. 2023, arXiv:2310.15154.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts.concepts import WORD_CONCEPTS
from mechinterp_toolkit.toys.gpt2 import random_gpt2, shown_to, word_level_tokenizer, write_head
from mechinterp_toolkit.toys.planted_groups import check_strength

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

CONCEPT = "sentiment"

D_MODEL, N_HEADS = 144, 3
"""Wider than the vocabulary, so that what is shown of a token can be told from all others linearly.
"""

# Embeddings this many times GPT-2's initial 0.02, so that a token stands out from what random
# blocks write beside it.
_TOKEN_SCALE = 10.0
# class and noise along the direction, as lengths; noise shared with the suppressor
_CLASS, _NOISE, _CORRELATION = 1.0, 0.5, 0.8
_ATTENTION = 12.0  # attention logit of what a head looks for over all else
_BROUGHT, _ANSWERED = 1.0, 0.3  # norms of what the heads typically write, in norms of an embedding


class PlantedConcept(NamedTuple):
    """A model with a concept written by hand."""

    model: Any
    """`GPT2LMHeadModel`."""

    tokenizer: Any
    """Word-level, of the words of the concept's sentences."""

    direction: Float[Tensor, " d"]
    """Unit vector along which the classes differ."""

    suppressor: Float[Tensor, " d"]
    """Unit vector along which they do not, and which shares the direction's noise."""


def concept_vocabulary() -> tuple[str, ...]:
    """Return every word and sign of the concept's words, answers and sentences, in the order of
    token ids."""
    concept = WORD_CONCEPTS[CONCEPT]
    texts = [text.replace("{}", " ") for text in (*concept.templates, *concept.neutral)]
    pieces = [piece for text in texts for piece in re.findall(r"\w+|[^\w\s]+", text)]
    words = [
        word
        for group in (concept.words, concept.answers)
        for some in group.values()
        for word in some
    ]
    starts = [text.split()[0].lower() for text in concept.neutral]
    return tuple(dict.fromkeys(("<pad>", "<bos>", "<unk>", *words, *pieces, *starts)))


def concept_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of these models; spaces separate words and belong to none."""
    return word_level_tokenizer(concept_vocabulary())


def planted_concept(
    strength: float = 1.0,
    seed: int = 0,
    *,
    used: bool = True,
    summary: bool = False,
    relabelled: bool = False,
) -> PlantedConcept:
    """Return a model that answers sentences about sentiment from one direction of its words.

    Args:
        strength: how far apart the classes lie, in [0, 1]; 0 leaves the noise alone.
        seed: of the random weights and of the noise.
        used: whether anything reads the direction.
        summary: whether the class is brought to commas, and read there.
        relabelled: whether the classes are drawn at random among the words: the same model of
            another concept.

    Raises:
        ToolkitError: `strength` lies outside [0, 1].
    """
    check_strength(strength)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = concept_tokenizer()
    hf_model = random_gpt2(len(tokenizer), d_model=D_MODEL, n_layers=2, n_heads=N_HEADS, seed=seed)
    direction, suppressor = _two_directions(generator)
    with torch.no_grad():
        embedding = hf_model.transformer.wte.weight
        embedding.mul_(_TOKEN_SCALE)
        sign = _signs(relabelled, generator)
        ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(sign)))
        embedding[ids] += _coordinates(
            torch.tensor(list(sign.values())), strength, direction, suppressor, generator
        )
        comma = torch.tensor(tokenizer.convert_tokens_to_ids([","]))
        if summary:
            _bring_to(hf_model, tokenizer, ids, comma, direction)
        if used:
            _answer_from(hf_model, tokenizer, comma if summary else ids, ids, direction)
    return PlantedConcept(hf_model, tokenizer, direction, suppressor)


def concept_model(strength: float, seed: int, **options: bool) -> HookedModel:
    """Return `planted_concept` wrapped; arguments are its own."""
    made = planted_concept(strength, seed, **options)
    return load_model(made.model, tokenizer=made.tokenizer)


def _two_directions(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orthogonal to each other and to the vector of ones, which LayerNorm removes."""
    columns = torch.cat([torch.ones(D_MODEL, 1), torch.randn(D_MODEL, 2, generator=generator)], 1)
    basis = torch.linalg.qr(columns).Q
    return basis[:, 1].clone(), basis[:, 2].clone()


def _signs(relabelled: bool, generator: torch.Generator) -> dict[str, float]:
    """Word -> +1 or -1, by its class or at random, as many of each."""
    positive, negative = WORD_CONCEPTS[CONCEPT].words.values()
    words, signs = [*positive, *negative], [1.0] * len(positive) + [-1.0] * len(negative)
    order = (
        torch.randperm(len(words), generator=generator).tolist()
        if relabelled
        else range(len(words))
    )
    return {words[i]: sign for i, sign in zip(order, signs, strict=True)}


def _coordinates(
    sign: Float[Tensor, " word"],
    strength: float,
    direction: Tensor,
    suppressor: Tensor,
    generator: torch.Generator,
) -> Float[Tensor, "word d"]:
    """Class and noise along the direction, correlated noise along the suppressor."""
    noise = torch.randn(2, len(sign), generator=generator)
    along = strength * _CLASS * sign + _NOISE * noise[0]
    beside = _NOISE * (_CORRELATION * noise[0] + (1 - _CORRELATION**2) ** 0.5 * noise[1])
    return along[:, None] * direction + beside[:, None] * suppressor


def _indicator(shown: Tensor, tokens: Int[Tensor, " some"]) -> Float[Tensor, " d"]:
    """The direction along which what is shown of `tokens` is 1 and of all others 0: there are fewer
    tokens than features."""
    wanted = torch.zeros(len(shown), dtype=torch.float64)
    wanted[tokens] = 1
    return torch.linalg.pinv(shown) @ wanted


def _bring_to(
    hf_model: GPT2LMHeadModel,
    tokenizer: Any,
    words: Tensor,
    comma: Tensor,
    direction: Float[Tensor, " d"],
) -> None:
    """Head 0 of block 0: commas look at words and take over what lies along the direction; all else
    looks at the start."""
    shown = shown_to(hf_model, tokenizer, 0)
    bos = torch.tensor([tokenizer.bos_token_id])
    root = (D_MODEL // N_HEADS) ** 0.25
    look = 2 * _ATTENTION
    write_head(
        hf_model,
        0,
        0,
        query=torch.stack(
            [_indicator(shown, comma) * look * root, torch.zeros(D_MODEL, dtype=torch.float64)], 1
        ),
        query_bias=torch.tensor([0.0, _ATTENTION * root]),
        key=torch.stack([_indicator(shown, words) * root, _indicator(shown, bos) * root], 1),
        value=direction[:, None],
        output=(direction * _BROUGHT * _gain(hf_model, shown[words], direction))[None],
    )


def _answer_from(
    hf_model: GPT2LMHeadModel,
    tokenizer: Any,
    tokens: Tensor,
    words: Tensor,
    direction: Float[Tensor, " d"],
) -> None:
    """Head 0 of block 1: all look at `tokens` and write the answers' difference, by what lies there
    along the direction."""
    shown = shown_to(hf_model, tokenizer, 1)
    answers = WORD_CONCEPTS[CONCEPT].answers
    embedding = hf_model.transformer.wte.weight.double()
    good, bad = (
        embedding[tokenizer.convert_tokens_to_ids(list(words))].mean(0)
        for words in answers.values()
    )
    towards = (good - bad) / (good - bad).norm()
    root = (D_MODEL // N_HEADS) ** 0.25
    write_head(
        hf_model,
        1,
        0,
        query=torch.zeros(D_MODEL, 2, dtype=torch.float64),
        query_bias=torch.tensor([_ATTENTION * root, 0.0]),
        key=torch.stack(
            [_indicator(shown, tokens) * root, torch.zeros(D_MODEL, dtype=torch.float64)], 1
        ),
        value=direction[:, None],
        output=(towards * _ANSWERED * _gain(hf_model, shown[words], direction))[None],
    )


def _gain(hf_model: GPT2LMHeadModel, read: Float[Tensor, "word d"], direction: Tensor) -> float:
    """What turns the typical reading along the direction into the norm of an embedding."""
    typical = (read @ direction.double()).square().mean().sqrt()
    return float(hf_model.transformer.wte.weight.norm(dim=1).median() / typical)
