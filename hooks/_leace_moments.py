"""Count, means and co-moments of activations x and a concept z, streamed: all that an eraser is
computed from.

Each batch is centred before it is multiplied and the batches are combined by the updating formula
of Chan, Golub & LeVeque, so a mean a million times the spread costs no digit. Within a batch
products are taken in `dtype`; what is kept from batch to batch is float64 always.

What would fool it: raw sums of squares under a large mean, and labels that were read as something
else. Here the first cannot happen and the second is refused where it shows.

Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, The American
Statistician 37(3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError

# Rows multiplied at a time: enough for a product to run at full speed, and what bounds the memory
# of one batch.
CHUNK = 4096

# Only the upper block triangle of x'x is computed. Narrower blocks save more products but run
# slower one by one.
BLOCK = 256


class JointMoments:
    """Running count, means, and sums of products of deviations of rows (x, z)."""

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        covariance: bool = True,
    ) -> None:
        """Start with no rows.

        Args:
            x_dim: features of x.
            z_dim: columns of z, or number of classes.
            dtype: of the products within a batch, float32 or float64.
            device: where the sums live; None puts them where the first batch is.
            covariance: whether x'x is kept; without it memory is O(x_dim * z_dim).
        """
        if x_dim < 1 or z_dim < 1:
            raise ToolkitError(
                f"x_dim and z_dim are numbers of columns, at least 1; got {x_dim} and {z_dim}."
            )
        if dtype not in (torch.float32, torch.float64):
            raise ToolkitError(
                f"statistics are taken in float64 or float32, not {dtype}; activations may come in"
                f" {dtype} all the same."
            )
        self.x_dim, self.z_dim, self.dtype, self.covariance = x_dim, z_dim, dtype, covariance
        self.device = None if device is None else _with_float64(torch.device(device))
        self.eps: float = torch.finfo(dtype).eps  # relative rounding error of the products
        self.x_eps = 0.0  # relative rounding error of the activations themselves, the coarsest seen
        self.n = 0
        self._sums: dict[str, Tensor] = {}
        self._scratch: Tensor | None = None

    def update(self, x: Shaped[Tensor, "n x_dim"], z: Shaped[Tensor, "n *columns"]) -> None:
        """Take in rows; one batch that raises leaves everything as it was.

        Args:
            x: activations.
            z: one class number per row (integers), or one row of z_dim real numbers.

        Raises:
            ToolkitError: x or z is not finite.
        """
        if len(x) <= CHUNK:
            self._fold(x, z)
            return
        batch = JointMoments(
            self.x_dim,
            self.z_dim,
            dtype=self.dtype,
            device=self.device or x.device,
            covariance=self.covariance,
        )
        for start in range(0, len(x), CHUNK):
            batch._fold(x[start : start + CHUNK], z[start : start + CHUNK])
        self.merge(batch)

    def merge(self, other: JointMoments) -> None:
        """Take in everything `other` has seen.

        Raises:
            ToolkitError: the two differ in x_dim, z_dim or in what they keep.
        """
        for name in ("x_dim", "z_dim", "covariance"):
            if getattr(self, name) != getattr(other, name):
                raise ToolkitError(
                    f"statistics with {name} {getattr(self, name)} and {getattr(other, name)} do"
                    " not merge; fit both with the same arguments."
                )
        if not other.n:
            return
        self.eps = max(self.eps, other.eps)  # a sum is known as well as its worst part
        self.x_eps = max(self.x_eps, other.x_eps)
        sums = self._start(other.mean_x.device)
        apart_x, apart_z = (
            other._sums[m].to(sums[m].device) - sums[m] for m in ("mean_x", "mean_z")
        )
        weight = self._weight(other.n)
        for name, left, right in (
            ("xx", apart_x, apart_x),
            ("xz", apart_x, apart_z),
            ("zz", apart_z, apart_z),
        ):
            if name in sums:
                sums[name].add_(other._sums[name].to(left.device)).addr_(left, right, alpha=weight)
        self._move_means(apart_x, apart_z, other.n)

    @property
    def mean_x(self) -> Float[Tensor, " x_dim"]:
        """Mean of x."""
        return self._seen("mean_x")

    @property
    def mean_z(self) -> Float[Tensor, " z_dim"]:
        """Mean of z: the class frequencies where z is classes."""
        return self._seen("mean_z")

    @property
    def sigma_xx(self) -> Float[Tensor, "x_dim x_dim"]:
        """Covariance of x, over n."""
        upper = torch.triu(self.upper_xx)
        return upper + torch.triu(upper, 1).mT

    @property
    def upper_xx(self) -> Float[Tensor, "x_dim x_dim"]:
        """The same, with anything below the diagonal."""
        return self._seen("xx") / self.n

    @property
    def variance_x(self) -> Float[Tensor, " x_dim"]:
        """Variance of each feature, over n."""
        return self._seen("xx").diagonal() / self.n

    @property
    def sigma_xz(self) -> Float[Tensor, "x_dim z_dim"]:
        """Covariance of x with z, over n."""
        return self._seen("xz") / self.n

    @property
    def sigma_zz(self) -> Float[Tensor, "z_dim z_dim"]:
        """Covariance of z, over n."""
        return self._seen("zz") / self.n

    def _fold(self, x: Tensor, z: Tensor) -> None:
        """Take in at most `CHUNK` rows."""
        n = len(x)
        if not n:
            return
        self.x_eps = max(self.x_eps, torch.finfo(x.dtype).eps)
        x, z = (
            x.to(self.device or _with_float64(x.device)),
            z.to(self.device or _with_float64(x.device)),
        )
        # Any row near the mean serves as origin, for what it is off by is put right below; these
        # cost a sixteenth of the mean of all. A sample of f n rows lies at most sd / sqrt(f) from
        # the mean, so at most a digit is lost.
        origin = _middle(x[::16], torch.promote_types(x.dtype, self.dtype))
        centred = torch.sub(x, origin, out=self._room(n, x.device))
        columns, origin_z = self._columns(z)
        table = torch.cat([columns, columns.new_ones(n, 1)], 1).to(self.dtype)
        products = (table.T @ centred).double()  # in this order, the fast one: [z_dim + 1, x_dim]
        off_x, off_z = products[-1] / n, columns.mean(0)
        _check_finite(off_x, off_z)
        zz = torch.diag(columns.sum(0)) if not z.is_floating_point() else columns.T @ columns

        sums = self._start(x.device)
        apart_x, apart_z = (
            origin.double() + off_x - sums["mean_x"],
            origin_z + off_z - sums["mean_z"],
        )
        weight = self._weight(n)
        sums["xz"].add_(products[:-1].T).addr_(off_x, off_z, alpha=-n).addr_(
            apart_x, apart_z, alpha=weight
        )
        sums["zz"].add_(zz).addr_(off_z, off_z, alpha=-n).addr_(apart_z, apart_z, alpha=weight)
        if self.covariance:
            self._add_products(
                centred, torch.stack([off_x, apart_x]), off_x.new_tensor([-n, weight])
            )
        self._move_means(apart_x, apart_z, n)

    def _add_products(self, centred: Tensor, means: Tensor, weights: Tensor) -> None:
        """Add the upper block triangle of centred' centred, and of the weighted outer products of
        `means`."""
        xx = self._sums["xx"]
        weighted = means * weights[:, None]
        for start in range(0, self.x_dim, BLOCK):
            rows = slice(start, start + BLOCK)
            block = xx[rows, start:]
            if self.dtype == xx.dtype:
                block.addmm_(centred[:, rows].T, centred[:, start:])
            else:
                block.add_(centred[:, rows].T @ centred[:, start:])
            block.addmm_(weighted[:, rows].T, means[:, start:])

    def _columns(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z as float64 columns near zero, and the origin they were measured from."""
        if not z.is_floating_point():
            columns = torch.nn.functional.one_hot(z, self.z_dim).double()
            return columns, columns.new_zeros(self.z_dim)
        origin = _middle(z, torch.float64)
        return z.double() - origin, origin

    def _weight(self, n: int) -> float:
        return self.n * n / (self.n + n)

    def _move_means(self, apart_x: Tensor, apart_z: Tensor, n: int) -> None:
        self.n += n
        self._sums["mean_x"] += apart_x * (n / self.n)
        self._sums["mean_z"] += apart_z * (n / self.n)

    def _start(self, device: torch.device) -> dict[str, Tensor]:
        """The sums, all zero before the first row."""
        if not self._sums:
            self.device = device if self.device is None else self.device
            shapes: dict[str, tuple[int, ...]] = {"mean_x": (self.x_dim,), "mean_z": (self.z_dim,)}
            shapes |= {"xz": (self.x_dim, self.z_dim), "zz": (self.z_dim, self.z_dim)}
            shapes |= {"xx": (self.x_dim, self.x_dim)} if self.covariance else {}
            self._sums = {
                name: torch.zeros(shape, dtype=torch.float64, device=self.device)
                for name, shape in shapes.items()
            }
        return self._sums

    def _room(self, n: int, device: torch.device) -> Tensor:
        """Rows to write centred activations to: fresh memory for every batch costs as much as
        reading the batch."""
        if self._scratch is None or len(self._scratch) < n:
            self._scratch = torch.empty(n, self.x_dim, dtype=self.dtype, device=device)
        return self._scratch[:n]

    def _seen(self, name: str) -> Tensor:
        if not self.n:
            raise ToolkitError(
                "no row has been seen yet; feed update() first, and check that the mask leaves"
                " rows."
            )
        return self._sums[name]

    def __getstate__(self) -> dict[str, Any]:
        """All but the scratch memory, so that statistics travel small between processes."""
        return self.__dict__ | {"_scratch": None}


