"""What TransformerLens and transformers are asked for and do not do is noticed."""

from __future__ import annotations

import re

import pytest
import torch

from mechinterp_toolkit import model as model_module
from mechinterp_toolkit.errors import CacheError, CheckpointError, NotApplicable
from mechinterp_toolkit.guards import (
    cache_argument,
    cached_columns,
    check_cache,
    check_logits,
    given_cache,
    hand_on_cache,
)
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import load_model


def same(activation, hook):
    return activation


# --- logits --------------------------------------------------------------------------------------

LOGITS = torch.randn(1, 4, 10, generator=torch.Generator().manual_seed(0))


def test_logits_within_rounding_pass_and_others_are_refused():
    check_logits(LOGITS + 1e-6, LOGITS, raw=True, name="x")
    with pytest.raises(
        CheckpointError, match=r"x is 0\.01 off the logits of transformers under tr"
    ):
        check_logits(LOGITS + 0.01, LOGITS, raw=True, name="x")
    check_logits(LOGITS + 0.01, LOGITS, raw=False, name="x")  # no log-probability has changed
    with pytest.raises(CheckpointError, match="off the logits"):
        check_logits(LOGITS * 1.01, LOGITS, raw=False, name="x")
    with pytest.raises(CheckpointError, match="off the logits"):
        check_logits(LOGITS * torch.nan, LOGITS, raw=True, name="x")


@pytest.mark.parametrize(("answer", "words"), [(LOGITS[0], "(4, 10)"), (None, "NoneType")])
def test_an_answer_that_is_no_logits_is_refused(answer, words):
    with pytest.raises(CheckpointError, match=re.escape(f"x answers with {words} where logits (1")):
        check_logits(answer, LOGITS, raw=True, name="x")


KINDS = pytest.mark.parametrize(
    ("shape", "build"), [("gpt2", "_bridge"), ("llama", "_bridge"), ("gpt2", "_hooked_transformer")]
)
"""What is loaded, and the function of model.py that builds its wrapper."""


def load_built(monkeypatch, hf_folders, shape, build, change):
    """Load with a wrapper to which `change(real, hf_model, tokenizer, processing)` was done."""
    wrapper = "TransformerBridge" if build == "_bridge" else "HookedTransformer"
    if wrapper == "HookedTransformer" and not model_module.has_hooked_transformer():
        pytest.skip("this TransformerLens has no HookedTransformer")
    real = getattr(model_module, build)
    monkeypatch.setattr(model_module, build, lambda *args: change(real, *args))
    return load_model(hf_folders[shape], wrapper=wrapper)


@KINDS
def test_weights_that_are_read_wrongly_are_refused(monkeypatch, hf_folders, shape, build):
    def damaged(real, *args):
        model = real(*args)
        with torch.no_grad():
            named = model.named_parameters()
            next(p for name, p in named if p.ndim == 1 and re.search("ln_?1|norm", name)).zero_()
        return model

    with pytest.raises(
        CheckpointError, match="off the logits of transformers under transformer-le"
    ):
        load_built(monkeypatch, hf_folders, shape, build, damaged)


@KINDS
def test_a_request_for_raw_weights_that_is_ignored_is_noticed(
    monkeypatch, hf_folders, shape, build
):
    def processed(real, hf_model, tokenizer, processing):
        return real(hf_model, tokenizer, "compatible")

    with pytest.raises(CheckpointError, match="off the logits of transformers"):
        load_built(monkeypatch, hf_folders, shape, build, processed)


@KINDS
def test_where_the_mask_is_lost_padding_in_front_is_refused(
    monkeypatch, hf_folders, shape, build, tokens
):
    def maskless(real, *args):
        model = real(*args)
        forward = model.forward
        model.forward = lambda *a, attention_mask=None, **options: forward(*a, **options)
        return model

    model = load_built(monkeypatch, hf_folders, shape, build, maskless)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, -1] = False  # behind all real tokens: nothing reads it
    assert model.logits(tokens, mask).shape[:2] == tokens.shape
    mask[1, 0] = False
    for run in (model.logits, model.logits_and_cache):
        with pytest.raises(NotApplicable, match="reads its padding, under transformer-lens"):
            run(tokens, mask)


def test_models_heed_the_mask(wrapped):
    assert wrapped.heeds_mask


