"""Patching: what is moved carries the source's answer, and TransformerLens' own sweep agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.measure import logit_difference, measure
from mechinterp_toolkit.hooks.patch import (
    PatchActivation,
    Place,
    PromptPairs,
    patch_effects,
    path_effects,
)
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.intervention import Site
from mechinterp_toolkit.record import activations

PRE0, PRE1, POST1, Z0 = (
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_resid_pre",
    "blocks.1.hook_resid_post",
    "blocks.0.attn.hook_z",
)
SITE = Site(PRE1)


@pytest.fixture
def pairs(wrapped):
    """Twelve pairs of prompts that differ in one token, and a metric that tells them apart."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(3, 60, (12, 5), generator=generator)
    source[:, 1] = 10
    base = source.clone()
    base[:, 1] = 20
    with torch.no_grad():
        gap = (wrapped.logits(source) - wrapped.logits(base))[:, -1]
    moved = gap.mean(0) / gap.std(0)
    right, wrong = (torch.full((12, 1), int(i)) for i in (moved.argmax(), moved.argmin()))
    return PromptPairs(source, base), logit_difference(right, wrong)


def test_moving_the_whole_stream_gives_the_sources_answer_and_moving_what_is_equal_gives_nothing(
    wrapped, pairs
):
    both, metric = pairs
    places = [
        Place(PRE0),
        Place(POST1),
        Place(PRE0, positions=(1,)),
        Place(PRE0, positions=(0, 2, 3, 4)),
    ]
    effects = patch_effects(wrapped, both, places, metric)
    # Float32 logits over a gap near 1.
    assert effects.normalised.value.tolist() == pytest.approx([1, 1, 1, 0], abs=1e-4)
    gap = measure(wrapped, both.source, metric) - measure(wrapped, both.base, metric)
    assert float(effects.gap.value) == pytest.approx(float(gap.mean()))
    assert effects.raw.value.tolist() == pytest.approx([float(gap.mean())] * 3 + [0], abs=1e-4)
    assert effects.normalised.labels["place"][2] == f"{PRE0} token 1"


def test_the_effects_are_those_of_transformerlens_own_sweep(wrapped, pairs):
    from transformer_lens import patching

    both, metric = pairs
    _, cache = wrapped.model.run_with_cache(both.source)
    with torch.no_grad():
        theirs = patching.get_act_patch_resid_pre(
            wrapped.model, both.base, cache, lambda logits: metric(logits).mean()
        )
    places = [
        Place(f"blocks.{layer}.hook_resid_pre", positions=(pos,))
        for layer in range(2)
        for pos in range(5)
    ]
    ours = patch_effects(wrapped, both, places, metric).raw.value.reshape(2, 5)
    before = measure(wrapped, both.base, metric).mean()
    assert (ours + before - theirs.double()).abs().max() < 1e-4
    assert ours[0].abs().max() > 0.1


def test_only_the_named_heads_tokens_and_direction_move():
    base, source = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    site = Site(Z0, order=torch.arange(3).expand(2, -1))
    edited = PatchActivation(source, heads=(2,), where=Where(positions=(1,), bos=True))(
        base, hook=site
    )
    moved = torch.zeros(2, 3, 4, dtype=torch.bool)
    moved[:, 1, 2] = True
    assert torch.equal(edited[moved], source[moved])
    assert torch.equal(edited[~moved], base[~moved])


def test_directional_patching_by_hand():
    """Only the first coordinate moves from 1 to 5, whatever the direction's length."""
    base, source = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 7.0]]])
    edit = PatchActivation(source, direction=torch.tensor([3.0, 0.0]))
    assert torch.equal(edit(base, hook=SITE), torch.tensor([[[5.0, 2.0]]]))


def test_a_path_from_the_last_layer_is_the_plain_patch_of_the_head(wrapped, pairs):
    both, metric = pairs
    senders = [(1, head) for head in range(4)]
    plain = patch_effects(
        wrapped,
        both,
        [Place("blocks.1.attn.hook_z", heads=(h,)) for _, h in senders],
        metric,
    )
    paths = path_effects(wrapped, both, senders, [Place(POST1)], metric)
    assert (paths.raw.value - plain.raw.value).abs().max() < 1e-4
    assert plain.raw.value.abs().max() > 0.01


def test_the_direct_path_to_the_logits_adds_what_the_head_writes(wrapped, pairs):
    """With all else fixed the last stream gains (z_source - z_base) W_O, by the weights."""
    both, metric = pairs
    ours = path_effects(wrapped, both, [(0, 1)], [Place(POST1)], metric, freeze_mlps=True)
    z_source, z_base = (
        activations(wrapped, ids, (Z0,))[Z0][:, :, 1] for ids in (both.source, both.base)
    )
    written = (z_source - z_base) @ wrapped.model.blocks[0].attn.W_O[1].detach()
    direct = measure(
        wrapped, both.base, metric, {POST1: lambda activation, hook: activation + written}
    )
    expected = (direct - measure(wrapped, both.base, metric)).mean()
    assert float(ours.raw.value[0]) == pytest.approx(float(expected), abs=1e-4)
    total = patch_effects(wrapped, both, [Place(Z0, heads=(1,))], metric)
    # The indirect paths were there to be left out.
    assert abs(float(total.raw.value[0] - expected)) > 1e-3