def flat_rows(
    x: Shaped[Tensor, "*rows x_dim"],
    z: Shaped[Tensor, "*labels"],
    mask: Bool[Tensor, "..."] | None,
    z_dim: int,
) -> tuple[Shaped[Tensor, "n x_dim"], Shaped[Tensor, "n *columns"]]:
    """Return the rows that count and their labels: class numbers [n], or real columns [n z_dim].

    Rows are all axes of x but the last. A `z` or `mask` with fewer of these axes counts for all
    rows behind it.

    Raises:
        ToolkitError: z or mask does not fit x, or z holds numbers of no class.
    """
    leading = tuple(x.shape[:-1])
    z = _spread_labels(z.detach(), leading, z_dim)
    rows = x.detach().reshape(-1, x.shape[-1])
    if mask is not None:
        there = _spread(mask, leading, "mask").reshape(-1)
        rows, z = rows[there.to(rows.device)], z[there.to(z.device)]
    if not z.is_floating_point() and len(z):
        low, high = int(z.min()), int(z.max())
        if low < 0:
            raise ToolkitError(
                f"z holds the class number {low}; classes are 0, 1, ... Mask rows that have no"
                " class."
            )
        if high >= z_dim:
            raise ToolkitError(
                f"z holds the class number {high}, but with z_dim={z_dim} the last is {z_dim - 1}."
            )
    return rows, z


