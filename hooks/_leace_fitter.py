"""What every fitter of an eraser does: take in activations and labels, and refuse the wrong ones.

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
from mechinterp_toolkit.moments import Moments, labelled_rows

F = TypeVar("F", bound="ConceptFitter")


class ConceptFitter(Moments):
    """Moments of activations x and a concept z, from which an eraser is computed when asked for."""

    def __init__(self, x_dim: int, z_dim: int, *, numeric: bool = False, **statistics: Any) -> None:
        """Start with no rows.

        Args:
            x_dim: features of the activations.
            z_dim: number of classes, or of real columns; at least 1.
            numeric: says that whole numbers in a single column are a quantity, such as a year, and
                no class numbers.
            **statistics: `dtype` and `device`, see `Moments`.
        """
        if z_dim < 1:
            raise ToolkitError(
                f"z_dim is the number of classes or columns, at least 1; got {z_dim}."
            )
        super().__init__(x_dim, z_dim, **statistics)
        self._whole: frozenset[float] | None = None if numeric or z_dim > 1 else frozenset()

    @classmethod
    def fit(
        cls: type[F],
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"],
        mask: Bool[Tensor, "..."] | None = None,
        **options: Any,
    ) -> F:
        """Return a fitter that has seen `x` and `z`, of as many classes as the largest number says.

        Raises:
            ToolkitError: as `update`, or class numbers so far apart that most have no row.
        """
        return cls(x.shape[-1], count_columns(x, z, mask), **options).update(x, z, mask)

    def update(
        self: F,
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> F:
        """Take in one batch like `Moments.update`; class numbers as a quantity are refused too."""
        rows, labels = labelled_rows(x, z, mask, self.x_dim, self.z_dim)
        whole = None if self._whole is None else _more_whole_numbers(self._whole, labels)
        self._take(rows, labels)
        self._note(whole)
        return self

    def merge(self: F, other: F) -> F:
        """Take in everything `other` has seen; errors are those of `Moments.merge` and `update`."""
        whole = (
            None
            if self._whole is None or other._whole is None
            else _refuse_classes(self._whole | other._whole)
        )
        super().merge(other)
        self._note(whole)
        return self

    def _note(self, whole: frozenset[float] | None) -> None:
        """Remember the whole numbers so far, and forget what was fitted to fewer rows."""
        self._whole = whole
        for fitted in ("eraser", "subspace"):
            self.__dict__.pop(fitted, None)


def count_columns(
    x: Float[Tensor, "*rows d"], z: Shaped[Tensor, "*labels"], mask: Bool[Tensor, "..."] | None
) -> int:
    """Return the z_dim that `z` asks for: columns, 1 for real numbers, or the number of classes.

    Raises:
        ToolkitError: class numbers so far apart that most classes would have no row.

    >>> x = torch.zeros(4, 2)
    >>> count_columns(x, torch.tensor([0, 2, 1, 2]), None), count_columns(x, torch.rand(4), None)
    (3, 1)
    """
    if z.dim() == x.dim() and z.shape[-1] > 1:
        return z.shape[-1]
    if z.is_floating_point() or z.dtype == torch.bool or not z.numel():
        return 1
    rows, numbers = labelled_rows(x, z, mask, x.shape[-1], torch.iinfo(torch.int64).max)
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
    # What is not finite is refused with the sums.
    if not (values.isfinite() & (values == values.round())).all():
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
