from __future__ import annotations

import dataclasses
import hashlib
import importlib
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mechinterp_toolkit import prompts
from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts import (
    ORDINAL_CLASSES,
    STANDARD_CLASSES,
    Dropped,
    OrdinalClass,
    PromptSet,
    build_prompts,
    has_ordinal_tokens,
    ordinal_class,
    ordinal_classes,
    prompt_set,
    succession_prompts,
)
from mechinterp_toolkit.prompts import tokens as reading

DAYS = ORDINAL_CLASSES["days"].words

# One token with a leading space, of each class: (GPT-2, Pythia).
SINGLE_TOKENS = {
    "days": (7, 7),
    "months": (12, 12),
    "numbers": (200, 200),
    "letters": (26, 26),
    "number_words": (20, 20),
    "ordinals": (10, 10),
    "roman": (17, 15),
}

# The same with the case of the first letter inverted, after a space and at the start of a text:
# (GPT-2, Pythia).
SINGLE_INVERTED = {
    ("days", True): (0, 0),
    ("days", False): (0, 0),
    ("months", True): (2, 2),
    ("months", False): (1, 1),
    ("number_words", True): (13, 13),
    ("number_words", False): (11, 10),
    ("ordinals", True): (10, 10),
    ("ordinals", False): (4, 4),
    ("day_prefixes", True): (5, 5),
    ("day_prefixes", False): (4, 4),
    ("month_prefixes", True): (9, 10),
    ("month_prefixes", False): (8, 10),
}


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> PreTrainedTokenizerBase:
    return GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")


@pytest.fixture(scope="module")
def pythia(shared_data: Path) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(shared_data / "tokenizers" / "pythia" / "tokenizer.json")
    )


