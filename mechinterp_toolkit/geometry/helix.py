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
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, same_length, some_draws, whole_numbers
from mechinterp_toolkit.results import Verdict
from mechinterp_toolkit.stats import max_statistic_p, p_value, too_few_draws

Period = int | float
"""A period of numbers; whole ones have residues."""

ALPHA = 0.05
FOLDS = 5
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

    whole: Float[Tensor, "number model"]
    """Squared distance of each number from the mean of the numbers not held out with it."""

    scan: PeriodScan
    """Evidence for periods."""

    weights: Float[Tensor, "column d"]
    """Least-squares coefficients on all numbers: constant, line, then cos and sin of each period
    that has them."""

    @property
    def r2(self) -> Float[Tensor, " model"]:
        """R2 on held-out numbers, at most 1; that of "principal components" is a ceiling.

        In the order of `geometry.helix.MODELS`: `dict(zip(MODELS, fit.r2.tolist(), strict=True))`
        reads them by name.
        """
        return 1 - self.missed.sum(0) / self.whole.sum(0)

    @property
    def represented(self) -> Verdict:
        """Whether numbers are represented with a period."""
        best = int(self.scan.p.argmin())
        p = float(torch.maximum(self.scan.p, self.scan.p_separable).amin())
        short = too_few_draws(
            len(self.scan.null), n_tests=1, procedure="max_statistic", alpha=ALPHA
        )
        if short:
            return Verdict("undecided", f"Of {len(self.scan.periods)} periods: {short}", p=p)
        if self.scan.found:
            said = ", ".join(map(period_text, self.scan.found))
            return Verdict(
                "found", f"Periods {said}: beyond permuted numbers, with separable residues.", p=p
            )
        why = "no period's share exceeds permuted numbers'"
        if float(self.scan.p[best]) <= ALPHA:
            one = period_text(self.scan.periods[best])
            why = f"period {one} has a share, but n mod {one} cannot be read off"
        first, last = (period_text(extreme(self.scan.periods)) for extreme in (min, max))
        return Verdict("not_found", f"Of periods {first} to {last}: {why}.", p=p)


def period_text(period: Period) -> str:
    """Return a period in words: "5", or "59/12" for a fraction of a modulus."""
    return str(Fraction(period).limit_denominator(1000))


def helix_basis(
    numbers: Tensor, periods: Sequence[Period], *, linear: bool = True
) -> Float[Tensor, "n column"]:
    """Return constant, line and circles of integers, columns that are zero on every integer left
    out.

    A period of 2 has a cosine and no sine; (2, 5, 10, 100) and a line make 9 columns, constant
    included.

    Raises:
        ToolkitError: `numbers` is no tensor of whole numbers, or a period is not above zero.
    """
    n = whole_numbers(numbers, "numbers").double()
    if not all(period > 0 for period in periods):
        raise ToolkitError(f"got periods {tuple(periods)}; expected numbers above zero.")
    columns = [torch.ones_like(n)] + [(n - n.mean()) / n.std().clamp_min(1e-12)] * linear
    for period in periods:
        angle = 2 * math.pi * n / period
        columns += [angle.cos()] + [angle.sin()] * (period != 2)
    return torch.stack(columns, 1)


def polynomial_basis(numbers: Tensor, degree: int) -> Float[Tensor, "n column"]:
    """Return an orthonormal basis of polynomials up to a degree, on numbers scaled to [-1, 1]."""
    n = numbers.double()
    scaled = 2 * (n - n.min()) / (n.max() - n.min()) - 1
    columns = [torch.special.legendre_polynomial_p(scaled, k) for k in range(degree + 1)]
    return torch.linalg.qr(torch.stack(columns, 1)).Q


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
    """
    unique, rows, extra = _by_number(acts, numbers, covariates)
    looked_at = _checked_periods(unique, periods)
    design = torch.cat([_cubic(unique), extra], 1)
    left = _without(rows, design)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack(
        [torch.randperm(len(unique), generator=generator) for _ in range(some_draws(draws))]
    )
    planes = [_plane(unique, period, extra) for period in looked_at]
    axes, owner = (
        torch.cat(planes, 1),
        torch.tensor([i for i, p in enumerate(planes) for _ in range(p.shape[1])]),
    )
    share = _shares(left, axes, owner, len(planes))
    # What is permuted gets a cubic part again, which the observed residual cannot have: it is
    # removed again.
    null = torch.stack(
        [_shares(_without(left[order], design), axes, owner, len(planes)) for order in orders]
    )
    p = max_statistic_p(share, null)
    right, by_chance = _residues(left, unique, looked_at, orders[:_FEW_DRAWS])
    accuracy = right.double().mean(0)
    p_separable = p_value(accuracy, by_chance)
    for i in (p <= ALPHA).nonzero().flatten().tolist():  # all draws where it can matter
        _, all_draws = _residues(left, unique, looked_at[i : i + 1], orders)
        p_separable[i] = p_value(accuracy[i], all_draws[:, 0])
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
    """
    if not periods:
        raise ToolkitError("a helix needs at least one period.")
    unique, rows, _ = _by_number(acts, numbers, covariates)
    scan = period_scan(acts, numbers, covariates=covariates, draws=draws, seed=seed)
    basis = helix_basis(unique, periods)
    rank = int(torch.linalg.matrix_rank(basis)) - 1
    shuffled = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed + 1))
    alternatives = [
        basis,
        helix_basis(unique, (max(periods),), linear=False),
        polynomial_basis(unique, rank),
        None,
        basis[shuffled],
    ]
    fold = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)) % FOLDS
    missed, whole = zip(*(_held_out(rows, one, fold, rank) for one in alternatives), strict=True)
    weights = torch.linalg.pinv(basis) @ rows
    return HelixFit(
        tuple(periods), rank, torch.stack(missed, 1), torch.stack(whole, 1), scan, weights
    )


