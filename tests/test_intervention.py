"""applied: what TransformerLens accepts in silence is refused here, and nothing is ever left
behind."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.intervention import Site, applied, observed

Z0 = "blocks.0.attn.hook_z"
PRE1 = "blocks.1.hook_resid_pre"


def zero(activation, hook):
    return torch.zeros_like(activation)


def same(activation, hook):
    return activation


def plus(amount):
    return lambda activation, hook: activation + amount


def times(factor):
    return lambda activation, hook: activation * factor


def n_hooks(model) -> int:
    return sum(
        len(point.fwd_hooks) + len(point._forward_hooks)
        for point in set(model.hook_points.values())
    )


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(wrapped, tokens):
    """After every test here, whatever happened in it: no hook, and outputs bit-equal to before."""
    before = wrapped.logits(tokens)
    yield
    assert n_hooks(wrapped) == 0
    assert torch.equal(wrapped.logits(tokens), before)


def test_an_edit_changes_the_output_inside_the_block_only(wrapped, tokens):
    before = wrapped.logits(tokens)
    with applied(wrapped, {Z0: zero}):
        inside = wrapped.logits(tokens)
    assert (inside - before).abs().max() > 1e-2


def test_the_edited_value_is_what_the_model_goes_on_with(wrapped, tokens):
    target = torch.randn(4, 7, 32)
    seen = {}
    with (
        applied(wrapped, {PRE1: lambda activation, hook: target}),
        observed(wrapped, {PRE1: lambda activation, hook: seen.update(pre=activation.clone())}),
    ):
        wrapped.logits(tokens)
    assert torch.equal(seen["pre"], target)


def test_an_edit_works_the_same_in_plain_run_with_hooks(wrapped, tokens):
    with applied(wrapped, {Z0: zero}):
        ours = wrapped.logits(tokens)
    assert torch.equal(wrapped.model.run_with_hooks(tokens, fwd_hooks=[(Z0, zero)]), ours)


def test_head_activations_have_a_head_axis(wrapped, tokens):
    shapes = {}
    with observed(
        wrapped, {Z0: lambda activation, hook: shapes.update({hook.name: tuple(activation.shape)})}
    ):
        wrapped.logits(tokens)
    assert shapes == {Z0: (4, 7, 4, 8)}


def test_several_edits_on_one_point_run_in_the_order_given(wrapped, tokens):
    seen = {}
    start = {}
    with observed(wrapped, {PRE1: lambda activation, hook: start.update(x=activation.clone())}):
        wrapped.logits(tokens)
    with (
        applied(wrapped, {PRE1: [plus(1.0), times(2.0)]}),
        observed(wrapped, {PRE1: lambda activation, hook: seen.update(x=activation.clone())}),
    ):
        wrapped.logits(tokens)
    assert torch.equal(seen["x"], (start["x"] + 1) * 2)


def test_two_names_of_one_point_compose(wrapped, tokens):
    if not wrapped.is_bridge:
        pytest.skip("HookedTransformer has one name per point")
    with applied(wrapped, {PRE1: plus(1.0), "blocks.1.hook_in": times(2.0)}):
        both = wrapped.logits(tokens)
    with applied(wrapped, {PRE1: [plus(1.0), times(2.0)]}):
        assert torch.equal(wrapped.logits(tokens), both)


def test_nested_blocks_run_the_outer_edit_first(wrapped, tokens):
    with applied(wrapped, {PRE1: plus(1.0)}), applied(wrapped, {PRE1: times(2.0)}):
        nested = wrapped.logits(tokens)
    with applied(wrapped, {PRE1: [plus(1.0), times(2.0)]}):
        assert torch.equal(wrapped.logits(tokens), nested)


def test_a_misspelt_name_is_refused_and_the_nearest_suggested(wrapped):
    with (
        pytest.raises(
            HookError,
            match=(
                r"no hook point 'blocks\.0\.attn\.hook_zz'.*Did you mean.*blocks\.0\.attn\.hook_z"
            ),
        ),
        applied(wrapped, {"blocks.0.attn.hook_zz": zero}),
    ):
        pass


def test_a_bad_name_among_good_ones_places_nothing(wrapped):
    with (
        pytest.raises(HookError, match="no hook point"),
        applied(wrapped, {Z0: zero, "blocks.9.attn.hook_z": zero}),
    ):
        pass


def test_a_hook_point_that_is_switched_off_is_refused(wrapped):
    with (
        pytest.raises(HookError, match=r"switched off.*set_use_attn_result"),
        applied(wrapped, {"blocks.0.attn.hook_result": zero}),
    ):
        pass


def test_the_middle_of_the_stream_is_edited_or_refused(wrapped, tokens):
    """On GPT-2 a Bridge would edit the MLP's input only, in silence: the stream after the block
    would keep the old value."""
    name = "blocks.0.hook_resid_mid"
    if name not in wrapped.hook_points:
        with pytest.raises(HookError, match="no hook point"), applied(wrapped, {name: zero}):
            pass
    elif wrapped.is_bridge:
        with (
            pytest.raises(
                HookError,
                match=r"not the residual stream.*hook_attn_out.*blocks\.1\.hook_resid_pre",
            ),
            applied(wrapped, {name: zero}),
        ):
            pass
        with (
            pytest.raises(HookError, match="not the residual stream"),
            applied(wrapped, {wrapped.hook_points[name].name: zero}),
        ):
            pass
    else:
        seen = {}
        reader = {
            "blocks.0.hook_resid_post": lambda activation, hook: seen.update(
                post=activation.clone()
            ),
            "blocks.0.hook_mlp_out": lambda activation, hook: seen.update(mlp=activation.clone()),
        }
        with applied(wrapped, {name: zero}), observed(wrapped, reader):
            wrapped.logits(tokens)
        assert torch.equal(seen["post"], seen["mlp"])  # the skip path was zeroed too


def test_reading_the_middle_of_the_stream_is_allowed_everywhere(wrapped, tokens):
    name = "blocks.0.hook_resid_mid"
    if name not in wrapped.hook_points:
        pytest.skip("parallel blocks have no middle")
    seen = []
    with observed(wrapped, {name: lambda activation, hook: seen.append(tuple(activation.shape))}):
        wrapped.logits(tokens)
    assert seen == [(4, 7, 32)]


def test_a_point_that_is_listed_but_never_fires_raises_on_the_way_out(wrapped, tokens):
    never = [name for name in wrapped.hook_points if name.endswith("hook_rot_q")]
    if not never:
        pytest.skip("this wrapper lists no hook_rot_q")
    fired = []

    def read():
        with observed(wrapped, {never[0]: lambda activation, hook: fired.append(1)}):
            wrapped.logits(tokens)

    if wrapped.is_bridge and wrapped.cfg.architecture == "GPTNeoXForCausalLM":
        with pytest.raises(HookError, match="hook_rot_q never ran"):
            read()
    else:
        read()
        assert fired


def test_an_edit_that_never_fires_raises_on_the_way_out(wrapped):
    with (
        pytest.raises(HookError, match=r"blocks\.0\.attn\.hook_z never ran"),
        applied(wrapped, {Z0: zero}),
    ):
        pass


def test_a_broadcastable_wrong_shape_is_refused(wrapped, tokens):
    with (
        pytest.raises(HookError, match=r"returned shape \(4, 1, 32\) instead of \(4, 7, 32\)"),
        applied(wrapped, {PRE1: lambda a, hook: a[:, :1]}),
    ):
        wrapped.logits(tokens)


def test_another_dtype_is_refused(wrapped, tokens):
    with (
        pytest.raises(HookError, match=r"returned dtype torch.float64"),
        applied(wrapped, {PRE1: lambda a, hook: a.double()}),
    ):
        wrapped.logits(tokens)


def test_returning_nothing_is_refused(wrapped, tokens):
    with (
        pytest.raises(HookError, match="returned NoneType"),
        applied(wrapped, {PRE1: lambda a, hook: None}),
    ):
        wrapped.logits(tokens)


def test_an_edit_in_place_is_refused(wrapped, tokens):
    def in_place(activation, hook):
        return activation.mul_(0)

    with (
        torch.no_grad(),
        pytest.raises(HookError, match="in place"),
        applied(wrapped, {PRE1: in_place}),
    ):
        wrapped.logits(tokens)


def test_an_edit_in_place_is_harmless_under_inference_mode(wrapped, tokens):
    """Inference tensors keep no version, so the edit gets a copy, and what was cached before it
    stays as it was."""
    cached = []
    point = wrapped.hook_points[PRE1]
    point.add_hook(lambda activation, hook: cached.append(activation))
    with (
        torch.inference_mode(),
        applied(wrapped, {PRE1: lambda activation, hook: activation.mul_(0)}),
    ):
        wrapped.logits(tokens)
    point.remove_hooks()
    assert cached[0].abs().max() > 0


def test_an_exception_in_an_edit_leaves_nothing(wrapped, tokens):
    def broken(activation, hook):
        raise RuntimeError("mid-forward")

    with (
        pytest.raises(RuntimeError, match="mid-forward"),
        applied(wrapped, {Z0: zero, PRE1: broken}),
    ):
        wrapped.logits(tokens)


def test_an_exception_in_the_block_is_not_hidden_by_the_complaint_about_idle_edits(wrapped):
    with pytest.raises(RuntimeError, match="mine"), applied(wrapped, {Z0: zero}):
        raise RuntimeError("mine")


def test_a_reset_of_hooks_inside_the_block_does_not_drop_the_edit(wrapped, tokens):
    with applied(wrapped, {Z0: zero}):
        inside = wrapped.logits(tokens)
        wrapped.model.reset_hooks()
        assert torch.equal(wrapped.logits(tokens), inside)


def test_hooks_of_the_user_survive_the_block(wrapped, tokens):
    calls = []
    point = wrapped.hook_points[Z0]
    point.add_hook(lambda activation, hook: calls.append(1))
    with applied(wrapped, {Z0: same}):
        wrapped.logits(tokens)
    wrapped.logits(tokens)
    point.remove_hooks()
    assert len(calls) == 2


def test_what_was_cached_before_a_later_edit_stays_as_it_was(wrapped, tokens):
    with applied(wrapped, {PRE1: times(0.0)}):
        _, cache = wrapped.model.run_with_cache(
            tokens, names_filter=lambda name: name.endswith(("hook_resid_post", "hook_out"))
        )
    with observed(
        wrapped,
        {
            "blocks.0.hook_resid_post": lambda a, hook: torch.testing.assert_close(
                a, cache["blocks.0.hook_resid_post"]
            )
        },
    ):
        wrapped.logits(tokens)


def test_the_site_says_name_layer_and_mask(wrapped, tokens):
    sites = []
    mask = torch.ones(4, 7, dtype=torch.bool)

    def note(activation, hook):
        sites.append(hook)
        return activation

    with applied(wrapped, {PRE1: note}, mask=mask):
        wrapped.logits(tokens)
    assert sites[0].name == PRE1
    assert sites[0].layer() == 1
    assert torch.equal(sites[0].mask, mask)
    assert sites[0].positions.tolist() == list(range(7))
    with pytest.raises(HookError, match="lies in no layer"):
        Site("hook_embed").layer()


def test_positions_are_absolute_with_and_without_a_cache(wrapped, tokens):
    """The same columns are edited whether the past is run again or comes from a cache."""
    for cached in (True, False):
        seen = []

        def note(activation, hook, seen=seen):
            seen.append((hook.positions.tolist(), hook.generated.tolist(), hook.mask.shape[1]))
            return activation

        mask = torch.ones(4, 7, dtype=torch.bool)
        with torch.no_grad(), applied(wrapped, {PRE1: note}, mask=mask, prompt_length=7):
            wrapped.model.generate(
                tokens,
                max_new_tokens=3,
                use_past_kv_cache=cached,
                do_sample=False,
                verbose=False,
                stop_at_eos=False,
            )
        assert seen[0] == (list(range(7)), [False] * 7, 7)
        if cached:
            assert seen[1:3] == [([7], [True], 1), ([8], [True], 1)]
        else:
            assert seen[1:3] == [
                (list(range(8)), [False] * 7 + [True], 8),
                (list(range(9)), [False] * 7 + [True] * 2, 9),
            ]


def test_what_was_generated_is_not_guessed(wrapped, tokens):
    def ask(activation, hook):
        return activation * (~hook.generated)[None, :, None]

    with (
        pytest.raises(HookError, match=r"applied\(\.\.\., prompt_length=\.\.\.\)"),
        applied(wrapped, {PRE1: ask}),
    ):
        wrapped.logits(tokens)


def sites_of(wrapped, ids, **told):
    """The sites of one forward pass over `ids`."""
    seen = []

    def note(activation, hook):
        seen.append(hook)
        return activation

    with torch.no_grad(), applied(wrapped, {PRE1: note}, **told):
        wrapped.logits(ids, told.get("mask"))
    return seen


def test_the_site_counts_real_tokens_and_knows_the_first(wrapped):
    ids = torch.tensor(
        [[0, 0, 2, 5], [2, 2, 4, 5], [4, 5, 6, 7]]
    )  # 2 is the beginning of a sequence, 0 is padding
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    (site,) = sites_of(wrapped, ids, mask=mask, prompt_length=3, group=torch.tensor([0, 1, 1]))
    assert site.order.tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert site.bos.tolist() == [
        [False, False, True, False],
        [True, False, False, False],
        [False] * 4,
    ]
    assert site.prompt_tokens.tolist() == [1, 3, 3]
    assert site.group.tolist() == [0, 1, 1]


def test_the_mask_that_the_model_is_run_with_counts_where_none_was_said(wrapped):
    ids, mask = (
        torch.tensor([[0, 5, 6], [4, 5, 6]]),
        torch.tensor([[False, True, True], [True] * 3]),
    )
    seen = []

    def note(activation, hook):
        seen.append(hook.order.tolist())
        return activation

    with torch.no_grad(), applied(wrapped, {PRE1: note}):
        wrapped.logits(ids, mask)
    assert seen == [[[-1, 0, 1], [0, 1, 2]]]


def test_a_mask_of_other_prompts_than_those_that_run_is_refused(wrapped, tokens):
    mask = torch.ones_like(tokens[:3], dtype=torch.bool)
    with (
        pytest.raises(HookError, match="mask has 3 rows but 4 run"),
        applied(wrapped, {PRE1: same}, mask=mask),
    ):
        wrapped.logits(tokens)


def test_groups_that_do_not_fit_the_batch_are_refused(wrapped, tokens):
    with pytest.raises(HookError, match="group names 3 rows but 4 run"):
        sites_of(wrapped, tokens, group=torch.tensor([0, 0, 1]))


def test_what_an_edit_notes_on_the_prompt_lasts_while_tokens_are_generated(wrapped, tokens):
    for cached in (True, False):
        seen = []

        def note(activation, hook, seen=seen):
            seen.append(dict(hook.memory))
            hook.memory.setdefault("columns", []).append(activation.shape[1])
            return activation

        options = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False}
        with torch.no_grad(), applied(wrapped, {PRE1: note}, prompt_length=7):
            wrapped.model.generate(tokens, use_past_kv_cache=cached, **options)
            wrapped.logits(tokens)
        lasted = seen[1:3]
        assert [bool(memory) for memory in lasted] == [
            cached,
            cached,
        ]  # each uncached pass begins anew
        assert seen[-1] == {}


def test_the_models_forward_is_its_own_again_afterwards(wrapped, tokens):
    with applied(wrapped, {PRE1: same}), applied(wrapped, {Z0: same}):
        wrapped.logits(tokens)
    assert "forward" not in vars(wrapped.model)
    with pytest.raises(RuntimeError, match="mine"), applied(wrapped, {PRE1: same}):
        raise RuntimeError("mine")
    assert "forward" not in vars(wrapped.model)
