"""How well do characters, cosets and rho-sets each explain one and the same network?

Each explanation is written out as a network, or as logits, that has nothing but what it claims; the
two are compared with the real one. *Characters* (GCR): logits are a weighted sum of chi_rho(a b
c^-1). *Cosets*: each neuron's left share is constant on right cosets of its stabiliser H, its right
share on left cosets of H', and its unembedding on double cosets HcH'. *Rho-sets*: left = b·rho(x)a,
right = -a·rho(y)b', unembedding proportional to b·rho(z)b', with one vector a shared by all neurons
of an irrep.

Three scores for each: the share of the logits' variance it accounts for (FVE, 1 minus relative
squared error, centred logits), the accuracy and loss of the idealised network put in place of the
real one, and the accuracy when what it explains is removed.

What would fool it: the accuracy of ideal characters, which with positive weights answer every
product right, whatever the network does: read their FVE. For a transformer, cosets and rho-sets are
judged as the additive network they are. And an explanation loose enough to contain anything. Each
stands beside its control of equal freedom: characters of a scrambled product; random subspaces of
the same rank in place of coset functions; rho-sets refitted to neurons that are random vectors of
their irreps.

Source: Chughtai et al. 2023, arXiv:2302.03025; Stander et al. 2023, arXiv:2312.06581; Wu et al.
2024, arXiv:2410.07476.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.answers import (
    by_left,
    by_product,
    score,
    scrambled_product,
)
from mechinterp_toolkit.analyses.group_fourier.network import GroupNetwork
from mechinterp_toolkit.analyses.group_fourier.neurons import (
    coefficient_matrices,
    coset_stabilisers,
    irrep_energy,
    live_neurons,
    random_irrep_functions,
)
from mechinterp_toolkit.groups import Group, Members, blocks, irrep, irreps
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap, weighted_mean

EXPLANATIONS = ("characters", "cosets", "rho-sets")
MEASURES = ("FVE", "accuracy of the ideal", "loss of the ideal", "accuracy without it")

TINY = 1e-300  # keeps a vector of zeros zero where it is divided by its norm

LOOSE = 0.05
"""A neuron is given to the cosets of the largest subgroup that explains all but this share of its
variance."""


@dataclass(frozen=True)
class RhoSet:
    """How the neurons of one irrep depart from a rho-set circuit, whose shares are all 1."""

    irrep: str
    """Label of the irrep."""

    neurons: int
    """Live neurons that have most of their energy in it."""

    shared_a: float
    """Share of the neurons' inner vectors in one common direction, in [0, 1] (low: "a-bad")."""

    orbit: int
    """Number of different vectors b, up to sign and within 0.1 of each other."""

    closed: float
    """Share of the images rho(g) b that are again in the set, up to sign, in [0, 1] (low:
    "rho-bad")."""

    pairs: float
    """Share of the pairs (b, b') that some neuron realises, in [0, 1] (low: pairs are missing)."""


@dataclass(frozen=True)
class Explanations:
    """Three explanations of one network, side by side."""

    scores: Estimate
    """`MEASURES` of each of `EXPLANATIONS`, [explanation measure]: FVE (at most 1), accuracy in [0,
    1], nats, accuracy in [0, 1]; control: explanations of equal freedom that know nothing of the
    network."""

    rho_sets: tuple[RhoSet, ...]
    """Per irrep, what keeps its neurons from being a rho-set circuit."""


def explain(
    network: GroupNetwork, group: Group, keys: list[str], *, draws: int = 5, seed: int = 0
) -> Explanations:
    """Score the three explanations on one network.

    Args:
        network: the network.
        group: its group.
        keys: irreps whose characters may be used.
        draws: controls of each explanation.
        seed: of the controls.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network, known_group
    >>> network = group_network("toy/a5")
    >>> scores = explain(network, known_group(network), ["4"], draws=1).scores
    >>> scores.at(explanation="cosets", measure="FVE").text()
    '0.991 [0.99, 0.991]'
    """
    functions, product = network.functions, group.table.flatten()
    logits = network.logits()
    generator = torch.Generator().manual_seed(seed)

    def by_weights(ideal: Tensor) -> Tensor:
        # What an explanation of the weights leaves: the neurons minus their ideal, with the
        # constants they had.
        rest = functions - ideal + functions.mean(1, keepdim=True)
        return judge(network, group, network.through(ideal), network.through(rest))

    def by_logits(element: Tensor) -> Tensor:
        ideal = idealised_logits(group, logits, keys, element)
        return judge(network, group, ideal, logits - ideal)

    rho, sets = idealise_rho_sets(group, functions)
    parts = torch.stack(
        [by_logits(product), by_weights(idealise_cosets(group, functions)), by_weights(rho)], 1
    )
    everyone, controls = torch.ones(1, group.order, dtype=torch.float64), []
    for draw, random in enumerate(random_irrep_functions(group, functions, draws=draws, seed=seed)):
        null = [
            by_logits(scrambled_product(group, generator)),
            by_weights(idealise_cosets(group, functions, random_seed=seed + draw)),
            by_weights(idealise_rho_sets(group, random)[0]),
        ]
        controls.append(measures(torch.stack(null, 1), everyone)[0])
    scores = bootstrap(
        parts,
        unit_name="left elements",
        measured="FVE, fraction of pairs, nats",
        seed=seed,
        statistic=measures,
        axes=("explanation", "measure"),
        labels={"explanation": EXPLANATIONS, "measure": MEASURES},
        control=torch.stack(controls),
        control_name=(
            "characters of a scrambled product, random subspaces of equal rank, random vectors of"
            " the irreps"
        ),
    )
    return Explanations(scores, sets)


