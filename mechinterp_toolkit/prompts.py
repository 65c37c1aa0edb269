"""Which tokens does a text become, and is the answer exactly one of them?

Texts become tokens here and nowhere else. `ordinal_classes` finds the items of days, months, numbers, ... that are one
token each and says which were left out and why. `build_prompts` makes a `PromptSet` from texts and answers: it refuses
an answer that is not the single next token of its text, an unknown token, and an item whose position is not certain.
`succession_prompts` makes " Monday, Tuesday, Wednesday," -> " Thursday" prompts and their shuffled control.

What would fool it: another model's tokenizer whose vocabulary has about the right size; and single tokens too rare for
a small model to have learned, which look like missing structure. Classes share tokens ("May" is a month and a prefix,
"I" a letter and a numeral): `OrdinalTokens.shared` lists them, since counts over classes would take them twice.

Source: Gould, Ong, Ogden and Conmy 2024, Successor Heads, arXiv:2312.09230; classes as in Tigges, Hanna, Yu and
Biderman 2024, LLM Circuit Analyses Are Consistent Across Training and Scale, arXiv:2407.10827.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Variant = Literal["leading space", "as is"]


class OrdinalWords(NamedTuple):
    """The words of an ordinal class, before any tokenizer is asked."""

    words: tuple[str, ...]
    """The items in order."""

    cyclic: bool
    """Whether the first item follows the last."""


def _cycle(words: str) -> OrdinalWords:
    return OrdinalWords(tuple(words.split()), cyclic=True)


def _line(words: str) -> OrdinalWords:
    return OrdinalWords(tuple(words.split()), cyclic=False)


ORDINAL_CLASSES: Mapping[str, OrdinalWords] = {
    "days": _cycle("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "months": _cycle("January February March April May June July August September October November December"),
    "numbers": _line(" ".join(map(str, range(1, 201)))),
    "letters": _line(" ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
    "number_words": _line(
        "one two three four five six seven eight nine ten "
        "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
    ),
    "ordinals": _line("first second third fourth fifth sixth seventh eighth ninth tenth"),
    "day_prefixes": _cycle("Mon Tue Wed Thu Fri Sat Sun"),
    "month_prefixes": _cycle("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"),
    "roman": _line("I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX"),
}
"""The known classes, one entry each. Published lists disagree on whether prefixes wrap: see `ordinal_classes`."""

STANDARD_CLASSES = ("days", "months", "numbers", "letters", "number_words")
"""The classes used where none are named."""

LARGEST_PADDING = 1024
"""Rows an embedding may have beyond its tokenizer: Megatron pads to 128 x tensor-parallel ranks, 1024 at 8 ranks."""


@dataclass(frozen=True)
class Dropped:
    """Something that was asked for and is not in the result."""

    word: str
    """The item, prompt or class that is missing."""

    reason: str
    """Why, e.g. "2 tokens: ' XV','III'"."""


@dataclass(frozen=True)
class Shared:
    """One token that stands for items of several classes."""

    token: int
    """The token id."""

    members: tuple[tuple[str, str], ...]
    """`(class, word)` of each item it stands for."""


@dataclass(frozen=True, eq=False)
class OrdinalClass:
    """The items of one ordinal class that are exactly one token each, in order."""

    name: str
    """Name of the class, e.g. "days"."""

    words: tuple[str, ...]
    """The kept items, as written in the class (no space in front)."""

    tokens: Int[Tensor, " item"]
    """Token id of each kept item."""

    index: Int[Tensor, " item"]
    """Place of each kept item in the whole class, from 0; has gaps where items were dropped."""

    order: int
    """Length of the whole class, dropped items included; the period of a cyclic class."""

    cyclic: bool
    """Whether the first item follows the last."""

    variant: Variant
    """Whether the tokens are those of the words after a space or at the start of a text."""

    dropped: tuple[Dropped, ...]
    """The items left out, each with its reason."""

    def __post_init__(self) -> None:
        index, kept = self.index.tolist(), len(self.words)
        if not kept == len(self.tokens) == len(index) == self.order - len(self.dropped):
            raise TokenisationError(
                f"OrdinalClass {self.name!r} of order {self.order} has {kept} words, {len(self.tokens)} tokens, "
                f"{len(index)} indices and {len(self.dropped)} dropped; each item is either kept or dropped."
            )
        if index != sorted(set(index)) or not set(index) <= set(range(self.order)):
            raise TokenisationError(f"OrdinalClass.index must rise within 0..{self.order - 1}, not {index}.")

    def __len__(self) -> int:
        return len(self.words)

    def pairs(self, offset: int = 1) -> Int[Tensor, "pair 2"]:
        """Return the pairs of items that lie `offset` apart, as positions in `words` and `tokens`.

        Args:
            offset: +1 for successors, -1 for predecessors, 0 for each item with itself.

        Returns:
            One row `(item, item + offset)` per pair of which both items were kept, in the order of the first. A
            cyclic class wraps round its whole length, dropped items included; others do not.

        >>> seasons = OrdinalClass(
        ...     name="seasons", words=("spring", "summer", "winter"), tokens=torch.tensor([7, 5, 9]),
        ...     index=torch.tensor([0, 1, 3]), order=4, cyclic=True, variant="as is",
        ...     dropped=(Dropped("autumn", "2 tokens: 'aut','umn'"),),
        ... )
        >>> seasons.pairs(+1).tolist()
        [[0, 1], [2, 0]]
        """
        place = {index: position for position, index in enumerate(self.index.tolist())}
        targets = ((position, index + offset) for index, position in place.items())
        wrapped = ((position, target % self.order if self.cyclic else target) for position, target in targets)
        found = [(position, place[target]) for position, target in wrapped if target in place]
        return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class OrdinalTokens:
    """The ordinal classes a tokenizer can express, and everything it cannot."""

    classes: Mapping[str, OrdinalClass]
    """The usable classes by name, in the order asked for."""

    skipped: Mapping[str, str]
    """Name -> reason of each class asked for that has too few single-token items."""

    shared: tuple[Shared, ...]
    """Tokens that belong to more than one of `classes`."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """One sentence per class that lost items, class left out and token shared between classes."""
        lost = (f"{c.name}: {_loss(c)}" for c in self.classes.values() if c.dropped)
        skipped = (f"{name} left out: {reason}" for name, reason in self.skipped.items())
        shared = (
            f"{s.members[0][1]!r} is one token of {' and '.join(name for name, _ in s.members)}" for s in self.shared
        )
        return (*lost, *skipped, *shared)


def ordinal_classes(
    tokenizer: PreTrainedTokenizerBase,
    names: str | Sequence[str] = STANDARD_CLASSES,
    *,
    leading_space: bool = True,
    minimum: int = 3,
    cyclic: Mapping[str, bool] | None = None,
) -> OrdinalTokens:
    """Find the single-token items of the ordinal classes in `names`.

    Args:
        names: keys of `ORDINAL_CLASSES`.
        leading_space: take the token a word has after a space, as in running text; else the one at a text's start.
        minimum: a class with fewer items left is skipped, with its reason.
        cyclic: overrides whether a class wraps, e.g. `{"month_prefixes": False}`.

    Returns:
        The usable classes, with every dropped item, skipped class and token shared between classes.

    Raises:
        TokenisationError: a name is unknown, or no class is usable.
    """
    names, cyclic = (names,) if isinstance(names, str) else tuple(names), dict(cyclic or {})
    for name in (*names, *cyclic):
        if name not in ORDINAL_CLASSES:
            raise TokenisationError(
                f"no ordinal class is called {name!r}.{nearest(name, ORDINAL_CLASSES)} Known: {', '.join(ORDINAL_CLASSES)}."
            )
    usable, skipped = {}, {}
    for name in names:
        words, wraps = ORDINAL_CLASSES[name]
        found = ordinal_class(tokenizer, name, words, cyclic=cyclic.get(name, wraps), leading_space=leading_space)
        if len(found) < minimum:
            skipped[name] = f"{len(found)} usable items, fewer than {minimum}; {_loss(found, most=1)}"
        else:
            usable[name] = found
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise TokenisationError(
            f"none of the ordinal classes asked for is usable with this tokenizer ({len(tokenizer)} tokens): "
            f"{reasons or 'no class was named'}. Use the model's own tokenizer, or name other classes."
        )
    return OrdinalTokens(usable, skipped, _shared(usable))


def ordinal_class(
    tokenizer: PreTrainedTokenizerBase, name: str, words: Sequence[str], *, cyclic: bool, leading_space: bool = True
) -> OrdinalClass:
    """Tokenise one class of ordered `words`, keeping those that are exactly one known token of their own.

    `ordinal_classes` does this for the classes of `ORDINAL_CLASSES`; use this one for a class of your own.

    Raises:
        TokenisationError: the tokenizer fails on a word.
    """
    kept: dict[int, tuple[str, int]] = {}
    dropped: list[Dropped] = []
    for index, (word, ids) in enumerate(zip(words, _word_ids(tokenizer, words, leading_space), strict=True)):
        reason = _why_not_one_token(tokenizer, word, ids)
        if reason is None and ids[0] in kept:
            reason = f"same token as {kept[ids[0]][0]!r}"
        if reason is None:
            kept[ids[0]] = (word, index)
        else:
            dropped.append(Dropped(word, reason))
    return OrdinalClass(
        name=name,
        words=tuple(word for word, _ in kept.values()),
        tokens=torch.tensor(list(kept), dtype=torch.long),
        index=torch.tensor([index for _, index in kept.values()], dtype=torch.long),
        order=len(words),
        cyclic=cyclic,
        variant="leading space" if leading_space else "as is",
        dropped=tuple(dropped),
    )


def has_ordinal_tokens(
    tokenizer: PreTrainedTokenizerBase | None,
    names: str | Sequence[str] = STANDARD_CLASSES,
    *,
    d_vocab: int | None = None,
) -> str | None:
    """Return why no ordinal class can be put to a model with this tokenizer, or None where at least one can.

    Args:
        tokenizer: the model's tokenizer, or None where it has none.
        names: the classes of which one must be usable.
        d_vocab: size of the model's vocabulary. A tokenizer far smaller, or with items beyond it, is not the model's.
    """
    if tokenizer is None:
        return "the model has no tokenizer, so there are no ordinal words to give it."
    size = len(tokenizer)
    if size < 2 or (d_vocab is not None and d_vocab - size > max(size, LARGEST_PADDING)):
        wanted = "" if d_vocab is None else f", the model {d_vocab}"
        return (
            f"the tokenizer has {size} tokens{wanted}: it is not the model's own (transformers makes a one-token "
            "tokenizer without a word where vocabulary files are missing); load the one the model was trained with."
        )
    try:
        found = ordinal_classes(tokenizer, names)
    except TokenisationError as error:
        return str(error)
    largest = max(int(c.tokens.max()) for c in found.classes.values())
    if d_vocab is not None and largest >= d_vocab:
        return (
            f"the tokenizer gives token {largest} to an ordinal word, but the model's vocabulary ends at {d_vocab - 1}."
        )
    return None


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Tokenised prompts, each with one answer token and the position at which it is asked for."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids, padded on the right; what stands in the padding is of no consequence under a causal mask."""

    mask: Bool[Tensor, "batch pos"]
    """True at real tokens, False at padding."""

    answer: Int[Tensor, " batch"]
    """The one token that is right at `position`."""

    position: Int[Tensor, " batch"]
    """The position whose next token is asked for: the last real one."""

    texts: tuple[str, ...]
    """The texts as given, without beginning-of-sequence token."""

    item: Int[Tensor, " batch"] | None = None
    """Label of the exchangeable unit: place of the item within its whole class, from 0. None where not given."""

    classes: tuple[str, ...] | None = None
    """Name of the class `item` belongs to. None where not given."""

    item_position: Int[Tensor, " batch"] | None = None
    """Position of the token that is the item. None where not given."""

    dropped: tuple[Dropped, ...] = ()
    """Prompts that were asked for and could not be made, or were not chosen, with the reason."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "dropped" and value is not None and len(value) != len(self.tokens):
                raise TokenisationError(
                    f"PromptSet.{field.name} has {len(value)} entries for {len(self.tokens)} prompts; give one each."
                )
        if not len(self.tokens) or self.mask.shape != self.tokens.shape:
            raise TokenisationError(
                f"PromptSet.tokens has shape {tuple(self.tokens.shape)} and mask {tuple(self.mask.shape)}; "
                "expected the same shape and at least one prompt."
            )
        if not self.mask[:, 0].all() or (self.mask[:, 1:] & ~self.mask[:, :-1]).any():
            raise TokenisationError("PromptSet.mask has a gap or starts with padding; pad on the right only.")
        last = self.mask.sum(1) - 1
        if not torch.equal(self.position.to(last), last):
            raise TokenisationError("PromptSet.position must be the last real token of each prompt.")
        if self.item is not None and (self.item < 0).any():
            raise TokenisationError("PromptSet.item is a place within a class, from 0; leave items out, never -1.")
        if self.item_position is not None and not ((self.item_position >= 0) & (self.item_position <= last)).all():
            raise TokenisationError("PromptSet.item_position lies outside its prompt.")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of real ids and lengths; the width and content of padding do not count."""
        return hash_tokens(self.tokens, self.mask)

    def select(self, rows: Bool[Tensor, " batch"] | Int[Tensor, " row"]) -> PromptSet:
        """Return the prompts where `rows` is True, or those at the indices `rows` (repeats allowed); same width.

        Raises:
            TokenisationError: a mask of the wrong length, or nothing selected.
        """
        if rows.dtype == torch.bool and len(rows) != len(self):
            raise TokenisationError(f"the mask has {len(rows)} entries for {len(self)} prompts; give one each.")
        chosen = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).tolist()
        if not chosen:
            raise TokenisationError(f"none of the {len(self)} prompts was selected; a PromptSet holds at least one.")
        per_prompt = [field.name for field in fields(self) if field.name != "dropped"]
        return replace(self, **{name: _rows(getattr(self, name), chosen) for name in per_prompt})

    def batches(self, size: int) -> Iterator[PromptSet]:
        """Yield the prompts in order, `size` at a time (the last may be smaller), all of the same width.

        Raises:
            TokenisationError: `size` is below 1.
        """
        if size < 1:
            raise TokenisationError(f"a batch of {size} prompts is no batch; give size >= 1.")
        return (self.select(rows) for rows in torch.arange(len(self)).split(size))


