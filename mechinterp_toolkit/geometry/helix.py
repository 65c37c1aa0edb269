"""Are numbers represented with periods (2, 5, 10, ...), and how well does a helix predict numbers
it was not fitted to?

*Periods*: what a cubic in n and given covariates explain is removed from the mean activations; the
share of the rest that lies at a period is compared with permuted numbers, the largest over all
periods. Periods longer than half the range are not looked at. A period counts only if n mod T can
also be read off by a linear classifier for numbers it was not trained on, since spectra have peaks
that nothing can use. *Helix*: a line and circles of the given periods predict the activations of
held-out numbers, beside the largest circle alone, a polynomial of the same rank and principal
components.

What would fool it: any smooth curve has power at long periods, which is why the cubic goes first;
sin(2 pi n / 2) is zero for every integer, so four periods and a line have rank 8, not 9; how
frequent a token is has periods of its own: pass (log-)frequencies as covariates; and numbers of
several tokens share digits.

Source: Kantamneni and Tegmark 2025, arXiv:2502.00873 (helix); Zhou et al. 2024, arXiv:2406.03445
(periods); Fu et al. 2026, arXiv:2604.20817 (spikes against separability). The order of these tests
and their nulls are this toolkit's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import some_draws, whole_numbers
from mechinterp_toolkit.geometry.regression import (
    ByNumber,
    by_number,
    folds,
    k_fold,
    left_out_errors,
    polynomials,
    projected,
    read_off,
    ridge_hat,
    span,
    without,
)
from mechinterp_toolkit.nulls import max_statistic_p, p_value, why_undecided
from mechinterp_toolkit.results import Verdict

Period = int | float
"""A period of numbers; whole ones have residues."""

ALPHA = 0.05
RIDGE = 0.1
"""Penalty of the residue classifier, in units of the mean squared norm of a residual."""

MODELS = (
    "helix",
    "largest circle",
    "polynomial",
    "principal components",
    "helix of shuffled numbers",
)

# permutations whose residues are read at every period; the others where a share was found
_FEW_DRAWS = 199

_FEWEST = 20  # numbers: below, a cubic and one period leave too little


@dataclass(frozen=True)
class PeriodScan:
    """Result of `period_scan`."""

    periods: tuple[Period, ...]
    """Periods looked at."""

    share: Float[Tensor, " period"]
    """Share of the variance left by the cubic that lies at each period, in [0, 1]."""

    null: Float[Tensor, "draw period"]
    """The same for permuted numbers."""

    p: Float[Tensor, " period"]
    """p-value of each share, corrected for all periods."""

    right: Bool[Tensor, "number period"]
    """Whether the residue mod T of each number is classified right when the number is held out."""

    by_chance: Float[Tensor, "draw period"]
    """Share of numbers classified right, for permuted numbers."""

    p_separable: Float[Tensor, " period"]
    """p-value of the accuracy: of all draws where the share is beyond its null, of the first 199
    elsewhere."""

    @property
    def accuracy(self) -> Float[Tensor, " period"]:
        """Share of numbers whose residue is classified right, in [0, 1]."""
        return self.right.double().mean(0)

    @property
    def chance(self) -> Float[Tensor, " period"]:
        """The same for permuted numbers, on average."""
        return self.by_chance.mean(0)

    @property
    def found(self) -> tuple[Period, ...]:
        """Periods with a share and a separable residue, largest share first."""
        passed = (self.p <= ALPHA) & (self.p_separable <= ALPHA)
        order = self.share.argsort(descending=True, stable=True)
        return tuple(self.periods[i] for i in order.tolist() if passed[i])


@dataclass(frozen=True)
class HelixFit:
    """Result of `fit_helix`."""

    periods: tuple[Period, ...]
    """Periods of the helix."""

    rank: int
    """Columns of the helix that are not zero or dependent, without the constant."""

    missed: Float[Tensor, "number model"]
    """Squared error of each of `geometry.helix.MODELS` at each number when it is held out;
    "principal components" project instead of predicting."""

    whole: Float[Tensor, " number"]
    """Squared distance of each number from the mean of the numbers not held out with it."""

    scan: PeriodScan
    """Evidence for periods."""

    weights: Float[Tensor, "column d"]
    """Least-squares coefficients on all numbers: constant, line, then cos and sin of each period
    that has them."""

    @property
    def r2(self) -> Float[Tensor, " model"]:
        """R2 of each of `geometry.helix.MODELS` on held-out numbers, at most 1.

        That of "principal components" is a ceiling. `dict(zip(MODELS, fit.r2.tolist()))` reads
        them by name.
        """
        return 1 - self.missed.sum(0) / self.whole.sum()

    @property
    def represented(self) -> Verdict:
        """Whether numbers are represented with a period."""
        best = int(self.scan.p.argmin())
        p = float(torch.maximum(self.scan.p, self.scan.p_separable).amin())
        short = why_undecided(len(self.scan.null))
        if short:
            return Verdict("undecided", f"Of {len(self.scan.periods)} periods: {short}", p=p)
        if self.scan.found:
            listed = ", ".join(map(period_text, self.scan.found))
            reason = f"Periods {listed}: beyond permuted numbers, with separable residues."
            return Verdict("found", reason, p=p)
        why = "no period's share exceeds permuted numbers'"
        if float(self.scan.p[best]) <= ALPHA:
            period = period_text(self.scan.periods[best])
            why = f"period {period} has a share, but n mod {period} cannot be read off"
        first, last = (period_text(extreme(self.scan.periods)) for extreme in (min, max))
        return Verdict("not_found", f"Of periods {first} to {last}: {why}.", p=p)


def period_text(period: Period) -> str:
    """Return a period in words: "5", or "59/12" for a fraction of a modulus.

    >>> period_text(5), period_text(59 / 12)
    ('5', '59/12')
    """
    return str(Fraction(period).limit_denominator(1000))


def helix_basis(
    numbers: Tensor, periods: Sequence[Period], *, linear: bool = True
) -> Float[Tensor, "n column"]:
    """Return constant, line and circles of integers, without columns that are zero on all of them.

    A period of 2 has a cosine and no sine; (2, 5, 10, 100) and a line make 9 columns, constant
    included.

    Raises:
        ToolkitError: `numbers` is no tensor of whole numbers, or a period is not above zero.

    >>> helix_basis(torch.arange(100), (2, 5, 10, 100)).shape
    torch.Size([100, 9])
    >>> helix_basis(torch.arange(3), (2,), linear=False).tolist()
    [[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    n = whole_numbers(numbers, "numbers").double()
    if not all(period > 0 for period in periods):
        raise ToolkitError(f"got periods {tuple(periods)}; expected numbers above zero.")
    columns = [torch.ones_like(n)] + [(n - n.mean()) / n.std().clamp_min(1e-12)] * linear
    for period in periods:
        angle = 2 * math.pi * n / period
        columns += [angle.cos()] + [angle.sin()] * (period != 2)
    return torch.stack(columns, 1)


def period_scan(
    acts: Float[Tensor, "n d"],
    numbers: Int[Tensor, " n"],
    *,
    periods: Sequence[Period] | None = None,
    covariates: Float[Tensor, "n k"] | None = None,
    draws: int = 999,
    seed: int = 0,
) -> PeriodScan:
    """Look for periods in the mean activation of each number.

    Args:
        acts: one row per prompt.
        numbers: the number of each row.
        periods: periods to look at; whole numbers from 2 to half the range by default. Longer ones
            are refused. Where a period is no whole number, what has to be read off is which of up
            to eight parts of it a number falls in.
        covariates: what else may explain the activations, such as the token's log-frequency;
            removed with the cubic.
        draws: permutations of the numbers.
        seed: of them.

    Raises:
        ToolkitError: fewer than 20 different numbers, a period longer than half their range, no
            draws, or arguments that are no tensors of finite numbers with a row each.

    >>> waves = helix_basis(torch.arange(60), (5,), linear=False)
    >>> scan = period_scan(waves, torch.arange(60), periods=(3, 5, 7), draws=99)
    >>> scan.found, [round(share, 3) for share in scan.share.tolist()]
    ((5,), [0.0, 1.0, 0.008])
    """
    means = by_number(acts, numbers, covariates, fewest=_FEWEST)
    looked_at = _checked_periods(means, periods)
    explained = span(torch.cat([polynomials(means.numbers, 3), means.covariates], 1))
    left = without(means.acts, explained)
    n, generator = len(left), torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(some_draws(draws))])
    planes = [_plane(means.numbers, period, explained) for period in looked_at]
    share = _shares(left, planes)
    # What is permuted gets a cubic part again, which the observed residual cannot have: it is
    # removed again.
    null = torch.stack([_shares(without(left[order], explained), planes) for order in orders])
    p = max_statistic_p(share, null)
    errors = left_out_errors(ridge_hat(left, RIDGE))
    residues = [_residues(means.numbers, period) for period in looked_at]
    right = torch.stack([read_off(errors, *residue) for residue in residues], 1)
    few = orders[:_FEW_DRAWS]
    by_chance = torch.stack([_by_chance(errors, *residue, few) for residue in residues], 1)
    accuracy = right.double().mean(0)
    p_separable = p_value(accuracy, by_chance)
    for i, residue in enumerate(residues):
        if p[i] <= ALPHA:  # all draws where it can matter
            p_separable[i] = p_value(accuracy[i], _by_chance(errors, *residue, orders))
    return PeriodScan(looked_at, share, null, p, right, by_chance, p_separable)


