"""Guidance: token for token that of transformers, and edits that know their branch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.generate import generate
from mechinterp_toolkit.hooks.guide import (
    CONDITIONAL,
    UNCONDITIONAL,
    generate_guided,
    guided_log_probabilities,
)
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.model import HookedModel

PRE1 = "blocks.1.hook_resid_pre"
VECTOR = SteeringVector.of(PRE1, 4 * torch.randn(32, generator=torch.Generator().manual_seed(5)))
SCALES = (0.0, 0.5, 1.5, 3.0)
NEW = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def references(hf_folders):
    models = {
        shape: AutoModelForCausalLM.from_pretrained(folder).eval()
        for shape, folder in hf_folders.items()
    }
    for model in models.values():
        model.generation_config.eos_token_id = None  # all 8 tokens are compared
    return models


def reference(references, wrapped: HookedModel, tokens, scale, negative=None):
    """Tokens of transformers' generate(guidance_scale=...), one row at a time."""
    shape = next(name for name in references if name in Path(wrapped.provenance.checkpoint).name)
    return torch.cat(
        [
            references[shape].generate(
                tokens[row : row + 1],
                attention_mask=torch.ones(1, tokens.shape[1], dtype=torch.long),
                do_sample=False,
                guidance_scale=scale,
                negative_prompt_ids=None if negative is None else negative[row : row + 1],
                max_new_tokens=8,
                pad_token_id=0,
            )[:, tokens.shape[1] :]
            for row in range(len(tokens))
        ]
    )


@pytest.mark.parametrize("prompted", [False, True], ids=["unconditional", "negative prompt"])
@pytest.mark.parametrize("scale", SCALES)
def test_tokens_equal_those_of_transformers(references, wrapped, tokens, scale, prompted):
    negative = tokens.flip(0)[:, :4] if prompted else None
    expected = reference(references, wrapped, tokens, scale, negative)
    assert torch.equal(generate_guided(wrapped, tokens, scale, negative=negative, **NEW), expected)
    assert torch.equal(
        generate_guided(wrapped, tokens, scale, negative=negative, use_cache=False, **NEW), expected
    )
    assert not torch.equal(generate(wrapped, tokens, **NEW), expected)  # guidance does something


def test_scale_one_is_ordinary_generation_and_zero_is_the_other_branch(wrapped, tokens):
    assert torch.equal(
        generate_guided(wrapped, tokens, 1.0, **NEW), generate(wrapped, tokens, **NEW)
    )
    assert torch.equal(
        generate_guided(wrapped, tokens, 0.0, **NEW), generate(wrapped, tokens[:, -1:], **NEW)
    )


def test_padded_prompts_of_both_kinds_change_no_token(wrapped, tokens):
    lengths, negatives = (7, 4, 5, 2), (3, 6, 1, 5)

    def padded(own, source):
        real = torch.stack([torch.arange(7) >= 7 - n for n in own])
        return source.masked_fill(~real, 0), real

    (ids, mask), (negative, negative_mask) = (
        padded(lengths, tokens),
        padded(negatives, tokens.flip(0)),
    )
    batched = generate_guided(
        wrapped, ids, 1.5, negative=negative, mask=mask, negative_mask=negative_mask, **NEW
    )
    for row, (n, m) in enumerate(zip(lengths, negatives, strict=True)):
        alone = generate_guided(
            wrapped,
            ids[row : row + 1, 7 - n :],
            1.5,
            negative=negative[row : row + 1, 7 - m :],
            **NEW,
        )
        assert torch.equal(alone[0], batched[row])


def test_an_edit_acts_on_the_branch_it_names(wrapped, tokens):
    """At scale 1 the other branch is multiplied by nothing, at scale 0 the prompt's own is."""
    own = {PRE1: VECTOR.add(2.0, where=Where(group=CONDITIONAL))}
    other = {PRE1: VECTOR.add(2.0, where=Where(group=UNCONDITIONAL))}
    steered = generate(wrapped, tokens, {PRE1: VECTOR.add(2.0)}, **NEW)
    plain = generate(wrapped, tokens, **NEW)
    assert not torch.equal(steered, plain)
    assert torch.equal(generate_guided(wrapped, tokens, 1.0, own, **NEW), steered)
    assert torch.equal(generate_guided(wrapped, tokens, 1.0, other, **NEW), plain)
    assert torch.equal(
        generate_guided(wrapped, tokens, 1.0, {PRE1: VECTOR.add(2.0)}, **NEW), steered
    )
    steered_other = generate(wrapped, tokens[:, -1:], {PRE1: VECTOR.add(2.0)}, **NEW)
    assert torch.equal(generate_guided(wrapped, tokens, 0.0, other, **NEW), steered_other)
    mixed = generate_guided(wrapped, tokens, 1.5, own, **NEW)
    assert torch.equal(mixed, generate_guided(wrapped, tokens, 1.5, own, use_cache=False, **NEW))


def test_guidance_by_hand():
    """p_c = (.8, .2), p_u = (.5, .5): at scale 2 the odds 4 are squared."""
    combined = guided_log_probabilities(torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2), 2.0)
    assert float(combined[0, 0] - combined[0, 1]) == pytest.approx(
        torch.tensor(16.0).log().item(), rel=1e-5
    )


@pytest.mark.parametrize(("options", "words"), [
    ({"scale": float("nan")}, "expected a finite number"),
    ({"scale": 1.5, "negative_mask": torch.ones(4, 3, dtype=torch.bool)}, "without negative"),
    ({"scale": 1.5, "mask": torch.tensor([[True] * 6 + [False]] * 4)}, "Pad on the left"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(wrapped, tokens, options, words):
    with pytest.raises(ToolkitError, match=words):
        generate_guided(wrapped, tokens, **options)


def test_nothing_is_left_after_an_exception(wrapped, tokens):
    def breaks(activation, hook):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        generate_guided(wrapped, tokens, 1.5, {PRE1: breaks})
    assert (
        sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in set(wrapped.hook_points.values()))
        == 0
    )
