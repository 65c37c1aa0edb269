"""Texts become token ids; what is wrong with them is told in sentences.

Each `why_not_...` returns one sentence for the user, or None where nothing is wrong; `refuse`
raises the first of many. A tokenizer is asked for ids without special tokens, padding or
truncation, and never trusted with a word: a single token counts as a word's only if it spells that
word.

What would fool it: a tokenizer that reads the same text differently from call to call, or whose
`decode` does not undo what it encodes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def why_not_read(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> str | None:
    """Why the tokenizer does not read the whole of `text`, or None where it does."""
    if not ids:
        return (
            f"{text!r} becomes no token at all with this tokenizer ({len(tokenizer)} tokens); is it"
            " the model's own?"
        )
    if not _has_unknown(tokenizer, text, ids):
        return None
    pieces = re.findall(r"\w+|[^\w\s]+", text)
    read = dict(zip(pieces, encode(tokenizer, pieces), strict=True))
    unknown = [repr(piece) for piece, row in read.items() if _has_unknown(tokenizer, piece, row)]
    named = ", ".join(unknown) or "a part of it"
    return (
        f"{text!r} has words unknown to the tokenizer: {named}. Use words of its vocabulary"
        f" ({len(tokenizer)} tokens)."
    )


def _has_unknown(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> bool:
    """Whether the unknown token stands for something else than itself."""
    # GPT-2's is its end-of-text token, which a text may spell out.
    unknown = tokenizer.unk_token_id
    return unknown is not None and ids.count(unknown) > text.count(str(tokenizer.unk_token))


def why_not_one_token(tokenizer: PreTrainedTokenizerBase, word: str, ids: list[int]) -> str | None:
    """Why `ids` is not the one token of `word`, or None where it is."""
    if not ids:
        return "no token at all"
    if _has_unknown(tokenizer, word, ids):
        return f"unknown to the tokenizer ({str(tokenizer.unk_token)!r})"
    if len(ids) > 1:
        return count_and_show(tokenizer, ids)
    # Without an unknown token a vocabulary may leave out what it does not know: another word.
    spelled = str(tokenizer.decode(ids))
    return None if _plain(spelled) == _plain(word) else f"its token spells {spelled!r}"


def _why_no_first_token(
    tokenizer: PreTrainedTokenizerBase, word: str, ids: list[int]
) -> str | None:
    """Why `ids` have no first token that stands for `word`, or None where they have."""
    if len(ids) < 2 or _has_unknown(tokenizer, word, ids):
        return why_not_one_token(tokenizer, word, ids)
    spelled, beginning = (str(tokenizer.decode(part)) for part in (ids, ids[:1]))
    letters = _without_space(word)
    if _without_space(spelled) != letters:
        return f"its tokens spell {spelled!r}"
    # a lone space, or one byte of a character, begins too many other answers
    if not _plain(beginning) or not letters.startswith(_without_space(beginning)):
        return f"{count_and_show(tokenizer, ids)}, of which the first spells no beginning of it"
    return None


def word_ids(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], leading_space: bool
) -> list[list[int]]:
    """Token ids of each word alone, or after a space.

    The word after a space is read behind itself ("May May"), since some tokenizers add a space of
    their own at the start of a text and would see two in " May".
    """
    alone = encode(tokenizer, words)
    if not leading_space:
        return alone
    twice = encode(tokenizer, [f"{word} {word}" for word in words])
    return [
        both[len(once) :] if both[: len(once)] == once else both
        for once, both in zip(alone, twice, strict=True)
    ]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens, padding or truncation."""
    if not texts:
        return []
    try:
        encoded = tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False)
    # the tokenizers library raises bare Exceptions, e.g. for a word without unknown token
    except Exception as error:
        raise TokenisationError(
            f"the tokenizer failed on one of {len(texts)} texts, the first {texts[0]!r}: {error}. "
            "A word-level tokenizer needs an unknown token."
        ) from error
    return [list(row) for row in encoded["input_ids"]]


