"""Alignment improves on where it starts, on pairs it was not trained on, and touches no weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.align import align_direction
from mechinterp_toolkit.hooks.measure import logit_difference
from mechinterp_toolkit.hooks.patch import Place, PromptPairs, patch_effects
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts.concepts import word_prompts
from mechinterp_toolkit.toys import planted_concept

AT = "blocks.0.hook_resid_pre"


def pairs(asked, half):
    ours, theirs = asked.pairs(half)
    answers = [ids[ours] for ids in asked.positive_minus_negative]
    source, base = asked.prompts.select(ours), asked.prompts.select(theirs)
    return (
        PromptPairs(source.tokens, base.tokens),
        Place(AT, positions=asked.at_word[ours][:, None]),
        logit_difference(*answers, position=source.position),
    )


def test_it_gets_closer_to_the_planted_direction_than_its_start():
    made = planted_concept(1.0, 0)
    model = load_model(made.model, tokenizer=made.tokenizer)
    asked = word_prompts(model, "sentiment")
    half = asked.halves(0)
    noise = torch.randn(len(made.direction), generator=torch.Generator().manual_seed(0))
    start = made.direction + noise / noise.norm()
    both, place, metric = pairs(asked, half)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    with torch.no_grad():  # as analyses run
        aligned = align_direction(
            model, both, replace(place, direction=start), metric, steps=20, learning_rate=0.01
        )
    assert aligned.norm() == pytest.approx(1)
    assert all(p.grad is None for p in model.model.parameters())
    assert all(
        torch.equal(before[name], weight) for name, weight in model.model.state_dict().items()
    )
    both, place, metric = pairs(asked, ~half)
    directions = {"start": start, "aligned": aligned}
    places = [replace(place, direction=v, name=name) for name, v in directions.items()]
    closed = patch_effects(model, both, places, metric).normalised
    assert closed.value[1] > closed.value[0] + 0.1
    assert abs(float(aligned @ made.direction.double())) > float(
        start @ made.direction / start.norm()
    )


def test_no_step_finds_nothing():
    made = planted_concept(1.0, 0)
    model = load_model(made.model, tokenizer=made.tokenizer)
    both, place, metric = pairs(word_prompts(model, "sentiment"), None)
    with pytest.raises(ToolkitError, match="one step or more"):
        align_direction(model, both, place, metric, steps=0)
