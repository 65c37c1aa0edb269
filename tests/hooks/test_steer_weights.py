"""Orthogonalised weights equal the hooks that ablate every write."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.hooks.ablate import ablate_direction
from mechinterp_toolkit.hooks.steer_weights import orthogonalise_weights, writing_hook_points
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import has_hooked_transformer, load_model
from mechinterp_toolkit.record import activations

V = torch.randn(32, generator=torch.Generator().manual_seed(8))


def check_equal(model, tokens):
    before = model.logits(tokens)
    made = orthogonalise_weights(model, V)
    with torch.no_grad():
        ours = made.logits(tokens)
        with applied(model, ablate_direction(V, writing_hook_points(model))):
            hooks = model.logits(tokens)
    assert (ours - hooks).abs().max() < 1e-4  # float32, projected in the weights or afterwards
    assert (ours - before).abs().max() > 0.1
    assert torch.equal(model.logits(tokens), before)
    stream = activations(made, tokens, ("blocks.1.hook_resid_post",))["blocks.1.hook_resid_post"]
    assert (stream @ V / V.norm()).abs().max() < 1e-5 * stream.norm(dim=-1).max()


def test_raw_weights_equal_the_hooks(wrapped, tokens):
    check_equal(wrapped, tokens)


@pytest.mark.parametrize("shape", ["gpt2", "neox", "llama"])
def test_folded_and_centred_weights_equal_the_hooks(hf_folders, tokens, shape):
    wrapper = (
        "HookedTransformer"
        if has_hooked_transformer() and shape != "llama"
        else "TransformerBridge"
    )
    check_equal(load_model(hf_folders[shape], wrapper=wrapper, processing="compatible"), tokens)


def test_what_can_not_be_orthogonalised_is_refused(wrapped):
    with pytest.raises(ToolkitError, match=r"has 31 entries.*expected 32"):
        orthogonalise_weights(wrapped, torch.ones(31))
    with pytest.raises(ToolkitError, match="norm 0"):
        orthogonalise_weights(wrapped, torch.zeros(32))
    with pytest.raises(NotApplicable, match="no residual stream"):
        orthogonalise_weights(load_model("toy/s5"), torch.ones(3))