def test_a_dtype_that_is_ignored_is_noticed(monkeypatch, hf_folders):
    from transformers import AutoModelForCausalLM

    real = AutoModelForCausalLM.from_pretrained

    def ignoring(*args, dtype, **options):
        return real(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", ignoring)
    with pytest.raises(
        CheckpointError, match=r"in torch\.float32 though torch\.bfloat16 was asked"
    ):
        load_model(hf_folders["gpt2"], dtype=torch.bfloat16)


# --- caches --------------------------------------------------------------------------------------


def test_a_cache_counts_the_columns_that_ran_and_grows(wrapped, tokens):
    cache, seen = None, []
    with torch.no_grad():
        for begin, end in ((0, 4), (4, 5), (5, 7)):
            cache = wrapped.logits_and_cache(tokens[:, begin:end], cache=cache).cache
            seen.append(cached_columns(cache))
            check_cache(cache, end)
    assert seen == [4, 5, 7]


@pytest.mark.parametrize(("columns", "words"), [(6, "holds 7 in block 0 where 6"), (8, "where 8")])
def test_a_cache_of_other_columns_is_refused(wrapped, tokens, columns, words):
    with torch.no_grad():
        cache = wrapped.logits_and_cache(tokens).cache
    with pytest.raises(CacheError, match=words + r" columns have run.*use_cache=False"):
        check_cache(cache, columns)


def test_a_block_whose_part_is_missing_is_named(wrapped, tokens):
    with torch.no_grad():
        cache = wrapped.logits_and_cache(tokens).cache
    if wrapped.is_bridge:
        cache.layers[1].keys = cache.layers[1].keys[..., :5, :]
    else:
        cache.entries[1].past_keys = cache.entries[1].past_keys[:, :5]
    with pytest.raises(CacheError, match="holds 5 in block 1 where 7"):
        check_cache(cache, 7)


def test_no_cache_and_an_empty_one_are_refused():
    from transformers import DynamicCache

    for empty in (None, DynamicCache()):
        with pytest.raises(CacheError, match="holds nothing where 3"):
            check_cache(empty, 3)


def test_a_cache_that_was_frozen_may_stay_as_it_is(tokens, hf_folders):
    model = load_model(hf_folders["gpt2"])
    if model.is_bridge:
        pytest.skip("only TransformerLens' own caches can be frozen")
    with torch.no_grad():
        cache = model.logits_and_cache(tokens[:, :4]).cache
        cache.freeze()
        assert model.logits_and_cache(tokens[:, 4:], cache=cache).logits.shape[1] == 3
    assert cached_columns(cache) == 4


def test_the_cache_is_found_under_any_name(wrapped, tokens):
    with torch.no_grad():
        cache = wrapped.logits_and_cache(tokens).cache
    for name in ("past_kv_cache", "past_key_values", "cache", "called_otherwise_one_day"):
        assert given_cache({"attention_mask": torch.ones(4, 8), name: cache}) is cache
    assert given_cache({"attention_mask": torch.ones(4, 8), "cache": None}) is None


def test_a_model_that_takes_no_cache_is_named():
    class Other:
        def forward(self, input_ids, state=None): ...

    class Newer:
        def forward(self, input_ids, cache=None): ...

    class Older:
        def forward(self, input_ids, past_key_values=None): ...

    assert cache_argument(Newer()) == "cache"
    assert cache_argument(Older()) == "past_key_values"
    with pytest.raises(
        CacheError,
        match="Other takes no cache called cache or past_key_values under transformer-lens",
    ):
        cache_argument(Other())


def test_attention_is_handed_the_cache_under_both_names_and_once(hf_folders):
    model = load_model(hf_folders["llama"]).model
    (attention, *_) = [m for m in model.modules() if hasattr(m, "_update_kv_cache")]
    before = len(attention._forward_pre_hooks)
    hand_on_cache(model)
    assert len(attention._forward_pre_hooks) == before == 1
    (hook,) = attention._forward_pre_hooks.values()
    for name in ("cache", "past_key_values"):
        assert hook(attention, (), {name: "it", "other": 1})[1] == {
            "cache": "it",
            "past_key_values": "it",
            "other": 1,
        }
    assert hook(attention, (), {"other": 1, "cache": None})[1] == {"other": 1, "cache": None}


def test_the_bridge_generates_the_same_with_its_cache_and_without(wrapped, tokens):
    """TransformerLens' own `generate`, which is right because attention is handed the cache."""
    how = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    cached = wrapped.model.generate(tokens, **how, return_type="tokens")
    assert torch.equal(
        cached, wrapped.model.generate(tokens, **how, return_type="tokens", use_past_kv_cache=False)
    )


def test_edits_are_not_told_wrong_columns_when_the_cache_is_lost(hf_folders, tokens):
    """A user's own generation within `applied`: each new token would be taken for the first."""
    model = load_model(hf_folders["llama"])
    for module in model.model.modules():
        if hasattr(module, "_update_kv_cache"):
            lost = dict.fromkeys(("cache", "past_key_values"))
            module.register_forward_pre_hook(
                lambda m, a, o, lost=lost: (a, o | lost), with_kwargs=True
            )
    place = applied(model, {"blocks.1.hook_resid_pre": same})
    with pytest.raises(CacheError, match="holds 0 in block 0 where 1"), place, torch.no_grad():
        model.model.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False)
    assert "forward" not in vars(model.model)
