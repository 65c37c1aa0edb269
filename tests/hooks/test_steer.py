"""Steering vectors: what they are, how they are fitted, and what each edit does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.steer import AddVector, Gate, SetProjection, SteeringVector
from mechinterp_toolkit.hooks.steer_fit import (
    Contrast,
    activation_addition,
    head_mass_mean_shifts,
    logistic_direction,
    mean_difference,
    pair_agreement,
    pca_direction,
    read_contrast,
    sae_decoder_row,
    separation,
    train_steering_vector,
)
from mechinterp_toolkit.hooks.where import EVERYTHING, Where
from mechinterp_toolkit.intervention import Site, applied
from mechinterp_toolkit.record import activations

PRE1, Z0 = "blocks.1.hook_resid_pre", "blocks.0.attn.hook_z"
SITE = Site(PRE1)
A = SteeringVector.of(
    PRE1, torch.tensor([3.0, 0.0, 4.0]), method="a", checkpoint="m", fingerprint="f"
)
B = SteeringVector.of(
    PRE1, torch.tensor([0.0, 2.0, 0.0]), method="b", checkpoint="m", fingerprint="f"
)


def planted(n=40, d=12, seed=0):
    """Two sets of rows that differ by (2, 0, ...) and noise, in pairs that share more noise."""
    generator = torch.Generator().manual_seed(seed)
    shared, noise = (
        torch.randn(n, d, generator=generator),
        0.3 * torch.randn(2, n, d, generator=generator),
    )
    shift = torch.zeros(d)
    shift[0] = 1
    return Contrast(PRE1, shared + noise[0] + shift, shared + noise[1] - shift)


# --- the vector ----------------------------------------------------------------------------------


def test_a_vector_is_direction_times_norm():
    assert A.norm == 5
    assert A.direction.tolist() == pytest.approx([0.6, 0.0, 0.8])
    assert torch.allclose(A.vector, torch.tensor([3.0, 0.0, 4.0]))


def test_arithmetic_is_that_of_the_vectors():
    mixed = 2 * A - B / 2
    assert torch.allclose(mixed.vector, torch.tensor([6.0, -1.0, 8.0]))
    assert mixed.provenance["method"] == "(2 * a + -1 * 0.5 * b)"
    assert torch.allclose((A + -A).vector, torch.zeros(3))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            SteeringVector.of("blocks.0.hook_resid_pre", torch.ones(3)),
            "different hook_point can't be added",
        ),
        (SteeringVector.of(PRE1, torch.ones(4)), "different shape"),
        (SteeringVector.of(PRE1, torch.ones(2, 3), axis="pos"), "different axis"),
        (
            SteeringVector.of(PRE1, torch.ones(3), fingerprint="g"),
            "different fingerprint.*'f' and 'g'",
        ),
    ],
)
def test_vectors_that_do_not_belong_together_are_not_added(other, words):
    with pytest.raises(ToolkitError, match=words):
        A + other


def test_a_vector_plus_a_number_is_no_vector():
    with pytest.raises(TypeError):
        A + 1
    with pytest.raises(TypeError):
        A * True


def test_what_is_no_vector_is_refused():
    with pytest.raises(ToolkitError, match="NaN"):
        SteeringVector.of(PRE1, torch.tensor([1.0, torch.nan]))
    with pytest.raises(ToolkitError, match=r"axis='' has 1 axes; got shape \(2, 3\)"):
        SteeringVector.of(PRE1, torch.ones(2, 3))


def test_saved_and_loaded_it_is_bit_equal(tmp_path):
    wide = torch.randn(50, 40)
    vector = SteeringVector.of(PRE1, wide[3], method="row", n=7, revision=None)
    path = vector.save(tmp_path / "v.safetensors")
    again = SteeringVector.load(path)
    assert torch.equal(again.direction, vector.direction)
    assert (again.norm, again.axis, again.hook_point) == (vector.norm, "", PRE1)
    assert dict(again.provenance) == {"method": "row", "n": 7, "revision": None}
    # 40 numbers and the metadata, not the 2000 numbers behind the view.
    assert path.stat().st_size < 1000


def test_another_file_is_no_vector(tmp_path):
    save_file({"direction": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ToolkitError, match="holds no steering vector"):
        SteeringVector.load(tmp_path / "other.safetensors")
    with pytest.raises(ToolkitError, match="is no file"):
        SteeringVector.load(tmp_path / "missing.safetensors")


def test_a_vector_of_another_model_is_noticed(wrapped):
    own = SteeringVector.of(
        PRE1, torch.ones(32), fingerprint=wrapped.provenance.fingerprint, processing="none"
    )
    own.check_fits(wrapped)
    with pytest.raises(ToolkitError, match="was made with fingerprint 'f'"):
        A.check_fits(wrapped)
    processed = SteeringVector.of(PRE1, torch.ones(32), processing="compatible")
    with pytest.raises(ToolkitError, match=r"processing 'compatible'.*has 'none'"):
        processed.check_fits(wrapped)


# --- what the edits do ---------------------------------------------------------------------------


def test_adding_and_clamping_by_hand():
    x = torch.tensor([[[1.0, 1.0, 2.0]]])
    assert torch.allclose(
        A.add(2.0, where=EVERYTHING)(x, hook=SITE), torch.tensor([[[7.0, 1.0, 10.0]]])
    )
    # projection of x on (0.6, 0, 0.8) is 2.2; clamped to 5 it gains 2.8 (0.6, 0, 0.8)
    assert torch.allclose(
        A.clamp(5.0, where=EVERYTHING)(x, hook=SITE), torch.tensor([[[2.68, 1.0, 4.24]]])
    )
    assert torch.allclose(
        A.ablate(where=EVERYTHING)(x, hook=SITE), torch.tensor([[[-0.32, 1.0, 0.24]]])
    )


def test_ablation_removes_the_direction_and_nothing_else():
    x = torch.randn(4, 6, 3)
    edited = A.ablate(0.7, where=EVERYTHING)(x, hook=SITE)
    assert (edited @ A.direction - 0.7).abs().max() < 1e-6  # float32 rounding of numbers near 1
    for other in (torch.tensor([0.8, 0.0, -0.6]), torch.tensor([0.0, 1.0, 0.0])):
        assert (edited @ other - x @ other).abs().max() < 1e-6
    again = A.ablate(0.7, where=EVERYTHING)(edited, hook=SITE)
    assert (again - edited).abs().max() < 1e-6


def test_an_edit_keeps_the_dtype_and_projects_in_more_than_half_precision():
    v = torch.randn(64)
    unit = v / v.norm()
    x = (100 * torch.randn(2, 3, 64) + 3000 * unit).to(torch.bfloat16)
    edited = SetProjection(v, 0.0, EVERYTHING)(x, hook=SITE)
    assert edited.dtype == torch.bfloat16
    # What is left is the rounding of the results, sd 100 * 2^-9 / sqrt(3) = 0.1; a projection of
    # 3000 in bfloat16 is off by 8.
    assert (edited.float() @ unit).abs().max() < 0.6
    assert AddVector(v, where=EVERYTHING)(x, hook=SITE).dtype == torch.bfloat16


def test_the_zero_vector_adds_nothing_and_can_not_be_ablated():
    zero = 0 * A
    assert torch.equal(
        zero.add(3.0, where=EVERYTHING)(torch.ones(1, 1, 3), hook=SITE), torch.ones(1, 1, 3)
    )
    with pytest.raises(ToolkitError, match="is zero and has no direction"):
        zero.ablate()
    with pytest.raises(ToolkitError, match="its own row per head"):
        SteeringVector.of(Z0, torch.ones(4, 8), axis="head").clamp(1.0)


def test_a_vector_that_would_broadcast_is_refused():
    with pytest.raises(HookError, match=r"\(3,\) can't be added .* \(4,\) a token"):
        AddVector(torch.ones(3))(torch.zeros(2, 5, 4), hook=SITE)
    with pytest.raises(
        HookError, match=r"\(8,\) can't be added .* \(4, 8\) a token"
    ):  # it would go to every head
        AddVector(torch.ones(8))(torch.zeros(2, 5, 4, 8), hook=SITE)
    with pytest.raises(HookError, match="has 4 features, the direction 3"):
        SetProjection(torch.ones(3))(torch.zeros(2, 5, 4), hook=SITE)


def test_a_row_per_token_is_added_from_the_first_real_token_on():
    order = torch.tensor([[-1, 0, 1, 2]])
    site = Site(PRE1, order=order, bos=torch.zeros(1, 4, dtype=torch.bool), mask=order >= 0)
    rows = SteeringVector.of(PRE1, torch.tensor([[1.0], [2.0]]), axis="pos")
    assert rows.add()(torch.zeros(1, 4, 1), hook=site)[0, :, 0].tolist() == pytest.approx(
        [0, 1, 2, 0]
    )
    with pytest.raises(HookError, match="which counts tokens"):
        rows.add(where=EVERYTHING)(torch.zeros(1, 4, 1), hook=SITE)


def gate_site(start=0):
    """Two prompts with one generated token behind; row 0 has one column of padding."""
    columns = torch.arange(start, 4)
    order = torch.tensor([[-1, 0, 1, 2], [0, 1, 2, 3]])[:, columns]
    return Site(
        PRE1,
        mask=order >= 0,
        positions=columns,
        prompt_length=3,
        order=order,
        bos=torch.zeros(2, 4, dtype=torch.bool)[:, columns],
        prompt_tokens=torch.tensor([2, 3]),
    )


@pytest.mark.parametrize(
    ("over", "scores"), [("mean", (1.5, 2.0)), ("max", (2.0, 4.0)), ("last", (2.0, 1.0))]
)
def test_a_gate_reads_the_prompt_alone(over, scores):
    # 9 is padding, 50 generated.
    x = torch.tensor([[9.0, 1.0, 2.0, 50.0], [1.0, 4.0, 1.0, 50.0]])[..., None]
    for lift in (-0.01, 0.01):
        gate = Gate(torch.tensor([2.0]), scores[0] + lift, over=over)
        site = gate_site()
        assert torch.equal(gate(x, hook=site), x)
        assert gate.open(site).tolist() == [score > scores[0] + lift for score in scores]


def test_a_cosine_gate_does_not_see_length():
    x = torch.tensor([[[9.0, 0.0], [3.0, 4.0], [30.0, 40.0], [0.0, 1.0]]]).expand(2, -1, -1)
    gate = Gate(torch.tensor([5.0, 0.0]), 0.59, score="cosine", over="last")
    site = gate_site()
    gate(x, hook=site)
    assert gate.open(site).tolist() == [True, True]
    strict = Gate(torch.tensor([5.0, 0.0]), 0.61, score="cosine", over="last")
    strict(x, hook=site)
    assert strict.open(site).tolist() == [False, False]


def test_a_gate_that_did_not_see_the_prompt_is_refused():
    gate = Gate(torch.ones(1), 0.0)
    with pytest.raises(HookError, match="did not see the prompt, which a cache holds"):
        gate(torch.zeros(2, 1, 1), hook=gate_site(start=3))
    with pytest.raises(HookError, match="has seen no prompt"):
        gate.open(gate_site())


# --- where vectors come from ---------------------------------------------------------------------


@pytest.mark.parametrize("fit", [mean_difference, pca_direction, logistic_direction])
def test_every_method_finds_a_planted_direction(fit):
    direction = fit(planted(n=200))
    cosine = direction[0] / direction.norm()
    assert cosine > 0.9
    flipped = planted()
    # The sign follows the sets.
    assert fit(Contrast(PRE1, flipped.negative, flipped.positive))[0] < 0


def test_pca_keeps_the_mean_difference_when_every_pair_differs_alike():
    """Differences that are all the same have no variance: centred, nothing would be left."""
    shared = torch.randn(10, 4)
    shift = torch.tensor([0.0, 1.0, 0.0, 0.0])
    direction = pca_direction(Contrast(PRE1, shared + shift, shared - shift))
    assert torch.allclose(direction, shift.double(), atol=1e-6)  # float32 differences


def test_the_logistic_probe_sits_at_its_optimum():
    """At the optimum of sum(log-loss) + |w|^2 / 2 the weights are the sum of residuals by rows."""
    contrast = planted(n=15)
    x = torch.cat([contrast.positive, contrast.negative]).double()
    x = x - x.mean(0)
    scale = x.square().mean().sqrt()
    w = logistic_direction(contrast) * scale  # weights for rows over the scale
    y = torch.cat([torch.ones(15), torch.zeros(15)]).double()
    logit = x / scale @ w
    low, high = -5.0, 5.0
    for _ in range(60):  # the free bias: residuals sum to zero
        bias = (low + high) / 2
        low, high = (bias, high) if float((y - (logit + bias).sigmoid()).sum()) > 0 else (low, bias)
    residual = y - (logit + bias).sigmoid()
    # L-BFGS stops at a gradient of 1e-7.
    assert (residual @ (x / scale) - w).abs().max() < 1e-4 * w.abs().max()


@pytest.mark.parametrize("method", ["mean_difference", "pca", "logistic"])
def test_a_trained_vector_moves_the_negative_mean_onto_the_positive_along_itself(
    wrapped, tokens, method
):
    positive, negative = tokens, tokens.flip(0).roll(1, 1)
    vector = train_steering_vector(wrapped, positive, negative, PRE1, method=method)
    contrast = read_contrast(wrapped, positive, negative, PRE1)
    apart = (contrast.positive - contrast.negative).mean(0)
    assert float(vector.direction @ apart) == pytest.approx(vector.norm, rel=1e-4)  # float32 sums
    assert vector.provenance["method"] == method
    vector.check_fits(wrapped)


def test_prompts_are_read_at_their_last_real_token_however_padded(wrapped, tokens):
    plain = read_contrast(wrapped, tokens[:, :5], tokens[:, :5], PRE1).positive
    left, right = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 7, dtype=torch.long)
    left[:, 2:], right[:, :5] = tokens[:, :5], tokens[:, :5]
    real = torch.arange(7) >= 2
    masks = (real.expand(4, 7), real.flip(0).expand(4, 7))
    padded = read_contrast(wrapped, left, right, PRE1, masks=masks)
    for rows in (padded.positive, padded.negative):
        assert (rows - plain).abs().max() < 1e-4  # padding only changes the order of float32 sums
    before = read_contrast(wrapped, left, right, PRE1, masks=masks, token=-2).positive
    assert (before - activations(wrapped, tokens, (PRE1,))[PRE1][:, 3]).abs().max() < 1e-4
    with pytest.raises(ToolkitError, match="token 5 lies outside a prompt of 5 tokens"):
        read_contrast(wrapped, left, right, PRE1, masks=masks, token=5)


def test_each_prompt_can_be_read_at_a_place_of_its_own(wrapped, tokens):
    places = torch.tensor([0, 3, -1, 6]), torch.tensor([1, 1, 2, -2])
    contrast = read_contrast(wrapped, tokens, tokens, PRE1, token=places)
    whole = activations(wrapped, tokens, (PRE1,))[PRE1]
    assert (
        contrast.positive - whole[torch.arange(4), torch.tensor([0, 3, 6, 6])]
    ).abs().max() < 1e-5
    assert (
        contrast.negative - whole[torch.arange(4), torch.tensor([1, 1, 2, 5])]
    ).abs().max() < 1e-5
    vector = train_steering_vector(wrapped, tokens, tokens.flip(0), PRE1, token=places)
    assert vector.provenance["token"] == "one place per prompt"


def test_places_and_methods_that_do_not_fit_are_refused(wrapped, tokens, as_a_user):
    with pytest.raises(ToolkitError, match=r"token names places \(3,\) for 4 prompts"):
        read_contrast(wrapped, tokens, tokens, PRE1, token=(torch.zeros(3, dtype=torch.long),) * 2)
    with pytest.raises(ToolkitError, match="token 9 lies outside a prompt of 7 tokens"):
        read_contrast(wrapped, tokens, tokens, PRE1, token=(torch.tensor([0, 9, 1, 2]),) * 2)
    with pytest.raises(ToolkitError, match=r"not 'meandiff'\. Did you mean 'mean_difference'\?"):
        train_steering_vector(wrapped, tokens, tokens, PRE1, method="meandiff")


def test_one_pair_added_turns_the_stream_of_one_prompt_into_the_others(wrapped, tokens):
    vector = activation_addition(wrapped, tokens[:1], tokens[1:2], PRE1)
    with torch.no_grad(), applied(wrapped, {PRE1: vector.add(where=Where(bos=True))}):
        steered = wrapped.logits(tokens[1:2])
    with torch.no_grad():
        # Float32 differences added back.
        assert (steered - wrapped.logits(tokens[:1])).abs().max() < 1e-4
    with pytest.raises(ToolkitError, match="same activations"):
        activation_addition(wrapped, tokens[:1], tokens[:1], PRE1)


def test_head_shifts_go_to_the_heads_that_separate_the_sets(wrapped):
    """Every head sees the last token, so all that is checked is rank, scale and zeros."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (12, 5), generator=generator)
    positive, negative = ids.clone(), ids.clone()
    positive[:, -1], negative[:, -1] = 10, 20
    found = head_mass_mean_shifts(wrapped, positive, negative, top=3)
    assert found.accuracy.shape == (2, 4)
    assert len(found.heads) == 3
    chosen = [float(found.accuracy[layer, head]) for layer, head in found.heads]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] >= float(found.accuracy.flatten().sort(descending=True).values[2])
    for vector in found.vectors:
        layer = int(vector.hook_point.split(".")[1])
        rows = vector.vector.norm(dim=1)
        assert (rows > 0).tolist() == [(layer, head) in found.heads for head in range(4)]
    layer, head = found.heads[0]
    contrast = read_contrast(wrapped, positive, negative, f"blocks.{layer}.attn.hook_z")
    both = torch.cat([contrast.positive[:, head], contrast.negative[:, head]])
    vector = next(v for v in found.vectors if v.hook_point == contrast.hook_point).vector[head]
    assert float(vector.norm()) == pytest.approx(
        float((both @ (vector / vector.norm())).std()), rel=1e-4
    )
    with pytest.raises(ToolkitError, match="top=9 heads were asked for; the model has 8"):
        head_mass_mean_shifts(wrapped, positive, negative, top=9)


