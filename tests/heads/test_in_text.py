"""Direct effects agree with Hugging Face by hand, the rules with sequences by hand, and the toy's
heads do what they do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from mechinterp_toolkit.errors import NotApplicable, TokenisationError, ToolkitError
from mechinterp_toolkit.heads.in_text import (
    BEHAVIOURS,
    Cases,
    DirectEffects,
    behaviours,
    direct_effects,
    loss_reducing_cases,
    text_study,
    winning_cases,
)
from mechinterp_toolkit.model import has_hooked_transformer, load_model
from mechinterp_toolkit.prompts import (
    ORDINAL_CLASSES,
    Dropped,
    OrdinalClass,
    ordinal_class,
    ordinal_classes,
)
from mechinterp_toolkit.prompts.corpora import Windows
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys import evaluation_prompts, successor_queries
from mechinterp_toolkit.toys.gpt2 import random_gpt2

# Heads of the bundled toy; block 0 writes nothing.
SUCCESSOR, COPYING, SILENT = (1, 1), (1, 2), (0, 0)


def one_case(row: int, position: int) -> Cases:
    return Cases(torch.tensor([row]), torch.tensor([position]), torch.zeros(1))


@pytest.fixture(scope="module")
def toy() -> Any:
    return load_model("toy/ordinal")


@pytest.fixture(scope="module")
def toy_classes(toy: Any) -> dict[str, OrdinalClass]:
    return dict(ordinal_classes(toy.require_tokenizer()).classes)


# --- direct effects ------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(folder: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Falls of logit and log probability [2 layer head batch pos], by Hugging Face hooks alone."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    n_layers, n_heads, d_head = 2, 4, 8
    seen: list[torch.Tensor] = []
    modules = [*(block.attn.c_proj for block in hf.transformer.h), hf.transformer.ln_f]
    handles = [
        m.register_forward_pre_hook(lambda module, given: seen.append(given[0])) for m in modules
    ]
    hf(tokens, attention_mask=mask.long())
    for handle in handles:
        handle.remove()
    *mixed, end = seen

    def scores(stream: torch.Tensor) -> torch.Tensor:
        logits = hf.lm_head(hf.transformer.ln_f(stream))[:, :-1]
        both = torch.stack([logits, logits.log_softmax(-1)])
        return both.gather(-1, tokens[None, :, 1:, None].expand(2, -1, -1, 1))[..., 0]

    falls = []
    for layer in range(n_layers):
        for head in range(n_heads):
            own = slice(head * d_head, (head + 1) * d_head)
            write = mixed[layer][..., own] @ hf.transformer.h[layer].attn.c_proj.weight[own]
            falls.append(scores(end) - scores(end - write + write[mask].mean(0)))
    return torch.stack(falls, 1).unflatten(1, (n_layers, n_heads))


@pytest.mark.parametrize("wrapper", ["HookedTransformer", "TransformerBridge"])
def test_direct_effects_are_those_worked_out_by_hand(hf_folders, tokens, wrapper):
    if wrapper == "HookedTransformer" and not has_hooked_transformer():
        pytest.skip("this TransformerLens has no HookedTransformer")
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[2, 5:] = False
    found = direct_effects(
        load_model(hf_folders["gpt2"], wrapper=wrapper), tokens, mask, batch_size=3
    )
    expected = by_hand(hf_folders["gpt2"], tokens, mask)
    assert torch.equal(found.valid, mask[:, 1:])  # padded on the right
    expected = expected[..., found.valid]
    assert expected.abs().amax((0, 3)).min() > 1e-2  # every head has an effect to agree on
    for ours, theirs in zip((found.logit_fall, found.loss_rise), expected, strict=True):
        torch.testing.assert_close(ours[..., found.valid], theirs, rtol=0, atol=1e-5)


def test_direct_effects_do_not_depend_on_the_batches_or_on_padding(wrapped, tokens):
    whole = direct_effects(wrapped, tokens)
    single = direct_effects(wrapped, tokens, batch_size=1)
    padded = torch.cat([tokens, torch.full((4, 2), 5)], 1)
    mask = (torch.arange(9) < 7).expand(4, -1)
    longer = direct_effects(wrapped, padded, mask)
    assert whole.valid.all()
    assert longer.valid.sum() == whole.valid.sum() == 24
    # Sums of the same float32 numbers in another order.
    torch.testing.assert_close(single.logit_fall, whole.logit_fall, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(longer.loss_rise[..., :6], whole.loss_rise, rtol=1e-4, atol=1e-5)


def test_a_head_that_writes_nothing_has_no_effect(toy, toy_classes):
    prompts = successor_queries(toy.require_tokenizer(), toy_classes)
    found = direct_effects(toy, prompts.tokens)
    assert not found.logit_fall[0].any()
    assert not found.loss_rise[0].any()
    assert found.logit_fall[1].any(-1).any(-1).all()


# --- cases ---------------------------------------------------------------------------------------


def effects_by_hand() -> DirectEffects:
    """Two heads on one row: head 0 wins at 0 and 2, ties at 1, falls least at 3; 4 is padding."""
    fall = torch.tensor([[[[1.0, 2.0, 3.0, -1.0, 9.0]], [[0.5, 2.0, -1.0, -2.0, 0.0]]]])
    rise = torch.tensor([[[[0.2, 0.0, 0.1, 0.7, 9.0]], [[-1.0, -1.0, 4.0, -1.0, 0.0]]]])
    return DirectEffects(fall, rise, torch.tensor([[True, True, True, True, False]]))


def test_a_head_wins_where_its_fall_is_the_largest_and_a_fall():
    cases = winning_cases(effects_by_hand(), (0, 0))
    assert cases.position.tolist() == [2, 0]
    assert cases.effect.tolist() == [3.0, 1.0]
    assert len(winning_cases(effects_by_hand(), (0, 1))) == 0


def test_loss_reducing_cases_are_ranked_and_cut():
    cases = loss_reducing_cases(effects_by_hand(), (0, 0))
    assert cases.position.tolist() == [3, 0, 2]
    assert loss_reducing_cases(effects_by_hand(), (0, 0), most=2).position.tolist() == [3, 0]
    assert loss_reducing_cases(effects_by_hand(), (0, 1)).effect.tolist() == [4.0]


# --- rules ---------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer of pieces that are joined as they stand, as those of byte-pair encodings are."""

    all_special_ids = (0,)

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(self.pieces[i] for i in ids)


