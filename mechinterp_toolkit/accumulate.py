"""What is left of the activations once they have streamed past: means, class means, covariance, or
the rows themselves.

An accumulator is fed batch by batch with `update` and keeps float64 sums only, so its memory does
not grow with the number of prompts (`Keep` is the exception, by name). Two that saw different data
`merge` into what one would be that saw all of it. Sums are combined by the updating formula of
Chan, Golub & LeVeque, which subtracts means before it squares: sums of raw squares lose the
covariance where the mean is large against the spread, as in a residual stream.

What would fool it: rows that are not there. Padding is kept out by `mask`, and by nothing else.

Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, The American
Statistician 37(3).

Rows and features: `x` has rows along its leading axes and features along the rest. Rows are the
axes that `mask` or `z` covers; without either, the first axis alone. So `x [batch pos d_model]`
with `mask [batch pos]` is batch x pos rows of d_model features. A shorter `z` or `mask` counts for
all rows behind it: `z [batch]` labels every position of a prompt.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError

T = TypeVar("T")


@runtime_checkable
class Accumulator(Protocol):
    """What `record` feeds: anything with this `update`."""

    def update(
        self,
        x: Float[Tensor, "batch *rest"],
        z: Tensor | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Take in one batch.

        Args:
            x: activations, rows along the leading axes.
            z: class numbers 0, 1, ... of the rows.
            mask: which rows count; all of them where there is no mask.
        """
        ...


