"""What is asked of a model about the items of a cycle: the next one, or the one b steps on.

Every template shows every item once. The toy is asked in contexts of noise words, models that read
English in sentences.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860 (the sentences of "b from a").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable, TokenisationError
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import ORDINAL_CLASSES, OrdinalClass, PromptSet, build_prompts

Task = Literal["next", "b from a"]
"""What is asked: the next item, or the item b steps from a given one."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "days": (
        "If today is {}, then tomorrow is",
        "The day after {} is",
        "Yesterday was {}, so today is",
        "After {} comes",
        "We leave on {} and arrive one day later, on",
        "The shop closes on {} and opens the next day, on",
        "One day after {} it is",
    ),
    "months": (
        "If this month is {}, then next month is",
        "The month after {} is",
        "Last month was {}, so this month is",
        "After {} comes",
        "The course starts in {} and ends one month later, in",
        "What we order in {} arrives the next month, in",
        "One month after {} it is",
    ),
}
"""What is asked of a model that reads English; the blank is the item, behind a space."""

SUMS: Mapping[str, tuple[str, str]] = {
    "days": ("Let's do some days of the week math. {} from {} is", "day"),
    "months": ("Let's do some calendar math. {} from {} is", "month"),
}
"""The published sentences of "b from a", and what b counts. The answer is read as the token behind
a space; published code took the token without one, which several tokenizers keep apart."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts that each show an item and ask for the one some steps on; every item per template."""

    prompts: PromptSet
    """With items and their positions."""

    tokens: Int[Tensor, " item"]
    """Token ids of the whole class, in order."""

    unit: Int[Tensor, " batch"]
    """Which template, from 0."""

    step: Int[Tensor, " batch"]
    """How many steps behind the item the answer lies; the class is a cycle."""

    @property
    def item(self) -> Int[Tensor, " batch"]:
        """Place of each prompt's item in the class."""
        assert self.prompts.item is not None
        return self.prompts.item

    @property
    def answer(self) -> Int[Tensor, " batch"]:
        """Place of the right answer in the class."""
        return (self.item + self.step) % len(self.tokens)


def asked_of(
    model: HookedModel, ordinal: OrdinalClass, task: Task, templates: int, seed: int
) -> Asked:
    """Return every item of a class in every template.

    Args:
        model: who is asked.
        ordinal: the class, a cycle.
        task: what is asked; in "b from a" the templates are the b, as many as items.
        templates: contexts of the task "next".
        seed: of the noise words.

    Raises:
        NotApplicable: the sentences of "b from a" cannot be read or answered.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, ("days",)).classes["days"]
    >>> asked = asked_of(model, days, "next", templates=2, seed=0)
    >>> len(asked.prompts), asked.item[:3].tolist(), asked.answer[:3].tolist()
    (14, [0, 1, 2], [1, 2, 3])
    """
    from mechinterp_toolkit.toys import asks_by_query, successor_queries

    tokenizer, n = model.require_tokenizer(), len(ordinal)
    if task == "b from a":
        try:
            prompts = _prompts_of(model, ordinal, sums(ordinal), range(1, n + 1))
        except TokenisationError as error:
            raise NotApplicable(
                f"circular_features cannot ask {model.provenance.checkpoint} for b from a: {error}"
            ) from error
        unit = torch.arange(n).repeat_interleave(n)
        return Asked(prompts, ordinal.tokens, unit, unit + 1)
    if asks_by_query(tokenizer):
        parts = [
            successor_queries(tokenizer, {ordinal.name: ordinal}, seed=1000 * seed + t)
            for t in range(templates)
        ]
        prompts = PromptSet.joined(parts)
    else:
        sentences = TEMPLATES.get(ordinal.name, ("After {} comes", "What follows {} is"))
        sentences = sentences[:templates]
        prompts = _prompts_of(model, ordinal, sentences, [1] * len(sentences))
    unit = torch.arange(len(prompts) // n).repeat_interleave(n)
    return Asked(prompts, ordinal.tokens, unit, torch.ones_like(unit))


def sums(ordinal: OrdinalClass) -> list[str]:
    """Return the sentences of "b from a", b = 1 first.

    Raises:
        NotApplicable: there are none for this class.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> tokenizer = load_model("toy/ordinal").tokenizer
    >>> sums(ordinal_classes(tokenizer, ("months",)).classes["months"])[1]
    "Let's do some calendar math. Two months from {} is"
    """
    if ordinal.name not in SUMS:
        raise NotApplicable(
            f"no sentence asks for b from a of {ordinal.name}; name classes of {', '.join(SUMS)}."
        )
    sentence, noun = SUMS[ordinal.name]
    numbers = ORDINAL_CLASSES["number_words"].words[: len(ordinal)]
    spans = [f"{word.capitalize()} {noun}{'s' * (b > 0)}" for b, word in enumerate(numbers)]
    return [sentence.format(span, "{}") for span in spans]


def _prompts_of(
    model: HookedModel, ordinal: OrdinalClass, sentences: Sequence[str], steps: Sequence[int]
) -> PromptSet:
    """Return every item in every sentence, its answer the sentence's number of steps behind it."""
    n, words = len(ordinal), ordinal.words
    return build_prompts(
        model.require_tokenizer(),
        [sentence.format(word) for sentence in sentences for word in words],
        [f" {words[(place + step) % n]}" for step in steps for place in range(n)],
        prepend_bos=bool(model.provenance.prepend_bos),
        items=list(range(n)) * len(sentences),
        classes=[ordinal.name] * (n * len(sentences)),
        item_words=list(words) * len(sentences),
    )