@pytest.fixture(scope="module", params=["gpt2", "pythia"])
def real(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


def word_level(
    words: list[str], *, lower: bool = False, unknown: bool = True
) -> PreTrainedTokenizerFast:
    """A toy tokenizer: one token per word of its list, spaces ignored."""
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[BOS]", *words])}
    inner = Tokenizer(
        models.WordLevel(vocabulary, unk_token="[UNK]") if unknown else models.WordLevel(vocabulary)
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        inner.normalizer = normalizers.Lowercase()
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]"} | (
        {"unk_token": "[UNK]"} if unknown else {}
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture(scope="module")
def toy() -> PreTrainedTokenizerFast:
    return word_level([*DAYS, "If", "today", "is", "tomorrow", ",", "one", "three", "four", "five"])


def days(*, without: tuple[int, ...] = (), cyclic: bool = True) -> OrdinalClass:
    index = [i for i in range(7) if i not in without]
    return OrdinalClass(
        name="days",
        words=tuple(DAYS[i] for i in index),
        tokens=torch.tensor([100 + i for i in index], dtype=torch.long),
        index=torch.tensor(index, dtype=torch.long),
        order=7,
        cyclic=cyclic,
        variant="as is",
        dropped=tuple(Dropped(DAYS[i], "2 tokens") for i in without),
    )


def two_prompts(**changes: object) -> PromptSet:
    fields = {
        "tokens": torch.tensor([[5, 6, 7], [5, 8, 0]]),
        "mask": torch.tensor([[True, True, True], [True, True, False]]),
        "answer": torch.tensor([9, 9]),
        "position": torch.tensor([2, 1]),
        "texts": ("a b c", "a d"),
        "item": torch.tensor([0, 1]),
        "classes": ("days", "days"),
        "item_position": torch.tensor([1, 1]),
    }
    return PromptSet(**(fields | changes))


# --- ordinal classes with the real tokenizers


@pytest.mark.parametrize("name", SINGLE_TOKENS)
def test_gpt2_and_pythia_keep_the_known_number_of_items(gpt2, pythia, name):
    kept = tuple(
        len(ordinal_classes(tokenizer, name).classes[name]) for tokenizer in (gpt2, pythia)
    )
    assert kept == SINGLE_TOKENS[name]


def test_every_kept_token_is_the_word_with_its_leading_space(real):
    for ordinal in ordinal_classes(real, tuple(ORDINAL_CLASSES)).classes.values():
        assert [real.decode([token]) for token in ordinal.tokens.tolist()] == [
            f" {word}" for word in ordinal.words
        ]
        assert ordinal.variant == "leading space"


def test_as_is_takes_the_token_at_the_start_of_a_text(real):
    ordinal = ordinal_classes(real, "days", leading_space=False).classes["days"]
    assert [real.decode([token]) for token in ordinal.tokens.tolist()] == list(DAYS)
    # "eleven" and all that follow are several tokens without their space, in both vocabularies
    words = ordinal_classes(real, "number_words", leading_space=False).classes["number_words"]
    assert words.words == ORDINAL_CLASSES["number_words"].words[:10]


def test_dropped_roman_numerals_are_named_with_their_tokens(gpt2):
    roman = ordinal_classes(gpt2, "roman").classes["roman"]
    assert roman.dropped == (
        Dropped("XVII", "2 tokens: ' XV','II'"),
        Dropped("XVIII", "2 tokens: ' XV','III'"),
        Dropped("XIX", "2 tokens: ' X','IX'"),
    )
    assert roman.order == 20
    assert roman.index.tolist() == [*range(16), 19]
    assert roman.pairs(+1).tolist() == [[i, i + 1] for i in range(15)]


def test_tokens_of_several_classes_are_reported(real):
    found = ordinal_classes(real, ("months", "letters", "month_prefixes", "roman"))
    assert {s.members for s in found.shared} == {
        (("months", "May"), ("month_prefixes", "May")),
        *((("letters", numeral), ("roman", numeral)) for numeral in "IVX"),
    }
    assert "'May' is one token of months and month_prefixes" in found.caveats


def test_standard_classes_of_the_real_tokenizers_lose_and_share_nothing(real):
    found = ordinal_classes(real)
    assert (tuple(found.classes), found.caveats) == (STANDARD_CLASSES, ())


def test_a_whole_class_can_be_made_to_wrap_or_not(real):
    wrapping = ordinal_classes(real, "month_prefixes").classes["month_prefixes"]
    open_ended = ordinal_classes(real, "month_prefixes", cyclic={"month_prefixes": False}).classes[
        "month_prefixes"
    ]
    assert (len(wrapping.pairs()), len(open_ended.pairs())) == (12, 11)


# --- the words with the case of their first letter inverted


def variants(
    tokenizer: PreTrainedTokenizerBase, names: tuple[str, ...] = tuple(ORDINAL_CLASSES)
) -> list[OrdinalClass]:
    """All usable classes in all four variants, as a sweep over them takes them."""
    return [
        ordinal
        for leading_space in (True, False)
        for case in ("as written", "inverted")
        for ordinal in ordinal_classes(
            tokenizer, names, leading_space=leading_space, case=case
        ).classes.values()
    ]


@pytest.mark.parametrize(("name", "leading_space"), SINGLE_INVERTED)
def test_gpt2_and_pythia_keep_the_known_number_of_inverted_items(gpt2, pythia, name, leading_space):
    words, cyclic = ORDINAL_CLASSES[name]
    kept = tuple(
        len(
            ordinal_class(
                t, name, words, cyclic=cyclic, leading_space=leading_space, case="inverted"
            )
        )
        for t in (gpt2, pythia)
    )
    assert kept == SINGLE_INVERTED[name, leading_space]


@pytest.mark.parametrize(
    ("leading_space", "variant"),
    [(True, "leading space, case inverted"), (False, "as is, case inverted")],
)
def test_every_inverted_token_is_the_word_with_its_first_letter_in_the_other_case(
    real, leading_space, variant
):
    found = ordinal_classes(
        real, tuple(ORDINAL_CLASSES), leading_space=leading_space, case="inverted"
    )
    assert {"number_words", "ordinals"} <= set(found.classes)
    for name, ordinal in found.classes.items():
        lead = " " if leading_space else ""
        assert [real.decode([token]) for token in ordinal.tokens.tolist()] == [
            lead + word for word in ordinal.words
        ]
        whole = ORDINAL_CLASSES[name].words
        title = name in ("number_words", "ordinals")
        assert list(ordinal.words) == [
            whole[place].capitalize() if title else whole[place].lower()
            for place in ordinal.index.tolist()
        ]
        assert (ordinal.variant, ordinal.leading_space, ordinal.order) == (
            variant,
            leading_space,
            len(whole),
        )


def test_what_has_no_inverted_form_is_skipped_with_its_reason(real):
    found = ordinal_classes(real, tuple(ORDINAL_CLASSES), case="inverted")
    assert (
        found.skipped["numbers"]
        == "no case to invert: the words would be those as written, counted twice"
    )
    assert found.skipped["letters"].startswith("never inverted: a small letter is another sign")
    assert found.skipped["roman"].startswith("never inverted")
    assert found.skipped["days"].startswith(
        "0 usable items, fewer than 3; 7 of 7 items dropped ('monday': 2 tokens"
    )
    assert any(caveat.startswith("numbers left out: no case to invert") for caveat in found.caveats)


def test_inverted_numbers_alone_are_refused(real):
    with pytest.raises(TokenisationError, match=r"none of the ordinal classes .*numbers: no case"):
        ordinal_classes(real, "numbers", case="inverted")


def test_no_token_of_a_class_is_counted_twice_over_the_variants(real):
    tokens = {}
    for ordinal in variants(real):
        tokens.setdefault(ordinal.name, []).extend(ordinal.tokens.tolist())
    assert {name for name, ids in tokens.items() if len(set(ids)) < len(ids)} == set()


def test_a_vocabulary_of_all_words_gives_the_published_pairs_with_numbers_counted_once():
    # published: 1148 pairs over four variants, letters and numerals in two of them, and the 199 of
    # the numbers in all
    every = [word for words, _ in ORDINAL_CLASSES.values() for word in words]
    tokenizer = word_level(
        list(dict.fromkeys([*every, *(word[0].swapcase() + word[1:] for word in every)]))
    )
    found = variants(tokenizer)
    assert sum(len(ordinal.pairs()) for ordinal in found) == 1148 - 2 * 199
    assert [ordinal.name for ordinal in found].count("numbers") == 2


def test_a_tokenizer_that_ignores_case_has_no_inverted_items():
    tokenizer = word_level(["mon", "tue", "wed", "thu"], lower=True)
    ordinal = ordinal_class(tokenizer, "days", ("Mon", "Tue", "Wed"), cyclic=True, case="inverted")
    assert (ordinal.words, ordinal.dropped[0]) == (
        (),
        Dropped("mon", "same token as 'Mon' as written"),
    )
    with pytest.raises(TokenisationError, match="day_prefixes: 0 usable items"):
        ordinal_classes(tokenizer, "day_prefixes", case="inverted")


def test_words_of_a_class_that_have_no_case_are_dropped_from_its_inverted_variant():
    tokenizer = word_level(["one", "One", "two", "Two", "3"])
    ordinal = ordinal_class(tokenizer, "mixed", ("one", "two", "3"), cyclic=False, case="inverted")
    assert (ordinal.words, ordinal.index.tolist()) == (("One", "Two"), [0, 1])
    assert ordinal.dropped == (Dropped("3", "same token as '3' as written"),)


def test_inverted_classes_become_prompts_of_their_own_words(real):
    classes = ordinal_classes(real, "number_words", case="inverted").classes
    found = succession_prompts(real, classes, prepend_bos=False)
    assert (found.texts[0], real.decode(found.answer[:1])) == (" One, Two, Three,", " Four")
    bare = ordinal_classes(real, "number_words", leading_space=False, case="inverted").classes
    assert succession_prompts(real, bare, prepend_bos=False).texts[0] == "One,Two,Three,"


# --- ordinal classes with toy tokenizers


def test_a_word_level_tokenizer_gives_the_same_tokens_with_and_without_space(toy):
    spaced, bare = (
        ordinal_classes(toy, "days", leading_space=s).classes["days"] for s in (True, False)
    )
    assert spaced.tokens.tolist() == bare.tokens.tolist() == list(range(3, 10))


def test_unknown_words_are_dropped_with_their_reason(toy):
    words = ordinal_classes(toy, "number_words").classes["number_words"]
    assert words.words == ("one", "three", "four", "five")
    assert words.index.tolist() == [0, 2, 3, 4]
    assert words.dropped[0] == Dropped("two", "unknown to the tokenizer ('[UNK]')")
    assert words.pairs(+1).tolist() == [[1, 2], [2, 3]]


def test_a_second_word_with_the_same_token_is_dropped():
    tokenizer = word_level(["mar", "may", "jan"], lower=True)
    ordinal = ordinal_class(tokenizer, "months", ("Jan", "Mar", "MAR", "May"), cyclic=False)
    assert (ordinal.words, ordinal.dropped) == (
        ("Jan", "Mar", "May"),
        (Dropped("MAR", "same token as 'Mar'"),),
    )


def test_a_token_that_spells_another_word_is_not_the_word_s_token():
    inner = Tokenizer(
        models.BPE({"a": 0, "b": 1, "c": 2, "Ġ": 3}, [])
    )  # no unknown token: "z" is left out silently
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    ordinal = ordinal_class(
        tokenizer, "letters", ("a", "bz", "c", "z"), cyclic=False, leading_space=False
    )
    assert ordinal.words == ("a", "c")
    assert ordinal.dropped == (
        Dropped("bz", "its token spells 'b'"),
        Dropped("z", "no token at all"),
    )


def test_a_tokenizer_that_adds_its_own_leading_space_still_has_single_tokens():
    # as Llama 2: a space is put before every text, so " Monday" alone would be a lone space and
    # "▁Monday"
    inner = Tokenizer(
        models.WordLevel({"[UNK]": 0, "▁": 1, "▁Monday": 2, "▁Tuesday": 3}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    assert tokenizer(" Monday")["input_ids"] == [1, 2]
    assert reading.word_ids(tokenizer, ["Monday", "Tuesday"], leading_space=True) == [[2], [3]]


def test_a_class_with_too_few_items_is_skipped_with_its_reason(toy):
    found = ordinal_classes(toy, ("days", "months", "number_words"), minimum=5)
    assert tuple(found.classes) == ("days",)
    assert found.skipped["months"].startswith(
        "0 usable items, fewer than 5; 12 of 12 items dropped ('January': unknown"
    )
    assert found.skipped["number_words"].startswith("4 usable items, fewer than 5")
    assert any(caveat.startswith("months left out: 0 usable items") for caveat in found.caveats)


def test_a_tokenizer_without_any_usable_class_is_refused(toy):
    with pytest.raises(
        TokenisationError,
        match=r"none of the ordinal classes asked for is usable.*months: 0 usable",
    ):
        ordinal_classes(toy, "months")


@pytest.mark.parametrize(
    "wrong", [{"names": "monts"}, {"names": "days", "cyclic": {"monts": True}}]
)
def test_a_misspelt_class_is_refused_with_the_nearest_name(toy, wrong):
    with pytest.raises(TokenisationError, match=r"'monts'\. Did you mean 'months'"):
        ordinal_classes(toy, **wrong)


def test_a_tokenizer_that_fails_on_a_word_says_what_it_lacks():
    with pytest.raises(TokenisationError, match="needs an unknown token"):
        ordinal_classes(word_level(list(DAYS), unknown=False), "months")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": 8}, "each item is either kept or dropped"),
        ({"words": DAYS[:6]}, "each item is either kept or dropped"),
        ({"index": torch.tensor([1, 0, 2, 3, 4, 5, 6])}, "must rise"),
        ({"index": torch.tensor([0, 1, 2, 3, 4, 5, 7])}, "must rise"),
    ],
)
def test_an_inconsistent_class_cannot_be_made(changes, message):
    with pytest.raises(TokenisationError, match=message):
        replace(days(), **changes)


# --- pairs


def test_successors_of_the_days_wrap_round():
    assert days().pairs(+1).tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 0]]
    assert days(cyclic=False).pairs(+1).tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]]


