"""Which tokens carry which class of a concept, and what does the model answer when it needs the
concept?

A concept is a label on tokens: the sentiment of an adjective, the gender a name suggests, the part
of speech of a word, the label of a text. `word_prompts` puts words of two classes into templates
whose answer depends on the class; `tagged_tokens` reads a CoNLL-U treebank, `labelled_texts` any
corpus with a column of labels, through `datasets`.

What would fool it: words, not prompts, are exchangeable. Any split of forty words is separable in a
wide enough stream, so labels are held out and shuffled by word (`unit`), never by token.

Source: the sentiment templates are in the manner of Tigges et al. 2023, arXiv:2310.15154; parts of
speech as in Belrose et al. 2023, arXiv:2306.03819, from Universal Dependencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable, TokenisationError, ToolkitError, nearest
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import (
    Dropped,
    OrdinalClass,
    PromptSet,
    build_prompts,
    hash_tokens,
    ordinal_class,
)
from mechinterp_toolkit.prompts.corpora import labelled_rows

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
        neutral=(
            "The train leaves from the",
            "The house stands at the end of the",
            "They walked to the river and",
            "In the morning we went to the",
            "The paper lies on the",
            "There are seven days in a",
        ),
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
        neutral=(
            "The train leaves from the",
            "The house stands at the end of the",
            "They walked to the river and",
            "In the morning we went to the",
            "The paper lies on the",
            "There are seven days in a",
        ),
    ),
}
"""The known concepts, one entry each."""


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Text of which some tokens have a class, and how the model is judged on it."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids, padded on the right."""

    mask: Bool[Tensor, "batch pos"]
    """True at real tokens."""

    label: Int[Tensor, "batch pos"]
    """Class of each token, -1 where it has none."""

    unit: Int[Tensor, "batch pos"]
    """Which exchangeable unit (word, or text) each labelled token belongs to."""

    names: tuple[str, ...]
    """Names of the classes."""

    unit_name: str
    """What a unit is, in the plural: "words" or "texts"."""

    answers: tuple[Int[Tensor, "batch right"], Int[Tensor, "batch wrong"]] | None = None
    """Right and wrong answers at the last token; None where the model is judged on every next
    token."""

    dropped: tuple[Dropped, ...] = ()
    """Words and texts that are missing, with the reason."""

    @property
    def labelled(self) -> Bool[Tensor, "batch pos"]:
        """True at tokens that have a class."""
        return self.label >= 0

    @property
    def hash(self) -> str:
        """See `PromptSet.hash`."""
        return hash_tokens(self.tokens, self.mask)

    def loss(
        self, logits: Float[Tensor, "batch pos d_vocab"], part: slice = slice(None)
    ) -> Float[Tensor, " batch"]:
        """Return each prompt's loss in nats, float64: of the right answers against the wrong ones,
        or per next token.

        Args:
            logits: of the prompts `part`.
            part: which prompts ran.
        """
        if self.answers is None:
            return _next_token_loss(logits, self.tokens[part], self.mask[part])
        right, wrong = (self._answer(logits, part, ids[part]).logsumexp(1) for ids in self.answers)
        return torch.nn.functional.softplus(wrong - right)

    def right(
        self, logits: Float[Tensor, "batch pos d_vocab"], part: slice = slice(None)
    ) -> Float[Tensor, " batch"]:
        """Return 1 where the answer is right (mean logit above the wrong ones'), or the share of
        right next tokens."""
        if self.answers is None:
            hits = (logits[:, :-1].cpu().argmax(-1) == self.tokens[part][:, 1:]) & self.mask[part][
                :, 1:
            ]
            return hits.double().sum(1) / self.mask[part][:, 1:].sum(1)
        return (self.difference(logits, part) > 0).double()

    def difference(
        self, logits: Float[Tensor, "batch pos d_vocab"], part: slice = slice(None)
    ) -> Tensor:
        """Return the mean logit of the right answers minus that of the wrong ones, per prompt;
        needs `answers`."""
        assert self.answers is not None
        means = [self._answer(logits, part, ids[part]).mean(1) for ids in self.answers]
        return means[0] - means[1]

    def _answer(self, logits: Tensor, part: slice, ids: Tensor) -> Float[Tensor, "batch answers"]:
        last = self.mask[part].sum(1) - 1
        there = logits[torch.arange(len(logits)), last.to(logits.device)].cpu().double()
        return there.gather(1, ids)


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
    """True at punctuation behind the word: tokens that say nothing of their own and may sum up what
    was said."""

    neutral: PromptSet | None
    """Texts that have nothing to do with the concept; None where the tokenizer does not know their
    words."""

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
        return tuple(torch.tensor(ids).expand(n, -1) for ids in self.answers)  # type: ignore[return-value]

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
        """Return True at the prompts of one half of the words of either class; the other half is to
        be judged on."""
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
    """Return the prompts of a concept of `WORD_CONCEPTS`, with the words that are one token for
    this model.

    Raises:
        ToolkitError: no such concept.
        NotApplicable: fewer than `FEWEST_WORDS` words of a class, or no answer, is a token of its
            own for this model.
    """
    if concept not in WORD_CONCEPTS:
        raise ToolkitError(_unknown(concept))
    asked, tokenizer = WORD_CONCEPTS[concept], model.require_tokenizer()
    classes = {
        name: _known_words(model, name, words, FEWEST_WORDS) for name, words in asked.words.items()
    }
    answers = {
        name: _known_words(model, f"answers to {name}", words, 1)
        for name, words in asked.answers.items()
    }
    positive, negative = asked.words
    known = [(word, name) for name in (positive, negative) for word in classes[name].words]
    spoken = [(template, i) for template in asked.templates for i in range(len(known))]
    bos = bool(model.provenance.prepend_bos)
    prompts = build_prompts(
        tokenizer,
        [template.format(known[i][0]) for template, i in spoken],
        [f" {answers[known[i][1]].words[0]}" for _, i in spoken],
        prepend_bos=bos,
        items=[i for _, i in spoken],
        classes=[known[i][1] for _, i in spoken],
        item_words=[(known[i][0], 0) for _, i in spoken],
    )
    return WordPrompts(
        prompts=prompts,
        label=torch.tensor([int(known[i][1] == positive) for _, i in spoken]),
        template=torch.arange(len(asked.templates)).repeat_interleave(len(known)),
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


def tagged_tokens(
    model: HookedModel, path: str | Path, *, texts: int = 400, length: int = 32, least: int = 10
) -> LabelledTokens:
    """Return sentences of a CoNLL-U treebank whose tokens carry the part of speech (UPOS) of the
    word they belong to.

    Args:
        model: whose tokenizer reads; every piece of a word gets its tag.
        path: a .conllu file, or a folder with one.
        texts: sentences at most.
        length: tokens of a sentence that are kept.
        least: tags with fewer tokens than that are left without a class.

    Raises:
        ToolkitError: no CoNLL-U file, or fewer than two tags are left.
    """
    path = Path(path)
    files = sorted(path.glob("*.conllu")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ToolkitError(f"{path} holds no .conllu file.")
    tokenizer = model.require_tokenizer()
    pieces: list[list[int]] = []
    tags: list[list[str]] = []
    for words in _sentences(files[0]):
        read = [(token, tag) for word, tag in words for token in _piece(tokenizer, word)][:length]
        if len(read) >= 3:
            pieces.append([token for token, _ in read])
            tags.append([tag for _, tag in read])
        if len(pieces) == texts:
            break
    counts = {
        tag: sum(row.count(tag) for row in tags)
        for tag in sorted({tag for row in tags for tag in row})
    }
    names = tuple(tag for tag, count in counts.items() if count >= least)
    dropped = tuple(
        Dropped(tag, f"{count} tokens, fewer than {least}")
        for tag, count in counts.items()
        if count < least
    )
    rows_of_labels = [[names.index(tag) if tag in names else -1 for tag in row] for row in tags]
    return _padded_text(model, pieces, rows_of_labels, None, names, "words", dropped)


def labelled_texts(
    model: HookedModel,
    source: str | Path,
    *,
    column: str = "text",
    label_column: str = "label",
    texts: int = 400,
    length: int = 64,
) -> LabelledTokens:
    """Return texts of a corpus with a label each, which their last token carries; read through
    `datasets`.

    Args:
        model: whose tokenizer reads.
        source: a file, a folder or a dataset's name, as for `corpora.texts`.
        column, label_column: where text and label stand.
        texts: at most so many.
        length: tokens of a text that are kept.

    Raises:
        ToolkitError: nothing readable, no such column, or a single label.
    """
    tokenizer = model.require_tokenizer()
    pieces, labels = [], []
    for text, label in labelled_rows(source, column, label_column):
        ids = tokenizer.encode(str(text), add_special_tokens=False)[:length]
        if ids:
            pieces.append(ids)
            labels.append(str(label))
        if len(pieces) == texts:
            break
    names = tuple(sorted(set(labels)))
    marked = [
        [-1] * (len(ids) - 1) + [names.index(label)]
        for ids, label in zip(pieces, labels, strict=True)
    ]
    return _padded_text(model, pieces, marked, list(range(len(pieces))), names, "texts", ())


def labelled_tokens(model: HookedModel, concept: str) -> LabelledTokens:
    """Return what `concept` names: a concept of words, a CoNLL-U file or folder, or a labelled
    corpus.

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


def _next_token_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Float[Tensor, " batch"]:
    nats = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).cpu().double(), tokens[:, 1:].flatten(), reduction="none"
    ).reshape(len(tokens), -1)
    there = mask[:, 1:].double()
    return (nats * there).sum(1) / there.sum(1)


def _known_words(model: HookedModel, name: str, words: Sequence[str], least: int) -> OrdinalClass:
    found = ordinal_class(model.require_tokenizer(), name, words, cyclic=False)
    if len(found) < least:
        first = found.dropped[0]
        raise NotApplicable(
            f"{model.provenance.checkpoint} knows {len(found)} of {len(words)} words of {name} as"
            f" one token each, {least} are needed; {first.word!r}: {first.reason}."
        )
    largest = int(found.tokens.max())
    if largest >= model.cfg.d_vocab:
        raise NotApplicable(
            f"the tokenizer gives token {largest} to a word of {name}, but"
            f" {model.provenance.checkpoint} has an embedding for {model.cfg.d_vocab} tokens only;"
            " it is another model's tokenizer."
        )
    return found


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


def _sentences(file: Path) -> Iterator[list[tuple[str, str]]]:
    """Words with their tags, sentence by sentence; words behind the first have the space in front
    of them."""
    words: list[tuple[str, str]] = []
    space = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        if len(cells) == 10 and cells[0].isdigit():
            words.append((space + cells[1], cells[3]))
            space = "" if "SpaceAfter=No" in cells[9] else " "
        elif not line:
            if words:
                yield words
            words, space = [], ""
    if words:
        yield words


def _piece(tokenizer: Any, word: str) -> list[int]:
    ids: list[int] = tokenizer.encode(word, add_special_tokens=False)
    return ids


def _padded_text(
    model: HookedModel,
    pieces: list[list[int]],
    labels: list[list[int]],
    units: list[int] | None,
    names: tuple[str, ...],
    unit_name: str,
    dropped: tuple[Dropped, ...],
) -> LabelledTokens:
    if len(names) < 2:
        raise ToolkitError(
            f"{len(pieces)} texts have the labels {list(names)}; a concept needs two or more."
        )
    tokenizer = model.require_tokenizer()
    bos = [int(tokenizer.bos_token_id)] if model.provenance.prepend_bos else []
    width = max(map(len, pieces)) + len(bos)
    tokens = torch.zeros(len(pieces), width, dtype=torch.long)
    label, unit = (torch.full_like(tokens, -1) for _ in range(2))
    for i, (ids, marks) in enumerate(zip(pieces, labels, strict=True)):
        tokens[i, : len(ids) + len(bos)] = torch.tensor(bos + ids)
        label[i, len(bos) : len(ids) + len(bos)] = torch.tensor(marks)
    lengths = torch.tensor([len(ids) + len(bos) for ids in pieces])
    mask = torch.arange(width) < lengths[:, None]
    chosen = label >= 0
    unit[chosen] = tokens[chosen] if units is None else torch.tensor(units)[chosen.nonzero()[:, 0]]
    return LabelledTokens(tokens, mask, label, unit, names, unit_name, None, dropped)
