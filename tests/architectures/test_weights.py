"""Per architecture: what is read from the weights is what `transformers` computes with them.

The outputs of heads on one token, direct contributions to logits, and a direction taken out of the
weights, each against a model that TransformerLens has never touched.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch

from mechinterp_toolkit.heads.attribution import direct_contributions, head_attribution
from mechinterp_toolkit.heads.weights import (
    final_norm,
    head_weights,
    norm_before,
    norm_behind,
    unembedding,
)
from mechinterp_toolkit.hooks.ablate import ablate_direction
from mechinterp_toolkit.hooks.steer_weights import orthogonalise_weights, writing_hook_points
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.prompts import PromptSet

from .conftest import assert_same
from .reference import blocks_of, changed_output, contributions, held_norm, out_weight, watch

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(8))


def test_ov_path_of_every_head_on_one_token(case, ids):
    # Attention has one place to look at, so a head's output is its OV path.
    parts, heads = case.architecture.parts, len(head_weights(case.model, 0).value)
    blocks = blocks_of(case.hf, parts)
    modules = {(i, "block"): block for i, block in enumerate(blocks)}
    modules |= {(i, "out"): block.get_submodule(parts.out) for i, block in enumerate(blocks)}
    for token in ids[0, :3].reshape(3, 1, 1):
        _, seen = watch(case.hf, token, modules)
        for layer, block in enumerate(blocks):
            own = head_weights(case.model, layer)
            read = norm_before(case.model, layer)(seen[layer, "block"].entered[0, 0])
            value = torch.einsum("d,hdk->hk", read, own.value) + own.value_bias
            z = seen[layer, "out"].entered[0, 0].unflatten(0, (heads, -1))
            assert_same(value, z)
            weight, bias = out_weight(block, parts)
            times = getattr(case.hf.config, "residual_multiplier", 1.0)
            written = torch.einsum("hk,hkd->hd", z.double(), weight.unflatten(0, (heads, -1)))
            assert_same(torch.einsum("hk,hkd->hd", value, own.output), times * written)
            if bias is not None:
                assert_same(own.output_bias, times * bias)


def test_norms(case, ids):
    parts = case.architecture.parts
    blocks = blocks_of(case.hf, parts)
    pairs = [(final_norm(case.model), case.hf.get_submodule(parts.final))]
    for layer, block in enumerate(blocks):
        if parts.before is not None:
            pairs.append((norm_before(case.model, layer), block.get_submodule(parts.before)))
        else:
            assert norm_before(case.model, layer).is_identity
        for i, sublayer in enumerate(("attn", "mlp")):
            behind = norm_behind(case.model, layer, sublayer)
            assert behind.is_identity == (parts.behind is None)
            if parts.behind is not None:
                pairs.append((behind, block.get_submodule(parts.behind[i])))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3)) + 0.5
    for norm, module in pairs:
        with torch.no_grad():
            assert_same(norm(x), module(x))
        held = held_norm(module, x, parts.norm)
        assert_same(norm.scale(x), held.scale)
        assert_same(norm.linear(x), held(x.double()) * held.scale)


@torch.no_grad()
def test_final_norm_and_unembedding_make_the_logits(case, ids):
    final = case.hf.get_submodule(case.architecture.parts.final)
    logits, seen = watch(case.hf, ids, {"final": final})
    assert_same(unembedding(case.model)(final_norm(case.model)(seen["final"].entered)), logits)


def test_direct_contributions_to_a_logit(case, ids):
    answer, position = torch.tensor([7, 40]), torch.tensor([8, 5])
    mask = torch.arange(9) <= position[:, None]
    prompts = PromptSet(ids, mask, answer, position, ("a", "b"))
    rows = torch.arange(2)

    def centred(part):
        part = part[rows, position]  # batch ... d_vocab
        return part[rows, ..., answer] - part.mean(-1)

    ours = direct_contributions(case.model, prompts)
    expected = contributions(case.hf, case.architecture.parts, ids)
    size = expected.logits.abs().max()
    for got, wanted in (
        (ours.heads, centred(expected.heads)),
        (ours.mlps, centred(expected.mlps)),
        (ours.embedding + ours.biases, centred(expected.rest)),
    ):
        assert_same(got / size, wanted / size)
    cap = getattr(case.hf.config, "final_logit_softcapping", None)
    logits = expected.logits if cap is None else cap * (expected.logits / cap).atanh()
    assert float((ours.total - centred(logits)).abs().max()) < 1e-5 * float(logits.abs().max())
    assert torch.equal(head_attribution(case.model, prompts), ours.heads)


def without_direction(case):
    """The model of `transformers` with the direction taken out of all that is written."""
    unit = DIRECTION.double() / DIRECTION.double().norm()

    def erase(written):
        whole = written.double()
        return (whole - (whole @ unit)[..., None] * unit).to(written)

    parts, stack = case.architecture.parts, ExitStack()
    behind = parts.behind or (parts.out, parts.mlp)
    modules = [case.hf.get_submodule(name) for name in parts.embeds]
    for block in blocks_of(case.hf, parts):
        modules += [block.get_submodule(name) for name in behind]
    for module in modules:
        stack.enter_context(changed_output(module, erase))
    return stack


@torch.no_grad()
def test_a_direction_ablated_by_hooks(case, ids):
    with applied(case.model, ablate_direction(DIRECTION, writing_hook_points(case.model))):
        ours = case.model.logits(ids)
    with without_direction(case):
        assert_same(ours, case.hf(ids).logits)


@torch.no_grad()
def test_a_direction_ablated_in_the_weights(case, ids):
    before = case.hf(ids).logits
    made = orthogonalise_weights(case.model, DIRECTION)
    with without_direction(case):
        expected = case.hf(ids).logits
    assert_same(made.logits(ids), expected)
    assert not torch.allclose(expected, before, atol=0.01)
    assert_same(case.model.logits(ids), before)
