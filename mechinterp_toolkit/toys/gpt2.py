"""GPT-2 shapes that toys are made of: built, written down, renamed, and heads written by hand.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.checkpoint import bundled_folder, write_checkpoint
from mechinterp_toolkit.heads.weights import norm_before
from mechinterp_toolkit.model import HookedModel, load_model, no_progress_bar
from mechinterp_toolkit.toys.loop import State

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def word_level_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words and signs; the id of each is its place in `words`.

    Spaces separate words and belong to none; "<pad>", "<bos>" and "<unk>" are among `words`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        "bos_token": "<bos>",
        "eos_token": "<bos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def knows_exactly(tokenizer: Any, words: Sequence[str]) -> bool:
    """Whether `tokenizer` is the word-level one of these words, and of no other."""
    known: dict[str, int] = tokenizer.get_vocab()
    return known == {word: i for i, word in enumerate(words)}


def random_gpt2(
    d_vocab: int,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    seed: int,
    d_mlp: int | None = None,
    n_positions: int = 32,
) -> GPT2LMHeadModel:
    """Return an untrained model without dropout; the global random state stays.

    MLPs are twice as wide as the stream unless `d_mlp` says otherwise. Token 0 is for padding and
    token 1 begins a sequence, as in the toys' tokenizers.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=d_vocab,
        n_positions=n_positions,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        n_inner=d_mlp or 2 * d_model,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def write_gpt2(
    folder: Path,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    task: Mapping[str, Any],
    training: Mapping[str, Any],
    history: Mapping[int, State] | None = None,
) -> Path:
    """Write a trained toy as a Hugging Face folder with its tokenizer and `checkpoint.json`."""
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return write_checkpoint(
        folder,
        architecture="GPT2LMHeadModel",
        config={},  # config.json has it
        state=None,  # model.safetensors has it
        task=task,
        training=training,
        history=history,
    )


def bundled_gpt2(name: str) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Return the Hugging Face model and tokenizer of a bundled toy, e.g. "toy/ordinal"."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bundled_folder(name)
    with no_progress_bar():
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def rename(
    model: GPT2LMHeadModel, tokens: Int[Tensor, " token"], order: Int[Tensor, " token"]
) -> None:
    """Let each of `tokens` stand for the one at its place in `tokens[order]`, in place.

    The unembedding follows: GPT-2 ties it to the embedding.
    """
    embedding = model.transformer.wte.weight
    embedding[tokens] = embedding[tokens[order]]


def shown_to(model: GPT2LMHeadModel, tokenizer: Any, layer: int) -> Float[Tensor, "token d_model"]:
    """Return what a head of `layer` reads of every token behind the beginning of the sequence.

    Of the beginning itself it is what is read of it alone. In float64.
    """
    from mechinterp_toolkit.record import activations

    wrapped: HookedModel = load_model(model, tokenizer=tokenizer)
    tokens = torch.arange(wrapped.cfg.d_vocab)
    bos = torch.full_like(tokens, tokenizer.bos_token_id)
    name = f"blocks.{layer}.hook_resid_pre"
    read = activations(wrapped, torch.stack([bos, tokens], 1), (name,))[name]
    read[tokenizer.bos_token_id, 1] = read[0, 0]
    return norm_before(wrapped, layer)(read[:, 1]).double().cpu()


@torch.no_grad()
def write_head(
    model: GPT2LMHeadModel,
    layer: int,
    head: int,
    *,
    query: Float[Tensor, "d_model k"],
    query_bias: Float[Tensor, " k"],
    key: Float[Tensor, "d_model k"],
    value: Float[Tensor, "d_model m"],
    output: Float[Tensor, "m d_model"],
) -> None:
    """Make one head of a GPT-2 shape this: k dimensions of query and key, m of value; the rest of
    it is zero.

    Weights are as the model applies them, to what the LayerNorm in front of it returns.
    """
    config, attention = model.config, model.transformer.h[layer].attn
    d_head = config.n_embd // config.n_head
    parts = (
        (query, query_bias),
        (key, torch.zeros(key.shape[1])),
        (value, torch.zeros(value.shape[1])),
    )
    for i, (weight, bias) in enumerate(parts):
        start = i * config.n_embd + head * d_head
        attention.c_attn.weight[:, start : start + d_head] = 0
        attention.c_attn.bias[start : start + d_head] = 0
        attention.c_attn.weight[:, start : start + weight.shape[1]] = weight.to(
            attention.c_attn.weight
        )
        attention.c_attn.bias[start : start + len(bias)] = bias.to(attention.c_attn.bias)
    attention.c_proj.weight[head * d_head : (head + 1) * d_head] = 0
    attention.c_proj.weight[head * d_head : head * d_head + len(output)] = output.to(
        attention.c_proj.weight
    )