def test_a_decoder_row_becomes_a_vector(wrapped):
    decoder = torch.randn(5, 32)
    assert torch.allclose(sae_decoder_row(wrapped, decoder, 4, PRE1).vector, decoder[4], atol=1e-6)
    with pytest.raises(ToolkitError, match="there is no feature 5"):
        sae_decoder_row(wrapped, decoder, 5, PRE1)


def test_pairs_that_agree_and_pairs_that_do_not():
    agreeing = pair_agreement(planted())
    assert agreeing.low > 0.7
    random = Contrast(PRE1, torch.randn(200, 50), torch.randn(200, 50))
    assert random.positive.shape == (200, 50)
    # 0.07 if a pair were compared with a mean that holds it.
    assert abs(float(pair_agreement(random).value)) < 0.05
    with pytest.raises(ToolkitError, match="3 positive and 2 negative prompts are no pairs"):
        pair_agreement(Contrast(PRE1, torch.ones(3, 2), torch.ones(2, 2)))


def test_a_pair_is_compared_with_pairs_of_other_units():
    """Twelve random pairs of words in six sentences: five of a pair's 71 others are its words."""
    generator = torch.Generator().manual_seed(0)
    words, unit = torch.randn(12, 400, generator=generator).repeat(6, 1), torch.arange(12).repeat(6)
    contrast = Contrast(PRE1, words, torch.zeros(72, 400))
    by_rows, by_unit = (
        pair_agreement(contrast),
        pair_agreement(contrast, unit=unit, unit_name="pairs of words"),
    )
    # 5 parts of itself among sums of 6 parts of 11 others, all of one length and orthogonal but for
    # noise: 5 / sqrt(25 + 396)
    assert float(by_rows.value) == pytest.approx(0.24, abs=0.03)
    assert abs(float(by_unit.value)) < 0.03  # a mean of twelve cosines of sd 1 / sqrt(400)
    once = pair_agreement(Contrast(PRE1, words[:12], torch.zeros(12, 400)))
    for end in ("value", "low", "high"):
        assert float(getattr(by_unit, end)) == pytest.approx(float(getattr(once, end)))
    assert (by_unit.n, by_rows.n) == (12, 72)
    assert "over pairs of words" in by_unit.method
    with pytest.raises(ToolkitError, match="got units for 12 of 72 rows; give each row its own"):
        pair_agreement(contrast, unit=unit[:12])