def hash_tokens(tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None) -> str:
    """Return what `Finding.prompts_hash` holds: the first 16 hex digits of the SHA-256 of real ids and lengths."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    whole = torch.cat([torch.tensor([len(tokens)]), mask.sum(1).cpu().long(), tokens[mask].cpu().long()])
    return hashlib.sha256(whole.numpy().astype("<i8").tobytes()).hexdigest()[:16]


def build_prompts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    prepend_bos: bool,
    items: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    item_words: Sequence[str | tuple[str, int]] | None = None,
) -> PromptSet:
    """Tokenise `texts` and check that each answer is the single next token of its text.

    An answer counts as one token when text and answer *together* become the text's tokens and one more: that is what
    the model predicts, and it finds a space on the wrong side of the boundary.

    Args:
        answers: with their leading space where they have one: " Thursday".
        prepend_bos: put the beginning-of-sequence token in front; special tokens are never added otherwise.
        items: place of each prompt's item within its class; goes with `classes`.
        classes: name of the class of each prompt's item.
        item_words: the word in each text whose token is the item; `("Monday", -1)` says which one (counted from 0, or
            from the end) where it occurs more than once.

    Returns:
        Prompts padded on the right, in the order given.

    Raises:
        TokenisationError: an empty text, an answer that is not one token, an unknown token, an item that is not found,
            not one token or not unique, or no beginning-of-sequence token where one is asked for.
    """
    _check_request(texts, answers=answers, items=items, classes=classes, item_words=item_words)
    ids = _encode(tokenizer, texts)
    bos = _bos(tokenizer, ids) if prepend_bos else []
    _refuse(_why_not_read(tokenizer, text, row) for text, row in zip(texts, ids, strict=True))
    answer = _answer_tokens(tokenizer, texts, answers, ids)
    where = None if item_words is None else _item_positions(tokenizer, texts, item_words, ids)
    tokens, mask = _padded([bos + row for row in ids], _pad_id(tokenizer))
    return PromptSet(
        tokens=tokens,
        mask=mask,
        answer=torch.tensor(answer),
        position=mask.sum(1) - 1,
        texts=tuple(texts),
        item=None if items is None else torch.tensor(list(items)),
        classes=None if classes is None else tuple(classes),
        item_position=None if where is None else torch.tensor(where) + len(bos),
    )


def succession_prompts(
    tokenizer: PreTrainedTokenizerBase,
    classes: Mapping[str, OrdinalClass],
    *,
    prepend_bos: bool,
    length: int = 3,
    shuffled: bool = False,
    seed: int = 0,
    per_class: int | None = None,
    separator: str = ",",
) -> PromptSet:
    """Make prompts that show `length` consecutive items and ask for the next: " Monday, Tuesday, Wednesday,".

    Every item is written as its class has it, the first included: in the leading-space variant the text starts with a
    space. Otherwise the first item is another token than the class's, or several (" eleven" is one token of GPT-2,
    "eleven" two), and a prompt and its shuffled twin differ in more than order.

    The shuffled twin is the control of in-context lift: same prompts in the same order, same answers, the shown items
    put in an order drawn uniformly from all but the right one. `item` is the item whose successor is the answer in both;
    it is shown last in the ordered prompts, and stands at `item_position` in the twin.

    Args:
        classes: `OrdinalTokens.classes`.
        length: items shown. A cyclic class wraps and must be longer than that; others end with their last item.
        shuffled: make the twin.
        seed: of the orders of the twin; nothing else is random.
        per_class: at most that many prompts per class, evenly spread over it.
        separator: written after each item; "" for a tokenizer that knows no comma.

    Returns:
        The prompts, class by class; sequences that need a dropped item, or that `per_class` left out, are in `dropped`.

    Raises:
        TokenisationError: no prompt can be made, the separator is unknown, or the classes are of another tokenizer.
    """
    _check_succession(tokenizer, classes, length, shuffled, per_class, separator)
    windows, dropped = _choose(classes, length, per_class)
    if not windows:
        raise TokenisationError(f"no sequence of {length} items and their successor: {_first_reasons(dropped)}.")
    generator = torch.Generator().manual_seed(seed)
    orders = [_wrong_order(length, generator) if shuffled else list(range(length)) for _ in windows]
    prompts = build_prompts(
        tokenizer,
        [w.text(order, separator) for w, order in zip(windows, orders, strict=True)],
        [w.spelled(length) for w in windows],
        prepend_bos=prepend_bos,
        items=[int(w.ordinal.index[w.items[-2]]) for w in windows],
        classes=[w.ordinal.name for w in windows],
        item_words=[w.ordinal.words[w.items[-2]] for w in windows],
    )
    _check_same_tokens(prompts, windows)
    return replace(prompts, dropped=tuple(dropped))


class _Window(NamedTuple):
    """Consecutive items of a class; the last is the answer, the others are shown."""

    ordinal: OrdinalClass
    items: tuple[int, ...]

    def spelled(self, place: int) -> str:
        lead = " " if self.ordinal.variant == "leading space" else ""
        return lead + self.ordinal.words[self.items[place]]

    def text(self, order: Sequence[int], separator: str) -> str:
        return "".join(self.spelled(place) + separator for place in order)


def _choose(
    classes: Mapping[str, OrdinalClass], length: int, per_class: int | None
) -> tuple[list[_Window], list[Dropped]]:
    """The windows of all classes that become prompts, and what was left out."""
    windows: list[_Window] = []
    dropped: list[Dropped] = []
    for ordinal in classes.values():
        possible, lost = _windows(ordinal, length)
        chosen = possible if per_class is None else _spread(possible, per_class)
        if len(chosen) < len(possible):
            left_out = f"{len(chosen)} of {len(possible)} sequences used (per_class={per_class})"
            lost.append(Dropped(ordinal.name, left_out))
        windows, dropped = windows + chosen, dropped + lost
    return windows, dropped


def _windows(ordinal: OrdinalClass, length: int) -> tuple[list[_Window], list[Dropped]]:
    """Every run of `length + 1` consecutive items, and the runs that a dropped item breaks."""
    place = {index: position for position, index in enumerate(ordinal.index.tolist())}
    missing = sorted(set(range(ordinal.order)) - set(place))
    names = dict(zip(missing, ordinal.dropped, strict=True)) | {
        i: Dropped(ordinal.words[p], "") for i, p in place.items()
    }
    possible, lost = [], []
    for start in range(ordinal.order if ordinal.cyclic else ordinal.order - length):
        run = [(start + step) % ordinal.order for step in range(length + 1)]
        gaps = [names[index] for index in run if index not in place]
        if gaps:
            shown = ", ".join(names[index].word for index in run[:-1])
            reasons = "; ".join(f"{gap.word!r}: {gap.reason}" for gap in gaps)
            lost.append(Dropped(f"{shown} -> {names[run[-1]].word}", f"{ordinal.name} lost {reasons}"))
        else:
            possible.append(_Window(ordinal, tuple(place[index] for index in run)))
    return possible, lost


def _spread(windows: list[_Window], most: int) -> list[_Window]:
    """At most `most` windows at even distances; the same ones whatever the seed, so that twins stay twins."""
    count = min(most, len(windows))
    return [windows[i * len(windows) // count] for i in range(count)]


def _wrong_order(length: int, generator: torch.Generator) -> list[int]:
    """A permutation drawn uniformly from all but the identity."""
    while True:
        order = torch.randperm(length, generator=generator).tolist()
        if order != sorted(order):
            return order


def _check_succession(
    tokenizer: PreTrainedTokenizerBase,
    classes: Mapping[str, OrdinalClass],
    length: int,
    shuffled: bool,
    per_class: int | None,
    separator: str,
) -> None:
    if length < 1 + shuffled:
        raise TokenisationError(
            f"length={length}: show at least one item, and at least two where they are to be shuffled."
        )
    if per_class is not None and per_class < 1:
        raise TokenisationError(f"per_class={per_class} leaves no prompt; give at least 1, or None for all.")
    for ordinal in classes.values():
        if length >= ordinal.order:
            raise TokenisationError(
                f"{ordinal.name} has {ordinal.order} items, so {length} shown items leave none to ask for; "
                f"use length <= {ordinal.order - 1}."
            )
    if separator.strip() and _why_not_read(tokenizer, separator, _encode(tokenizer, [separator])[0]):
        raise TokenisationError(
            f"the separator {separator!r} is unknown to the tokenizer; pass separator='' or a word of its vocabulary."
        )


def _check_same_tokens(prompts: PromptSet, windows: Sequence[_Window]) -> None:
    """The prompts must consist of the classes' own tokens, or scores and prompts speak of different things."""
    for window, row, mask, answer in zip(windows, prompts.tokens, prompts.mask, prompts.answer, strict=True):
        *shown, successor = window.ordinal.tokens[list(window.items)].tolist()
        if int(answer) != successor or not set(shown) <= set(row[mask].tolist()):
            raise TokenisationError(
                f"{window.text(range(len(shown)), ',')!r} does not become the tokens of the class "
                f"{window.ordinal.name}; make the classes with this tokenizer, and prompts in the same variant "
                f"({window.ordinal.variant}) with a separator that leaves the items whole."
            )


