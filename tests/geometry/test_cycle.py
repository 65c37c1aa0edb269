"""Rows of a cycle's classes: units drawn for all classes together, or class by class."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.cycle import NO_INTERVAL, checked_cycle

LABELS, UNIT = torch.arange(5).repeat_interleave(4), torch.arange(4).repeat(5)


def test_templates_that_all_classes_share_move_all_means_together():
    """What a template adds to every class cancels in differences of class means."""
    template = torch.tensor([0.0, 1.0, 5.0, 9.0])[UNIT, None]
    rows = LABELS[:, None] + template

    def gap(means):
        return means[..., 1, 0] - means[..., 0, 0]

    shared = checked_cycle(rows, LABELS, 5, UNIT).estimate(gap, measured="", seed=0)
    assert (shared.low, shared.value, shared.high) == pytest.approx((1, 1, 1))
    alone = checked_cycle(rows, LABELS, 5).estimate(gap, measured="", seed=0)
    assert alone.low < 0 < 2 < alone.high
    assert "4 rows or templates per class" in alone.method


def test_one_row_per_class_has_no_interval():
    cycle = checked_cycle(torch.arange(5.0)[:, None], torch.arange(5), 5)
    assert cycle.estimate(lambda means: means.sum((-1, -2)), measured="", seed=0).method == (
        NO_INTERVAL
    )


def test_classes_without_rows_are_refused():
    with pytest.raises(ToolkitError, match="got 0 to 4, 1 of 6 classes without rows"):
        checked_cycle(torch.ones(20, 2), LABELS, 6)
    with pytest.raises(ToolkitError, match="got -1 to 3"):
        checked_cycle(torch.ones(20, 2), LABELS - 1, 5)