def test_pairs_speak_of_kept_positions_and_skip_the_gap():
    # Monday, Wednesday, ..., Sunday at positions 0..5: Monday has no successor, Wednesday no
    # predecessor
    assert days(without=(1,)).pairs(+1).tolist() == [[1, 2], [2, 3], [3, 4], [4, 5], [5, 0]]
    assert days(without=(1,)).pairs(-1).tolist() == [[0, 5], [2, 1], [3, 2], [4, 3], [5, 4]]


def test_a_class_without_any_pair_has_zero_rows():
    assert days(without=(1, 3, 5), cyclic=False).pairs(+1).shape == (0, 2)


@given(
    without=st.sets(st.integers(0, 6), max_size=5), cyclic=st.booleans(), offset=st.integers(-9, 9)
)
def test_pairs_at_minus_an_offset_are_the_pairs_at_the_offset_turned_round(without, cyclic, offset):
    ordinal = days(without=tuple(sorted(without)), cyclic=cyclic)
    forth, back = ordinal.pairs(offset), ordinal.pairs(-offset)
    assert sorted(forth.flip(1).tolist()) == sorted(back.tolist())
    assert len(ordinal.pairs(0)) == len(ordinal)
    gap = ordinal.index[forth[:, 1]] - ordinal.index[forth[:, 0]] - offset
    assert ((gap % 7 if cyclic else gap) == 0).all()


