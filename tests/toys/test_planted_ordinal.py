"""Planted ordinal heads do what they were built to do when the model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import OrdinalClass, PromptSet, ordinal_classes
from mechinterp_toolkit.toys import (
    planted_category_booster,
    planted_copy,
    planted_self_suppression,
    planted_successor,
    relabelled_ordinal,
    successor_queries,
)


def asked(hf_model: Any, tokenizer: Any) -> tuple[HookedModel, dict[str, OrdinalClass], PromptSet]:
    model = load_model(hf_model, tokenizer=tokenizer)
    classes = dict(ordinal_classes(tokenizer).classes)
    return model, classes, successor_queries(tokenizer, classes, seed=2)


@torch.no_grad()
def answers(model: HookedModel, prompts: PromptSet) -> torch.Tensor:
    return model.logits(prompts.tokens)[torch.arange(len(prompts)), prompts.position].argmax(-1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_planted_successor_answers_with_the_successor_and_needs_its_head(seed: int) -> None:
    hf_model, tokenizer, (layer, head) = planted_successor(1.0, seed)
    model, _, prompts = asked(hf_model, tokenizer)
    assert (answers(model, prompts) == prompts.answer).double().mean() > 0.95

    def silence(z: torch.Tensor, hook: Any) -> torch.Tensor:
        edited = z.clone()
        edited[:, :, head] = 0
        return edited

    with applied(model, {f"blocks.{layer}.attn.hook_z": silence}):
        assert (answers(model, prompts) == prompts.answer).double().mean() < 0.05


def test_planted_heads_stand_in_different_places() -> None:
    assert len({planted_successor(1.0, seed).head for seed in range(3)}) == 3


def test_without_strength_the_model_answers_nothing_right() -> None:
    hf_model, tokenizer, _ = planted_successor(0.0, 0)
    model, _, prompts = asked(hf_model, tokenizer)
    assert (answers(model, prompts) == prompts.answer).double().mean() < 0.05


def test_the_copying_decoy_answers_with_the_item() -> None:
    model, _, prompts = asked(*planted_copy(1.0, 0)[:2])
    item = prompts.tokens[torch.arange(len(prompts)), prompts.item_position]
    # The map has the rank of a head, 64, for 95 items: a few go astray.
    assert (answers(model, prompts) == item).double().mean() > 0.8


def test_the_self_suppressing_decoy_answers_with_either_neighbour() -> None:
    model, classes, prompts = asked(*planted_self_suppression(1.0, 0)[:2])
    given, item = (
        answers(model, prompts),
        prompts.tokens[torch.arange(len(prompts)), prompts.item_position],
    )
    before = {
        int(c.tokens[i]): int(c.tokens[j])
        for c in classes.values()
        for i, j in c.pairs(-1).tolist()
    }
    after = given == prompts.answer
    prior = torch.tensor(
        [before.get(int(i), -1) == int(g) for i, g in zip(item, given, strict=True)]
    )
    assert (after | prior).double().mean() > 0.9
    assert after.double().mean() > 0.3
    assert prior.double().mean() > 0.3


def test_the_category_booster_answers_with_some_item_of_the_class() -> None:
    model, classes, prompts = asked(*planted_category_booster(1.0, 0)[:2])
    given = answers(model, prompts)
    own = [
        bool((classes[name].tokens == g).any())
        for name, g in zip(prompts.classes, given, strict=True)
    ]
    assert sum(own) / len(own) > 0.9
    assert (given == prompts.answer).double().mean() < 0.1


def test_a_strength_above_one_is_refused() -> None:
    with pytest.raises(ToolkitError, match="from 0 to 1, not 2"):
        planted_successor(2.0, 0)


def test_the_relabelled_ordinal_toy_knows_a_scrambled_order_as_well_as_the_real_one() -> None:
    original, twin = load_model("toy/ordinal"), relabelled_ordinal("toy/ordinal", 5)
    tokenizer = twin.require_tokenizer()
    classes = dict(ordinal_classes(tokenizer).classes)
    prompts = successor_queries(tokenizer, classes, seed=1)
    assert (answers(original, prompts) == prompts.answer).double().mean() == 1.0
    assert (answers(twin, prompts) == prompts.answer).double().mean() < 0.15

    # The twin's token t has the weights of the original's token meant[t].
    same = (twin.model.W_E[:, None] == original.model.W_E[None]).all(-1)
    meant = same.int().argmax(1)
    assert same.sum() == len(tokenizer)
    for ordinal in classes.values():
        assert sorted(meant[ordinal.tokens].tolist()) == sorted(ordinal.tokens.tolist())
    item = prompts.tokens[torch.arange(len(prompts)), prompts.item_position].tolist()
    after = dict(zip(item, prompts.answer.tolist(), strict=True))
    given = dict(zip(item, meant[answers(twin, prompts)].tolist(), strict=True))
    asked_of = [token for token in item if int(meant[token]) in after]
    # 92 items have a successor; at most three of them mean the last of a line
    assert len(asked_of) >= 89
    assert all(given[token] == after[int(meant[token])] for token in asked_of)
