"""Prompts that show consecutive items and ask for the next one, and their shuffled control.

`succession_prompts` makes " Monday, Tuesday, Wednesday," -> " Thursday" from the classes that
`ordinal_classes` finds. The control shows the same items in another order and has the same answer.

What would fool it: items written as other tokens than those of their class; that is refused.

Source: Gould, Ong, Ogden and Conmy 2024, Successor Heads, arXiv:2312.09230.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts.ordinal_classes import Dropped, OrdinalClass, first_reasons
from mechinterp_toolkit.prompts.prompt_set import PromptSet, build_prompts
from mechinterp_toolkit.prompts.tokens import encode, why_not_read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """Make prompts that show `length` consecutive items and ask for the next one.

    Every item is written as its class has it, the first included: in the leading-space variant the
    text starts with a space (" eleven" is one token of GPT-2, "eleven" two).

    The shuffled twin is the control of in-context lift: the same prompts and answers, the shown
    items in an order drawn uniformly from all but the right one. `item` is the item whose successor
    is the answer in both; it is shown last in the ordered prompts, and stands at `item_position`.

    Args:
        classes: `OrdinalTokens.classes`.
        length: items shown. A cyclic class wraps and must be longer; others end with their last.
        shuffled: make the twin.
        seed: of the orders of the twin; nothing else is random.
        per_class: at most that many prompts per class, evenly spread over it.
        separator: written after each item; "" for a tokenizer that knows no comma.

    Returns:
        The prompts, class by class; `dropped` has the sequences that are not among them, and why.

    Raises:
        TokenisationError: no prompt can be made, or not with this separator or tokenizer.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> tokenizer = build_tokenizer()
    >>> days = ordinal_classes(tokenizer, "days").classes
    >>> succession_prompts(tokenizer, days, prepend_bos=True, separator="").texts[0]
    ' Monday Tuesday Wednesday'
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
        n = len(possible)
        used = n if per_class is None else min(per_class, n)
        # At even distances, the same ones for every seed, so that twins match.
        windows += [possible[i * n // used] for i in range(used)]
        dropped += lost
        if used < n:
            left_out = f"{used} of {n} sequences used (per_class={per_class})"
            dropped.append(Dropped(ordinal.name, left_out))
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
            sequence = f"{shown} -> {names[run[-1]].word}"
            lost.append(Dropped(sequence, f"{ordinal.name} lost {reasons}"))
        else:
            possible.append(_Window(ordinal, tuple(place[index] for index in run)))
    return possible, lost


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
            f"length={length}: show at least one item, or two or more that are to be shuffled."
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
    """Refuse prompts of other tokens than the classes' own, of which scores say nothing."""
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
