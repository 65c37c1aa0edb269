"""How sure is a number, and could it have come out this large without the structure?

Tensors go in, tensors or an `Estimate` come out; nothing here knows a model. Everything is computed
in float64 on the CPU. Whatever is random takes its seed. p-values compare an observed statistic
with its draws under a null, large being extreme; intervals resample whole exchangeable units;
corrections cover the tests that were made together.

What would fool it: draws that destroy more than the claimed structure, a search that the null did
not repeat, and units that are not exchangeable (prompts, where the claim is about weekdays). No
function here can see any of the three.

Source: Phipson & Smyth 2010 (p-values are never zero); Westfall & Young 1993 (maximum statistic);
Benjamini & Hochberg 1995; Efron & Tibshirani 1993 (bootstrap); Clopper & Pearson 1934.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.results import Estimate, Verdict

Procedure = Literal["max_statistic", "benjamini_hochberg"]
"""How several tests made together are corrected: `max_statistic_p` or `benjamini_hochberg`."""

WeightedStatistic = Callable[
    [Float[Tensor, "n *features"], Float[Tensor, "draw n"]], Float[Tensor, "draw *axes"]
]
"""`statistic(values, weights)`: the statistic of the rows of `values`, once per row of `weights`.
"""

WEIGHTS_AT_ONCE = 2**24  # resampling weights held together: 128 MB of float64


def p_value(
    observed: Float[Tensor, "*items"], draws: Float[Tensor, "draw *items"], *, exact: bool = False
) -> Float[Tensor, "*items"]:
    """Return the probability, under the null, of a statistic at least as large as the observed one,
    item by item.

    Ties count as exceedances. Numbers tie within 100 rounding units of the coarser dtype: an
    arrangement summed in another order is still the same arrangement.

    Args:
        observed: one statistic per item, large meaning more of the structure.
        draws: the same statistics under the null.
        exact: the draws enumerate every arrangement, the observed one among them
            (`Permutations.exact`).

    Returns:
        (1 + exceedances) / (1 + draws), or exceedances / draws where `exact`; in (0, 1], not
        corrected for looking at several items.

    Raises:
        ToolkitError: a number is not finite, or "exact" draws never reach the observed value.
    """
    return _tail(*_comparable(observed, draws), _rounding(observed, draws), exact)


def max_statistic_p(
    observed: Float[Tensor, "*items"],
    draws: Float[Tensor, "draw *items"],
    *,
    studentise: bool = False,
    exact: bool = False,
) -> Float[Tensor, "*items"]:
    """Return p-values in (0, 1] corrected for looking at all items: each meets the largest item of
    every draw.

    One draw must be one shuffle applied to all items, so that their correlation carries over. The
    chance that any item without an effect gets p <= alpha is then at most alpha (Westfall & Young's
    single-step procedure; with true effects elsewhere it also needs the null of an item not to
    depend on whether the others have one).

    Args:
        observed: one statistic per item.
        draws: the same statistics under the null.
        studentise: first subtract each item's mean over the draws and the observed value and divide
            by their standard deviation. Without it the item with the widest null sets the bar for
            all; with it the bar is the same in each item's own standard deviations. The observed
            value counts as a draw in both: without it, it looks extreme by itself (19 draws, 20
            items: 20 % false findings at 5 %).
        exact: as in `p_value`.

    Raises:
        ToolkitError: as `p_value`; or an item never varies over the draws and was to be
            studentised.
    """
    rounding = _rounding(observed, draws)
    value, null = _comparable(observed, draws)
    if studentise:
        pool = null if exact else torch.cat([value[None], null])
        mean, sd = pool.mean(0), pool.std(0)
        constant = int((sd <= rounding * mean.abs()).sum())
        if constant:
            raise ToolkitError(
                f"{constant} of {sd.numel()} items have the same statistic in every draw and cannot"
                " be studentised; leave such items out and report them as not applicable, or use"
                " studentise=False."
            )
        value, null = (value - mean) / sd, (null - mean) / sd
    largest = null.reshape(len(null), -1).amax(1)
    return _tail(value, largest.reshape(-1, *[1] * value.dim()), rounding, exact)


def benjamini_hochberg(p: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """Return p-values adjusted for the false-discovery rate over all items of `p`.

    Rejecting where the result is <= q keeps the expected share of false findings among the findings
    at or below q, for independent or positively dependent tests. The p-values must be fine enough:
    see `too_few_draws`.

    Raises:
        ToolkitError: a p-value lies outside (0, 1].
    """
    flat = p.detach().cpu().double().flatten()
    outside = int((~((flat > 0) & (flat <= 1))).sum())
    if outside:
        raise ToolkitError(
            f"{outside} of {len(flat)} p-values lie outside (0, 1]; count the observed draw among"
            " them."
        )
    order = flat.argsort(descending=True)
    rank = torch.arange(len(flat), 0, -1, dtype=torch.float64)
    adjusted = (flat[order] * (len(flat) / rank)).cummin(0).values
    return torch.empty_like(flat).scatter_(0, order, adjusted).reshape(p.shape)


def smallest_p(draws: int, *, exact: bool = False) -> float:
    """Return the smallest p-value that `draws` can give.

    In an enumeration (`exact`) count arrangements that always score alike once: of the 360 orders
    of 7 classes 120 are left when harmonics are searched.

    Raises:
        ToolkitError: no draws.
    """
    if draws < 1:
        raise ToolkitError(f"got draws={draws}; a p-value needs at least one draw under the null.")
    return 1 / draws if exact else 1 / (1 + draws)


def draws_needed(alpha: float, n_tests: int, procedure: Procedure) -> int:
    """Return the least number of random draws with which one true effect among `n_tests` can pass
    at level `alpha`.

    About 1/alpha for the maximum statistic, n_tests/alpha for Benjamini-Hochberg. With just this
    number the effect has to exceed every draw.

    Raises:
        ToolkitError: `alpha` is no probability or there is no test.
    """
    if not 0 < alpha < 1 or n_tests < 1:
        raise ToolkitError(
            f"got alpha={alpha} and n_tests={n_tests}; expected alpha in (0, 1) and at least one"
            " test."
        )
    family = _family(n_tests, procedure)
    draws = max(math.ceil(family / alpha) - 2, 1)
    while (
        smallest_p(draws) * family > alpha
    ):  # a step or two: settles the rounding of the division above
        draws += 1
    return draws


def too_few_draws(
    draws: int, *, n_tests: int, procedure: Procedure, alpha: float = 0.05, exact: bool = False
) -> str | None:
    """Return why not even one true effect among `n_tests` could pass, with the draws it takes; None
    where it could.

    The sentence is the reason of an `undecided` verdict. `draws` and `exact` are those of
    `smallest_p`.
    """
    needed, family = draws_needed(alpha, n_tests, procedure), _family(n_tests, procedure)
    floor = smallest_p(draws, exact=exact)
    if floor * family <= alpha:
        return None
    remedy = (
        f"at least {needed:,} draws are needed"
        if not exact
        else "no more arrangements exist: it takes more units"
    )
    bar = (
        f"one true effect among {n_tests} tests needs {alpha / family:.2g} at level {alpha:g}"
        f" ({procedure})"
    )
    if n_tests == 1:
        bar = f"a single test at level {alpha:g} needs no more than that"
    return f"the smallest p-value of {draws:,} draws is {floor:.2g}, but {bar}; {remedy}."


def _family(n_tests: int, procedure: Procedure) -> int:
    """What a single effect's p-value is multiplied by: the maximum statistic has its correction
    inside."""
    return n_tests if procedure == "benjamini_hochberg" else 1


def _comparable(observed: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    value, null = observed.detach().cpu().double(), draws.detach().cpu().double()
    if len(null) == 0 or not value.isfinite().all() or not null.isfinite().all():
        raise ToolkitError(
            f"{int((~value.isfinite()).sum())} observed and {int((~null.isfinite()).sum())} drawn"
            f" statistics are NaN or infinite, in {len(null)} draws; expected one draw or more, all"
            " finite: leave out what was not measured."
        )
    return value, null


def _rounding(*tensors: Tensor) -> float:
    """100 rounding units, relative, of the coarsest dtype: what summing the same numbers in another
    order may change."""
    return 100 * max(torch.finfo(tensor.dtype).eps for tensor in tensors)


def _tail(value: Tensor, null: Tensor, rounding: float, exact: bool) -> Tensor:
    exceedances = (null >= value - rounding * value.abs()).sum(0)
    if not exact:
        return (1 + exceedances).double() / (1 + len(null))
    if exceedances.numel() and int(exceedances.min()) == 0:
        raise ToolkitError(
            f"exact=True, but none of the {len(null)} draws reaches an observed value; an"
            " enumeration contains the observed arrangement. Compute observed and draws with the"
            " same function, or use exact=False."
        )
    return exceedances.double() / len(null)


def why_undecided(
    draws: int, arrangements: int | None = None, *, alpha: float = 0.05
) -> str | None:
    """Return why one test cannot pass whatever it observes, with what it takes; None where it can.

    Args:
        draws: how many were drawn under the null, or are all there are.
        arrangements: how many arrangements differ for the statistic, the observed one among them:
            draws beyond these only repeat. None where there are far more than draws.
        alpha: the level; a share of it where several tests are made.
    """
    test: dict[str, Any] = {"n_tests": 1, "procedure": "max_statistic", "alpha": alpha}
    if arrangements is not None and smallest_p(arrangements, exact=True) > alpha:
        return too_few_draws(arrangements, exact=True, **test)
    return too_few_draws(draws, **test)


def judge_effect(
    effect: Estimate, said: str, control: str, smallest: float, *, arrangements: int | None = None
) -> Verdict:
    """Return the verdict on a scalar effect: beyond its control, and surely no less than the
    smallest of interest.

    With too few draws for any p-value of 5 % it is undecided, unless the effect is surely smaller
    than anything of interest: more draws would not change that.

    Args:
        effect: with its control, a one-sided test: larger is more.
        said: what was done and measured, a sentence without its full stop.
        control: what the control is, behind "than".
        smallest: the smallest effect of interest, in the unit of the effect.
        arrangements: as for `why_undecided`.
    """
    assert effect.control is not None
    p = float(p_value(effect.value, effect.control))
    sure: dict[str, Any] = {"p": p, "smallest_effect": smallest}
    short = why_undecided(len(effect.control), arrangements)
    if short is not None and float(effect.high) >= smallest:
        return Verdict("undecided", f"{said}; {short}", **sure)
    if short is None and p > 0.05:
        return Verdict("not_found", f"{said}, no more than {control}.", **sure)
    if float(effect.high) < smallest:
        return Verdict("not_found", f"{said}, less than anything of interest ({smallest}).", **sure)
    if float(effect.low) < smallest:
        return Verdict(
            "undecided", f"{said}, beyond {control}, but perhaps below {smallest}.", **sure
        )
    return Verdict("found", f"{said}, more than {control}.", **sure)


@dataclass(frozen=True)
class Permutations:
    """Arrangements of n exchangeable units, one per draw."""

    index: Int[Tensor, "draw n"]
    """`values[index]` is one rearranged copy per draw: position j holds unit `index[draw, j]`."""

    exact: bool
    """Whether these are all arrangements, each once, the identity among them; pass it on to
    `p_value`."""


def permutations(
    n: int, *, draws: int, seed: int, kind: Literal["all", "cyclic_orders"] = "all"
) -> Permutations:
    """Return random arrangements of `n` units, or every arrangement where there are at most
    `draws`.

    Args:
        n: number of exchangeable units (classes, not prompts, for a claim about classes).
        draws: how many to draw; uniform, with replacement, the identity not excluded.
        seed: of the draws.
        kind: "all" has n! arrangements. "cyclic_orders" has (n-1)!/2 (360 for 7), for statistics
            that rotation and reflection leave alone: unit 0 comes first and its neighbours in
            rising order.

    Raises:
        ToolkitError: fewer than one unit (three for cyclic orders) or no draws.
    """
    cyclic = kind == "cyclic_orders"
    if n < (3 if cyclic else 1) or draws < 1:
        raise ToolkitError(
            f"got n={n} and draws={draws}; expected at least {3 if cyclic else 1} units and one"
            " draw."
        )
    if math.factorial(n - 1) // 2 <= draws if cyclic else math.factorial(n) <= draws:
        orders = itertools.permutations(range(n))
        kept = [order for order in orders if not cyclic or (order[0] == 0 and order[1] < order[-1])]
        return Permutations(torch.tensor(kept), exact=True)
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(draws, n - cyclic, generator=generator, dtype=torch.float64).argsort(1)
    if cyclic:
        index = torch.where(index[:, :1] > index[:, -1:], index.flip(1), index)
        index = torch.cat([torch.zeros(draws, 1, dtype=torch.long), index + 1], dim=1)
    return Permutations(index, exact=False)


def balanced_relabellings(
    label: Int[Tensor, " n"], *, draws: int, seed: int
) -> Int[Tensor, "draw n"]:
    """Return labels shuffled so that every class is spread evenly over the new ones: nothing of the
    old labels is left.

    Uniform shuffles of few units leave a little of the true classes in the new ones. Where an edit
    made from them is brought to a given size, that little can be most of it. For tests of an edit,
    not of a statistic: the observed labels are none of these, so a p-value for labels themselves
    needs `permutations`.

    Args:
        label: class of each unit, from 0.
        draws: how many.
        seed: of the draws.

    Returns:
        As many units of each class as before; units of one class share the new classes in
        proportion, rounded at random.

    Raises:
        ToolkitError: fewer than two classes.
    """
    count = label.bincount()
    if int((count > 0).sum()) < 2:
        raise ToolkitError(
            f"labels of {int((count > 0).sum())} class cannot be spread; give two classes or more."
        )
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(draws):
        # Units in random order, class by class; new labels dealt in turn over that order at even
        # distances.
        order = (label + torch.rand(len(label), generator=generator)).argsort()
        dealt = torch.cat(
            [torch.arange(int(n)) / n + torch.rand(1, generator=generator) / n for n in count if n]
        )
        new = torch.repeat_interleave(torch.arange(len(count)), count)[dealt.argsort()]
        relabelled = torch.empty_like(label)
        relabelled[order] = new
        rows.append(relabelled)
    return torch.stack(rows)


def permuted_within(group: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return a random order of n rows in which every row takes the place of one of its group."""
    order = torch.empty_like(group)
    for one in group.unique():
        here = (group == one).nonzero()[:, 0]
        order[here] = here[torch.randperm(len(here), generator=generator)]
    return order


