"""Tokenizers: two real ones, and toys of one token per word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import ORDINAL_CLASSES
from mechinterp_toolkit.toys.gpt2 import random_gpt2


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> PreTrainedTokenizerBase:
    return GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")


@pytest.fixture(scope="session")
def pythia(shared_data: Path) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(shared_data / "tokenizers" / "pythia" / "tokenizer.json")
    )


@pytest.fixture(scope="session", params=["gpt2", "pythia"])
def real(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


def _word_level(
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


@pytest.fixture(scope="session")
def word_level() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes a toy tokenizer of words."""
    return _word_level


@pytest.fixture(scope="session")
def toy() -> PreTrainedTokenizerFast:
    words = ["If", "today", "is", "tomorrow", ",", "one", "three", "four", "five"]
    return _word_level([*ORDINAL_CLASSES["days"].words, *words])


@pytest.fixture(scope="session", params=["gpt2", "pythia"])
def reader(request: pytest.FixtureRequest, shared_data: Path) -> HookedModel:
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
