"""Edits in group-Fourier space, at any activation whose rows are indexed by group elements.

Each row of the activation belongs to a group element (its product ab, say, or a, or b). The part of
the activation that depends on that element alone is its mean over the rows of each element.
`ProjectRows` keeps or removes what a projector of the group picks of that part: some irreps
(`irrep_projector`), or what is constant on cosets (`coset_projector`). `MapRows` passes the part
through an orthogonal operator, such as one that swaps two irreps (`irrep_swap`). Both act on the
last position of an activation with positions and leave the others bit-equal.

Source: restricted and excluded loss of Nanda et al. 2023, arXiv:2301.05217, on groups as in
Chughtai et al. 2023, arXiv:2302.03025; coset components as in Stander et al. 2023,
arXiv:2312.06581.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    Side,
    blocks,
    cosets,
    fourier_matrix,
    irrep,
    irrep_labels,
    isotypic_projector,
)
from mechinterp_toolkit.intervention import Site


def irrep_projector(group: Group, labels: Sequence[str]) -> Float[Tensor, "order order"]:
    """Return the orthogonal projector onto the isotypic subspaces of some irreps.

    Raises:
        ToolkitError: no irrep is named, or one that the group does not have.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> int(irrep_projector(symmetric(3), ["(2,1)"]).trace().round())  # of 6 dimensions
    4
    """
    if not labels:
        raise ToolkitError(
            f"name at least one irrep of {group.name}: {', '.join(irrep_labels(group)[:12])}."
        )
    return torch.stack([isotypic_projector(group, label) for label in labels]).sum(0)


def coset_projector(
    group: Group, members: Sequence[int], *, side: Side
) -> Float[Tensor, "order order"]:
    """Return the projector onto functions constant on cosets, constants left out.

    Args:
        group: the group.
        members: a subgroup H.
        side: "left" for the cosets Hx, "right" for xH.

    Raises:
        ToolkitError: `members` is not a subgroup.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> f = torch.tensor([3.0, 1.0, 5.0, 3.0]).double()  # means 4, 2 on the cosets, 3 on all
    >>> (coset_projector(cyclic(4), (0, 2), side="left") @ f).tolist()
    [1.0, -1.0, 1.0, -1.0]
    """
    rows = cosets(group, members, side=side)
    projector = torch.full((group.order, group.order), -1 / group.order, dtype=torch.float64)
    for row in rows:
        projector[row[:, None], row] += 1 / rows.shape[1]
    return projector


def irrep_swap(group: Group, first: str, second: str) -> Float[Tensor, "order order"]:
    """Return the operator that exchanges the Fourier coefficients of two irreps of one size.

    It is orthogonal. Entry (i, j) of one goes to entry (i, j) of the other, in the bases the
    group's irreps are built in.

    Raises:
        ToolkitError: the irreps have different sizes, or are the same.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> constant = torch.ones(4, dtype=torch.float64)
    >>> (irrep_swap(cyclic(4), "k=0", "k=2") @ constant).round().tolist()
    [1.0, -1.0, 1.0, -1.0]
    """
    place = {block.label: block for block in blocks(group)}
    a, b = (place[irrep(group, label).label] for label in (first, second))
    if (a.dimension, a.multiplicity) != (b.dimension, b.multiplicity) or first == second:
        raise ToolkitError(
            f"{first} (dimension {a.dimension}) and {second} (dimension {b.dimension}) cannot be"
            " swapped; give two different irreps of one size."
        )
    order = torch.arange(group.order)
    order[a.columns], order[b.columns] = order[b.columns].clone(), order[a.columns].clone()
    basis = fourier_matrix(group)
    return basis @ basis[:, order].T


@dataclass(frozen=True)
class ProjectRows:
    """Keep or remove a part of what an activation says about the group element of its row.

    An orthogonal projection: removing twice is removing once. Every element must have as many rows.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> element, rows = torch.tensor([0, 1, 0, 1]), torch.tensor([[5.0], [1.0], [3.0], [1.0]])
    >>> edit = ProjectRows(element, irrep_projector(cyclic(2), ["k=1"]), "remove")
    >>> edit(rows, hook=Site("hook_hidden")).tolist()  # the elements' means were 4 and 1
    [[3.5], [2.5], [1.5], [2.5]]
    """

    element: Int[Tensor, " batch"]
    """Group element of each row of the activation."""

    projector: Float[Tensor, "order order"]
    """Orthogonal projector on functions of the group, e.g. from `irrep_projector` or
    `coset_projector`."""

    mode: Literal["keep", "remove"]
    """Whether the projected part is all that stays, or what goes."""

    def __call__(
        self, activation: Float[Tensor, "batch *pos d"], hook: Site
    ) -> Float[Tensor, "batch *pos d"]:
        """Return the edited activation; arithmetic in float64, result in the activation's dtype.

        Raises:
            HookError: the batch is not the one this edit was made for, or elements have different
                numbers of rows.
        """
        if activation.dim() == 3:
            return _at_last(self, activation, hook)
        part = _row_part(activation, self.element, self.projector, hook)
        return part if self.mode == "keep" else activation - part


@dataclass(frozen=True)
class MapRows:
    """Pass what an activation says about the group element of its row through an operator.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> edit = MapRows(torch.tensor([0, 1]), irrep_swap(cyclic(2), "k=0", "k=1"))
    >>> edit(torch.tensor([[1.0], [1.0]]), hook=Site("hook_hidden")).round().tolist()
    [[1.0], [-1.0]]
    """

    element: Int[Tensor, " batch"]
    """Group element of each row of the activation."""

    operator: Float[Tensor, "order order"]
    """Operator on functions of the group, e.g. from `irrep_swap`."""

    def __call__(
        self, activation: Float[Tensor, "batch *pos d"], hook: Site
    ) -> Float[Tensor, "batch *pos d"]:
        """Return the edited activation; errors are those of `ProjectRows`."""
        if activation.dim() == 3:
            return _at_last(self, activation, hook)
        change = self.operator - torch.eye(len(self.operator), dtype=self.operator.dtype)
        return activation + _row_part(activation, self.element, change, hook)


def _row_part(
    activation: Float[Tensor, "batch d"],
    element: Int[Tensor, " row"],
    operator: Float[Tensor, "order order"],
    hook: Site,
) -> Float[Tensor, "batch d"]:
    """Return `operator` applied to the mean row of each element, for every row, in its own dtype.

    Raises:
        HookError: there are other rows than elements, or elements have different numbers of rows.
    """
    if len(activation) != len(element):
        raise HookError(
            f"the edit at {hook.name!r} knows the elements of {len(element)} rows but got"
            f" {len(activation)}; run the very rows it was made for, in one batch."
        )
    order = len(operator)
    element = element.to(activation.device)
    counts = torch.bincount(element, minlength=order)
    if counts.min() != counts.max():
        raise HookError(
            f"group elements have between {int(counts.min())} and {int(counts.max())} rows; the"
            " projection is orthogonal only where each has as many: run all pairs."
        )
    # Sorted by element the rows form a block; its mean is far quicker than adding up row by row.
    grouped = activation[element.argsort()].reshape(order, int(counts[0]), -1)
    part = operator.to(activation.device, torch.float64) @ grouped.mean(1, dtype=torch.float64)
    return part.to(activation.dtype)[element]


def _at_last(
    edit: ProjectRows | MapRows, activation: Float[Tensor, "batch pos d"], hook: Site
) -> Float[Tensor, "batch pos d"]:
    return torch.cat([activation[:, :-1], edit(activation[:, -1], hook)[:, None]], 1)
