"""Do the answers of the whole model follow the order of ordinal classes, and does it look at the
item it is asked about?

*Answers* of the model to prompts that ask for a successor are compared with answers shuffled within
classes, and attention to the item with attention to another position before the answer.

What would fool it: a class whose items are all raised alike, hence logits centred within the class;
several prompts about one item, which are one unit, hence intervals over items.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230 (prompts); nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import OrdinalClass, PromptSet, succession_prompts
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

SHUFFLES = 19
"""Shuffled prompt sets."""


def successor_prompts(
    model: HookedModel, classes: Mapping[str, OrdinalClass], seed: int
) -> PromptSet:
    """Return prompts whose answer is the successor of their item, in the form this model knows."""
    from mechinterp_toolkit.toys import asks_by_query, successor_queries

    tokenizer = model.require_tokenizer()
    if asks_by_query(tokenizer):
        return successor_queries(tokenizer, classes, seed=seed)
    return _succession(model, classes, seed)


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


def shuffled_prompts(
    model: HookedModel, prompts: PromptSet, classes: Mapping[str, OrdinalClass], seed: int
) -> list[PromptSet]:
    """Return `SHUFFLES` times the same prompts with what they show in another order, and the same
    answers."""
    from mechinterp_toolkit.toys import asks_by_query

    tokenizer = model.require_tokenizer()
    if asks_by_query(tokenizer):
        return [_other_items(prompts, classes, seed + draw) for draw in range(SHUFFLES)]
    return [_succession(model, classes, seed + draw, shuffled=True) for draw in range(SHUFFLES)]


def _other_items(prompts: PromptSet, classes: Mapping[str, OrdinalClass], seed: int) -> PromptSet:
    """Prompts that show one item each, with another item of the class in its place."""
    assert prompts.item_position is not None
    generator, tokens, rows = (
        torch.Generator().manual_seed(seed),
        prompts.tokens.clone(),
        torch.arange(len(prompts)),
    )
    for name, ordinal in classes.items():
        own = of_class(prompts, name)
        shown = tokens[rows[own], prompts.item_position[own]]
        place = (shown[:, None] == ordinal.tokens).int().argmax(1)
        step = torch.randint(1, len(ordinal), (len(place),), generator=generator)
        tokens[rows[own], prompts.item_position[own]] = ordinal.tokens[
            (place + step) % len(ordinal)
        ]
    return replace(prompts, tokens=tokens)


def item_units(prompts: PromptSet, classes: Mapping[str, OrdinalClass]) -> Int[Tensor, " batch"]:
    """Return the item each prompt is about, numbered over all classes."""
    assert prompts.item is not None
    assert prompts.classes is not None
    first = {name: 1000 * i for i, name in enumerate(classes)}
    return prompts.item + torch.tensor([first[name] for name in prompts.classes])


def of_class(prompts: PromptSet, name: str) -> Tensor:
    """Return True where a prompt is about an item of the class."""
    assert prompts.classes is not None
    return torch.tensor([c == name for c in prompts.classes])


@torch.no_grad()
def class_logits(
    model: HookedModel,
    prompts: PromptSet,
    classes: Mapping[str, OrdinalClass],
    *,
    batch_size: int = 256,
) -> dict[str, Float[Tensor, "_ _"]]:
    """Return logits of the items of each class where the model answers, for the prompts of that
    class [prompt item]."""
    rows = []
    for part in prompts.batches(batch_size):
        logits = model.logits(part.tokens, part.mask)
        rows.append(logits[torch.arange(len(part)), part.position].detach().double().cpu())
    last = torch.cat(rows)
    return {
        n: last[of_class(prompts, n)][:, c.tokens]
        for n, c in classes.items()
        if n in (prompts.classes or ())
    }


def right_answer(
    prompts: PromptSet, classes: Mapping[str, OrdinalClass]
) -> Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]:
    """Return the metric of `hooks.measure`: logit of the right answer minus the mean of its class,
    in logits."""
    pool = {n: c.tokens for n, c in classes.items() if n in (prompts.classes or ())}

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        last = logits[torch.arange(len(prompts)), prompts.position].double().cpu()
        value = last[torch.arange(len(prompts)), prompts.answer]
        for name, tokens in pool.items():
            own = of_class(prompts, name)
            value[own] -= last[own][:, tokens].mean(1)
        return value

    return metric


def answer_estimate(
    value: Mapping[str, Float[Tensor, "_ _"]],
    prompts: PromptSet,
    classes: Mapping[str, OrdinalClass],
    shuffles: Mapping[str, Int[Tensor, "_ _"]],
    measured: str,
    seed: int,
) -> Estimate:
    """Return the mean of `value` [prompt item] at the right answers; the control's are shuffled as
    whole items in a class.

    Args:
        value: per class, one number per prompt of that class and item.
        prompts: all prompts.
        classes: the classes.
        shuffles: per class, orders of its items [draw item].
        measured: unit and range.
        seed: of the interval.
    """
    observed = torch.zeros(len(prompts), dtype=torch.float64)
    draws = len(next(iter(shuffles.values())))
    null = torch.zeros(draws, dtype=torch.float64)
    for name, part in value.items():
        rows = of_class(prompts, name)
        place = {int(t): i for i, t in enumerate(classes[name].tokens)}
        answer = torch.tensor([place[int(t)] for t in prompts.answer[rows]])
        observed[rows] = part[torch.arange(len(part)), answer]
        null += part[torch.arange(len(part)), shuffles[name][:, answer]].sum(1)
    return bootstrap(
        observed,
        unit=item_units(prompts, classes),
        unit_name="items",
        measured=measured,
        seed=seed,
        control=null / len(prompts),
        control_name="answers shuffled within classes",
    )


def attention_to_items(
    model: HookedModel, prompts: PromptSet, unit: Tensor, seed: int
) -> Estimate | None:
    """Return attention from the position that answers to the item, [layer head]; control: another
    position before it."""
    if prompts.item_position is None:
        return None
    names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers))
    if not all(name in model.hook_points for name in names):
        return None
    rows = torch.arange(len(prompts))
    patterns = activations(model, prompts.tokens, names, mask=prompts.mask)
    last = torch.stack(
        [patterns[n].cpu()[rows, :, prompts.position] for n in names], 1
    ).double()  # batch layer head key
    to_item = last[rows, :, :, prompts.item_position]
    generator = torch.Generator().manual_seed(seed)
    elsewhere = []
    for _ in range(99):
        key = (torch.rand(len(prompts), generator=generator) * prompts.position).long()
        key = key + (key >= prompts.item_position).long()
        elsewhere.append(last[rows, :, :, key].mean(0))
    return bootstrap(
        to_item,
        unit=unit,
        unit_name="items",
        measured="attention in [0, 1]",
        seed=seed,
        axes=("layer", "head"),
        control=torch.stack(elsewhere),
        control_name="another position",
    )
