"""Edits in group-Fourier space are projections, and the hand-worked case comes out."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.groups import (
    irrep_labels,
    isotypic_energy,
    isotypic_projector,
    subgroup_classes,
    symmetric,
)
from mechinterp_toolkit.hooks.fourier import (
    MapRows,
    ProjectRows,
    coset_projector,
    irrep_projector,
    irrep_swap,
)
from mechinterp_toolkit.intervention import Site, applied
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.toys.planted_groups import planted_group_mlp

SITE = Site("hook_hidden")
S3 = symmetric(3)
PAIRS = S3.table.flatten()


def projector(*labels: str) -> torch.Tensor:
    return sum(isotypic_projector(S3, label) for label in labels)


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
    # Only its mean says anything about the product.
    assert everything(of_a_alone, hook=SITE).std(0).max() < 1e-6


def test_a_batch_it_was_not_made_for_is_refused():
    with pytest.raises(HookError, match="knows the elements of 36 rows but got 35"):
        ProjectRows(PAIRS, projector("(2,1)"), "keep")(torch.randn(35, 2), hook=SITE)
    one_element = torch.zeros(36, dtype=torch.long)
    with pytest.raises(HookError, match="between 0 and 36 rows"):
        ProjectRows(one_element, projector("(2,1)"), "keep")(torch.randn(36, 2), hook=SITE)


def test_swapping_two_irreps_is_undone_by_swapping_again_and_keeps_the_rest():
    group = symmetric(4)
    swap = irrep_swap(group, "(3,1)", "(2,1,1)")
    # float64 products of orthogonal matrices
    assert (swap @ swap - torch.eye(24)).abs().max() < 1e-12
    values = torch.randn(24, 3, dtype=torch.float64)
    moved = swap @ values
    before, after = (isotypic_energy(group, v.T) for v in (values, moved))
    a, b = (irrep_labels(group).index(label) for label in ("(3,1)", "(2,1,1)"))
    assert (before[:, a] - after[:, b]).abs().max() < 1e-12
    others = [i for i in range(5) if i not in (a, b)]
    assert (before[:, others] - after[:, others]).abs().max() < 1e-12
    edited = MapRows(group.table.flatten(), swap)(values[group.table.flatten()], hook=SITE)
    assert (edited - moved[group.table.flatten()]).abs().max() < 1e-12


def test_irreps_of_different_sizes_are_not_swapped():
    with pytest.raises(
        ToolkitError,
        match=r"\(2,1\) \(dimension 2\) and \(1,1,1\) \(dimension 1\) cannot be swapped",
    ):
        irrep_swap(S3, "(2,1)", "(1,1,1)")
    with pytest.raises(ToolkitError, match="name at least one irrep of S3"):
        irrep_projector(S3, [])


def test_the_coset_component_is_what_is_constant_on_cosets_and_no_more():
    group = symmetric(4)
    members = next(c[0] for c in subgroup_classes(group) if len(c[0]) == 6)
    projector = coset_projector(group, members, side="left")
    assert (projector @ projector - projector).abs().max() < 1e-12
    assert float(projector.trace()) == pytest.approx(3)  # four cosets, constants left out
    constant = (projector @ torch.randn(24, dtype=torch.float64))[group.table[list(members)]]
    assert (constant - constant[:1]).abs().max() < 1e-12


def test_removing_the_coset_component_of_the_hidden_layer_takes_a_planted_answer_away():
    group = symmetric(4)
    net = load_model(planted_group_mlp(group, ("(3,1)", "(1,1,1,1)")))
    members = next(c[0] for c in subgroup_classes(group) if len(c[0]) == 6)
    pairs = torch.cartesian_prod(torch.arange(24), torch.arange(24))
    product = group.table.flatten()

    def accuracy(edits):
        with applied(net, edits) if edits else nullcontext():
            return (net.logits(pairs).argmax(1) == product).double().mean()

    edit = ProjectRows(product, irrep_projector(group, ["(3,1)"]), "remove")
    assert accuracy({}) == 1
    assert accuracy({"hook_hidden": edit}) < 0.2
    # One coset of one subgroup is a part of that irrep: its loss is felt, and less.
    cosets = ProjectRows(product, coset_projector(group, members, side="left"), "remove")
    assert accuracy({"hook_hidden": edit}) <= accuracy({"hook_hidden": cosets}) <= 1


def test_an_activation_with_positions_is_edited_at_the_last_one_only():
    rows = torch.randn(36, 3, 4)
    edit = ProjectRows(PAIRS, projector("(2,1)"), "remove")
    edited = edit(rows, hook=SITE)
    assert torch.equal(edited[:, :-1], rows[:, :-1])
    # Products of the same numbers that lie otherwise in memory, float64 rounded to float32.
    assert torch.allclose(edited[:, -1], edit(rows[:, -1], hook=SITE), rtol=1e-6, atol=1e-6)
    assert not torch.equal(edited[:, -1], rows[:, -1])
