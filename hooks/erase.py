"""How does an activation look with a concept erased, and everything else as it was?

LEACE removes exactly what linear predictors can read: after it every class has the same mean, so no
affine predictor of the concept beats the best constant, for any convex loss; among all affine maps
that achieve this it moves the activations least, in every metric at once. Statistics stream through
a fitter, the fitted eraser is a small frozen edit for `applied`:

    fitter = LeaceFitter(d_model, n_classes)
    record(model, tokens, {name: fitter}, mask=mask, labels=labels)
    with applied(model, {name: fitter.eraser}): ...

What would fool it: the guarantee is about the rows it was fitted on; on others expect what noise of
order sqrt(d / n) allows. It says nothing about non-linear predictors. An equal-rank control decides
what erasing this concept did: `shuffled_eraser` removes as many directions, as far, that carry
labels without meaning.

Source: Belrose et al. 2023, LEACE: Perfect linear concept erasure in closed form, arXiv:2306.03819,
Theorems 4.2 and 4.3. Words as in the authors' package `concept-erasure`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks._leace_fitter import ConceptFitter
from mechinterp_toolkit.hooks._leace_solve import (
    ConceptSubspace,
    concept_subspace,
    optimal_linear_shrinkage,
)
from mechinterp_toolkit.hooks._leace_variants import (
    FreeFormEraser,
    FreeFormFitter,
    OracleEraser,
    OracleFitter,
)

__all__ = [
    "FreeFormEraser",
    "FreeFormFitter",
    "LeaceEraser",
    "LeaceFitter",
    "OracleEraser",
    "OracleFitter",
    "QualityReport",
    "optimal_linear_shrinkage",
    "quality",
    "random_eraser",
    "shuffled_eraser",
]

ErasureMethod = Literal["leace", "orth"]

_SCHEMA = "1"

# Numbers in one block of rows while erasing: few enough to stay in cache.
_BLOCK = 2**16


@dataclass(frozen=True)
class LeaceEraser:
    """The map x -> x - proj_left proj_right (x - bias), an edit for any hook point of this width.

    All positions are edited. Arithmetic is in the dtype of the activation, in float32 for half
    precision.

    >>> x = torch.tensor([[-1.0, -2.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    >>> eraser = LeaceEraser.fit(x, torch.tensor([0, 0, 1, 1]))
    >>> erased = torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0]])
    >>> torch.allclose(eraser(x), erased, atol=1e-6)  # both classes now have the mean (0, 0)
    True
    """

    proj_left: Float[Tensor, "d rank"]
    """What is subtracted, one column per erased direction."""

    proj_right: Float[Tensor, "rank d"]
    """How much of it is there, one row per erased direction."""

    bias: Float[Tensor, " d"] | None = None
    """Mean of the activations, which stays as it is; None where only the slope was asked for."""

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"],
        mask: Bool[Tensor, "..."] | None = None,
        **options: Any,
    ) -> LeaceEraser:
        """Return the eraser of concept `z`; arguments and errors are those of `LeaceFitter`."""
        return LeaceFitter.fit(x, z, mask, **options).eraser

    def __call__(
        self, activation: Float[Tensor, "*rows d"], hook: object = None
    ) -> Float[Tensor, "*rows d"]:
        """Return the activation with the concept erased, in its dtype and on its device.

        Raises:
            ToolkitError: the activation has another width than the one the eraser was fitted on.
        """
        factors = self._factors(activation, hook)
        rows = activation.reshape(-1, activation.shape[-1])
        needs_gradient = torch.is_grad_enabled() and activation.requires_grad
        if activation.device.type != "cpu" or needs_gradient:
            erased = _erase(rows.to(factors.left.dtype), factors)
            return erased.to(activation.dtype).reshape(activation.shape)
        result = torch.empty(rows.shape, dtype=activation.dtype)
        _erase_by_blocks(rows, factors, into=result)
        return result.reshape(activation.shape)

    def erase_(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Erase the concept from `x` in place, for arrays too large to hold twice.

        Returns:
            `x`.

        Raises:
            ToolkitError: another width, or `x` is a view whose rows do not lie one after the other,
                or needs a gradient.
        """
        factors = self._factors(x, None)
        if not x.is_contiguous() or (torch.is_grad_enabled() and x.requires_grad):
            raise ToolkitError(
                "only contiguous activations without gradient are erased in place; call eraser(x)."
            )
        rows = x.view(-1, x.shape[-1])
        _erase_by_blocks(rows, factors, into=rows)
        return x

    @property
    def P(self) -> Float[Tensor, "d d"]:
        """The slope of the map as a whole matrix."""
        slope = -self.proj_left @ self.proj_right
        slope.diagonal().add_(1)
        return slope

    @property
    def rank(self) -> int:
        """Number of directions erased."""
        return self.proj_left.shape[1]

    def scaled(self, strength: float) -> LeaceEraser:
        """Return the eraser that moves activations `strength` times as far; only 1 erases."""
        return replace(self, proj_left=self.proj_left * strength)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LeaceEraser:
        """Return the same eraser on `device`, kept in `dtype`.

        Raises:
            ToolkitError: `dtype` is not float32 or float64.
        """
        if dtype not in (None, torch.float32, torch.float64):
            raise ToolkitError(
                f"an eraser kept in {dtype} would leave a part of the concept; keep it in float32"
                " or float64, activations of any dtype are erased with it."
            )
        moved = {name: part.to(device=device, dtype=dtype) for name, part in self._parts().items()}
        return LeaceEraser(**moved)

    def save(self, path: str | Path) -> None:
        """Write the eraser to a safetensors file."""
        from safetensors.torch import save_file

        tensors = {name: part.contiguous() for name, part in self._parts().items()}
        save_file(tensors, str(path), metadata={"kind": "LeaceEraser", "schema": _SCHEMA})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> LeaceEraser:
        """Read an eraser written by `save`: the same bits.

        Raises:
            ToolkitError: the file holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                about = file.metadata() or {}
                kind, schema = about.get("kind", "no kind"), about.get("schema", "none")
                if (kind, schema) != ("LeaceEraser", _SCHEMA):
                    raise ToolkitError(
                        f"{path} holds {kind}, schema {schema}, not a LeaceEraser of schema"
                        f" {_SCHEMA}."
                    )
                return cls(**{name: file.get_tensor(name) for name in list(file.keys())})
        except (SafetensorError, FileNotFoundError) as error:
            raise ToolkitError(f"no eraser could be read from {path}: {error}") from error

    def _parts(self) -> dict[str, Tensor]:
        """The tensors that are there, by field."""
        parts = {"proj_left": self.proj_left, "proj_right": self.proj_right}
        return parts if self.bias is None else {**parts, "bias": self.bias}

    def _factors(self, x: Tensor, hook: object) -> _Factors:
        """The parts as they act on the rows of `x`."""
        d = len(self.proj_left)
        if x.shape[-1] != d:
            at = f" at {hook.name!r}" if hasattr(hook, "name") else ""
            raise ToolkitError(
                f"the eraser was fitted on {d} features; the activation{at} has {x.shape[-1]}."
            )
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        parts = {name: part.to(x.device, dtype) for name, part in self._parts().items()}
        left, right = (parts[name].T.contiguous() for name in ("proj_left", "proj_right"))
        return _Factors(left, right, parts.get("bias"))


class _Factors(NamedTuple):
    """rows - (rows - mean) right left is what an eraser makes of rows."""

    left: Tensor
    right: Tensor
    mean: Tensor | None


@dataclass(frozen=True)
class QualityReport:
    """What an eraser does to the rows that a fitter has seen."""

    n: int
    """Rows behind the statistics."""

    rank: int
    """Directions erased."""

    variance_removed: float
    """Part of the total variance of x that is gone, in [0, 1] for a projection (orthogonal or
    LEACE)."""

    distance: float
    """Mean squared distance between x and what becomes of it, in squared units of x, the shift of
    the mean left out."""

    cross_covariance_left: float
    """Largest part left of a column of z's correlations with x: 0 is erased, 1 untouched."""

    correlations: Float[Tensor, " concept_rank"]
    """Canonical correlations of x and z that the fitter's own eraser removes, falling. Noise alone
    gives sqrt(d / n)."""

    absent: tuple[int, ...]
    """Columns of z that never varied (classes without a row); nothing was erased for them."""


