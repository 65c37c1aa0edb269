"""Does an analysis find too much where nothing is, and enough where something is? Run it and count.

The null models of an analysis are its `twins`: random weights, and the same toy trained on a
scrambled order (random weights alone are too easy). At level alpha a right test rejects alpha of
them; the count is judged by a one-sided binomial test, because "at most 5 % were observed" fails a
perfect test in 42 % of trials.

"Used" is only asked where "represented" was found. On null models these are the ones whose labels
happen to agree with something the model does, and then using it is true of them: so false findings
are counted over all models that ran.

Power is how often it finds what was planted, where it was planted, over the strength of the
structure (`planted`; what strength means is said there). A "not found" is worth as much as that.

Source: Clopper & Pearson 1934 (intervals of a probability).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp_toolkit.errors import RegistryError, ToolkitError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import Analysis, Planted, as_planted, get_analysis
from mechinterp_toolkit.results import Estimate, Row, Verdict

ALPHA = 0.05

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Strengths at which power is measured."""

Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`."""


@dataclass(frozen=True)
class NullCount:
    """How often one verdict rejected its null on one kind of null model."""

    twin: str
    """Kind of null model."""

    verdict: str
    """"represented" or "used"."""

    models: int
    """Null models that rejections are counted over: those tested, and for "used" all that ran; 0
    where none was tested."""

    rejected: int
    """Models with p <= 0.05."""

    found: int
    """Models on which the outcome was "found" (thresholds on the effect included)."""

    tested: int
    """Models on which the test was made."""

    @property
    def limit(self) -> int | None:
        """Most rejections for which a right test is not doubted; None where no test was made."""
        return calibration_limit(self.models) if self.models else None

    @property
    def passed(self) -> bool:
        """Whether the count is within the limit."""
        return self.limit is None or self.rejected <= self.limit


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`."""

    analysis: str
    """Name of the analysis."""

    counts: tuple[NullCount, ...]
    """One entry per kind of null model and verdict."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options other than the defaults."""

    @property
    def passed(self) -> bool:
        """Whether every count is within its limit."""
        return all(count.passed for count in self.counts)

    def rows(self) -> list[Row]:
        """Return one row per kind of null model and verdict."""
        return [
            {
                "analysis": self.analysis,
                "null model": c.twin,
                "verdict": c.verdict,
                "models": c.models,
                "tested": c.tested,
                "p <= 0.05": c.rejected,
                "found": c.found,
                "limit": c.limit,
                "passed": c.passed,
            }
            for c in self.counts
        ]

    def text(self) -> str:
        """Return one line per row, for people."""
        lines = [f"{self.analysis}: {'passed' if self.passed else 'FAILED'}"]
        for c in self.counts:
            judged = (
                f"at most {c.limit} allowed" if c.models else "no test was made: nothing to judge"
            )
            few = f" ({c.tested} were tested)" if c.tested < c.models else ""
            lines.append(
                f"  {c.twin}, {c.verdict}: p <= {ALPHA} on {c.rejected} of {c.models} models{few},"
                f" {c.found} found; {judged}"
            )
        return "\n".join(lines)


