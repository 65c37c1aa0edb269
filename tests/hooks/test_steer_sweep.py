"""The sweep reports what single runs give, and the worked task: speak of B, never of A."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.generate import generate
from mechinterp_toolkit.hooks.measure import logit_difference, measure
from mechinterp_toolkit.hooks.steer import SteeringVector
from mechinterp_toolkit.hooks.steer_fit import Contrast, read_contrast, train_steering_vector
from mechinterp_toolkit.hooks.steer_sweep import (
    Prompts,
    VectorGrid,
    guidance_kl,
    logit_contrast,
    mention_rates,
    shuffled_vectors,
    steering_sweep,
)
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import load_model

PRE0, PRE1 = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"
VECTORS = [SteeringVector.of(name, torch.randn(32, generator=torch.Generator().manual_seed(i)))
           for i, name in enumerate((PRE0, PRE1))]  # fmt: skip
METRIC = logit_difference(torch.full((4, 1), 5), torch.full((4, 1), 9))
MULTIPLIERS = (-1.0, 2.0)


@pytest.fixture
def sweep(wrapped, tokens):
    prompts = Prompts(tokens)
    guidance = logit_contrast(wrapped, prompts, Prompts(tokens.flip(1)))
    grid, neutral = VectorGrid(VECTORS, MULTIPLIERS), Prompts(tokens.roll(2, 1))
    return steering_sweep(wrapped, grid, prompts, neutral, METRIC, guidance=guidance)


def test_the_sweep_is_made_of_single_runs(sweep, wrapped, tokens):
    before = measure(wrapped, tokens, METRIC)
    for i, vector in enumerate(VECTORS):
        for j, multiplier in enumerate(MULTIPLIERS):
            change = (
                measure(wrapped, tokens, METRIC, {vector.hook_point: vector.add(multiplier)})
                - before
            )
            # float32 logits of order 1, of which the sweep may run more at a time
            assert torch.allclose(sweep.change[i, j], change, rtol=1e-4, atol=1e-4)
            assert float(sweep.effect.value[i, j]) == pytest.approx(float(change.mean()))
            wrong = (change * multiplier < 0).double().mean()
            assert float(sweep.wrong_way.value[i, j]) == pytest.approx(float(wrong))
    assert (sweep.kl.value > 0).all()
    assert sweep.effect.labels == {"vector": (PRE0, PRE1), "multiplier": ("-1", "2")}


def test_kl_on_neutral_prompts_is_that_of_the_next_token(sweep, wrapped, tokens):
    neutral = tokens.roll(2, 1)
    with torch.no_grad():
        p = wrapped.logits(neutral)[:, -1].double().softmax(-1)
        with applied(wrapped, {PRE1: VECTORS[1].add(2.0)}):
            q = wrapped.logits(neutral)[:, -1].double().softmax(-1)
    assert float(sweep.kl.value[1, 1]) == pytest.approx(
        float((p * (p / q).log()).sum(-1).mean()), rel=1e-6
    )


def test_logit_guidance_adds_the_same_to_every_prompt(sweep, wrapped, tokens):
    contrast = logit_contrast(wrapped, Prompts(tokens), Prompts(tokens.flip(1)))
    expected = [m * float(contrast[5] - contrast[9]) for m in MULTIPLIERS]
    assert sweep.guidance_effect.value.tolist() == pytest.approx(expected)
    assert (sweep.guidance_effect.high - sweep.guidance_effect.low).abs().max() < 1e-9
    assert (sweep.guidance_kl.value > 0).all()


def test_prompts_of_one_unit_count_once(wrapped, tokens):
    """Each prompt run twice: by units intervals are those of single prompts."""
    neutral, guidance = (
        Prompts(tokens.roll(2, 1)),
        torch.randn(wrapped.cfg.d_vocab, generator=torch.Generator().manual_seed(0)),
    )

    def metric(logits):
        """Without a constant part, so that guidance moves prompts by different amounts."""
        return logits[:, -1, 5].double() ** 2

    def swept(prompts, **options):
        grid = VectorGrid(VECTORS, MULTIPLIERS)
        return steering_sweep(wrapped, grid, prompts, neutral, metric, guidance=guidance, **options)

    twice, words = tokens.repeat(2, 1), torch.arange(4).repeat(2)
    once, by_rows = swept(Prompts(tokens)), swept(Prompts(twice))
    by_unit = swept(Prompts(twice, unit=words, unit_name="words"), measured="square logits")
    for name in ("effect", "wrong_way", "guidance_effect"):
        single, rows, units = (getattr(sweep, name) for sweep in (once, by_rows, by_unit))
        assert (rows.n, units.n) == (8, 4)
        assert "over words" in units.method
        for end in ("value", "low", "high"):
            # float32 logits of other batch sizes
            ends = getattr(units, end), getattr(single, end)
            assert torch.allclose(*ends, rtol=1e-4, atol=1e-4), (name, end)
    assert not torch.allclose(by_rows.effect.low, once.effect.low, rtol=1e-4, atol=1e-4)
    assert torch.equal(by_unit.kl.low, once.kl.low)
    assert by_unit.effect.unit == by_unit.guidance_effect.unit == "square logits"


def test_a_unit_for_some_prompts_only_is_refused(tokens, as_a_user):
    with pytest.raises(
        ToolkitError, match="got units for 3 of 4 prompts; give each prompt its own"
    ):
        Prompts(tokens, unit=torch.arange(3))


def test_the_cost_of_guidance_is_to_be_had_at_any_strength(sweep, wrapped, tokens):
    contrast = logit_contrast(wrapped, Prompts(tokens), Prompts(tokens.flip(1)))
    cost = guidance_kl(wrapped, Prompts(tokens.roll(2, 1)), contrast, (*MULTIPLIERS, 1.0))
    # Divergences of order 1 from float32 logits; three strengths may be summed otherwise than two.
    for end in ("value", "low"):
        ours, theirs = getattr(cost, end)[:2], getattr(sweep.guidance_kl, end)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert 0 < cost.value[2] < cost.value[1]
    assert cost.labels == {"multiplier": ("-1", "2", "1")}


def test_the_concept_cancels_in_shuffled_vectors(wrapped, tokens):
    """Pairs that differ by 10 along one axis, and noise of 1: a coin for each would leave it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 21, 32, generator=generator)
    shift = torch.zeros(32)
    shift[0] = 5
    draws = shuffled_vectors(
        Contrast(PRE1, noise[0] + shift, noise[1] - shift), 3.0, draws=50, seed=0
    )
    assert [vector.norm for vector in draws] == pytest.approx([3.0] * 50, rel=1e-5)
    along = torch.stack([vector.direction for vector in draws])[:, 0]
    assert along.abs().max() < 0.6  # a random direction in 32 dimensions: sd 0.18
    rows = [[VECTORS[0], vector] for vector in draws[:3]]
    grid = VectorGrid(VECTORS, [1.0], shuffled=rows)
    swept = steering_sweep(wrapped, grid, Prompts(tokens), Prompts(tokens), METRIC)
    assert swept.effect.control.shape == (3, 2, 1)
    assert swept.effect.control[:, 0, 0].tolist() == pytest.approx(
        [float(swept.effect.value[0, 0])] * 3
    )
    assert swept.effect.control[:, 1].std() > 0


