"""What is each neuron of a group network: which irrep, of which rank, constant on which cosets?

A neuron's left share l(a), right share r(b) and unembedding u(c) are functions on the group. Per
neuron: the irrep that holds most of them, how much of each it holds (purity), how near the
coefficient matrix A of l(g) = tr(rho(g) A) is to rank one, and the stabilisers: the subgroup H with
l(ha) = l(a) and the one with r(bh) = r(b), found without a list of subgroups.

What would fool it: the wrong side. Left shares are constant on right cosets Ha and right shares on
left cosets bH; the other side is not empty but its subgroups are small, so it is refused here. And
the lack of a null: in a two-dimensional irrep of a dihedral group, or any of a cyclic one, a random
vector passes for a neuron. `random_irrep_functions` gives neurons that are random vectors of the
very same irreps; read every column beside theirs.

Source: irreps, Chughtai et al. 2023, arXiv:2302.03025; cosets, Stander et al. 2023,
arXiv:2312.06581; rank and explained variance, Wu et al. 2024, arXiv:2410.07476.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.network import SITES
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups.irreps import Block, units
from mechinterp_toolkit.groups.recognise import subgroup_name
from mechinterp_toolkit.groups.stabiliser import autocorrelation
from mechinterp_toolkit.groups.subgroups import Members, closure
from mechinterp_toolkit.groups.table import Group, Side

SIDES: tuple[Side, Side] = ("left", "right")

LIVE = 1e-2
"""A neuron whose left or right share is smaller than this part of the largest is dead: its spectrum
is rounding noise."""

PURE = 0.95
"""Share of a neuron's energy in one irrep from which it counts as pure (Wu et al.)."""

RANK_ONE = 0.99
"""Share of the largest squared singular value from which a coefficient matrix counts as of rank
one."""

