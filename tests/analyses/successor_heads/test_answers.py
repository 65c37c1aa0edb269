"""Answers of the model to prompts that ask for a successor."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses.successor_heads.answers import Questions, _to_pair
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts import ordinal_classes


def test_the_metric_of_an_answer_is_its_logit_above_the_mean_of_its_class():
    from mechinterp_toolkit.toys import successor_queries

    toy = load_model("toy/ordinal")
    classes = dict(ordinal_classes(toy.tokenizer).classes)
    prompts = successor_queries(toy.tokenizer, classes)
    shape = (*prompts.tokens.shape, toy.cfg.d_vocab)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    value = Questions(toy, prompts, classes, draws=1, seed=0).right_answer(logits)
    for row in (0, 50, 91):
        last = logits[row, prompts.position[row]]
        expected = last[prompts.answer[row]] - last[classes[prompts.classes[row]].tokens].mean()
        assert value[row] == pytest.approx(expected.item())


def test_the_found_heads_are_paired_first_and_then_those_of_the_highest_lift():
    lift = torch.tensor([[0.1, 3.0], [2.0, 1.0]])
    assert _to_pair(((1, 1),), lift) == ((1, 1), (0, 1), (1, 0))
    assert _to_pair(((0, 1), (1, 0), (0, 0), (1, 1)), lift) == ((0, 1), (1, 0), (0, 0))
