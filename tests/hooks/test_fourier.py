"""Edits in group-Fourier space are projections, and the hand-worked case comes out."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.groups import symmetric
from mechinterp_toolkit.hooks.fourier import ProjectRows
from mechinterp_toolkit.intervention import Site

SITE = Site("hook_hidden")
S3 = symmetric(3)
PAIRS = S3.table.flatten()


def projector(*labels: str) -> torch.Tensor:
    return sum(S3.isotypic_projector(label) for label in labels)


def test_two_rows_worked_by_hand():
    """The constant part of two elements with rows (1, 3) and (5, 7) is the grand mean 4."""
    constant = torch.full((2, 2), 0.5, dtype=torch.float64)
    rows = torch.tensor([[1.0], [5.0], [3.0], [7.0]])
    edit = ProjectRows(torch.tensor([0, 1, 0, 1]), constant, "keep")
    assert torch.equal(edit(rows, hook=SITE), torch.full((4, 1), 4.0))
    removed = ProjectRows(torch.tensor([0, 1, 0, 1]), constant, "remove")(rows, hook=SITE)
    assert torch.equal(removed, rows - 4)


def test_keeping_and_removing_add_up_and_are_idempotent():
    rows = torch.randn(36, 5)
    keep, remove = (ProjectRows(PAIRS, projector("(2,1)"), mode) for mode in ("keep", "remove"))
    kept, removed = keep(rows, hook=SITE), remove(rows, hook=SITE)
    # float32 rows: a few rounding units of numbers near 1
    assert (kept + removed - rows).abs().max() < 1e-6
    assert (keep(kept, hook=SITE) - kept).abs().max() < 1e-6
    assert (remove(removed, hook=SITE) - removed).abs().max() < 1e-6
    assert kept.abs().max() > 0.1
    assert (kept * removed).sum().abs() < 1e-4  # orthogonal


def test_all_irreps_together_keep_everything_that_depends_on_the_product_alone():
    values = torch.randn(6, 3)
    everything = ProjectRows(PAIRS, projector("(3)", "(2,1)", "(1,1,1)"), "keep")
    assert (everything(values[PAIRS], hook=SITE) - values[PAIRS]).abs().max() < 1e-6
    of_a_alone = values[torch.arange(36) // 6]
    assert everything(of_a_alone, hook=SITE).std(0).max() < 1e-6  # only its mean says anything about the product


def test_a_batch_it_was_not_made_for_is_refused():
    with pytest.raises(HookError, match="knows the elements of 36 rows but got 35"):
        ProjectRows(PAIRS, projector("(2,1)"), "keep")(torch.randn(35, 2), hook=SITE)
    with pytest.raises(HookError, match="between 0 and 36 rows"):
        ProjectRows(torch.zeros(36, dtype=torch.long), projector("(2,1)"), "keep")(torch.randn(36, 2), hook=SITE)