def _check_request(texts: Sequence[str], **others: Sequence[object] | None) -> None:
    if isinstance(texts, str) or not len(texts):
        raise TokenisationError(f"expected a sequence of at least one text, not {texts!r}.")
    for name, values in others.items():
        if values is not None and (isinstance(values, str) or len(values) != len(texts)):
            raise TokenisationError(
                f"{name} must be a sequence with one entry per text ({len(texts)}), not {values!r}."
            )
    if (others["items"] is None) != (others["classes"] is None):
        raise TokenisationError("items and classes go together: an item is a place within its class.")
    empty = [place for place, text in enumerate(texts) if not text.strip()]
    if empty:
        raise TokenisationError(f"text {empty[0]} is empty ({texts[empty[0]]!r}); a prompt needs at least one token.")


def _answer_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], answers: Sequence[str], ids: list[list[int]]
) -> list[int]:
    joint = _encode(tokenizer, [text + answer for text, answer in zip(texts, answers, strict=True)])
    _refuse(_why_not_next(tokenizer, *each) for each in zip(texts, answers, ids, joint, strict=True))
    return [row[-1] for row in joint]


def _why_not_next(
    tokenizer: PreTrainedTokenizerBase, text: str, answer: str, ids: list[int], joint: list[int]
) -> str | None:
    """Why `answer` is not the single next token of `text`, or None where it is."""
    if joint[: len(ids)] != ids:
        return (
            f"{text!r} + {answer!r} is tokenised across the boundary: {_show(tokenizer, ids)} alone, "
            f"{_show(tokenizer, joint)} together. Move a space from the end of the text to the start of the answer."
        )
    reason = _why_not_one_token(tokenizer, answer, joint[len(ids) :])
    if reason is None:
        return None
    return (
        f"the answer {answer!r} after {text!r} (tokens {_show(tokenizer, ids)}) must be exactly one token: {reason}. "
        "Start it with a space if the model would write one, or choose an answer that is one token."
    )


