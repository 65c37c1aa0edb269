"""Can n mod T be read off for numbers that the reader has never seen?

A linear classifier reads n mod T for held-out numbers, for every period T; permuted numbers repeat
the search.

What would fool it: a period's divisors and multiples can be read off where the period can; `best`
names the one that stands out most. An oscillation of any origin has a period: digits shared by
numbers of several tokens, or how frequent tokens are.

Source: Fu et al. 2026, arXiv:2604.20817 (separability); the scan and its null are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.regression import (
    by_number,
    left_out_errors,
    polynomials,
    read_off,
    ridge_hat,
    without,
)
from mechinterp_toolkit.nulls import max_statistic_p, permutations, why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap

RIDGE = 0.1
"""Penalty of the classifier, in units of the mean squared norm of a residual."""

_FEWEST = 12  # numbers: below, a cubic and the shortest period leave too little


@dataclass(frozen=True)
class ResidueScan:
    """Result of `residue_scan`."""

    periods: tuple[int, ...]
    """Periods looked at."""

    skipped: tuple[int, ...]
    """Periods left out because they are longer than half the range of the numbers."""

    excess: Estimate
    """Per period: share of numbers whose residue is read off when the number is held out, minus
    1/T."""

    p: Float[Tensor, " period"]
    """p-value of each, corrected for all periods."""

    @property
    def found(self) -> tuple[int, ...]:
        """Periods whose residue can be read off, the one that stands out most first."""
        order = self._stands_out.argsort(descending=True, stable=True).tolist()
        return tuple(self.periods[i] for i in order if self.p[i] <= 0.05)

    @property
    def best(self) -> int:
        """The period that stands out most, found or not."""
        return self.periods[int(self._stands_out.argmax())]

    @property
    def _stands_out(self) -> Float[Tensor, " period"]:
        return _stands_out(self.excess.value, self.periods, self.excess.n)

    @property
    def represented(self) -> Verdict:
        """Whether the residue of some period can be read off."""
        p, best = float(self.p.amin()), self.best
        skipped = ""
        if self.skipped:
            skipped = f" Skipped as longer than half the range: {_listed(self.skipped)}."
        short = why_undecided(self.excess.draws)
        if short:
            return Verdict("undecided", f"Of {len(self.periods)} periods: {short}{skipped}", p=p)
        accuracy = float(self.excess.value[self.periods.index(best)]) + 1 / best
        read = (
            f"n mod {best} is read off for {accuracy:.0%} of held-out numbers (1/T: {1 / best:.0%})"
        )
        if self.found:
            return Verdict("found", f"{read}.{skipped}", p=p)
        reason = f"No period beats permuted numbers; at best {read}.{skipped}"
        return Verdict("not_found", reason, p=p)


def residue_scan(
    acts: Float[Tensor, "item d"],
    number: Int[Tensor, " item"],
    periods: Sequence[int] = range(2, 25),
    *,
    draws: int = 199,
    seed: int = 0,
) -> ResidueScan:
    """Look for periods T whose residues a linear classifier reads for numbers it has not seen.

    Several rows of a number are averaged and a cubic in the number is removed. The classifier is
    ridge regression on one-hot residues, each number held out in turn (closed form). The null
    permutes what the cubic leaves, removes a cubic again, and takes the largest excess over the
    periods, each in binomial standard deviations.

    Args:
        acts: one row per prompt or item.
        number: the number of each row.
        periods: to look at; those longer than half the range of the numbers are skipped.
        draws: permutations of the numbers.
        seed: of permutations and bootstrap.

    Raises:
        ToolkitError: fewer than 12 different numbers, no period is left, or arguments that are no
            tensors of finite numbers with a row each.

    >>> digits = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    >>> scan = residue_scan(digits[torch.arange(40) % 5], torch.arange(40), (3, 5, 7, 30), draws=39)
    >>> scan.found, scan.skipped, f"{scan.excess.value[1]:.2f}"  # 1 - 1/5
    ((5,), (30,), '0.80')
    """
    unique, rows, _ = means = by_number(acts, number, name="number", fewest=_FEWEST)
    asked = tuple(dict.fromkeys(int(t) for t in periods))
    kept = tuple(t for t in asked if 2 <= t <= means.longest)
    if not kept or min(asked) < 2:
        raise ToolkitError(
            f"got periods {_listed(asked) or 'none'} for numbers from {int(unique[0])} to"
            f" {int(unique[-1])}; expected periods from 2, at least one of them at most"
            f" {means.longest}, half the range."
        )
    cubic = polynomials(unique, 3)
    left = without(rows, cubic)
    right = _excess(left, unique, kept)
    orders = permutations(len(unique), draws=draws, seed=seed).index
    # Permuted residuals have a cubic part again, which the observed ones cannot have: it is removed
    # again.
    null = [_excess(without(left[order], cubic), unique, kept).mean(0) for order in orders]
    excess = bootstrap(
        right,
        unit_name="numbers",
        measured="held-out accuracy of n mod T minus 1/T, in [-1/T, 1 - 1/T]",
        seed=seed,
        axes=("period",),
        labels={"period": tuple(str(t) for t in kept)},
        control=torch.stack(null),
        control_name="numbers permuted",
    )
    stands_out = (
        _stands_out(part, kept, len(unique)) for part in (right.mean(0), torch.stack(null))
    )
    skipped = tuple(t for t in asked if t > means.longest)
    return ResidueScan(kept, skipped, excess, max_statistic_p(*stands_out))


def _excess(
    left: Float[Tensor, "n d"], numbers: Int[Tensor, " n"], periods: Sequence[int]
) -> Float[Tensor, "n period"]:
    """1 where the residue of a number is read off from all other numbers, else 0, minus 1/T."""
    errors = left_out_errors(ridge_hat(left, RIDGE))
    right = torch.stack([read_off(errors, numbers % t, t) for t in periods], 1)
    return right.double() - 1 / torch.tensor(periods, dtype=torch.float64)


def _stands_out(
    excess: Float[Tensor, "*draw period"], periods: Sequence[int], n: int
) -> Float[Tensor, "*draw period"]:
    """Excess accuracy in standard deviations of guessing, so that periods of 2 and of 24 can be
    compared."""
    chance = 1 / torch.tensor(periods, dtype=torch.float64)
    return excess / (chance * (1 - chance) / n).sqrt()


def _listed(periods: Sequence[int]) -> str:
    return ", ".join(str(t) for t in periods)
