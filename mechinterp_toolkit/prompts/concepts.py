"""What does a model answer where the answer depends on the class of a word?

A concept has words of two classes (the sentiment of an adjective, the gender a name suggests);
`word_prompts` puts them into templates whose answer depends on the class. `labelled_tokens` gives
any concept, of words, of a treebank or of a labelled corpus, as tokens with a class.

What would fool it: words, not prompts, are exchangeable, so they are held out and shuffled whole.

Source: the sentiment templates are in the manner of Tigges et al. 2023, arXiv:2310.15154.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable, TokenisationError, ToolkitError, nearest
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts.labelled import LabelledTokens, labelled_texts, tagged_tokens
from mechinterp_toolkit.prompts.ordinal_classes import Dropped, OrdinalClass, ordinal_class
from mechinterp_toolkit.prompts.prompt_set import PromptSet, build_prompts

PUNCTUATION = (",", ".")
"""Tokens that may sum up what stands before them."""

FEWEST_WORDS = 6
"""Words a class needs: with fewer, labels shuffled by word hardly ever beat 5 %."""


class WordConcept(NamedTuple):
    """A concept of two classes of words, and sentences whose end depends on it."""

    words: Mapping[str, tuple[str, ...]]
    """Class -> its words; the first class counts as positive."""

    answers: Mapping[str, tuple[str, ...]]
    """Class -> the words that are right behind a template with one of its words."""

    templates: tuple[str, ...]
    """Sentences with one blank, behind a space."""

    neutral: tuple[str, ...]
    """Texts that have nothing to do with the concept."""


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_NEUTRAL = (
    "The train leaves from the",
    "The house stands at the end of the",
    "They walked to the river and",
    "In the morning we went to the",
    "The paper lies on the",
    "There are seven days in a",
)

WORD_CONCEPTS: Mapping[str, WordConcept] = {
    "sentiment": WordConcept(
        words={
            "positive": _split(
                "wonderful excellent amazing brilliant fantastic lovely superb delightful charming"
                " beautiful awesome perfect outstanding magnificent terrific splendid remarkable"
                " enjoyable impressive touching funny clever nice fun"
            ),
            "negative": _split(
                "awful horrible dreadful disgusting boring dull ugly stupid poor nasty pathetic"
                " annoying disappointing miserable unpleasant ridiculous lousy weak bland mediocre"
                " tedious painful foolish worthless"
            ),
        },
        answers={"positive": ("good", "great"), "negative": ("bad", "terrible")},
        templates=(
            "I thought this movie was {}, I watched it twice. Overall the movie was",
            "The food here was {}, we ate at noon. In short the place is",
            "My friends found the book {}, they told me. All in all the book is",
            "We heard a {} concert, it lasted two hours. To sum up the music was",
            "It is a {} hotel, we stayed one night. I would say the hotel is",
            "The new game looks {}, people say. I think it is",
        ),
        neutral=_NEUTRAL,
    ),
    "gender": WordConcept(
        words={
            "female": _split(
                "Mary Sarah Anna Emma Laura Alice Jane Susan Linda Karen Lisa Nancy Helen Julia"
                " Kate Amy Rachel Rebecca Emily Maria"
            ),
            "male": _split(
                "John David Peter Paul Mark James Robert Michael William Thomas Daniel Richard"
                " George Henry Charles Jack Adam Kevin Brian Steven"
            ),
        },
        answers={"female": ("she",), "male": ("he",)},
        templates=(
            "Yesterday {} went to the shop, because",
            "When we met {}, we saw that",
            "Our neighbour {} called us, and then",
            "After work {} came home, where",
            "The teacher asked {} a question, but",
            "Everybody knows {} well, so when",
        ),
        neutral=_NEUTRAL,
    ),
}
"""The known concepts, one entry each."""


@dataclass(frozen=True, eq=False)
class WordPrompts:
    """Prompts about the words of a concept of two classes."""

    prompts: PromptSet
    """One prompt per word and template; `item` numbers the words of both classes."""

    label: Int[Tensor, " batch"]
    """1 for the positive class, 0 for the negative one."""

    template: Int[Tensor, " batch"]
    """Which template each prompt was made from."""

    names: tuple[str, str]
    """Positive class, negative class."""

    answers: tuple[tuple[int, ...], tuple[int, ...]]
    """Token ids of the answers to the positive and to the negative class."""

    summary: Bool[Tensor, "batch pos"]
    """True at punctuation behind the word: tokens that may sum up what was said."""

    neutral: PromptSet | None
    """Texts that have nothing to do with the concept; None where their words are not tokens."""

    dropped: tuple[Dropped, ...]
    """Words that are not one token, and the like."""

    @property
    def word(self) -> Int[Tensor, " batch"]:
        """Which word each prompt is about: the exchangeable unit."""
        assert self.prompts.item is not None
        return self.prompts.item

    @property
    def words(self) -> tuple[int, int]:
        """How many words the positive and the negative class have."""
        positive, negative = (len(self.word[self.label == label].unique()) for label in (1, 0))
        return positive, negative

    @property
    def at_word(self) -> Int[Tensor, " batch"]:
        """Position of the word."""
        assert self.prompts.item_position is not None
        return self.prompts.item_position

    @property
    def positive_minus_negative(self) -> tuple[Int[Tensor, "batch a"], Int[Tensor, "batch b"]]:
        """The answers to the positive and to the negative class, for every prompt."""
        n = len(self.prompts)
        positive, negative = (torch.tensor(ids).expand(n, -1) for ids in self.answers)
        return positive, negative

    @property
    def right_and_wrong(self) -> tuple[Int[Tensor, "batch n"], Int[Tensor, "batch n"]]:
        """The answers to the class of each prompt's word, and as many to the other class."""
        positive, negative = self.positive_minus_negative
        n, is_positive = min(map(len, self.answers)), self.label[:, None] == 1
        right = torch.where(is_positive, positive[:, :n], negative[:, :n])
        wrong = torch.where(is_positive, negative[:, :n], positive[:, :n])
        return right, wrong

    def labelled(self) -> LabelledTokens:
        """Return the same prompts as labelled tokens, judged on their answers."""
        label, unit = (torch.full_like(self.prompts.tokens, -1) for _ in range(2))
        here = torch.arange(len(self.prompts)), self.at_word
        label[here], unit[here] = self.label, self.word
        return LabelledTokens(
            tokens=self.prompts.tokens,
            mask=self.prompts.mask,
            label=label,
            unit=unit,
            names=(self.names[1], self.names[0]),
            unit_name="words",
            answers=self.right_and_wrong,
            dropped=self.dropped,
        )

    def halves(self, seed: int) -> Bool[Tensor, " batch"]:
        """Return True at the prompts about one half of the words of either class."""
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in (0, 1):
            words = self.word[self.label == label].unique()
            chosen.append(words[torch.randperm(len(words), generator=generator)[: len(words) // 2]])
        return torch.isin(self.word, torch.cat(chosen))

    def pairs(
        self, rows: Bool[Tensor, " batch"] | None = None
    ) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """Return the rows of positive and of negative prompts, pair by pair of one template.

        Args:
            rows: prompts to choose from; None takes all.
        """
        rows = torch.ones(len(self.prompts), dtype=torch.bool) if rows is None else rows
        positive, negative = [], []
        for template in self.template.unique().tolist():
            here = rows & (self.template == template)
            ours, theirs = ((here & (self.label == label)).nonzero().flatten() for label in (1, 0))
            n = min(len(ours), len(theirs))
            positive.append(ours[:n])
            negative.append(theirs[:n])
        return torch.cat(positive), torch.cat(negative)

    def select(self, rows: Bool[Tensor, " batch"]) -> WordPrompts:
        """Return some of the prompts."""
        return replace(
            self,
            prompts=self.prompts.select(rows),
            label=self.label[rows],
            template=self.template[rows],
            summary=self.summary[rows],
        )


def word_prompts(model: HookedModel, concept: str) -> WordPrompts:
    """Return prompts of a concept of `WORD_CONCEPTS`, about the words this model has tokens for.

    Raises:
        ToolkitError: no such concept.
        NotApplicable: fewer than `FEWEST_WORDS` words of a class, or no answer, is a token of its
            own for this model.
    """
    if concept not in WORD_CONCEPTS:
        raise ToolkitError(_unknown(concept))
    asked, tokenizer = WORD_CONCEPTS[concept], model.require_tokenizer()
    bos = bool(model.provenance.prepend_bos)
    classes = {
        name: _known_words(model, name, words, FEWEST_WORDS) for name, words in asked.words.items()
    }
    answers = {
        name: _known_words(model, f"answers to {name}", words, 1)
        for name, words in asked.answers.items()
    }
    words = [(word, name) for name in asked.words for word in classes[name].words]
    rows = [(template, item) for template in asked.templates for item in range(len(words))]
    prompts = build_prompts(
        tokenizer,
        [template.format(words[item][0]) for template, item in rows],
        [f" {answers[words[item][1]].words[0]}" for _, item in rows],
        prepend_bos=bos,
        items=[item for _, item in rows],
        classes=[words[item][1] for _, item in rows],
        item_words=[(words[item][0], 0) for _, item in rows],
    )
    positive, negative = asked.words
    return WordPrompts(
        prompts=prompts,
        label=torch.tensor([int(words[item][1] == positive) for _, item in rows]),
        template=torch.arange(len(asked.templates)).repeat_interleave(len(words)),
        names=(positive, negative),
        answers=(
            tuple(answers[positive].tokens.tolist()),
            tuple(answers[negative].tokens.tolist()),
        ),
        summary=_summary(tokenizer, prompts),
        neutral=_neutral(tokenizer, asked.neutral, bos),
        dropped=tuple(d for c in (*classes.values(), *answers.values()) for d in c.dropped),
    )


def reads_text(model: HookedModel) -> str | None:
    """Return why no text can be put to this model, or None."""
    if not model.is_transformer:
        return "it has no residual stream"
    if model.tokenizer is None:
        return "it comes without a tokenizer, so no words can be put to it"
    return None


def labelled_tokens(model: HookedModel, concept: str) -> LabelledTokens:
    """Return what `concept` names: a concept of words, a CoNLL-U treebank, or a labelled corpus.

    Raises:
        ToolkitError: it is none of them, or `word_prompts`, `tagged_tokens` or `labelled_texts`
            cannot use it.
    """
    if concept in WORD_CONCEPTS:
        return word_prompts(model, concept).labelled()
    path = Path(concept)
    if path.suffix == ".conllu" or (path.is_dir() and list(path.glob("*.conllu"))):
        return tagged_tokens(model, path)
    try:
        return labelled_texts(model, concept)
    except ToolkitError as error:
        if path.exists() or error.__cause__ is None:  # there is such a corpus: the name was right
            raise
        raise ToolkitError(f"{_unknown(concept)} Nor is it a corpus: {error}") from error


def _unknown(concept: str) -> str:
    return (
        f"no concept of words is called {concept!r}.{nearest(concept, WORD_CONCEPTS)} Known:"
        f" {', '.join(WORD_CONCEPTS)}."
    )


def _known_words(model: HookedModel, name: str, words: Sequence[str], least: int) -> OrdinalClass:
    known = ordinal_class(model.require_tokenizer(), name, words, cyclic=False)
    if len(known) < least:
        first = known.dropped[0]
        raise NotApplicable(
            f"{model.provenance.checkpoint} knows {len(known)} of {len(words)} words of {name} as"
            f" one token each, {least} are needed; {first.word!r}: {first.reason}."
        )
    largest = int(known.tokens.max())
    if largest >= model.cfg.d_vocab:
        raise NotApplicable(
            f"the tokenizer gives token {largest} to a word of {name}, but"
            f" {model.provenance.checkpoint} has an embedding for {model.cfg.d_vocab} tokens only;"
            " it is another model's tokenizer."
        )
    return known


def _summary(tokenizer: Any, prompts: PromptSet) -> Bool[Tensor, "batch pos"]:
    assert prompts.item_position is not None
    signs = [
        int(token)
        for token in prompts.tokens.unique()
        if tokenizer.decode([int(token)]).strip() in PUNCTUATION
    ]
    ids = torch.tensor(signs, dtype=torch.long)
    behind = torch.arange(prompts.tokens.shape[1]) > prompts.item_position[:, None]
    return torch.isin(prompts.tokens, ids) & behind & prompts.mask


def _neutral(tokenizer: Any, texts: Sequence[str], prepend_bos: bool) -> PromptSet | None:
    """The texts as prompts; their answer is not asked, so any known token stands for it."""
    try:
        return build_prompts(
            tokenizer,
            list(texts),
            [f" {text.split()[0].lower()}" for text in texts],
            prepend_bos=prepend_bos,
        )
    except TokenisationError:
        return None