def calibrate(
    name: str,
    *,
    models: int = 200,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run an analysis on null models of every kind it declares and count how often it rejects.

    Args:
        name: a registered analysis.
        models: null models of each kind; the first gets `seed`, the others follow. The analysis
            gets the same seed.
        seed: of the first model.
        options: options of the analysis, defaults otherwise.
        progress: called after each model.

    Raises:
        RegistryError: no such analysis, or it declares no null models.
    """
    entry = get_analysis(name)
    if not entry.twins:
        raise RegistryError(
            f"{name} declares no null models; give its decorator twins={{'random weights': ...}}."
        )
    total, done, counts = models * len(entry.twins), 0, []
    for kind, make in entry.twins.items():
        verdicts: dict[str, list[Verdict]] = {"represented": [], "used": []}
        for i in range(seed, seed + models):
            finding = _run(entry, make(i), i, options)
            verdicts["represented"].append(finding.represented)
            verdicts["used"].append(finding.used)
            done += 1
            if progress:
                progress(done, total, kind)
        counts += [_count(kind, which, given) for which, given in verdicts.items()]
    return Calibration(name, tuple(counts), dict(options or {}))


@dataclass(frozen=True)
class Power:
    """Result of `power`."""

    analysis: str
    """Name of the analysis."""

    represented: Estimate
    """Fraction of planted models on which the structure was found where it is, [strength]."""

    used: Estimate
    """Fraction on which it was found to be used as well, [strength]."""

    def rows(self) -> list[Row]:
        """Return one row per strength and verdict."""
        both = [*self.represented.rows("represented"), *self.used.rows("used")]
        return [{"analysis": self.analysis, "verdict": row.pop("estimate"), **row} for row in both]

    def text(self) -> str:
        """Return one line per strength, for people."""
        lines = [
            f"{self.analysis}: found where it was planted, of {self.represented.n} models per"
            " strength"
        ]
        for i, strength in enumerate(self.represented.labels["strength"]):
            there, used = self.represented.at(i).text(), self.used.at(i).text()
            lines.append(f"  strength {strength}: represented {there}, used {used}")
        return "\n".join(lines)


def power(
    name: str,
    *,
    strengths: Sequence[float] = STRENGTHS,
    models: int = 20,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Power:
    """Run an analysis on models with its structure planted and count how often it finds it there.

    Every strength sees the same seeds, so that neighbouring points differ by strength alone.

    Args:
        name: a registered analysis.
        strengths: of the planted structure; 1 is clear, 0 is a null model.
        models: planted models per strength.
        seed: decides their seeds.
        options: options of the analysis, defaults otherwise.
        progress: called after each model.

    Raises:
        RegistryError: no such analysis, or it plants nothing.
        ToolkitError: no strength, or no model.
    """
    entry = get_analysis(name)
    if entry.planted is None:
        raise RegistryError(
            f"{name} plants nothing; give its decorator planted=a function of strength and seed."
        )
    if not strengths or models < 1:
        raise ToolkitError(
            f"got {len(strengths)} strengths and {models} models; expected at least one of each."
        )
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**31, (models,), generator=generator).tolist()
    there, used = (torch.zeros(len(strengths), models, dtype=torch.bool) for _ in range(2))
    for row, strength in enumerate(strengths):
        for column, model_seed in enumerate(seeds):
            planted = entry.planted(strength, model_seed)
            finding = _run(entry, planted, model_seed, options)
            first = finding.locations[: len(planted.locations)]
            at_its_place = set(first) == set(planted.locations)
            there[row, column] = finding.represented.found and at_its_place
            used[row, column] = there[row, column] and finding.used.found
            if progress:
                done = row * models + column + 1
                progress(done, models * len(strengths), f"strength {strength:g}")
    return Power(name, _share_found(there, strengths), _share_found(used, strengths))


def calibration_limit(n: int = 200, *, alpha: float = ALPHA, level: float = 0.01) -> int:
    """Return the most false findings in `n` null runs that a one-sided binomial test at `level`
    accepts as rate `alpha`.

    At `level` 1 % that is 18 of 200. Asking for "at most 5 % observed" (10 of 200) instead fails a
    perfect test 42 % of the time.

    Raises:
        ToolkitError: no runs, or a level or rate outside (0, 1).
    """
    from scipy.special import bdtrc

    if n < 1 or not 0 < alpha < 1 or not 0 < level < 1:
        raise ToolkitError(
            f"got n={n}, alpha={alpha}, level={level}; expected n >= 1 and rates in (0, 1)."
        )
    # bdtrc(k - 1, n, alpha) is P(at least k false findings); it falls in k.
    return max(k for k in range(n + 1) if k == 0 or bdtrc(k - 1, n, alpha) > level)


class Interval(NamedTuple):
    """The lower and the upper end of an interval."""

    low: Tensor
    high: Tensor


def binomial_interval(successes: Int[Tensor, "*axes"], n: int, *, level: float = 0.95) -> Interval:
    """Return the Clopper-Pearson interval of a probability: exact, so it covers at least `level`,
    often more.

    Raises:
        ToolkitError: successes outside 0 to `n`, or no trial.
    """
    from scipy.special import betaincinv

    if n < 1 or bool(((successes < 0) | (successes > n)).any()):
        raise ToolkitError(
            f"got successes {successes.tolist()} of n={n}; expected at least one trial and 0 to n."
        )
    k = successes.detach().cpu().double()
    tail = (1 - level) / 2
    # Successes 0 and n have no beta distribution on that side (a shape of 0): the interval reaches
    # 0 or 1 there.
    low = torch.as_tensor(
        betaincinv(k.clamp(min=1).numpy(), (n - k + 1).numpy(), tail), dtype=torch.float64
    )
    high = torch.as_tensor(
        betaincinv((k + 1).numpy(), (n - k).clamp(min=1).numpy(), 1 - tail), dtype=torch.float64
    )
    return Interval(low.where(k > 0, torch.zeros_like(k)), high.where(k < n, torch.ones_like(k)))


def _share_found(found: Bool[Tensor, "strength run"], strengths: Sequence[float]) -> Estimate:
    """The share of runs that found it, along the axis "strength"."""
    successes, runs = found.sum(1), found.shape[1]
    interval = binomial_interval(successes, runs)
    return Estimate(
        value=successes.double() / runs,
        low=interval.low,
        high=interval.high,
        n=runs,
        unit="fraction of runs that find it, in [0, 1]",
        method=f"Clopper-Pearson interval, {runs} runs per strength",
        axes=("strength",),
        labels={"strength": tuple(f"{strength:g}" for strength in strengths)},
    )


def _run(
    entry: Analysis, made: HookedModel | Planted, seed: int, options: Mapping[str, Any] | None
) -> Finding:
    planted = as_planted(made)
    seeded = {"seed": seed} if "seed" in entry.options else {}
    return entry.function(planted.model, **{**seeded, **planted.options, **(options or {})})


def _count(kind: str, which: str, verdicts: list[Verdict]) -> NullCount:
    tested = [v for v in verdicts if v.p is not None]
    rejected = sum(v.p is not None and v.p <= ALPHA for v in tested)
    over = len(verdicts) if which == "used" and tested else len(tested)
    return NullCount(kind, which, over, rejected, sum(v.found for v in verdicts), len(tested))
