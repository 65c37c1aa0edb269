"""Erasers beside LEACE: for known labels (oracle), or any predictor of the concept (free form).

Both subtract from an activation what is predicted of it from the concept: the oracle from the true
labels, the free form from a prediction of them. In mean squared distance: oracle <= free form <=
LEACE <= orthogonal projection, the second where the predictor is good.

What would fool it: their output is guarded against linear readers alone. What they subtract depends
on labels or predictions, so a non-linear reader may find more of the concept after than before.

Source: the oracle as in `concept-erasure`, the package of Belrose et al. 2023, arXiv:2306.03819;
the free form by Dury & Belrose 2024, blog.eleuther.ai/free-form-leace, Theorem 1. Its instrument
form follows in a line: Cov(x - A f, z) = Cov(x, z) - A Cov(f, z), which A = Cov(x, z) Cov(f, z)^+
makes zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks._leace_fitter import ConceptFitter
from mechinterp_toolkit.hooks._leace_solve import whitened_concept
from mechinterp_toolkit.moments import labelled_rows

F = TypeVar("F", bound="FreeFormFitter")


@dataclass(frozen=True)
class OracleEraser:
    """The map x -> x - coef (z - mean_z) for activations whose labels are known.

    It moves x least of all maps of (x, z). But it subtracts what the labels predict, so its output
    can tell them to a non-linear reader: no network should be trained on it.

    >>> x, z = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 1, 1])
    >>> OracleEraser.fit(x, z)(x, z).round(decimals=4).tolist()  # every class at the mean, 3
    [[3.0], [2.0], [4.0]]
    """

    coef: Float[Tensor, "d k"]
    """Regression coefficients of x on z."""

    mean_z: Float[Tensor, " k"]
    """Mean of z."""

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"],
        mask: Bool[Tensor, "..."] | None = None,
        **options: Any,
    ) -> OracleEraser:
        """Return the eraser of concept `z`; arguments and errors are those of `OracleFitter`."""
        return OracleFitter.fit(x, z, mask, **options).eraser

    def __call__(
        self, x: Float[Tensor, "*rows d"], z: Shaped[Tensor, "*labels"]
    ) -> Float[Tensor, "*rows d"]:
        """Return `x` with everything linear in its labels `z` subtracted, in its dtype."""
        _, labels = labelled_rows(x, z, None, len(self.coef), len(self.mean_z))
        if not labels.is_floating_point():
            labels = torch.nn.functional.one_hot(labels, len(self.mean_z))
        return _without(x, labels, self.mean_z, self.coef)


class OracleFitter(ConceptFitter):
    """Fits an `OracleEraser` from streamed activations and labels; memory is O(x_dim z_dim)."""

    def __init__(self, x_dim: int, z_dim: int, **options: Any) -> None:
        """Start with no rows; options are `numeric`, `dtype` and `device`, as in `LeaceFitter`."""
        super().__init__(x_dim, z_dim, covariance=False, **options)

    @cached_property
    def eraser(self) -> OracleEraser:
        """The eraser of what was seen so far, in float64.

        Raises:
            ToolkitError: fewer than two rows, or one class.
        """
        from_z = whitened_concept(self)
        return OracleEraser(self.sigma_xz @ from_z @ from_z.T, self.mean_z)


@dataclass(frozen=True)
class FreeFormEraser:
    """The map x -> x - coef (f(x) - mean_f) for a predictor f of the concept: no labels needed.

    With f(x) = E[z | x] it moves x least of all functions of x that leave no linear trace of z;
    with any other f that covaries with all of z it still leaves none, only moves x further. `coef`
    is the instrument form, Cov(x, z) Cov(f, z)^+, which is what makes the trace zero for an f that
    is only an estimate.

    >>> x, z = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 1, 1])
    >>> eraser = FreeFormEraser.fit(x, z, lambda rows: torch.cat([rows < 3, rows >= 3], 1).float())
    >>> eraser(x).round(decimals=4).tolist()  # as the oracle, for this predictor is never wrong
    [[3.0], [2.0], [4.0]]
    """

    predictor: Callable[[Tensor], Tensor]
    """f: rows [n d] to predictions [n k]."""

    coef: Float[Tensor, "d k"]
    """What each prediction subtracts."""

    mean_f: Float[Tensor, " k"]
    """Mean prediction."""

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"],
        predictor: Callable[[Tensor], Tensor],
        mask: Bool[Tensor, "..."] | None = None,
        **options: Any,
    ) -> FreeFormEraser:
        """Return the eraser of `z` by `predictor`; options are those of `FreeFormFitter`."""
        return FreeFormFitter.fit(x, z, mask, predictor=predictor, **options).eraser

    def __call__(
        self, activation: Float[Tensor, "*rows d"], hook: object = None
    ) -> Float[Tensor, "*rows d"]:
        """Return the activation with the concept erased, in its dtype and on its device."""
        told = self.predictor(activation.reshape(-1, activation.shape[-1]))
        return _without(activation, told, self.mean_f, self.coef)


class FreeFormFitter(ConceptFitter):
    """Fits a `FreeFormEraser` from streamed activations and labels; memory is O(x_dim z_dim).

    The predictions count as features behind those of x: one pass gives the covariance of both with
    z, and `x_dim`, `mean_x` and `sigma_xz` hold both.
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        predictor: Callable[[Tensor], Tensor],
        *,
        f_dim: int | None = None,
        **options: Any,
    ) -> None:
        """Start with no rows.

        Args:
            x_dim: features of the activations.
            z_dim: number of classes, or of real columns.
            predictor: rows [n x_dim] to predictions [n f_dim], such as class probabilities.
            f_dim: columns of the predictions; None means as many as z_dim.
            **options: `numeric`, `dtype` and `device`, as in `LeaceFitter`.
        """
        self.predictor, self.f_dim = predictor, z_dim if f_dim is None else f_dim
        super().__init__(x_dim + self.f_dim, z_dim, covariance=False, **options)

    def update(
        self: F,
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> F:
        """Take in one batch, and what is predicted of its rows."""
        rows, labels = labelled_rows(x, z, mask, self.x_dim - self.f_dim, self.z_dim)
        with torch.no_grad():
            told = self.predictor(rows)
        if tuple(told.shape) != (len(rows), self.f_dim):
            raise ToolkitError(
                f"the predictor made {tuple(told.shape)} of {len(rows)} rows; expected one row of"
                f" f_dim={self.f_dim} numbers for each."
            )
        wide = torch.promote_types(told.dtype, torch.promote_types(rows.dtype, torch.float32))
        return super().update(torch.cat([rows.to(wide), told.to(rows.device, wide)], 1), labels)

    @cached_property
    def eraser(self) -> FreeFormEraser:
        """The eraser of what was seen so far, in float64.

        Raises:
            ToolkitError: fewer than two rows, one class, or a predictor blind to a part of the
                concept.
        """
        d = self.x_dim - self.f_dim
        cross = self.sigma_xz @ whitened_concept(self)
        return FreeFormEraser(self.predictor, _through(cross[d:], cross[:d]), self.mean_x[d:])


def _without(x: Tensor, told: Tensor, mean: Tensor, coef: Tensor) -> Tensor:
    """x - coef (told - mean) in the dtype of x; half precision is computed in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    told, mean, coef = (part.to(x.device, dtype) for part in (told, mean, coef))
    return (x.to(dtype) - ((told - mean) @ coef.T).reshape(x.shape)).to(x.dtype)


def _through(told: Float[Tensor, "f k"], cross: Float[Tensor, "d k"]) -> Float[Tensor, "d f"]:
    """Solve coef told = cross, so that no covariance with z is left."""
    size = told.norm(dim=1, keepdim=True)
    # In units of its own each prediction counts alike.
    unit = torch.where(size > 0, told / size, 0)
    coef = cross @ torch.linalg.pinv(unit, rtol=1e-10)
    left = (cross - coef @ unit).norm() / cross.norm().clamp(min=torch.finfo(cross.dtype).tiny)
    if left > 1e-9:  # float64 leaves 1e-15, a class that is never predicted a good part of 1
        raise ToolkitError(
            "the predictor says nothing about a part of the concept: subtracting its predictions"
            f" leaves {left:.2g} of the covariance. Give a predictor with a column for every class,"
            " that tells all of them apart."
        )
    return torch.where(size > 0, coef.T / size, 0).T
