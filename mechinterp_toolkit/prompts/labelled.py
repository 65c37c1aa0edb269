"""Which tokens carry which class of a concept? Tokens of a treebank, or of labelled texts.

`tagged_tokens` reads the parts of speech of a CoNLL-U treebank, `labelled_texts` any corpus with a
column of labels, through `datasets`.

What would fool it: tokens are not exchangeable, words and texts are. Any split of forty words is
separable in a wide enough stream, so labels are held out and shuffled by `unit`, never by token.

Source: parts of speech as in Belrose et al. 2023, arXiv:2306.03819, from Universal Dependencies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts.corpora import labelled_rows
from mechinterp_toolkit.prompts.ordinal_classes import Dropped
from mechinterp_toolkit.prompts.prompt_set import hash_tokens
from mechinterp_toolkit.prompts.tokens import padded


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
    """Right and wrong answers at the last token; None where every next token is judged."""

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
        """Return each prompt's loss in nats: of right answers against wrong, or per next token.

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
        """Return 1 where the right answers have the larger mean logit, or the share of next tokens.

        Args:
            logits, part: as for `loss`.
        """
        if self.answers is None:
            tokens, there = self.tokens[part][:, 1:], self.mask[part][:, 1:]
            hits = (logits[:, :-1].cpu().argmax(-1) == tokens) & there
            return hits.double().sum(1) / there.sum(1)
        right, wrong = (self._answer(logits, part, ids[part]).mean(1) for ids in self.answers)
        return (right > wrong).double()

    def _answer(self, logits: Tensor, part: slice, ids: Tensor) -> Float[Tensor, "batch answers"]:
        last = self.mask[part].sum(1) - 1
        there = logits[torch.arange(len(logits)), last.to(logits.device)].cpu().double()
        return there.gather(1, ids)


def tagged_tokens(
    model: HookedModel, path: str | Path, *, texts: int = 400, length: int = 32, least: int = 10
) -> LabelledTokens:
    """Return sentences of a CoNLL-U treebank whose tokens carry the part of speech of their word.

    Args:
        model: whose tokenizer reads; every piece of a word gets its tag (UPOS).
        path: a .conllu file, or a folder with one.
        texts: sentences at most.
        length: tokens of a sentence that are kept.
        least: tags with fewer tokens than that are left without a class.

    Raises:
        ToolkitError: no CoNLL-U file, or fewer than two tags are left.
    """
    path, tokenizer = Path(path), model.require_tokenizer()
    files = sorted(path.glob("*.conllu")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ToolkitError(f"{path} holds no .conllu file.")
    tagged = (
        [
            (token, tag)
            for word, tag in words
            for token in tokenizer.encode(word, add_special_tokens=False)
        ][:length]
        for words in _sentences(files[0])
    )
    sentences = list(islice((sentence for sentence in tagged if len(sentence) >= 3), texts))
    counts = Counter(tag for sentence in sentences for _, tag in sentence)
    names = tuple(tag for tag in sorted(counts) if counts[tag] >= least)
    number = {tag: names.index(tag) if tag in names else -1 for tag in counts}
    tokens, mask, label = _padded(
        model,
        [[token for token, _ in sentence] for sentence in sentences],
        [[number[tag] for _, tag in sentence] for sentence in sentences],
        names,
    )
    dropped = tuple(
        Dropped(tag, f"{counts[tag]} tokens, fewer than {least}")
        for tag in sorted(counts)
        if tag not in names
    )
    unit = torch.where(label >= 0, tokens, -1)
    return LabelledTokens(tokens, mask, label, unit, names, "words", dropped=dropped)


def labelled_texts(
    model: HookedModel,
    source: str | Path,
    *,
    column: str = "text",
    label_column: str = "label",
    texts: int = 400,
    length: int = 64,
) -> LabelledTokens:
    """Return texts of a corpus with a label each, which their last token carries.

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
    encoded = (
        (tokenizer.encode(str(text), add_special_tokens=False)[:length], str(label))
        for text, label in labelled_rows(source, column, label_column)
    )
    rows = list(islice((row for row in encoded if row[0]), texts))
    names = tuple(sorted({label for _, label in rows}))
    labels = [[-1] * (len(ids) - 1) + [names.index(label)] for ids, label in rows]
    tokens, mask, label = _padded(model, [ids for ids, _ in rows], labels, names)
    unit = torch.where(label >= 0, torch.arange(len(rows))[:, None], -1)
    return LabelledTokens(tokens, mask, label, unit, names, "texts")


def _next_token_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Float[Tensor, " batch"]:
    nats = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).cpu().double(), tokens[:, 1:].flatten(), reduction="none"
    ).reshape(len(tokens), -1)
    there = mask[:, 1:].double()
    return (nats * there).sum(1) / there.sum(1)


def _sentences(file: Path) -> Iterator[list[tuple[str, str]]]:
    """Words with their tags, sentence by sentence; with the space in front of those behind one."""
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


def _padded(
    model: HookedModel, pieces: list[list[int]], labels: list[list[int]], names: tuple[str, ...]
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Tokens, mask and label, behind the beginning-of-sequence token where the model has one."""
    if len(names) < 2:
        raise ToolkitError(
            f"{len(pieces)} texts have the labels {list(names)}; a concept needs two or more."
        )
    bos = [int(model.require_tokenizer().bos_token_id)] if model.provenance.prepend_bos else []
    tokens, mask = padded([bos + ids for ids in pieces], pad=0)
    label, _ = padded([[-1] * len(bos) + marks for marks in labels], pad=-1)
    return tokens, mask, label