def test_d_prime_resamples_units():
    """Words at one place in all sentences: as sure as one sentence, but for n - 2."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 10, 3, generator=generator)
    axis, units = (
        torch.tensor([1.0, 0.0, 0.0]),
        (torch.arange(10).repeat(6), torch.arange(10, 20).repeat(6)),
    )
    once = separation(Contrast(PRE1, positive + 1, negative), axis)
    many = Contrast(PRE1, (positive + 1).repeat(6, 1), negative.repeat(6, 1))
    by_unit, by_rows = (
        separation(many, axis, units=units, unit_name="words"),
        separation(many, axis),
    )
    scale = ((120 - 2) / (6 * (20 - 2))) ** 0.5
    for end in ("value", "low", "high"):
        assert float(getattr(by_unit, end)) == pytest.approx(scale * float(getattr(once, end)))
    assert (by_unit.n, by_rows.n) == (20, 120)
    # 1 / sqrt(6) but for chance.
    assert by_rows.high - by_rows.low < 0.6 * (by_unit.high - by_unit.low)
    with pytest.raises(ToolkitError, match="got units for 12 of 120 rows"):
        separation(many, axis, units=(units[0][:6], units[1][:6]))


def test_resamples_of_few_words_without_a_class_or_any_spread_do_not_stop_d_prime():
    """Of six words 3 % of resamples lack a class, and 1 % hold one word of either."""
    words = torch.tensor([[5.0], [6.0], [7.0], [0.0], [1.0], [2.0]]).repeat_interleave(4, 0)
    units = torch.arange(3).repeat_interleave(4), torch.arange(3, 6).repeat_interleave(4)
    d = separation(
        Contrast(PRE1, words[:12], words[12:]), torch.ones(1), units=units, unit_name="words"
    )
    assert d.n == 6
    assert d.low > 0
    with pytest.raises(ToolkitError, match="NaN or infinite"):  # nothing varies at all
        separation(Contrast(PRE1, torch.ones(4, 1), torch.zeros(4, 1)), torch.ones(1))


def test_d_prime_by_hand():
    """Projections 3, 5 and 0, 2: means 4 and 1, pooled variance (2 + 2) / 2, d' = 3 / sqrt(2)."""
    contrast = Contrast(
        PRE1,
        torch.tensor([[3.0, 9.0], [5.0, 7.0]]).repeat(20, 1),
        torch.tensor([[0.0, 1.0], [2.0, 0.0]]).repeat(20, 1),
    )
    d = separation(contrast, torch.tensor([2.0, 0.0]))
    # 40 rows instead of two: the pooled variance is 80 / 78, so d' = 3 / sqrt(80 / 78)
    assert float(d.value) == pytest.approx(3 / (80 / 78) ** 0.5)
    assert d.low < d.value < d.high


@pytest.mark.parametrize(("contrast", "words"), [
    (Contrast(Z0, torch.zeros(3, 4, 8), torch.zeros(3, 4, 8)), "choose one head"),
    (Contrast(PRE1, torch.zeros(0, 4), torch.zeros(2, 4)), "got 0 positive"),
])  # fmt: skip
def test_rows_that_can_not_be_fitted_are_refused(contrast, words):
    with pytest.raises(ToolkitError, match=words):
        mean_difference(contrast)


def test_sets_without_a_difference_give_no_vector(wrapped, tokens):
    with pytest.raises(ToolkitError, match="the sets don't differ"):
        train_steering_vector(wrapped, tokens, tokens, PRE1)
