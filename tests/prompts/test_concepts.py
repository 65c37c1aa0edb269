"""Concepts of words: which words fit a tokenizer, which prompts ask about them."""

from __future__ import annotations

import json

import pytest
import torch

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts.concepts import (
    WORD_CONCEPTS,
    labelled_tokens,
    reads_text,
    word_prompts,
)
from mechinterp_toolkit.toys import concept_model


@pytest.fixture(scope="module")
def model():
    return concept_model(1.0, 0)


@pytest.mark.parametrize("concept", WORD_CONCEPTS)
def test_most_words_and_every_sentence_fit_real_tokenizers(reader, concept):
    asked = word_prompts(reader, concept)
    for label in (0, 1):
        assert len(asked.word[asked.label == label].unique()) >= 15
    assert len(asked.prompts) == len(WORD_CONCEPTS[concept].templates) * len(asked.word.unique())
    tokenizer = reader.tokenizer
    for row in range(0, len(asked.prompts), 17):
        word = tokenizer.decode([int(asked.prompts.tokens[row, asked.at_word[row]])]).strip()
        assert word in WORD_CONCEPTS[concept].words[asked.names[1 - int(asked.label[row])]]
    assert asked.neutral is not None


def test_punctuation_behind_the_word_is_found_and_nothing_else(model):
    asked = word_prompts(model, "sentiment")
    row = 0
    text = model.tokenizer.convert_ids_to_tokens(asked.prompts.tokens[row].tolist())
    assert [text[i] for i in asked.summary[row].nonzero().flatten()] == [",", "."]
    assert (asked.summary.nonzero()[:, 1] > asked.at_word[asked.summary.nonzero()[:, 0]]).all()


def test_halves_hold_half_of_the_words_of_either_class_with_all_their_prompts(model):
    asked = word_prompts(model, "sentiment")
    half = asked.halves(0)
    assert not set(asked.word[half].tolist()) & set(asked.word[~half].tolist())
    for label in (0, 1):
        assert len(asked.word[half & (asked.label == label)].unique()) == 12
    ours, theirs = asked.pairs(half)
    assert (asked.label[ours] == 1).all()
    assert (asked.label[theirs] == 0).all()
    assert torch.equal(asked.template[ours], asked.template[theirs])
    assert half[ours].all()
    assert half[theirs].all()


def test_a_concept_that_is_missing_is_named(model, tmp_path):
    with pytest.raises(
        ToolkitError, match=r"no concept of words is called 'sentimant'. Did you mean 'sentiment'"
    ):
        word_prompts(model, "sentimant")
    with pytest.raises(
        ToolkitError,
        match=r"Did you mean 'sentiment'\? Known: sentiment, gender\. Nor is it a corpus: 'sentim",
    ):
        labelled_tokens(model, "sentimant")
    with pytest.raises(
        NotApplicable, match="knows 0 of 20 words of female as one token each, 6 are needed"
    ):
        word_prompts(model, "gender")
    unlabelled = tmp_path / "sentiment.jsonl"
    unlabelled.write_text(json.dumps({"text": "the movie"}))
    with pytest.raises(
        ToolkitError, match=r"has no column 'label'\. It has text; name one of them\.$"
    ):
        labelled_tokens(model, str(unlabelled))  # the name is right: nothing is said of concepts


def test_models_that_cannot_be_asked_are_told_why():
    assert reads_text(load_model("toy/s5")) == "it has no residual stream"
    assert "without a tokenizer" in reads_text(load_model("toy/z113-transformer"))
    with pytest.raises(NotApplicable, match="toy/ordinal knows 0 of 24 words of positive"):
        word_prompts(load_model("toy/ordinal"), "sentiment")
    assert reads_text(concept_model(1.0, 0)) is None