def _item_positions(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    item_words: Sequence[str | tuple[str, int]],
    ids: list[list[int]],
) -> list[int]:
    """The position of each item, found by tokenising the text up to the word and through it."""
    spans = [_span(text, item) for text, item in zip(texts, item_words, strict=True)]
    _refuse(span for span in spans if isinstance(span, str))
    found = [span for span in spans if not isinstance(span, str)]
    # the space in front of a word belongs to the word's token in most vocabularies
    before = _encode(tokenizer, [text[:start].removesuffix(" ") for text, (start, _) in zip(texts, found, strict=True)])
    through = _encode(tokenizer, [text[:end] for text, (_, end) in zip(texts, found, strict=True)])
    words = [text[slice(*span)] for text, span in zip(texts, found, strict=True)]
    _refuse(_why_not_item(tokenizer, *each) for each in zip(texts, words, ids, before, through, strict=True))
    return [len(row) for row in before]


def _span(text: str, item: str | tuple[str, int]) -> tuple[int, int] | str:
    """Where the whole word stands in `text`, or why that is not certain."""
    word, which = (item, None) if isinstance(item, str) else item
    spans = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    if not word or not spans:
        return f"the item {word!r} does not occur in {text!r} as a whole word; give the word as the text spells it."
    if which is None and len(spans) > 1:
        return (
            f"the item {word!r} occurs {len(spans)} times in {text!r}; say which, counted from 0 or from the end: "
            f"item_words=[({word!r}, -1), ...] is the last."
        )
    if which is not None and not -len(spans) <= which < len(spans):
        return f"the item {word!r} occurs {len(spans)} times in {text!r}, so there is no occurrence {which}."
    return spans[which or 0]


