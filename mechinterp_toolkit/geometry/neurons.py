"""Which neurons of an adder are waves of a, of b and of a + b? All of them at once, in closed form.

Pre-activations over pairs (a, b) are regressed on a constant, a, b and cos and sin of a, b and a +
b at each period; one least-squares problem serves every neuron. R2 is that of pairs whose sum was
held out, and each family's part is what the fit loses without it.

What would fool it: columns that depend on each other (the sine of period 2 is zero on integers),
which are dropped; and a neuron that is nearly constant, whose R2 says nothing: its variance stands
beside it.

Source: Kantamneni and Tegmark 2025, arXiv:2502.00873, who fit each neuron by gradient descent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, whole_numbers
from mechinterp_toolkit.geometry.helix import Period
from mechinterp_toolkit.results import Verdict
from mechinterp_toolkit.stats import p_value

FAMILIES = ("a", "b", "a + b")
FOLDS = 5

JUDGED, DRAWS = 64, 19
"""Neurons that the verdict is about, and permutations behind it."""


@dataclass(frozen=True)
class NeuronFits:
    """Result of `fit_neurons`."""

    columns: tuple[str, ...]
    """What the coefficients belong to, e.g. "cos 10 of a + b"."""

    weights: Float[Tensor, "column neuron"]
    """Least-squares coefficients, minimum norm."""

    r2: Float[Tensor, " neuron"]
    """R2 on pairs whose sum was held out, at most 1."""

    family: Float[Tensor, "family neuron"]
    """How much R2 falls, in the sample, without the waves of a, of b and of a + b (`FAMILIES`)."""

    variance: Float[Tensor, " neuron"]
    """Variance of each neuron over the pairs."""

    judged: int
    """Neurons that the verdict is about: those of largest variance."""

    observed: float
    """Mean R2 of these."""

    null: Float[Tensor, " draw"]
    """The same with pairs permuted among the neurons' values."""

    @property
    def represented(self) -> Verdict:
        """Whether the neurons are waves of a, b and a + b, or lines, on pairs held out."""
        p = float(p_value(torch.tensor(self.observed), self.null))
        said = (
            f"Of {self.judged} neurons of largest variance, waves explain {self.observed:.2f} of"
            " held-out pairs"
        )
        against = f"permuted pairs {float(self.null.mean()):.2f}"
        if p <= 0.05 and self.observed > 0:
            return Verdict("found", f"{said}; {against}.", p=p)
        return Verdict("not_found", f"{said}, no more than {against}.", p=p)


def fit_neurons(
    preacts: Float[Tensor, "pair neuron"],
    a: Int[Tensor, " pair"],
    b: Int[Tensor, " pair"],
    periods: Sequence[Period] = (2, 5, 10, 100),
    *,
    seed: int = 0,
) -> NeuronFits:
    """Fit every neuron.

    Args:
        preacts: pre-activations, one row per pair.
        a: first number of each pair.
        b: second number.
        periods: of the waves.
        seed: of the folds over sums.

    Raises:
        ToolkitError: fewer pairs than columns, fewer than five sums, or arguments that are no
            tensors of finite numbers with a row each.
    """
    y = finite(preacts, "preacts", "pair neuron")
    a, b = whole_numbers(a, "a", len(y)), whole_numbers(b, "b", len(y))
    columns, design = _design(a, b, periods)
    sums, which = (a + b).unique(return_inverse=True)
    if len(y) < len(columns) or len(sums) < FOLDS:
        raise ToolkitError(
            f"got {len(y)} pairs with {len(sums)} sums for {len(columns)} columns; expected more"
            f" pairs than columns, and {FOLDS} sums or more."
        )
    generator = torch.Generator().manual_seed(seed)
    fold = (torch.randperm(len(sums), generator=generator) % FOLDS)[which]
    whole = (y - y.mean(0)).square().sum(0)
    tiny = torch.finfo(torch.float64).tiny
    inverses = [torch.linalg.pinv(design[fold != k]) for k in range(FOLDS)]

    def held_out(values: Float[Tensor, "pair some"]) -> Float[Tensor, " some"]:
        missed = torch.zeros(values.shape[1], dtype=torch.float64)
        for k, inverse in enumerate(inverses):
            out = fold == k
            missed += (values[out] - design[out] @ (inverse @ values[~out])).square().sum(0)
        return 1 - missed / (values - values.mean(0)).square().sum(0).clamp_min(tiny)

    r2, largest = held_out(y), whole.topk(min(JUDGED, y.shape[1])).indices
    orders = [torch.randperm(len(y), generator=generator) for _ in range(DRAWS)]
    weights = torch.linalg.pinv(design) @ y
    base = (y - design @ weights).square().sum(0)
    without = torch.stack([_missed_without(design, columns, y, family) for family in FAMILIES])
    return NeuronFits(
        columns=columns,
        weights=weights,
        r2=r2,
        family=(without - base) / whole.clamp_min(tiny),
        variance=whole / len(y),
        judged=len(largest),
        observed=float(r2[largest].mean()),
        null=torch.stack([held_out(y[order][:, largest]).mean() for order in orders]),
    )


def _design(
    a: Tensor, b: Tensor, periods: Sequence[Period]
) -> tuple[tuple[str, ...], Float[Tensor, "pair column"]]:
    """Constant, lines and waves; the sine of period 2, zero on integers, is left out."""
    named = {
        "constant": torch.ones(len(a), dtype=torch.float64),
        "line of a": a.double(),
        "line of b": b.double(),
    }
    for family, number in zip(FAMILIES, (a, b, a + b), strict=True):
        for period in periods:
            angle = 2 * math.pi * number.double() / period
            named[f"cos {period:g} of {family}"] = angle.cos()
            if period != 2:
                named[f"sin {period:g} of {family}"] = angle.sin()
    return tuple(named), torch.stack(list(named.values()), 1)


def _missed_without(
    design: Tensor, columns: tuple[str, ...], y: Tensor, family: str
) -> Float[Tensor, " neuron"]:
    kept = [
        i
        for i, name in enumerate(columns)
        if not name.endswith(f" of {family}") or name.startswith("line")
    ]
    part = design[:, kept]
    return (y - part @ (torch.linalg.pinv(part) @ y)).square().sum(0)
