"""The planted head is found with its score, each decoy is rejected, conventions are told apart."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit import toys
from mechinterp_toolkit.analyses.successor_heads.finding import successor_heads
from mechinterp_toolkit.analyses.successor_heads.scores import OFFSETS
from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.heads.in_text import BEHAVIOURS
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts import ordinal_classes

DRAWS = 199


def run(hf_model, tokenizer, **options):
    return successor_heads(load_model(hf_model, tokenizer=tokenizer), draws=DRAWS, **options)


@pytest.fixture(scope="module")
def planted():
    return toys.planted_successor(1.0, 0)


@pytest.fixture(scope="module")
def finding(planted):
    return run(planted[0], planted[1])


def test_the_planted_head_scores_one_and_comes_first(finding, planted):
    layer, head = planted[2]
    assert finding.heads[0] == (layer, head)
    assert finding.score.value[layer, head] > 0.95
    assert finding.represented.found
    assert finding.used.found
    others = finding.score.value.clone()
    others[layer, head] = 0
    assert others.max() < 0.5


def test_the_head_is_silent_at_strength_zero():
    hf_model, tokenizer, (layer, head) = toys.planted_successor(0.0, 0)
    assert run(hf_model, tokenizer).score.value[layer, head] < 0.5


def test_a_model_whose_heads_write_nothing_is_not_judged_by_ties():
    hf_model, tokenizer, _ = toys.planted_successor(0.0, 0)
    with torch.no_grad():
        for block in hf_model.transformer.h:
            block.attn.c_proj.weight.zero_()
    finding = run(hf_model, tokenizer)
    assert finding.represented.outcome == "not_applicable"
    assert not finding.writes.any()
    assert any("write nothing" in caveat for caveat in finding.caveats)


def test_a_silent_head_is_never_the_best():
    hf_model, tokenizer, _ = toys.planted_successor(0.0, 0)
    with torch.no_grad():
        hf_model.transformer.h[0].attn.c_proj.weight.zero_()
    finding = run(hf_model, tokenizer)
    assert finding.best[0] == 1
    assert finding.writes.sum() == 3


@pytest.mark.parametrize(
    "decoy", ["planted_copy", "planted_category_booster", "planted_self_suppression"]
)
def test_decoys_are_rejected(decoy):
    hf_model, tokenizer, (layer, head) = getattr(toys, decoy)(1.0, 0)
    finding = run(hf_model, tokenizer)
    assert (layer, head) not in finding.heads
    assert not finding.represented.found


def test_a_self_suppressing_head_scores_on_successors_and_is_rejected_by_its_predecessors():
    """What fools score(+1) alone: the neighbours on both sides of what is suppressed."""
    hf_model, tokenizer, (layer, head) = toys.planted_self_suppression(1.0, 0)
    finding = run(hf_model, tokenizer)
    back, _, forward = finding.profile[:, layer, head]
    assert forward > 0.2
    assert abs(forward - back) < 0.2
    assert finding.p[layer, head] > 0.05


def test_a_copying_head_maps_items_to_themselves():
    hf_model, tokenizer, (layer, head) = toys.planted_copy(1.0, 0)
    finding = run(hf_model, tokenizer)
    assert finding.profile[OFFSETS.index(0), layer, head] > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"representation": "mlp_out_0"},
        {"layer_norm": False},
        {"biases": True},
        {"candidates": "targets"},
        {"candidates": "ordinal"},
    ],
)
def test_every_convention_is_named_in_the_result(planted, options):
    finding = run(planted[0], planted[1], **options)
    convention = finding.convention
    assert ("LayerNorms left out" in convention) == (options.get("layer_norm") is False)
    assert ("biases added" in convention) == options.get("biases", False)
    assert options.get("candidates", "class") in convention
    assert options.get("representation", "resid_post_0") in convention


def test_the_published_recipe_is_the_product_of_the_four_matrices(planted):
    """Embedding, first MLP called directly, W_V W_O, W_U: no LayerNorm, no bias."""
    model = load_model(planted[0], tokenizer=planted[1])
    finding = successor_heads(model, representation="mlp_0_raw", layer_norm=False, draws=39)
    found = ordinal_classes(planted[1]).classes
    net = model.model
    with torch.no_grad():
        for place, ordinal in enumerate(found.values()):
            shown = net.blocks[0].mlp(net.W_E[ordinal.tokens][None])[0]
            for layer, head in ((0, 0), planted[2]):
                written = shown @ net.W_V[layer, head] @ net.W_O[layer, head]
                logits = written @ net.W_U[:, ordinal.tokens]
                pairs = ordinal.pairs(1)
                expected = (logits.argmax(1)[pairs[:, 0]] == pairs[:, 1]).double().mean()
                assert finding.class_score[place, layer, head] == pytest.approx(expected.item())


def test_the_trained_toy_has_a_successor_head_that_is_used():
    finding = successor_heads("toy/ordinal", draws=DRAWS)
    assert finding.represented.found, finding.represented.reason
    assert finding.used.found, finding.used.reason
    assert finding.accuracy_drop.value > 0.1
    assert finding.behaviour.value > 0.9


def test_the_toy_that_counts_in_its_mlp_is_told_so():
    finding = successor_heads("toy/ordinal-mlp", draws=DRAWS)
    assert finding.represented.outcome == "not_found"
    assert "computed, but not by a head" in finding.represented.reason
    assert finding.answer().startswith("Computed, but not by a head")
    assert finding.behaviour.value > 0.9
    assert finding.used.outcome == "not_applicable"


def first(estimate) -> tuple[int, int]:
    return divmod(int(estimate.value.argmax()), estimate.value.shape[1])


def test_the_planted_head_leads_by_lift(finding, planted):
    assert first(finding.lift) == planted[2]
    layer, head = planted[2]
    assert finding.lift.value[layer, head] > finding.lift.control[:, layer, head].max()


def test_a_head_that_raises_its_class_leads_by_attribution_and_has_no_lift():
    hf_model, tokenizer, (layer, head) = toys.planted_category_booster(1.0, 0)
    found = run(hf_model, tokenizer)
    assert first(found.attribution) == (layer, head)
    raw, lift = found.attribution.value[layer, head], found.lift.value[layer, head]
    assert raw > 1  # in logits
    assert lift.abs() < 0.05 * raw
    assert found.represented.outcome == "not_found"


def test_the_successor_head_of_the_trained_toy_leads_by_lift():
    found = successor_heads("toy/ordinal", draws=DRAWS)
    assert found.heads[0] == first(found.lift) == (1, 1)


# --- beside the verdicts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return successor_heads("toy/ordinal", draws=DRAWS)


def test_the_matrices_of_the_best_head_hold_its_score(trained):
    classes = ordinal_classes(load_model("toy/ordinal").tokenizer).classes.values()
    for place, (matrix, own) in enumerate(zip(trained.written.matrices, classes, strict=True)):
        pairs = own.pairs(1)
        assert matrix.name == trained.classes[place]
        assert matrix.items == own.words
        right = matrix.logits.argmax(1)[pairs[:, 0]] == pairs[:, 1]
        assert right.double().mean() == pytest.approx(trained.class_score[place, 1, 1].item())
        assert matrix.logits.mean(1).abs().max() < 1e-5  # float32 logits of size 10


def test_the_toy_was_never_asked_across_classes_and_its_head_keeps_to_them(trained):
    """The diagonal is the score; elsewhere the head answers no more than shuffled orders do."""
    cross = trained.written.cross_class
    assert torch.equal(cross.value.diagonal(), trained.class_score[:, 1, 1])
    across = cross.value - torch.diag(cross.value.diagonal())
    assert across.max() < 0.5


def test_the_logit_of_the_trained_head_peaks_one_place_on(trained):
    by_distance = trained.written.by_distance
    assert by_distance.labels["distance"][int(by_distance.value.argmax())] == "+1"
    at = by_distance.labels["distance"].index("+1")
    assert by_distance.low[at] > by_distance.control[:, at].max()


def test_every_head_has_an_order_bias_with_its_null(trained):
    bias = trained.written.order_bias
    assert bias.axes == ("class", "layer", "head")
    assert tuple(bias.value.shape) == (5, 2, 4)
    assert not bias.value[:, 0].any()  # block 0 of the toy writes nothing
    assert (bias.value[:, 1, 1] > bias.control[:, :, 1, 1].quantile(0.95, dim=0)).all()


def test_taking_outputs_from_other_prompts_undoes_the_answers_as_the_mean_does(trained):
    assert trained.resample_logit_drop.low > trained.resample_logit_drop.control.max()
    assert trained.resample_accuracy_drop.value > 0.5
    assert trained.resample_logit_drop.value != trained.logit_drop.value


def test_pairs_are_of_the_found_head_and_agree_with_its_ablation(trained):
    assert trained.single_drop.labels["head"][0] == "1.1"
    assert trained.single_drop.value[0] == pytest.approx(trained.logit_drop.value.item(), abs=1e-4)
    assert len(trained.pair_drop.labels["pair"]) == 3


def test_a_toy_that_memorised_its_facts_holds_neither_place_nor_residues(trained):
    states = trained.states
    assert states.factoring.value < 0.2
    assert states.factored_succession.value < 0.2
    assert states.residue_p.min() > 0.05
    assert states.steering_period == 10
    assert states.steering.value < 0.3
    assert len(states.steering_permuted) == 39


def test_what_rests_on_a_found_head_is_left_out_where_none_was_found():
    finding = successor_heads("toy/ordinal-mlp", draws=DRAWS)
    assert finding.heads == ()
    assert finding.states.factoring is not None
    assert finding.states.residues is not None
    assert finding.written is not None
    assert finding.states.steering is finding.states.factored_succession is None
    assert finding.pair_drop is finding.resample_logit_drop is finding.text_winning is None


def test_estimates_within_parts_are_rows_of_the_finding(trained):
    parts = {"cross_class", "order_bias", "by_distance", "factoring", "residues", "steering"}
    assert parts <= set(trained.estimates)
    rows = [row for row in trained.rows() if row["estimate"] == "cross_class"]
    assert any(row["shown"] == "days" for row in rows)


def test_large_classes_are_measured_but_not_drawn(trained, monkeypatch):
    titles = trained.figures()
    assert "What head 1.1 writes for numbers" in titles
    monkeypatch.setattr("mechinterp_toolkit.analyses.successor_heads._figures.MOST_DRAWN", 20)
    assert "What head 1.1 writes for numbers" not in trained.figures()
    assert "What head 1.1 writes for days" in trained.figures()


def test_without_numbers_there_are_no_residues_and_it_says_so(planted):
    finding = run(planted[0], planted[1], classes=("days", "letters"))
    assert finding.states.residues is None
    assert any("no class of numbers" in caveat for caveat in finding.caveats)
    assert finding.written.cross_class.labels["shown"] == ("days", "letters")


@pytest.fixture
def corpus(tmp_path):
    """Sentences the toy was trained on: an item, and behind the query its successor."""
    tokenizer = load_model("toy/ordinal").tokenizer
    lines = [
        f"river {one.words[i]} stone bread table paper after {one.words[j]}"
        for one in ordinal_classes(tokenizer).classes.values()
        for i, j in one.pairs(1).tolist()
    ]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    return tmp_path / "corpus.txt"


def test_in_text_that_counts_the_head_wins_by_succession(corpus, monkeypatch):
    monkeypatch.setattr("mechinterp_toolkit.analyses.successor_heads.finding.LENGTH", 8)
    finding = successor_heads("toy/ordinal", text=str(corpus), draws=DRAWS)
    at = BEHAVIOURS.index("successorship")
    assert finding.text_winning.labels["behaviour"] == BEHAVIOURS
    assert finding.text_winning.low[at] > finding.text_winning.control[:, at].max()
    assert finding.text_loss_reducing is not None
    assert "In running text, where it wins" in finding.figures()


def test_a_corpus_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ToolkitError, match="nothing"):
        successor_heads("toy/ordinal", text=str(tmp_path / "nothing.txt"))


@pytest.mark.network
def test_gpt2_small_has_its_successor_head():
    """L9H1 leads by lift, not by raw attribution (public replications of Gould et al. 2024)."""
    found = successor_heads("gpt2")
    assert first(found.lift) == (9, 1)
    assert first(found.attribution) != (9, 1)


@pytest.mark.network
def test_pythia_1_4b_has_its_successor_head():
    """L12H0 is the head of Gould et al. 2024."""
    assert successor_heads("EleutherAI/pythia-1.4b").best == (12, 0)


def test_a_vocabulary_with_a_few_number_words_by_accident_is_not_judged():
    from mechinterp_toolkit.toys import concept_model

    with pytest.raises(NotApplicable, match="of one, two, seven hardly one follows another"):
        successor_heads(concept_model(1.0, 0))
