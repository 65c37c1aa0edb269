"""Which items are one token each, in every variant; their pairs; what has no items at all."""

from __future__ import annotations

import importlib
from dataclasses import replace

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
    has_ordinal_tokens,
    ordinal_class,
    ordinal_classes,
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
        kind = ordinal.variant, ordinal.leading_space, ordinal.order
        assert kind == (variant, leading_space, len(whole))


def test_what_has_no_inverted_form_is_skipped_with_its_reason(real):
    found = ordinal_classes(real, tuple(ORDINAL_CLASSES), case="inverted")
    reason = "no case to invert: the words would be those as written, counted twice"
    assert found.skipped["numbers"] == reason
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


def test_a_vocabulary_of_all_words_gives_the_published_pairs_with_numbers_counted_once(word_level):
    # published: 1148 pairs over four variants, letters and numerals in two of them, and the 199 of
    # the numbers in all
    every = [word for words, _ in ORDINAL_CLASSES.values() for word in words]
    inverted = [word[0].swapcase() + word[1:] for word in every]
    tokenizer = word_level(list(dict.fromkeys([*every, *inverted])))
    found = variants(tokenizer)
    assert sum(len(ordinal.pairs()) for ordinal in found) == 1148 - 2 * 199
    assert [ordinal.name for ordinal in found].count("numbers") == 2


def test_a_tokenizer_that_ignores_case_has_no_inverted_items(word_level):
    tokenizer = word_level(["mon", "tue", "wed", "thu"], lower=True)
    ordinal = ordinal_class(tokenizer, "days", ("Mon", "Tue", "Wed"), cyclic=True, case="inverted")
    assert ordinal.words == ()
    assert ordinal.dropped[0] == Dropped("mon", "same token as 'Mon' as written")
    with pytest.raises(TokenisationError, match="day_prefixes: 0 usable items"):
        ordinal_classes(tokenizer, "day_prefixes", case="inverted")


def test_words_of_a_class_that_have_no_case_are_dropped_from_its_inverted_variant(word_level):
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


def test_a_second_word_with_the_same_token_is_dropped(word_level):
    tokenizer = word_level(["mar", "may", "jan"], lower=True)
    ordinal = ordinal_class(tokenizer, "months", ("Jan", "Mar", "MAR", "May"), cyclic=False)
    assert ordinal.words == ("Jan", "Mar", "May")
    assert ordinal.dropped == (Dropped("MAR", "same token as 'Mar'"),)


def test_a_token_that_spells_another_word_is_not_the_word_s_token():
    # There is no unknown token: "z" is left out silently.
    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "Ġ": 3}, []))
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


def test_a_tokenizer_that_fails_on_a_word_says_what_it_lacks(word_level):
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


def test_a_vocabulary_without_ordinals_is_a_reason(word_level):
    assert "none of the ordinal classes" in has_ordinal_tokens(word_level(["cat", "dog"]))


def test_the_names_of_ordinal_classes_can_be_imported_from_prompts():
    # Its name is also a function's.
    home = importlib.import_module("mechinterp_toolkit.prompts.ordinal_classes")
    for name in ("ORDINAL_CLASSES", "OrdinalTokens", "OrdinalWords", "Shared", "ordinal_classes"):
        assert getattr(prompts, name) is getattr(home, name)
