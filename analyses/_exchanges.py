"""What findings share that exchange one item of a prompt for another and see what the answer does.

`way[i, k, j]` says how far the answer of item j rises in prompts about item i that were set to item
k. Set to j and judged by j is the exchange; set to another item, with the items permuted as a
whole, is its null.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.intervention import Edit, Site
from mechinterp_toolkit.nulls import permutations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap


def at_positions(position: Int[Tensor, " batch"], change: Callable[[Tensor], Tensor]) -> Edit:
    """Return the edit that puts `change(activations [batch ...])` at one position of each prompt.

    `change` gets and gives float64 on the CPU. All other positions stay bit for bit.

    >>> edit = at_positions(torch.tensor([1]), lambda rows: 2 * rows)
    >>> edit(torch.ones(1, 3, 1), hook=Site("blocks.0.hook_resid_pre")).flatten()
    tensor([1., 2., 1.])
    """

    def edit(
        activation: Float[Tensor, "batch pos *d"], hook: Site
    ) -> Float[Tensor, "batch pos *d"]:
        rows = torch.arange(len(activation), device=activation.device)
        at, changed = position.to(activation.device), activation.clone()
        changed[rows, at] = change(activation[rows, at].double().cpu()).to(activation)
        return changed

    return edit


def mean_by_item(
    rise: Float[Tensor, "set batch judged"], item: Int[Tensor, " batch"]
) -> Float[Tensor, "item set judged"]:
    """Return the mean over the prompts of each item.

    >>> rise = torch.tensor([[[1.0], [3.0], [8.0]]]).double()
    >>> mean_by_item(rise, torch.tensor([0, 0, 1])).tolist()
    [[[2.0]], [[8.0]]]
    """
    of_item = torch.nn.functional.one_hot(item).double()
    return torch.einsum("kbj,bi->ikj", rise, of_item / of_item.sum(0))


def followed(way: Float[Tensor, "*axes item set judged"]) -> Float[Tensor, "*axes item"]:
    """Return how far the answers of the other items rise when they are set, by item.

    >>> followed(torch.eye(3).expand(3, 3, 3))  # whatever is set, its answer rises by 1
    tensor([1., 1., 1.])
    """
    n = way.shape[-1]
    rise = way.diagonal(dim1=-2, dim2=-1)  # item, set and judged
    return (rise.sum(-1) - rise.diagonal(dim1=-2, dim2=-1)) / (n - 1)


def moved_share(
    way: Float[Tensor, "item set judged"],
    *,
    unit_name: str,
    measured: str,
    control_name: str,
    draws: int,
    seed: int,
) -> Estimate:
    """Estimate how far the answer follows over items; control: what is set, permuted among them.

    Args:
        way: in shares of what is to be reached.
        unit_name: what an item is, in the plural.
        measured: of what the numbers are shares.
        control_name: what is permuted.
        draws: permutations; enumerated where there are no more.
        seed: of permutations and resampling.

    >>> way = torch.eye(7).double().expand(7, 7, 7)
    >>> options = {"unit_name": "items", "measured": "share", "control_name": "points permuted"}
    >>> moved_share(way, **options, draws=99, seed=0).text()
    '1 [1, 1]'
    """
    place, other = torch.arange(len(way)), ~torch.eye(len(way), dtype=torch.bool)
    orders = permutations(len(way), draws=draws, seed=seed).index
    return bootstrap(
        followed(way),
        unit_name=unit_name,
        measured=measured,
        seed=seed,
        control=torch.stack([way[:, order, place][other].mean() for order in orders]),
        control_name=control_name,
    )