# --- whether there are ordinal tokens at all


def test_usable_tokenizers_have_no_reason_against_them(real, toy):
    # both models pad their embedding: GPT-2 has 50257 rows, Pythia 50304 for 50277 tokens
    assert has_ordinal_tokens(real, d_vocab=len(real)) is None
    assert has_ordinal_tokens(real, d_vocab=50304) is None
    assert has_ordinal_tokens(toy, d_vocab=64) is None


def test_no_tokenizer_is_a_reason():
    assert "no tokenizer" in has_ordinal_tokens(None)


def test_the_silent_one_token_tokenizer_is_a_reason():
    # what transformers 5 makes, without a word, of a folder or arguments that hold no vocabulary
    silent = GPT2TokenizerFast(vocab={}, merges=[])
    assert len(silent) == 1
    assert "not the model's own" in has_ordinal_tokens(silent)


def test_a_vocabulary_far_below_the_model_s_is_a_reason(toy):
    assert has_ordinal_tokens(toy) is None
    assert f"has {len(toy)} tokens, the model 50257" in has_ordinal_tokens(toy, d_vocab=50257)


def test_items_beyond_the_model_s_vocabulary_are_a_reason(toy):
    largest = toy.convert_tokens_to_ids("five")
    assert f"vocabulary ends at {largest - 1}" in has_ordinal_tokens(toy, d_vocab=largest)
    assert has_ordinal_tokens(toy, d_vocab=largest + 1) is None


def test_a_vocabulary_without_ordinals_is_a_reason():
    assert "none of the ordinal classes" in has_ordinal_tokens(word_level(["cat", "dog"]))


# --- prompts


