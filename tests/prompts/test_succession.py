"""Prompts that continue a class, and their shuffled twins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts import (
    ORDINAL_CLASSES,
    STANDARD_CLASSES,
    Dropped,
    ordinal_class,
    ordinal_classes,
    succession,
    succession_prompts,
)

DAYS = ORDINAL_CLASSES["days"].words


# --- succession prompts


def test_days_are_continued_round_the_week(gpt2):
    found = succession_prompts(gpt2, ordinal_classes(gpt2, "days").classes, prepend_bos=True)
    assert found.texts[0] == " Monday, Tuesday, Wednesday,"
    assert [gpt2.decode([t]) for t in found.tokens[0]] == [
        "<|endoftext|>", " Monday", ",", " Tuesday", ",", " Wednesday", ","
    ]  # fmt: skip
    # Monday to Wednesday are followed by Thursday (3), ..., Sunday to Tuesday by Wednesday (2)
    assert [gpt2.decode([t]).strip() for t in found.answer.tolist()] == [
        DAYS[(3 + i) % 7] for i in range(7)
    ]
    assert found.item.tolist() == [2, 3, 4, 5, 6, 0, 1]
    assert found.item_position.tolist() == [5] * 7
    assert found.position.tolist() == [6] * 7
    assert (set(found.classes), found.dropped) == ({"days"}, ())


def test_each_class_gives_every_run_it_has(real):
    found = succession_prompts(real, ordinal_classes(real).classes, prepend_bos=False)
    counts = {name: found.classes.count(name) for name in STANDARD_CLASSES}
    # cyclic: one per item; open: the last three items begin no run of four
    assert counts == {"days": 7, "months": 12, "numbers": 197, "letters": 23, "number_words": 17}
    assert found.mask.all()  # every item is one token, so all prompts are equally long


def test_the_answer_is_the_successor_of_the_item(real):
    classes = ordinal_classes(real, tuple(ORDINAL_CLASSES)).classes
    for shuffled in (False, True):
        found = succession_prompts(real, classes, prepend_bos=False, length=2, shuffled=shuffled)
        for row in range(len(found)):
            ordinal = classes[found.classes[row]]
            words = dict(zip(ordinal.index.tolist(), ordinal.tokens.tolist(), strict=True))
            item = int(found.item[row])
            assert found.tokens[row, found.item_position[row]] == words[item]
            assert found.answer[row] == words[(item + 1) % ordinal.order]


def test_the_shuffled_twin_differs_in_order_only(real):
    classes = ordinal_classes(real).classes
    ordered = succession_prompts(real, classes, prepend_bos=False)
    twin = succession_prompts(real, classes, prepend_bos=False, shuffled=True, seed=3)
    assert torch.equal(ordered.tokens.sort(dim=1).values, twin.tokens.sort(dim=1).values)
    assert (ordered.tokens != twin.tokens).any(dim=1).all()
    for name in ("answer", "position", "item"):
        assert torch.equal(getattr(ordered, name), getattr(twin, name))


def test_the_orders_of_the_twin_are_uniform_over_the_wrong_ones():
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(succession._wrong_order(3, generator)) for _ in range(2000)]
    assert len(set(drawn)) == 5
    assert (0, 1, 2) not in drawn
    # 400 expected of each, standard deviation sqrt(2000 * .2 * .8) = 17.9: six of them
    assert all(abs(drawn.count(order) - 400) < 108 for order in set(drawn))


def test_the_same_seed_gives_the_same_twin_and_another_seed_another(toy):
    classes = ordinal_classes(toy, "days").classes
    first, same, other = (
        succession_prompts(toy, classes, prepend_bos=True, shuffled=True, seed=seed).hash
        for seed in (1, 1, 2)
    )
    assert first == same != other


def test_per_class_spreads_the_same_prompts_for_every_seed(gpt2):
    classes = ordinal_classes(gpt2, ("days", "numbers")).classes
    few = succession_prompts(gpt2, classes, prepend_bos=True, per_class=10)
    twin = succession_prompts(gpt2, classes, prepend_bos=True, per_class=10, shuffled=True, seed=5)
    assert (few.classes.count("days"), few.classes.count("numbers")) == (7, 10)
    assert torch.equal(few.answer, twin.answer)
    assert few.dropped == (Dropped("numbers", "10 of 197 sequences used (per_class=10)"),)
    steps = few.item[7:].diff()
    assert steps.min() >= 19  # 197 runs in ten: 19.7 apart
    assert steps.max() <= 20


def test_runs_through_a_dropped_item_are_listed(gpt2):
    found = succession_prompts(gpt2, ordinal_classes(gpt2, "roman").classes, prepend_bos=True)
    # I..XVI without gap: 13 runs of four; 17 would be possible with all 20 items
    assert len(found) == 13
    assert [d.word for d in found.dropped] == [
        "XIV, XV, XVI -> XVII",
        "XV, XVI, XVII -> XVIII",
        "XVI, XVII, XVIII -> XIX",
        "XVII, XVIII, XIX -> XX",
    ]
    assert found.dropped[0].reason == "roman lost 'XVII': 2 tokens: ' XV','II'"


def test_one_item_can_be_shown_alone(toy):
    days = ordinal_classes(toy, "days").classes
    found = succession_prompts(toy, days, prepend_bos=True, length=1)
    assert found.texts[6] == " Sunday,"
    assert found.answer[6] == toy.convert_tokens_to_ids("Monday")


def test_a_vocabulary_without_comma_needs_another_separator(word_level):
    tokenizer = word_level([*DAYS, "then"])
    classes = ordinal_classes(tokenizer, "days").classes
    with pytest.raises(
        TokenisationError, match="separator ',' is unknown to the tokenizer; pass separator=''"
    ):
        succession_prompts(tokenizer, classes, prepend_bos=True)
    bare = succession_prompts(tokenizer, classes, prepend_bos=True, separator="")
    assert bare.texts[0] == " Monday Tuesday Wednesday"
    assert bare.item_position.tolist() == bare.position.tolist() == [3] * 7
    worded = succession_prompts(tokenizer, classes, prepend_bos=True, separator=" then")
    assert worded.tokens.shape == (7, 7)


def test_the_as_is_variant_is_written_without_spaces(gpt2):
    classes = ordinal_classes(gpt2, "days", leading_space=False).classes
    found = succession_prompts(gpt2, classes, prepend_bos=True)
    assert found.texts[0] == "Monday,Tuesday,Wednesday,"
    assert gpt2.decode(found.answer[:1]) == "Thursday"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"length": 7},
            "days has 7 items, so 7 shown items leave none to ask for; use length <= 6",
        ),
        ({"length": 0}, "show at least one item"),
        ({"length": 1, "shuffled": True}, "two or more that are to be shuffled"),
        ({"per_class": 0}, "per_class=0 leaves no prompt"),
    ],
)
def test_impossible_sequences_are_refused(toy, options, message):
    with pytest.raises(TokenisationError, match=message):
        succession_prompts(toy, ordinal_classes(toy, "days").classes, prepend_bos=True, **options)


def test_a_class_without_any_run_is_refused_with_the_reason(toy):
    classes = ordinal_classes(toy, "number_words").classes  # one, three, four, five: no run of four
    with pytest.raises(
        TokenisationError, match=r"no sequence of 3 items and their successor.*lost 'two': unknown"
    ):
        succession_prompts(toy, classes, prepend_bos=True)


def test_classes_of_another_tokenizer_are_refused(gpt2, pythia):
    with pytest.raises(
        TokenisationError,
        match="does not become the tokens of the class days; make the classes with",
    ):
        succession_prompts(gpt2, ordinal_classes(pythia, "days").classes, prepend_bos=False)


@pytest.mark.parametrize("wrong", [0, 6])
def test_one_wrong_token_of_a_class_is_refused(toy, wrong):
    # of an open class the first item is only ever shown, the last only ever asked for
    week = ordinal_class(toy, "week", DAYS, cyclic=False)
    succession_prompts(toy, {"week": week}, prepend_bos=True)
    tokens = week.tokens.clone()
    tokens[wrong] = toy.convert_tokens_to_ids("is")
    with pytest.raises(TokenisationError, match="does not become the tokens of the class week"):
        succession_prompts(toy, {"week": replace(week, tokens=tokens)}, prepend_bos=True)
