"""Are the arguments what the functions on plain tensors expect? Each is checked once, where it
comes in from outside.

Shapes in signatures are checked while tests run and not for users, who would get torch's own errors
from the middle of a computation. Lists and numpy arrays are refused by name: `torch.as_tensor`
makes tensors of them. Whole numbers may come as floating point, since tables are read as such.

Source: this project.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError


def checked(values: Any, name: str, axes: str) -> Tensor:
    """Return `values` as they are, once they are a tensor of finite real numbers with these axes.

    Args:
        values: what was given for the argument.
        name: of the argument.
        axes: names of its axes; "*" stands for any number of them, "2" for an axis of two.

    Raises:
        ToolkitError: no tensor, other axes, no row, complex numbers, NaN or infinity.

    >>> checked([1.0, 2.0], "weights", "n")
    Traceback (most recent call last):
    mechinterp_toolkit.errors.ToolkitError: weights is a list; expected a tensor [n]: give
    torch.as_tensor(weights).
    """
    given = _shaped(values, name, axes)
    if not given.isfinite().all():
        bad = int((~given.isfinite()).reshape(len(given), -1).any(1).sum())
        raise ToolkitError(
            f"{bad} of {len(given)} rows of {name} are NaN or infinite; leave them out or check the"
            " model."
        )
    return given


def finite(values: Any, name: str, axes: str = "n d") -> Tensor:
    """Return what `checked` returns in float64 on the CPU, without gradients.

    >>> finite(Tensor([[1, 2]]).half(), "acts").dtype
    torch.float64
    """
    return checked(values, name, axes).detach().cpu().double()


def whole_numbers(values: Any, name: str, rows: int | None = None) -> Int[Tensor, " n"]:
    """Return whole numbers, one per row, on the CPU.

    Args:
        values: what was given for the argument; numbers with a point are taken where they are
            whole.
        name: of the argument.
        rows: how many are expected; None where nothing else says.

    Raises:
        ToolkitError: no tensor [n], numbers that are not whole, or another number of them.

    >>> whole_numbers(Tensor([0.0, 2.0]), "labels")
    tensor([0, 2])
    """
    given = _shaped(values, name, "n").detach().cpu()
    broken = given[(given != given.double().round()) | given.double().isinf()]
    if len(broken):
        raise ToolkitError(
            f"{name} holds {float(broken[0]):g}; expected whole numbers, such as the place of a"
            " class in its order."
        )
    same_length(given, name, rows)
    return given.long()


def same_length(given: Tensor, name: str, rows: int | None) -> None:
    """Raise `ToolkitError` unless an argument has as many rows as the activations.

    >>> same_length(Tensor(3), "labels", 2)
    Traceback (most recent call last):
    mechinterp_toolkit.errors.ToolkitError: labels has 3 rows for 2 rows of activations; give one
    each.
    """
    if rows is not None and len(given) != rows:
        raise ToolkitError(
            f"{name} has {len(given)} rows for {rows} rows of activations; give one each."
        )


def same_width(given: Tensor, name: str, width: int, of: str) -> None:
    """Raise `ToolkitError` unless the last axis of an argument has as many features as `of`.

    >>> same_width(Tensor(1, 3), "acts", 2, "the fit")
    Traceback (most recent call last):
    mechinterp_toolkit.errors.ToolkitError: acts is 3 wide and the fit 2; take both from the same
    hook point.
    """
    if given.shape[-1] != width:
        raise ToolkitError(
            f"{name} is {given.shape[-1]} wide and {of} {width}; take both from the same hook"
            " point."
        )


def some_draws(draws: int) -> int:
    """Return `draws`; raises `ToolkitError` where there are none: a control needs at least one.

    >>> some_draws(99)
    99
    """
    if draws < 1:
        raise ToolkitError(f"got draws={draws}; expected at least one draw of the control.")
    return draws


def _shaped(values: Any, name: str, axes: str) -> Tensor:
    if not isinstance(values, Tensor):
        package, word = type(values).__module__, type(values).__qualname__
        kind = word if package == "builtins" else f"{package}.{word}"
        raise ToolkitError(
            f"{name} is a {kind}; expected a tensor [{axes}]: give torch.as_tensor({name})."
        )
    fixed = [axis for axis in axes.split() if not axis.startswith("*")]
    fits = values.dim() >= len(fixed) if "*" in axes else values.dim() == len(fixed)
    sizes = zip(reversed(values.shape), reversed(fixed), strict=False)
    if not fits or any(axis.isdigit() and size != int(axis) for size, axis in sizes):
        raise ToolkitError(f"{name} has shape {tuple(values.shape)}; expected [{axes}].")
    if 0 in values.shape or values.is_complex():
        raise ToolkitError(
            f"{name} holds {values.dtype} of shape {tuple(values.shape)}; expected real numbers, at"
            " least one row of them."
        )
    return values
