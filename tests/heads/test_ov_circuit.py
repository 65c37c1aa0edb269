"""Winners and logits are those of a plain loop over heads, ties and silent heads included."""

from __future__ import annotations

import itertools

import pytest
import torch

from mechinterp_toolkit.heads.ov_circuit import (
    Convention,
    OVReader,
    _representations,
    best_candidates,
)
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts import OrdinalClass

REPRESENTATIONS = ("resid_post_0", "mlp_out_0", "mlp_0_raw", "embed")
CANDIDATES = ("class", "targets", "ordinal", "vocab")


def ordinal(name: str, tokens: list[int], cyclic: bool = True) -> OrdinalClass:
    n = len(tokens)
    return OrdinalClass(
        name=name,
        words=tuple(f"w{t}" for t in tokens),
        tokens=torch.tensor(tokens),
        index=torch.arange(n),
        order=n,
        cyclic=cyclic,
        variant="as is",
        dropped=(),
    )


CLASSES = {
    "ring": ordinal("ring", [17, 5, 40, 8, 33, 21, 12]),
    "line": ordinal("line", list(range(22, 33)), cyclic=False),
    "overlap": ordinal("overlap", [5, 50, 22, 59]),
}


def gpt2(folders):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folders["gpt2"]), AutoTokenizer.from_pretrained(
        folders["gpt2"]
    )


def logits_of_head(model, shown, convention, layer, head):
    """[item d_vocab], every step made as it is named."""
    net, block = model.model, model.model.blocks[layer]
    read = block.ln1(shown[None])[0] if convention.layer_norm else shown
    value = read @ net.W_V[layer, head]
    if convention.biases and block.attn.b_V is not None:
        value = value + block.attn.b_V[head]
    written = value @ net.W_O[layer, head]
    if convention.biases and block.attn.b_O is not None:
        written = written + block.attn.b_O
    if convention.layer_norm:
        normal = net.ln_final(written[None])[0]
        of_nothing = net.ln_final(torch.zeros_like(written)[None])[0]
        written = normal if convention.biases else normal - of_nothing
    return written @ net.W_U


def competing(own: OrdinalClass, candidates: str, d_vocab: int) -> list[int]:
    tokens = own.tokens.tolist()
    return {
        "class": tokens,
        "targets": [tokens[j] for _, j in own.pairs(1).tolist()],
        "ordinal": sorted({t for c in CLASSES.values() for t in c.tokens.tolist()}),
        "vocab": list(range(d_vocab)),
    }[candidates]


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@torch.no_grad()
def test_winners_are_those_of_a_plain_loop_over_heads(wrapped, representation, layer_norm, biases):
    for candidates in CANDIDATES:
        convention = Convention(representation, layer_norm, biases, candidates)
        found = best_candidates(wrapped, CLASSES, convention)
        assert found.writes.all()
        every = list(itertools.product(range(wrapped.cfg.n_layers), range(wrapped.cfg.n_heads)))
        compared = 0
        for name, own in CLASSES.items():
            shown = _representations(wrapped, own.tokens, representation)
            pool = competing(own, candidates, wrapped.cfg.d_vocab)
            for layer, head in every:
                seen = shown.in_block_0 if layer == 0 else shown.later
                logits = logits_of_head(wrapped, seen, convention, layer, head)[:, pool]
                best = found.best[name][layer, head].tolist()
                for row, got in zip(logits, best, strict=True):
                    first, second = row.topk(2).values
                    if first - second >= 1e-4 * row.abs().max():
                        place = {token: i for i, token in enumerate(own.tokens.tolist())}
                        assert got == place.get(pool[int(row.argmax())], -1)
                        compared += 1
        assert compared > 0.9 * sum(map(len, CLASSES.values())) * len(every)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@torch.no_grad()
def test_logits_are_those_of_a_plain_loop_over_heads(wrapped, representation, layer_norm, biases):
    convention = Convention(representation, layer_norm, biases)
    tokens = torch.cat([c.tokens for c in CLASSES.values()])
    candidates = torch.tensor([3, 58, 20, 7])
    reader = OVReader(wrapped, tokens, convention)
    for layer in range(wrapped.cfg.n_layers):
        states = reader.states(layer)
        shown = _representations(wrapped, tokens, representation)
        assert torch.equal(states, shown.in_block_0 if layer == 0 else shown.later)
        every = reader.logits(states, layer, candidates)
        assert every.dtype == torch.float32
        for head in range(wrapped.cfg.n_heads):
            expected = logits_of_head(wrapped, states, convention, layer, head)[:, candidates]
            # Tolerances are for float32 sums in another order.
            torch.testing.assert_close(every[head], expected, rtol=1e-4, atol=1e-4)
            alone = reader.logits(states[:5], layer, candidates, head=head)
            torch.testing.assert_close(alone[0], expected[:5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biases", [False, True])
def test_a_silent_head_wins_nothing_and_is_told(hf_folders, biases):
    hf_model, tokenizer = gpt2(hf_folders)
    attention = hf_model.transformer.h[1].attn
    with torch.no_grad():
        attention.c_proj.weight[:8] = 0  # head 0 writes nothing of what it reads
        attention.c_attn.weight[:, -8:] = 0  # head 3 reads nothing
        attention.c_attn.bias.zero_()
        attention.c_proj.bias.zero_()
        hf_model.transformer.ln_f.bias.zero_()
    found = best_candidates(
        load_model(hf_model, tokenizer=tokenizer), CLASSES, Convention(biases=biases)
    )
    assert found.writes.tolist() == [[True] * 4, [False, True, True, False]]
    for best in found.best.values():
        assert (best[1, [0, 3]] == -1).all()
        assert (best[1, 1:3] >= 0).all()


def test_equal_columns_tie_and_a_lone_candidate_wins_nothing(hf_folders):
    hf_model, tokenizer = gpt2(hf_folders)
    with torch.no_grad():
        hf_model.lm_head.weight[[40, 41, 42]] = hf_model.lm_head.weight[40].clone()
    model = load_model(hf_model, tokenizer=tokenizer)
    classes = {"same": ordinal("same", [40, 41, 42]), "pair": ordinal("pair", [7, 9], cyclic=False)}
    among_class, among_targets = (
        best_candidates(model, classes, Convention("embed", candidates=candidates)).best
        for candidates in ("class", "targets")
    )
    assert (among_class["same"] == -1).all()
    assert (among_targets["pair"] == -1).all()
