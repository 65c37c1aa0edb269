"""Concepts as labelled tokens: words in sentences, a treebank's parts of speech, labelled
corpora."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts.concepts import (
    WORD_CONCEPTS,
    labelled_texts,
    labelled_tokens,
    reads_text,
    tagged_tokens,
    word_prompts,
)
from mechinterp_toolkit.toys import concept_model
from mechinterp_toolkit.toys.gpt2 import random_gpt2


@pytest.fixture(scope="module")
def model():
    return concept_model(1.0, 0)


@pytest.fixture(scope="module", params=["gpt2", "pythia"])
def reader(request, shared_data):
    """A random model with a real tokenizer."""
    folder = shared_data / "tokenizers" / request.param
    if request.param == "gpt2":
        tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    return load_model(
        random_gpt2(len(tokenizer), d_model=16, n_layers=1, n_heads=2, seed=0), tokenizer=tokenizer
    )


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


def test_the_loss_is_that_of_right_against_wrong_answers_worked_by_hand(model):
    text = word_prompts(model, "sentiment").labelled()
    logits = torch.zeros(*text.tokens.shape, model.cfg.d_vocab)
    assert torch.allclose(
        text.loss(logits), torch.full((len(text.tokens),), math.log(2), dtype=torch.float64)
    )
    rows, last = torch.arange(len(text.tokens)), text.mask.sum(1) - 1
    right, _ = text.answers
    logits[rows[:, None], last[:, None], right] = 1.0
    expected = -math.log(math.exp(1) / (math.exp(1) + 1))
    assert float(text.loss(logits).mean()) == pytest.approx(expected)
    assert text.right(logits).mean() == 1
    assert text.labelled.sum() == len(text.tokens)


def test_every_piece_of_a_tagged_word_gets_its_tag(reader, shared_data):
    text = tagged_tokens(reader, shared_data / "ud_ewt", texts=60)
    assert {"NOUN", "VERB", "PUNCT", "ADP"} <= set(text.names)
    by_tag = {tag: set() for tag in text.names}
    for token, label in zip(
        text.tokens[text.labelled].tolist(), text.label[text.labelled].tolist(), strict=True
    ):
        by_tag[text.names[label]].add(reader.tokenizer.decode([token]).strip().lower())
    assert {"of", "in"} <= by_tag["ADP"]
    assert "," in by_tag["PUNCT"]
    assert not by_tag["PUNCT"] & {"of", "in", "the"}
    assert torch.equal(text.unit[text.labelled], text.tokens[text.labelled])


def test_a_labelled_corpus_has_its_label_on_the_last_token(model, tmp_path):
    rows = [
        {"text": "the movie was wonderful", "label": "yes"},
        {"text": "the food was awful ,", "label": "no"},
    ] * 3
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    text = labelled_texts(model, path)
    assert text.names == ("no", "yes")
    assert text.labelled.sum() == 6
    assert torch.equal(text.labelled.nonzero()[:, 1], text.mask.sum(1) - 1)
    assert text.unit[text.labelled].tolist() == list(range(6))
    assert labelled_tokens(model, str(path)).hash == text.hash


def test_what_is_missing_is_named(model, tmp_path):
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
    with pytest.raises(ToolkitError, match=r"holds no \.conllu file"):
        tagged_tokens(model, tmp_path / "none.conllu")
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"text": "the movie", "label": 1}))
    with pytest.raises(ToolkitError, match=r"have the labels \['1'\]; a concept needs two"):
        labelled_texts(model, one)
    with pytest.raises(ToolkitError, match="has no column 'lable'"):
        labelled_texts(model, one, label_column="lable")
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