def test_prompts_are_padded_on_the_right_and_ask_at_the_last_real_token(toy):
    found = build_prompts(
        toy,
        ["If today is Monday, tomorrow is", "today is"],
        [" Tuesday", " Sunday"],
        prepend_bos=True,
    )
    ids = toy.convert_tokens_to_ids
    assert found.tokens.tolist() == [
        ids(["[BOS]", "If", "today", "is", "Monday", ",", "tomorrow", "is"]),
        ids(["[BOS]", "today", "is", "[PAD]", "[PAD]", "[PAD]", "[PAD]", "[PAD]"]),
    ]
    assert found.mask.sum(1).tolist() == [8, 3]
    assert found.position.tolist() == [7, 2]
    assert found.answer.tolist() == ids(["Tuesday", "Sunday"])
    assert (found.item, found.classes, found.item_position) == (None, None, None)


def test_prompts_of_the_real_tokenizers_read_back_as_their_texts(real):
    texts = ["If today is Monday, tomorrow is", "After\nSunday comes"]
    found = build_prompts(real, texts, [" Tuesday", " Monday"], prepend_bos=False)
    back = [real.decode(row[mask]) for row, mask in zip(found.tokens, found.mask, strict=True)]
    assert back == texts == list(found.texts)
    assert [real.decode([token]) for token in found.answer.tolist()] == [" Tuesday", " Monday"]


def test_a_tokenizer_without_padding_token_pads_with_a_known_token(gpt2, pythia):
    for tokenizer, pad in ((gpt2, 50256), (pythia, 0)):
        found = build_prompts(tokenizer, ["one two", "one"], [" three", " two"], prepend_bos=False)
        assert (found.tokens[1, 1].item(), found.mask[1].tolist()) == (pad, [True, False])


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_the_item_is_found_where_it_stands(gpt2, prepend_bos):
    found = build_prompts(
        gpt2,
        [
            "If today is Monday, tomorrow is",
            "Monday, then",
            "May may be",
            "It is\nMonday\tand then Monday, so",
        ],
        [" Tuesday", " Tuesday", " June", " Tuesday"],
        prepend_bos=prepend_bos,
        items=[0, 0, 4, 0],
        classes=["days", "days", "months", "days"],
        item_words=["Monday", "Monday", "May", ("Monday", -1)],
    )
    assert (found.item_position - int(prepend_bos)).tolist() == [3, 0, 0, 7]
    words = [gpt2.decode([t]) for t in found.tokens[torch.arange(4), found.item_position].tolist()]
    assert words == [" Monday", "Monday", "May", " Monday"]


@pytest.mark.parametrize(
    ("text", "item", "message"),
    [
        ("Monday or Monday", "Monday", r"occurs 2 times in .*item_words=\[\('Monday', -1\)"),
        ("Monday or Monday", ("Monday", 2), "occurs 2 times in .* no occurrence 2"),
        ("Mondays are", "Monday", "does not occur in 'Mondays are' as a whole word"),
        ("Monday, then", "", "does not occur"),
        ("Chapter XVIII then", "XVIII", r"'XVIII' is not one token of its own in .*' XV','III'"),
    ],
)
def test_an_item_without_a_certain_position_is_refused(gpt2, text, item, message):
    with pytest.raises(TokenisationError, match=message):
        build_prompts(gpt2, [text], [" Tuesday"], prepend_bos=False, item_words=[item])


@pytest.mark.parametrize(
    ("text", "merges"),
    [
        (
            "a-b",
            [("-", "b"), ("a", "-")],
        ),  # "a", "-b": the item is merged with what stands before it
        ("a-b-", [("b", "-")]),  # "a", "-", "b-": with what stands behind it
    ],
)
def test_an_item_merged_with_its_neighbour_is_refused(text, merges):
    pieces = ["a", "b", "c", "-", *("".join(pair) for pair in merges)]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    with pytest.raises(TokenisationError, match="'b' is not one token of its own"):
        build_prompts(
            PreTrainedTokenizerFast(tokenizer_object=inner),
            [text],
            ["c"],
            prepend_bos=False,
            item_words=["b"],
        )


@pytest.mark.parametrize(
    ("text", "answer", "message"),
    [
        (
            "After XVII comes",
            " XVIII",
            r"' XVIII' after 'After XVII comes' \(tokens .*' comes'\).*2 tokens: ' XV','III'",
        ),
        (
            "Monday, ",
            "Tuesday",
            "across the boundary.*Move a space from the end of the text to the start of the answer",
        ),
        ("Mon", "day", "across the boundary: 'Mon' alone, 'Monday' together"),
        ("Monday,", "", "exactly one token: no token at all"),
        ("  ", " Tuesday", "text 0 is empty"),
        ("", " Tuesday", "text 0 is empty"),
    ],
)
def test_an_answer_that_is_not_the_next_token_is_refused(gpt2, text, answer, message):
    with pytest.raises(TokenisationError, match=message):
        build_prompts(gpt2, [text], [answer], prepend_bos=False)


