"""generate: the same tokens with and without a cache, in a padded batch and one by one."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import torch

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.generate import check_left_padded, generate
from mechinterp_toolkit.hooks.steer import Gate, SteeringVector
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations

PRE1 = "blocks.1.hook_resid_pre"
LENGTHS = (7, 4, 5, 2)
VECTOR = SteeringVector.of(PRE1, 4 * torch.randn(32, generator=torch.Generator().manual_seed(5)))
SPOTS = SteeringVector.of(
    PRE1, 4 * torch.randn(3, 32, generator=torch.Generator().manual_seed(6)), axis="pos"
)
HEADS = SteeringVector.of("blocks.0.attn.hook_z", 4 * torch.randn(4, 8), axis="head")


def gated():
    gate = Gate(VECTOR.direction, 0.0, over="max")
    return {PRE1: [gate, VECTOR.add(3.0, when=gate)]}


EDITS = {
    "none": dict,
    "everywhere": lambda: {PRE1: VECTOR.add()},
    "prompt": lambda: {PRE1: VECTOR.add(2.0, where=Where(generated=False))},
    "generated": lambda: {PRE1: VECTOR.add(2.0, where=Where(prompt=False))},
    "last of the prompt and after": lambda: {
        PRE1: VECTOR.add(2.0, where=Where(positions=(-1, 7, 8, 9)))
    },
    "clamped": lambda: {PRE1: VECTOR.clamp(9.0)},
    "ablated": lambda: {PRE1: VECTOR.ablate(), "blocks.0.hook_mlp_out": VECTOR.ablate(3.0)},
    "per position": lambda: {PRE1: SPOTS.add(2.0)},
    "per head": lambda: {"blocks.0.attn.hook_z": HEADS.add(2.0)},
    "conditional": gated,
}


@pytest.fixture
def batch(tokens):
    """The prompts, left-padded, the first beginning with the special token; and their mask."""
    ids, mask = tokens.clone(), torch.zeros_like(tokens, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        ids[row, : 7 - length] = 0
        mask[row, 7 - length :] = True
    ids[0, 0] = 2
    return ids, mask


@pytest.mark.parametrize("name", [*EDITS, "everywhere, sampled"])
def test_cache_batch_and_padding_change_no_token(wrapped, batch, name):
    ids, mask = batch
    edits = EDITS[name.removesuffix(", sampled")]
    sampled = name.endswith("sampled")

    def run(row=slice(None), **how):
        first = row.start or 0
        begin = 7 - LENGTHS[first] if row.start is not None else 0
        draw = {"temperature": 1.0, "seed": 3 + first} if sampled else {}
        return generate(
            wrapped,
            ids[row, begin:],
            edits(),
            mask=mask[row, begin:],
            max_new_tokens=6,
            **draw,
            **how,
        )

    batched = run()
    assert torch.equal(run(use_cache=False), batched)
    for row in range(4):
        alone = run(slice(row, row + 1), use_cache=row % 2 == 0)
        assert torch.equal(alone[0], batched[row])
    plain = generate(wrapped, ids, mask=mask, max_new_tokens=6)
    assert torch.equal(plain, batched) == (name == "none")  # each edit does something


@contextmanager
def cache_taken_away(model, where):
    """The model under versions that lose the cache on the way to "attention" or to the "model"."""
    names = ("cache", "past_key_values", "layer_past", "past_kv_cache")

    def without(options):
        return {name: value for name, value in options.items() if name not in names}

    if where == "model":
        forward = model.forward
        model.forward = lambda *args, **options: forward(*args, **without(options))
        try:
            yield
        finally:
            del model.forward
        return
    attention = [module for module in model.modules() if hasattr(module, "_update_kv_cache")]
    assert attention
    taking = [
        m.register_forward_pre_hook(lambda m, a, o: (a, without(o)), with_kwargs=True)
        for m in attention
    ]
    try:
        yield
    finally:
        for handle in taking:
            handle.remove()


@pytest.mark.parametrize("name", ["none", "generated", "conditional"])
@pytest.mark.parametrize("where", ["model", "attention"])
def test_a_cache_that_is_not_handed_on_is_noticed_and_done_without(wrapped, batch, name, where):
    if where == "attention" and not wrapped.is_bridge:
        pytest.skip("HookedTransformer hands its cache to attention itself")
    ids, mask = batch
    right = generate(wrapped, ids, EDITS[name](), mask=mask, max_new_tokens=6, use_cache=False)
    with cache_taken_away(wrapped.model, where), pytest.warns(UserWarning, match="cache") as heard:
        tokens = generate(wrapped, ids, EDITS[name](), mask=mask, max_new_tokens=6)
    assert torch.equal(tokens, right)
    ours = [str(w.message) for w in heard if "without a cache" in str(w.message)]
    assert len(ours) == 1
    assert re.search(r"transformer-lens \d\S+ and transformers \d", ours[0])


def test_without_its_cache_a_model_goes_on_with_other_tokens(wrapped, batch, monkeypatch):
    """What the check of the cache keeps from happening."""
    if not wrapped.is_bridge:
        pytest.skip("HookedTransformer hands its cache to attention itself")
    ids, mask = batch
    right = generate(wrapped, ids, mask=mask, max_new_tokens=6, use_cache=False)
    monkeypatch.setattr("mechinterp_toolkit.model.check_cache", lambda cache, columns: None)
    with cache_taken_away(wrapped.model, "attention"):
        assert not torch.equal(generate(wrapped, ids, mask=mask, max_new_tokens=6), right)


def test_a_gate_lets_the_rows_through_whose_prompt_scores_above_the_threshold(wrapped, batch):
    ids, mask = batch
    projection = activations(wrapped, ids, (PRE1,), mask=mask)[PRE1] @ VECTOR.direction
    score = projection.masked_fill(~mask | (ids == 2), -torch.inf).amax(1)
    gate = Gate(VECTOR.direction, float(score.sort().values[1:3].mean()), over="max")
    plain = generate(wrapped, ids, mask=mask, max_new_tokens=6)
    always = generate(wrapped, ids, {PRE1: VECTOR.add(3.0)}, mask=mask, max_new_tokens=6)
    assert (plain != always).any(1).all()
    expected = torch.where((score > gate.threshold)[:, None], always, plain)
    edits = {PRE1: [gate, VECTOR.add(3.0, when=gate)]}
    assert torch.equal(generate(wrapped, ids, edits, mask=mask, max_new_tokens=6), expected)
    assert torch.equal(
        generate(wrapped, ids, edits, mask=mask, max_new_tokens=6, use_cache=False), expected
    )


def test_unsteered_greedy_tokens_are_those_of_transformerlens(wrapped, tokens):
    theirs = wrapped.model.generate(
        tokens,
        max_new_tokens=5,
        do_sample=False,
        stop_at_eos=False,
        verbose=False,
        return_type="tokens",
    )
    assert torch.equal(generate(wrapped, tokens, max_new_tokens=5), theirs[:, 7:])


def test_after_an_exception_mid_generation_no_hook_is_left(wrapped, tokens):
    before, calls = wrapped.logits(tokens), []

    def breaks(activation, hook):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("third token")
        return activation

    with pytest.raises(RuntimeError, match="third token"):
        generate(wrapped, tokens, {PRE1: [VECTOR.add(), breaks]}, max_new_tokens=5)
    assert (
        sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in set(wrapped.hook_points.values()))
        == 0
    )
    assert "forward" not in vars(wrapped.model)
    assert torch.equal(wrapped.logits(tokens), before)


def test_a_row_that_is_done_is_filled_up(wrapped, tokens):
    plain = generate(wrapped, tokens, max_new_tokens=6)
    row, at = next(
        (r, i) for r in range(4) for i in range(5) if plain[r, i] not in plain[r, i + 1 :]
    )
    stop = int(plain[row, at])
    stopped = generate(wrapped, tokens, max_new_tokens=6, stop=(stop,))
    for row in range(4):
        at = plain[row].tolist().index(stop) if stop in plain[row] else 5
        assert stopped[row].tolist() == plain[row, : at + 1].tolist() + [stop] * (5 - at)
    alone = generate(wrapped, tokens[row : row + 1], max_new_tokens=6, stop=(int(plain[row, 0]),))
    # Nothing runs any more, and the shape is what was asked for.
    assert alone.tolist() == [[int(plain[row, 0])] * 6]


def test_sampling_follows_the_softmax(wrapped, tokens):
    """Token frequencies over 2,000 seeds are the model's probabilities, within 4 errors."""
    n = 2000
    with torch.no_grad():
        p = wrapped.logits(tokens[:1])[0, -1].double().softmax(0)
    drawn = generate(wrapped, tokens[:1].expand(n, -1), max_new_tokens=1, temperature=1.0, seed=0)[
        :, 0
    ]
    share = torch.bincount(drawn, minlength=60) / n
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt() + 1 / n).all()
    assert p.max() < 0.9


