"""Planted adders add, by the waves they are said to pass on, and calendars differ in nothing but
these."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.geometry.helix import period_scan
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys import planted_adder, planted_calendar, relabelled_adder
from mechinterp_toolkit.toys.planted_numbers import LARGEST, _prompts


def answers(made, operands: int):
    """Pairs, and what the model answers to each."""
    model = load_model(made.model, tokenizer=made.tokenizer)
    pairs = torch.cartesian_prod(torch.arange(operands), torch.arange(operands))
    with torch.no_grad():
        logits = model.logits(_prompts(made.tokenizer, pairs))[:, -1]
    words = made.tokenizer.convert_ids_to_tokens(logits.argmax(1).tolist())
    return model, pairs, words


def share_right(words, expected) -> float:
    return sum(word == str(int(one)) for word, one in zip(words, expected, strict=True)) / len(
        words
    )


def test_the_adder_adds_every_pair():
    _, pairs, words = answers(planted_adder(), LARGEST)
    assert share_right(words, pairs.sum(1)) == 1


def test_renamed_numbers_do_not_add_up():
    _, pairs, words = answers(relabelled_adder(0), LARGEST)
    assert share_right(words, pairs.sum(1)) < 0.1


@pytest.mark.parametrize(
    ("between", "passed_on", "never"), [("mod 12", {12}, {5, 10}), ("base 10", {5, 10}, {12})]
)
def test_calendars_pass_on_different_periods_of_the_unreduced_sum(between, passed_on, never):
    """Both answer (a + b) mod 12 from the same embeddings; what they compute in between tells them
    apart."""
    made = planted_calendar(between)
    model, pairs, words = answers(made, 24)
    assert share_right(words, pairs.sum(1) % 12) > 0.98
    name = "blocks.1.hook_resid_post"
    x = activations(
        model, _prompts(made.tokenizer, pairs), (name,), position=torch.full((len(pairs),), 4)
    )[name]
    found = set(period_scan(x, pairs.sum(1), draws=199).found)
    assert passed_on <= found
    assert not never & found


def test_calendars_have_the_same_embeddings():
    one, other = (
        planted_calendar(between).model.transformer.wte.weight for between in ("mod 12", "base 10")
    )
    assert torch.equal(one, other)
