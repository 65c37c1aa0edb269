"""Erasers beside LEACE: for known labels (oracle), and for any predictor of the concept (free
form).

Both subtract from an activation what is predicted of it from the concept: the oracle from the true
labels, the free form from a prediction of them. In mean squared distance: oracle <= free form <=
LEACE <= orthogonal projection, the second where the predictor is good.

What would fool it: their output is guarded against linear readers alone. What they subtract depends
on labels or predictions, so a non-linear reader may find more of the concept after than before.

Source: the oracle as in `concept-erasure`, the package of Belrose et al. 2023, arXiv:2306.03819.
The instrument form of the free form follows in a line: Cov(x - A f, z) = Cov(x, z) - A Cov(f, z),
which A = Cov(x, z) Cov(f, z)^+ makes zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks._leace_fitter import ConceptFitter, count_columns
from mechinterp_toolkit.hooks._leace_moments import JointMoments, flat_rows
from mechinterp_toolkit.hooks._leace_solve import whitened_concept


@dataclass(frozen=True)
class OracleEraser:
    """The map x -> x - coef (z - mean_z) for activations whose labels are known: moves x least of
    all maps of (x, z).

    It subtracts what the labels predict, so its output can tell them to a non-linear reader: no
    network should be trained on it.
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
        """Return the eraser of concept `z` from activations that are all there; arguments of
        `OracleFitter.fit`."""
        return OracleFitter.fit(x, z, mask, **options).eraser

    def __call__(
        self, x: Float[Tensor, "*rows d"], z: Shaped[Tensor, "*labels"]
    ) -> Float[Tensor, "*rows d"]:
        """Return `x` with everything linear in its labels `z` subtracted, in its dtype."""
        _, labels = flat_rows(x, z, None, len(self.mean_z))
        if not labels.is_floating_point():
            labels = torch.nn.functional.one_hot(labels, len(self.mean_z))
        told = (labels.double() - self.mean_z.to(labels.device)) @ self.coef.T.to(labels.device)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return (x.to(dtype) - told.reshape(x.shape).to(x.device, dtype)).to(x.dtype)


class OracleFitter(ConceptFitter):
    """Fits an `OracleEraser` from streamed activations and labels; memory is O(x_dim z_dim)."""

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        numeric: bool = False,
    ) -> None:
        """Start with no rows; arguments as in `LeaceFitter`."""
        moments = JointMoments(x_dim, z_dim, dtype=dtype, device=device, covariance=False)
        super().__init__(x_dim, z_dim, moments, numeric=numeric)

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"],
        mask: Bool[Tensor, "..."] | None = None,
        **options: Any,
    ) -> OracleFitter:
        """Return a fitter that has seen `x` and `z`."""
        return cls(x.shape[-1], count_columns(x, z, mask), **options).update(x, z, mask)

    @property
    def eraser(self) -> OracleEraser:
        """The eraser of what was seen so far, in float64.

        Raises:
            ToolkitError: fewer than two rows, or one class.
        """
        if "eraser" not in self._cache:
            from_z = whitened_concept(self._moments)
            self._cache["eraser"] = OracleEraser(self.sigma_xz @ from_z @ from_z.T, self.mean_z)
        return self._cache["eraser"]


