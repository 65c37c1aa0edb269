"""Which heads map the items of ordinal classes to their successors, judged by the winners of all
heads at once?

*Winners* (which item gets the highest logit of its class) give the score of every head: the
fraction of items whose successor wins, mean over classes, beside the same for predecessors. The
null scores all heads under the same shuffled orders of the items; p-values are those of the largest
over all heads.

What would fool it: a class far larger than the others, hence means over classes.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230 (score); nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.prompts import OrdinalClass
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap, max_statistic_p, permutations

SHUFFLED = "item order shuffled within classes"


class HeadScores(NamedTuple):
    """Result of `score_heads`."""

    score: Estimate
    """Fraction of items mapped to their successor, mean over classes, [layer head], in [0, 1]."""

    difference: Estimate
    """`score` minus the same for predecessors, [layer head], in [-1, 1]."""

    p: Float[Tensor, "layer head"]
    """Larger of the adjusted p-values of `score` and `difference` (maximum over all heads)."""

    class_score: Float[Tensor, "class layer head"]
    """`score` of each class on its own, in [0, 1]."""

    profile: Float[Tensor, "offset layer head"]
    """Fraction of items mapped to predecessor, themselves, successor, mean over classes, in [0, 1].
    """


def score_heads(
    best: Mapping[str, Int[Tensor, "layer head _"]],
    classes: Mapping[str, OrdinalClass],
    draws: int,
    seed: int,
) -> HeadScores:
    """Return scores of all heads, beside those of all heads under the same shuffled orders.

    Args:
        best: which item of its class wins, per class and item, as of `ov_circuit.best_candidates`.
        classes: the classes.
        draws: shuffled orders.
        seed: of shuffles and intervals.
    """
    plus, minus, same = (
        {n: hits(best[n], c.pairs(o)) for n, c in classes.items()} for o in (1, -1, 0)
    )
    null_plus, null_minus = [], []
    for i, (name, ordinal) in enumerate(classes.items()):
        order = orders(len(ordinal), draws, seed + i)
        null_plus.append(shuffled_hits(best[name], ordinal.pairs(1), order))
        null_minus.append(shuffled_hits(best[name], ordinal.pairs(-1), order))
    null_score = torch.stack(null_plus).mean(0)
    null_difference = null_score - torch.stack(null_minus).mean(0)
    score = macro_average(plus, null_score, seed)
    difference = macro_average({n: plus[n] - minus[n] for n in classes}, null_difference, seed)
    p = torch.maximum(
        max_statistic_p(score.value, null_score), max_statistic_p(difference.value, null_difference)
    )
    profile = torch.stack(
        [torch.stack([h.mean(0) for h in part.values()]).mean(0) for part in (minus, same, plus)]
    )
    return HeadScores(
        score, difference, p, torch.stack([h.mean(0) for h in plus.values()]), profile
    )


def orders(n: int, draws: int, seed: int) -> Int[Tensor, "draw item"]:
    """Return orders of a class' items; where all of them are fewer than `draws`, they come round
    again."""
    index = permutations(n, draws=draws, seed=seed).index
    return index[torch.arange(draws) % len(index)]


def hits(
    best: Int[Tensor, "layer head item"], pairs: Int[Tensor, "pair 2"]
) -> Float[Tensor, "pair layer head"]:
    """Return 1 where the first item of a pair is mapped to the second."""
    return (best[:, :, pairs[:, 0]] == pairs[:, 1]).double().permute(2, 0, 1)


def shuffled_hits(
    best: Int[Tensor, "layer head item"],
    pairs: Int[Tensor, "pair 2"],
    order: Int[Tensor, "draw item"],
) -> Float[Tensor, "draw layer head"]:
    """Return scores with the items put in other orders: the pair (i, j) becomes (order[i],
    order[j])."""
    given, wanted = order[:, pairs[:, 0]], order[:, pairs[:, 1]]
    rows = [(best[:, :, g] == w).double().mean(-1) for g, w in zip(given, wanted, strict=True)]
    return torch.stack(rows)


def macro_average(
    values: Mapping[str, Float[Tensor, "_ layer head"]], null: Tensor, seed: int
) -> Estimate:
    """Return the mean over classes of the mean over items; a resample without items of a class
    leaves that class out."""
    which = torch.cat([torch.full((len(h),), i) for i, h in enumerate(values.values())])
    member = torch.nn.functional.one_hot(which, len(values)).double()

    def over_classes(
        rows: Float[Tensor, "n layer head"], weights: Float[Tensor, "draw n"]
    ) -> Tensor:
        size = weights @ member
        scaled = (
            weights * (member @ (1 / size.clamp_min(1e-9)).T).T / (size > 0).sum(1, keepdim=True)
        )
        return (scaled @ rows.flatten(1)).reshape(-1, *rows.shape[1:])

    return bootstrap(
        torch.cat(list(values.values())),
        unit_name="items",
        measured="fraction of items",
        seed=seed,
        statistic=over_classes,
        axes=("layer", "head"),
        control=null,
        control_name=SHUFFLED,
    )
