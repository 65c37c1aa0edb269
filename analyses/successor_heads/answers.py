"""Do the answers of the whole model follow the order of ordinal classes, and by which heads?

*Answers* of the model to prompts that ask for a successor are compared with answers shuffled within
classes, attention to the item with attention to another position before the answer, and direct
attribution with that on shuffled prompts. Then heads are ablated, by their mean, by what they wrote
on another prompt, and in pairs.

What would fool it: a class whose items are all raised alike, hence logits centred within the class;
several prompts about one item, which are one unit, hence intervals over items.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230 (prompts); nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.successor_heads.items import centred, chosen
from mechinterp_toolkit.analyses.successor_heads.scores import orders
from mechinterp_toolkit.heads.attribution import attribute_heads
from mechinterp_toolkit.hooks.ablate import (
    ablate_heads,
    head_means,
    pair_redundancy,
    resample_heads,
)
from mechinterp_toolkit.intervention import Edits, applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import OrdinalClass, PromptSet, succession_prompts
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap
from mechinterp_toolkit.toys import asks_by_query, successor_queries

SHUFFLES = 19
"""Shuffled prompt sets."""

ELSEWHERE = 99
"""Draws of another position that attention is compared with."""

MOST_PAIRED = 3
"""Heads ablated in pairs."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Result of `study_answers`; None is what could not be measured, or rests on no head."""

    attention: Estimate | None = None
    """Attention from the position that answers to the item, [layer head], in [0, 1]."""

    attribution: Estimate | None = None
    """Direct attribution of each head to the right answer, [layer head], in logits; control:
    shuffled prompts."""

    lift: Estimate | None = None
    """`attribution` minus its mean over shuffled prompts, [layer head], in logits: a head that
    raises the class has none."""

    behaviour: Estimate | None = None
    """Fraction of prompts whose right answer has the highest logit of its class; control: answers
    shuffled."""

    logit_drop: Estimate | None = None
    """Fall of the right answer's logit, centred within its class, when the heads are mean-ablated,
    in logits."""

    accuracy_drop: Estimate | None = None
    """Fall of `behaviour` under the same ablation, in [-1, 1]."""

    resample_logit_drop: Estimate | None = None
    """`logit_drop` with the heads' outputs taken from another prompt, instead of their mean."""

    resample_accuracy_drop: Estimate | None = None
    """`accuracy_drop` under the same."""

    single_drop: Estimate | None = None
    """As `logit_drop`, [head], for each of the heads and those of the highest lift on its own;
    intervals over prompts."""

    pair_drop: Estimate | None = None
    """By pair of these: what both take together beyond what each takes alone; positive where each
    covers for the other."""


def study_answers(asked: Questions, heads: Sequence[tuple[int, int]], notes: list[str]) -> Answers:
    """Ask for successors as the model is, and with `heads` ablated where there are any.

    Args:
        asked: the questions.
        heads: `(layer, head)` of each.
        notes: to which is added what could not be measured, and why.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> asked = Questions(model, successor_prompts(model, days, seed=0), days, draws=99, seed=0)
    >>> study_answers(asked, [(1, 1)], notes=[]).accuracy_drop.text()
    '0.571 [0.143, 0.857]'
    """
    prompts, base = asked.prompts, asked.logits()
    right = {name: chosen(logits) for name, logits in base.items()}
    direct = attribute_heads(
        asked.model, prompts, shuffled_prompts(asked), asked.unit, seed=asked.seed
    )
    answers = Answers(
        attention=attention_to_items(asked),
        attribution=direct.raw,
        lift=direct.lift,
        behaviour=asked.estimate(right, "fraction of prompts in [0, 1]"),
    )
    return _ablated(asked, answers, base, heads, notes) if heads else answers


def _ablated(
    asked: Questions,
    answers: Answers,
    base: Mapping[str, Tensor],
    heads: Sequence[tuple[int, int]],
    notes: list[str],
) -> Answers:
    """`answers`, and what ablating the heads takes from them."""
    assert answers.lift is not None
    model, tokens, mask, seed = asked.model, asked.prompts.tokens, asked.prompts.mask, asked.seed
    paired = _to_pair(heads, answers.lift.value)
    layers = sorted({layer for layer, _ in (*heads, *paired)})
    means = head_means(model, tokens, layers, mask=mask)
    logit, accuracy = _drops(asked, base, ablate_heads(heads, means))
    answers = replace(answers, logit_drop=logit, accuracy_drop=accuracy)
    if mask.all():
        logit, accuracy = _drops(asked, base, resample_heads(model, heads, tokens, seed=seed))
        answers = replace(answers, resample_logit_drop=logit, resample_accuracy_drop=accuracy)
    else:
        notes.append(
            "Prompts differ in length, so the heads' outputs could not be taken from other prompts."
        )
    if len(paired) < 2:
        notes.append("The model has a single head, so there is none that could stand in for it.")
        return answers
    metric = asked.right_answer
    pairs = pair_redundancy(model, tokens, paired, metric, means, mask=mask, seed=seed)
    return replace(answers, single_drop=pairs.single, pair_drop=pairs.interaction)


