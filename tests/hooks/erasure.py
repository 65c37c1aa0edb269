"""What the tests of erasure share: rows around class means, and what is left of a concept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError

EXACT = 1e-10
"""Part of a covariance that may be left. Float64 leaves about 1e-15; half an erasure leaves 0.1 or
more."""


def classes(
    n: int = 3000, d: int = 24, k: int = 4, *, seed: int = 0, shares: list[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Correlated Gaussian rows [n d] around k class means, and the class of each row."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(k) if shares is None else torch.tensor(shares)
    z = torch.multinomial(weights, n, replacement=True, generator=generator)
    z[: len(weights)] = torch.arange(len(weights))  # each class has a row
    means = 2 * torch.randn(len(weights), d, generator=generator, dtype=torch.float64)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + means[z], z


def one_hot(z: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(z).double()


def cross(x: Tensor, z: Tensor) -> Tensor:
    x, z = x.double(), z.double()
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


def covariance(x: Tensor) -> Tensor:
    return cross(x, x)


def left_over(erased: Tensor, x: Tensor, z: Tensor) -> float:
    """Largest part left of a column of z's correlations with x, whatever their units."""
    varies = x.double().std(0) > 1e-12 * x.double().abs().mean(0)
    sd = x.double().std(0)[varies, None]
    after, before = (cross(rows[:, varies], z) / sd for rows in (erased, x))
    there = before.norm(dim=0) > 0
    return (after.norm(dim=0) / before.norm(dim=0))[there].max().item()


def refused(words: str, run: Callable[[], object]) -> None:
    """`run` raises `ToolkitError` with `words` in its message."""
    with pytest.raises(ToolkitError, match=words):
        run()


# --- rows on which rounding or scale would break an erasure --------------------------------------


def balanced() -> tuple[Tensor, Tensor]:
    return classes()


def rare_class() -> tuple[Tensor, Tensor]:
    return classes(40_000, shares=[0.5, 0.4999, 1e-4])


def scaled_concept(scale: float) -> tuple[Tensor, Tensor]:
    x, z = classes()
    return x, scale * one_hot(z)


def large_mean() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return x + 1e4 * x.std(0), z


def outlier_dimensions() -> tuple[Tensor, Tensor]:
    x, z = classes()
    x[:, :3] *= 1e4
    return x, z


def fewer_rows_than_dimensions() -> tuple[Tensor, Tensor]:
    return classes(n=20, d=24)


def constant_dimensions() -> tuple[Tensor, Tensor]:
    x, z = classes()
    x[:, 2], x[:, 5], x[:, 9] = 0.1, 0.0, 1e6 + 0.1  # 0.1 and its mean are not exact in binary
    return x, z


def repeated_dimensions() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return torch.cat([x, x[:, :7], 3 * x[:, :2]], 1), z


def normalised_rows() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return torch.nn.functional.layer_norm(x, x.shape[1:]), z  # rows sum to zero


def more_columns_than_dimensions() -> tuple[Tensor, Tensor]:
    x, _ = classes()
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(x.shape[1], x.shape[1] + 5, generator=generator, dtype=torch.float64)
    return x, x @ mixing + torch.randn(
        len(x), x.shape[1] + 5, generator=generator, dtype=torch.float64
    )


def repeated_columns() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return x, torch.cat([one_hot(z), 1e-3 * one_hot(z)[:, 1:], one_hot(z)[:, :1] + 7], 1)


def unordered_rows() -> tuple[Tensor, Tensor]:
    x, z = classes(5000)
    return x[z.argsort()], z.sort().values  # a batch holds one class, more rows than one chunk


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "balanced": balanced,
    "class of one row in 10,000": rare_class,
    "z in units of a millionth": lambda: scaled_concept(1e-6),
    "z in millions": lambda: scaled_concept(1e6),
    "mean of 10,000 sd": large_mean,
    "three dimensions 10,000 times larger": outlier_dimensions,
    "fewer rows than dimensions": fewer_rows_than_dimensions,
    "constant dimensions": constant_dimensions,
    "repeated dimensions": repeated_dimensions,
    "rows that sum to zero": normalised_rows,
    "more columns of z than dimensions": more_columns_than_dimensions,
    "repeated columns of z": repeated_columns,
    "sorted by class": unordered_rows,
}
