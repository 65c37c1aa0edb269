"""Can n mod T be read off, and can one residue be swapped for another?

*Residue features*: one direction per residue of n mod T, by class means, a logistic probe or a
small sparse autoencoder. *Residue scan*: a linear classifier reads n mod T for held-out numbers,
for every period; permuted numbers repeat the search. *Steering*: one residue's direction is
exchanged for another's, and the reader of the state has to answer with the successor of the item
with the new residue.

What would fool it: class means of residues contain any trend in n, because larger residues belong
to larger numbers: `detrend` removes a cubic. A period's divisors and multiples can be read off
where the period can; `best` names the one that stands out most. An oscillation of any origin has a
period: digits shared by numbers of several tokens, or how frequent tokens are. Random directions
rarely steer anything, so the features must also beat themselves with residues exchanged.

Source: Gould et al. 2023, arXiv:2312.09230 (mod-10 features, vector arithmetic); Fu et al. 2026,
arXiv:2604.20817 (separability). The period scan and all nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, same_width, whole_numbers
from mechinterp_toolkit.geometry.factoring import ALPHA, control_of, one_hot
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import (
    bootstrap,
    max_statistic_p,
    p_value,
    permutations,
    too_few_draws,
)

RIDGE = 0.1
"""Penalty of the scan's classifier, in units of the mean squared norm of a residual."""

DECAY = 1e-3
"""Penalty of the probe's squared weights, on activations of mean squared norm 1."""

Method = Literal["mean", "probe", "sae"]

_FEWEST = 12  # numbers: below, a cubic and the shortest period leave too little


# --- features of residues ------------------------------------------------------------------------


@dataclass(frozen=True)
class ResidueFeatures:
    """Result of `residue_features`."""

    period: int
    """T of n mod T."""

    method: str
    """mean, probe or sae."""

    features: Float[Tensor, "residue d"]
    """One direction per residue 0 to T - 1, of norm 1."""

    items: Int[Tensor, " residue"]
    """Items that have each residue."""

    latent: Int[Tensor, " residue"] | None = None
    """Latent of the autoencoder whose activation goes with each residue most closely; two residues
    may share one."""

    share: Float[Tensor, " residue"] | None = None
    """Share of a residue's items in which that latent exceeds its mean by more than any other
    latent, in [0, 1]."""

    shuffled: Float[Tensor, "draw residue"] | None = None
    """The same for permuted numbers, latents being chosen again."""


def residue_features(
    acts: Float[Tensor, "item d"],
    number: Int[Tensor, " item"],
    period: int,
    method: Method = "mean",
    seed: int = 0,
    *,
    detrend: bool = False,
    latents: int = 64,
    sparsity: float = 0.03,
    steps: int = 600,
    rate: float = 0.01,
    draws: int = 99,
) -> ResidueFeatures:
    """Return one unit direction per residue of n mod `period`.

    "mean": class mean minus the mean of all items. "probe": weights of a multinomial logistic
    classifier. "sae": decoder row of the latent whose activation correlates most with the class, in
    an autoencoder with one hidden ReLU layer.

    Args:
        acts: one row per item.
        number: its number.
        period: T.
        method: how directions are found.
        seed: of the autoencoder's first weights and of the permutations.
        detrend: remove a cubic in the number first, so that no direction says "larger".
        latents: width of the autoencoder.
        sparsity: its penalty per unit of activation, where activations have a mean squared norm of
            1.
        steps: its updates, each on all items.
        rate: its learning rate.
        draws: permutations behind `shuffled`.

    Raises:
        ToolkitError: a residue has no item or no direction, an unknown method, or arguments that
            are no tensors of finite numbers with a row each.
    """
    rows = finite(acts, "acts", "item d")
    number = whole_numbers(number, "number", len(rows))
    if period < 2:
        raise ToolkitError(f"got period={period}; expected at least 2 residues.")
    residue = number % period
    items = torch.bincount(residue, minlength=period)
    if int(items.min()) == 0:
        missing = (items == 0).nonzero()[:, 0].tolist()
        raise ToolkitError(
            f"no item has residue {missing} mod {period} among {len(rows)} items; add items or take"
            " a shorter period."
        )
    if method not in ("mean", "probe", "sae"):
        raise ToolkitError(f"got method={method!r}; expected 'mean', 'probe' or 'sae'.")
    rows = _without(rows, _cubic(number)) if detrend else rows - rows.mean(0)
    if method == "sae":
        active, decoder = _autoencoder(rows, latents, sparsity, steps, rate, seed)
        latent, share = _key_latents(active, residue, period)
        orders = permutations(len(rows), draws=draws, seed=seed).index
        shuffled = torch.stack(
            [_key_latents(active, residue[order], period)[1] for order in orders]
        )
        return ResidueFeatures(
            period, method, _unit(decoder[latent]), items, latent, share, shuffled
        )
    found = (
        _class_means(rows, residue, period) if method == "mean" else _probe(rows, residue, period)
    )
    return ResidueFeatures(period, method, _unit(found), items)