@dataclass(frozen=True)
class FreeFormEraser:
    """The map x -> x - coef (f(x) - mean_f) for a predictor f of the concept: no labels needed, any
    shape of f.

    With f(x) = E[z | x] it moves x least of all functions of x that leave no linear trace of z;
    with any other f that covaries with all of z it still leaves none, only moves x further. `coef`
    is the instrument form, Cov(x, z) Cov(f, z)^+, which is what makes the trace zero for an f that
    is only an estimate.
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
        """Return the eraser of `z` by `predictor` from activations that are all there."""
        z_dim = count_columns(x, z, mask)
        fitter = FreeFormFitter(predictor, x.shape[-1], z_dim, **options)
        return fitter.update(x, z, mask).eraser

    def __call__(
        self, activation: Float[Tensor, "*rows d"], hook: object = None
    ) -> Float[Tensor, "*rows d"]:
        """Return the activation with the concept erased, in its dtype and on its device."""
        rows = activation.reshape(-1, activation.shape[-1])
        dtype = torch.promote_types(activation.dtype, torch.float32)
        device = activation.device
        told = (
            self.predictor(rows).to(device, dtype) - self.mean_f.to(device, dtype)
        ) @ self.coef.T.to(device, dtype)
        return (activation.to(dtype) - told.reshape(activation.shape)).to(activation.dtype)


class FreeFormFitter(ConceptFitter):
    """Fits a `FreeFormEraser` from streamed activations and labels; memory is O(x_dim z_dim)."""

    def __init__(
        self,
        predictor: Callable[[Tensor], Tensor],
        x_dim: int,
        z_dim: int,
        *,
        f_dim: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        numeric: bool = False,
    ) -> None:
        """Start with no rows.

        Args:
            predictor: rows [n x_dim] to predictions [n f_dim], such as class probabilities.
            x_dim: features of the activations.
            z_dim: number of classes, or of real columns.
            f_dim: columns of the predictions; None means as many as z_dim.
            dtype: as in `LeaceFitter`, like `device` and `numeric`.
            device: where the statistics live.
            numeric: says that whole numbers in a single column are a quantity.
        """
        # The predictions are further features: one pass gives their covariance with z beside that
        # of x.
        self.predictor, self.f_dim = predictor, z_dim if f_dim is None else f_dim
        moments = JointMoments(
            x_dim + self.f_dim, z_dim, dtype=dtype, device=device, covariance=False
        )
        super().__init__(x_dim, z_dim, moments, numeric=numeric)

    @property
    def eraser(self) -> FreeFormEraser:
        """The eraser of what was seen so far, in float64.

        Raises:
            ToolkitError: fewer than two rows, one class, or a predictor blind to a part of the
                concept.
        """
        if "eraser" not in self._cache:
            from_z = whitened_concept(self._moments)
            told = self._moments.sigma_xz[self.x_dim :] @ from_z
            cross = self.sigma_xz @ from_z
            coef = _through(told, cross)
            mean_f = self._moments.mean_x[self.x_dim :].clone()
            self._cache["eraser"] = FreeFormEraser(self.predictor, coef, mean_f)
        return self._cache["eraser"]

    def _features(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            told = self.predictor(rows)
        if tuple(told.shape) != (len(rows), self.f_dim):
            raise ToolkitError(
                f"the predictor made {tuple(told.shape)} of {len(rows)} rows; expected one row of"
                f" f_dim={self.f_dim} numbers for each."
            )
        wide = torch.promote_types(told.dtype, torch.promote_types(rows.dtype, torch.float32))
        return torch.cat([rows.to(wide), told.to(rows.device, wide)], 1)


def _through(told: Float[Tensor, "f k"], cross: Float[Tensor, "d k"]) -> Float[Tensor, "d f"]:
    """Solve coef told = cross: what each prediction has to subtract for no covariance with z to be
    left."""
    size = told.norm(dim=1, keepdim=True)
    unit = torch.where(
        size > 0, told / size, 0
    )  # the units of predictions do not decide which of them count
    coef = cross @ torch.linalg.pinv(unit, rtol=1e-10)
    left = (cross - coef @ unit).norm() / cross.norm().clamp(min=torch.finfo(cross.dtype).tiny)
    if left > 1e-9:
        raise ToolkitError(
            "the predictor says nothing about a part of the concept: subtracting its predictions"
            f" leaves {left:.2g} of the covariance. Give a predictor with a column for every class,"
            " that tells all of them apart."
        )
    return torch.where(size > 0, coef.T / size, 0).T
