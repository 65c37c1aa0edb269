"""Circular features: planted circles, the trained toy, nulls, and the sentences a reader gets."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.analyses.circular_features.asked import SUMS, TEMPLATES, _prompts_of, sums
from mechinterp_toolkit.analyses.circular_features.finding import (
    _planted_circles,
    _random_model,
    _scrambled_model,
    _thinned,
    circular_features,
)
from mechinterp_toolkit.analyses.circular_features.result import EDITS, CircularFeatures
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.nulls import permutations
from mechinterp_toolkit.prompts import ORDINAL_CLASSES, build_prompts, ordinal_classes
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.storage import load_result, save_result
from mechinterp_toolkit.toys.gpt2 import random_gpt2, word_level_tokenizer

QUICK = {"draws": 499}
SUM = {"task": "b from a", "classes": ("days",), **QUICK}
WIDTH = 96


def sums_model(steps: int, seed: int = 0) -> HookedModel:
    """A transformer trained on the 49 prompts "b days from a", its days and numbers kept around
    circles."""
    numbers = [word.capitalize() for word in ORDINAL_CLASSES["number_words"].words[:7]]
    text = " ".join([SUMS["days"][0], "day days", *numbers, *ORDINAL_CLASSES["days"].words])
    pieces = re.findall(r"\w+|[^\w\s]+", text.replace("{}", " "))
    tokenizer = word_level_tokenizer(("<pad>", "<bos>", "<unk>", *dict.fromkeys(pieces)))
    days = ordinal_classes(tokenizer, ("days",)).classes["days"]
    made = random_gpt2(len(tokenizer), d_model=WIDTH, n_layers=2, n_heads=3, seed=seed)
    generator, angle = torch.Generator().manual_seed(seed), 2 * math.pi * torch.arange(7) / 7
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    with torch.no_grad():
        for (
            name,
            weight,
        ) in made.named_parameters():  # larger than usual: these few steps learn nothing otherwise
            weight.mul_(10 if "wte" in name or "wpe" in name else 5 if weight.dim() == 2 else 1)
        embedding = made.transformer.wte.weight
        for ids in (days.tokens, torch.tensor(tokenizer.convert_tokens_to_ids(numbers))):
            plane = torch.linalg.qr(torch.randn(WIDTH, 2, generator=generator)).Q.T
            embedding[ids] = circle @ plane * embedding.norm(dim=1).mean()
    embedding.requires_grad_(False)
    asked = _prompts_of(load_model(made, tokenizer=tokenizer), days, sums(days), range(1, 8))
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        logits = made(asked.tokens).logits[torch.arange(len(asked)), asked.position]
        loss = torch.nn.functional.cross_entropy(logits, asked.answer)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.05:
            break
    return load_model(made.eval(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def on_sums() -> CircularFeatures:
    return circular_features(sums_model(300), **SUM)


@pytest.fixture(scope="module")
def on_untrained_sums() -> CircularFeatures:
    return circular_features(sums_model(0), **SUM)


def gained(finding: CircularFeatures, group: str) -> Estimate:
    """What a group gains behind the last block."""
    gains = finding.circles[0].regression
    return gains.at(gains.labels["feature group"].index(group), -1)


@pytest.fixture(scope="module")
def on_toy() -> CircularFeatures:
    return circular_features("toy/ordinal", **QUICK)


@pytest.fixture(scope="module")
def on_random() -> CircularFeatures:
    return circular_features(_random_model(0), **QUICK)


@pytest.fixture(scope="module")
def on_planted() -> CircularFeatures:
    return circular_features(_planted_circles(1.0, 0).model, **QUICK)


def named(circle) -> dict[str, float]:
    return dict(zip(EDITS, circle.edits.tolist(), strict=True))


def test_planted_circles_are_rings_and_used(on_planted):
    assert (
        on_planted.represented.outcome
        == on_planted.ring.outcome
        == on_planted.used.outcome
        == "found"
    )
    assert set(on_planted.locations) == {"days", "months"}
    days = next(one for one in on_planted.circles if one.name == "days")
    assert days.hook_point == "blocks.0.hook_resid_pre"
    # The days of this model are their circle and nothing else, but for the position.
    assert named(days)["set the circle"] > 0.8
    assert named(days)["keep only the circle"] > 0.8
    assert named(days)["remove the circle"] < 0.3
    assert named(days)["set the circle"] == pytest.approx(
        named(days)["set the whole stream"], abs=0.05
    )


def test_the_trained_toy_keeps_days_and_months_around_circles_and_uses_them_in_part(on_toy):
    assert on_toy.represented.outcome == on_toy.ring.outcome == on_toy.used.outcome == "found"
    assert {one.name: one.accuracy for one in on_toy.circles} == {"days": 1.0, "months": 1.0}
    for one in on_toy.circles:
        assert (
            0.1 < one.moved.value < 0.7
        )  # measured .42 and .21: the rest of the answer comes from elsewhere
        assert one.p_used <= 0.01
        assert named(one)["set the whole stream"] == 1.0


def test_the_circle_holds_in_templates_it_was_not_fitted_to(on_toy):
    for one in on_toy.circles:
        assert one.transfer.value > 0.9
        assert one.transfer.value > one.transfer.control.max()
    assert (
        "mean cosine of the angles' error is 0.999 [0.999, 1], 1 being no error" in on_toy.answer()
    )
    assert on_toy.circles[0].transfer.control_text() in on_toy.answer()


def test_that_it_holds_there_is_no_evidence_of_a_circle_and_said_not_to_be(on_random, on_toy):
    assert not on_random.found
    for one in on_random.circles:
        assert (
            one.transfer.value > one.transfer.control.max()
        )  # the items' tokens are the same in every template
    for finding in (on_random, on_toy):
        assert "for which the token they share is enough, circle or none" in finding.answer()


def test_too_few_draws_decide_nothing_and_say_how_many_it_takes():
    found = circular_features("toy/ordinal", draws=10)
    assert found.represented.outcome == found.ring.outcome == "undecided"
    assert "above the level 0.05 / 2 tests" in found.represented.reason
    assert "at least 39 draws are needed" in found.represented.reason
    assert "No class is held" not in found.answer()
    assert "would be found in" not in found.answer()
    alone = circular_features("toy/ordinal", draws=19, classes=("months",))
    assert alone.represented.outcome == "found"
    assert (
        replace(alone, draws=18, circles=(replace(alone.circles[0], p=0.06),)).represented.outcome
        == "undecided"
    )


def test_an_answer_that_does_not_need_the_circle_it_follows_is_told_so(on_toy, on_planted):
    said = [line for line in on_toy.caveats if "do not need it" in line]
    assert [line.split(":")[0] for line in said] == ["months", "days"]
    assert "removed 1.00 of the old answers are right" in said[0]
    assert "makes the new answer right in 0.04 (chance 0.08)" in said[0]
    assert not any(
        "do not need it" in line for line in on_planted.caveats
    )  # removal leaves less than .3
    unmoved = tuple(
        replace(one, moved=replace(one.moved, value=one.moved.value - 9)) for one in on_toy.circles
    )
    assert not any("do not need it" in line for line in replace(on_toy, circles=unmoved).caveats)


def test_closure_that_is_none_is_said_in_words(on_random):
    """Of the days, no resample has neighbours nearer than days half a week apart; of the months,
    some have."""
    (days,) = (one for one in on_random.circles if one.name == "days")
    assert (days.closure_low, days.closure_high) == (-5, -5)
    assert "no closure to speak of" in on_random.answer()
    assert "-5" not in on_random.answer()


def test_few_items_are_named_where_they_leave_closure_undecided(on_toy, on_random):
    note = "days: with so few items, closure is often undecided."
    unsure = tuple(replace(one, closure_low=0.3, closure_high=0.8) for one in on_toy.circles)
    assert note in replace(on_toy, circles=unsure).caveats
    assert note not in on_toy.caveats  # decided
    assert note not in on_random.caveats  # no order, so closure is not asked


def test_the_circle_reaches_the_position_that_answers_through_the_planted_head(on_planted):
    """Before any block that position shows the query alone, and nothing of the item."""
    explained, days = on_planted.explained, on_planted.explained.labels["class"].index("days")
    assert explained.labels["hook point"][-1] == "blocks.1.hook_resid_post"
    first, last = (explained.value[days, at, 0] for at in (0, -1))
    assert last > 0.7  # the rest is what random blocks write beside the planted head
    assert last > explained.control[:, days, -1, 0].quantile(0.95)
    assert first < 0.6


def test_the_trained_toy_answers_without_a_circle_at_the_position_that_answers(on_toy):
    shares, null = on_toy.explained.value[:, -1, 0], on_toy.explained.control[:, :, -1, 0]
    assert (shares < null.quantile(0.95, 0)).all()  # one answer per item, spread over all harmonics


def test_a_model_that_knows_the_order_but_keeps_no_circle_is_told_so():
    """The same head computes every successor; only the embeddings lie anywhere."""
    found = circular_features(_planted_circles(0.0, 1).model, **QUICK)
    assert {one.name: one.accuracy for one in found.circles} == {"days": 1.0, "months": 1.0}
    assert found.represented.outcome == "not_found"
    assert "would be found in" in found.answer()


def test_another_order_of_the_items_is_no_order():
    assert circular_features(_scrambled_model(0), **QUICK).represented.outcome == "not_found"


def test_only_layers_from_which_the_item_reaches_the_answer_are_looked_at(on_toy):
    assert on_toy.order.labels["hook point"] == (
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_pre",
    )


def test_verdicts_read_again_from_other_numbers_change(on_toy):
    open_ = tuple(replace(one, closure_low=0.1, closure_high=0.3) for one in on_toy.circles)
    assert replace(on_toy, circles=open_).ring.outcome == "not_found"
    unsure = tuple(replace(one, closure_low=0.3, closure_high=0.8) for one in on_toy.circles)
    assert replace(on_toy, circles=unsure).ring.outcome == "undecided"
    assert "whether it closes is undecided" in replace(on_toy, circles=unsure).represented.reason
    weak = tuple(replace(one, p=0.2) for one in on_toy.circles)
    assert replace(on_toy, circles=weak).represented.outcome == "not_found"
    assert replace(on_toy, circles=weak).used.outcome == "not_applicable"


@pytest.fixture(params=["gpt2", "pythia"])
def real_tokenizer(shared_data, request):
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    folder = shared_data / "tokenizers" / request.param
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return GPT2TokenizerFast.from_pretrained(folder)


def test_every_sentence_and_answer_fits_real_tokenizers(real_tokenizer):
    tokenizer = real_tokenizer
    classes = ordinal_classes(tokenizer, ("days", "months")).classes
    for name, sentences in TEMPLATES.items():
        words = classes[name].words
        assert len(words) == {"days": 7, "months": 12}[name]
        prompts = build_prompts(
            tokenizer,
            [sentence.format(words[2]) for sentence in sentences],
            [f" {words[3]}"] * len(sentences),
            prepend_bos=False,
            items=[2] * len(sentences),
            classes=[name] * len(sentences),
            item_words=[words[2]] * len(sentences),
        )
        at = prompts.tokens[torch.arange(len(sentences)), prompts.item_position]
        assert (at == classes[name].tokens[2]).all()


def test_every_sum_fits_real_tokenizers_however_many_tokens_its_number_has(real_tokenizer):
    for name, n in (("days", 7), ("months", 12)):
        ordinal = ordinal_classes(real_tokenizer, (name,)).classes[name]
        sentences = sums(ordinal)
        assert len(sentences) == n
        prompts = build_prompts(
            real_tokenizer,
            [sentence.format(ordinal.words[4]) for sentence in sentences],
            [f" {ordinal.words[(4 + b) % n]}" for b in range(1, n + 1)],
            prepend_bos=False,
            item_words=[ordinal.words[4]] * n,
        )
        assert (prompts.tokens[torch.arange(n), prompts.item_position] == ordinal.tokens[4]).all()
        assert prompts.answer.tolist() == ordinal.tokens[(4 + torch.arange(1, n + 1)) % n].tolist()


def test_sums_are_worded_as_published():
    days, months = (replace(sums_days(), name=name) for name in ("days", "months"))
    assert sums(days)[0] == "Let's do some days of the week math. One day from {} is"
    assert sums(days)[1] == "Let's do some days of the week math. Two days from {} is"
    assert sums(months)[6] == "Let's do some calendar math. Seven months from {} is"
    with pytest.raises(NotApplicable, match="no sentence asks for b from a of day_prefixes"):
        sums(replace(days, name="day_prefixes"))


def sums_days():
    return ordinal_classes(
        word_level_tokenizer(("<pad>", "<bos>", "<unk>", *ORDINAL_CLASSES["days"].words)), "days"
    ).classes["days"]


def test_a_model_that_adds_is_moved_to_the_sum_with_the_other_day(on_sums):
    (days,) = on_sums.circles
    assert days.accuracy > 0.95
    assert len(days.accuracies) == 7
    assert days.accuracies.mean() == pytest.approx(days.accuracy)
    assert on_sums.represented.outcome == on_sums.ring.outcome == on_sums.used.outcome == "found"
    assert days.moved.value > 0.8
    assert days.p_used <= 0.01
    assert named(days)["set the circle"] > 0.9
    assert named(days)["keep only the circle"] > 0.9
    assert named(days)["remove the circle"] < 0.4


def test_the_accuracy_is_said_first_with_chance_and_for_each_b(on_sums, on_untrained_sums):
    for finding in (on_sums, on_untrained_sums):
        (days,) = finding.circles
        said = (
            f"Of prompts that ask for b from a the model answers {days.accuracy:.2f} of days"
            " (chance 0.14; for b = 1, 2, ...: "
        )
        assert finding.answer().startswith(said)
        assert finding.causal_check().startswith(said)
    assert on_untrained_sums.circles[0].accuracy < 2 / 7
    assert any("hardly better than chance" in line for line in on_untrained_sums.caveats)
    assert not any("hardly better than chance" in line for line in on_sums.caveats)


def test_the_last_token_holds_the_sum_as_a_circle_once_the_model_adds(on_sums, on_untrained_sums):
    gains = on_sums.circles[0].regression
    assert gains.axes == ("feature group", "hook point")
    assert gains.labels["hook point"] == ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    circle = gained(on_sums, "circle in c")
    assert circle.value > 0.7
    assert circle.value > 3 * circle.control.max()
    assert gained(on_sums, "parity of c").value < 0.05
    # untrained, it holds a and b side by side, and nothing that needs both
    assert gained(on_untrained_sums, "one-hot a and b").value > 0.9
    assert gained(on_untrained_sums, "circle in c").value < 0.1
    assert "circle in c" in on_sums.answer()


def test_results_of_sums_come_back_and_draw_and_older_ones_still_load(on_sums, on_toy, tmp_path):
    back = load_result(save_result(on_sums, tmp_path / "sums"))
    assert back.task == "b from a"
    assert torch.equal(back.circles[0].regression.value, on_sums.circles[0].regression.value)
    assert back.answer() == on_sums.answer()
    assert {"regression days", "moved days"} <= set(back.estimates)
    assert back.figures()["What the last token holds of days"].to_plotly_json()["data"]
    path = save_result(on_toy, tmp_path / "toy") / "result.json"
    document = json.loads(path.read_text())
    del document["fields"]["task"], document["fields"]["draws"]
    for circle in document["fields"]["circles"]:
        del (
            circle["fields"]["accuracies"],
            circle["fields"]["regression"],
            circle["fields"]["arrangements"],
        )
    path.write_text(json.dumps(document))
    assert load_result(path.parent).answer() == on_toy.answer()


def test_models_that_cannot_read_the_sums_are_refused_with_the_words_they_miss():
    with pytest.raises(
        NotApplicable,
        match=r"cannot ask toy/ordinal for b from a: .* unknown to the tokenizer: 'Let'",
    ):
        circular_features("toy/ordinal", task="b from a", **QUICK)


def test_draws_of_an_enumeration_are_kept_at_even_distances():
    """The first draws of an enumeration leave the first items in place."""
    orders = permutations(7, draws=5040, seed=0).index
    zero = torch.tensor(0.0, dtype=torch.float64)
    one = Estimate(
        zero,
        zero,
        zero,
        n=7,
        unit="",
        method="",
        control=orders[:, 0].double(),
        control_name="order",
    )
    assert _thinned(one, 999).control.mean() == pytest.approx(3, abs=0.05)
    assert one.control[:720].max() == 0


def test_models_without_the_words_are_refused():
    with pytest.raises(
        NotApplicable, match="circular_features cannot judge toy/s5: it has no residual stream"
    ):
        circular_features(load_model("toy/s5"))
    with pytest.raises(NotApplicable, match="toy/z113-transformer: it comes without a tokenizer"):
        circular_features(load_model("toy/z113-transformer"))


@pytest.mark.network
def test_gpt2_small_keeps_the_days_in_order():
    """GPT-2 small answers 7 of 7 next days, and its days lie around a circle in layers 5 to 8
    (Engels et al. 2025)."""
    found = circular_features("gpt2", classes=("days",))
    assert found.represented.outcome == "found"
