"""Activations by number: the mean of each number, and the polynomials that take a trend away.

Source: this project.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, same_length, whole_numbers
from mechinterp_toolkit.geometry.regression import class_means, span


class ByNumber(NamedTuple):
    """One row for each different number, numbers rising."""

    numbers: Int[Tensor, " number"]
    acts: Float[Tensor, "number d"]
    covariates: Float[Tensor, "number k"]

    @property
    def longest(self) -> int:
        """The longest period that can be judged: half the range of the numbers."""
        return (int(self.numbers[-1]) - int(self.numbers[0]) + 1) // 2


def by_number(
    acts: Any, numbers: Any, covariates: Any = None, *, name: str = "numbers", fewest: int
) -> ByNumber:
    """Return the mean activation, and the mean covariates, of each different number.

    Args:
        acts: one row per prompt or item.
        numbers: the number of each row, whole.
        covariates: what else may explain the activations, one row each; None for none.
        name: of the argument `numbers`, for errors.
        fewest: how many different numbers are needed.

    Raises:
        ToolkitError: fewer different numbers, or arguments that are no tensors of finite numbers
            with a row each.

    >>> by_number(torch.tensor([[1.0], [5.0], [3.0]]), torch.tensor([7, 2, 7]), fewest=2).acts
    tensor([[5.],
            [2.]], dtype=torch.float64)
    """
    rows = finite(acts, "acts", "item d")
    unique, which = whole_numbers(numbers, name, len(rows)).unique(return_inverse=True)
    if len(unique) < fewest:
        raise ToolkitError(
            f"got {len(unique)} different numbers; expected at least {fewest} to look for periods."
        )
    extra = rows[:, :0] if covariates is None else finite(covariates, "covariates")
    same_length(extra, "covariates", len(rows))
    return ByNumber(unique, *(class_means(part, which, len(unique)) for part in (rows, extra)))


def polynomials(numbers: Int[Tensor, " n"], degree: int) -> Float[Tensor, "n axis"]:
    """Return an orthonormal basis of the polynomials up to a degree on these numbers.

    >>> polynomials(torch.arange(20), 3).shape, polynomials(torch.arange(2), 3).shape
    (torch.Size([20, 4]), torch.Size([2, 2]))
    """
    n = numbers.double()
    scaled = 2 * (n - n.min()) / (n.max() - n.min()).clamp_min(1) - 1
    columns = [torch.special.legendre_polynomial_p(scaled, k) for k in range(degree + 1)]
    return span(torch.stack(columns, 1))