@pytest.mark.parametrize(("positive", "words"), [
    (torch.ones(3, 2), "got 3 positive and 3 negative prompts; 4 or more are needed"),
    (torch.ones(6, 4, 2), r"rows \(4, 2\)"),
    (torch.ones(6, 2), "differ alike"),
])  # fmt: skip
def test_pairs_that_can_not_be_shuffled_are_refused(positive, words):
    with pytest.raises(ToolkitError, match=words):
        shuffled_vectors(Contrast(PRE1, positive, torch.zeros_like(positive)), 1.0, draws=2, seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"multipliers": [0.0, 1.0]}, "none of them 0"),
        ({"vectors": []}, "got 0 vectors"),
        ({"shuffled": [[VECTORS[0]]]}, "one for each vector"),
    ],
)
def test_grids_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ToolkitError, match=words):
        VectorGrid(**({"vectors": VECTORS, "multipliers": [1.0]} | options))


def test_a_vector_of_another_model_is_refused(wrapped, tokens):
    grid = VectorGrid([SteeringVector.of(PRE1, torch.ones(32), fingerprint="f")], [1.0])
    with pytest.raises(ToolkitError, match="train it on the model it is used on"):
        steering_sweep(wrapped, grid, Prompts(tokens), Prompts(tokens), METRIC)