def _spread_labels(z: Tensor, leading: tuple[int, ...], z_dim: int) -> Tensor:
    """z over all rows: int64 [n] where it is class numbers, else float [n z_dim]."""
    n = math.prod(leading)
    per_row = tuple(z.shape) == leading[: z.dim()] and z.dim() > 0
    as_columns = (
        z.dim() > 1 and z.shape[-1] == z_dim and tuple(z.shape[:-1]) == leading[: z.dim() - 1]
    )
    whole = not z.is_floating_point() and not z.is_complex()
    if whole and z_dim > 1 and per_row and as_columns and _is_one_hot(z):
        raise ToolkitError(
            f"integer z of shape {tuple(z.shape)} could be class numbers of each row or one-hot"
            f" rows of {z_dim} classes; give class numbers z.argmax(-1), or floating-point columns."
        )
    if whole and z_dim > 1 and per_row:
        return _spread(z, leading, "z").reshape(n).long()
    if (
        whole
        and z_dim > 1
        and z.dim() > 1
        and z.shape[-1] == 1
        and tuple(z.shape[:-1]) == leading[: z.dim() - 1]
    ):
        return _spread(z[..., 0], leading, "z").reshape(n).long()
    if as_columns:
        return torch.stack(
            [_spread(column, leading, "z").reshape(n) for column in z.unbind(-1)], -1
        ).to(_real(z))
    if per_row and z_dim == 1:
        return _spread(z, leading, "z").reshape(n, 1).to(_real(z))
    raise ToolkitError(
        f"z of shape {tuple(z.shape)} and {z.dtype} does not label x with rows {leading}: give one"
        f" integer class number per row, or z_dim={z_dim} real columns per row. One-hot columns and"
        " integers are read as classes; class numbers in floating point are not."
    )


def _spread(part: Tensor, leading: tuple[int, ...], name: str) -> Tensor:
    """Repeat `part` along the row axes behind its own."""
    if tuple(part.shape) != leading[: part.dim()]:
        raise ToolkitError(
            f"{name} has shape {tuple(part.shape)}, but x has rows {leading}; give one entry per"
            " row."
        )
    return part.reshape(*part.shape, *[1] * (len(leading) - part.dim())).expand(leading)


def _is_one_hot(z: Tensor) -> bool:
    return bool(((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all())


def _real(z: Tensor) -> torch.dtype:
    if z.is_complex():
        raise ToolkitError(f"z is {z.dtype}; a concept is real columns or integer class numbers.")
    return z.dtype if z.dtype in (torch.float32, torch.float64) else torch.float64


def _with_float64(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device  # MPS has no float64


def _middle(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean of rows, and of equal rows that very row, which rounding can miss: so what is
    constant has variance 0."""
    rows = rows.to(dtype)
    return rows.mean(0).clamp(min=rows.amin(0), max=rows.amax(0))


def _check_finite(x: Tensor, z: Tensor) -> None:
    for name, means in (("x", x), ("z", z)):
        if not means.isfinite().all():
            where = (~means.isfinite()).nonzero().flatten().tolist()
            raise ToolkitError(
                f"{name} holds NaN or infinity (or numbers too large to add up) in {len(where)} of"
                f" {len(means)} columns, first {where[:3]}; mask those rows."
            )
