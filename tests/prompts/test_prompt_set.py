"""Prompts with one right answer each: made, selected, refused."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.prompts import (
    Dropped,
    PromptSet,
    build_prompts,
    ordinal_classes,
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
        # "a", "-b": the item is merged with what stands before it
        ("a-b", [("-", "b"), ("a", "-")]),
        # "a", "-", "b-": with what stands behind it
        ("a-b-", [("b", "-")]),
    ],
)
def test_an_item_merged_with_its_neighbour_is_refused(text, merges):
    pieces = ["a", "b", "c", "-", *("".join(pair) for pair in merges)]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    with pytest.raises(TokenisationError, match="'b' is not one token of its own"):
        build_prompts(tokenizer, [text], ["c"], prepend_bos=False, item_words=["b"])


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
    # Once each, in the order of the answers; the answer of one token is not among them.
    word, city = found.shortened
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


def test_two_spellings_of_the_same_tokens_are_one_answer(word_level):
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
    case = "case='invert': expected 'as written' or 'inverted'."
    answers_of = "answers_of='first': expected 'one token' or 'first token'."
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


def test_what_stands_where_a_prompt_asks_is_at_its_last_real_token():
    values = torch.arange(12.0).reshape(2, 3, 2)
    assert two_prompts().where_asked(values).tolist() == [[4, 5], [8, 9]]
    assert two_prompts().where_asked(values).dtype == torch.float64


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


def test_prompt_sets_of_one_width_are_joined_in_order():
    from transformers import AutoTokenizer

    from mechinterp_toolkit.checkpoint import bundled_folder
    from mechinterp_toolkit.toys import successor_queries

    tokenizer = AutoTokenizer.from_pretrained(bundled_folder("ordinal"))
    classes = ordinal_classes(tokenizer, "days").classes
    parts = [successor_queries(tokenizer, classes, seed=seed) for seed in (0, 1)]
    whole = PromptSet.joined(parts)
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert whole.texts == parts[0].texts + parts[1].texts
    assert whole.classes == ("days",) * 14
    with pytest.raises(TokenisationError, match="give sets of one width"):
        PromptSet.joined([parts[0], dataclasses.replace(parts[1], item=None)])


# --- the module


def test_importing_prompts_does_not_import_transformers():
    code = "import sys, mechinterp_toolkit.prompts; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