def test_vectors_of_one_hook_point_are_told_apart():
    named = [SteeringVector.of(PRE1, torch.ones(32), method=how) for how in ("pca", "kmeans")]
    labels = VectorGrid(named, [1.0]).axes["labels"]
    assert labels["vector"] == (f"0: {PRE1} pca", f"1: {PRE1} kmeans")


def test_mention_rates_by_hand():
    rates = mention_rates(
        torch.tensor([[1, 2, 3], [3, 3, 3], [2, 9, 9], [1, 1, 2]]),
        {"a": [1], "b": [2, 7], "c": [8]},
    )
    assert rates.value.tolist() == [0.5, 0.75, 0]
    assert rates.labels == {"entity": ("a", "b", "c")}
    with pytest.raises(ToolkitError, match="share tokens"):
        mention_rates(torch.zeros(2, 2, dtype=torch.long), {"a": [1], "b": [1]})


# --- the worked task -----------------------------------------------------------------------------

A, B, MARK_A, MARK_B, NEUTRAL = 3, 4, 5, 6, 7


def sentences(n: int, mark: int, seed: int) -> torch.Tensor:
    """[mark, filler, filler, name, filler, filler, name]: the name as the mark says."""
    rows = torch.randint(8, 20, (n, 7), generator=torch.Generator().manual_seed(seed))
    rows[:, 0] = mark
    if mark != NEUTRAL:
        rows[:, [3, 6]] = A if mark == MARK_A else B
    return rows


@pytest.fixture(scope="module")
def speaker(hf_folders):
    """A two-layer model trained on such sentences."""
    import transformers as hf

    torch.manual_seed(0)
    config = hf.GPT2Config(
        n_layer=2,
        n_head=4,
        n_embd=32,
        vocab_size=20,
        n_positions=24,
        bos_token_id=2,
        eos_token_id=2,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = hf.GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        batch = torch.cat(
            [sentences(32, mark, 3 * step + i) for i, mark in enumerate((MARK_A, MARK_B, NEUTRAL))]
        )
        loss = model(batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Says which token begins a sequence.
    tokenizer = hf.AutoTokenizer.from_pretrained(hf_folders["gpt2"])
    return load_model(model.eval(), tokenizer=tokenizer)


def test_speak_of_b_never_of_a(speaker):
    """The vector comes from some prompts; others ask for A, or are neutral."""
    cut = 3  # [mark, filler, filler]: the name comes next
    positive, negative = sentences(60, MARK_B, 901)[:, :cut], sentences(60, MARK_A, 902)[:, :cut]
    vector = train_steering_vector(speaker, positive, negative, PRE1)
    asked = sentences(40, MARK_A, 903)[:, :cut]

    def rates(edits=None):
        return mention_rates(
            generate(speaker, asked, edits, max_new_tokens=4), {"A": [A], "B": [B]}
        )

    before, after = rates(), rates({PRE1: vector.add(2.0)})
    assert before.value[0] > 0.95
    assert before.value[1] < 0.05
    assert after.value[0] < 0.05
    assert after.value[1] > 0.95
    metric = logit_difference(torch.full((40, 1), B), torch.full((40, 1), A))
    neutral = Prompts(sentences(40, NEUTRAL, 904)[:, :cut])
    shuffled = shuffled_vectors(
        read_contrast(speaker, positive, negative, PRE1), vector.norm, draws=19, seed=0
    )
    grid = VectorGrid([vector], [1.0, 2.0], shuffled=[[drawn] for drawn in shuffled])
    sweep = steering_sweep(speaker, grid, Prompts(asked), neutral, metric)
    # With two answers and little else to tell prompts apart, a shuffled direction of full norm
    # often takes the prompt out of A's reach, which is half of the way to B: no draw does as much
    # as the vector, and their mean stays nearer to half of it than to all.
    assert (sweep.effect.value > sweep.effect.control.amax(0)).all()
    assert (0.75 * sweep.effect.low > sweep.effect.control.mean(0)).all()
    assert sweep.wrong_way.value.tolist() == [[0, 0]]