def shown(pieces: list[str], weights: list[float], classes: dict[str, OrdinalClass]) -> set[str]:
    """What the last but one of `pieces` shows with these `weights`; items are tokens 1, 2, ..."""
    vocabulary = ["<end>", *dict.fromkeys([*"1234567xyz", *pieces])]
    tokens = torch.tensor([[vocabulary.index(piece) for piece in pieces]])
    pattern = torch.zeros(1, len(pieces), len(pieces))
    pattern[0, len(pieces) - 2, : len(weights)] = torch.tensor(weights)
    found = behaviours(Pieces(vocabulary), tokens, pattern, one_case(0, len(pieces) - 2), classes)
    return {name for name, holds in zip(BEHAVIOURS, found[0].tolist(), strict=True) if holds}


def line(cyclic: bool = False) -> dict[str, OrdinalClass]:
    """The class 1, 2, 3, 5, 6, 7 of order 7, whose 4 was dropped, and the class x, y, z."""
    kept = [1, 2, 3, 5, 6, 7]
    count = OrdinalClass(
        "count",
        tuple(map(str, kept)),
        torch.tensor(kept),
        torch.tensor(kept) - 1,
        7,
        cyclic,
        "as is",
        (Dropped("4", "for the test"),),
    )
    letters = OrdinalClass(
        "letters", tuple("xyz"), torch.arange(8, 11), torch.arange(3), 3, False, "as is", ()
    )
    return {"count": count, "letters": letters}


