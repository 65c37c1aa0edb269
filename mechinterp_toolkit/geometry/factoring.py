"""Does a token's vector split into which item it is and which class it belongs to?

Activations of items in several classes ("third", "March", "3") are fitted as mean + item + class.
The fit predicts each cell of the table from the others; how often the prediction is nearest to the
right cell is compared with tables whose items are permuted within each class.

What would fool it: R2 rises with the number of items even in noise, so the verdict rests on
held-out cells.

Source: Gould et al. 2023, arXiv:2312.09230 (index and domain); the closed form, the held-out cells
and the null are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, some_draws, whole_numbers
from mechinterp_toolkit.geometry.regression import left_out_errors, one_hot, span, without
from mechinterp_toolkit.nulls import permuted_within, why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap, judge_p

FACTORS = ("index", "domain", "both")


@dataclass(frozen=True)
class Factoring:
    """Result of `factor`: activation = `mean` + `by_index` + `by_domain`."""

    index: tuple[int, ...]
    """Labels of the rows of `by_index`."""

    domain: tuple[int, ...]
    """Labels of the rows of `by_domain`."""

    mean: Float[Tensor, " d"]
    """The constant."""

    by_index: Float[Tensor, "index d"]
    """What each index adds; the rows sum to zero."""

    by_domain: Float[Tensor, "domain d"]
    """What each domain adds; the rows sum to zero."""

    r2: Float[Tensor, " factor"]
    """Share of the variance that `FACTORS` explain, in [0, 1]; of one factor, what it adds to the
    other alone."""

    held_out: Estimate
    """Share of cells whose prediction from the other cells is nearer to them than to any other
    candidate."""

    cells: Int[Tensor, " candidate"]
    """Positions of the cells that the others can predict: the candidates, each held out once."""

    right: Bool[Tensor, " candidate"]
    """Whether each was recognised."""

    left_out: int
    """Cells that cannot be predicted: the only one of their index or domain, or the only link
    between parts of the table."""

    @property
    def represented(self) -> Verdict:
        """Whether the index adds the same vector in every domain."""
        recognised = (
            f"{int(self.right.sum())} of {len(self.right)} held-out cells are predicted nearest to"
            " themselves"
        )
        short = why_undecided(self.held_out.draws)
        control = f"by chance, a share of {self.held_out.control_text()}"
        return judge_p(float(self.held_out.p()), recognised, control, short=short)

    def predict(self, index: int, domain: int) -> Float[Tensor, " d"]:
        """Return the activation the fit expects for a cell, whether or not the table had it.

        Raises:
            ToolkitError: an index or a domain that the table did not have.
        """
        if index not in self.index or domain not in self.domain:
            raise ToolkitError(
                f"got index {index} and domain {domain}; expected one of {self.index} and"
                f" {self.domain}."
            )
        return (
            self.mean
            + self.by_index[self.index.index(index)]
            + self.by_domain[self.domain.index(domain)]
        )


def factor(
    acts: Float[Tensor, "cell d"],
    index: Int[Tensor, " cell"],
    domain: Int[Tensor, " cell"],
    seed: int = 0,
    *,
    draws: int = 199,
) -> Factoring:
    """Split activations into index and domain, and predict each cell of the table from the others.

    Args:
        acts: one row per cell of the table; cells may be missing.
        index: place of the item in its class (3 for "third", "March" and "3").
        domain: the class.
        seed: of permutations and bootstrap.
        draws: permutations of the index within each domain.

    Raises:
        ToolkitError: a cell comes twice, all cells are alike, no two cells can be predicted from
            the others, or arguments that are no tensors of finite numbers with a row each.

    >>> index, domain = torch.cartesian_prod(torch.arange(6), torch.arange(3)).T
    >>> item, kind = torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).split([6, 3])
    >>> fit = factor(item[index] + kind[domain], index, domain)
    >>> fit.represented.outcome, fit.held_out.text(), fit.predict(2, 1).shape
    ('found', '1 [1, 1]', torch.Size([8]))
    """
    rows = finite(acts, "acts", "cell d")
    i_names, i = whole_numbers(index, "index", len(rows)).unique(return_inverse=True)
    d_names, j = whole_numbers(domain, "domain", len(rows)).unique(return_inverse=True)
    _check_table(i, j, i_names, d_names)
    if not (rows - rows[0]).any():
        raise ToolkitError(f"all {len(rows)} activations are the same; there is nothing to split.")
    parts = (torch.ones(len(rows), 1).double(), one_hot(i, len(i_names)), one_hot(j, len(d_names)))
    design = torch.cat(parts, 1)
    axes = span(design)
    # A cell with leverage 1 is fitted exactly because nothing else says what it is; it cannot be
    # held out.
    cells = (axes.square().sum(1) < 1 - 1e-8).nonzero()[:, 0]
    if len(cells) < 2:
        raise ToolkitError(
            f"{len(cells)} of {len(rows)} cells can be predicted from the others ({len(i_names)}"
            f" indices, {len(d_names)} domains); expected at least two: give indices that occur in"
            " two domains or more, in domains that share two indices or more."
        )
    errors = left_out_errors(axes @ axes.T)[cells]

    def recognised(order: Int[Tensor, " cell"]) -> Bool[Tensor, " candidate"]:
        return _recognised(rows[order], errors, cells)

    right = recognised(torch.arange(len(rows)))
    constant, by_index, by_domain = (torch.linalg.pinv(design) @ rows).split(
        [part.shape[1] for part in parts]
    )
    return Factoring(
        index=tuple(i_names.tolist()),
        domain=tuple(d_names.tolist()),
        mean=constant[0] + by_index.mean(0) + by_domain.mean(0),
        by_index=by_index - by_index.mean(0),
        by_domain=by_domain - by_domain.mean(0),
        r2=_explained(rows, *parts),
        held_out=_held_out(right, recognised, j, draws, seed),
        cells=cells,
        right=right,
        left_out=len(rows) - len(cells),
    )


def _check_table(i: Tensor, j: Tensor, i_names: Tensor, d_names: Tensor) -> None:
    cell, count = (i * len(d_names) + j).unique(return_counts=True)
    twice = cell[count > 1]
    if len(twice):
        first = int(twice[0])
        raise ToolkitError(
            f"{len(twice)} cells come more than once, the first with index"
            f" {int(i_names[first // len(d_names)])} and domain"
            f" {int(d_names[first % len(d_names)])}; average the rows of a cell before."
        )


def _recognised(
    rows: Float[Tensor, "cell d"],
    errors: Float[Tensor, "candidate cell"],
    cells: Int[Tensor, " candidate"],
) -> Bool[Tensor, " candidate"]:
    """Whether each candidate is nearer to its prediction from all others than any other one is."""
    predicted = rows[cells] - errors @ rows
    distance = torch.cdist(predicted, rows[cells], compute_mode="donot_use_mm_for_euclid_dist")
    own = distance.diagonal().clone()
    return own < distance.fill_diagonal_(torch.inf).amin(1)


def _held_out(
    right: Tensor, recognised: Callable[[Tensor], Tensor], domain: Tensor, draws: int, seed: int
) -> Estimate:
    """Share of candidates recognised, beside that of indices permuted within domains."""
    generator = torch.Generator().manual_seed(seed)
    orders = (permuted_within(domain, generator) for _ in range(some_draws(draws)))
    return bootstrap(
        right.double(),
        unit_name="cells",
        measured=(
            f"share of held-out cells nearest to their prediction, in [0, 1], of {len(right)}"
            " candidates"
        ),
        seed=seed,
        control=torch.stack([recognised(order).double().mean() for order in orders]),
        control_name="index permuted within each domain",
    )


def _explained(
    rows: Tensor, constant: Tensor, by_index: Tensor, by_domain: Tensor
) -> Float[Tensor, " factor"]:
    """R2 of `FACTORS`; of one factor, what it adds to constant and other factor."""

    def left(*columns: Tensor) -> Tensor:
        return without(rows, span(torch.cat(columns, 1))).square().sum()

    whole, both = left(constant), left(constant, by_index, by_domain)
    alone = left(constant, by_domain), left(constant, by_index)
    return (torch.stack([*alone, whole]) - both) / whole
