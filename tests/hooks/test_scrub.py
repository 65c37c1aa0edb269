"""Concept scrubbing: every site of the edited model has equal class means, on every wrapper, and nothing is left behind."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.hooks.scrub import _first, bits_per_byte, scrub, scrub_memory, scrub_sites
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import load_model

CLASSES = 3


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return torch.randint(3, 60, (40, 12), generator=torch.Generator().manual_seed(0))


def labelled(tokens: torch.Tensor) -> torch.Tensor:
    """A concept that every token has by itself."""
    return tokens % CLASSES


def gaps(model, tokens, edits) -> dict[str, float]:
    """Largest distance between class means at each site of the model under `edits`, in standard deviations."""
    found = {}
    for site in scrub_sites(model):
        x = _first(model, tokens, None, site, edits).double().flatten(0, 1)
        z = labelled(tokens).flatten()
        means = torch.stack([x[z == k].mean(0) for k in range(CLASSES)])
        found[site] = float(((means[:, None] - means[None]).norm(dim=-1)).max() / x.std())
    return found


def test_class_means_are_equal_at_every_site_of_the_edited_model(wrapped, text):
    before = gaps(wrapped, text, {})
    assert len(before) == 2 * wrapped.cfg.n_layers
    assert min(before.values()) > 0.1  # the effect is there before it is removed
    scrubbed = scrub(wrapped, text, labelled(text), CLASSES)
    assert list(scrubbed.erasers) == list(scrub_sites(wrapped))
    assert set(scrubbed.rank.values()) == {CLASSES - 1}
    assert scrubbed.n == text.numel()
    after = gaps(wrapped, text, scrubbed.erasers)
    assert max(after.values()) < 1e-4  # float32 activations, whose means are off by their rounding


def test_later_erasers_are_fitted_on_the_model_as_edited(wrapped, text):
    """Fitted on the plain model, the last site would keep a difference that earlier erasers brought about."""
    scrubbed = scrub(wrapped, text, labelled(text), CLASSES)
    last = scrub_sites(wrapped)[-1]
    from mechinterp_toolkit.hooks.erase import LeaceFitter

    plain = LeaceFitter(wrapped.cfg.d_model, CLASSES)
    plain.update(_first(wrapped, text, None, last, {}), labelled(text))
    wrong = {**scrubbed.erasers, last: plain.eraser}
    assert gaps(wrapped, text, wrong)[last] > 100 * gaps(wrapped, text, scrubbed.erasers)[last]


def test_padding_does_not_count(wrapped, text):
    mask = torch.ones_like(text, dtype=torch.bool)
    mask[:, 9:] = False
    padded = text.clone()
    padded[:, 9:] = 3
    short = scrub(wrapped, text[:, :9], labelled(text[:, :9]), CLASSES)
    long = scrub(wrapped, padded, labelled(padded), CLASSES, mask=mask)
    assert long.n == short.n
    for site, eraser in short.erasers.items():
        # float32 attention over another length sums in another order
        assert torch.allclose(eraser.P, long.erasers[site].P, atol=1e-3)


@pytest.mark.parametrize("method", ["orth", "random", "shuffled"])
def test_controls_erase_as_many_directions(wrapped, text, method):
    control = scrub(wrapped, text, labelled(text), CLASSES, method=method)
    assert set(control.rank.values()) == {CLASSES - 1}
    after = gaps(wrapped, text, control.erasers)
    equal = max(after.values()) < 1e-4
    assert equal == (method == "orth")


def test_nothing_is_left_on_the_model_after_an_exception(wrapped, text):
    scrubbed = scrub(wrapped, text, labelled(text), CLASSES)
    with pytest.raises(KeyError), applied(wrapped, scrubbed.erasers):
        raise KeyError
    assert all(not point.fwd_hooks for point in wrapped.hook_points.values())


def test_bits_per_byte_of_a_uniform_model_worked_by_hand(wrapped, text):
    import copy

    plain = copy.deepcopy(wrapped.model)
    uniform = load_model(plain, tokenizer=wrapped.tokenizer)
    last = "unembed.hook_out" if "unembed.hook_out" in uniform.hook_points else "ln_final.hook_normalized"

    def flat(activation, hook):
        return torch.zeros_like(activation)

    found = bits_per_byte(uniform, text, torch.full((40,), 22), edits={last: flat})
    if last == "unembed.hook_out":
        assert float(found.value) == pytest.approx(11 * math.log2(60) / 22, rel=1e-6)
    assert found.low <= found.value <= found.high


def test_the_memory_is_said_beforehand(wrapped):
    d = wrapped.cfg.d_model
    assert scrub_memory(wrapped, CLASSES) > 8 * d * d
    assert scrub_memory(wrapped, CLASSES) < 8 * d * d * 10


def test_what_cannot_be_scrubbed_is_refused(wrapped, text):
    with pytest.raises(NotApplicable, match="no sublayers to scrub"):
        scrub_sites(load_model("toy/s5"))
    with pytest.raises(ToolkitError, match="same in all"):
        scrub(wrapped, text, torch.zeros_like(text), CLASSES)
    with pytest.raises(ToolkitError, match="40 prompts have no bytes"):
        bits_per_byte(wrapped, text, torch.zeros(40, dtype=torch.long))