@pytest.mark.parametrize(
    ("pieces", "weights", "expected"),
    [
        (["1", " a", " b", "2"], [0.1, 0.6, 0.3], {"successorship"}),
        (["1", " a", " b", "2"], [0.0, 0.6, 0.4], {"other"}),  # the 1 is not attended
        (["1", " a", " b", "3"], [0.1, 0.6, 0.3], {"greater-than"}),
        # 4 was dropped, so 5 does not follow 3
        (["3", " a", " b", "5"], [0.1, 0.6, 0.3], {"greater-than"}),
        (["5", " a", " b", "3"], [0.1, 0.6, 0.3], {"other"}),
        # also greater than 1, which does not count
        (["1", "2", " b", "3"], [0.1, 0.6, 0.3], {"successorship"}),
        (["7", " a", " b", "1"], [0.1, 0.6, 0.3], {"other"}),
        (["1", " a", " b", "y"], [0.1, 0.6, 0.3], {"other"}),  # the second of another class
        (["1", " a", " b", "z"], [0.1, 0.6, 0.3], {"other"}),
        (["2", " a", "1", "2"], [0.3, 0.6, 0.1], {"successorship", "copying"}),
        ([" a", " b", " c", " a"], [0.1, 0.6, 0.3], {"copying"}),
        ([" a", " b", " c", " a"], [0.0, 0.6, 0.4], {"other"}),
        # the sixth, and the fifth, of the most attended
        ([" a", " b", " c", " d", " e", " f", " a"], [0.1, 0.2, 0.2, 0.2, 0.2, 0.15], {"other"}),
        ([" a", " b", " c", " d", " e", " f", " a"], [0.1, 0.3, 0.2, 0.2, 0.2], {"copying"}),
        ([" Health", " Organization", " (", "WH", "O"], [0.1, 0.5, 0.2, 0.2], {"acronym"}),
        ([" Health", " organization", " (", "WH", "O"], [0.1, 0.5, 0.2, 0.2], {"acronym"}),
        # H, which is not the last letter
        ([" Health", " Organization", " (", "WH", "O"], [0.5, 0.1, 0.2, 0.2], {"other"}),
        ([" Union", " States", " U", ".", "S"], [0.1, 0.5, 0.2, 0.2], {"acronym"}),
        ([" Of", " a", " b", "O"], [0.6, 0.2, 0.2], {"other"}),  # " bO" is no word of capitals
        ([" Of", " a", " b", " O"], [0.6, 0.2, 0.2], {"other"}),  # one letter is no acronym
        ([" Of", " a", " b", " WHO"], [0.6, 0.2, 0.2], {"acronym"}),
        ([" Of", " a", " b", " Who"], [0.6, 0.2, 0.2], {"other"}),
        (["<end>", " a", " b", " THE"], [0.6, 0.2, 0.2], {"other"}),  # a special token
    ],
)
def test_each_rule_by_hand(pieces, weights, expected):
    assert shown(pieces, weights, line()) == expected


def test_a_cycle_starts_again_and_a_line_does_not():
    pieces, weights = ["7", " a", " b", "1"], [0.1, 0.6, 0.3]
    assert shown(pieces, weights, line(cyclic=True)) == {"successorship"}
    assert shown(pieces, weights, line()) == {"other"}


def test_what_stands_behind_the_position_is_never_attended():
    held = shown([" x", " a", "1", "2"], [0.1, 0.2, 0.3, 0.4], line())
    assert held == {"successorship"}  # no copy of the answer


def test_a_word_with_and_without_a_space_is_the_same_item(shared_data):
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")
    days = ("Monday", "Tuesday", "Wednesday")
    spaced, bare = (
        ordinal_class(tokenizer, "days", days, cyclic=True, leading_space=s) for s in (True, False)
    )
    tokens = torch.tensor([tokenizer.encode("Monday, Tuesday")])  # "Monday" "," " Tuesday"
    pattern = torch.full((1, 3, 3), 1 / 3)

    def found(classes: dict[str, OrdinalClass]) -> list[str]:
        held = behaviours(tokenizer, tokens, pattern, one_case(0, 1), classes)[0]
        return [name for name, holds in zip(BEHAVIOURS, held.tolist(), strict=True) if holds]

    assert found({"spaced": spaced}) == ["other"]
    assert found({"spaced": spaced, "bare": bare}) == ["successorship"]


def test_an_acronym_of_a_real_tokenizer_is_seen_piece_by_piece(shared_data):
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")
    ids = tokenizer.encode(" the Polar Quest Xylophone Zoo (PQXZ")
    last = len(ids) - 2
    assert tokenizer.decode(ids[-1:])[-1] == "Z"
    assert len(tokenizer.decode(ids[-1:])) < 4  # the acronym is in pieces
    pattern = torch.zeros(1, len(ids), len(ids))
    for word, expected in ((" Zoo", True), (" Quest", False)):
        pattern[0, last] = 0
        pattern[0, last, ids.index(tokenizer.encode(word)[0])] = 1
        found = behaviours(tokenizer, torch.tensor([ids]), pattern, one_case(0, last), line())
        assert bool(found[0, BEHAVIOURS.index("acronym")]) == expected


# --- the study -----------------------------------------------------------------------------------


