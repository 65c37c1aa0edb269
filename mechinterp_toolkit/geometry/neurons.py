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
from mechinterp_toolkit.geometry.regression import FOLDS, folds, k_fold, span, without
from mechinterp_toolkit.nulls import p_value
from mechinterp_toolkit.results import Verdict

FAMILIES = ("a", "b", "a + b")

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
        explained = (
            f"Of {self.judged} neurons of largest variance, waves explain {self.observed:.2f} of"
            " held-out pairs"
        )
        permuted = f"permuted pairs {float(self.null.mean()):.2f}"
        if p <= 0.05 and self.observed > 0:
            return Verdict("found", f"{explained}; {permuted}.", p=p)
        return Verdict("not_found", f"{explained}, no more than {permuted}.", p=p)


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

    >>> a, b = torch.cartesian_prod(torch.arange(20), torch.arange(20)).T
    >>> neuron = (2 * math.pi * (a + b) / 5 + 0.3).cos()[:, None]
    >>> fits = fit_neurons(neuron, a, b, periods=(2, 5))
    >>> f"{fits.r2[0]:.2f}", [round(lost, 2) for lost in fits.family[:, 0].tolist()]
    ('1.00', [0.0, 0.0, 1.0])
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
    predict = k_fold(design, folds(len(sums), generator)[which])

    def r2(values: Float[Tensor, "pair some"], left: Tensor) -> Float[Tensor, " some"]:
        whole = (values - values.mean(0)).square().sum(0)
        return 1 - left.square().sum(0) / whole.clamp_min(torch.finfo(torch.float64).tiny)

    def held_out(values: Float[Tensor, "pair some"]) -> Float[Tensor, " some"]:
        return r2(values, values - predict(values))

    scores, variance = held_out(y), y.var(0, correction=0)
    largest = variance.topk(min(JUDGED, y.shape[1])).indices
    orders = [torch.randperm(len(y), generator=generator) for _ in range(DRAWS)]
    in_sample = r2(y, without(y, span(design)))
    rest = [[not _is_wave(name, family) for name in columns] for family in FAMILIES]
    return NeuronFits(
        columns=columns,
        weights=torch.linalg.pinv(design) @ y,
        r2=scores,
        family=torch.stack([in_sample - r2(y, without(y, span(design[:, k]))) for k in rest]),
        variance=variance,
        judged=len(largest),
        observed=float(scores[largest].mean()),
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


def _is_wave(column: str, family: str) -> bool:
    return column.endswith(f" of {family}") and not column.startswith("line")