def _class_means(rows: Tensor, residue: Tensor, period: int) -> Float[Tensor, "residue d"]:
    members = one_hot(residue, period)
    return members.T @ rows / members.sum(0)[:, None] - rows.mean(0)


def _probe(rows: Tensor, residue: Tensor, period: int) -> Float[Tensor, "residue d"]:
    """Weights of a penalised multinomial logistic regression, the mean over residues (which changes
    nothing) removed."""
    with torch.enable_grad():
        scaled = rows / _size(rows)
        weight = torch.zeros(period, rows.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(period, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            solver.zero_grad()
            loss = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, residue)
            loss = loss + DECAY * weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)
    return (weight - weight.mean(0)).detach()


def _autoencoder(
    rows: Float[Tensor, "item d"], latents: int, sparsity: float, steps: int, rate: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Train a sparse autoencoder with decoder rows of norm 1; its activations [item, latent] and
    its decoder."""
    if latents < 1 or steps < 1 or sparsity < 0 or rate <= 0:
        raise ToolkitError(
            f"got latents={latents}, steps={steps}, sparsity={sparsity}, rate={rate}; expected"
            " positive numbers."
        )
    generator = torch.Generator().manual_seed(seed)
    scaled = rows / _size(rows)
    decoder = torch.randn(latents, rows.shape[1], generator=generator, dtype=torch.float64)
    decoder = (decoder / decoder.norm(dim=1, keepdim=True)).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    bias = torch.zeros(latents, dtype=torch.float64, requires_grad=True)
    centre = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.Adam([encoder, decoder, bias, centre], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            solver.zero_grad()
            active = torch.relu((scaled - centre) @ encoder + bias)
            missed = (scaled - centre - active @ decoder).square().sum(1).mean()
            (missed + sparsity * active.sum(1).mean()).backward()
            solver.step()
            with torch.no_grad():
                decoder /= decoder.norm(dim=1, keepdim=True)
    with torch.no_grad():
        return torch.relu((scaled - centre) @ encoder + bias), decoder.detach().clone()


def _key_latents(
    active: Float[Tensor, "item latent"], residue: Tensor, period: int
) -> tuple[Tensor, Tensor]:
    """The latent that correlates most with each residue, and the share of its items in which it
    stands out most."""
    above = active - active.mean(0)
    spread = above.norm(dim=0)
    alive = spread > 1e-9 * spread.max().clamp_min(1e-300)
    members = one_hot(residue, period)
    inside = members - members.mean(0)
    correlation = (inside.T @ above) / (spread * inside.norm(dim=0)[:, None]).clamp_min(1e-300)
    latent = correlation.masked_fill(~alive, -torch.inf).argmax(1)
    stands_out = above.argmax(1)
    share = ((stands_out == latent[residue]).double() @ members) / members.sum(0)
    return latent, share


# --- which residues can be read off --------------------------------------------------------------


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
        """Periods whose residue can be read off, the one that stands out most first; multiples and
        divisors among them."""
        order = _stands_out(self.excess.value, self.periods, self.excess.n).argsort(
            descending=True, stable=True
        )
        return tuple(self.periods[i] for i in order.tolist() if self.p[i] <= ALPHA)

    @property
    def best(self) -> int:
        """The period that stands out most, found or not."""
        return self.periods[
            int(_stands_out(self.excess.value, self.periods, self.excess.n).argmax())
        ]

    @property
    def represented(self) -> Verdict:
        """Whether the residue of some period can be read off."""
        p, at = float(self.p.amin()), self.periods.index(self.best)
        skipped = (
            f" Skipped as longer than half the range: {_listed(self.skipped)}."
            if self.skipped
            else ""
        )
        why = too_few_draws(
            len(control_of(self.excess)),
            n_tests=len(self.periods),
            procedure="max_statistic",
            alpha=ALPHA,
        )
        if why:
            return Verdict("undecided", f"Of {len(self.periods)} periods: {why}{skipped}", p=p)
        accuracy = float(self.excess.value[at]) + 1 / self.best
        said = (
            f"n mod {self.best} is read off for {accuracy:.0%} of held-out numbers (1/T:"
            f" {1 / self.best:.0%})"
        )
        if not self.found:
            said = f"No period beats permuted numbers; at best {said}"
        return Verdict("found" if self.found else "not_found", f"{said}.{skipped}", p=p)


def residue_scan(
    acts: Float[Tensor, "item d"],
    number: Int[Tensor, " item"],
    periods: Sequence[int] = range(2, 25),
    *,
    draws: int = 199,
    seed: int = 0,
) -> ResidueScan:
    """Look for periods T for which a linear classifier reads n mod T for numbers it was not trained
    on.

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
    """
    rows, unique = _by_number(acts, number)
    longest = (int(unique[-1]) - int(unique[0]) + 1) // 2
    asked = tuple(dict.fromkeys(int(t) for t in periods))
    kept = tuple(t for t in asked if 2 <= t <= longest)
    if not kept or min(asked) < 2:
        raise ToolkitError(
            f"got periods {_listed(asked) or 'none'} for numbers from {int(unique[0])} to"
            f" {int(unique[-1])}; expected periods from 2, at least one of them at most {longest},"
            " half the range."
        )
    design = _cubic(unique)
    left = _without(rows, design)
    residues = torch.stack([unique % t for t in kept], 1)
    chance = 1 / torch.tensor(kept, dtype=torch.float64)
    right = _read_off(left, residues, kept) - chance
    orders = permutations(len(unique), draws=draws, seed=seed).index
    # Permuted residuals have a cubic part again, which the observed ones cannot have: it is removed
    # again.
    null = (
        torch.stack(
            [_read_off(_without(left[order], design), residues, kept).mean(0) for order in orders]
        )
        - chance
    )
    n = len(unique)
    return ResidueScan(
        periods=kept,
        skipped=tuple(t for t in asked if t > longest),
        excess=bootstrap(
            right,
            unit_name="numbers",
            measured="held-out accuracy of n mod T minus 1/T, in [-1/T, 1 - 1/T]",
            seed=seed,
            axes=("period",),
            labels={"period": tuple(str(t) for t in kept)},
            control=null,
            control_name="numbers permuted",
        ),
        p=max_statistic_p(_stands_out(right.mean(0), kept, n), _stands_out(null, kept, n)),
    )


def _by_number(acts: Any, number: Any) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Mean activation of each different number, in rising order, and the numbers."""
    rows = finite(acts, "acts", "item d")
    unique, which = whole_numbers(number, "number", len(rows)).unique(return_inverse=True)
    if len(unique) < _FEWEST:
        raise ToolkitError(
            f"got {len(unique)} different numbers; expected at least {_FEWEST} to look for"
            " residues."
        )
    members = one_hot(which, len(unique))
    return members.T @ rows / members.sum(0)[:, None], unique


def _read_off(
    left: Float[Tensor, "n d"], residues: Int[Tensor, "n period"], periods: Sequence[int]
) -> Float[Tensor, "n period"]:
    """1 where the residue of a number is read off by ridge regression on all other numbers,
    else 0."""
    gram = left @ left.T
    penalty = RIDGE * gram.diagonal().mean().clamp_min(1e-300)
    hat = gram @ torch.linalg.inv(gram + penalty * torch.eye(len(gram), dtype=torch.float64))
    target = torch.cat([one_hot(residues[:, k], t) for k, t in enumerate(periods)], 1)
    target = target - target.mean(0)
    inner = hat.diagonal()[:, None]
    score = (hat @ target - inner * target) / (1 - inner)
    parts = score.split(list(periods), dim=1)
    return (torch.stack([part.argmax(1) for part in parts], 1) == residues).double()


def _stands_out(
    excess: Float[Tensor, "*draw period"], periods: Sequence[int], n: int
) -> Float[Tensor, "*draw period"]:
    """Excess accuracy in standard deviations of guessing, so that periods of 2 and of 24 can be
    compared."""
    chance = 1 / torch.tensor(periods, dtype=torch.float64)
    return excess / (chance * (1 - chance) / n).sqrt()


# --- exchanging residues -------------------------------------------------------------------------


@dataclass(frozen=True)
class ResidueSteering:
    """Result of `steer_residues`; a cell is an item and a residue that is not its own."""

    share: Estimate
    """Share of cells in which the answer is the successor of the intended item; control: random
    directions."""

    shuffled: Float[Tensor, " draw"]
    """The share with the features' residues permuted."""

    exact: bool
    """Whether `shuffled` holds every permutation, the identity among them."""

    item: Int[Tensor, " cell"]
    """Position of the item that was steered."""

    residue: Int[Tensor, " cell"]
    """Residue it was given."""

    intended: Int[Tensor, " cell"]
    """Position of the right answer."""

    chosen: Int[Tensor, " cell"]
    """Position of the largest logit; -1 where several tie."""

    left_out: int
    """Cells without an intended item, or whose intended item has no successor."""

    unsteered: float
    """Share of items whose own successor is answered without steering, in [0, 1]."""

    @property
    def used(self) -> Verdict:
        """Whether exchanging features moves the answer as intended, beyond random directions and
        permuted residues."""
        control = control_of(self.share)
        p = max(
            float(p_value(self.share.value, control)),
            float(p_value(self.share.value, self.shuffled, exact=self.exact)),
        )
        said = f"{float(self.share.value):.0%} of {len(self.item)} cells are answered as intended"
        for draws, exact in ((len(control), False), (len(self.shuffled), self.exact)):
            why = too_few_draws(
                draws, n_tests=1, procedure="max_statistic", alpha=ALPHA, exact=exact
            )
            if why:
                return Verdict("undecided", f"{said}, but {why}", p=p)
        against = (
            f"random directions {float(control.mean()):.0%}, permuted residues"
            f" {float(self.shuffled.mean()):.0%}"
        )
        return Verdict("found" if p <= ALPHA else "not_found", f"{said}; {against}.", p=p)


def steer_residues(
    items: Float[Tensor, "item d"],
    number: Int[Tensor, " item"],
    features: Float[Tensor, "residue d"],
    scale: float,
    read: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n item"]],
    *,
    draws: int = 39,
    seed: int = 0,
    cyclic: bool = False,
) -> ResidueSteering:
    """Add `scale` times (feature of residue j - feature of the own residue) to every item, and read
    the answer.

    The right answer is the successor of the item with residue j in the same block of T numbers. An
    item's own residue changes nothing and is no cell: see `unsteered`.

    Args:
        items: one state per item.
        number: its number, each once.
        features: one direction per residue, such as `ResidueFeatures.features`.
        scale: how far to move.
        read: from states, in the dtype of `items`, to one logit per item.
        draws: random directions of the features' norms, and permutations of their residues.
        seed: of both and of the bootstrap.
        cyclic: whether the smallest number follows the largest.

    Raises:
        ToolkitError: a number comes twice, no cell is left, arguments that are no tensors of finite
            numbers with a row each, features of another width, or logits that are not finite or
            have the wrong shape.
    """
    rows, directions = finite(items, "items", "item d"), finite(features, "features", "residue d")
    number = whole_numbers(number, "number", len(rows))
    same_width(directions, "features", rows.shape[1], "items")
    item, residue, intended, left_out = _cells(number, len(directions), cyclic)

    own, follows = number % len(directions), _successors(number, cyclic)

    def chosen(states: Tensor) -> Tensor:
        return _largest(read(states.to(items)), len(states), len(rows))

    def answers(by: Tensor) -> Tensor:
        return chosen(rows[item] + scale * (by[residue] - by[own[item]]))

    plain, answered = chosen(rows), answers(directions)
    orders = permutations(len(directions), draws=draws, seed=seed)
    random, permuted = (
        torch.stack([(answers(by) == intended).double().mean() for by in draw])
        for draw in (_random_like(directions, draws, seed), directions[orders.index])
    )
    share = bootstrap(
        (answered == intended).double(),
        unit_name="items",
        measured="share of cells answered as intended, in [0, 1]",
        seed=seed,
        unit=item,
        control=random,
        control_name="random directions of the same norm",
    )
    unsteered = float((plain == follows)[follows >= 0].double().mean())
    return ResidueSteering(
        share, permuted, orders.exact, item, residue, intended, answered, left_out, unsteered
    )


def _random_like(
    directions: Float[Tensor, "residue d"], draws: int, seed: int
) -> Float[Tensor, "draw residue d"]:
    """Random directions of the same norms."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(draws, *directions.shape, generator=generator, dtype=torch.float64)
    return drawn * (directions.norm(dim=1) / drawn.norm(dim=2))[:, :, None]


def _successors(number: Int[Tensor, " item"], cyclic: bool) -> Int[Tensor, " item"]:
    """Position of the item with the next number, -1 where there is none."""
    at = {n: k for k, n in enumerate(number.tolist())}
    after = {max(at): at[min(at)]} if cyclic else {}
    return torch.tensor([at.get(n + 1, after.get(n, -1)) for n in number.tolist()])


def _cells(
    number: Int[Tensor, " item"], period: int, cyclic: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Item, new residue and position of the right answer of every cell, and the number of cells
    without an answer."""
    at = {n: k for k, n in enumerate(number.tolist())}
    if len(at) < len(number):
        raise ToolkitError(
            f"{len(number)} items have {len(at)} different numbers; expected each number once."
        )
    if period < 2:
        raise ToolkitError(
            f"got {period} features; expected one for each residue of a period of at least 2."
        )
    follows = _successors(number, cyclic).tolist()
    cells, left_out = [], 0
    for n, k in at.items():
        for j in set(range(period)) - {n % period}:
            target = at.get(n - n % period + j, -1)
            if target < 0 or follows[target] < 0:
                left_out += 1
            else:
                cells.append((k, j, follows[target]))
    if len({k for k, _, _ in cells}) < 2:
        raise ToolkitError(
            f"{len(cells)} cells of {len(number)} items have an answer, {left_out} have none;"
            " expected cells of at least two items: give numbers that follow each other within"
            f" blocks of {period}."
        )
    item, residue, intended = torch.tensor(cells).T
    return item, residue, intended, left_out


def _largest(logits: Any, n: int, items: int) -> Int[Tensor, " n"]:
    """Position of the largest logit, -1 where several tie: equal logits choose nothing."""
    values = finite(logits, "logits", "n item")
    if tuple(values.shape) != (n, items):
        raise ToolkitError(
            f"read gave logits of shape {tuple(values.shape)}; expected {(n, items)}: one per item."
        )
    most = values.amax(1, keepdim=True)
    return values.argmax(1).where((values == most).sum(1) == 1, torch.tensor(-1))


# --- shared --------------------------------------------------------------------------------------


def _cubic(number: Int[Tensor, " n"]) -> Float[Tensor, "n column"]:
    """Orthonormal columns that span polynomials of degree three (fewer, of fewer than four
    numbers)."""
    n = number.double()
    scaled = 2 * (n - n.min()) / (n.max() - n.min()).clamp_min(1) - 1
    columns = torch.stack([torch.special.legendre_polynomial_p(scaled, k) for k in range(4)], 1)
    span, size, _ = torch.linalg.svd(columns, full_matrices=False)
    return span[:, size > 1e-9 * size[0]]


def _without(rows: Float[Tensor, "n d"], span: Float[Tensor, "n column"]) -> Float[Tensor, "n d"]:
    return rows - span @ (span.T @ rows)


def _size(rows: Tensor) -> Tensor:
    """Root of the mean squared norm of a row."""
    return rows.square().sum(1).mean().sqrt().clamp_min(1e-300)


def _unit(vectors: Float[Tensor, "residue d"]) -> Float[Tensor, "residue d"]:
    norm = vectors.norm(dim=1, keepdim=True)
    none = (norm[:, 0] <= 1e-9 * norm.max()).nonzero()[:, 0].tolist()
    if none:
        raise ToolkitError(
            f"residues {none} have no direction: their items are like all others; check the"
            " activations."
        )
    return vectors / norm


def _listed(periods: Sequence[int]) -> str:
    return ", ".join(str(t) for t in periods)
