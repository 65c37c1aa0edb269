"""Which days, months, numbers, ... are one token each, and which were left out and why?

`ordinal_classes` finds the items of the known classes that are exactly one token of a tokenizer, in
one of four variants: after a space or at the start of a text, and with the first letter as written
or with its case inverted ("monday", "One"). `ordinal_class` does so for a class of your own.

What would fool it: another model's tokenizer whose vocabulary has about the right size; and single
tokens too rare for a small model to have learned, which look like missing structure. Classes share
tokens ("May" is a month and a prefix, "I" a letter and a numeral): `OrdinalTokens.shared` lists
them, since counts over classes would take them twice. So would counts over variants: an item whose
inverted form is no other token is left out of the inverted variant, but a tokenizer that ignores
spaces has the same tokens with and without `leading_space`. And with its case inverted a word can
be another word: "march", "may", "sun".

Source: Gould, Ong, Ogden and Conmy 2024, Successor Heads, arXiv:2312.09230; classes and variants as
in Tigges, Hanna, Yu and Biderman 2024, LLM Circuit Analyses Are Consistent Across Training and
Scale, arXiv:2407.10827, whose lists have each number twice, since inverting "17" changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError, nearest
from mechinterp_toolkit.prompts.tokens import why_not_one_token, word_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Variant = Literal["leading space", "as is", "leading space, case inverted", "as is, case inverted"]
Case = Literal["as written", "inverted"]

_VARIANTS: Mapping[tuple[bool, str], Variant] = {
    (True, "as written"): "leading space",
    (False, "as written"): "as is",
    (True, "inverted"): "leading space, case inverted",
    (False, "inverted"): "as is, case inverted",
}


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
    "months": _cycle(
        "January February March April May June July August September October November December"
    ),
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
"""The known classes, one entry each. Published lists disagree on whether prefixes wrap: see
`ordinal_classes`."""

STANDARD_CLASSES = ("days", "months", "numbers", "letters", "number_words")
"""The classes used where none are named."""

NEVER_INVERTED: Mapping[str, str] = {
    "letters": "never inverted: a small letter is another sign, and 'a' and 'i' are words",
    "roman": "never inverted: with another case numerals are letters or words, as 'i' and 'v'",
}
"""Name -> reason of each class of `ORDINAL_CLASSES` whose inverted form would be something else."""

LARGEST_PADDING = 1024
"""Rows an embedding may have beyond its tokenizer: Megatron pads to 128 x tensor-parallel ranks,
1024 at 8 ranks."""


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
    """The kept items, with their case as in `variant` (no space in front)."""

    tokens: Int[Tensor, " item"]
    """Token id of each kept item."""

    index: Int[Tensor, " item"]
    """Place of each kept item in the whole class, from 0; has gaps where items were dropped."""

    order: int
    """Length of the whole class, dropped items included; the period of a cyclic class."""

    cyclic: bool
    """Whether the first item follows the last."""

    variant: Variant
    """Whether the tokens are those after a space or at the start of a text, and whether the case is
    inverted."""

    dropped: tuple[Dropped, ...]
    """The items left out, each with its reason."""

    def __post_init__(self) -> None:
        index, kept = self.index.tolist(), len(self.words)
        if not kept == len(self.tokens) == len(index) == self.order - len(self.dropped):
            raise TokenisationError(
                f"OrdinalClass {self.name!r} of order {self.order} has {kept} words,"
                f" {len(self.tokens)} tokens, {len(index)} indices and {len(self.dropped)} dropped;"
                " each item is either kept or dropped."
            )
        if index != sorted(set(index)) or not set(index) <= set(range(self.order)):
            raise TokenisationError(
                f"OrdinalClass.index must rise within 0..{self.order - 1}, not {index}."
            )

    def __len__(self) -> int:
        return len(self.words)

    @property
    def leading_space(self) -> bool:
        """Whether the tokens are those of the words after a space."""
        return self.variant.startswith("leading space")

    def pairs(self, offset: int = 1) -> Int[Tensor, "pair 2"]:
        """Return the pairs of items that lie `offset` apart, as positions in `words` and `tokens`.

        Args:
            offset: +1 for successors, -1 for predecessors, 0 for each item with itself.

        Returns:
            One row `(item, item + offset)` per pair of which both items were kept, in the order of
            the first. A cyclic class wraps round its whole length, dropped items included; others
            do not.

        >>> seasons = OrdinalClass(
        ...     name="seasons", words=("spring", "summer", "winter"),
        ...     tokens=torch.tensor([7, 5, 9]), index=torch.tensor([0, 1, 3]), order=4,
        ...     cyclic=True, variant="as is",
        ...     dropped=(Dropped("autumn", "2 tokens: 'aut','umn'"),),
        ... )
        >>> seasons.pairs(+1).tolist()
        [[0, 1], [2, 0]]
        """
        target = self.index + offset
        if self.cyclic:
            target = target % self.order
        return (target[:, None] == self.index).nonzero()


@dataclass(frozen=True, eq=False)
class OrdinalTokens:
    """The ordinal classes a tokenizer can express, and everything it cannot."""

    classes: Mapping[str, OrdinalClass]
    """The usable classes by name, in the order asked for."""

    skipped: Mapping[str, str]
    """Name -> reason of each class asked for that has too few single-token items, or no inverted
    form."""

    shared: tuple[Shared, ...]
    """Tokens that belong to more than one of `classes`."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """One sentence per class that lost items or was left out, and per token of several."""
        lost = (f"{c.name}: {_loss(c)}" for c in self.classes.values() if c.dropped)
        skipped = (f"{name} left out: {reason}" for name, reason in self.skipped.items())
        shared = (
            f"{s.members[0][1]!r} is one token of {' and '.join(name for name, _ in s.members)}"
            for s in self.shared
        )
        return (*lost, *skipped, *shared)


def ordinal_classes(
    tokenizer: PreTrainedTokenizerBase,
    names: str | Sequence[str] = STANDARD_CLASSES,
    *,
    leading_space: bool = True,
    case: Case = "as written",
    minimum: int = 3,
    cyclic: Mapping[str, bool] | None = None,
) -> OrdinalTokens:
    """Find the single-token items of the ordinal classes in `names`.

    Args:
        names: keys of `ORDINAL_CLASSES`.
        leading_space: take the token a word has after a space; else the one at a text's start.
        case: "inverted" for the words with the case of their first letter inverted ("monday",
            "One"); classes that have no such form, numbers among them, are skipped.
        minimum: a class with fewer items left is skipped, with its reason.
        cyclic: overrides whether a class wraps, e.g. `{"month_prefixes": False}`.

    Returns:
        The usable classes, with every dropped item, skipped class and token shared between classes.

    Raises:
        TokenisationError: a name or case is unknown, or no class is usable.

    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> found = ordinal_classes(build_tokenizer(), ("days", "roman"))
    >>> found.classes["days"].words[:2], found.skipped
    (('Monday', 'Tuesday'), {})
    """
    names, cyclic = (names,) if isinstance(names, str) else tuple(names), dict(cyclic or {})
    for name in (*names, *cyclic):
        if name not in ORDINAL_CLASSES:
            raise TokenisationError(
                f"no ordinal class is called {name!r}.{nearest(name, ORDINAL_CLASSES)} Known:"
                f" {', '.join(ORDINAL_CLASSES)}."
            )
    usable, skipped = {}, {}
    for name in names:
        words, wraps = ORDINAL_CLASSES[name]
        if case == "inverted" and (reason := _why_not_inverted(name, words)):
            skipped[name] = reason
            continue
        wraps = cyclic.get(name, wraps)
        ordinal = ordinal_class(
            tokenizer, name, words, cyclic=wraps, leading_space=leading_space, case=case
        )
        if len(ordinal) < minimum:
            few = f"{len(ordinal)} usable items, fewer than {minimum}"
            skipped[name] = f"{few}; {_loss(ordinal, most=1)}"
        else:
            usable[name] = ordinal
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise TokenisationError(
            f"none of the ordinal classes asked for is usable with this tokenizer ({len(tokenizer)}"
            f" tokens): {reasons or 'no class was named'}. Use the model's own tokenizer, or name"
            " other classes."
        )
    return OrdinalTokens(usable, skipped, _shared(usable))


def ordinal_class(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    words: Sequence[str],
    *,
    cyclic: bool,
    leading_space: bool = True,
    case: Case = "as written",
) -> OrdinalClass:
    """Tokenise one class of ordered `words`, keeping those that are one token of their own.

    `ordinal_classes` does this for the classes of `ORDINAL_CLASSES`; use this one for a class of
    your own.

    Args:
        words: as written, in order.
        case: "inverted" to tokenise them with the case of their first letter inverted. A word that
            has the same token as one as written is dropped: a number, or any word of a tokenizer
            that ignores case.

    Raises:
        TokenisationError: the tokenizer fails on a word, or `case` is unknown.

    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> tokenizer = build_tokenizer()
    >>> some = ordinal_class(tokenizer, "some", ("Monday", "Noday", "Friday"), cyclic=False)
    >>> some.words, some.index.tolist(), some.dropped[0].word
    (('Monday', 'Friday'), [0, 2], 'Noday')
    """
    if (True, case) not in _VARIANTS:
        raise TokenisationError(f"case={case!r}: expected 'as written' or 'inverted'.")
    ids_of = word_ids(tokenizer, words, leading_space)
    as_written: dict[tuple[int, ...], str] = {}
    if case == "inverted":
        as_written = {tuple(ids): word for word, ids in zip(words, ids_of, strict=True)}
        words = [_inverted(word) for word in words]
        ids_of = word_ids(tokenizer, words, leading_space)
    kept: dict[int, tuple[str, int]] = {}
    dropped: list[Dropped] = []
    for index, (word, ids) in enumerate(zip(words, ids_of, strict=True)):
        reason = why_not_one_token(tokenizer, word, ids)
        if reason is None and tuple(ids) in as_written:
            reason = f"same token as {as_written[tuple(ids)]!r} as written"
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
        variant=_VARIANTS[leading_space, case],
        dropped=tuple(dropped),
    )


def has_ordinal_tokens(
    tokenizer: PreTrainedTokenizerBase | None,
    names: str | Sequence[str] = STANDARD_CLASSES,
    *,
    d_vocab: int | None = None,
) -> str | None:
    """Return why no ordinal class can be put to a model with this tokenizer; None where one can.

    Args:
        tokenizer: the model's tokenizer, or None where it has none.
        names: the classes of which one must be usable.
        d_vocab: size of the model's vocabulary. A tokenizer far smaller, or with items beyond it,
            is not the model's.
    """
    if tokenizer is None:
        return "the model has no tokenizer, so there are no ordinal words to give it."
    size = len(tokenizer)
    if size < 2 or (d_vocab is not None and d_vocab - size > max(size, LARGEST_PADDING)):
        wanted = "" if d_vocab is None else f", the model {d_vocab}"
        return (
            f"the tokenizer has {size} tokens{wanted}: it is not the model's own (transformers"
            " makes a one-token tokenizer without a word where vocabulary files are missing); load"
            " the one the model was trained with."
        )
    try:
        classes = ordinal_classes(tokenizer, names).classes
    except TokenisationError as error:
        return str(error)
    largest = max(int(c.tokens.max()) for c in classes.values())
    if d_vocab is not None and largest >= d_vocab:
        return (
            f"the tokenizer gives token {largest} to an ordinal word, but the model's vocabulary"
            f" ends at {d_vocab - 1}."
        )
    return None


def first_reasons(dropped: Sequence[Dropped], most: int = 3) -> str:
    """Return the first `most` reasons in one line, and how many more there are."""
    shown = "; ".join(f"{d.word!r}: {d.reason}" for d in dropped[:most])
    return shown + (f"; and {len(dropped) - most} more" if len(dropped) > most else "")


def _inverted(word: str) -> str:
    return word[:1].swapcase() + word[1:]


def _why_not_inverted(name: str, words: Sequence[str]) -> str | None:
    """Why a class has no inverted variant, or None where it has one."""
    if all(_inverted(word) == word for word in words):
        return "no case to invert: the words would be those as written, counted twice"
    return NEVER_INVERTED.get(name)


def _shared(classes: Mapping[str, OrdinalClass]) -> tuple[Shared, ...]:
    members: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for ordinal in classes.values():
        for token, word in zip(ordinal.tokens.tolist(), ordinal.words, strict=True):
            members[token].append((ordinal.name, word))
    return tuple(Shared(token, tuple(items)) for token, items in members.items() if len(items) > 1)


def _loss(ordinal: OrdinalClass, most: int = 3) -> str:
    return (
        f"{len(ordinal.dropped)} of {ordinal.order} items dropped"
        f" ({first_reasons(ordinal.dropped, most)})"
    )