class LeaceFitter(ConceptFitter):
    """Fits a `LeaceEraser` from streamed activations and labels; memory is O(x_dim^2).

    >>> fitter = LeaceFitter(x_dim=2, z_dim=2)
    >>> fitter = fitter.update(torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]), torch.tensor([0, 0]))
    >>> fitter = fitter.update(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([1, 1]))
    >>> fitter.eraser.rank, round(fitter.report.variance_removed, 2)
    (1, 0.67)
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        *,
        method: ErasureMethod = "leace",
        affine: bool = True,
        shrinkage: bool = False,
        rank_tol: float | None = None,
        **options: Any,
    ) -> None:
        """Start with no rows.

        Args:
            x_dim: features of the activations.
            z_dim: number of classes, or of real columns.
            method: "leace", or "orth" for the orthogonal projection that removes the class means'
                differences (moves x further, and depends on the units of its features).
            affine: whether the mean of x stays; else only the slope is applied, and the mean moves.
            shrinkage: whether the covariance of x is shrunk (`optimal_linear_shrinkage`), for n of
                the order of x_dim.
            rank_tol: directions whose canonical correlation is at most this stay; None erases all
                but rounding errors.
            **options: `numeric` (whole numbers in a single column are a quantity, such as a year,
                and no class numbers), and `dtype` and `device` of the statistics, see `Moments`.

        Raises:
            ToolkitError: an unknown method, no columns, or another dtype.
        """
        if method not in get_args(ErasureMethod):
            raise ToolkitError(f"method is 'leace' or 'orth', not {method!r}.")
        super().__init__(x_dim, z_dim, **options)
        self.method, self.affine = method, affine
        self.shrinkage, self.rank_tol = shrinkage, rank_tol

    @cached_property
    def eraser(self) -> LeaceEraser:
        """The eraser of what was seen so far, in float64.

        Raises:
            ToolkitError: fewer than two rows, one class, or x is constant.
        """
        return self.project(self.subspace.basis, self.subspace.cross)

    @property
    def report(self) -> QualityReport:
        """What the eraser does to the rows seen."""
        return quality(self.eraser, self)

    @cached_property
    def subspace(self) -> ConceptSubspace:
        """The directions of x that say anything linear about z, by canonical correlation."""
        return concept_subspace(self, shrinkage=self.shrinkage, rank_tol=self.rank_tol)

    def project(
        self, basis: Float[Tensor, "whitened r"], cross: Float[Tensor, "d r"]
    ) -> LeaceEraser:
        """Return the eraser of `basis` among whitened features, or (orth) of `cross`'s range."""
        bias = self.mean_x if self.affine else None  # Theorem 4.3: b = E x - P E x
        if self.method == "leace":
            return LeaceEraser(*self.subspace.oblique(basis), bias)
        q = torch.linalg.qr(cross).Q.contiguous()
        return LeaceEraser(q, q.T.contiguous(), bias)