class Interval(NamedTuple):
    """The lower and the upper end of an interval."""

    low: Tensor
    high: Tensor


def weighted_mean(
    values: Float[Tensor, "n *axes"], weights: Float[Tensor, "draw n"]
) -> Float[Tensor, "draw *axes"]:
    """Return the mean over rows, once for each row of non-negative weights."""
    sums = weights @ values.reshape(len(values), -1)
    return (sums / weights.sum(1, keepdim=True)).reshape(len(weights), *values.shape[1:])


def bootstrap(
    values: Float[Tensor, "n *features"],
    *,
    unit_name: str,
    measured: str,
    seed: int,
    unit: Int[Tensor, " n"] | None = None,
    draws: int = 999,
    statistic: WeightedStatistic = weighted_mean,
    axes: tuple[str, ...] = (),
    labels: Mapping[str, tuple[str, ...]] | None = None,
    control: Float[Tensor, "draw *axes"] | None = None,
    control_name: str = "",
) -> Estimate:
    """Estimate a statistic of the rows of `values`, with a 95 % percentile interval over whole
    units.

    Units are drawn with replacement; all rows of a unit go together. A unit drawn twice gets weight
    two instead of a second copy, so a statistic that leaves units out leaves out every copy:
    nothing is on both sides of a fold. With few units the interval is too narrow: of a mean of
    normal units it covers 88 % (7), 93 % (20), 94 % (50).

    Args:
        values: one row per measurement.
        unit_name: what varies from unit to unit, in the plural ("templates", "items").
        measured: unit and range of the statistic ("logits", "fraction in [0, 1]").
        seed: of the resampling.
        unit: which unit each row belongs to; None where each row is its own. In a mean, units count
            by their number of rows: average within units beforehand where they shall count alike.
        draws: number of resamples.
        statistic: the mean, or another function of values and row weights.
        axes, labels, control, control_name: kept with the estimate, see `Estimate`.

    Raises:
        ToolkitError: fewer than two units or 39 draws, or the statistic of a resample is not
            finite.
    """
    rows = values.detach().cpu().double()
    which = torch.arange(len(rows)) if unit is None else unit.cpu().unique(return_inverse=True)[1]
    n_units = int(which.max()) + 1 if len(which) else 0
    if n_units < 2:
        raise ToolkitError(
            f"an interval over {unit_name} needs at least two of them, got {n_units} in {len(rows)}"
            " rows; measure more, or report the number in the reason of a Verdict instead of an"
            " Estimate."
        )
    if draws < 39:
        raise ToolkitError(
            f"a 95 % interval needs at least 39 draws (one beyond each end); got {draws}, 999 is"
            " usual."
        )
    resampled = _resample(rows, which, n_units, draws, seed, statistic)
    tail = (draws + 1) // 40  # 2.5 %: the 25th from either end of 999
    return Estimate(
        value=statistic(rows, torch.ones(1, len(rows), dtype=torch.float64))[0],
        low=resampled.kthvalue(tail, dim=0).values,
        high=resampled.kthvalue(draws + 1 - tail, dim=0).values,
        n=n_units,
        unit=measured,
        method=f"percentile bootstrap over {unit_name}, {draws} draws",
        control=None if control is None else control.detach().cpu().double(),
        control_name=control_name,
        axes=axes,
        labels=labels or {},
    )


