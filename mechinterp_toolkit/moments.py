"""Count, means and covariances of activations and their labels, streamed.

Each batch is centred before it is multiplied and the batches are combined by the updating formula
of Chan, Golub & LeVeque, so a mean a million times the spread costs no digit. Within a batch
products are taken in `dtype`; what is kept from batch to batch is float64 always. Memory is
O(d^2).

What would fool it: raw sums of squares under a large mean, and labels that were read as something
else. Here the first cannot happen, and the second is refused where it shows.

Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, The American
Statistician 37(3).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mechinterp_toolkit.accumulate import NO_ROW_YET, check_finite, spread, with_float64
from mechinterp_toolkit.errors import ToolkitError

M = TypeVar("M", bound="Moments")

CHUNK = 4096
"""Rows multiplied at a time: enough for full speed, and what bounds the memory of one batch."""

BLOCK = 256
"""Features in one block row of x'x, of which only the upper triangle of blocks is computed.
Narrower blocks save more products but run slower one by one."""


class Moments:
    """Count, means and covariances of activations x and labels z: all that is linear between them.

    Classes count as their one-hot columns, so the mean of class k is `mean_x + sigma_xz[:, k] /
    mean_z[k]`. Covariances are over n, not n - 1.

    >>> moments = Moments(1, 2)
    >>> moments = moments.update(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 1, 1]))
    >>> (moments.mean_x + moments.sigma_xz / moments.mean_z).tolist()  # means of both classes
    [[1.0, 4.0]]
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int = 0,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        covariance: bool = True,
    ) -> None:
        """Start with no rows.

        Args:
            x_dim: features of x.
            z_dim: number of classes, or of real columns of z; with 0 labels are not looked at.
            dtype: of the products within a batch; float32 is faster and leaves its rounding.
            device: where the sums live; None puts them where the first batch is.
            covariance: whether x'x is kept; without it memory is O(x_dim * z_dim).

        Raises:
            ToolkitError: no columns, or another dtype than float32 and float64.
        """
        if x_dim < 1 or z_dim < 0:
            raise ToolkitError(
                f"x_dim is a number of features, at least 1; got {x_dim}, with z_dim={z_dim}."
            )
        if dtype not in (torch.float32, torch.float64):
            raise ToolkitError(
                f"statistics are taken in float64 or float32, not {dtype}; activations may come in"
                f" {dtype} all the same."
            )
        self.x_dim, self.z_dim, self.dtype, self.covariance = x_dim, z_dim, dtype, covariance
        self.device = None if device is None else with_float64(torch.device(device))
        self.n = 0
        """Rows seen."""
        self.eps: float = torch.finfo(dtype).eps
        """Relative rounding error of the products, the coarsest seen."""
        self.x_eps = 0.0
        """Relative rounding error of the activations themselves, the coarsest seen."""
        self._sums: dict[str, Tensor] = {}
        self._scratch: Tensor | None = None

    def update(
        self: M,
        x: Shaped[Tensor, "*rows d"],
        z: Shaped[Tensor, "*labels"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> M:
        """Take in one batch; one that raises leaves the statistics as they were.

        Args:
            x: activations of any floating-point dtype; every axis but the last counts as rows.
            z: one class number 0 ... z_dim - 1 per row (integers), or z_dim real columns per row.
            mask: which rows count, with the row axes of x or the first of them.

        Returns:
            The accumulator.

        Raises:
            ToolkitError: shapes that do not fit, numbers of no class, or a NaN or infinity.
        """
        self._take(*labelled_rows(x, z, mask, self.x_dim, self.z_dim))
        return self

    def merge(self: M, other: M) -> M:
        """Take in everything `other` has seen.

        Returns:
            The accumulator.

        Raises:
            ToolkitError: the two are of different kinds or dimensions.
        """
        if type(other) is not type(self):
            raise ToolkitError(
                f"a {type(self).__name__} merges with its own kind, not with a"
                f" {type(other).__name__}."
            )
        for name in ("x_dim", "z_dim", "covariance"):
            if getattr(self, name) != getattr(other, name):
                raise ToolkitError(
                    f"statistics with {name} {getattr(self, name)} and {getattr(other, name)} do"
                    " not merge; fit both with the same arguments."
                )
        if other.n:
            self._add(other)
        return self

    @property
    def mean_x(self) -> Float[Tensor, " x_dim"]:
        """Mean of x."""
        return self._seen("mean_x").clone()

    @property
    def mean_z(self) -> Float[Tensor, " z_dim"]:
        """Mean of z: the class frequencies where z is classes."""
        return self._seen("mean_z").clone()

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

    def _take(self, x: Tensor, z: Tensor) -> None:
        """Take in rows [n x_dim], and their class numbers [n] or columns [n z_dim]."""
        if len(x) <= CHUNK:
            self._fold(x, z)
            return
        # All chunks or none: a row in the last one may not be finite.
        batch = Moments(
            self.x_dim,
            self.z_dim,
            dtype=self.dtype,
            device=self.device or x.device,
            covariance=self.covariance,
        )
        for rows, labels in zip(x.split(CHUNK), z.split(CHUNK), strict=True):
            batch._fold(rows, labels)
        self._add(batch)

    def _add(self, other: Moments) -> None:
        """Merge by the pairwise update: S = S1 + S2 + n1 n2 / (n1 + n2) (m2 - m1)(m2 - m1)'."""
        self.eps = max(self.eps, other.eps)  # a sum is known as well as its worst part
        self.x_eps = max(self.x_eps, other.x_eps)
        sums = self._start(other._sums["mean_x"].device)
        apart_x, apart_z = (
            other._sums[m].to(sums[m].device) - sums[m] for m in ("mean_x", "mean_z")
        )
        weight = self.n * other.n / (self.n + other.n)
        apart = {"xx": (apart_x, apart_x), "xz": (apart_x, apart_z), "zz": (apart_z, apart_z)}
        for name in apart.keys() & sums.keys():
            sums[name].add_(other._sums[name].to(apart_x.device)).addr_(*apart[name], alpha=weight)
        self._move_means(apart_x, apart_z, other.n)

    def _fold(self, x: Tensor, z: Tensor) -> None:
        """Take in at most `CHUNK` rows: the same formula, with their products about an origin."""
        n = len(x)
        if not n:
            return
        device = self.device or with_float64(x.device)
        x, z = x.to(device), z.to(device)
        # Any row near the mean serves as origin, for what it is off by is put right below; these
        # cost a sixteenth of the mean of all. A sample of f n rows lies at most sd / sqrt(f) from
        # the mean, so at most a digit is lost.
        origin = _middle(x[::16], torch.promote_types(x.dtype, self.dtype))
        centred = torch.sub(x, origin, out=self._room(n, device))
        columns, origin_z = _columns(z, self.z_dim)
        table = torch.cat([columns, columns.new_ones(n, 1)], 1).to(self.dtype)
        products = (table.T @ centred).double()  # in this order, the fast one: [z_dim + 1, x_dim]
        off_x, off_z = products[-1] / n, columns.mean(0)
        check_finite("x", off_x)
        check_finite("z", off_z)
        zz = columns.T @ columns if z.is_floating_point() else torch.diag(columns.sum(0))

        sums = self._start(device)
        self.x_eps = max(self.x_eps, torch.finfo(x.dtype).eps)
        apart_x = origin.double() + off_x - sums["mean_x"]
        apart_z = origin_z + off_z - sums["mean_z"]
        weight = self.n * n / (self.n + n)
        sums["xz"].add_(products[:-1].T).addr_(off_x, off_z, alpha=-n)
        sums["xz"].addr_(apart_x, apart_z, alpha=weight)
        sums["zz"].add_(zz).addr_(off_z, off_z, alpha=-n).addr_(apart_z, apart_z, alpha=weight)
        if self.covariance:
            weights = off_x.new_tensor([[-n], [weight]])
            self._add_products(centred, torch.stack([off_x, apart_x]), weights)
        self._move_means(apart_x, apart_z, n)

    def _add_products(self, centred: Tensor, means: Tensor, weights: Tensor) -> None:
        """Add the upper block triangle of centred' centred + means' (weights means)."""
        xx, weighted = self._sums["xx"], means * weights
        for start in range(0, self.x_dim, BLOCK):
            rows = slice(start, start + BLOCK)
            block = xx[rows, start:]
            if self.dtype == xx.dtype:
                block.addmm_(centred[:, rows].T, centred[:, start:])
            else:
                block.add_(centred[:, rows].T @ centred[:, start:])
            block.addmm_(weighted[:, rows].T, means[:, start:])

    def _move_means(self, apart_x: Tensor, apart_z: Tensor, n: int) -> None:
        self.n += n
        self._sums["mean_x"] += apart_x * (n / self.n)
        self._sums["mean_z"] += apart_z * (n / self.n)

    def _start(self, device: torch.device) -> dict[str, Tensor]:
        """The sums, all zero before the first row."""
        if not self._sums:
            self.device = self.device or device
            d, k = self.x_dim, self.z_dim
            shapes = {"mean_x": (d,), "mean_z": (k,), "xz": (d, k), "zz": (k, k)}
            shapes |= {"xx": (d, d)} if self.covariance else {}
            self._sums = {
                name: torch.zeros(shape, dtype=torch.float64, device=self.device)
                for name, shape in shapes.items()
            }
        return self._sums

    def _room(self, n: int, device: torch.device) -> Tensor:
        """Rows to write centred activations to; fresh memory costs as much as reading a batch."""
        if self._scratch is None or len(self._scratch) < n:
            self._scratch = torch.empty(n, self.x_dim, dtype=self.dtype, device=device)
        return self._scratch[:n]

    def _seen(self, name: str) -> Tensor:
        if not self.n:
            raise ToolkitError(NO_ROW_YET)
        return self._sums[name]

    def __getstate__(self) -> dict[str, Any]:
        """All but the scratch memory, so that statistics travel small between processes."""
        return self.__dict__ | {"_scratch": None}


def labelled_rows(
    x: Shaped[Tensor, "*rows d"],
    z: Shaped[Tensor, "*labels"] | None,
    mask: Bool[Tensor, "..."] | None,
    x_dim: int,
    z_dim: int,
) -> tuple[Shaped[Tensor, "n x_dim"], Shaped[Tensor, "n *columns"]]:
    """Return the rows that count and their labels: class numbers [n], or real columns [n z_dim].

    Rows are all axes of x but the last. A `z` or `mask` with fewer of these axes counts for all
    rows behind it.

    Raises:
        ToolkitError: x, z or mask does not fit, z is missing, or it holds numbers of no class.

    >>> x, z = torch.zeros(2, 3, 5), torch.tensor([0, 1])  # two prompts of three tokens
    >>> mask = torch.tensor([[True, True, False], [True, False, False]])
    >>> rows, labels = labelled_rows(x, z, mask, 5, 2)
    >>> rows.shape, labels.tolist()
    (torch.Size([3, 5]), [0, 0, 1])
    """
    if x.shape[-1] != x_dim:
        raise ToolkitError(f"x has {x.shape[-1]} features, but x_dim={x_dim} were expected.")
    if z is None and z_dim:
        raise ToolkitError(f"z_dim={z_dim} needs labels: update(x, z), or record(..., labels=...).")
    leading, rows = tuple(x.shape[:-1]), x.detach().reshape(-1, x_dim)
    z = rows.new_zeros(len(rows), 0) if not z_dim or z is None else z.detach()
    z = _spread_labels(z, leading, z_dim) if z_dim else z
    if mask is not None:
        real = spread(mask, leading, "mask").reshape(-1)
        rows, z = rows[real.to(rows.device)], z[real.to(z.device)]
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
    if z.is_complex():
        raise ToolkitError(f"z is {z.dtype}; a concept is real columns or integer class numbers.")
    per_row = z.dim() > 0 and tuple(z.shape) == leading[: z.dim()]
    behind_rows = z.dim() > 1 and tuple(z.shape[:-1]) == leading[: z.dim() - 1]
    as_columns = behind_rows and z.shape[-1] == z_dim
    if z_dim > 1 and not z.is_floating_point():
        if per_row and as_columns and _is_one_hot(z):
            raise ToolkitError(
                f"integer z of shape {tuple(z.shape)} could be class numbers of each row or one-hot"
                f" rows of {z_dim} classes; give class numbers z.argmax(-1), or floating-point"
                " columns."
            )
        if per_row or (behind_rows and z.shape[-1] == 1):
            return spread(z if per_row else z[..., 0], leading, "z").reshape(-1).long()
    if as_columns or (per_row and z_dim == 1):
        columns = z.unbind(-1) if as_columns else [z]
        wide = torch.stack([spread(column, leading, "z").reshape(-1) for column in columns], -1)
        return wide.to(z.dtype if z.dtype in (torch.float32, torch.float64) else torch.float64)
    raise ToolkitError(
        f"z of shape {tuple(z.shape)} and {z.dtype} does not label x with rows {leading}: give one"
        f" integer class number per row, or z_dim={z_dim} real columns per row. One-hot columns and"
        " integers are read as classes; class numbers in floating point are not."
    )


def _columns(z: Tensor, z_dim: int) -> tuple[Tensor, Tensor]:
    """z as float64 columns near zero, and the origin they were measured from."""
    if z.is_floating_point():
        origin = _middle(z, torch.float64)
        return z.double() - origin, origin
    # One-hot, to be summed by a product: index_add would not give the same bits twice on a GPU.
    columns = torch.nn.functional.one_hot(z, z_dim).double()
    return columns, columns.new_zeros(z_dim)


def _is_one_hot(z: Tensor) -> bool:
    return bool(((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all())


def _middle(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean of rows, and of equal rows that very row: so what is constant has variance 0."""
    rows = rows.to(dtype)
    return rows.mean(0).clamp(min=rows.amin(0), max=rows.amax(0))  # rounding can miss it