def test_the_other_prompts_with_the_same_trouble_are_counted(gpt2):
    with pytest.raises(TokenisationError, match=r"after 'b' .*\(1 more prompts have such trouble"):
        build_prompts(gpt2, ["a", "b", "c"], [" I", " XVIII", " XIX"], prepend_bos=False)


def test_unknown_words_are_refused_by_name(toy):
    with pytest.raises(TokenisationError, match="words unknown to the tokenizer: 'cat', '!'"):
        build_prompts(toy, ["today cat is!"], [" Monday"], prepend_bos=False)
    with pytest.raises(TokenisationError, match=r"' cat'.*unknown to the tokenizer"):
        build_prompts(toy, ["today is"], [" cat"], prepend_bos=False)


def test_a_special_token_that_the_text_spells_out_is_not_unknown(gpt2):
    # GPT-2's unknown token is its end-of-text token, which a text may well hold
    found = build_prompts(gpt2, ["One.<|endoftext|>Two is"], [" three"], prepend_bos=True)
    assert found.tokens[0].tolist().count(50256) == 2


def test_a_missing_or_doubled_beginning_of_sequence_token_is_refused(gpt2, pythia):
    with pytest.raises(
        TokenisationError, match="no beginning-of-sequence token; pass prepend_bos=False"
    ):
        build_prompts(pythia, ["Monday,"], [" Tuesday"], prepend_bos=True)
    with pytest.raises(TokenisationError, match=r"1 texts already start with '<\|endoftext\|>'"):
        build_prompts(
            gpt2, ["<|endoftext|>Monday,", "Monday,"], [" Tuesday", " Tuesday"], prepend_bos=True
        )


def test_a_text_that_becomes_nothing_is_refused():
    with pytest.raises(TokenisationError, match="no token at all with this tokenizer"):
        build_prompts(
            GPT2TokenizerFast(vocab={}, merges=[]), ["Monday,"], [" Tuesday"], prepend_bos=False
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": "Monday"}, "sequence of at least one text"),
        ({"texts": []}, "sequence of at least one text"),
        (
            {"answers": [" Monday", " Tuesday"]},
            "answers must be a sequence with one entry per text",
        ),
        ({"answers": "x"}, "answers must be a sequence with one entry per text"),
        ({"items": [1]}, "items and classes go together"),
        ({"items": [-1], "classes": ["days"]}, "leave items out, never -1"),
    ],
)
def test_a_malformed_request_is_refused(toy, changes, message):
    request = {"texts": ["today is"], "answers": [" Monday"]} | changes
    with pytest.raises(TokenisationError, match=message):
        build_prompts(toy, **request, prepend_bos=False)


# --- answers of several tokens


TEXTS = ["After XVI comes", "The capital is", "After II comes", "After XVI we have"]
ANSWERS = [" XVII", " Ljubljana", " III", " XVII"]


def test_the_first_tokens_of_long_answers_are_taken_and_listed(real):
    found = build_prompts(real, TEXTS, ANSWERS, prepend_bos=False, answers_of="first token")
    assert [real.decode([token]) for token in found.answer.tolist()] == [" XV", " L", " III", " XV"]
    word, city = (
        found.shortened
    )  # once each, in the order of the answers; the answer of one token is not among them
    assert word == Dropped(" XVII", "2 tokens: ' XV','II'")
    assert city.word == " Ljubljana"
    assert city.reason.startswith(
        "6 tokens: ' L','j','ub" if len(real) == 50257 else "5 tokens: ' L','j','ubl'"
    )
    assert found.dropped == ()
    with pytest.raises(
        TokenisationError, match=r"must be exactly one token: 2 tokens: ' XV','II'.*\(2 more"
    ):
        build_prompts(real, TEXTS, ANSWERS, prepend_bos=False)


def test_answers_of_one_token_are_the_same_either_way(real):
    texts, answers = ["If today is Monday, tomorrow is", "one"], [" Tuesday", " two"]
    one, first = (
        build_prompts(real, texts, answers, prepend_bos=False, answers_of=of)
        for of in ("one token", "first token")
    )
    assert torch.equal(one.answer, first.answer)
    assert (one.hash, one.shortened) == (first.hash, first.shortened) == (one.hash, ())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (" XVII", " XVIII"),  # both of several tokens
        (" XVII", " XV"),  # one of them is the shared token
        (" XV", " XVII"),
    ],
)
def test_two_answers_with_the_same_first_token_are_refused_by_name(real, first, second):
    request = {"prepend_bos": False, "answers_of": "first token"}
    with pytest.raises(
        TokenisationError, match=rf"'{first}' \(.*and '{second}' \(.*begin with the same token"
    ):
        build_prompts(real, ["a", "b", "c"], [first, " II", second], **request)
    alone = build_prompts(real, ["a", "b"], [first, " II"], **request)
    assert real.decode(alone.answer[:1]) == " XV"