def fit_helix(
    acts: Float[Tensor, "n d"],
    numbers: Int[Tensor, " n"],
    periods: Sequence[Period] = (2, 5, 10, 100),
    *,
    covariates: Float[Tensor, "n k"] | None = None,
    draws: int = 999,
    seed: int = 0,
) -> HelixFit:
    """Fit a helix, compare it on held-out numbers, and judge the periods of the representation.

    Args:
        acts: one row per prompt.
        numbers: the number of each row.
        periods: of the helix; those up to half the range are also looked for, with every other such
            period.
        covariates: as for `period_scan`.
        draws: as there.
        seed: of permutations and folds.

    Raises:
        ToolkitError: as `period_scan`, or no periods.

    >>> numbers = torch.arange(60)
    >>> fit = fit_helix(helix_basis(numbers, (2, 5)), numbers, periods=(2, 5), draws=39)
    >>> fit.represented.outcome, fit.rank, f"{fit.r2[MODELS.index('helix')]:.2f}"
    ('found', 4, '1.00')
    """
    if not periods:
        raise ToolkitError("a helix needs at least one period.")
    unique, rows, _ = by_number(acts, numbers, covariates, fewest=_FEWEST)
    scan = period_scan(acts, numbers, covariates=covariates, draws=draws, seed=seed)
    basis = helix_basis(unique, periods)
    rank = int(torch.linalg.matrix_rank(basis)) - 1
    shuffled = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed + 1))
    fold = folds(len(unique), torch.Generator().manual_seed(seed))
    circle = helix_basis(unique, (max(periods),), linear=False)
    designs = (basis, circle, polynomials(unique, rank), basis[shuffled])
    predicted = [k_fold(design, fold)(rows) for design in designs]
    predicted.insert(MODELS.index("principal components"), projected(rows, fold, rank))
    mean = k_fold(torch.ones(len(rows), 1, dtype=torch.float64), fold)(rows)
    return HelixFit(
        periods=tuple(periods),
        rank=rank,
        missed=torch.stack([(rows - part).square().sum(1) for part in predicted], 1),
        whole=(rows - mean).square().sum(1),
        scan=scan,
        weights=torch.linalg.pinv(basis) @ rows,
    )