def quality(eraser: LeaceEraser, fitter: LeaceFitter) -> QualityReport:
    """Measure `eraser` on the rows that `fitter` has seen, which need not be its own.

    >>> fitter = LeaceFitter.fit(torch.tensor([[0.0, 1], [2, 1], [0, 3], [2, 3]]),
    ...                          torch.tensor([0, 1, 0, 1]))
    >>> round(quality(fitter.eraser, fitter).variance_removed, 9)  # one of two features
    0.5
    """
    # With P = I - L R and S = Cov(x): E|x' - x|^2 = tr(L R S R'L'), and the variance that is gone
    # is tr(S) - tr(P S P') = 2 tr(L R S) - tr(L R S R'L').
    sigma, cross = fitter.sigma_xx, fitter.sigma_xz
    left, right = eraser.proj_left.to(sigma), eraser.proj_right.to(sigma)
    moved = ((right @ sigma @ right.T) * (left.T @ left)).sum().item()
    removed = 2 * (right @ sigma @ left).trace().item() - moved
    return QualityReport(
        n=fitter.n,
        rank=eraser.rank,
        variance_removed=removed / sigma.trace().item(),
        distance=moved,
        cross_covariance_left=_largest_part(cross - left @ (right @ cross), cross, fitter),
        correlations=fitter.subspace.correlation,
        absent=fitter.subspace.absent,
    )