def _by_number(acts: Any, numbers: Any, covariates: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Different numbers in rising order, and the means of activations and covariates over the rows
    of each."""
    rows = finite(acts, "acts")
    unique, which = whole_numbers(numbers, "numbers", len(rows)).unique(return_inverse=True)
    if len(unique) < _FEWEST:
        raise ToolkitError(
            f"got {len(unique)} different numbers; expected at least {_FEWEST} to look for periods."
        )
    count = torch.bincount(which).double()[:, None]
    extra = (
        torch.zeros(len(rows), 0, dtype=torch.float64)
        if covariates is None
        else finite(covariates, "covariates")
    )
    same_length(extra, "covariates", len(rows))
    sums = [
        torch.zeros(len(unique), part.shape[1], dtype=torch.float64).index_add_(0, which, part)
        for part in (rows, extra)
    ]
    return unique, sums[0] / count, sums[1] / count


def _checked_periods(unique: Tensor, periods: Sequence[Period] | None) -> tuple[Period, ...]:
    longest = (int(unique[-1]) - int(unique[0]) + 1) // 2
    looked_at = tuple(range(2, longest + 1)) if periods is None else tuple(periods)
    wrong = [t for t in looked_at if not 2 <= t <= longest]
    if wrong or not looked_at:
        raise ToolkitError(
            f"period {f'{wrong[0]:g}' if wrong else 'none'} cannot be judged on numbers from"
            f" {int(unique[0])} to {int(unique[-1])}: expected 2 to {longest}, half the range."
        )
    return looked_at


def _cubic(unique: Tensor) -> Float[Tensor, "n 4"]:
    return polynomial_basis(unique, 3)


def _without(rows: Float[Tensor, "n d"], design: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
    span = torch.linalg.qr(design).Q
    return rows - span @ (span.T @ rows)


def _plane(unique: Tensor, period: Period, extra: Tensor) -> Float[Tensor, "n axis"]:
    """Orthonormal cos and sin of a period on these numbers, with what cubic and covariates explain
    taken out."""
    waves = helix_basis(unique, (period,), linear=False)[:, 1:]
    left, size, _ = torch.linalg.svd(
        _without(waves, torch.cat([_cubic(unique), extra], 1)), full_matrices=False
    )
    return left[:, size > 1e-6 * len(unique) ** 0.5]


def _shares(
    left: Float[Tensor, "n d"],
    axes: Float[Tensor, "n axis"],
    owner: Int[Tensor, " axis"],
    periods: int,
) -> Float[Tensor, " period"]:
    """Share of the variance along the axes of each period; `owner` says which period an axis
    belongs to."""
    along = (axes.T @ left).square().sum(1)
    sums = torch.zeros(periods, dtype=torch.float64).index_add_(0, owner, along)
    return sums / left.square().sum().clamp_min(torch.finfo(torch.float64).tiny)


def _residues(
    left: Float[Tensor, "n d"],
    unique: Tensor,
    periods: Sequence[Period],
    orders: Int[Tensor, "draw n"],
) -> tuple[Bool[Tensor, "n period"], Float[Tensor, "draw period"]]:
    """Held-out readings of n mod T by ridge regression on one-hot residues; the formula leaves one
    number out."""
    gram = left @ left.T
    penalty = RIDGE * gram.diagonal().mean().clamp_min(1e-300)
    hat = gram @ torch.linalg.inv(gram + penalty * torch.eye(len(gram), dtype=torch.float64))
    inner = hat.diagonal()

    def right(residue: Int[Tensor, " n"], classes: int) -> Bool[Tensor, " n"]:
        target = torch.nn.functional.one_hot(residue, classes).double()
        target = target - target.mean(0)
        score = (hat @ target - inner[:, None] * target) / (1 - inner)[:, None]
        return score.argmax(1) == residue

    parts = [period if period == int(period) else max(2, min(8, int(period))) for period in periods]
    residues = [(unique % t * k / t).long() for t, k in zip(periods, parts, strict=True)]
    observed = [right(residue, int(k)) for residue, k in zip(residues, parts, strict=True)]
    null = [
        torch.stack([right(residue[order], int(k)).double().mean() for order in orders])
        for residue, k in zip(residues, parts, strict=True)
    ]
    return torch.stack(observed, 1), torch.stack(null, 1)


def _held_out(
    rows: Float[Tensor, "n d"],
    design: Float[Tensor, "n k"] | None,
    fold: Int[Tensor, " n"],
    rank: int,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Squared error at each number of a fold predicted from the others (without a design, of their
    principal components), and its squared distance from their mean."""
    missed, whole = (torch.zeros(len(rows), dtype=torch.float64) for _ in range(2))
    for k in range(FOLDS):
        out: Bool[Tensor, " n"] = fold == k
        centre = rows[~out].mean(0)
        if design is None:
            axes = torch.linalg.svd(rows[~out] - centre, full_matrices=False)[2][:rank]
            predicted = centre + (rows[out] - centre) @ axes.T @ axes
        else:
            predicted = design[out] @ (torch.linalg.pinv(design[~out]) @ rows[~out])
        missed[out] = (rows[out] - predicted).square().sum(1)
        whole[out] = (rows[out] - centre).square().sum(1)
    return missed, whole
