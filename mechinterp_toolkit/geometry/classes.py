"""Can the class of a thing be read from its activation, when the reader has never seen the thing?

Each unit (a word, say) is left out in turn, a linear reader is fitted to the others, and the
left-out unit is classified. *Represented*: the balanced accuracy beats the same with the labels of
whole units shuffled. Two readers: ridge regression on the classes (a filter: it may lean on
directions that only cancel noise) and the nearest class mean (a pattern: what the classes differ
by). Both are closed forms over all units left out and all shuffles at once.

What would fool it: rows of one unit on both sides, hence one row per unit; classes that differ in
something else than the concept (frequency, length), which no shuffle of labels can see.

Source: leave-one-out of linear smoothers as in Allen 1974 (PRESS); control tasks as in Hewitt &
Liang 2019, arXiv:1909.03368; filters and patterns as in Haufe et al. 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import finite, whole_numbers
from mechinterp_toolkit.geometry.regression import (
    class_means,
    left_out_errors,
    one_hot,
    ridge_hat,
)
from mechinterp_toolkit.nulls import permutations, why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap, judge_p

Reader = Literal["ridge", "nearest_mean"]

_AT_ONCE = 2**24  # numbers held together: 128 MB of float64


@dataclass(frozen=True)
class ClassReadout:
    """What `read_classes` found."""

    accuracy: Estimate
    """Balanced accuracy on left-out units, in [0, 1]; control: labels shuffled over units."""

    majority: float
    """Share of the largest class, in (0, 1]: what a constant guess would get without balancing."""

    @property
    def p(self) -> float:
        """p-value of the accuracy against shuffled labels."""
        return float(self.accuracy.p())

    @property
    def represented(self) -> Verdict:
        """Whether left-out units are classified better than with shuffled labels."""
        measured = f"left-out units are classified with balanced accuracy {self.accuracy.text()}"
        short = why_undecided(self.accuracy.draws)
        return judge_p(self.p, measured, "with shuffled labels", short=short)


def unit_means(
    acts: Float[Tensor, "n d"], unit: Int[Tensor, "..."], label: Int[Tensor, "..."]
) -> tuple[Float[Tensor, "unit d"], Int[Tensor, " unit"]]:
    """Return the mean activation of each unit, and its most frequent label (of ties the smallest).

    Raises:
        ToolkitError: another number of rows, a negative label, or arguments that are no tensors of
            finite numbers.

    >>> acts, unit = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([7, 7, 2])
    >>> means, label = unit_means(acts, unit, label=torch.tensor([1, 1, 0]))
    >>> means.flatten().tolist(), label.tolist()  # units in rising order
    ([9.0, 2.0], [0, 1])
    """
    rows = finite(acts, "acts")
    which = whole_numbers(unit, "unit", len(rows)).unique(return_inverse=True)[1]
    label = whole_numbers(label, "label", len(rows))
    if int(label.min()) < 0:
        raise ToolkitError(
            f"label holds {int(label.min())}; expected classes from 0. Leave such rows out."
        )
    n = int(which.max()) + 1
    labelled = one_hot(which, n).T @ one_hot(label, int(label.max()) + 1)  # how often, [unit label]
    return class_means(rows, which, n), labelled.argmax(1)


def read_classes(
    acts: Float[Tensor, "unit d"],
    label: Int[Tensor, " unit"],
    *,
    reader: Reader = "ridge",
    unit_name: str = "units",
    draws: int = 999,
    seed: int = 0,
) -> ClassReadout:
    """Classify each unit by a linear reader of the others, and compare with shuffled labels.

    Args:
        acts: one row per unit, see `unit_means`.
        label: class of each unit.
        reader: "ridge" (penalty: the mean eigenvalue of the rows' Gram matrix) or "nearest_mean".
        unit_name: what a unit is, in the plural ("words").
        draws: shuffles of the labels.
        seed: of shuffles and interval.

    Raises:
        ToolkitError: fewer than two classes with two units, an unknown reader, or arguments that
            are no tensors of finite numbers with a row each.

    >>> label = torch.arange(20) % 2
    >>> noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    >>> readout = read_classes(noise + 3 * label[:, None], label, draws=99)
    >>> readout.accuracy.text(), readout.p, readout.represented.outcome
    ('1 [1, 1]', 0.01, 'found')
    """
    rows = finite(acts, "acts", "unit d")
    label = whole_numbers(label, "label", len(rows)).unique(return_inverse=True)[1]
    if reader not in get_args(Reader):
        raise ToolkitError(f"got reader={reader!r}; expected {' or '.join(get_args(Reader))}.")
    count = label.bincount()
    if len(count) < 2 or int(count.min()) < 2:
        raise ToolkitError(
            f"classes have {count.tolist()} units; expected two classes or more with two units"
            " each, so that one can be left out."
        )
    predict = _Ridge(rows).predict if reader == "ridge" else _NearestMean(rows).predict
    observed = (predict(label[None])[0] == label).double()
    shuffles = permutations(len(label), draws=draws, seed=seed).index
    batch = max(1, _AT_ONCE // (len(label) * len(count)))
    control = torch.cat(
        [_balanced(predict(label[part]), label[part], len(count)) for part in shuffles.split(batch)]
    )
    estimate = bootstrap(
        torch.cat([observed[:, None], torch.nn.functional.one_hot(label).double()], 1),
        unit_name=unit_name,
        measured="balanced accuracy in [0, 1]",
        seed=seed,
        statistic=_weighted_balance,
        control=control,
        control_name=f"labels shuffled over {unit_name}",
    )
    return ClassReadout(estimate, float(count.max() / count.sum()))


class _Ridge:
    """Left-out predictions of ridge regression on class indicators, intercept free."""

    def __init__(self, rows: Tensor) -> None:
        self.errors = left_out_errors(ridge_hat(rows, ridge=1.0) + 1 / len(rows))

    def predict(self, labels: Int[Tensor, "draw unit"]) -> Int[Tensor, "draw unit"]:
        """The class whose indicator is predicted furthest above its share of the others."""
        own = torch.nn.functional.one_hot(labels).double()
        left_out = own - torch.einsum("ij,djk->dik", self.errors, own)
        share = (own.sum(1, keepdim=True) - own) / (len(self.errors) - 1)
        return (left_out - share).argmax(-1)


class _NearestMean:
    """Left-out predictions by the nearest mean of the other units of each class."""

    def __init__(self, rows: Tensor) -> None:
        centred = rows - rows.mean(0)
        self.gram = centred @ centred.T

    def predict(self, labels: Int[Tensor, "draw unit"]) -> Int[Tensor, "draw unit"]:
        own = torch.nn.functional.one_hot(labels).double()
        size = self.gram.diagonal()[:, None]
        towards = torch.einsum("ij,djk->dik", self.gram, own)  # sum over the class of <x_i, x_j>
        within = (own * towards).sum(1, keepdim=True)  # sum over pairs of the class
        count = (own.sum(1, keepdim=True) - own).clamp_min(1)
        inner = (towards - own * size) / count
        square = (within - own * (2 * towards - size)) / count.square()
        return (inner - square / 2).argmax(-1)


def _balanced(predicted: Tensor, labels: Tensor, n_classes: int) -> Float[Tensor, " draw"]:
    """Mean over classes of the share of their units that are classified right."""
    own = torch.nn.functional.one_hot(labels, n_classes).double()
    right = (predicted == labels).double()
    return (torch.einsum("du,duk->dk", right, own) / own.sum(1)).mean(1)


def _weighted_balance(
    values: Float[Tensor, "unit columns"], weights: Float[Tensor, "draw unit"]
) -> Tensor:
    """The same of resampled units; a class that a resample leaves out does not count."""
    right, own = values[:, :1], values[:, 1:]
    total = weights @ own
    recall = (weights @ (right * own)) / total.clamp_min(1e-12)
    return recall.sum(1) / (total > 0).sum(1)
