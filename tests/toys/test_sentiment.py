"""The sentiment toy: its sentences, its bundled weights, and what the analyses of concepts say of
it."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses.concept_reliance import concept_reliance
from mechinterp_toolkit.analyses.linear_direction import TOKENS, linear_direction
from mechinterp_toolkit.checkpoint import bundled_folder, read_record
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts.concepts import WORD_CONCEPTS, word_prompts
from mechinterp_toolkit.toys import train
from mechinterp_toolkit.toys.planted_concepts import concept_tokenizer
from mechinterp_toolkit.toys.sentiment import all_sentences

QUICK = {"draws": 199, "edit_draws": 19}


def test_every_word_stands_in_every_sentence_with_every_right_answer():
    sentences, concept = all_sentences(), WORD_CONCEPTS["sentiment"]
    n_words = sum(map(len, concept.words.values()))
    assert sentences.answered.sum() == n_words * len(concept.templates) * 2
    assert (~sentences.answered).sum() == len(concept.neutral)
    words = concept_tokenizer().convert_ids_to_tokens(
        sentences.tokens[0][sentences.mask[0]].tolist()
    )
    assert words[0] == "<bos>"
    assert "wonderful" in words
    assert words[-1] == "good"
    assert "<unk>" not in words


def test_the_bundled_weights_have_the_metrics_they_are_said_to_have():
    model = load_model("toy/sentiment")
    asked = word_prompts(model, "sentiment").labelled()
    with torch.no_grad():
        right = asked.right(model.logits(asked.tokens, asked.mask))
    record = read_record(bundled_folder("toy/sentiment"))
    assert record.training["metrics"]["accuracy"] == 1.0
    assert right.mean() == 1


def test_a_few_steps_are_the_same_under_a_seed(tmp_path):
    weights = []
    for folder in ("one", "other"):
        train("sentiment", tmp_path / folder, seed=3, steps=3)
        weights.append((tmp_path / folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_its_concept_is_relied_on():
    reliance = concept_reliance("toy/sentiment", **QUICK)
    assert reliance.represented.outcome == reliance.used.outcome == "found"


def test_its_concept_is_linear_and_read_at_the_word():
    direction = linear_direction("toy/sentiment", **QUICK, steps=10)
    assert direction.used.outcome == "found"
    falls = dict(zip(TOKENS, direction.fall.value.tolist(), strict=True))
    assert falls["word"] > 10 * falls["punctuation"]


@pytest.mark.slow
def test_training_again_gives_the_bundled_weights(tmp_path):
    from safetensors.torch import load_file

    train("sentiment", tmp_path / "again")
    again, bundled = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "again", bundled_folder("sentiment"))
    )
    assert again.keys() == bundled.keys()
    assert all(torch.allclose(again[name], bundled[name], atol=1e-3) for name in again)
