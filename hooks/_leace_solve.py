"""From moments to the subspace that carries a concept: the linear algebra behind an eraser.

With S = Cov(x), C = Cov(x, z) and any F with S = F F', the whitened features F^-1 x have the
canonical correlations of x and z as singular values of B = F^-1 C Szz^(-1/2), and LEACE is
P = I - F U U' F^-1 with U the left singular vectors of B that are not zero. F is a Cholesky factor,
much cheaper than an eigendecomposition; where S is singular (fewer rows than features, repeated
features, rows that sum to zero) it comes from eigenvectors.

What would fool it: units. So features and concept are first divided by their standard deviations
(which changes nothing: LEACE is equivariant), and ranks are read off correlations, never off
covariances: a class of one row in ten thousand, z in units of 1e-6 or a feature 10,000 times larger
than the others count like any other.

Source: Belrose et al. 2023, LEACE: Perfect linear concept erasure in closed form, arXiv:2306.03819,
Theorem 4.2, with F^-1 for its W = S^(+1/2): to rotate the whitened features changes nothing.
Shrinkage by Bodnar, Gupta & Parolya 2014, arXiv:1308.2608.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.moments import Moments

# Largest part of a concept's correlations that may stay, relative to them, before the covariance is
# factorised anew. A pseudo-inverse that fits leaves 1e-15 of them, one that cuts off a feature
# leaves all.
_LEFT = 1e-12

# Eigenvalues of z's correlation matrix up to this part of the largest are no directions of z, as
# one-hot columns add up to one. Sums over n rows are off by about sqrt(n) eps, 1e-12 at ten million
# rows; such a direction, if kept, would be rounding errors magnified to variance one.
_REDUNDANT = 1e-12

# How many times the variance of rounding a direction must vary to be one: rounding is not quite
# independent.
_ABOVE_NOISE = 16


@dataclass(frozen=True)
class Root:
    """F with F F' the covariance of standardised features, and the inverse of F on its range."""

    factor: Float[Tensor, "d rank"]
    """F: lower triangular and square, or eigenvectors times the roots of their eigenvalues."""

    inverse: Float[Tensor, "rank d"] | None = None
    """F^+; None where F is triangular and solving is cheaper."""

    null: Float[Tensor, "d nullity"] | None = None
    """Eigenvectors of eigenvalue zero; None where there are none."""

    def whiten(self, columns: Float[Tensor, "d k"]) -> Float[Tensor, "rank k"]:
        """Return F^+ columns."""
        if self.inverse is None:
            return torch.linalg.solve_triangular(self.factor, columns, upper=False)
        return self.inverse @ columns

    def read(self, basis: Float[Tensor, "rank k"]) -> Float[Tensor, "k d"]:
        """Return basis' F^+."""
        if self.inverse is None:
            return torch.linalg.solve_triangular(self.factor.mT, basis, upper=True).mT
        return basis.mT @ self.inverse


@dataclass(frozen=True)
class ConceptSubspace:
    """The directions of x that say anything linear about z."""

    root: Root
    """Whitening of the standardised features."""

    sd: Float[Tensor, " d"]
    """Standard deviation of each feature; 0 where it is constant."""

    basis: Float[Tensor, "whitened concept_rank"]
    """U: orthonormal directions of the whitened features, by falling canonical correlation."""

    correlation: Float[Tensor, " concept_rank"]
    """Canonical correlations of x and z, those that are zero left out, falling."""

    cross: Float[Tensor, "d concept_rank"]
    """Covariance of x with the canonical variates of z: the same range as Cov(x, z)."""

    absent: tuple[int, ...]
    """Columns of z that never vary: classes without a row."""

    def oblique(
        self, basis: Float[Tensor, "whitened r"]
    ) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r d"]]:
        """Return (left, right), of which I - left right is the projection that removes `basis`."""
        left, inverse = self.sd[:, None] * (self.root.factor @ basis), _inverse(self.sd)
        right = self.root.read(basis) * inverse
        if self.root.null is not None:
            # Where no row has ever been the map is the identity. That place is orthogonal to all
            # rows in the features as they are, which the inverse of standardised ones is not.
            unseen = torch.linalg.qr(inverse[:, None] * self.root.null).Q
            right = right - (right @ unseen) @ unseen.T
        return left.contiguous(), right.contiguous()


