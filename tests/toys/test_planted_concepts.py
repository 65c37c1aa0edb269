"""The planted concept is where it is said to be: along the direction, read by the head, brought to
commas."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.geometry.classes import unit_means
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts.concepts import word_prompts
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys import planted_concept

HEAD = "blocks.1.attn.hook_pattern"


def asked_of(**options):
    made = planted_concept(1.0, 0, **options)
    model = load_model(made.model, tokenizer=made.tokenizer)
    return made, model, word_prompts(model, "sentiment")


def right(model, asked) -> float:
    text = asked.labelled()
    with torch.no_grad():
        return float(text.right(model.logits(text.tokens, text.mask), slice(None)).mean())


@pytest.mark.parametrize("summary", [False, True])
def test_the_answer_is_read_from_the_word_or_from_the_comma(summary):
    _, model, asked = asked_of(summary=summary)
    assert right(model, asked) > 0.9
    pattern = activations(model, asked.prompts.tokens, (HEAD,))[HEAD]
    rows = torch.arange(len(asked.prompts))
    last = pattern[rows, 0, asked.prompts.position]
    to_word = last[rows, asked.at_word].mean()
    to_punctuation = (last * asked.summary).sum(1).mean()
    assert (to_punctuation if summary else to_word) > 0.9
    assert (to_word if summary else to_punctuation) < 0.05


def test_unused_or_relabelled_the_model_is_right_by_chance():
    for options in ({"used": False}, {"relabelled": True}):
        _, model, asked = asked_of(**options)
        assert 0.3 < right(model, asked) < 0.7


def test_the_suppressor_says_nothing_of_the_class_and_shares_the_noise():
    made, model, asked = asked_of()
    name = "blocks.0.hook_resid_pre"
    x = activations(model, asked.prompts.tokens, (name,), position=asked.at_word)[name]
    means, label = unit_means(x, asked.word, asked.label)
    along, beside = means @ made.direction.double(), means @ made.suppressor.double()
    gap = [float(part[label == 1].mean() - part[label == 0].mean()) for part in (along, beside)]
    assert gap[0] > 1.5
    assert abs(gap[1]) < 0.5
    noise = along - torch.where(label == 1, along[label == 1].mean(), along[label == 0].mean())
    assert torch.corrcoef(torch.stack([noise, beside]))[0, 1] > 0.5


def test_strength_zero_leaves_no_class():
    made = planted_concept(0.0, 0)
    model = load_model(made.model, tokenizer=made.tokenizer)
    asked = word_prompts(model, "sentiment")
    name = "blocks.0.hook_resid_pre"
    means, label = unit_means(
        activations(model, asked.prompts.tokens, (name,), position=asked.at_word)[name],
        asked.word,
        asked.label,
    )
    along = means @ made.direction.double()
    assert abs(float(along[label == 1].mean() - along[label == 0].mean())) < 0.5
