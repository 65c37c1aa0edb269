"""record: what is recorded is what the model computed, batch by batch, and stays so."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from mechinterp_toolkit.accumulate import Keep, Mean
from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.intervention import observed
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.moments import Moments
from mechinterp_toolkit.record import activations, record

POST0 = "blocks.0.hook_resid_post"
Z1 = "blocks.1.attn.hook_z"
# The same float32 products in batches of another size; measured below 1e-6.
SAME = 1e-5


def test_it_agrees_with_run_with_cache_whatever_the_batch_size(wrapped, tokens):
    _, cache = wrapped.model.run_with_cache(tokens)
    for size in (1, 3, 100):
        got = activations(wrapped, tokens, (POST0, Z1), batch_size=size)
        assert (got[POST0] - cache[POST0]).abs().max() < SAME
        assert (got[Z1] - cache[Z1]).abs().max() < SAME


def test_one_position_per_prompt(wrapped, tokens):
    position = torch.tensor([0, 6, 2, 3])
    whole = activations(wrapped, tokens, (POST0,))[POST0]
    got = activations(wrapped, tokens, (POST0,), position=position, batch_size=3)[POST0]
    assert (got - whole[torch.arange(4), position]).abs().max() < SAME


def test_padding_does_not_enter_a_mean(wrapped, tokens):
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1, 4:] = False
    mask[3, 2:] = False
    mean = record(wrapped, tokens, {POST0: Mean()}, mask=mask, batch_size=2)[POST0].value
    real = activations(wrapped, tokens, (POST0,), mask=mask)[POST0][mask]
    assert (mean - real.double().mean(0)).abs().max() < SAME
    everything = activations(wrapped, tokens, (POST0,), mask=mask)[POST0].flatten(0, 1)
    assert (mean - everything.double().mean(0)).abs().max() > 100 * SAME


def test_labels_reach_the_accumulator(wrapped, tokens):
    labels = torch.tensor([0, 1, 0, 1])
    position = torch.full((4,), 5)
    into = {POST0: Moments(32, 2)}
    fed = record(wrapped, tokens, into, position=position, labels=labels, batch_size=3)[POST0]
    assert fed is into[POST0]
    chosen = activations(wrapped, tokens, (POST0,), position=position)[POST0].double()
    expected = torch.stack([chosen[labels == k].mean(0) for k in (0, 1)], 1)
    means = fed.mean_x[:, None] + fed.sigma_xz / fed.mean_z
    assert (means - expected).abs().max() < SAME


def test_edits_are_in_force_while_recording(wrapped, tokens):
    edits = {"blocks.0.hook_resid_post": lambda activation, hook: activation * 0 + 2.0}
    if wrapped.is_bridge:  # a Bridge has two points at one place: after block 0 and before block 1
        edits = {"blocks.1.hook_resid_pre": lambda activation, hook: activation * 0 + 2.0}
    name = next(iter(edits))
    assert torch.equal(
        activations(wrapped, tokens, (name,), edits=edits)[name], torch.full((4, 7, 32), 2.0)
    )


def test_a_later_change_in_place_does_not_reach_what_was_recorded(wrapped, tokens):
    point = wrapped.hook_points["blocks.1.hook_resid_pre"]
    before = activations(wrapped, tokens, (POST0,))[POST0]
    point.add_hook(lambda activation, hook: activation.detach().mul_(0))
    try:
        after = activations(wrapped, tokens, (POST0,))[POST0]
    finally:
        point.remove_hooks()
    assert torch.equal(after, before)


def test_an_unknown_name_is_refused_before_anything_runs(wrapped, tokens):
    keep = Keep()
    with pytest.raises(HookError, match="no hook point"):
        record(wrapped, tokens, {POST0: keep, "blocks.0.nothing": Keep()})


def test_a_point_that_fires_for_queries_keys_and_values_alike_is_recorded_once(wrapped, tokens):
    name = "blocks.0.ln1.hook_normalized"
    fired = []
    with observed(wrapped, {name: lambda activation, hook: fired.append(activation.clone())}):
        wrapped.logits(tokens)
    assert torch.equal(activations(wrapped, tokens, (name,))[name], fired[0])


def test_a_point_that_fires_with_different_activations_is_refused():
    class Twice(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.weight, self.hook_x = torch.nn.Parameter(torch.ones(1)), HookPoint()
            self.setup()

        def forward(self, tokens, **options):
            x = tokens[..., None].float() * self.weight
            return self.hook_x(self.hook_x(x) + 1)

    with pytest.raises(
        HookError, match="'hook_x' fired twice in one forward pass with different activations"
    ):
        activations(load_model(Twice()), torch.tensor([[1, 2]]), ("hook_x",))