def with_answers(prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of one length as texts that end in the answer, and where it is predicted: the toy
    learned nothing else."""
    tokens = torch.cat([prompts.tokens, prompts.answer[:, None]], 1)
    at = torch.zeros_like(tokens, dtype=torch.bool)
    at[:, -2] = True
    return tokens, at


def each_its_own(tokens: torch.Tensor, mask: torch.Tensor | None = None) -> Windows:
    """Windows that are a text each."""
    return Windows(tokens, torch.arange(len(tokens)), mask)


def share(estimate: Any, behaviour: str) -> Any:
    return estimate.at(BEHAVIOURS.index(behaviour))


def test_the_successor_head_wins_by_succession_and_a_copying_head_does_not(toy, toy_classes):
    prompts = evaluation_prompts(toy.require_tokenizer(), classes=toy_classes)
    tokens, at = with_answers(prompts)
    after = successor_queries(toy.require_tokenizer(), toy_classes)
    n_after = len(after)
    assert torch.equal(tokens[:n_after, :-1], after.tokens)  # the rest asks for the same item
    found = text_study(
        toy, each_its_own(tokens), head=SUCCESSOR, classes=toy_classes, at=at, batch_size=64
    )
    assert found.n_positions == len(prompts)
    assert found.winning_cases.row.sort().values.tolist() == list(range(n_after))
    succession = share(found.winning, "successorship")
    assert succession.value == 1.0
    assert succession.n == n_after
    # One position in seven would be the one that predicts the answer.
    assert succession.control.max() < 0.3

    copying = text_study(
        toy, each_its_own(tokens), head=COPYING, classes=toy_classes, at=at, batch_size=64
    )
    assert len(copying.winning_cases) > 40
    assert copying.winning_cases.row.min() >= n_after
    assert share(copying.winning, "copying").value > 0.95
    assert share(copying.winning, "copying").control.max() < 0.5
    assert share(copying.winning, "successorship").value == 0


def test_over_all_positions_of_the_successor_queries_succession_is_above_its_control(
    toy, toy_classes
):
    tokens, _ = with_answers(successor_queries(toy.require_tokenizer(), toy_classes))
    found = text_study(toy, each_its_own(tokens), head=SUCCESSOR, batch_size=64)
    for estimate in (found.winning, found.loss_reducing):
        one = share(estimate, "successorship")
        assert one.low > one.control.max()
    other = text_study(toy, each_its_own(tokens), head=COPYING, batch_size=64)
    assert share(other.winning, "successorship").value == 0
    again = text_study(
        toy, each_its_own(tokens), head=SUCCESSOR, classes=toy_classes, batch_size=64
    )
    # The toy's items are the same with no space.
    assert torch.equal(again.winning.control, found.winning.control)
    assert torch.equal(again.winning.low, found.winning.low)


def test_the_shares_are_those_of_the_heads_own_attention(hf_folders):
    model = load_model(hf_folders["gpt2"])
    tokenizer = model.require_tokenizer()
    tokens = torch.randint(3, 60, (4, 40), generator=torch.Generator().manual_seed(0))
    classes = {
        "made": ordinal_class(tokenizer, "made", [f"w{i}" for i in range(3, 60)], cyclic=False)
    }
    attention = activations(model, tokens, ("blocks.1.attn.hook_pattern",))[
        "blocks.1.attn.hook_pattern"
    ]
    found = text_study(model, each_its_own(tokens), head=(1, 3), classes=classes, batch_size=3)
    for estimate, cases in (
        (found.winning, found.winning_cases),
        (found.loss_reducing, found.loss_reducing_cases),
    ):
        *others, own = (
            behaviours(tokenizer, tokens, attention[:, head], cases, classes).double().mean(0)
            for head in range(4)
        )
        torch.testing.assert_close(estimate.value, own)
        assert min((other - own).abs().max() for other in others) > 0.01


def test_items_count_with_and_without_a_space_where_no_class_is_named(shared_data):
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")
    network = random_gpt2(len(tokenizer), d_model=8, n_layers=1, n_heads=2, seed=0)
    days = ORDINAL_CLASSES["days"].words
    tokens = torch.tensor(
        [tokenizer.encode(f"{one} {two}") for one, two in itertools.pairwise(days)]
    )
    assert tokens.shape == (6, 2)
    found = text_study(load_model(network, tokenizer=tokenizer), each_its_own(tokens), head=(0, 0))
    assert share(found.loss_reducing, "successorship").value == 1.0


def test_where_a_text_has_one_position_the_control_is_that_position(wrapped):
    tokens = torch.randint(3, 60, (12, 4), generator=torch.Generator().manual_seed(0))
    tokens[:6, 1] = tokens[:6, 0]  # half of them copy
    mask = (torch.arange(4) < 2).expand(12, -1)
    classes = {
        "made": ordinal_class(wrapped.require_tokenizer(), "made", ("w3", "w4", "w5"), cyclic=False)
    }
    found = text_study(wrapped, each_its_own(tokens, mask), head=(0, 0), classes=classes, draws=5)
    for estimate in (found.winning, found.loss_reducing):
        assert estimate is None or torch.equal(estimate.control, estimate.value.expand(5, -1))
    assert found.loss_reducing is not None


def test_intervals_resample_whole_texts(toy, toy_classes):
    tokens, at = with_answers(successor_queries(toy.require_tokenizer(), toy_classes))
    text = torch.arange(len(tokens)) // 10
    windows = Windows(tokens, text)
    found = text_study(toy, windows, head=SUCCESSOR, classes=toy_classes, at=at, batch_size=64)
    assert found.winning.n == 10
    assert len(found.loss_reducing_cases) > 60
    assert found.loss_reducing_cases.effect.diff().max() <= 0


def test_a_head_without_cases_has_no_shares(toy, toy_classes):
    tokens, _ = with_answers(successor_queries(toy.require_tokenizer(), toy_classes))
    found = text_study(toy, each_its_own(tokens), head=SILENT, classes=toy_classes, batch_size=64)
    assert found.winning is None
    assert found.loss_reducing is None
    assert len(found.winning_cases) == len(found.loss_reducing_cases) == 0


# --- what is refused -----------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(toy, toy_classes, tokens):
    tokenizer, five = toy.require_tokenizer(), tokens[:, :5]
    with pytest.raises(
        ToolkitError,
        match=r"no head \(2, 0\); expected \(layer, head\) with layer 0 to 1 and head 0 to 3",
    ):
        text_study(toy, each_its_own(five), head=(2, 0))
    with pytest.raises(ToolkitError, match="no head"):
        winning_cases(effects_by_hand(), (0, 2))
    with pytest.raises(
        ToolkitError,
        match=r"mask has shape \(4, 3\) and tokens \(4, 5\); give one of the same shape",
    ):
        direct_effects(toy, five, torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(
        ToolkitError, match="no real token followed by another; give windows of two or more"
    ):
        direct_effects(toy, tokens[:, :1])
    with pytest.raises(
        ToolkitError, match="text names 3 texts for 4 windows of tokens; give one for each"
    ):
        Windows(five, torch.arange(3))
    with pytest.raises(ToolkitError, match=r"at has shape \(4, 4\) and tokens \(4, 5\)"):
        text_study(toy, each_its_own(five), head=(1, 1), at=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ToolkitError, match=r"pattern has shape \(4, 5, 4\).*select the head first"):
        behaviours(tokenizer, five, torch.zeros(4, 5, 4), one_case(0, 0), toy_classes)
    with pytest.raises(
        ToolkitError, match="cases reach from position 4 to 4 of 5 tokens; expected 0 to 3"
    ):
        behaviours(tokenizer, five, torch.zeros(4, 5, 5), one_case(0, 4), toy_classes)


def test_models_it_cannot_judge_are_refused(hf_folders, tokens, monkeypatch):
    with pytest.raises(NotApplicable, match="in text: it has no attention heads"):
        direct_effects(load_model("toy/s5"), tokens[:, :2])
    model = load_model(hf_folders["gpt2"])
    with pytest.raises(TokenisationError, match="none of the ordinal classes"):
        text_study(model, each_its_own(tokens), head=(0, 0))
    # Something on the logits that no config tells of.
    handle = model.model.register_forward_hook(lambda module, given, logits: logits.tanh())
    with pytest.raises(NotApplicable, match="not the final norm and unembedding of its last"):
        direct_effects(model, tokens)
    handle.remove()
    monkeypatch.setattr(model.model.blocks[0], "ln1_post", torch.nn.LayerNorm(32), raising=False)
    with pytest.raises(NotApplicable, match=r"a norm stands behind a sublayer \(blocks.0.ln1_post"):
        direct_effects(model, tokens)
