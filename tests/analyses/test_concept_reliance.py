"""Concept reliance: planted, unused, relabelled, a treebank, and the sentences a reader gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.analyses.concept_reliance import (
    ERASURES,
    ConceptReliance,
    _about,
    _about_control,
    concept_reliance,
)
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts.concepts import WORD_CONCEPTS
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.toys import concept_model

QUICK = {"draws": 199, "edit_draws": 19}


@pytest.fixture(scope="module")
def on_planted() -> ConceptReliance:
    return concept_reliance(concept_model(1.0, 0), **QUICK)


def test_the_planted_concept_is_represented_and_used(on_planted):
    assert on_planted.represented.outcome == on_planted.used.outcome == "found"
    assert on_planted.rise.value[0] > 1  # nats; the model is nearly always right as it is
    assert on_planted.right.value > 0.9
    risen = dict(zip(ERASURES, on_planted.by_erasure.value[0].tolist(), strict=True))
    assert abs(risen["random directions"]) < 0.1
    assert risen["LEACE"] > 3 * on_planted.rise.control[:, 0].mean()


def test_at_the_tokens_it_was_fitted_to_nothing_is_left(on_planted):
    assert on_planted.cross_covariance_left.max() < 1e-10


def test_the_planted_suppressor_parts_filter_and_pattern(on_planted):
    assert on_planted.cosine.max() < 0.9


def test_represented_but_not_used_is_said_so():
    finding = concept_reliance(concept_model(1.0, 1, used=False), **QUICK)
    assert finding.represented.outcome == "found"
    assert finding.used.outcome == "not_found"


def test_once_brought_to_the_comma_erasure_at_the_word_comes_too_late():
    finding = concept_reliance(concept_model(1.0, 1, summary=True), **QUICK)
    assert finding.rise.value[0] > 1
    assert abs(finding.rise.value[1]) < 0.05


def test_another_concept_of_the_same_words_is_not_this_one():
    finding = concept_reliance(concept_model(1.0, 0, relabelled=True), **QUICK)
    assert finding.represented.outcome == "not_found"
    assert finding.used.outcome == "not_applicable"
    assert "is not represented linearly" in finding.answer()
    assert "nothing was erased" in finding.causal_check()


def test_verdicts_read_again_from_other_numbers_change(on_planted):
    tiny = replace(
        on_planted.rise,
        value=on_planted.rise.value / 1e4,
        low=on_planted.rise.low / 1e4,
        high=on_planted.rise.high / 1e4,
        control=on_planted.rise.control / 1e4,
    )
    assert replace(on_planted, rise=tiny).used.outcome == "not_found"
    assert "less than anything of interest" in replace(on_planted, rise=tiny).used.reason
    wide = replace(on_planted.rise, low=on_planted.rise.low * 0)
    assert replace(on_planted, rise=wide).used.outcome == "undecided"


def test_too_few_draws_decide_nothing(on_planted):
    few = replace(
        on_planted, accuracy=replace(on_planted.accuracy, control=on_planted.accuracy.control[:10])
    )
    assert few.represented.outcome == "undecided"
    assert "at least 19 draws are needed" in few.represented.reason
    few = replace(on_planted, rise=replace(on_planted.rise, control=on_planted.rise.control[:10]))
    assert few.used.outcome == "undecided"
    assert "at least 19 draws are needed" in few.used.reason


def test_nothing_is_denied_where_nothing_was_decided():
    finding = concept_reliance(concept_model(1.0, 0), draws=10)
    assert finding.represented.outcome == finding.used.outcome == "undecided"
    assert (
        "not decided whether sentiment is represented, so nothing was erased" in finding.used.reason
    )
    assert finding.answer().startswith("Whether sentiment is represented linearly is undecided.")
    assert "not represented" not in str(finding)


def test_classes_that_stay_readable_in_other_words_are_a_caveat_and_others_not(on_planted):
    says = "Erasure of words that the eraser was not fitted to leaves an accuracy of "
    best = int(on_planted.accuracy.value.argmax())
    value = on_planted.erased.value.clone()
    value[best] = on_planted.erased.control[:, best].max() + 0.01
    left = replace(on_planted, erased=replace(on_planted.erased, value=value))
    assert any(
        caveat.startswith(f"{says}{left.erased.at(best).text()}; control: ")
        for caveat in left.caveats
    )
    value = value.clone()
    value[best] = on_planted.erased.control[:, best].median()
    gone = replace(on_planted, erased=replace(on_planted.erased, value=value))
    assert not any(says in caveat for caveat in gone.caveats)


def test_rises_are_written_in_thousandths_of_a_nat_and_units_by_name(on_planted):
    ends = {end: getattr(on_planted.by_erasure, end).clone() for end in ("value", "low", "high")}
    for end, rise in zip(ends, (3.17e-8, -1.69e-6, 1.66e-6), strict=True):  # what rounding makes
        ends[end][:, ERASURES.index("random directions")] = rise
    rounding = replace(on_planted, by_erasure=replace(on_planted.by_erasure, **ends))
    assert rounding.causal_check().endswith("random directions about 0.")
    assert "e-0" not in rounding.causal_check().partition("the loss rises by")[2]
    assert "(labels shuffled over words, largest of all)" in on_planted.answer()
    assert (
        "With an eraser fitted to one half of the words, the other half is classified with"
        in on_planted.answer()
    )


def scalar(value: float, low: float, high: float) -> Estimate:
    numbers = (torch.tensor(number, dtype=torch.float64) for number in (value, low, high))
    control = torch.tensor([4e-5, 6e-5], dtype=torch.float64)
    return Estimate(*numbers, 9, "nats", "by hand", control=control, control_name="shuffled")


def test_numbers_are_written_as_finely_as_their_unit_deserves():
    assert _about(scalar(3.17e-8, -1.69e-6, 1.66e-6), 1e-3) == "about 0"
    assert _about(scalar(0.76497, 0.65852, -0.0002), 1e-3) == "0.765 [0.659, 0]"
    assert _about_control(scalar(1.0, 1.0, 1.0), 1e-3) == "about 0 (shuffled)"
    assert _about_control(scalar(1.0, 1.0, 1.0), 1e-5) == "5e-05, 95 % below 6e-05 (shuffled)"


def test_a_misspelt_concept_is_told_the_right_name():
    with pytest.raises(
        ToolkitError, match=r"no concept of words is called 'sentimant'. Did you mean 'sentiment'\?"
    ):
        concept_reliance(concept_model(1.0, 0), concept="sentimant")


def treebank_model(folder):
    """A two-layer GPT-2 shape trained on the treebank's sentences; rare words are unknown."""
    from collections import Counter

    import transformers

    from mechinterp_toolkit.prompts.labelled import _sentences
    from mechinterp_toolkit.toys.gpt2 import word_level_tokenizer

    (file,) = folder.glob("*.conllu")
    sentences = [[word.strip() for word, _ in words][:24] for words in _sentences(file)][:1200]
    common = [word for word, _ in Counter(word for s in sentences for word in s).most_common(500)]
    tokenizer = word_level_tokenizer(("<pad>", "<bos>", "<unk>", *common))
    config = transformers.GPT2Config(
        n_layer=2,
        n_head=4,
        n_embd=64,
        vocab_size=len(tokenizer),
        n_positions=40,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=1,
    )
    batch = tokenizer(
        [" ".join(["<bos>", *s]) for s in sentences],
        padding=True,
        return_tensors="pt",
        max_length=32,
        truncation=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
    optimiser, generator = (
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        torch.Generator().manual_seed(0),
    )
    for _ in range(400):
        rows = torch.randint(len(sentences), (48,), generator=generator)
        tokens, mask = batch["input_ids"][rows], batch["attention_mask"][rows].bool()
        optimiser.zero_grad()
        model(tokens, labels=tokens.masked_fill(~mask, -100)).loss.backward()
        optimiser.step()
    return load_model(model.eval(), tokenizer=tokenizer)


@pytest.mark.slow
def test_part_of_speech_is_read_in_a_model_of_the_treebank_and_its_erasure_costs(shared_data):
    model = treebank_model(shared_data / "ud_ewt")
    finding = concept_reliance(model, concept=str(shared_data / "ud_ewt"), **QUICK)
    print(finding.answer(), finding.causal_check())
    assert finding.represented.outcome == finding.used.outcome == "found"
    assert finding.unit_name == "words"
    assert len(finding.classes) >= 10
    # A random network mixes a word with its neighbours, and these tell parts of speech: but less,
    # and it relies on nothing.
    twin = concept_reliance(model.random_twin(0), concept=str(shared_data / "ud_ewt"), **QUICK)
    print(twin.answer(), twin.causal_check())
    assert twin.accuracy.value[0] < twin.accuracy.control[:, 0].max()
    assert twin.accuracy.high.max() < finding.accuracy.low.max()
    assert twin.used.outcome != "found"


def test_a_corpus_of_labelled_texts_is_judged_by_its_next_tokens(tmp_path):
    import json

    model = concept_model(1.0, 0)
    positive, negative = (words[:12] for words in WORD_CONCEPTS["sentiment"].words.values())
    rows = [
        {"text": f"the movie was {word}", "label": side}
        for side, words in (("good", positive), ("bad", negative))
        for word in words
    ]
    path = tmp_path / "Reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    finding = concept_reliance(model, concept=str(path), **QUICK)
    assert finding.unit_name == "texts"
    assert finding.units == (12, 12)
    assert finding.represented.outcome == "found"
    assert "(labels shuffled over texts, largest of all)" in finding.answer()
    assert "Reviews.jsonl is read off" in finding.represented.reason
