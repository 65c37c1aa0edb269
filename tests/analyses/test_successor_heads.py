"""successor_heads: the planted head is found with its score, each decoy is rejected, conventions are told apart."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit import toys
from mechinterp_toolkit.analyses.successor_heads import (
    OFFSETS,
    _hits,
    _macro,
    _shuffled,
    successor_heads,
)
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts import OrdinalClass, ordinal_classes

DRAWS = 199


def days(n: int = 7, cyclic: bool = True) -> OrdinalClass:
    words = tuple("abcdefghijklmnopqrstuvwxyz"[:n])
    return OrdinalClass(
        name="days", words=words, tokens=torch.arange(n), index=torch.arange(n), order=n, cyclic=cyclic,
        variant="as is", dropped=(),
    )  # fmt: skip


def run(hf_model, tokenizer, **options):
    return successor_heads(load_model(hf_model, tokenizer=tokenizer), draws=DRAWS, **options)


@pytest.fixture(scope="module")
def planted():
    return toys.planted_successor(1.0, 0)


@pytest.fixture(scope="module")
def finding(planted):
    return run(planted[0], planted[1])


def test_hits_of_a_head_worked_by_hand():
    """One head sends 0 to 1, 1 to 2, 2 to 2 and 3 to 0: three of four successors in a cycle of four."""
    best = torch.tensor([[[1, 2, 2, 0]]])
    ring = days(4)
    assert _hits(best, ring.pairs(1)).flatten().tolist() == [1, 1, 0, 1]
    assert _hits(best, ring.pairs(-1)).flatten().tolist() == [0, 0, 0, 0]
    assert _hits(best, ring.pairs(0)).flatten().tolist() == [0, 0, 1, 0]
    line = days(4, cyclic=False)
    assert _hits(best, line.pairs(1)).flatten().tolist() == [1, 1, 0]


def test_a_tie_is_no_hit():
    assert _hits(torch.full((1, 1, 4), -1), days(4).pairs(1)).sum() == 0


def test_shuffling_with_the_identity_is_the_score_itself():
    best = torch.randint(0, 7, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    pairs = days().pairs(1)
    null = _shuffled(best, pairs, torch.stack([torch.arange(7), torch.arange(7).flip(0)]))
    assert torch.equal(null[0], _hits(best, pairs).mean(0))
    assert torch.equal(null[1], _hits(best, days().pairs(-1)).mean(0))  # a cycle read backwards


def test_the_macro_average_counts_classes_alike():
    """A class of 2 all right and one of 8 all wrong average to one half, not to one fifth."""
    hits = {"small": torch.ones(2, 1, 1), "large": torch.zeros(8, 1, 1)}
    estimate = _macro({k: v.double() for k, v in hits.items()}, torch.zeros(39, 1, 1), 0)
    assert estimate.value.item() == pytest.approx(0.5)
    assert estimate.n == 10


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


@pytest.mark.parametrize("decoy", ["planted_copy", "planted_category_booster", "planted_self_suppression"])
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
    said = finding.convention
    assert ("LayerNorms left out" in said) == (options.get("layer_norm") is False)
    assert ("biases added" in said) == options.get("biases", False)
    assert options.get("candidates", "class") in said
    assert options.get("representation", "resid_post_0") in said


def test_the_published_recipe_is_the_product_of_the_four_matrices(planted):
    """Embedding, first MLP called directly, W_V W_O, W_U: no LayerNorm, no bias; computed here the long way."""
    model = load_model(planted[0], tokenizer=planted[1])
    finding = successor_heads(model, representation="mlp_0_raw", layer_norm=False, draws=39)
    found = ordinal_classes(planted[1]).classes
    net = model.model
    with torch.no_grad():
        for place, ordinal in enumerate(found.values()):
            shown = net.blocks[0].mlp(net.W_E[ordinal.tokens][None])[0]
            for layer, head in ((0, 0), planted[2]):
                logits = shown @ net.W_V[layer, head] @ net.W_O[layer, head] @ net.W_U[:, ordinal.tokens]
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


def test_attribution_adds_up_to_the_logit_without_layernorm_worked_from_the_model():
    """Heads, MLPs, embedding and biases are all of a logit; here the heads' part is compared with removing them."""
    from mechinterp_toolkit.direct_attribution import head_attribution
    from mechinterp_toolkit.record import activations
    from mechinterp_toolkit.toys import successor_queries

    model = load_model("toy/ordinal")
    classes = ordinal_classes(model.tokenizer).classes
    prompts = successor_queries(model.tokenizer, classes)
    last = torch.arange(len(prompts)), prompts.position
    written = torch.stack(
        [
            activations(model, prompts.tokens, (f"blocks.{i}.hook_attn_out",))[f"blocks.{i}.hook_attn_out"][last]
            for i in (0, 1)
        ],
        1,
    ).double()  # batch layer d_model, b_O included
    net = model.model
    written = written - torch.stack([net.b_O[i].detach().double() for i in (0, 1)])
    scale = activations(model, prompts.tokens, ("ln_final.hook_scale",))["ln_final.hook_scale"][last].double()
    centred = (written - written.mean(-1, keepdim=True)) / scale[:, None] * net.ln_final.w.detach().double()
    towards = (net.W_U - net.W_U.mean(1, keepdim=True)).detach().double()[:, prompts.answer].T
    expected = torch.einsum("bld,bd->bl", centred, towards)
    assert torch.allclose(head_attribution(model, prompts).sum(-1), expected, atol=1e-4)  # float32 activations


@pytest.mark.network
def test_gpt2_small_has_its_successor_head():
    """L9H1 leads by lift, and is far behind by raw attribution (public replications of Gould et al. 2024)."""
    found = successor_heads("gpt2")
    assert first(found.lift) == (9, 1)
    assert first(found.attribution) != (9, 1)


@pytest.mark.network
def test_pythia_1_4b_has_its_successor_head():
    """L12H0 is the head of Gould et al. 2024."""
    assert successor_heads("EleutherAI/pythia-1.4b").best == (12, 0)
