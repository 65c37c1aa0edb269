"""Edits in group-Fourier space, at any activation whose rows are indexed by group elements.

Each row of the activation belongs to a group element (its product ab, say). The part of the activation that depends on
that element alone is its mean over the rows of each element; a projector of the group picks some irreps of that part.
Keeping or removing it is an orthogonal projection over rows and elements: removing twice is removing once.

Source: restricted and excluded loss of Nanda et al. 2023, arXiv:2301.05217, on groups as in Chughtai et al. 2023,
arXiv:2302.03025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.intervention import Site


@dataclass(frozen=True)
class ProjectRows:
    """Keep or remove some irreps of what an activation says about the group element of its row.

    Rows of an element that never occurs count as absent, not as zero: every element must have as many rows.
    """

    element: Int[Tensor, " batch"]
    """Group element of each row of the activation."""

    projector: Float[Tensor, "order order"]
    """Orthogonal projector on functions of the group, e.g. the sum of some isotypic projectors."""

    mode: Literal["keep", "remove"]
    """Whether the projected part is all that stays, or what goes."""

    def __call__(self, activation: Float[Tensor, "batch d"], hook: Site) -> Float[Tensor, "batch d"]:
        """Return the edited activation; arithmetic in float64, result in the activation's dtype.

        Raises:
            HookError: the batch is not the one this edit was made for, or elements have different numbers of rows.
        """
        if len(activation) != len(self.element):
            raise HookError(
                f"the edit at {hook.name!r} knows the elements of {len(self.element)} rows but got {len(activation)}; "
                "run the very rows it was made for, in one batch."
            )
        part = self.part(activation)
        return part if self.mode == "keep" else activation - part

    def part(self, activation: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Return the projected part, row by row, in the activation's dtype."""
        order = len(self.projector)
        element = self.element.to(activation.device)
        counts = torch.bincount(element, minlength=order)
        if counts.min() != counts.max():
            raise HookError(
                f"group elements have between {int(counts.min())} and {int(counts.max())} rows; the projection is "
                "orthogonal only where each has as many: run all pairs."
            )
        # Sorted by element the rows form a block, and its mean is far quicker than adding rows up one by one.
        grouped = activation[element.argsort()].reshape(order, int(counts[0]), -1)
        means = grouped.mean(1, dtype=torch.float64)
        part = self.projector.to(activation.device, torch.float64) @ means
        return part[element].to(activation.dtype)
