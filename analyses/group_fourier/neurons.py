"""What is each neuron of a group network: which irrep, of which rank, constant on which cosets?

A neuron's left share l(a), right share r(b) and unembedding u(c) are functions on the group. Per
neuron: the irrep that holds most of them, how much of each it holds (purity), how near the
coefficient matrix A of l(g) = tr(rho(g) A) is to rank one, and the stabilisers: the subgroup H with
l(ha) = l(a) and the one with r(bh) = r(b), found without a list of subgroups.

What would fool it: the wrong side. Left shares are constant on right cosets Ha and right shares on
left cosets bH; the other side is not empty, but its subgroups are small. `coset_stabilisers` takes
no side for this reason. And the lack of a null: in a two-dimensional irrep of a dihedral group, or
any of a cyclic one, a random vector passes for a neuron. `random_irrep_functions` gives neurons
that are random vectors of the very same irreps; read every column beside theirs.

Source: irreps, Chughtai et al. 2023, arXiv:2302.03025; cosets, Stander et al. 2023,
arXiv:2312.06581; rank and explained variance, Wu et al. 2024, arXiv:2410.07476.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.network import SITES
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Block,
    Group,
    Side,
    Stabiliser,
    blocks,
    fourier,
    inverse_fourier,
    irrep_labels,
    isotypic_energy,
    stabilisers,
)
from mechinterp_toolkit.groups.recognise import subgroup_name
from mechinterp_toolkit.groups.stabiliser import TOLERANCE
from mechinterp_toolkit.groups.table import per_group
from mechinterp_toolkit.groups.transform import block_matrices
from mechinterp_toolkit.results import Row

SIDES: tuple[Side, Side] = ("left", "right")
RANDOM_VECTORS = "neurons replaced by random vectors of their irreps"  # `random_irrep_functions`

LIVE = 1e-2
"""A neuron whose left or right share is smaller than this part of the largest is dead: its spectrum
is rounding noise."""

PURE = 0.95
"""Share of a neuron's energy in one irrep from which it counts as pure (Wu et al.)."""

RANK_ONE = 0.99
"""Share of the largest squared singular value from which a coefficient matrix counts as of rank
one."""


@dataclass(frozen=True)
class NeuronTable:
    """One entry per live neuron; constants are left out of every function first."""

    neuron: Int[Tensor, " live"]
    """Number of the neuron in the network."""

    irrep: Int[Tensor, " live"]
    """Position, in the group's irreps, of the one with most of the left and right energy."""

    purity: Float[Tensor, "site live"]
    """Share of that irrep in the energy of left share, right share and unembedding, in [0, 1]."""

    rank_one: Float[Tensor, "side live"]
    """Share of the first squared singular value (over the field of the irrep) of the left and right
    coefficients, in [0, 1]."""

    stabiliser_order: Int[Tensor, "side live"]
    """Elements h with l(ha) = l(a), and with r(bh) = r(b): order of the subgroup they generate."""

    explained: Float[Tensor, "side live"]
    """Share of the variance explained by constancy on the cosets of the stabiliser (1 - EVR), in
    [0, 1]."""

    twisted_order: Int[Tensor, "side live"]
    """The same with l(ha) = l(a) or -l(a): larger than `stabiliser_order` where the neuron has a
    sign twist."""

    ipr: Float[Tensor, " live"]
    """Inverse participation ratio over irreps, sum of squared energy shares, averaged over sites,
    in [0, 1]."""

    irreps: tuple[str, ...]
    """Labels of the group's irreps."""

    stabilisers: tuple[tuple[str, ...], tuple[str, ...]]
    """Name of the left and the right stabiliser of each neuron, e.g. "S4", "F20", "trivial"."""

    @property
    def pure(self) -> Bool[Tensor, " live"]:
        """Whether 95 % of the left and 95 % of the right energy lie in the same irrep."""
        return (self.purity[:2] > PURE).all(0)

    def rows(self) -> list[Row]:
        """Return one row per live neuron, ready for a data frame."""
        columns: dict[str, Sequence[str | float]] = {
            "neuron": self.neuron.tolist(),
            "irrep": [self.irreps[i] for i in self.irrep.tolist()],
            "ipr": self.ipr.tolist(),
        }
        columns |= {f"purity {site}": self.purity[s].tolist() for s, site in enumerate(SITES)}
        for s, side in enumerate(SIDES):
            columns |= {
                f"rank one {side}": self.rank_one[s].tolist(),
                f"explained {side}": self.explained[s].tolist(),
                f"stabiliser {side}": self.stabilisers[s],
                f"order {side}": self.stabiliser_order[s].tolist(),
                f"twisted order {side}": self.twisted_order[s].tolist(),
            }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def neuron_table(group: Group, functions: Float[Tensor, "site order neuron"]) -> NeuronTable:
    """Describe every live neuron.

    Args:
        group: the group.
        functions: left shares, right shares and unembeddings.

    Raises:
        ToolkitError: no neuron is live.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> wave = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None].expand(3, 4, 1)
    >>> neuron_table(cyclic(4), wave).stabilisers
    (('C2',), ('C2',))
    """
    alive = live_neurons(functions)
    centred = (functions - functions.mean(1, keepdim=True))[:, :, alive]
    energy = irrep_energy(group, centred)
    irrep = energy[:2].sum(0).argmax(-1)
    share = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    plain = coset_stabilisers(group, centred)
    up_to_sign = coset_stabilisers(group, centred, up_to_sign=True)
    order = _orders(plain)
    # The participation ratio (Doshi et al.) is 1 where one irrep holds everything.
    return NeuronTable(
        neuron=alive,
        irrep=irrep,
        purity=share.gather(-1, irrep.expand(len(share), -1)[..., None])[..., 0],
        rank_one=rank_one_share(group, centred[:2], irrep),
        stabiliser_order=order,
        explained=torch.tensor(
            [[stabiliser.explained for stabiliser in side] for side in plain], dtype=torch.float64
        ),
        twisted_order=torch.maximum(order, _orders(up_to_sign)),
        ipr=share.square().sum(-1).mean(0),
        irreps=irrep_labels(group),
        stabilisers=_names(group, plain),
    )


