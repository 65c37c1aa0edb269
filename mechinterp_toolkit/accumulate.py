"""What is left of activations once they have streamed past: their mean, or the rows themselves.

An accumulator is fed batch by batch with `update`, and two that saw different data `merge` into
what one would be that saw all of it. But for `Keep` it holds float64 sums only, so its memory does
not grow with the number of prompts. Covariances are in `moments.py`.

What would fool it: rows that are not there. Padding is kept out by `mask`, and by nothing else.

Rows and features: `x` has rows along its leading axes and features along the rest. Rows are the
axes that `mask` or `z` covers; without either, the first axis alone. So `x [batch pos d_model]`
with `mask [batch pos]` is batch x pos rows of d_model features. A shorter `z` or `mask` counts for
all rows behind it: `z [batch]` labels every position of a prompt.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError

NO_ROW_YET = "no row has been seen yet; feed update() first, and check that the mask leaves rows."


@runtime_checkable
class Accumulator(Protocol):
    """What `record` feeds: anything with this `update`."""

    def update(
        self,
        x: Float[Tensor, "batch *rest"],
        z: Tensor | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> object:
        """Take in one batch; what it returns is not looked at.

        Args:
            x: activations, rows along the leading axes.
            z: labels of the rows.
            mask: which rows count; all of them where there is no mask.
        """
        ...


class Keep:
    """Keeps every row it is fed, as detached copies on the CPU in the dtype they came in.

    >>> keep = Keep()
    >>> keep.update(torch.tensor([[1.0], [2.0]]), mask=torch.tensor([True, False]))
    >>> keep.value
    tensor([[1.]])
    """

    def __init__(self) -> None:
        self._x: list[Tensor] = []
        self._z: list[Tensor | None] = []

    def update(
        self,
        x: Float[Tensor, "batch *rest"],
        z: Tensor | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Keep one batch: with a mask the rows it marks, on one row axis; without, all as it is.

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
        first = self._x[0] if self._x else x
        if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
            raise ToolkitError(
                f"rows of shape {tuple(x.shape[1:])} and {x.dtype} do not fit the"
                f" {tuple(first.shape[1:])} and {first.dtype} kept so far; with prompts of several"
                " lengths select positions, or give a mask."
            )
        self._x.append(x.detach().to("cpu", copy=True))
        self._z.append(None if z is None else z.detach().to("cpu", copy=True))

    def merge(self, other: Keep) -> None:
        """Append what `other` has kept; errors are those of `update`."""
        for x, z in zip(other._x, other._z, strict=True):
            self.update(x, z)

    @property
    def value(self) -> Float[Tensor, "n *rest"]:
        """Every row kept so far."""
        if not self._x:
            raise ToolkitError(NO_ROW_YET)
        return torch.cat(self._x)

    @property
    def z(self) -> Tensor:
        """The label of every row kept so far.

        Raises:
            ToolkitError: a batch came without labels.
        """
        labels = [z for z in self._z if z is not None]
        if not labels or len(labels) < len(self._z):
            raise ToolkitError(
                "a batch came without z; give z to every update, or do not ask for labels."
            )
        return torch.cat(labels)


class Mean:
    """Mean over all rows, in float64: `value` has the features' shape.

    >>> mean = Mean()
    >>> mean.update(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    >>> mean.update(torch.tensor([[5.0, 2.0]]))
    >>> mean.value
    tensor([3., 2.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.count = 0
        """Rows seen."""
        self._mean: Tensor | None = None

    def update(
        self,
        x: Float[Tensor, "batch *rest"],
        z: Tensor | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Take in the rows of one batch; labels say only which axes are rows.

        Raises:
            ToolkitError: a row is not finite, the shape differs from before, or `z` or `mask` does
                not fit `x`.
        """
        rows, _ = _rows(x, z, mask)
        if len(rows):
            mean = rows.to(with_float64(rows.device)).double().mean(0)
            check_finite("x", mean.flatten())
            self._fold(mean, len(rows))

    def merge(self, other: Mean) -> None:
        """Take in everything `other` has seen; raises `ToolkitError` if it saw other features."""
        if other._mean is not None:
            self._fold(other._mean, other.count)

    @property
    def value(self) -> Float[Tensor, "*features"]:
        """The mean; raises `ToolkitError` where no row has been seen."""
        if self._mean is None:
            raise ToolkitError(NO_ROW_YET)
        return self._mean.clone()

    def _fold(self, mean: Tensor, count: int) -> None:
        before = torch.zeros_like(mean) if self._mean is None else self._mean
        if mean.shape != before.shape:
            raise ToolkitError(
                f"got means of shape {tuple(mean.shape)} where the ones so far have"
                f" {tuple(before.shape)}; feed one hook's output."
            )
        self.count += count
        self._mean = before + (mean.to(before.device) - before) * (count / self.count)


def _rows(x: Tensor, z: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows of `x` (see the module's docstring) that `mask` marks, and their labels."""
    leading = x.shape[: max([1, *(part.dim() for part in (z, mask) if part is not None)])]
    rows = x.detach().reshape(math.prod(leading), *x.shape[len(leading) :])
    label = None if z is None else spread(z, leading, "z").reshape(-1)
    if mask is None:
        return rows, label
    real = spread(mask, leading, "mask").reshape(-1)
    return rows[real.to(rows.device)], None if label is None else label[real.to(label.device)]


def spread(part: Tensor, leading: tuple[int, ...], name: str) -> Tensor:
    """Return `part` repeated along the row axes behind its own, or raise `ToolkitError`."""
    if tuple(part.shape) != tuple(leading[: part.dim()]):
        raise ToolkitError(
            f"{name} has shape {tuple(part.shape)}, but x begins with {tuple(leading)}; give one"
            " entry per row, or one per row of the first axes."
        )
    return part.reshape(*part.shape, *[1] * (len(leading) - part.dim())).expand(leading)


def with_float64(device: torch.device) -> torch.device:
    """Return the device, or the CPU in place of one that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def check_finite(name: str, means: Float[Tensor, " columns"]) -> None:
    """Raise `ToolkitError` where the mean of a column is not finite, and so one of its rows."""
    if not means.isfinite().all():
        where = (~means.isfinite()).nonzero().flatten().tolist()
        raise ToolkitError(
            f"{name} holds NaN or infinity (or numbers too large to add up) in {len(where)} of"
            f" {len(means)} columns, first {where[:3]}; mask those rows."
        )