def times_drawn(n_units: int, draws: int, generator: torch.Generator) -> Float[Tensor, "draw unit"]:
    """Return how often each unit is drawn when as many units as there are, with replacement."""
    drawn = torch.randint(n_units, (draws, n_units), generator=generator)
    times = torch.zeros(drawn.shape, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones_like(times))


def _resample(
    rows: Tensor, which: Tensor, n_units: int, draws: int, seed: int, statistic: WeightedStatistic
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, draws, step := max(1, WEIGHTS_AT_ONCE // len(which))):
        times = times_drawn(n_units, min(step, draws - start), generator)
        parts.append(statistic(rows, times[:, which]))
    resampled = torch.cat(parts)
    failed = int((~resampled.isfinite()).reshape(draws, -1).any(1).sum())
    if failed:
        raise ToolkitError(
            f"the statistic is NaN or infinite in {failed} of {draws} resamples; leave out rows"
            f" that are not finite ({int((~rows.isfinite()).sum())} values), or use a statistic"
            " that is defined when units are missing."
        )
    return resampled


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


def calibration_limit(n: int = 200, *, alpha: float = 0.05, level: float = 0.01) -> int:
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


def calibrated(count: int, n: int = 200, *, alpha: float = 0.05, level: float = 0.01) -> bool:
    """Return whether `count` false findings in `n` null runs are compatible with a rate of
    `alpha`."""
    return count <= calibration_limit(n, alpha=alpha, level=level)


def power_curve(
    run: Callable[[float, int], bool], strengths: Sequence[float], *, repeats: int, seed: int
) -> Estimate:
    """Estimate the fraction of runs `run(strength, seed)` that find a structure, along the axis
    "strength".

    Every strength sees the same `repeats` seeds, so that neighbouring points differ by strength
    alone.

    Raises:
        ToolkitError: no strength or no repeat.
    """
    if not strengths or repeats < 1:
        raise ToolkitError(
            f"got {len(strengths)} strengths and {repeats} repeats; expected at least one of each."
        )
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**31, (repeats,), generator=generator).tolist()
    found = torch.tensor([sum(bool(run(strength, s)) for s in seeds) for strength in strengths])
    low, high = binomial_interval(found, repeats)
    return Estimate(
        value=found.double() / repeats,
        low=low,
        high=high,
        n=repeats,
        unit="fraction of runs that find it, in [0, 1]",
        method=f"Clopper-Pearson interval, {repeats} runs per strength",
        axes=("strength",),
        labels={"strength": tuple(f"{strength:g}" for strength in strengths)},
    )


def centred_logit(
    logits: Float[Tensor, "batch d_vocab"],
    answer: Int[Tensor, " batch"],
    candidates: Int[Tensor, " candidate"],
) -> Float[Tensor, " batch"]:
    """Return the logit of the answer minus the mean logit of the candidates, in logits.

    What moves all candidates alike moves nothing here. Gradients pass.

    Args:
        logits: at the position that answers.
        answer: token id of the right answer, per prompt; one of the candidates.
        candidates: token ids of the class, each once.

    Raises:
        ToolkitError: an answer is no candidate, a candidate comes twice or alone, or a logit is not
            finite.
    """
    chosen, right = _among(logits, answer, candidates)
    return chosen[right] - chosen.mean(1)


def accuracy_among(
    logits: Float[Tensor, "batch d_vocab"],
    answer: Int[Tensor, " batch"],
    candidates: Int[Tensor, " candidate"],
) -> Float[Tensor, " batch"]:
    """Return 1 for each prompt whose answer has the highest logit of all candidates, else 0.

    An answer that ties with another candidate is not right: equal logits choose nothing. Arguments
    and errors are those of `centred_logit`.
    """
    chosen, right = _among(logits, answer, candidates)
    return (chosen[right] > chosen.masked_fill(right, -torch.inf).amax(1)).double()


def _among(logits: Tensor, answer: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the candidates in float64 on the CPU, and which of them is the answer."""
    answer, candidates = answer.cpu(), candidates.cpu()
    if len(candidates.unique()) < max(2, len(candidates)):
        raise ToolkitError(
            f"expected at least two candidates, each once; got {candidates.tolist()}."
        )
    right = answer[:, None] == candidates
    if not right.any(1).all():
        missing = answer[~right.any(1)].unique().tolist()
        raise ToolkitError(
            f"answers {missing} are not among the {len(candidates)} candidates; add them or drop"
            " them."
        )
    chosen = logits[:, candidates.to(logits.device)].cpu().double()
    if not chosen.isfinite().all():
        raise ToolkitError(
            "a candidate's logit is NaN or infinite; check the model's weights and dtype."
        )
    return chosen, right