def concept_subspace(
    moments: Moments, *, shrinkage: bool, rank_tol: float | None
) -> ConceptSubspace:
    """Find the directions of x that say anything linear about z.

    Args:
        moments: of x and z.
        shrinkage: whether the covariance of x is shrunk before it is inverted.
        rank_tol: canonical correlations up to this count as zero; None means rounding error.

    Raises:
        ToolkitError: fewer than two rows, z or x never varies, or a feature varies less than
            rounding shows.

    >>> moments = Moments(2, 1).update(torch.tensor([[0.0, 1], [2, 1], [0, 3], [2, 3]]),
    ...                                torch.tensor([0.0, 1, 0, 1]))
    >>> subspace = concept_subspace(moments, shrinkage=False, rank_tol=None)
    >>> subspace.basis.abs().tolist(), subspace.correlation.tolist()  # the first feature says all
    ([[1.0], [0.0]], [1.0])
    """
    from_z = whitened_concept(moments)
    sigma = optimal_linear_shrinkage(moments.sigma_xx, moments.n) if shrinkage else moments.upper_xx
    varies = _varies(moments)
    sd = sigma.diagonal().clamp(min=0).sqrt() * varies
    inverse = _inverse(sd)
    cross = moments.sigma_xz @ from_z
    standard = inverse[:, None] * cross
    correlation_matrix = sigma.mul_(inverse[:, None]).mul_(inverse)
    correlation_matrix.diagonal().fill_(1)  # a constant feature stands apart, correlated with none
    tol = 16 * _rounding(moments.x_dim, moments.eps) if rank_tol is None else rank_tol
    noise = _input_noise(moments) * inverse**2
    root, u, s, v = _canonical(
        correlation_matrix, standard, moments.eps, noise, singular=moments.n <= moments.x_dim
    )
    kept = s > tol
    absent = (from_z == 0).all(1).nonzero().flatten().tolist()
    return ConceptSubspace(root, sd, u[:, kept], s[kept], cross @ v[:, kept], tuple(absent))


def optimal_linear_shrinkage(
    S_n: Float[Tensor, "*batch p p"], n: int
) -> Float[Tensor, "*batch p p"]:
    """Shrink sample covariances towards the multiple of the identity of the same trace.

    Best in Frobenius norm among all such mixtures as p and n grow together, whatever the
    distribution (finite moments of order four). Worth it where n is of the order of p; it costs
    LEACE its optimality, never its guarantee.

    Args:
        S_n: sample covariances, over n.
        n: rows they were taken over.

    Returns:
        The mixtures, in the unit of `S_n`. The weight of `S_n` stays within [0, 1], which the
        formula alone leaves when n is small.

    Source: Bodnar, Gupta & Parolya 2014, arXiv:1308.2608.

    >>> optimal_linear_shrinkage(torch.diag(torch.tensor([3.0, 1.0])), n=8)
    tensor([[2., 0.],
            [0., 2.]])
    """
    p = S_n.shape[-1]
    trace = S_n.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    spread = S_n.square().sum((-2, -1), keepdim=True) - trace**2 / p  # squared, from the target
    noise = trace**2 / n
    floor = torch.finfo(S_n.dtype).tiny
    # Their alpha, the best weight, would be negative when n is small: then none of S_n is kept.
    weight = torch.where(spread > noise, 1 - noise / spread.clamp(min=floor), 0)
    target = torch.eye(p, dtype=S_n.dtype, device=S_n.device) * (trace / p)
    return weight * S_n + (1 - weight) * target


def whitened_concept(moments: Moments) -> Float[Tensor, "z_dim rank"]:
    """Return W with W' Szz W = I: the columns of z W are uncorrelated and of variance one.

    Raises:
        ToolkitError: fewer than two rows, or z never varies.

    >>> moments = Moments(1, 1).update(torch.zeros(4, 1), torch.tensor([0.5, 2.5, 4.5, 6.5]))
    >>> round(float(whitened_concept(moments) ** 2 * moments.sigma_zz), 9)
    1.0
    """
    sigma = moments.sigma_zz
    if moments.n < 2:
        raise ToolkitError(f"erasing a concept needs at least two rows; {moments.n} has been seen.")
    inverse = _inverse(sigma.diagonal().clamp(min=0).sqrt())
    if not inverse.any():
        raise ToolkitError(
            f"z is the same in all {moments.n} rows, so there is no concept to erase; give rows of"
            " at least two classes."
        )
    values, vectors = torch.linalg.eigh(inverse[:, None] * sigma * inverse)
    kept = values > _REDUNDANT * values[-1]
    return inverse[:, None] * vectors[:, kept] * values[kept].rsqrt()