def _drops(asked: Questions, base: Mapping[str, Tensor], edits: Edits) -> tuple[Estimate, Estimate]:
    """What edits take from the right answers: of their logit, and of accuracy."""
    with applied(asked.model, edits):
        # All prompts at once: edits that resample know their rows.
        edited = asked.logits(batch_size=len(asked.prompts))
    logit = {name: centred(base[name]) - centred(edited[name]) for name in base}
    accuracy = {name: chosen(base[name]) - chosen(edited[name]) for name in base}
    return asked.estimate(logit, "logits"), asked.estimate(accuracy, "fraction of prompts")


def _to_pair(
    heads: Sequence[tuple[int, int]], lift: Float[Tensor, "layer head"]
) -> tuple[tuple[int, int], ...]:
    """The found heads, best first, and after them those of the highest lift."""
    ranked = lift.flatten().argsort(descending=True, stable=True)
    lifted = (divmod(int(i), lift.shape[1]) for i in ranked)
    return tuple(dict.fromkeys((*heads, *lifted)))[:MOST_PAIRED]


@dataclass(frozen=True, eq=False)
class Questions:
    """Prompts that ask a model for the successors of items, and what it answers.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> asked = Questions(model, successor_prompts(model, days, seed=0), days, draws=99, seed=0)
    >>> [days["days"].words[i] for i in asked.logits()["days"].argmax(1)[:2]]
    ['Tuesday', 'Wednesday']
    """

    model: HookedModel
    """The model that is asked."""

    prompts: PromptSet
    """The prompts, each with its item and its class."""

    classes: Mapping[str, OrdinalClass]
    """The classes, also those that no prompt is about."""

    draws: int
    """Shuffles of the answers behind each control."""

    seed: int
    """Of shuffles, intervals and other positions."""

    @cached_property
    def unit(self) -> Int[Tensor, " batch"]:
        """The item each prompt is about, numbered over all classes."""
        assert self.prompts.item is not None
        first = {name: 1000 * i for i, name in enumerate(self.classes)}
        return self.prompts.item + torch.tensor([first[n] for n in self.prompts.classes or ()])

    @cached_property
    def rows(self) -> dict[str, Int[Tensor, " prompt"]]:
        """The prompts about each class that is asked about."""
        about = self.prompts.classes or ()
        rows = {name: [i for i, n in enumerate(about) if n == name] for name in self.classes}
        return {name: torch.tensor(own) for name, own in rows.items() if own}

    @cached_property
    def answer(self) -> dict[str, Int[Tensor, " prompt"]]:
        """Place of the right answer in its class, for the prompts of each class."""
        return {
            name: _place(self.prompts.answer[rows], self.classes[name])
            for name, rows in self.rows.items()
        }

    @torch.no_grad()
    def logits(self, *, batch_size: int = 256) -> dict[str, Float[Tensor, "prompt item"]]:
        """Return logits of the items of each class, for the prompts of that class."""
        parts = self.prompts.batches(batch_size)
        last = [part.where_asked(self.model.logits(part.tokens, part.mask)) for part in parts]
        return self._by_class(torch.cat(last))

    def right_answer(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """Return the right answer's logit minus the mean of its class: a `hooks.measure.Metric`."""
        by_class = self._by_class(self.prompts.where_asked(logits))
        return self._at_answers({name: centred(values) for name, values in by_class.items()})

    def estimate(
        self, values: Mapping[str, Float[Tensor, "prompt item"]], measured: str
    ) -> Estimate:
        """Estimate the mean of `values` at the right answers; control: at shuffled ones.

        Args:
            values: per class, one number per prompt of that class and item.
            measured: unit and range.
        """
        null = torch.zeros(self.draws, dtype=torch.float64)
        for i, (name, ordinal) in enumerate(self.classes.items()):
            if name in values:
                shuffled = orders(len(ordinal), self.draws, self.seed + i)[:, self.answer[name]]
                null += values[name][torch.arange(len(values[name])), shuffled].sum(1)
        return bootstrap(
            self._at_answers(values),
            measured=measured,
            control=null / len(self.prompts),
            control_name="answers shuffled within classes",
            **self.over_items,
        )

    @property
    def over_items(self) -> dict[str, Any]:
        """What `bootstrap` takes for intervals over items."""
        return {"unit": self.unit, "unit_name": "items", "seed": self.seed}

    def _by_class(self, last: Float[Tensor, "batch d_vocab"]) -> dict[str, Tensor]:
        return {name: last[rows][:, self.classes[name].tokens] for name, rows in self.rows.items()}

    def _at_answers(self, values: Mapping[str, Tensor]) -> Float[Tensor, " batch"]:
        found = torch.zeros(len(self.prompts), dtype=torch.float64)
        for name, own in values.items():
            found[self.rows[name]] = own[torch.arange(len(own)), self.answer[name]]
        return found


def successor_prompts(
    model: HookedModel, classes: Mapping[str, OrdinalClass], seed: int
) -> PromptSet:
    """Return prompts whose answer is the successor of their item, in the form this model knows.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> successor_prompts(model, days, seed=0).texts[1]  # noise and an item, then the query
    'with garden Tuesday stone cloud light after'
    """
    tokenizer = model.require_tokenizer()
    if asks_by_query(tokenizer):
        return successor_queries(tokenizer, classes, seed=seed)
    return _succession(model, classes, seed)


def shuffled_prompts(asked: Questions) -> list[PromptSet]:
    """Return the same prompts with what they show in other orders, and the same answers.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> asked = Questions(model, successor_prompts(model, days, seed=0), days, draws=99, seed=0)
    >>> len(shuffled_prompts(asked)) == SHUFFLES
    True
    """
    seeds = range(asked.seed, asked.seed + SHUFFLES)
    if asks_by_query(asked.model.require_tokenizer()):
        return [_other_items(asked, seed) for seed in seeds]
    return [_succession(asked.model, asked.classes, seed, shuffled=True) for seed in seeds]


def _succession(
    model: HookedModel, classes: Mapping[str, OrdinalClass], seed: int, *, shuffled: bool = False
) -> PromptSet:
    """Three items that ask for a fourth, separated by commas where the tokenizer knows them."""
    tokenizer = model.require_tokenizer()
    comma = tokenizer.encode(",", add_special_tokens=False)
    known = bool(comma) and tokenizer.unk_token_id not in comma
    return succession_prompts(
        tokenizer,
        classes,
        prepend_bos=bool(model.provenance.prepend_bos),
        per_class=30,
        seed=seed,
        shuffled=shuffled,
        separator="," if known else "",
    )


def _other_items(asked: Questions, seed: int) -> PromptSet:
    """Prompts that show one item each, with another item of the class in its place."""
    assert asked.prompts.item_position is not None
    generator, tokens = torch.Generator().manual_seed(seed), asked.prompts.tokens.clone()
    for name, rows in asked.rows.items():
        ordinal, at = asked.classes[name], asked.prompts.item_position[rows]
        place = _place(tokens[rows, at], ordinal)
        step = torch.randint(1, len(ordinal), (len(place),), generator=generator)
        tokens[rows, at] = ordinal.tokens[(place + step) % len(ordinal)]
    return replace(asked.prompts, tokens=tokens)


def _place(tokens: Int[Tensor, " prompt"], ordinal: OrdinalClass) -> Int[Tensor, " prompt"]:
    """Where in the words of a class each of its tokens stands."""
    return (tokens[:, None] == ordinal.tokens).int().argmax(1)


def attention_to_items(asked: Questions) -> Estimate | None:
    """Estimate attention from the position that answers to the item; control: another position.

    Returns:
        [layer head], in [0, 1]; None where the model does not show its attention.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> asked = Questions(model, successor_prompts(model, days, seed=0), days, draws=99, seed=0)
    >>> attention_to_items(asked).at(1, 1).text()
    '0.935 [0.921, 0.95]'
    """
    prompts, layers = asked.prompts, range(asked.model.cfg.n_layers)
    names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in layers)
    assert prompts.item_position is not None
    if not all(name in asked.model.hook_points for name in names):
        return None
    rows = torch.arange(len(prompts))
    patterns = activations(asked.model, prompts.tokens, names, mask=prompts.mask)
    from_answer = [patterns[name].cpu()[rows, :, prompts.position] for name in names]
    last = torch.stack(from_answer, 1).double()  # batch layer head key
    generator, elsewhere = torch.Generator().manual_seed(asked.seed), []
    for _ in range(ELSEWHERE):
        key = (torch.rand(len(prompts), generator=generator) * prompts.position).long()
        key = key + (key >= prompts.item_position).long()
        elsewhere.append(last[rows, :, :, key].mean(0))
    return bootstrap(
        last[rows, :, :, prompts.item_position],
        measured="attention in [0, 1]",
        axes=("layer", "head"),
        control=torch.stack(elsewhere),
        control_name="another position",
        **asked.over_items,
    )