def test_the_toy_s_long_answers_are_shortened_and_refused_alike(toy):
    ids = toy.convert_tokens_to_ids
    request = {"prepend_bos": True, "answers_of": "first token"}
    found = build_prompts(
        toy, ["today is", "tomorrow is"], [" Monday, Tuesday", " Sunday"], **request
    )
    assert found.answer.tolist() == ids(["Monday", "Sunday"])
    assert found.shortened == (Dropped(" Monday, Tuesday", "3 tokens: 'Monday',',','Tuesday'"),)
    with pytest.raises(
        TokenisationError, match=r"' Monday, Tuesday' .*and ' Monday' .*begin with the same token"
    ):
        build_prompts(toy, ["today is", "tomorrow is"], [" Monday, Tuesday", " Monday"], **request)
    with pytest.raises(TokenisationError, match=r"' Monday cat' .*unknown to the tokenizer"):
        build_prompts(toy, ["today is"], [" Monday cat"], **request)


def test_two_spellings_of_the_same_tokens_are_one_answer():
    tokenizer = word_level(["today", "new", "york"], lower=True)
    answers = [" New York", " new york"]
    found = build_prompts(
        tokenizer, ["today"] * 2, answers, prepend_bos=False, answers_of="first token"
    )
    assert found.answer.tolist() == [tokenizer.convert_tokens_to_ids("new")] * 2


def test_an_answer_whose_first_token_says_nothing_is_refused(gpt2):
    request = {"prepend_bos": False, "answers_of": "first token"}
    for answer, message in (
        ("", "no token at all"),
        (" \u66dc", "of which the first spells no beginning of it"),
    ):
        with pytest.raises(
            TokenisationError, match=f"has no first token that stands for it: .*{message}"
        ):
            build_prompts(gpt2, ["Today"], [answer], **request)
    with pytest.raises(TokenisationError, match="across the boundary"):
        build_prompts(gpt2, ["Mon"], ["days"], **request)
    # as in a vocabulary with a lone space in front of digits
    lone = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0, " ": 1, "7": 2}, []))
    )
    with pytest.raises(
        TokenisationError, match="2 tokens: ' ','7', of which the first spells no beginning"
    ):
        build_prompts(lone, ["a"], [" 7"], **request)


def test_a_long_answer_of_which_a_part_is_left_out_is_refused():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    )
    with pytest.raises(TokenisationError, match="its tokens spell 'b c'"):
        build_prompts(tokenizer, ["a"], ["bzc"], prepend_bos=False, answers_of="first token")


def test_shortened_answers_stay_with_a_selection(gpt2):
    found = build_prompts(gpt2, TEXTS, ANSWERS, prepend_bos=False, answers_of="first token")
    assert found.select(torch.tensor([2])).shortened == found.shortened != ()


UNKNOWN_OPTIONS = """
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts import build_prompts, ordinal_class, ordinal_classes

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
for ask in (
    lambda: ordinal_classes(tokenizer, case="invert"),
    lambda: ordinal_class(tokenizer, "letters", ("a", "b"), cyclic=False, case="invert"),
    lambda: build_prompts(tokenizer, ["a"], ["b"], prepend_bos=False, answers_of="first"),
):
    try:
        ask()
    except TokenisationError as error:
        print(error)
"""


def test_misspelt_options_are_refused_without_shape_checking_too():
    # in a process of its own: the shape checking of the test run would refuse them at the door,
    # that of a user would not
    run = subprocess.run(
        [sys.executable, "-c", UNKNOWN_OPTIONS], capture_output=True, text=True, check=True
    )
    case, answers_of = (
        "case='invert': expected 'as written' or 'inverted'.",
        "answers_of='first': expected 'one token' or 'first token'.",
    )
    assert run.stdout.splitlines() == [case, case, answers_of]


# --- PromptSet


def test_select_by_mask_and_by_index_agree_and_batches_cover_everything():
    prompts = two_prompts()
    second = prompts.select(torch.tensor([False, True]))
    again = prompts.select(torch.tensor([1]))
    assert second.texts == again.texts == ("a d",)
    assert second.item_position.tolist() == again.item_position.tolist() == [1]
    assert prompts.select(torch.tensor([1, 1, 0])).item.tolist() == [1, 1, 0]
    assert [len(batch) for batch in prompts.select(torch.tensor([0, 1, 0])).batches(2)] == [2, 1]
    assert torch.equal(torch.cat([batch.tokens for batch in prompts.batches(1)]), prompts.tokens)


