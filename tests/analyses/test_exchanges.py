"""Exchanges of one item for another: where an edit reaches, and how far the answer follows."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses._exchanges import (
    at_positions,
    followed,
    mean_by_item,
    moved_share,
)
from mechinterp_toolkit.intervention import Site

SITE = Site("blocks.0.hook_resid_pre")


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 2, 5)])
def test_an_edit_leaves_every_other_position_bit_for_bit(shape):
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kept, position = given.clone(), torch.tensor([0, 3, 5, 3])
    edited = at_positions(position, lambda rows: rows + 1)(given, hook=SITE)
    changed = (edited != given).flatten(2).any(-1).nonzero()
    assert changed.tolist() == [[row, at] for row, at in enumerate(position.tolist())]
    assert edited.dtype == given.dtype
    assert torch.equal(given, kept)


def test_what_changes_is_given_in_float64():
    seen = []
    at_positions(torch.tensor([1]), lambda rows: seen.append(rows) or rows)(
        torch.ones(1, 2, 3).bfloat16(), hook=SITE
    )
    assert seen[0].dtype == torch.float64


def test_rises_are_averaged_over_the_prompts_of_an_item():
    rise = torch.tensor([[[1.0, 0.0], [5.0, 0.0], [3.0, 2.0]]]).double()
    assert mean_by_item(rise, torch.tensor([1, 0, 1])).tolist() == [[[5, 0]], [[2, 1]]]


def test_only_other_items_count_as_followed():
    way = 100 * torch.eye(3)[:, :, None] * torch.eye(3)  # set to itself: whatever happens
    way[0, 1, 1], way[0, 2, 2], way[2, 0, 0] = 3.0, 5.0, 1.0
    assert followed(way).tolist() == [4.0, 0.0, 0.5]


def test_a_share_moved_to_the_right_item_alone_is_one_and_less_under_permuted_points():
    way = torch.eye(7, dtype=torch.float64).expand(7, 7, 7)  # from any item, set to k: k rises
    options = {"unit_name": "items", "measured": "share", "control_name": "points permuted"}
    moved = moved_share(way, **options, draws=999, seed=0)
    assert moved.value == pytest.approx(1)
    assert moved.n == 7
    assert moved.draws == 999
    assert moved.control.mean() == pytest.approx(1 / 7, abs=0.02)
    assert moved_share(way[:4, :4, :4], **options, draws=999, seed=0).draws == 24  # all there are