def idealised_logits(
    group: Group,
    logits: Float[Tensor, "pairs order"],
    keys: list[str],
    product: Int[Tensor, " pairs"],
) -> Float[Tensor, "pairs order"]:
    """Return the best sum of characters chi_rho(p c^-1), p the given product of each pair.

    Args:
        group: the group.
        logits: the real ones.
        keys: irreps whose characters may be used.
        product: p of each pair.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # a + b mod 2
    >>> idealised_logits(cyclic(2), logits, ["k=1"], cyclic(2).table.flatten())[0].tolist()
    [0.5, -0.5]
    """
    means = by_product(group, logits, product)
    quotients = group.table[:, group.inverses]
    ideal = torch.zeros_like(means)
    for key in keys:
        pattern = irrep(group, key).character[quotients]
        # Characters are orthogonal, so each has its own least-squares weight.
        ideal += (means * pattern).sum() / pattern.square().sum() * pattern
    return ideal.float()[product]


def idealise_cosets(
    group: Group, functions: Float[Tensor, "site order neuron"], *, random_seed: int | None = None
) -> Float[Tensor, "site order neuron"]:
    """Return the neurons averaged over the cosets of their stabilisers.

    Those with trivial stabilisers on both sides are zero.

    Args:
        group: the group.
        functions: left, right and unembedding functions.
        random_seed: where given, averages are replaced by projections onto random subspaces of the
            same rank.

    >>> from mechinterp_toolkit.groups import cyclic
    >>> nearly = torch.tensor([8.0, -8.0, 8.0, -7.0]).double()[:, None].expand(3, 4, 1)
    >>> idealise_cosets(cyclic(4), nearly)[0, :, 0].tolist()
    [8.0, -7.5, 8.0, -7.5]
    """
    mean, alive = functions.mean(1, keepdim=True), live_neurons(functions)
    centred, ideal = functions - mean, torch.zeros_like(functions)
    sides = coset_stabilisers(group, centred[:, :, alive], tolerance=LOOSE)
    generator = None if random_seed is None else torch.Generator().manual_seed(random_seed)
    for neuron, left, right in zip(alive.tolist(), *sides, strict=True):
        if len(left.members) > 1 or len(right.members) > 1:
            f = centred[:, :, neuron]
            kept = _averaged(group, f, left.members, right.members, generator)
            ideal[:, :, neuron] = kept + mean[:, 0, neuron, None]
    return ideal