def test_a_path_into_one_heads_queries_leaves_the_other_heads_alone(wrapped, pairs):
    both, metric = pairs
    q1 = "blocks.1.attn.hook_q"
    one = path_effects(wrapped, both, [(0, 2)], [Place(q1, heads=(3,))], metric).raw.value
    every = path_effects(wrapped, both, [(0, 2)], [Place(q1)], metric).raw.value
    assert float(one) != float(every)
    blind = path_effects(
        wrapped, both, [(0, 2)], [Place(q1, heads=(3,), positions=(0,))], metric
    ).raw.value
    # The first query is not where the answer is read, and attends to one token only.
    assert abs(float(blind)) < 1e-5


def test_paths_that_do_not_exist_are_refused(wrapped, pairs):
    both, metric = pairs
    with pytest.raises(
        HookError, match=r"no direct path leads from head 1\.0 to blocks\.0\.attn\.hook_q"
    ):
        path_effects(wrapped, both, [(1, 0)], [Place("blocks.0.attn.hook_q")], metric)
    with pytest.raises(HookError, match="has 4 heads, numbered from 0; there is no head 4"):
        path_effects(wrapped, both, [(0, 4)], [Place(POST1)], metric)


def test_prompts_that_answer_alike_are_refused(wrapped, pairs):
    both, metric = pairs
    with pytest.raises(ToolkitError, match="nothing can be normalised"):
        patch_effects(wrapped, replace(both, base=both.source), [Place(PRE0)], metric)


def test_intervals_widen_with_the_spread_over_pairs(wrapped, pairs):
    both, metric = pairs
    effects = patch_effects(wrapped, both, [Place(PRE1, positions=(1,)), Place(PRE1)], metric)
    normalised = effects.normalised
    assert normalised.n == 12
    assert (normalised.low <= normalised.value).all()
    assert (normalised.value <= normalised.high).all()
    width = normalised.high - normalised.low
    assert width[0] > 0.01 > 1e-4 > width[1]  # moving everything is exact for every pair


def doubled(pairs, **units):
    """Every pair twice, and a metric that answers row by row as before."""
    both, metric = pairs
    return (
        PromptPairs(both.source.repeat(2, 1), both.base.repeat(2, 1), **units),
        lambda logits: torch.cat([metric(part) for part in logits.chunk(2)]),
    )


def test_pairs_of_one_unit_count_once(wrapped, pairs):
    """Each pair run twice: by units intervals are those of single pairs, by rows too narrow."""
    places, units = [Place(PRE1, positions=(1,))], torch.arange(12).repeat(2)

    def effects(both, metric):
        return patch_effects(wrapped, both, places, metric)

    in_units, metric = doubled(pairs, unit=units, unit_name="pairs of words")
    single, by_rows, by_unit = effects(*pairs), effects(*doubled(pairs)), effects(in_units, metric)
    paths = path_effects(wrapped, in_units, [(0, 1)], [Place(POST1)], metric)
    for name in ("normalised", "raw", "gap"):
        alone, rows, units = (getattr(part, name) for part in (single, by_rows, by_unit))
        assert (rows.n, units.n, getattr(paths, name).n) == (24, 12, 12)
        for end in ("value", "low", "high"):
            # float32 logits of other batch sizes
            assert torch.allclose(getattr(units, end), getattr(alone, end), atol=1e-4), (name, end)
        assert "over pairs of words" in units.method
        # 1 / sqrt(2) but for chance
        assert ((rows.high - rows.low) < 0.9 * (units.high - units.low)).all()


def test_a_unit_for_some_pairs_only_is_refused(as_a_user):
    tokens = torch.zeros(24, 5, dtype=torch.long)
    with pytest.raises(ToolkitError, match="got units for 12 of 24 pairs of prompts"):
        PromptPairs(tokens, tokens, unit=torch.arange(12))


def test_whether_prompts_differ_is_judged_by_units(wrapped, pairs):
    """Gaps of 1, 1 and -0.51 in units of four: by rows .497 +- .21.

    Deviations add up to 2, 2, -4: +- sqrt(24 * 3 / 2) / 12.
    """
    gap = torch.tensor([1.0, 1.0, -0.51], dtype=torch.float64).repeat_interleave(4)

    def effects(both):
        answers = iter([torch.zeros(12), gap, torch.zeros(12)])  # patched, source, base
        return patch_effects(wrapped, both, [Place(PRE0)], lambda _: next(answers))

    assert float(effects(pairs[0]).gap.value) == pytest.approx(1.49 / 3)
    with pytest.raises(ToolkitError, match=r"differs by 0\.497 \+- 0\.5 on average"):
        effects(replace(pairs[0], unit=torch.arange(3).repeat_interleave(4)))


@pytest.mark.parametrize(("edit", "words"), [
    (PatchActivation(torch.zeros(2, 4, 8)), r"has shape \(2, 3, 8\) here and \(2, 4, 8\)"),
    (PatchActivation(torch.zeros(2, 3, 8), heads=(0,)), "and no heads"),
])  # fmt: skip
def test_runs_that_do_not_line_up_are_refused(edit, words):
    with pytest.raises(HookError, match=words):
        edit(torch.zeros(2, 3, 8), hook=SITE)


def test_places_need_names_of_their_own(wrapped, pairs):
    with pytest.raises(
        ToolkitError, match=f"several places are called {PRE0}; give them names of their own"
    ):
        patch_effects(wrapped, pairs[0], [Place(PRE0), Place(PRE0)], pairs[1])
    with pytest.raises(ToolkitError, match="got no places"):
        patch_effects(wrapped, pairs[0], [], pairs[1])
