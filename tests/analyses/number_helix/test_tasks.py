"""Numbers as tokens, additions and successions as prompts that know what would be right for another
number."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses.number_helix.tasks import (
    addition_task,
    number_tokens,
    succession_task,
)
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.toys import planted_adder
from mechinterp_toolkit.toys.gpt2 import random_gpt2


@pytest.fixture(scope="module")
def adder():
    made = planted_adder()
    return load_model(made.model, tokenizer=made.tokenizer)


@pytest.fixture(scope="module", params=["gpt2", "pythia"])
def reader(request, shared_data):
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    folder = shared_data / "tokenizers" / request.param
    if request.param == "gpt2":
        tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    return load_model(
        random_gpt2(len(tokenizer), d_model=16, n_layers=1, n_heads=2, seed=0), tokenizer=tokenizer
    )


def test_answers_for_other_numbers_are_their_sums(adder):
    known = number_tokens(adder)
    task = addition_task(adder, known, repeats=2)
    words = adder.tokenizer.convert_ids_to_tokens
    row = 33
    prompt = words(task.prompts.tokens[row].tolist())
    assert (
        prompt[1]
        == str(int(task.number[row]))
        == words([int(task.prompts.tokens[row, task.at[row]])])[0]
    )
    assert prompt[3] == str(int(task.second[row]))
    for value, token in zip(task.numbers.tolist(), task.answers[row].tolist(), strict=True):
        assert words([token]) == [str(value + int(task.second[row]))]
    assert task.prompts.answer[row] == task.answers[row, task.which[row]]


def test_modular_answers_wrap(adder):
    task = addition_task(adder, number_tokens(adder), modulus=23, repeats=1)
    assert task.name == "addition mod 23"
    assert task.numbers.tolist() == list(range(23))
    token = int(task.answers[-1, 22])
    assert adder.tokenizer.convert_ids_to_tokens([token]) == [str((22 + int(task.second[-1])) % 23)]


def test_right_is_the_highest_among_numbers_alone(adder):
    task = addition_task(adder, number_tokens(adder), repeats=1)
    logits = torch.zeros(len(task.prompts), adder.cfg.d_vocab, dtype=torch.float64)
    assert task.right(logits).sum() == 0  # a tie chooses nothing
    own = task.answers.gather(1, task.which[:, None])
    logits.scatter_(1, own, 1.0)
    assert task.right(logits).mean() == 1
    logits[:, adder.tokenizer.convert_tokens_to_ids("+")] = 9.0  # no number
    assert task.right(logits).mean() == 1


def test_the_toy_is_asked_for_the_number_after_each(adder):
    model = load_model("toy/ordinal")
    task = succession_task(model, number_tokens(model))
    assert task.numbers.tolist() == list(range(1, 30))
    with torch.no_grad():
        assert task.right(task.logits(model)).mean() == 1
    assert addition_task(model, number_tokens(model)) is None  # it knows no plus sign


def test_real_tokenizers_can_be_asked_both(reader):
    known = number_tokens(reader)
    assert len(known) == 200
    task = addition_task(reader, known, repeats=1)
    assert len(task.numbers) == 100
    row = 7
    pieces = [
        reader.tokenizer.decode([t]).strip()
        for t in task.prompts.tokens[row, task.prompts.mask[row]].tolist()
    ]
    assert pieces[-4:] == [str(int(task.number[row])), "+", str(int(task.second[row])), "="]
    assert reader.tokenizer.decode([int(task.prompts.tokens[row, task.at[row]])]).strip() == str(
        int(task.number[row])
    )
    after = succession_task(reader, known)
    assert after.name == "succession"
    assert reader.tokenizer.decode([int(after.answers[0, 5])]).strip() == str(
        int(after.numbers[5]) + 1
    )


def test_models_without_single_token_numbers_are_refused(hf_folders):
    with pytest.raises(
        NotApplicable, match=r"has 0 of the numbers 0 to 199 as one token, 20 are needed: '0'"
    ):
        number_tokens(load_model(hf_folders["gpt2"]))
