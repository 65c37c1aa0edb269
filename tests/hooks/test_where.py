"""Where: prompt, generated and explicit tokens, counted the same with padding and a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.hooks.where import EVERYTHING, Where
from mechinterp_toolkit.intervention import Site, applied

PRE1 = "blocks.1.hook_resid_pre"
# Row 0 is left-padded by two columns and begins with the special token; row 1 is not and does not.
ORDER = torch.tensor([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
BOS = torch.tensor([[0, 0, 1, 0, 0], [0] * 5]).bool()
SITE = Site(PRE1, mask=ORDER >= 0, positions=torch.arange(5), prompt_length=4, order=ORDER, bos=BOS,
            prompt_tokens=torch.tensor([2, 4]), group=torch.tensor([0, 1]))  # fmt: skip
X = torch.zeros(2, 5, 3)


def chosen(where: Where) -> list[list[int]]:
    return where.chosen(X, SITE).int().tolist()


def test_padding_and_the_first_special_token_are_left_out():
    assert chosen(Where()) == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert chosen(EVERYTHING) == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_prompt_and_generated_are_separate():
    assert chosen(Where(generated=False)) == [[0, 0, 0, 1, 0], [1, 1, 1, 1, 0]]
    assert chosen(Where(prompt=False)) == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]


def test_positions_count_real_tokens_from_the_first_and_from_the_prompts_end():
    assert chosen(Where(positions=(1, 2))) == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]
    assert chosen(Where(positions=(-1,))) == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0]]
    assert chosen(Where(positions=(-2,), bos=True)) == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]
    # Row 0 has no third-last token.
    assert chosen(Where(positions=(-3,))) == [
        [0] * 5,
        [0, 1, 0, 0, 0],
    ]
    assert chosen(Where(positions=torch.tensor([[2], [0]]))) == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_a_group_of_rows_alone():
    assert chosen(Where(group=1)) == [[0] * 5, [1] * 5]
    unpadded = replace(SITE, mask=None)
    assert torch.equal(Where(bos=True, group=0).apply(X, X + 1, unpadded)[1], X[1])


def test_other_tokens_are_bit_equal():
    x = torch.randn(2, 5, 3)
    edited = Where(positions=(1,)).apply(x, x + 1, SITE)
    same = torch.ones(2, 5, dtype=torch.bool)
    same[0, 3] = same[1, 1] = False
    assert torch.equal(edited[same], x[same])
    assert torch.equal(edited[~same], (x + 1)[~same])


@pytest.mark.parametrize(
    ("where", "site", "words"),
    [
        (Where(), Site(PRE1, order=ORDER), "asks for the beginning-of-sequence token.*bos=True"),
        (
            Where(group=0),
            Site(PRE1, order=ORDER, bos=BOS),
            r"asks for row groups.*applied\(\.\.\., group",
        ),
        (Where(positions=(-1,)), Site(PRE1, order=ORDER, bos=BOS), "asks for the prompt's end"),
        (
            Where(prompt=False),
            Site(PRE1, order=ORDER, bos=BOS),
            "what is prompt and what was generated",
        ),
        (Where(), Site(PRE1), "asks for the tokens"),
        (Where(positions=(9,), generated=False), SITE, "chooses no token of the prompt"),
        (
            Where(positions=torch.zeros(3, 1, dtype=torch.long)),
            SITE,
            "positions are given for 3 rows, but 2 run",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(where, site, words):
    with pytest.raises(HookError, match=words):
        where.chosen(X, site)


def test_nothing_to_edit_and_activations_without_tokens_are_refused():
    with pytest.raises(HookError, match="leaves no token"):
        Where(prompt=False, generated=False)
    with pytest.raises(HookError, match=r"has shape \(2, 4, 5, 5\), expected \[batch pos"):
        Where().chosen(torch.zeros(2, 4, 5, 5), SITE)
    pattern = Site("blocks.0.attn.hook_pattern", order=ORDER, bos=BOS)
    with pytest.raises(
        HookError, match="one entry per token"
    ):  # five heads would look like five positions
        Where().chosen(torch.zeros(2, 5, 5, 5), pattern)


def test_a_bare_hook_point_is_refused_unless_everything_is_edited(wrapped, tokens):
    def edit(where):
        return lambda activation, hook: where.apply(activation, activation + 1, hook)

    wrapped.model.run_with_hooks(tokens, fwd_hooks=[(PRE1, edit(EVERYTHING))])
    with pytest.raises(HookError, match=r"run it inside applied"):
        wrapped.model.run_with_hooks(tokens, fwd_hooks=[(PRE1, edit(Where()))])
    wrapped.model.reset_hooks()


def test_padding_stays_bit_equal_under_an_edit_of_everything(wrapped, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :2] = False
    seen = []

    def edit(activation, hook):
        result = EVERYTHING.apply(activation, activation + 1, hook)
        seen.append((result != activation).any(-1))
        return result

    with torch.no_grad(), applied(wrapped, {PRE1: edit}, mask=mask):
        wrapped.logits(tokens, mask)
    assert torch.equal(seen[0], mask)