def live_neurons(functions: Float[Tensor, "site order neuron"]) -> Int[Tensor, " live"]:
    """Return the neurons whose left and right shares both vary by more than `LIVE` of the largest.

    Raises:
        ToolkitError: none does.

    >>> shares = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]).expand(2, 2, 2)  # the second is dead
    >>> live_neurons(shares).tolist()
    [0]
    """
    size = (functions[:2] - functions[:2].mean(1, keepdim=True)).norm(dim=1).amin(0)
    alive = (size > LIVE * size.max()).nonzero().flatten()
    if not len(alive):
        raise ToolkitError("every neuron is dead: no left or right share depends on its element.")
    return alive


@per_group
def trivial_irrep(group: Group) -> int:
    """Return the position of the trivial irrep.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> trivial_irrep(symmetric(3))
    0
    """
    ones = torch.ones(1, group.order, dtype=torch.float64)
    return int(isotypic_energy(group, ones).argmax())


def irrep_energy(
    group: Group, functions: Float[Tensor, "site order neuron"]
) -> Float[Tensor, "site neuron irrep"]:
    """Return the energy of each function in each irrep, 0 in the trivial one.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> irrep_energy(cyclic(2), torch.tensor([[[3.0], [1.0]]])).round().tolist()
    [[[0.0, 2.0]]]
    """
    energy = isotypic_energy(group, functions.transpose(1, 2))
    return energy.index_fill(-1, torch.tensor([trivial_irrep(group)]), 0.0)


def pure_neurons(
    group: Group, functions: Float[Tensor, "site order neuron"]
) -> Bool[Tensor, " neuron"]:
    """Return which neurons have `PURE` of their left and of their right energy in one irrep.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> left = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).double()
    >>> pure_neurons(cyclic(4), left.expand(2, 4, 2)).tolist()
    [True, False]
    """
    energy = irrep_energy(group, functions[:2])
    share = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    return share.amin(0).amax(-1) > PURE


def coefficient_matrices(
    group: Group, block: Block, functions: Float[Tensor, "neuron order"]
) -> Float[Tensor, "neuron dim dim"]:
    """Return A with f(g) = sum_ij A_ij rho_ij(g), the part of f in one irrep.

    For complex and quaternionic irreps A commutes with the complex structure, so that its singular
    values come in groups of two or four.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> sign = torch.tensor([[3.0, -3.0]])
    >>> coefficient_matrices(cyclic(2), blocks(cyclic(2))[1], sign).round().tolist()
    [[[3.0]]]
    """
    full = block_matrices(block, fourier(group, functions))
    return full * (block.dimension / group.order) ** 0.5 / block.commutant


def rank_one_share(
    group: Group, functions: Float[Tensor, "side order neuron"], irrep: Int[Tensor, " neuron"]
) -> Float[Tensor, "side neuron"]:
    """Return the share of the first squared singular value of each function's coefficients.

    Args:
        group: the group.
        functions: left and right shares.
        irrep: position of the irrep of each neuron.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> point = torch.eye(6).double()[None, :, :1]  # all of its coefficients are identities
    >>> rank_one_share(symmetric(3), point, torch.tensor([1])).round(decimals=6).tolist()
    [[0.5]]
    """
    share = torch.zeros(len(functions), len(irrep), dtype=torch.float64)
    for index in irrep.unique().tolist():
        block, which = blocks(group)[index], irrep == index
        matrices = coefficient_matrices(group, block, functions[:, :, which].mT.flatten(0, 1))
        squares = torch.linalg.svdvals(matrices).square()
        # Singular values come in groups of two or four over the complexes and quaternions.
        first = squares[:, : block.commutant].sum(1)
        rank = first / squares.sum(1).clamp_min(torch.finfo(squares.dtype).tiny)
        share[:, which] = rank.unflatten(0, (len(functions), -1))
    return share


