"""What does linear regression say of the rows it was not fitted to? In closed form, all at once.

A linear smoother turns targets y into fitted values H y. Left out, row i is missed by
(y_i - (H y)_i) / (1 - H_ii), exactly: one matrix serves every row, every target and every shuffle.
Whole folds are left out by one pseudo-inverse each. What a design explains is removed by projecting
on an orthonormal basis of its columns, those that depend on others left out.

What would fool it: rows of one thing on both sides of a split, so average the rows of a thing
first; and a row of leverage H_ii = 1, which the others say nothing of: its error is no number.

Source: Allen 1974 (PRESS).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, same_length, whole_numbers

FOLDS = 5
"""Folds that `folds` deals."""

_DEPENDENT = 1e-9  # a singular value below this share of the largest is rounding


def one_hot(label: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n label"]:
    """Return one-hot rows in float64.

    >>> one_hot(torch.tensor([1, 0]), 3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    return torch.nn.functional.one_hot(label.long(), classes).double()


def class_means(
    rows: Float[Tensor, "n d"], label: Int[Tensor, " n"], classes: int
) -> Float[Tensor, "label d"]:
    """Return the mean row of each class, in float64; a class without rows has NaN.

    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2).tolist()
    [[2.0], [5.0]]
    """
    member = one_hot(label, classes)
    return (member.T @ rows.double()) / member.sum(0)[:, None]


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


# --- what others say of a row --------------------------------------------------------------------


def ridge_hat(rows: Float[Tensor, "*draw n d"], ridge: float) -> Float[Tensor, "*draw n n"]:
    """Return the matrix that turns centred targets into their ridge fit from centred rows.

    An intercept that is fitted too adds 1 / n to every entry. Rows that are all the same give 0.

    Args:
        rows: what is regressed on, one row per unit.
        ridge: penalty, in mean squared norms of a centred row.

    >>> ridge_hat(torch.tensor([[-1.0], [1.0]]), ridge=1.0)  # the mean squared norm is 1
    tensor([[ 0.3333, -0.3333],
            [-0.3333,  0.3333]])
    """
    centred = rows - rows.mean(-2, keepdim=True)
    gram, eye = centred @ centred.mT, torch.eye(rows.shape[-2], dtype=rows.dtype)
    penalty = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    penalty = penalty.clamp_min(torch.finfo(rows.dtype).tiny)
    return gram @ torch.linalg.inv(gram + penalty[..., None, None] * eye)


def left_out_errors(hat: Float[Tensor, "*draw n n"]) -> Float[Tensor, "*draw n n"]:
    """Return the matrix that turns targets into the errors of a smoother at rows left out.

    >>> mean = torch.full((3, 3), 1 / 3)  # the smoother that answers with the mean of all
    >>> left_out_errors(mean) @ torch.tensor([0.0, 0.0, 3.0])  # the mean of the others misses by
    tensor([-1.5000, -1.5000,  3.0000])
    """
    eye = torch.eye(hat.shape[-1], dtype=hat.dtype)
    return (eye - hat) / (1 - hat.diagonal(dim1=-2, dim2=-1))[..., None]


def read_off(
    errors: Float[Tensor, "n n"], label: Int[Tensor, " n"], classes: int
) -> Bool[Tensor, " n"]:
    """Return which labels are right when each is predicted from the other rows.

    The prediction is the class whose centred indicator comes out largest.

    Args:
        errors: from `left_out_errors`.
        label: class of each row, from 0.
        classes: how many there are.

    >>> rows = torch.tensor([[2.0], [2.2], [-2.0], [-2.2]], dtype=torch.float64)
    >>> read_off(left_out_errors(ridge_hat(rows, 0.1)), torch.tensor([0, 0, 1, 1]), 2).tolist()
    [True, True, True, True]
    """
    target = one_hot(label, classes)
    target = target - target.mean(0)
    return (target - errors @ target).argmax(1) == label


def ridge_weights(
    rows: Float[Tensor, "n d"], target: Float[Tensor, "n axis"], ridge: float
) -> Float[Tensor, "d axis"]:
    """Return the weights of `ridge_hat`'s regression: from centred rows to centred targets.

    >>> rows, target = torch.tensor([[-1.0], [1.0]]), torch.tensor([[-3.0], [3.0]])
    >>> ridge_weights(rows.double(), target.double(), 1.0).item()  # the hat says 2 of 3
    2.0
    """
    centred = rows - rows.mean(0)
    gram = centred @ centred.T
    penalty = ridge * gram.diagonal().mean() * torch.eye(len(rows), dtype=rows.dtype)
    return centred.T @ torch.linalg.solve(gram + penalty, target - target.mean(0))


def folds(n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return a random fold for each row, all of `FOLDS` as even as can be.

    >>> folds(10, torch.Generator().manual_seed(0)).bincount().tolist()
    [2, 2, 2, 2, 2]
    """
    return torch.randperm(n, generator=generator) % FOLDS


def k_fold(
    design: Float[Tensor, "n column"], fold: Int[Tensor, " n"]
) -> Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]:
    """Return the function that predicts each fold's rows by least squares on the other folds.

    >>> line = torch.arange(4.0)[:, None]
    >>> k_fold(line, torch.tensor([0, 0, 1, 1]))(3 * line).flatten().round(decimals=3).tolist()
    [0.0, 3.0, 6.0, 9.0]
    """
    splits = []
    for k in fold.unique():
        out = fold == k
        splits.append((out, design[out], torch.linalg.pinv(design[~out])))

    def predict(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        predicted = torch.empty_like(rows)
        for out, own, inverse in splits:
            predicted[out] = own @ (inverse @ rows[~out])
        return predicted

    return predict


def projected(
    rows: Float[Tensor, "n d"], fold: Int[Tensor, " n"], rank: int
) -> Float[Tensor, "n d"]:
    """Return each fold's rows on the first principal components of the other folds.

    No prediction, since it looks at the rows themselves: a ceiling for those of `k_fold`.

    >>> rows = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 5.0]])
    >>> projected(rows, torch.tensor([0, 0, 0, 1]), rank=1)[3]
    tensor([4.5000, 4.5000])
    """
    projections = torch.empty_like(rows)
    for k in fold.unique():
        out = fold == k
        centre = rows[~out].mean(0)
        axes = torch.linalg.svd(rows[~out] - centre, full_matrices=False)[2][:rank]
        projections[out] = centre + (rows[out] - centre) @ axes.T @ axes
    return projections


# --- what a design explains ----------------------------------------------------------------------


def span(design: Float[Tensor, "n column"]) -> Float[Tensor, "n axis"]:
    """Return an orthonormal basis of the columns; those that depend on others add no axis.

    >>> span(torch.tensor([[1.0, 2.0], [1.0, 2.0]]).double()).shape  # twice the same column
    torch.Size([2, 1])
    """
    size = design.norm(dim=0).clamp_min(torch.finfo(design.dtype).tiny)
    axes, share, _ = torch.linalg.svd(design / size, full_matrices=False)
    return axes[:, share > _DEPENDENT * share[0]]


def without(rows: Float[Tensor, "n d"], axes: Float[Tensor, "n axis"]) -> Float[Tensor, "n d"]:
    """Return what least squares on orthonormal axes leaves of the rows.

    >>> without(torch.tensor([[1.0], [3.0]]), span(torch.ones(2, 1))).flatten().round(decimals=3)
    tensor([-1.,  1.])
    """
    return rows - axes @ (axes.T @ rows)


def polynomials(numbers: Int[Tensor, " n"], degree: int) -> Float[Tensor, "n axis"]:
    """Return an orthonormal basis of the polynomials up to a degree on these numbers.

    >>> polynomials(torch.arange(20), 3).shape, polynomials(torch.arange(2), 3).shape
    (torch.Size([20, 4]), torch.Size([2, 2]))
    """
    n = numbers.double()
    scaled = 2 * (n - n.min()) / (n.max() - n.min()).clamp_min(1) - 1
    columns = [torch.special.legendre_polynomial_p(scaled, k) for k in range(degree + 1)]
    return span(torch.stack(columns, 1))
