"""Prompts with one right answer token each, and a known position of the item they are about.

`build_prompts` makes a `PromptSet` from texts and answers: it refuses an answer that is not the
single next token of its text (or, where first tokens are asked for, whose first token could mean
another answer), an unknown token, and an item whose position is not certain. `succession_prompts`
makes " Monday, Tuesday, Wednesday," -> " Thursday" prompts and their shuffled control from the
classes that `ordinal_classes` finds.

What would fool it: another model's tokenizer whose vocabulary has about the right size; and a first
token that other continuations of the text begin with too: only the answers given are compared with
each other.

Source of the succession prompts: Gould, Ong, Ogden and Conmy 2024, Successor Heads,
arXiv:2312.09230.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts.ordinal_classes import (
    Dropped,
    OrdinalClass,
    first_reasons,
)
from mechinterp_toolkit.prompts.tokens import (
    answer_ids,
    bos_ids,
    count_and_show,
    encode,
    item_positions,
    pad_id,
    padded,
    refuse,
    why_not_read,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


AnswersOf = Literal["one token", "first token"]

_OF_THE_WHOLE_SET = ("dropped", "shortened")
"""Fields of `PromptSet` that have no entry per prompt."""


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Tokenised prompts, each with one answer token and the position at which it is asked for."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids, padded on the right; what stands in the padding is of no consequence under a
    causal mask."""

    mask: Bool[Tensor, "batch pos"]
    """True at real tokens, False at padding."""

    answer: Int[Tensor, " batch"]
    """The one token that is right at `position`; the first of its answer where `shortened` lists
    the answer."""

    position: Int[Tensor, " batch"]
    """The position whose next token is asked for: the last real one."""

    texts: tuple[str, ...]
    """The texts as given, without beginning-of-sequence token."""

    item: Int[Tensor, " batch"] | None = None
    """Label of the exchangeable unit: place of the item within its whole class, from 0. None where
    not given."""

    classes: tuple[str, ...] | None = None
    """Name of the class `item` belongs to. None where not given."""

    item_position: Int[Tensor, " batch"] | None = None
    """Position of the token that is the item. None where not given."""

    dropped: tuple[Dropped, ...] = ()
    """Prompts that were asked for and could not be made, or were not chosen, with the reason."""

    shortened: tuple[Dropped, ...] = ()
    """Answers of several tokens of which `answer` is the first, each once with its tokens; `select`
    keeps them all."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if (
                field.name not in _OF_THE_WHOLE_SET
                and value is not None
                and len(value) != len(self.tokens)
            ):
                raise TokenisationError(
                    f"PromptSet.{field.name} has {len(value)} entries for {len(self.tokens)}"
                    " prompts; give one each."
                )
        if not len(self.tokens) or self.mask.shape != self.tokens.shape:
            raise TokenisationError(
                f"PromptSet.tokens has shape {tuple(self.tokens.shape)} and mask"
                f" {tuple(self.mask.shape)}; expected the same shape and at least one prompt."
            )
        if not self.mask[:, 0].all() or (self.mask[:, 1:] & ~self.mask[:, :-1]).any():
            raise TokenisationError(
                "PromptSet.mask has a gap or starts with padding; pad on the right only."
            )
        last = self.mask.sum(1) - 1
        if not torch.equal(self.position.to(last), last):
            raise TokenisationError(
                "PromptSet.position must be the last real token of each prompt."
            )
        if self.item is not None and (self.item < 0).any():
            raise TokenisationError(
                "PromptSet.item is a place within a class, from 0; leave items out, never -1."
            )
        if (
            self.item_position is not None
            and not ((self.item_position >= 0) & (self.item_position <= last)).all()
        ):
            raise TokenisationError("PromptSet.item_position lies outside its prompt.")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of real ids and lengths; the width and content of
        padding do not count."""
        return hash_tokens(self.tokens, self.mask)

    def select(self, rows: Bool[Tensor, " batch"] | Int[Tensor, " row"]) -> PromptSet:
        """Return the prompts where `rows` is True, or those at the indices `rows` (repeats
        allowed); same width.

        Raises:
            TokenisationError: a mask of the wrong length, or nothing selected.
        """
        if rows.dtype == torch.bool and len(rows) != len(self):
            raise TokenisationError(
                f"the mask has {len(rows)} entries for {len(self)} prompts; give one each."
            )
        chosen = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).tolist()
        if not chosen:
            raise TokenisationError(
                f"none of the {len(self)} prompts was selected; a PromptSet holds at least one."
            )
        per_prompt = [field.name for field in fields(self) if field.name not in _OF_THE_WHOLE_SET]
        return replace(self, **{name: _rows(getattr(self, name), chosen) for name in per_prompt})

    @classmethod
    def joined(cls, parts: Sequence[PromptSet]) -> PromptSet:
        """Return prompt sets of one width, all with items and classes, as one.

        Raises:
            TokenisationError: different widths, or a set without items.
        """
        widths = {part.tokens.shape[1] for part in parts}
        if len(widths) != 1 or any(
            part.item is None or part.item_position is None for part in parts
        ):
            raise TokenisationError(
                f"sets of widths {sorted(widths)} cannot be joined; give sets of one width, all"
                " with items."
            )
        whole: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("tokens", "mask", "answer", "position", "item", "item_position")
        }
        return cls(
            **whole,
            texts=tuple(text for part in parts for text in part.texts),
            classes=tuple(name for part in parts for name in part.classes or ()),
            dropped=tuple(one for part in parts for one in part.dropped),
        )

    def batches(self, size: int) -> Iterator[PromptSet]:
        """Yield the prompts in order, `size` at a time (the last may be smaller), all of the same
        width.

        Raises:
            TokenisationError: `size` is below 1.
        """
        if size < 1:
            raise TokenisationError(f"a batch of {size} prompts is no batch; give size >= 1.")
        return (self.select(rows) for rows in torch.arange(len(self)).split(size))