def coset_stabilisers(
    group: Group,
    functions: Float[Tensor, "site order neuron"],
    *,
    tolerance: float = TOLERANCE,
    up_to_sign: bool = False,
) -> tuple[list[Stabiliser], list[Stabiliser]]:
    """Return the stabilisers of the left and of the right shares, each on its own side.

    Left shares of a network that answers ab are constant on right cosets Ha, so their subgroup
    multiplies from the left; that of right shares from the right.

    Args:
        group: the group.
        functions: left and right shares of neurons (an unembedding after them is not looked at),
            none of them constant.
        tolerance: how far below 1 an autocorrelation still counts.
        up_to_sign: whether members may change the sign of a share.

    Raises:
        ToolkitError: a share is constant.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> point = (symmetric(3).permutations[:, 0] == 0).double()  # x -> [x(1) = 1]
    >>> left, right = coset_stabilisers(symmetric(3), point.expand(2, 1, 6).mT)
    >>> left[0].members, right[0].members
    ((0, 1), (0, 1))
    """
    left, right = (
        stabilisers(group, functions[s].T, side=side, tolerance=tolerance, up_to_sign=up_to_sign)
        for s, side in enumerate(SIDES)
    )
    return left, right


def constant_on_cosets(
    group: Group, functions: Float[Tensor, "site order neuron"]
) -> Bool[Tensor, " neuron"]:
    """Return which neurons have a left and a right stabiliser of more than one element.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> shares = torch.tensor([[1.0, 1.0], [5.0, 2.0], [1.0, 3.0], [5.0, 4.0]]).expand(2, 4, 2)
    >>> constant_on_cosets(cyclic(4), shares).tolist()
    [True, False]
    """
    return (_orders(coset_stabilisers(group, functions)) > 1).all(0)


def _orders(found: tuple[list[Stabiliser], list[Stabiliser]]) -> Int[Tensor, "side neuron"]:
    return torch.tensor([[len(stabiliser.members) for stabiliser in side] for side in found])


def random_irrep_functions(
    group: Group, functions: Float[Tensor, "site order neuron"], *, draws: int, seed: int
) -> Iterator[Float[Tensor, "site order neuron"]]:
    """Yield neurons that are random vectors of the irreps of these: same irreps, same norms.

    Constants are kept as they are, and dead neurons stay zero.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> wave = torch.tensor([1.0, 0.0, -1.0, 0.0]).double()[:, None].expand(3, 4, 1)
    >>> (random,) = random_irrep_functions(cyclic(4), wave, draws=1, seed=0)
    >>> irrep_energy(cyclic(4), random)[0].round(decimals=6).tolist()  # k = 0, 1, 2
    [[0.0, 2.0, 0.0]]
    """
    centred = functions - functions.mean(1, keepdim=True)
    main = irrep_energy(group, centred)[:2].sum(0).argmax(-1)
    mask = torch.zeros(len(blocks(group)), group.order, dtype=torch.float64)
    for index, block in enumerate(blocks(group)):
        mask[index, block.columns] = 1
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        normals = torch.randn(functions.shape, generator=generator, dtype=torch.float64)
        same = inverse_fourier(group, normals.transpose(1, 2) * mask[main]).transpose(1, 2)
        scale = centred.norm(dim=1, keepdim=True) / same.norm(dim=1, keepdim=True)
        yield functions - centred + same * scale


def random_subspace_shares(
    group: Group, stabiliser_order: Int[Tensor, "*shape"], *, draws: int, seed: int
) -> Float[Tensor, "draw *shape"]:
    """Return the share of a function's variance in a random subspace as large as coset functions.

    The share of a fixed vector of n - 1 dimensions in a random subspace of k is Beta(k / 2, (n - 1
    - k) / 2), drawn as such. Beside `NeuronTable.explained` it says what a subspace of that rank
    explains by its size alone.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> orders = torch.tensor([4, 1])  # no dimension, and all of them
    >>> random_subspace_shares(cyclic(4), orders, draws=1, seed=0).tolist()
    [[0.0, 1.0]]
    """
    rank = group.order // stabiliser_order - 1
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(draws, group.order - 1, generator=generator, dtype=torch.float64)
    # A chi-square of k degrees is a sum of k squares; for k = 0 it is 0.
    sums = torch.cat([torch.zeros(draws, 1, dtype=torch.float64), draw.square().cumsum(1)], 1)
    return (sums[:, rank.flatten()] / sums[:, -1:]).reshape(draws, *stabiliser_order.shape)


def _names(
    group: Group, found: tuple[list[Stabiliser], list[Stabiliser]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = {
        members: subgroup_name(group, members)
        for members in {stabiliser.members for side in found for stabiliser in side}
    }
    left, right = (tuple(names[stabiliser.members] for stabiliser in side) for side in found)
    return left, right
