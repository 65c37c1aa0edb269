"""Prompts with one right answer token each, and a known position of the item they are about.

`build_prompts` makes a `PromptSet` from texts and answers: it refuses an answer that is not the
single next token of its text (or, where first tokens are asked for, whose first token could mean
another answer), an unknown token, and an item whose position is not certain.

What would fool it: another model's tokenizer whose vocabulary has about the right size; and a first
token that other continuations of the text begin with too: only the answers given are compared with
each other.

Source: this project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts.ordinal_classes import Dropped
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


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Tokenised prompts, each with one answer token and the position at which it is asked for.

    >>> prompts = PromptSet(
    ...     tokens=torch.tensor([[5, 6, 7], [5, 8, 0]]),
    ...     mask=torch.tensor([[True, True, True], [True, True, False]]),
    ...     answer=torch.tensor([9, 4]),
    ...     position=torch.tensor([2, 1]),
    ...     texts=("a b c", "a d"),
    ... )
    >>> prompts.select(prompts.answer == 4).texts
    ('a d',)
    >>> prompts.where_asked(torch.arange(6.0).reshape(2, 3)).tolist()
    [2.0, 4.0]
    """

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
        for name in self._per_prompt():
            value = getattr(self, name)
            if value is not None and len(value) != len(self.tokens):
                raise TokenisationError(
                    f"PromptSet.{name} has {len(value)} entries for {len(self.tokens)} prompts;"
                    " give one each."
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
        at = self.item_position
        if at is not None and not ((at >= 0) & (at <= last)).all():
            raise TokenisationError("PromptSet.item_position lies outside its prompt.")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hash(self) -> str:
        """What `hash_tokens` gives: the width and content of padding do not count."""
        return hash_tokens(self.tokens, self.mask)

    def select(self, rows: Bool[Tensor, " batch"] | Int[Tensor, " row"]) -> PromptSet:
        """Return the prompts where `rows` is True, or those at the indices `rows`; same width.

        An index may come more than once.

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
        kept = {name: _rows(getattr(self, name), chosen) for name in self._per_prompt()}
        return replace(self, **kept)

    def where_asked(self, values: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch *rest"]:
        """Return logits or activations at the position of each prompt, in float64 on the CPU."""
        rows = torch.arange(len(self), device=values.device)
        return values[rows, self.position.to(values.device)].detach().double().cpu()

    @classmethod
    def joined(cls, parts: Sequence[PromptSet]) -> PromptSet:
        """Return prompt sets of one width, all with items and classes, as one.

        Raises:
            TokenisationError: different widths, or a set without items.
        """
        widths = {part.tokens.shape[1] for part in parts}
        bare = any(part.item is None or part.item_position is None for part in parts)
        if len(widths) != 1 or bare:
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
            dropped=tuple(reason for part in parts for reason in part.dropped),
        )

    def batches(self, size: int) -> Iterator[PromptSet]:
        """Yield the prompts in order, `size` at a time and fewer in the end; same width.

        Raises:
            TokenisationError: `size` is below 1.
        """
        if size < 1:
            raise TokenisationError(f"a batch of {size} prompts is no batch; give size >= 1.")
        return (self.select(rows) for rows in torch.arange(len(self)).split(size))

    @classmethod
    def _per_prompt(cls) -> list[str]:
        """Names of the fields that have one entry per prompt."""
        return [f.name for f in fields(cls) if f.name not in ("dropped", "shortened")]


def hash_tokens(
    tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
) -> str:
    """Return the first 16 hex digits of the SHA-256 of real ids and lengths.

    That is what `Finding.prompts_hash` holds.

    >>> hash_tokens(torch.tensor([[5, 6, 7]]))
    '92b3c3cfb5083ef7'
    """
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    parts = (torch.tensor([len(tokens)]), mask.sum(1), tokens[mask])
    whole = torch.cat([part.cpu().long() for part in parts])
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

    Text and answer *together* have to become the text's tokens and one more: that is what the model
    predicts, and it finds a space on the wrong side of the boundary. Padding is on the right.

    Args:
        answers: with their leading space where they have one: " Thursday".
        prepend_bos: put the beginning-of-sequence token in front, the only special one added.
        answers_of: "one token" refuses an answer of several tokens; "first token" takes the first
            of them, and lists the answer and its tokens in `PromptSet.shortened`.
        items, classes: place of each prompt's item within its class, and name of the class.
        item_words: the word in each text whose token is the item; `("Monday", -1)` says which one
            (from 0, or from the end) where it occurs more than once.

    Raises:
        TokenisationError: an empty text, an unknown token, an answer or item that is not one token
            or not certain, or no beginning-of-sequence token where one is asked for.

    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> build_prompts(build_tokenizer(), ["Monday after"], [" Tuesday"], prepend_bos=True).tokens
    tensor([[1, 5, 3]])
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
    shortened = (
        Dropped(answer, count_and_show(tokenizer, row))
        for answer, row in zip(answers, answered, strict=True)
        if len(row) > 1
    )
    at = None if item_words is None else item_positions(tokenizer, texts, item_words, ids)
    tokens, mask = padded([bos + row for row in ids], pad_id(tokenizer))
    return PromptSet(
        tokens=tokens,
        mask=mask,
        answer=torch.tensor([row[0] for row in answered]),
        position=mask.sum(1) - 1,
        texts=tuple(texts),
        item=None if items is None else torch.tensor(list(items)),
        classes=None if classes is None else tuple(classes),
        item_position=None if at is None else torch.tensor(at) + len(bos),
        shortened=tuple(dict.fromkeys(shortened)),
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
