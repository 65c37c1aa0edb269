"""What every fitter of an eraser does: take in activations and labels, merge, and forget a fitted
eraser when it must.

What would fool it: class numbers handed over as one real column. As a quantity they have one
direction, and erasing it leaves most of the class means where they were; so a single column of
three or more whole numbers is refused.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks._leace_moments import JointMoments, flat_rows

F = TypeVar("F", bound="ConceptFitter")


class ConceptFitter:
    """Statistics of activations x and a concept z, fed batch by batch: an `Accumulator`."""

    def __init__(self, x_dim: int, z_dim: int, moments: JointMoments, *, numeric: bool) -> None:
        self.x_dim, self.z_dim, self.numeric = x_dim, z_dim, numeric
        self._moments = moments
        self._whole: frozenset[float] | None = None if numeric or z_dim > 1 else frozenset()
        self._cache: dict[str, Any] = {}

    def update(
        self: F,
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> F:
        """Take in one batch; one that raises leaves the statistics as they were.

        Args:
            x: activations of any floating-point dtype; every axis but the last counts as rows.
            z: one class number 0 ... z_dim - 1 per row (integers), or z_dim real columns per row.
                With fewer row axes than x a label counts for all rows behind it: `z [batch]` labels
                every position of a prompt.
            mask: which rows count, with the row axes of x or the first of them.

        Returns:
            The fitter.

        Raises:
            ToolkitError: shapes that do not fit, a NaN or infinity, or class numbers where real
                columns are meant.
        """
        if z is None:
            raise ToolkitError("an eraser needs labels: update(x, z), or record(..., labels=...).")
        if x.shape[-1] != self.x_dim:
            raise ToolkitError(
                f"x has {x.shape[-1]} features, but the fitter was made for x_dim={self.x_dim}."
            )
        rows, labels = flat_rows(x, z, mask, self.z_dim)
        whole = None if self._whole is None else _more_whole_numbers(self._whole, labels)
        self._moments.update(self._features(rows), labels)
        self._whole, self._cache = whole, {}
        return self

    def merge(self: F, other: F) -> F:
        """Take in everything `other` has seen.

        Returns:
            The fitter.

        Raises:
            ToolkitError: the two are of different kinds or dimensions.
        """
        if type(other) is not type(self):
            raise ToolkitError(
                f"a {type(self).__name__} merges with its own kind, not with a"
                f" {type(other).__name__}."
            )
        whole = (
            None
            if self._whole is None or other._whole is None
            else _refuse_classes(self._whole | other._whole)
        )
        self._moments.merge(other._moments)
        self._whole, self._cache = whole, {}
        return self

    @property
    def n(self) -> int:
        """Rows seen."""
        return self._moments.n

    @property
    def mean_x(self) -> Float[Tensor, " d"]:
        """Mean of x."""
        return self._moments.mean_x[: self.x_dim].clone()

    @property
    def mean_z(self) -> Float[Tensor, " k"]:
        """Mean of z: class frequencies where z is classes."""
        return self._moments.mean_z.clone()

    @property
    def sigma_xz(self) -> Float[Tensor, "d k"]:
        """Covariance of x and z, over n."""
        return self._moments.sigma_xz[: self.x_dim]

    @property
    def sigma_zz(self) -> Float[Tensor, "k k"]:
        """Covariance of z, over n."""
        return self._moments.sigma_zz

    def _features(self, rows: Tensor) -> Tensor:
        """What the statistics are taken of, for each row."""
        return rows


def count_columns(
    x: Float[Tensor, "*rows d"], z: Shaped[Tensor, "*labels"], mask: Bool[Tensor, "..."] | None
) -> int:
    """Return the z_dim that `z` asks for: its columns, one for real numbers, or one more than its
    last class number.

    Raises:
        ToolkitError: class numbers so far apart that most classes would have no row.
    """
    if z.dim() == x.dim() and z.shape[-1] > 1:
        return z.shape[-1]
    if z.is_floating_point() or z.dtype == torch.bool or not z.numel():
        return 1
    rows, numbers = flat_rows(x, z, mask, torch.iinfo(torch.int64).max)
    classes = int(numbers.max()) + 1 if len(numbers) else 1
    if classes > max(len(rows), 2):
        raise ToolkitError(
            f"class numbers go up to {classes - 1} for {len(rows)} rows; number the classes from 0"
            " without gaps, e.g. z = torch.unique(z, return_inverse=True)[1]."
        )
    return classes


def _more_whole_numbers(seen: frozenset[float], z: Tensor) -> frozenset[float] | None:
    """The values of a single real column so far, or None once one of them is no whole number."""
    values = z.unique()
    if not (
        values.isfinite() & (values == values.round())
    ).all():  # what is not finite is refused with the sums
        return None
    return _refuse_classes(seen | frozenset(values[:3].tolist()))


def _refuse_classes(values: frozenset[float]) -> frozenset[float]:
    if len(values) > 2:
        raise ToolkitError(
            "z is one real column that holds only whole numbers"
            f" ({', '.join(f'{v:g}' for v in sorted(values)[:3])}, ...). If they are class numbers,"
            " give integers and z_dim = number of classes (or one-hot columns): as a quantity they"
            " would leave most of the class means apart. If they are a quantity, say numeric=True."
        )
    return values
