"""Per architecture: logits, streams, and edits by hooks are those of `transformers` alone."""

from __future__ import annotations

import torch

from mechinterp_toolkit.hooks.ablate import ablate_heads
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.record import activations

from .conftest import assert_same
from .reference import blocks_of, changed_input, changed_output, watch


@torch.no_grad()
def test_logits(case, ids):
    assert_same(case.model.logits(ids), case.hf(ids).logits)


def test_what_enters_each_block(case, ids):
    blocks = blocks_of(case.hf, case.architecture.parts)
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(len(blocks)))
    ours = activations(case.model, ids, names)
    _, seen = watch(case.hf, ids, dict(enumerate(blocks)))
    for layer, name in enumerate(names):
        assert_same(ours[name], seen[layer].entered)


@torch.no_grad()
def test_an_edit_of_the_stream(case, ids):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(5))
    edits = {"blocks.1.hook_resid_pre": lambda activation, hook: activation + vector}
    with applied(case.model, edits):
        ours = case.model.logits(ids)
    block = blocks_of(case.hf, case.architecture.parts)[1]
    with changed_input(block, lambda stream: stream + vector):
        assert_same(ours, case.hf(ids).logits)
    assert not torch.allclose(ours, case.hf(ids).logits, atol=0.01)


@torch.no_grad()
def test_an_edit_of_what_the_mlp_writes_for_one_token(case, ids):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(6))

    def add(written):
        apart = written.reshape(2, 9, 32).clone()  # OPT runs all tokens in one row
        apart[1, 5] += vector
        return apart.reshape(written.shape)

    times = getattr(case.hf.config, "residual_multiplier", 1.0)
    where = Where(positions=(5,))
    vectors = torch.stack([torch.zeros(32), times * vector])[:, None]
    edits = {
        "blocks.1.hook_mlp_out": lambda activation, hook: where.apply(
            activation, activation + vectors, hook
        )
    }
    with applied(case.model, edits):
        ours = case.model.logits(ids)
    parts = case.architecture.parts
    name = parts.mlp if parts.behind is None else parts.behind[1]
    with changed_output(blocks_of(case.hf, parts)[1].get_submodule(name), add):
        assert_same(ours, case.hf(ids).logits)
    assert torch.equal(ours[0], case.model.logits(ids)[0])
    assert not torch.allclose(ours, case.hf(ids).logits, atol=0.01)


@torch.no_grad()
def test_ablating_a_head(case, ids):
    parts = case.architecture.parts
    block = blocks_of(case.hf, parts)[1]

    def without_head(z):
        z = z.unflatten(-1, (case.hf.config.num_attention_heads, -1)).clone()
        z[:, :, 2] = 0
        return z.flatten(-2)

    with applied(case.model, ablate_heads([(1, 2)])):
        ours = case.model.logits(ids)
    with changed_input(block.get_submodule(parts.out), without_head):
        assert_same(ours, case.hf(ids).logits)
    assert not torch.allclose(ours, case.hf(ids).logits, atol=0.01)