def _averaged(
    group: Group,
    f: Float[Tensor, "site order"],
    left: Members,
    right: Members,
    generator: torch.Generator | None,
) -> Float[Tensor, "site order"]:
    """Means over the cosets Ha, bH' and HcH', or projections onto as many random dimensions."""
    h, k = torch.tensor(left), torch.tensor(right)
    if generator is None:
        means = f[[0, 2]][:, group.table[h]].mean(1)
        over_right = torch.stack([f[1], means[1]])[:, group.table[:, k]].mean(2)
        return torch.stack([means[0], over_right[0], over_right[1]])
    double = group.table[group.table[h][:, :, None], k].amin((0, 2)).unique()  # one of each HcH'
    cosets = (group.order // len(h), group.order // len(k), len(double))
    return torch.stack([_projected(g, n - 1, generator) for g, n in zip(f, cosets, strict=True)])


def _projected(
    f: Float[Tensor, " order"], rank: int, generator: torch.Generator
) -> Float[Tensor, " order"]:
    """The projection of a centred function onto a random subspace of the centred functions."""
    draw = torch.randn(len(f), max(rank, 1), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(draw - draw.mean(0)).Q[:, :rank]
    return basis @ (basis.T @ f)


def idealise_rho_sets(
    group: Group, functions: Float[Tensor, "site order neuron"]
) -> tuple[Float[Tensor, "site order neuron"], tuple[RhoSet, ...]]:
    """Return the neurons as the nearest rho-sets, and how each irrep's neurons depart from one.

    Per irrep, a is the common direction of all inner vectors; each neuron keeps its own b, b' and
    scale. In complex and quaternionic irreps the direction is one over their field, and
    unembeddings are kept as they are in the irrep.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network, known_group
    >>> network = group_network("toy/s5")
    >>> sets = idealise_rho_sets(known_group(network), network.functions)[1]
    >>> [(rho_set.irrep, rho_set.orbit) for rho_set in sets]
    [('(4,1)', 5), ('(1,1,1,1,1)', 1)]
    """
    mean, alive = functions.mean(1, keepdim=True), live_neurons(functions)
    centred, ideal, sets = functions - mean, torch.zeros_like(functions), []
    main = irrep_energy(group, centred[:, :, alive])[:2].sum(0).argmax(-1)
    for index in main.unique().tolist():
        which = alive[main == index]
        fitted, described = _rho_set(group, index, centred[:, :, which])
        ideal[:, :, which] = fitted + mean[:, :, which]
        sets.append(described)
    return ideal, tuple(sets)


def _rho_set(
    group: Group, index: int, functions: Float[Tensor, "site order neuron"]
) -> tuple[Float[Tensor, "site order neuron"], RhoSet]:
    block, rho = blocks(group)[index], irreps(group)[index].matrices
    left, right, out = (coefficient_matrices(group, block, f.T) for f in functions)
    # l(x) = sum A_ij rho_ij(x) = b·rho(x)a has A = b a^T; r(y) = -a·rho(y)b' has A = -a b'^T.
    inner = torch.cat([left.mT @ left, right @ right.mT])
    inner = inner / inner.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None].clamp_min(TINY)
    values, vectors = torch.linalg.eigh(inner.mean(0))
    shared = float(values[-block.commutant :].sum() / values.sum())
    a = vectors[:, -block.commutant :]
    keep = a @ a.T
    left, right = left @ keep, keep @ right
    b, b_right = _outer(left, keep), _outer(right.mT, keep)
    pattern = torch.einsum("ni,nj->nij", b, b_right)
    scale = (out * pattern).sum((1, 2)) / pattern.square().sum((1, 2)).clamp_min(TINY)
    shape = pattern * scale[:, None, None] if block.commutant == 1 else out
    fitted = torch.stack(
        [torch.einsum("nij,gij->gn", coefficients, rho) for coefficients in (left, right, shape)]
    )
    return fitted, RhoSet(block.label, functions.shape[-1], shared, *_orbit(rho, b, b_right))


def _outer(
    coefficients: Float[Tensor, "neuron dim dim"], keep: Float[Tensor, "dim dim"]
) -> Float[Tensor, "neuron dim"]:
    """The vectors b of coefficient matrices b a^T with one common a, with its sign."""
    a = keep[:, keep.diagonal().argmax()]
    return coefficients @ (a / a.norm())


def _orbit(
    rho: Float[Tensor, "order dim dim"],
    b: Float[Tensor, "neuron dim"],
    b_right: Float[Tensor, "neuron dim"],
) -> tuple[int, float, float]:
    """Number of different vectors, share of their images among them, share of their pairs."""
    both = torch.cat([b, b_right])
    unit = both / both.norm(dim=1, keepdim=True).clamp_min(TINY)
    # Unit vectors are less than 0.1 apart, up to sign, where their product is above 1 - 0.1^2 / 2.
    near = (unit @ unit.T).abs() > 1 - 0.1**2 / 2
    first = near.int().argmax(1)
    chosen, place = first.unique(return_inverse=True)
    centres = unit[chosen]
    images = torch.einsum("gij,bj->gbi", rho, centres).flatten(0, 1)
    closed = ((images @ centres.T).abs().amax(1) > 1 - 0.1**2 / 2).double().mean()
    pairs = torch.stack([place[: len(b)], place[len(b) :]], 1).unique(dim=0)
    return len(centres), float(closed), len(pairs) / len(centres) ** 2


def judge(
    network: GroupNetwork,
    group: Group,
    ideal: Float[Tensor, "pairs order"],
    rest: Float[Tensor, "pairs order"],
) -> Float[Tensor, "left part"]:
    """Return what the `MEASURES` of one explanation are made of, per left element: see `measures`.

    Parts: squared error of the centred logits, their square, accuracy and loss of the explanation's
    own logits, and accuracy of the logits with what it explains removed.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network, known_group
    >>> network = group_network("toy/a5")
    >>> itself, nothing = network.logits(), torch.zeros_like(network.logits())
    >>> parts = judge(network, known_group(network), itself, nothing)
    >>> measures(parts, torch.ones(1, 60).double())[0, [0, 1, 3]].tolist()
    [1.0, 1.0, 0.0]
    """
    logits, product = network.logits(), group.table.flatten()
    judged = score(ideal, product)
    parts = [
        (logits - ideal.to(logits.dtype)).var(1, correction=0),
        logits.var(1, correction=0),
        judged.accuracy,
        judged.loss,
        score(rest, product).accuracy,
    ]
    return by_left(torch.stack([part.double() for part in parts], 1), group.order)


def measures(
    parts: Float[Tensor, "left *kind part"], weights: Float[Tensor, "draw left"]
) -> Float[Tensor, "draw *kind measure"]:
    """Return `MEASURES` over weighted left elements.

    >>> measures(torch.tensor([[1.0, 4.0, 0.5, 2.0, 0.0]]), torch.ones(1, 1)).tolist()
    [[0.75, 0.5, 2.0, 0.0]]
    """
    means = weighted_mean(parts, weights)
    fve = 1 - means[..., :1] / means[..., 1:2]
    return torch.cat([fve, means[..., 2:]], -1)