def bos_ids(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> list[int]:
    """Return the beginning-of-sequence token as a list of one, for texts with these `ids`.

    Raises:
        TokenisationError: the tokenizer has none, or a text starts with it already.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        raise TokenisationError(
            "prepend_bos=True, but the tokenizer has no beginning-of-sequence token; pass"
            " prepend_bos=False, or set tokenizer.bos_token to the token the model was trained"
            " with."
        )
    doubled = sum(row[:1] == [bos] for row in ids)
    if doubled:
        raise TokenisationError(
            f"{doubled} texts already start with {tokenizer.bos_token!r}, which would stand there"
            " twice; take it out of the texts or pass prepend_bos=False."
        )
    return [int(bos)]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id the model has an embedding for: padding is masked, so any will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
    return next(token for token in known if token is not None)


def padded(
    rows: list[list[int]], pad: int
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Return the rows padded on the right to one width, and where they are real.

    >>> padded([[5, 6], [7]], pad=0)
    (tensor([[5, 6],
            [7, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens, mask


def refuse(reasons: Iterable[str | None]) -> None:
    """Raise for the first reason and count the others."""
    first, *others = [reason for reason in reasons if reason] or [""]
    if first:
        more = f" ({len(others)} more prompts have such trouble.)" if others else ""
        raise TokenisationError(first + more)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    answers: Sequence[str],
    ids: list[list[int]],
    *,
    one_token: bool,
) -> list[list[int]]:
    """Return the token ids of each answer after its text.

    Args:
        ids: the token ids of `texts`.
        one_token: whether each answer has to be exactly one token; else at least one.

    Raises:
        TokenisationError: an answer is not such a continuation of its text, or (without
            `one_token`) two different answers begin with the same token.
    """
    joint = encode(tokenizer, [text + answer for text, answer in zip(texts, answers, strict=True)])
    refuse(
        _why_not_next(tokenizer, *each, one_token)
        for each in zip(texts, answers, ids, joint, strict=True)
    )
    answered = [both[len(row) :] for row, both in zip(ids, joint, strict=True)]
    refuse(_why_ambiguous(tokenizer, answers, answered))
    return answered


def _why_ambiguous(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], ids: list[list[int]]
) -> Iterator[str | None]:
    """Yield why the first token of an answer could mean an earlier one too, or None."""
    earlier: dict[int, tuple[str, list[int]]] = {}
    for answer, row in zip(answers, ids, strict=True):
        other, tokens = earlier.setdefault(row[0], (answer, row))
        if answer == other or row == tokens:
            yield None
        else:
            yield (
                f"the answers {other!r} ({show(tokenizer, tokens)}) and {answer!r}"
                f" ({show(tokenizer, row)}) begin with the same token, which does not say which of"
                " them is meant; leave one of them out."
            )


def _why_not_next(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    answer: str,
    ids: list[int],
    joint: list[int],
    one_token: bool,
) -> str | None:
    """Why `answer` is not the next token of `text`, or the next few; None where it is."""
    if joint[: len(ids)] != ids:
        return (
            f"{text!r} + {answer!r} is tokenised across the boundary: {show(tokenizer, ids)} alone,"
            f" {show(tokenizer, joint)} together. Move a space from the end of the text to the"
            " start of the answer."
        )
    why_not = why_not_one_token if one_token else _why_no_first_token
    reason = why_not(tokenizer, answer, joint[len(ids) :])
    if reason is None:
        return None
    where = f"the answer {answer!r} after {text!r} (tokens {show(tokenizer, ids)})"
    if not one_token:
        return f"{where} has no first token that stands for it: {reason}. Choose another answer."
    return (
        f"{where} must be exactly one token: {reason}. "
        "Start it with a space if the model would write one, or choose an answer that is one token."
    )


def item_positions(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    item_words: Sequence[str | tuple[str, int]],
    ids: list[list[int]],
) -> list[int]:
    """Return the position of each item: the text is tokenised up to the word and through it."""
    spans = [_span(text, item) for text, item in zip(texts, item_words, strict=True)]
    refuse(span for span in spans if isinstance(span, str))
    parts = [(text, *span) for text, span in zip(texts, spans, strict=True)]
    # The space in front of a word belongs to the word's token in most vocabularies.
    before = encode(tokenizer, [text[:start].removesuffix(" ") for text, start, _ in parts])
    through = encode(tokenizer, [text[:end] for text, _, end in parts])
    words = [text[start:end] for text, start, end in parts]
    refuse(
        _why_not_item(tokenizer, *each)
        for each in zip(texts, words, ids, before, through, strict=True)
    )
    return [len(row) for row in before]


def _span(text: str, item: str | tuple[str, int]) -> tuple[int, int] | str:
    """Where the whole word stands in `text`, or why that is not certain."""
    word, which = (item, None) if isinstance(item, str) else item
    spans = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    if not word or not spans:
        return (
            f"the item {word!r} does not occur in {text!r} as a whole word; give the word as the"
            " text spells it."
        )
    if which is None and len(spans) > 1:
        return (
            f"the item {word!r} occurs {len(spans)} times in {text!r}; say which, counted from 0 or"
            f" from the end: item_words=[({word!r}, -1), ...] is the last."
        )
    if which is not None and not -len(spans) <= which < len(spans):
        return (
            f"the item {word!r} occurs {len(spans)} times in {text!r}, so there is no occurrence"
            f" {which}."
        )
    return spans[which or 0]


def _why_not_item(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    word: str,
    ids: list[int],
    before: list[int],
    through: list[int],
) -> str | None:
    """Why `word` has no position of its own in `text`, or None where it has."""
    whole = ids[: len(before)] == before and ids[: len(through)] == through
    if whole and len(through) == len(before) + 1:
        return None
    return (
        f"the item {word!r} is not one token of its own in {text!r}, which becomes"
        f" {show(tokenizer, ids)}; leave this item out, or write it so that it is one (after a"
        " space, or in another spelling)."
    )


def count_and_show(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return e.g. "2 tokens: ' XV','III'"."""
    return f"{len(ids)} tokens: {show(tokenizer, ids)}"


def show(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return what each token spells, in quotes and with commas between."""
    return ",".join(repr(str(tokenizer.decode([token]))) for token in ids)


def _plain(word: str) -> str:
    """A word without what tokenizers are free to change: space around it, case, Unicode form."""
    return unicodedata.normalize("NFKC", word).strip().casefold()


def _without_space(words: str) -> str:
    """Like `_plain`, without space between words, which decoding may add around punctuation."""
    return "".join(_plain(words).split())