class Keep:
    """Keeps every row it is fed, as detached copies on the CPU in the dtype they came in."""

    def __init__(self) -> None:
        self._x: list[Tensor] = []
        self._z: list[Tensor | None] = []

    def update(
        self,
        x: Float[Tensor, "batch *rest"],
        z: Tensor | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Keep one batch: with a mask the rows it marks, flattened to one row axis; without, `x`
        and `z` as they are.

        Raises:
            ToolkitError: the features or dtype differ from those before, or `z` or `mask` does not
                fit `x`.
        """
        if mask is not None:
            x, z = _rows(x, z, mask)
        elif z is not None and z.shape[:1] != x.shape[:1]:
            raise ToolkitError(
                f"z has shape {tuple(z.shape)}, but x begins with {tuple(x.shape)}; label every"
                " prompt."
            )
        self._append(
            [x.detach().to("cpu", copy=True)],
            [None if z is None else z.detach().to("cpu", copy=True)],
        )

    def merge(self, other: Keep) -> None:
        """Append what `other` has kept."""
        self._append(
            [x.clone() for x in other._x], [None if z is None else z.clone() for z in other._z]
        )

    @property
    def value(self) -> Float[Tensor, "n *rest"]:
        """Every row kept so far."""
        return torch.cat(_seen(self._x or None))

    @property
    def z(self) -> Tensor:
        """The label of every row kept so far.

        Raises:
            ToolkitError: a batch came without labels.
        """
        labels = [z for z in self._z if z is not None]
        if len(labels) < len(_seen(self._z or None)):
            raise ToolkitError(
                "a batch came without z; give z to every update, or do not ask for labels."
            )
        return torch.cat(labels)

    def _append(self, x: list[Tensor], z: list[Tensor | None]) -> None:
        for rows in x:
            first = self._x[0] if self._x else x[0]
            if rows.shape[1:] != first.shape[1:] or rows.dtype != first.dtype:
                raise ToolkitError(
                    f"rows of shape {tuple(rows.shape[1:])} and {rows.dtype} do not fit the"
                    f" {tuple(first.shape[1:])} and {first.dtype} kept so far; with prompts of"
                    " several lengths select positions, or give a mask."
                )
        self._x += x
        self._z += z


class _RunningMean:
    """A mean for each group of rows; a subclass says which groups there are."""

    def __init__(self) -> None:
        self._mean: Tensor | None = None  # [*groups, *features]
        self._count: Tensor | None = None  # [*groups]

    def update(
        self,
        x: Float[Tensor, "batch *rest"],
        z: Tensor | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Take in the rows of one batch.

        Raises:
            ToolkitError: a row is not finite, the shape differs from before, or `z` or `mask` does
                not fit `x`.
        """
        sums, count = self._sums(x, z, mask)
        mean = sums / _like(count, sums).clamp(min=1)
        _check_finite(mean)
        self._fold(mean, count)

    def merge(self, other: _RunningMean) -> None:
        """Take in everything `other` has seen.

        Raises:
            ToolkitError: `other` is of another kind or saw other features.
        """
        if type(other) is not type(self):
            raise ToolkitError(
                f"a {type(self).__name__} merges with its own kind, not with a"
                f" {type(other).__name__}."
            )
        if other._mean is not None and other._count is not None:
            self._fold(other._mean, other._count)

    @property
    def value(self) -> Float[Tensor, "*axes"]:
        """The means, in float64.

        Raises:
            ToolkitError: no row has been seen, or none of some group.
        """
        empty = (self.count == 0).nonzero().flatten().tolist()
        if empty:
            raise ToolkitError(
                f"{self._group} {empty} of {len(self.count)} have no rows, so they have no mean."
            )
        return _seen(self._mean).clone()

    @property
    def count(self) -> Int[Tensor, "*groups"]:
        """How many rows each mean is over."""
        if self._count is None or not self._count.any():
            raise ToolkitError(
                "no row has been seen yet; feed update() first, and check that the mask leaves"
                " rows."
            )
        return self._count.clone()

    _group = ""

    def _sums(self, x: Tensor, z: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _fold(self, mean: Tensor, count: Tensor) -> None:
        if self._mean is None or self._count is None:
            self._mean, self._count = mean, count
            return
        _check_shape(tuple(mean.shape), tuple(self._mean.shape))
        mean, count = mean.to(self._mean.device), count.to(self._mean.device)
        total = self._count + count
        share = _like(count.double() / total.clamp(min=1), mean)
        self._mean = self._mean + (mean - self._mean) * share
        self._count = total


class Mean(_RunningMean):
    """Mean over all rows: `value` has the features' shape."""

    def _sums(self, x: Tensor, z: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, _ = _rows(x, z, mask)
        return _float64(rows).sum(0), torch.tensor(len(rows), device=rows.device)


class PositionMean(_RunningMean):
    """Mean over prompts at each position: `value` is [pos, *features], of `x [batch pos
    *features]`.

    All batches have the same number of positions, padded on the same side.
    """

    _group = "positions"

    def _sums(self, x: Tensor, z: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if x.dim() < 2:
            raise ToolkitError(f"PositionMean needs x [batch pos ...]; got shape {tuple(x.shape)}.")
        rows = _float64(x)
        there = _spread(
            torch.ones(len(x), dtype=torch.bool) if mask is None else mask, x.shape[:2], "mask"
        )
        there = there.to(rows.device)
        return rows.masked_fill(~_like(there, rows), 0).sum(0), there.sum(0)


class ClassMean(_RunningMean):
    """Mean of each class: `value` is [class, *features], for class numbers `z` from 0 without
    gaps."""

    _group = "classes"

    def _sums(self, x: Tensor, z: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, label = _rows(x, z, mask)
        rows, label = _float64(rows), _class_numbers(label)
        n_classes = int(label.max()) + 1 if len(label) else 1
        # A product with the one-hot labels: index_add would not give the same bits twice on a GPU.
        member = torch.nn.functional.one_hot(label.to(rows.device), n_classes).double()
        sums = member.T @ rows.reshape(len(rows), math.prod(rows.shape[1:]))
        return sums.reshape(n_classes, *rows.shape[1:]), member.sum(0).long()

    def _fold(self, mean: Tensor, count: Tensor) -> None:
        if self._mean is not None and self._count is not None:
            _check_shape(tuple(mean.shape[1:]), tuple(self._mean.shape[1:]))
            most = max(len(count), len(self._count))
            self._mean, self._count = _pad(self._mean, most), _pad(self._count, most)
            mean, count = _pad(mean, most), _pad(count, most)
        super()._fold(mean, count)


class Moments:
    """Mean and covariance of rows of d features, and the mean of each class where classes are
    given.

    Memory is O(d^2). Merging is associative up to rounding.
    """

    def __init__(self) -> None:
        self._mean = Mean()
        self._classes = ClassMean()
        self._scatter: Tensor | None = None
        self._labelled: bool | None = None

    def update(
        self,
        x: Float[Tensor, "batch *rest"],
        z: Tensor | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Take in the rows of one batch; one that raises leaves everything as it was.

        Raises:
            ToolkitError: more than one feature axis, a row that is not finite, another d than
                before, `z` or `mask` that does not fit `x`, or `z` for some batches only.
        """
        rows, label = _rows(x, z, mask)
        if rows.dim() != 2:
            raise ToolkitError(
                f"Moments needs one feature axis; x {tuple(x.shape)} has {rows.dim() - 1} behind"
                " its rows. Select a position or a head, or give a mask over [batch pos] so that"
                " positions become rows."
            )
        if not len(rows):
            return
        batch = Moments()
        batch._labelled = label is not None
        rows = _float64(rows)
        batch._mean.update(rows)
        centred = rows - batch._mean.value
        batch._scatter = centred.T @ centred
        if label is not None:
            batch._classes.update(rows, label)
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Take in everything `other` has seen.

        Raises:
            ToolkitError: the two differ in d, or only one of them was given classes.
        """
        if other._scatter is None:
            return
        if self._scatter is None:
            self._scatter = other._scatter.clone()
        else:
            _check_shape(tuple(other._scatter.shape[1:]), tuple(self._scatter.shape[1:]))
            if self._labelled != other._labelled:
                raise ToolkitError(
                    "z was given for some of the data only; give it for all batches or for none."
                )
            apart = other.mean.to(self._scatter.device) - self.mean
            between = self.n * other.n / (self.n + other.n) * torch.outer(apart, apart)
            self._scatter += other._scatter.to(apart.device) + between
        self._labelled = other._labelled
        self._mean.merge(other._mean)
        self._classes.merge(other._classes)

    @property
    def n(self) -> int:
        """Number of rows seen."""
        return int(self._mean.count)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the rows."""
        return self._mean.value

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased covariance of the features: squared deviations over n - 1.

        Raises:
            ToolkitError: fewer than two rows have been seen.
        """
        if self.n < 2:
            raise ToolkitError(f"a covariance needs at least two rows; {self.n} has been seen.")
        return _seen(self._scatter) / (self.n - 1)

    @property
    def class_mean(self) -> Float[Tensor, "class d"]:
        """Mean of the rows of each class.

        Raises:
            ToolkitError: no classes were given, or one of them has no rows.
        """
        self._require_classes()
        return self._classes.value

    @property
    def class_count(self) -> Int[Tensor, " class"]:
        """Number of rows of each class."""
        self._require_classes()
        return self._classes.count

    def _require_classes(self) -> None:
        if not self._labelled:
            raise ToolkitError("no classes were given; pass z to update().")


def _rows(x: Tensor, z: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Flatten the row axes of `x` (see the module's docstring) and of `z`, and keep the rows that
    `mask` marks."""
    leading = x.shape[: max([1, *(part.dim() for part in (z, mask) if part is not None)])]
    n = math.prod(leading)
    rows = x.detach().reshape(n, *x.shape[len(leading) :])
    label = None if z is None else _spread(z, leading, "z").reshape(n)
    if mask is None:
        return rows, label
    there = _spread(mask, leading, "mask").reshape(n)
    return rows[there.to(rows.device)], None if label is None else label[there.to(label.device)]


def _spread(part: Tensor, leading: tuple[int, ...], name: str) -> Tensor:
    """Repeat `part` along the row axes behind its own."""
    if tuple(part.shape) != tuple(leading[: part.dim()]):
        raise ToolkitError(
            f"{name} has shape {tuple(part.shape)}, but x begins with {tuple(leading)}; give one"
            " entry per row, or one per row of the first axes."
        )
    return part.reshape(*part.shape, *[1] * (len(leading) - part.dim())).expand(leading)


def _class_numbers(label: Tensor | None) -> Tensor:
    if label is None:
        raise ToolkitError("no classes were given; pass z to update().")
    if label.is_floating_point() or label.is_complex() or bool((label < 0).any()):
        lowest = f", lowest {label.min().item()}" if len(label) else ""
        raise ToolkitError(
            f"z holds class numbers 0, 1, ...; got {label.dtype}{lowest}. Mask rows without a"
            " class."
        )
    return label.long()


def _float64(x: Tensor) -> Tensor:
    return (
        x.detach().cpu() if x.device.type == "mps" else x.detach()
    ).double()  # MPS has no float64


def _like(part: Tensor, whole: Tensor) -> Tensor:
    """Give `part` the axes that `whole` has behind it, of length one."""
    return part.reshape(*part.shape, *[1] * (whole.dim() - part.dim()))


def _pad(part: Tensor, length: int) -> Tensor:
    return torch.cat([part, part.new_zeros(length - len(part), *part.shape[1:])])


def _check_finite(mean: Tensor) -> None:
    if not mean.isfinite().all():
        raise ToolkitError(
            "a row holds a NaN or infinity; check the weights and dtype, and mask what is padding."
        )


def _check_shape(given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given != expected:
        raise ToolkitError(
            f"got means of shape {given} where the ones so far have {expected}; feed one hook's"
            " output."
        )


def _seen(what: T | None) -> T:
    if what is None:
        raise ToolkitError("no row has been seen yet; feed update() first.")
    return what