@pytest.mark.parametrize("rows", [torch.tensor([False, False]), torch.tensor([], dtype=torch.long)])
def test_an_empty_selection_is_refused(rows):
    with pytest.raises(TokenisationError, match="none of the 2 prompts was selected"):
        two_prompts().select(rows)


def test_a_batch_of_no_prompts_is_refused():
    with pytest.raises(TokenisationError, match="size >= 1"):
        two_prompts().batches(0)


def test_the_hash_is_that_of_the_real_tokens():
    prompts = two_prompts()
    wider = two_prompts(
        tokens=torch.tensor([[5, 6, 7, 3], [5, 8, 3, 3]]),
        mask=torch.tensor([[True, True, True, False], [True, True, False, False]]),
    )
    # the little-endian 64-bit numbers: prompts, lengths, ids
    by_hand = hashlib.sha256(struct.pack("<8q", 2, 3, 2, 5, 6, 7, 5, 8)).hexdigest()[:16]
    assert prompts.hash == wider.hash == by_hand
    assert two_prompts(tokens=torch.tensor([[5, 6, 7], [5, 9, 0]])).hash != by_hand


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mask": torch.tensor([[True, True, True], [True, False, True]])},
            "pad on the right only",
        ),
        (
            {"mask": torch.tensor([[True, True, True], [False, True, True]])},
            "pad on the right only",
        ),
        (
            {"mask": torch.tensor([[True, True, True], [False, False, False]])},
            "pad on the right only",
        ),
        ({"position": torch.tensor([1, 1])}, "last real token"),
        ({"item_position": torch.tensor([1, 2])}, "item_position lies outside"),
        ({"item_position": torch.tensor([-1, 1])}, "item_position lies outside"),
        ({"item": torch.tensor([0, -1])}, "never -1"),
        ({"texts": ("a b c",)}, "texts has 1 entries for 2 prompts"),
        ({"classes": ("days",)}, "classes has 1 entries for 2 prompts"),
    ],
)
def test_an_inconsistent_prompt_set_cannot_be_made(changes, message):
    with pytest.raises(TokenisationError, match=message):
        two_prompts(**changes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("answer", torch.tensor([1, 2, 3]), "answer has 3 entries for 2 prompts"),
        ("mask", torch.ones(2, 4, dtype=torch.bool), "expected the same shape"),
    ],
)
def test_tensors_of_different_shapes_are_refused_without_shape_checking_too(field, value, message):
    # put in afterwards: the shape checking of the test run would refuse them at the door, that of a
    # user would not
    prompts = two_prompts()
    object.__setattr__(prompts, field, value)
    with pytest.raises(TokenisationError, match=message):
        prompts.__post_init__()


def test_a_mask_of_the_wrong_length_selects_nothing():
    with pytest.raises(TokenisationError, match="3 entries for 2 prompts"):
        two_prompts().select(torch.tensor([True, True, False]))


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
    drawn = [tuple(prompt_set._wrong_order(3, generator)) for _ in range(2000)]
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
    found = succession_prompts(
        toy, ordinal_classes(toy, "days").classes, prepend_bos=True, length=1
    )
    assert found.texts[6] == " Sunday,"
    assert found.answer[6] == toy.convert_tokens_to_ids("Monday")


def test_a_vocabulary_without_comma_needs_another_separator():
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
    assert (found.texts[0], gpt2.decode(found.answer[:1])) == (
        "Monday,Tuesday,Wednesday,",
        "Thursday",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"length": 7},
            "days has 7 items, so 7 shown items leave none to ask for; use length <= 6",
        ),
        ({"length": 0}, "show at least one item"),
        ({"length": 1, "shuffled": True}, "at least two where they are to be shuffled"),
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


# --- the module


def test_importing_prompts_does_not_import_transformers():
    code = "import sys, mechinterp_toolkit.prompts; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_names_of_ordinal_classes_can_be_imported_from_prompts():
    home = importlib.import_module(
        "mechinterp_toolkit.prompts.ordinal_classes"
    )  # its name is also a function's
    for name in ("ORDINAL_CLASSES", "OrdinalTokens", "OrdinalWords", "Shared", "ordinal_classes"):
        assert getattr(prompts, name) is getattr(home, name)


def test_prompt_sets_of_one_width_are_joined_in_order():
    from mechinterp_toolkit.model import load_model
    from mechinterp_toolkit.toys import successor_queries

    tokenizer = load_model("toy/ordinal").tokenizer
    classes = ordinal_classes(tokenizer, "days").classes
    parts = [successor_queries(tokenizer, classes, seed=seed) for seed in (0, 1)]
    whole = PromptSet.joined(parts)
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert whole.texts == parts[0].texts + parts[1].texts
    assert whole.classes == ("days",) * 14
    with pytest.raises(TokenisationError, match="give sets of one width"):
        PromptSet.joined([parts[0], dataclasses.replace(parts[1], item=None)])