def _varies(moments: Moments) -> Tensor:
    """Which features vary at all."""
    variance = moments.variance_x
    if not variance.isfinite().all():
        raise ToolkitError(
            "the squares of x are too large for the dtype of the products; use dtype=torch.float64."
        )
    lost = (variance <= 0) & (moments.sigma_xz != 0).any(1)
    if lost.any():
        raise ToolkitError(
            f"{int(lost.sum())} features (first {lost.nonzero().flatten()[:3].tolist()}) vary, but"
            " their deviations are too small to be squared; give larger numbers, or"
            " dtype=torch.float64."
        )
    if not (variance > 0).any():
        raise ToolkitError(
            f"x is the same in all {moments.n} rows; there is nothing to erase a concept from."
        )
    return variance > 0


def _input_noise(moments: Moments) -> Tensor:
    """Variance that rounding x to its dtype puts on each feature.

    Rounding is at most half a unit of the last digit, at any value.
    """
    return (moments.x_eps / 2) ** 2 * (moments.mean_x.square() + moments.variance_x)


def _canonical(
    matrix: Tensor, standard: Tensor, eps: float, noise: Tensor, *, singular: bool
) -> tuple[Root, Tensor, Tensor, Tensor]:
    """Whitening by `matrix` (its upper triangle), and the decomposition of whitened correlations.

    Directions that vary by no more than the rounding of x (`noise`, a variance per feature) are
    left alone: behind a LayerNorm all features add up to zero but for rounding, and to whiten that
    direction would magnify rounding a million times, for class means that differ there by less than
    the last digit of an activation. By Cauchy-Schwarz no more than this stays.

    A covariance can be singular, and then its range must hold the correlations with z. Where
    rounding has put a part of them outside, cutting it off would leave it unerased; instead the
    small eigenvalues are lifted to the cut, because any positive-definite matrix in place of the
    covariance keeps the guarantee.
    """
    root = None if singular else _cholesky_root(matrix, eps, float(noise.max()))
    if root is not None:
        return root, *_svd(root.whiten(standard))
    values, vectors = torch.linalg.eigh(matrix, UPLO="U")
    cut = _cut(len(matrix), eps, values[-1].item())
    rounding = values <= _ABOVE_NOISE * (vectors.square().mT @ noise)
    root = _eigen_root(values, vectors, (values > cut) & ~rounding)
    u, s, v = _svd(root.whiten(standard))
    outside = standard - root.factor @ root.whiten(standard)
    outside -= vectors[:, rounding] @ (vectors[:, rounding].mT @ outside)
    allowed = _LEFT * standard.norm(dim=0) + _rounding(len(matrix), torch.finfo(torch.float64).eps)
    if (outside.norm(dim=0) > allowed).any():
        root = _eigen_root(values.clamp(min=cut), vectors, ~rounding)
        u, s, v = _svd(root.whiten(standard))
    return root, u, s, v


def _rounding(d: int, eps: float) -> float:
    """Length of d correlations that are all zero but for rounding."""
    return 4 * d**0.5 * eps


def _cut(d: int, eps: float, largest: float) -> float:
    """Eigenvalues up to this are rounding errors, of a correlation matrix or its decomposition."""
    return _rounding(d, eps) + 4 * d * torch.finfo(torch.float64).eps * largest


def _cholesky_root(matrix: Tensor, eps: float, noise: float) -> Root | None:
    """Triangular root, or None where the matrix is singular but for rounding."""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=True)
    if info.item():
        return None
    root = Root(factor.mT)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(matrix), 4, generator=generator, dtype=matrix.dtype).to(matrix.device)
    # Inverse iteration: the growth tends to the inverse of the smallest eigenvalue.
    for _ in range(3):
        vector = root.read(root.whiten(vector / vector.norm(dim=0))).mT
    smallest = 1 / vector.norm(dim=0).max().item()
    most = float(len(matrix))  # no eigenvalue exceeds the trace
    return root if smallest > 2 * _cut(len(matrix), eps, most) + _ABOVE_NOISE * noise else None


def _eigen_root(values: Tensor, vectors: Tensor, kept: Tensor) -> Root:
    roots, seen = values[kept].sqrt(), vectors[:, kept]
    return Root(seen * roots, (seen / roots).mT, None if kept.all() else vectors[:, ~kept])


def _svd(whitened: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(whitened, full_matrices=False)
    return u, s, vh.mT


def _inverse(sd: Tensor) -> Tensor:
    """1 / sd, and 0 where sd is 0."""
    return torch.where(sd > 0, 1 / sd, 0)