def random_eraser(
    x_dim: int, rank: int, *, mean: Float[Tensor, " d"] | None = None, seed: int = 0
) -> LeaceEraser:
    """Return the orthogonal projection off random directions: a control that knows no data.

    Args:
        x_dim: features of the activations.
        rank: number of directions, at most x_dim.
        mean: mean of the activations, which then stays; None moves it.
        seed: decides the directions, uniform over all subspaces.

    Raises:
        ToolkitError: there are not so many directions.

    >>> random_eraser(3, 3)(torch.tensor([[1.0, 2.0, 3.0]])).abs().max() < 1e-6
    tensor(True)
    """
    if not 0 <= rank <= x_dim:
        raise ToolkitError(
            f"{x_dim} features have between 0 and {x_dim} directions to erase, not {rank}."
        )
    q = _random_basis(x_dim, rank, seed)
    device = None if mean is None else mean.device
    return LeaceEraser(q, q.T.contiguous(), None if mean is None else mean.double()).to(device)


def shuffled_eraser(fitter: LeaceFitter, *, seed: int = 0, matched: bool = True) -> LeaceEraser:
    """Return an eraser of as many directions, of labels that mean nothing: the fair control.

    Labels shuffled over the rows covary with x by chance alone: their covariance is a random matrix
    with the covariance of x, so that among whitened features the subspace they span is uniform. It
    is drawn from there, without another pass. Where not rows but groups of rows are exchangeable
    (all tokens of one word, say), shuffle labels over the groups and fit again instead.

    Args:
        fitter: of the concept; its method, mean and number of directions are kept.
        seed: decides the directions.
        matched: whether the control also moves the activations as far, in mean square, as the
            eraser does. Otherwise it removes its directions exactly.

    >>> fitter = LeaceFitter.fit(torch.tensor([[0.0, 1], [2, 1], [0, 3], [2, 3]]),
    ...                          torch.tensor([0, 1, 0, 1]))
    >>> control = quality(shuffled_eraser(fitter, seed=1), fitter)
    >>> control.rank, round(control.distance, 6), control.cross_covariance_left > 0.1
    (1, 1.0, True)
    """
    subspace = fitter.subspace
    whitened, rank = subspace.root.factor.shape[1], len(subspace.correlation)
    basis = _random_basis(whitened, rank, seed).to(subspace.sd.device)
    control = fitter.project(basis, subspace.sd[:, None] * (subspace.root.factor @ basis))
    if not matched or not control.rank:
        return control
    # Distances grow with the square of the strength.
    further = fitter.report.distance / quality(control, fitter).distance
    return control.scaled(further**0.5)


def _random_basis(d: int, rank: int, seed: int) -> Float[Tensor, "d rank"]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(d, rank, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.contiguous()


def _largest_part(left: Tensor, whole: Tensor, fitter: LeaceFitter) -> float:
    """Largest ratio of columns.

    In standard deviations of x, so that large features and frequent classes hide no other.
    """
    variance = fitter.sigma_xx.diagonal()
    inverse = torch.where(fitter.subspace.sd > 0, variance.rsqrt(), 0)[:, None]
    sd_z = fitter.sigma_zz.diagonal().sqrt()
    before, after = (whole * inverse).norm(dim=0), (left * inverse).norm(dim=0)
    correlated = before > 1e-12 * sd_z  # below that a column's correlations are rounding errors
    return (after[correlated] / before[correlated]).max().item() if correlated.any() else 0.0


def _erase(rows: Tensor, by: _Factors) -> Tensor:
    centred = rows if by.mean is None else rows - by.mean
    return torch.addmm(rows, centred @ by.right, by.left, alpha=-1)


def _erase_by_blocks(rows: Tensor, by: _Factors, into: Tensor) -> None:
    """The same into memory that is there (that of `rows` too), a block of rows at a time.

    A block stays in cache between the three passes over it.
    """
    size = max(1, _BLOCK // rows.shape[1])
    room = torch.empty(size, rows.shape[1], dtype=by.left.dtype, device=rows.device)
    for block, target in zip(rows.split(size), into.split(size), strict=True):
        centred = block.to(room.dtype)
        if by.mean is not None:
            centred = torch.sub(block, by.mean, out=room[: len(block)])
        told = centred @ by.right
        if target.dtype == room.dtype:
            torch.addmm(block, told, by.left, alpha=-1, out=target)
        else:
            target.copy_(torch.addmm(block.to(room.dtype), told, by.left, alpha=-1))
