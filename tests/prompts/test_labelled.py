"""Labelled tokens: a treebank's parts of speech, labelled corpora, and how a model is judged."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.prompts.concepts import labelled_tokens, word_prompts
from mechinterp_toolkit.prompts.labelled import labelled_texts, tagged_tokens
from mechinterp_toolkit.toys import concept_model


@pytest.fixture(scope="module")
def model():
    return concept_model(1.0, 0)


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


def test_next_tokens_are_judged_where_there_are_no_answers(model, tmp_path):
    """All next tokens but the first are predicted right, each at odds of e to 1."""
    path = tmp_path / "texts.jsonl"
    rows = [{"text": "the movie was wonderful", "label": label} for label in ("yes", "no")]
    path.write_text("\n".join(map(json.dumps, rows)))
    text = labelled_texts(model, path)
    vocabulary = model.cfg.d_vocab
    logits = torch.zeros(*text.tokens.shape, vocabulary)
    last = text.mask.sum(1) - 1
    predicted = text.tokens[:, 1:].clone()
    predicted[:, 0] = (predicted[:, 0] + 1) % vocabulary
    logits[:, :-1].scatter_(2, predicted[..., None], 1.0)
    n = int(last[0])
    assert text.right(logits).tolist() == pytest.approx([(n - 1) / n] * 2)
    hit, miss = (math.log(math.e + vocabulary - 1) - logit for logit in (1.0, 0.0))
    assert text.loss(logits).tolist() == pytest.approx([((n - 1) * hit + miss) / n] * 2)


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
    with pytest.raises(ToolkitError, match=r"holds no \.conllu file"):
        tagged_tokens(model, tmp_path / "none.conllu")
    single = tmp_path / "one.jsonl"
    single.write_text(json.dumps({"text": "the movie", "label": 1}))
    with pytest.raises(ToolkitError, match=r"have the labels \['1'\]; a concept needs two"):
        labelled_texts(model, single)
    with pytest.raises(ToolkitError, match="has no column 'lable'"):
        labelled_texts(model, single, label_column="lable")
