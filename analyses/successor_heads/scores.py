"""Which heads map the items of ordinal classes to their successors, judged all at once?

*Winners* (which item gets the highest logit of its class) give the score of every head: the
fraction of items whose successor wins, mean over classes, beside the same for predecessors. The
null scores all heads under the same shuffled orders of the items; p-values are those of the largest
over all heads.

What would fool it: a class far larger than the others, hence means over classes.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230 (score); nulls are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.heads.ov_circuit import BestCandidates
from mechinterp_toolkit.nulls import permutations
from mechinterp_toolkit.prompts import OrdinalClass
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

THRESHOLD = 0.5
"""A successor head succeeds on more than half of the items: the threshold of Gould et al. 2024."""

OFFSETS = (-1, 0, 1)
"""How far behind an item the one lies that it is mapped to, in the order of `profile`."""

SHUFFLED = "item order shuffled within classes"


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """Result of `score_heads`."""

    score: Estimate
    """Fraction of items mapped to their successor, mean over classes, [layer head], in [0, 1]."""

    difference: Estimate
    """`score` minus the same for predecessors, [layer head], in [-1, 1]."""

    p: Float[Tensor, "layer head"]
    """Larger of the adjusted p-values of `score` and `difference` (maximum over all heads)."""

    writes: Bool[Tensor, "layer head"]
    """Whether the head writes anything: one whose OV circuit is zero has no score, its zeros are
    not a measurement."""

    class_score: Float[Tensor, "class layer head"]
    """`score` of each class on its own, in [0, 1]."""

    profile: Float[Tensor, "offset layer head"]
    """Fraction of items mapped to predecessor, themselves, successor (`OFFSETS`), mean over
    classes, in [0, 1]."""

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """`(layer, head)` of the successor heads, best score first."""
        passing = (self.p <= 0.05) & (self.score.value >= THRESHOLD)
        score = self.score.value.masked_fill(~passing, -1).flatten()
        ranked = score.argsort(descending=True, stable=True)[: int(passing.sum())]
        return tuple(divmod(int(i), passing.shape[1]) for i in ranked)

    @property
    def best(self) -> tuple[int, int]:
        """`(layer, head)` of the highest score among heads that write."""
        score = self.score.value.masked_fill(~self.writes, -1)
        return divmod(int(score.argmax()), score.shape[1])

    @property
    def studied(self) -> tuple[int, int]:
        """The head that is described: the first of `heads`, `best` where none was found."""
        return self.heads[0] if self.heads else self.best


def score_heads(
    read: BestCandidates, classes: Mapping[str, OrdinalClass], draws: int, seed: int
) -> HeadScores:
    """Return scores of all heads, beside those of all heads under the same shuffled orders.

    Args:
        read: which item of its class wins, per class and item.
        classes: the classes.
        draws: shuffled orders.
        seed: of shuffles and intervals.

    >>> from mechinterp_toolkit.heads.ov_circuit import Convention, best_candidates
    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> score_heads(best_candidates(model, days, Convention()), days, draws=99, seed=0).heads
    ((1, 1),)
    """
    back, same, forth = (
        {name: hits(read.best[name], c.pairs(offset)) for name, c in classes.items()}
        for offset in OFFSETS
    )
    null_back, null_forth = [], []
    for i, (name, ordinal) in enumerate(classes.items()):
        order = orders(len(ordinal), draws, seed + i)
        null_back.append(shuffled_hits(read.best[name], ordinal.pairs(-1), order))
        null_forth.append(shuffled_hits(read.best[name], ordinal.pairs(1), order))
    null_score = torch.stack(null_forth).mean(0)
    null_difference = null_score - torch.stack(null_back).mean(0)
    score = macro_average(forth, null_score, seed)
    difference = macro_average({n: forth[n] - back[n] for n in classes}, null_difference, seed)
    of_class = [
        torch.stack([hit.mean(0) for hit in mapped.values()]) for mapped in (back, same, forth)
    ]
    return HeadScores(
        score=score,
        difference=difference,
        p=torch.maximum(score.p(), difference.p()),
        writes=read.writes,
        class_score=of_class[-1],
        profile=torch.stack([per_class.mean(0) for per_class in of_class]),
    )


def orders(n: int, draws: int, seed: int) -> Int[Tensor, "draw item"]:
    """Return orders of a class' items; where fewer than `draws` exist, they come round again.

    >>> orders(2, draws=3, seed=0).tolist()
    [[0, 1], [1, 0], [0, 1]]
    """
    index = permutations(n, draws=draws, seed=seed).index
    return index[torch.arange(draws) % len(index)]


def hits(
    best: Int[Tensor, "layer head item"], pairs: Int[Tensor, "pair 2"]
) -> Float[Tensor, "pair layer head"]:
    """Return 1 where the first item of a pair is mapped to the second.

    >>> best = torch.tensor([[[1, 2, 0]]])  # one head, which goes round a cycle of three
    >>> hits(best, torch.tensor([[0, 1], [1, 0]])).flatten().tolist()
    [1.0, 0.0]
    """
    return (best[:, :, pairs[:, 0]] == pairs[:, 1]).double().permute(2, 0, 1)


def shuffled_hits(
    best: Int[Tensor, "layer head item"],
    pairs: Int[Tensor, "pair 2"],
    order: Int[Tensor, "draw item"],
) -> Float[Tensor, "draw layer head"]:
    """Return scores with the items in other orders: pair (i, j) becomes (order[i], order[j]).

    >>> best, pairs = torch.tensor([[[1, 2, 0]]]), torch.tensor([[0, 1], [1, 2], [2, 0]])
    >>> shuffled_hits(best, pairs, torch.tensor([[0, 1, 2], [2, 1, 0]])).flatten().tolist()
    [1.0, 0.0]
    """
    given, wanted = order[:, pairs[:, 0]], order[:, pairs[:, 1]]
    rows = [(best[:, :, g] == w).double().mean(-1) for g, w in zip(given, wanted, strict=True)]
    return torch.stack(rows)


def macro_average(
    values: Mapping[str, Float[Tensor, "_ layer head"]], null: Tensor, seed: int
) -> Estimate:
    """Return the mean over classes of the mean over items.

    A resample without items of a class leaves that class out.

    >>> right = {"small": torch.ones(2, 1, 1), "large": torch.zeros(8, 1, 1)}
    >>> macro_average(right, torch.zeros(39, 1, 1), seed=0).value.item()
    0.5
    """
    which = torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(values.values())])
    member = torch.nn.functional.one_hot(which, len(values)).double()

    def over_classes(
        rows: Float[Tensor, "n layer head"], weights: Float[Tensor, "draw n"]
    ) -> Float[Tensor, "draw layer head"]:
        size = weights @ member
        share = weights * ((1 / size.clamp_min(1e-9)) @ member.T)
        scaled = share / (size > 0).sum(1, keepdim=True)
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