def _why_not_item(
    tokenizer: PreTrainedTokenizerBase, text: str, word: str, ids: list[int], before: list[int], through: list[int]
) -> str | None:
    """Why `word` has no position of its own in `text`, or None where it has."""
    if ids[: len(before)] == before and ids[: len(through)] == through and len(through) == len(before) + 1:
        return None
    return (
        f"the item {word!r} is not one token of its own in {text!r}, which becomes {_show(tokenizer, ids)}; "
        "leave this item out, or write it so that it is one (after a space, or in another spelling)."
    )


def _why_not_read(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> str | None:
    """Why the tokenizer does not read the whole of `text`, or None where it does."""
    if not ids:
        return f"{text!r} becomes no token at all with this tokenizer ({len(tokenizer)} tokens); is it the model's own?"
    if not _has_unknown(tokenizer, text, ids):
        return None
    pieces = re.findall(r"\w+|[^\w\s]+", text)
    unknown = [p for p, row in zip(pieces, _encode(tokenizer, pieces), strict=True) if _has_unknown(tokenizer, p, row)]
    named = ", ".join(map(repr, dict.fromkeys(unknown))) or "a part of it"
    return (
        f"{text!r} has words unknown to the tokenizer: {named}. Use words of its vocabulary ({len(tokenizer)} tokens)."
    )


def _has_unknown(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> bool:
    """Whether the unknown token stands for something else than itself (GPT-2 uses its end-of-text token as such)."""
    unknown = tokenizer.unk_token_id
    return unknown is not None and ids.count(unknown) > text.count(str(tokenizer.unk_token))


def _why_not_one_token(tokenizer: PreTrainedTokenizerBase, word: str, ids: list[int]) -> str | None:
    """Why `ids` is not the one token of `word`, or None where it is."""
    if not ids:
        return "no token at all"
    if _has_unknown(tokenizer, word, ids):
        return f"unknown to the tokenizer ({str(tokenizer.unk_token)!r})"
    if len(ids) > 1:
        return f"{len(ids)} tokens: {_show(tokenizer, ids)}"
    # a vocabulary without an unknown token may leave out what it does not know, and spell another word
    spelled = str(tokenizer.decode(ids))
    return None if _plain(spelled) == _plain(word) else f"its token spells {spelled!r}"


def _word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], leading_space: bool) -> list[list[int]]:
    """Token ids of each word alone, or after a space.

    The word after a space is read behind itself ("May May"), since some tokenizers add a space of their own at the
    start of a text and would see two in " May".
    """
    alone = _encode(tokenizer, words)
    if not leading_space:
        return alone
    twice = _encode(tokenizer, [f"{word} {word}" for word in words])
    return [both[len(one) :] if both[: len(one)] == one else both for one, both in zip(alone, twice, strict=True)]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens, padding or truncation."""
    if not texts:
        return []
    try:
        encoded = tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions, e.g. for a word without unknown token
        raise TokenisationError(
            f"the tokenizer failed on one of {len(texts)} texts, the first {texts[0]!r}: {error}. "
            "A word-level tokenizer needs an unknown token."
        ) from error
    return [list(row) for row in encoded["input_ids"]]


def _bos(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None:
        raise TokenisationError(
            "prepend_bos=True, but the tokenizer has no beginning-of-sequence token; pass prepend_bos=False, or set "
            "tokenizer.bos_token to the token the model was trained with."
        )
    doubled = sum(row[:1] == [bos] for row in ids)
    if doubled:
        raise TokenisationError(
            f"{doubled} texts already start with {tokenizer.bos_token!r}, which would stand there twice; "
            "take it out of the texts or pass prepend_bos=False."
        )
    return [int(bos)]


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id the model has an embedding for will do: padding is masked and lies behind what is read."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
    return next(token for token in known if token is not None)


def _padded(rows: list[list[int]], pad: int) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens, mask


def _refuse(reasons: Iterator[str | None]) -> None:
    """Raise for the first reason and count the others."""
    found = [reason for reason in reasons if reason]
    if found:
        others = f" ({len(found) - 1} more prompts have such trouble.)" if len(found) > 1 else ""
        raise TokenisationError(found[0] + others)


def _rows(value: Any, chosen: list[int]) -> Any:
    """The chosen rows of one field of a `PromptSet`: a tensor, a tuple of texts, or None."""
    if value is None:
        return None
    return tuple(value[row] for row in chosen) if isinstance(value, tuple) else value[chosen]


def _shared(classes: Mapping[str, OrdinalClass]) -> tuple[Shared, ...]:
    members: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for ordinal in classes.values():
        for token, word in zip(ordinal.tokens.tolist(), ordinal.words, strict=True):
            members[token].append((ordinal.name, word))
    return tuple(Shared(token, tuple(items)) for token, items in members.items() if len(items) > 1)


def _loss(ordinal: OrdinalClass, most: int = 3) -> str:
    return f"{len(ordinal.dropped)} of {ordinal.order} items dropped ({_first_reasons(ordinal.dropped, most)})"


def _first_reasons(dropped: Sequence[Dropped], most: int = 3) -> str:
    shown = "; ".join(f"{d.word!r}: {d.reason}" for d in dropped[:most])
    return shown + (f"; and {len(dropped) - most} more" if len(dropped) > most else "")


def _show(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return ",".join(repr(str(tokenizer.decode([token]))) for token in ids)


def _plain(word: str) -> str:
    """A word without the differences tokenizers are free to remove: space around it, case, Unicode form."""
    return unicodedata.normalize("NFKC", word).strip().casefold()
