"""Contributions of heads add up to what the model answers; lift is told from attribution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.heads.attribution import attribute_heads, head_attribution
from mechinterp_toolkit.heads.weights import head_weights
from mechinterp_toolkit.model import HookedModel, has_hooked_transformer, load_model
from mechinterp_toolkit.prompts import PromptSet, ordinal_classes
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys import successor_queries


def asked(tokens: torch.Tensor) -> PromptSet:
    """Prompts of random tokens; the last one of each ends two positions early."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[-1, -2:] = False
    return PromptSet(
        tokens=tokens,
        mask=mask,
        answer=torch.arange(5, 5 + len(tokens)),
        position=mask.sum(1) - 1,
        texts=tuple("?" * len(tokens)),
    )


def at_answer(model: HookedModel, prompts: PromptSet, *names: str) -> torch.Tensor:
    """Activations where the prompts answer, [name batch d], float64."""
    read = activations(model, prompts.tokens, names, mask=prompts.mask, position=prompts.position)
    return torch.stack([read[name] for name in names]).double()


def written_by_heads(model: HookedModel, prompts: PromptSet) -> torch.Tensor:
    """What all heads of each layer write, biases left out, [layer batch d_model]."""
    names = [f"blocks.{layer}.hook_attn_out" for layer in range(model.cfg.n_layers)]
    biases = [head_weights(model, layer).output_bias for layer in range(model.cfg.n_layers)]
    return at_answer(model, prompts, *names) - torch.stack(biases).double()[:, None]


def through_final_norm(model: HookedModel, prompts: PromptSet, part: torch.Tensor) -> torch.Tensor:
    """What a part of the stream adds to the right answer's logit minus the mean logit."""
    net = model.model
    scale = at_answer(model, prompts, "ln_final.hook_scale")[0]
    normal = (part - part.mean(-1, keepdim=True)) / scale * net.ln_final.w.detach().double()
    towards = (net.W_U - net.W_U.mean(1, keepdim=True)).detach().double()[:, prompts.answer].T
    return (normal * towards).sum(-1)


@pytest.mark.parametrize("wrapper", ["HookedTransformer", "TransformerBridge"])
def test_heads_and_the_rest_of_the_stream_sum_to_the_centred_logit(hf_folders, tokens, wrapper):
    if wrapper == "HookedTransformer" and not has_hooked_transformer():
        pytest.skip("this TransformerLens has no HookedTransformer")
    model, prompts = load_model(hf_folders["gpt2"], wrapper=wrapper), asked(tokens)
    net, rows = model.model, torch.arange(len(prompts))
    with torch.no_grad():
        logits = model.logits(prompts.tokens, prompts.mask)[rows, prompts.position].double()
    expected = logits[rows, prompts.answer] - logits.mean(1)

    end = at_answer(model, prompts, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")[0]
    rest = through_final_norm(model, prompts, end - written_by_heads(model, prompts).sum(0))
    towards = (net.W_U - net.W_U.mean(1, keepdim=True)).detach().double()[:, prompts.answer]
    constant = net.ln_final.b.detach().double() @ towards
    heads = head_attribution(model, prompts)
    assert heads.abs().mean() > 1e-2  # there is something to add up
    total = heads.sum((1, 2)) + rest + constant
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-4)  # float32 activations


def test_the_heads_of_a_layer_sum_to_what_its_attention_adds():
    model = load_model("toy/ordinal")
    prompts = successor_queries(model.tokenizer, ordinal_classes(model.tokenizer).classes)
    expected = through_final_norm(model, prompts, written_by_heads(model, prompts)).T
    found = head_attribution(model, prompts).sum(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # float32 activations


def test_lift_is_attribution_beyond_its_mean_over_the_shuffled_prompts(hf_folders, tokens):
    model, prompts = load_model(hf_folders["gpt2"]), asked(tokens)
    orders = [replace(prompts, tokens=tokens.roll(shift, 0)) for shift in (1, 2, 3)]
    attribution = attribute_heads(model, prompts, orders, torch.arange(len(prompts)))
    real = head_attribution(model, prompts).mean(0)
    null = torch.stack([head_attribution(model, order).mean(0) for order in orders])
    torch.testing.assert_close(attribution.raw.value, real)
    torch.testing.assert_close(attribution.raw.control, null)
    torch.testing.assert_close(attribution.lift.value, real - null.mean(0))
    torch.testing.assert_close(attribution.lift.control[0], null[0] - null[1:].mean(0))