@pytest.mark.parametrize(("options", "words"), [
    ({"max_new_tokens": 0}, "at least one token"),
    ({"temperature": -1.0}, "temperature of 0"),
    ({"temperature": 1.0}, "needs a seed"),
    ({"seed": 1}, "taking the likeliest token has none"),
    ({"max_new_tokens": 43}, "reads 48; ask for at most 42"),
    ({"mask": torch.tensor([[True] * 6 + [False]] * 4)}, "Pad on the left"),
    ({"mask": torch.tensor([[True, False, *[True] * 5]] * 4)}, "has a hole"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(wrapped, tokens, options, words):
    with pytest.raises(ToolkitError, match=words):
        generate(wrapped, tokens, **options)


def test_a_mask_of_another_shape_is_refused(tokens):
    with pytest.raises(ToolkitError, match=r"mask has shape \(4, 6\) but tokens \(4, 7\)"):
        check_left_padded(tokens, torch.ones(4, 6, dtype=torch.bool))


@pytest.mark.parametrize("column", [0, -1])
def test_padding_without_a_mask_is_refused(column):
    model = load_model("toy/sentiment")
    tokens = torch.full((2, 4), 5)
    assert generate(model, tokens, max_new_tokens=1).shape == (2, 1)
    tokens[1, column] = model.tokenizer.pad_token_id
    with pytest.raises(ToolkitError, match="the padding token '<pad>', and no mask"):
        generate(model, tokens, max_new_tokens=1)


def test_a_gate_behind_its_edit_is_refused_with_and_without_cache(wrapped, tokens):
    gate = Gate(VECTOR.direction, 0.0)
    for cached in (True, False):
        with pytest.raises(HookError, match="has seen no prompt; place the gate in front"):
            generate(wrapped, tokens, {PRE1: [VECTOR.add(when=gate), gate]}, use_cache=cached)