TOLERANCE = 0.02
"""How far below 1 the autocorrelation of an element of a stabiliser may lie."""


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

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per live neuron, ready for a data frame."""
        return [
            {
                "neuron": int(self.neuron[i]),
                "irrep": self.irreps[int(self.irrep[i])],
                **{
                    f"purity {site}": float(p)
                    for site, p in zip(SITES, self.purity[:, i].tolist(), strict=True)
                },
                **{
                    f"{name} {side}": float(column[s, i])
                    for name, column in (("rank one", self.rank_one), ("explained", self.explained))
                    for s, side in enumerate(SIDES)
                },
                **{f"stabiliser {side}": self.stabilisers[s][i] for s, side in enumerate(SIDES)},
                **{
                    f"order {side}": int(self.stabiliser_order[s, i])
                    for s, side in enumerate(SIDES)
                },
                **{
                    f"twisted order {side}": int(self.twisted_order[s, i])
                    for s, side in enumerate(SIDES)
                },
                "ipr": float(self.ipr[i]),
            }
            for i in range(len(self.neuron))
        ]


def neuron_table(
    group: Group, functions: Float[Tensor, "site order neuron"], *, tolerance: float = TOLERANCE
) -> NeuronTable:
    """Describe every live neuron.

    Args:
        group: the group.
        functions: left shares, right shares and unembeddings.
        tolerance: how far below 1 the autocorrelation of an element of a stabiliser may lie.

    Raises:
        ToolkitError: no neuron is live.
    """
    centred = functions - functions.mean(1, keepdim=True)
    alive = live_neurons(functions)
    energy = irrep_energy(group, centred[:, :, alive])
    irrep = energy[:2].sum(0).argmax(-1)
    share = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    found = [
        coset_stabilisers(group, centred[s][:, alive].T, of=side, tolerance=tolerance)
        for s, side in enumerate(SIDES)
    ]
    return NeuronTable(
        neuron=alive,
        irrep=irrep,
        purity=share.gather(-1, irrep.expand(len(share), -1)[..., None])[..., 0],
        rank_one=torch.stack(
            [rank_one_share(group, centred[s][:, alive].T, irrep) for s in range(2)]
        ),
        stabiliser_order=torch.tensor([[len(one.members) for one in side] for side in found]),
        explained=torch.tensor(
            [[one.explained for one in side] for side in found], dtype=torch.float64
        ),
        twisted_order=torch.tensor([[one.twisted_order for one in side] for side in found]),
        ipr=share.square().sum(-1).mean(0),
        irreps=group.irrep_labels,
        stabilisers=_names(group, found),
    )


def live_neurons(functions: Float[Tensor, "site order neuron"]) -> Int[Tensor, " live"]:
    """Return the neurons whose left and right shares both vary by more than `LIVE` of the largest.

    Raises:
        ToolkitError: none does.
    """
    size = (functions[:2] - functions[:2].mean(1, keepdim=True)).norm(dim=1).amin(0)
    alive = (size > LIVE * size.max()).nonzero().flatten()
    if not len(alive):
        raise ToolkitError("every neuron is dead: no left or right share depends on its element.")
    return alive


def trivial_irrep(group: Group) -> int:
    """Return the position of the trivial irrep."""
    ones = torch.ones(1, group.order, dtype=torch.float64)
    return int(group.isotypic_energy(ones).argmax())


def irrep_energy(
    group: Group, functions: Float[Tensor, "site order neuron"]
) -> Float[Tensor, "site neuron irrep"]:
    """Return the energy of each function in each irrep, 0 in the trivial one."""
    energy = group.isotypic_energy(functions.transpose(1, 2))
    return energy.index_fill(-1, torch.tensor([trivial_irrep(group)]), 0.0)


def coefficient_matrices(
    group: Group, block: Block, functions: Float[Tensor, "neuron order"]
) -> Float[Tensor, "neuron dim dim"]:
    """Return A with f(g) = sum_ij A_ij rho_ij(g), the part of f in one irrep.

    For complex and quaternionic irreps A commutes with the complex structure, so that its singular
    values come in groups of two or four.
    """
    part = group.fourier(functions)[:, block.columns].unflatten(
        -1, (block.dimension, block.multiplicity)
    )
    basis = units(block.dimension // block.multiplicity, block.multiplicity)
    full = torch.cat([unit @ part for unit in basis], -1)
    return full * (block.dimension / group.order) ** 0.5 / len(basis)


def rank_one_share(
    group: Group, functions: Float[Tensor, "neuron order"], irrep: Int[Tensor, " neuron"]
) -> Float[Tensor, " neuron"]:
    """Return the share of the first squared singular value of each function's coefficients in its
    irrep, in [0, 1]."""
    share = torch.zeros(len(functions), dtype=torch.float64)
    for index in irrep.unique().tolist():
        block, which = group.blocks[index], irrep == index
        squares = torch.linalg.svdvals(
            coefficient_matrices(group, block, functions[which])
        ).square()
        first = squares[:, : block.dimension // block.multiplicity].sum(1)
        share[which] = first / squares.sum(1).clamp_min(torch.finfo(squares.dtype).tiny)
    return share


@dataclass(frozen=True)
class CosetStabiliser:
    """On which cosets one neuron's function is constant."""

    members: Members
    """The subgroup."""

    explained: float
    """Share of the variance explained by its cosets, in [0, 1]."""

    twisted_order: int
    """Order of the subgroup that keeps the function up to sign; the order of `members` where there
    is none larger."""


def coset_stabilisers(
    group: Group,
    functions: Float[Tensor, "neuron order"],
    *,
    of: Literal["left", "right"],
    side: Side | None = None,
    tolerance: float = TOLERANCE,
) -> list[CosetStabiliser]:
    """Return the stabiliser of each left or right share, on the side where the network's cosets
    lie.

    Args:
        group: the group.
        functions: shares of the neurons, none of them constant.
        of: whether they are left or right shares.
        side: the side the subgroup multiplies from; only `of` itself is right, and it is the
            default.
        tolerance: how far below 1 an autocorrelation still counts.

    Raises:
        ToolkitError: the wrong side is asked for, or a function is constant.
    """
    if side not in (None, of):
        cosets = {"left": "right cosets Ha", "right": "left cosets bH"}
        raise ToolkitError(
            f"{of} shares of a network that answers ab are constant on {cosets[of]}, so their"
            f" subgroup multiplies from the {of}; side={side!r} finds other, mostly small"
            " subgroups. Leave side out, or call approximate_stabiliser, which takes any function."
        )
    generated = functools.cache(functools.partial(closure, group))
    cyclic = _cyclic_subgroups(group)
    found = []
    for correlation in autocorrelation(group, functions, side=of):
        members = _largest_within(group, correlation, 1 - tolerance, cyclic, generated)
        twisted = _largest_within(group, correlation.abs(), 1 - tolerance, cyclic, generated)
        found.append(
            CosetStabiliser(
                members, float(correlation[list(members)].mean()), max(len(twisted), len(members))
            )
        )
    return found