def hash_tokens(
    tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
) -> str:
    """Return what `Finding.prompts_hash` holds: the first 16 hex digits of the SHA-256 of real ids
    and lengths."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    whole = torch.cat(
        [torch.tensor([len(tokens)]), mask.sum(1).cpu().long(), tokens[mask].cpu().long()]
    )
    return hashlib.sha256(whole.numpy().astype("<i8").tobytes()).hexdigest()[:16]


def build_prompts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    prepend_bos: bool,
    answers_of: AnswersOf = "one token",
    items: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    item_words: Sequence[str | tuple[str, int]] | None = None,
) -> PromptSet:
    """Tokenise `texts` and check that each answer is the single next token of its text.

    An answer counts as one token when text and answer *together* become the text's tokens and one
    more: that is what the model predicts, and it finds a space on the wrong side of the boundary.

    Args:
        answers: with their leading space where they have one: " Thursday".
        prepend_bos: put the beginning-of-sequence token in front; special tokens are never added
            otherwise.
        answers_of: "one token" refuses an answer of several tokens; "first token" takes the first
            of them, and lists the answer and its tokens in `PromptSet.shortened`.
        items: place of each prompt's item within its class; goes with `classes`.
        classes: name of the class of each prompt's item.
        item_words: the word in each text whose token is the item; `("Monday", -1)` says which one
            (counted from 0, or from the end) where it occurs more than once.

    Returns:
        Prompts padded on the right, in the order given.

    Raises:
        TokenisationError: an empty text, an answer that is not one token, two different answers
            with the same first token, an unknown token, an item that is not found, not one token or
            not unique, or no beginning-of-sequence token where one is asked for.
    """
    if answers_of not in ("one token", "first token"):
        raise TokenisationError(
            f"answers_of={answers_of!r}: expected 'one token' or 'first token'."
        )
    _check_request(texts, answers=answers, items=items, classes=classes, item_words=item_words)
    ids = encode(tokenizer, texts)
    bos = bos_ids(tokenizer, ids) if prepend_bos else []
    refuse(why_not_read(tokenizer, text, row) for text, row in zip(texts, ids, strict=True))
    answered = answer_ids(tokenizer, texts, answers, ids, one_token=answers_of == "one token")
    several = [(answer, row) for answer, row in zip(answers, answered, strict=True) if len(row) > 1]
    where = None if item_words is None else item_positions(tokenizer, texts, item_words, ids)
    tokens, mask = padded([bos + row for row in ids], pad_id(tokenizer))
    return PromptSet(
        tokens=tokens,
        mask=mask,
        answer=torch.tensor([row[0] for row in answered]),
        position=mask.sum(1) - 1,
        texts=tuple(texts),
        item=None if items is None else torch.tensor(list(items)),
        classes=None if classes is None else tuple(classes),
        item_position=None if where is None else torch.tensor(where) + len(bos),
        shortened=tuple(
            dict.fromkeys(
                Dropped(answer, count_and_show(tokenizer, row)) for answer, row in several
            )
        ),
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
    """Make prompts that show `length` consecutive items and ask for the next: " Monday, Tuesday,
    Wednesday,".

    Every item is written as its class has it, the first included: in the leading-space variant the
    text starts with a space. Otherwise the first item is another token than the class's, or several
    (" eleven" is one token of GPT-2, "eleven" two), and a prompt and its shuffled twin differ in
    more than order.

    The shuffled twin is the control of in-context lift: same prompts in the same order, same
    answers, the shown items put in an order drawn uniformly from all but the right one. `item` is
    the item whose successor is the answer in both; it is shown last in the ordered prompts, and
    stands at `item_position` in the twin.

    Args:
        classes: `OrdinalTokens.classes`.
        length: items shown. A cyclic class wraps and must be longer than that; others end with
            their last item.
        shuffled: make the twin.
        seed: of the orders of the twin; nothing else is random.
        per_class: at most that many prompts per class, evenly spread over it.
        separator: written after each item; "" for a tokenizer that knows no comma.

    Returns:
        The prompts, class by class; sequences that need a dropped item, or that `per_class` left
        out, are in `dropped`.

    Raises:
        TokenisationError: no prompt can be made, the separator is unknown, or the classes are of
            another tokenizer.
    """
    _check_succession(tokenizer, classes, length, shuffled, per_class, separator)
    windows, dropped = _choose(classes, length, per_class)
    if not windows:
        raise TokenisationError(
            f"no sequence of {length} items and their successor: {first_reasons(dropped)}."
        )
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
        lead = " " if self.ordinal.leading_space else ""
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
            lost.append(
                Dropped(f"{shown} -> {names[run[-1]].word}", f"{ordinal.name} lost {reasons}")
            )
        else:
            possible.append(_Window(ordinal, tuple(place[index] for index in run)))
    return possible, lost


def _spread(windows: list[_Window], most: int) -> list[_Window]:
    """At most `most` windows at even distances; the same ones whatever the seed, so that twins stay
    twins."""
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
            f"length={length}: show at least one item, and at least two where they are to be"
            " shuffled."
        )
    if per_class is not None and per_class < 1:
        raise TokenisationError(
            f"per_class={per_class} leaves no prompt; give at least 1, or None for all."
        )
    for ordinal in classes.values():
        if length >= ordinal.order:
            raise TokenisationError(
                f"{ordinal.name} has {ordinal.order} items, so {length} shown items leave none to"
                f" ask for; use length <= {ordinal.order - 1}."
            )
    if separator.strip() and why_not_read(tokenizer, separator, encode(tokenizer, [separator])[0]):
        raise TokenisationError(
            f"the separator {separator!r} is unknown to the tokenizer; pass separator='' or a word"
            " of its vocabulary."
        )


def _check_same_tokens(prompts: PromptSet, windows: Sequence[_Window]) -> None:
    """The prompts must consist of the classes' own tokens, or scores and prompts speak of different
    things."""
    for window, row, mask, answer in zip(
        windows, prompts.tokens, prompts.mask, prompts.answer, strict=True
    ):
        *shown, successor = window.ordinal.tokens[list(window.items)].tolist()
        if int(answer) != successor or not set(shown) <= set(row[mask].tolist()):
            raise TokenisationError(
                f"{window.text(range(len(shown)), ',')!r} does not become the tokens of the class"
                f" {window.ordinal.name}; make the classes with this tokenizer, and prompts in the"
                f" same variant ({window.ordinal.variant}) with a separator that leaves the items"
                " whole."
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
        raise TokenisationError(
            "items and classes go together: an item is a place within its class."
        )
    empty = [place for place, text in enumerate(texts) if not text.strip()]
    if empty:
        raise TokenisationError(
            f"text {empty[0]} is empty ({texts[empty[0]]!r}); a prompt needs at least one token."
        )


def _rows(value: Any, chosen: list[int]) -> Any:
    """The chosen rows of one field of a `PromptSet`: a tensor, a tuple of texts, or None."""
    if value is None:
        return None
    return tuple(value[row] for row in chosen) if isinstance(value, tuple) else value[chosen]