def _checked_periods(means: ByNumber, periods: Sequence[Period] | None) -> tuple[Period, ...]:
    longest = means.longest
    looked_at = tuple(range(2, longest + 1)) if periods is None else tuple(periods)
    wrong = [t for t in looked_at if not 2 <= t <= longest]
    if wrong or not looked_at:
        raise ToolkitError(
            f"period {f'{wrong[0]:g}' if wrong else 'none'} cannot be judged on numbers from"
            f" {int(means.numbers[0])} to {int(means.numbers[-1])}: expected 2 to {longest}, half"
            " the range."
        )
    return looked_at


def _plane(
    unique: Int[Tensor, " n"], period: Period, explained: Float[Tensor, "n column"]
) -> Float[Tensor, "n axis"]:
    """Orthonormal cos and sin of a period, with what cubic and covariates explain taken out."""
    waves = without(helix_basis(unique, (period,), linear=False)[:, 1:], explained)
    axes, size, _ = torch.linalg.svd(waves, full_matrices=False)
    return axes[:, size > 1e-6 * len(unique) ** 0.5]


def _shares(
    left: Float[Tensor, "n d"], planes: Sequence[Float[Tensor, "n _"]]
) -> Float[Tensor, " period"]:
    """Share of the variance along the axes of each period."""
    along = (torch.cat(list(planes), 1).T @ left).square().sum(1)
    parts = along.split([plane.shape[1] for plane in planes])
    whole = left.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.stack([part.sum() for part in parts]) / whole


def _residues(unique: Int[Tensor, " n"], period: Period) -> tuple[Int[Tensor, " n"], int]:
    """n mod a whole period; of another one, which of up to eight parts of it n falls in."""
    parts = int(period) if period == int(period) else max(2, min(8, int(period)))
    return (unique % period * parts / period).long(), parts


def _by_chance(
    errors: Float[Tensor, "n n"],
    residue: Int[Tensor, " n"],
    parts: int,
    orders: Int[Tensor, "draw n"],
) -> Float[Tensor, " draw"]:
    """Share of numbers read right, for permuted numbers."""
    return torch.stack([read_off(errors, residue[o], parts).double().mean() for o in orders])