def _largest_within(
    group: Group,
    correlation: Float[Tensor, " order"],
    least: float,
    cyclic: Float[Tensor, "order order"],
    generated: Callable[[Members], Members],
) -> Members:
    """The elements above `least` where they are a subgroup; else one made of them, most correlated
    first, with its mean above.

    In a cyclic group a small step nearly keeps a slow wave and would generate everything, so an
    element counts only if the mean over the cyclic subgroup it generates is above `least` too, and
    is left out where it takes the mean of the whole below.
    """
    counts = (correlation > least) & (cyclic @ correlation > least)
    near = counts.nonzero().flatten()
    if bool(counts[group.product(near[:, None], near[None])].all()):
        return tuple(near.tolist())
    members = generated(())
    for g in near[correlation[near].argsort(descending=True, stable=True)].tolist():
        # Most misfits show in the coset they would bring along, which is cheaper to look at than
        # what they generate.
        if g not in members and bool(
            counts[group.product(torch.tensor([g]), torch.tensor(members))].all()
        ):
            wider = generated(tuple(sorted((*members, g))))
            members = wider if float(correlation[list(wider)].mean()) > least else members
    return members


@functools.lru_cache(maxsize=8)
def _cyclic_subgroups(group: Group) -> Float[Tensor, "order order"]:
    """Row g: 1 / order of g at each of its powers, so that the row times a function is its mean
    over <g>."""
    element = torch.arange(group.order)
    mask, power = torch.zeros(group.order, group.order, dtype=torch.float64), element
    for _ in range(int(group.element_orders.max())):
        mask[element, power] = 1
        power = group.product(power, element)
    return mask / mask.sum(1, keepdim=True)


def random_irrep_functions(
    group: Group, functions: Float[Tensor, "site order neuron"], *, seed: int
) -> Float[Tensor, "site order neuron"]:
    """Return neurons that are random vectors of the irreps of these: same irrep per neuron, same
    norms, nothing else.

    Constants are kept as they are, and dead neurons stay zero.
    """
    centred = functions - functions.mean(1, keepdim=True)
    main = irrep_energy(group, centred)[:2].sum(0).argmax(-1)
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(functions.shape, generator=generator, dtype=torch.float64).transpose(1, 2)
    mask = torch.zeros(len(group.blocks), group.order, dtype=torch.float64)
    for index, block in enumerate(group.blocks):
        mask[index, block.columns] = 1
    same = group.inverse(draw * mask[main]).transpose(1, 2)
    return (
        functions
        - centred
        + same * centred.norm(dim=1, keepdim=True) / same.norm(dim=1, keepdim=True)
    )


def random_subspace_shares(
    group: Group, stabiliser_order: Int[Tensor, "*shape"], *, draws: int, seed: int
) -> Float[Tensor, "draw *shape"]:
    """Return the share of a function's variance in a random subspace of as many dimensions as the
    coset functions have.

    The share of a fixed vector of n - 1 dimensions in a random subspace of k is Beta(k / 2, (n - 1
    - k) / 2), drawn as such. Beside `NeuronTable.explained` it says what a subspace of that rank
    explains by its size alone.
    """
    rank = group.order // stabiliser_order - 1
    generator = torch.Generator().manual_seed(seed)
    normals = (
        torch.randn(draws, group.order - 1, generator=generator, dtype=torch.float64)
        .square()
        .cumsum(1)
    )
    inside = torch.cat([torch.zeros(draws, 1, dtype=torch.float64), normals], 1)[:, rank.flatten()]
    return (inside / normals[:, -1:]).reshape(draws, *stabiliser_order.shape)


def _names(
    group: Group, found: list[list[CosetStabiliser]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names: dict[Members, str] = {}
    for one in (one for side in found for one in side):
        if one.members not in names:
            names[one.members] = subgroup_name(group, one.members)
    left, right = (tuple(names[one.members] for one in side) for side in found)
    return left, right
