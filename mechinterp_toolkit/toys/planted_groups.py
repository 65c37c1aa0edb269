"""A group network whose every neuron is known: does an analysis read off the irreps that were put
in?

For a real irrep rho, a finite set B of vectors that the group permutes, and one shared vector a,
the neurons (b, b') with

    left(x) = b . rho(x) a,   right(y) = -a . rho(y) b',   unembed(z) = -b . rho(z) b',   b, b' in B

add up to logits that are largest at z = xy (a rho-set circuit). B is the smallest orbit of a vector
fixed by a subgroup, so the left functions are also constant on cosets of that subgroup. Where the
only orbit is the whole group, as for the rotations of a cyclic group of prime order, the neurons
are cos(theta(x) + phi), cos(theta(y) + phi) and cos(theta(z) + 2 phi) at equally spaced phases phi,
with theta the angle of rotation.

What would fool it: irreps that together do not tell all elements apart (the logits then tie, and
the planted network errs); `strength` below 1, which mixes in random weights of the same size.

Source: rho-sets, Wu et al. 2024, arXiv:2410.07476; phases, Zhong et al. 2023, arXiv:2306.17844
("pizza").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import Group, Irrep, irrep, subgroup_classes

if TYPE_CHECKING:
    from mechinterp_toolkit.toys.group_mlp import GroupMLP

LARGEST_ORBIT = 36
"""Largest set B built; it needs |B|^2 neurons. 36 covers every irrep of S_6 (20 would do for S_5).
"""

PHASES = 7
"""Phases per rotation. An odd number aliases only harmonics 2n - 2 and up, here 12: 1/48 of the
second's amplitude."""


class Neurons(NamedTuple):
    """Neurons as three functions on the group each."""

    left: Float[Tensor, "order neuron"]
    """Left share of the pre-activation."""

    right: Float[Tensor, "order neuron"]
    """Right share of the pre-activation."""

    unembed: Float[Tensor, "order neuron"]
    """Contribution to the logits per unit of activation."""


class Relabelling(NamedTuple):
    """Three independent renumberings of a group's elements."""

    left: Int[Tensor, " order"]
    """The twin treats left input a as the model treats `left[a]`."""

    right: Int[Tensor, " order"]
    """The same for right inputs."""

    out: Int[Tensor, " order"]
    """The twin's logit of c is the model's of `out[c]`."""


def planted_group_mlp(
    group: Group, irrep_labels: Sequence[str], *, strength: float = 1.0, seed: int = 0
) -> GroupMLP:
    """Build a ReLU network whose neurons are exact functions of irreps and multiply in the group.

    Args:
        group: the group; irreps are named as in `irrep_labels(group)`.
        irrep_labels: which irreps carry the multiplication. Together they must tell all elements
            apart.
        strength: weight of the planted functions against random ones of the same norm, in [0, 1]; 0
            is random.
        seed: decides the shared vectors a, the order of the neurons, the basis of the embeddings
            and the noise.

    Returns:
        A network without bias, every irrep with neurons of the same total norm. Its logits are
        exact up to float32.

    Raises:
        ToolkitError: no such irrep, none given, the trivial one, a strength outside [0, 1], or an
            irrep that would need more than `LARGEST_ORBIT` vectors and is not a rotation of the
            plane.

    >>> from mechinterp_toolkit.groups import symmetric
    >>> network = planted_group_mlp(symmetric(3), ["(2,1)", "(1,1,1)"])
    >>> network(torch.tensor([[1, 2]])).argmax() == symmetric(3).table[1, 2]
    tensor(True)
    """
    from mechinterp_toolkit.toys.group_mlp import GroupMLP

    check_strength(strength)
    if not irrep_labels:
        raise ToolkitError("a planted network needs at least one irrep.")
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _unit_norm(_irrep_neurons(group, irrep(group, label), generator)) for label in irrep_labels
    ]
    left, right, unembed = (torch.cat(functions, 1) for functions in zip(*parts, strict=True))
    order = torch.randperm(left.shape[1], generator=generator)
    left, right, unembed = (mixed(f[:, order], strength, generator) for f in (left, right, unembed))
    # A random rotation between embedding and hidden layer, so that no single embedding dimension is
    # a neuron.
    rotation = torch.linalg.qr(
        torch.randn(len(order), len(order), generator=generator, dtype=torch.float64)
    ).Q
    return GroupMLP.from_weights(
        (left @ rotation.T).float(),
        (right @ rotation.T).float(),
        torch.cat([rotation, rotation]).float(),
        unembed.T.float(),
        group=group,
    )


def relabelled_group_mlp(model: GroupMLP, seed: int) -> GroupMLP:
    """Return `model` with the rows of left, right and unembedding permuted independently.

    A null for group structure: the twin knows its own (relabelled) table exactly as well as `model`
    knows the group's, with the same weights, but that table has nothing to do with the group: see
    `relabelling`.
    """
    by = relabelling(model.order, seed)
    return type(model).from_weights(
        model.embed_left.detach()[by.left],
        model.embed_right.detach()[by.right],
        model.w_hidden.detach(),
        model.w_out.detach()[:, by.out],
        None if model.b_out is None else model.b_out.detach()[by.out],
        group=model.group,
        activation=model.activation,
    )


def relabelling(order: int, seed: int) -> Relabelling:
    """Return the three permutations that `relabelled_group_mlp` applies under this seed."""
    generator = torch.Generator().manual_seed(seed)
    return Relabelling(*(torch.randperm(order, generator=generator) for _ in range(3)))


def mixed(planted: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return `strength` of `planted` plus (1 - strength) of Gaussian noise with the same norm."""
    noise = torch.randn(planted.shape, generator=generator, dtype=planted.dtype)
    return strength * planted + (1 - strength) * noise * planted.norm() / noise.norm()


def check_strength(strength: float) -> None:
    """Raise `ToolkitError` unless `strength` lies in [0, 1]."""
    if not 0 <= strength <= 1:
        raise ToolkitError(
            f"strength is the planted share of the weights, from 0 to 1, not {strength}."
        )


def _irrep_neurons(group: Group, irrep: Irrep, generator: torch.Generator) -> Neurons:
    if bool((irrep.matrices == irrep.matrices[0]).all()):
        raise ToolkitError(
            f"the trivial irrep {irrep.label!r} of {group.name} cannot tell products apart; name"
            " others."
        )
    orbit = _smallest_orbit(group, irrep)
    if len(orbit) <= LARGEST_ORBIT:
        return _rho_set_neurons(irrep, orbit, generator)
    if irrep.dimension == 2 and group.is_abelian:
        return _rotation_neurons(irrep, generator)
    raise ToolkitError(
        f"irrep {irrep.label!r} of {group.name} permutes no set of fewer than {len(orbit)} vectors,"
        f" which would need {len(orbit) ** 2} neurons; the most is {LARGEST_ORBIT}."
    )


def _smallest_orbit(group: Group, irrep: Irrep) -> Float[Tensor, "vector dim"]:
    """The orbit of a vector fixed by the largest subgroup that fixes one, at worst the trivial."""
    fixing = list(_largest_fixing_subgroup(group, irrep))
    projector = irrep.matrices[fixing].mean(0)
    orbit = irrep.matrices @ torch.linalg.eigh(projector).eigenvectors[:, -1]
    # Points of an orbit are equal up to 1e-12 or, the group being finite and small, much further
    # apart than 1e-6.
    distance = torch.cdist(orbit, orbit, compute_mode="donot_use_mm_for_euclid_dist")
    first = (distance < 1e-6).int().argmax(1)
    return orbit[first == torch.arange(group.order)]


def _largest_fixing_subgroup(group: Group, irrep: Irrep) -> tuple[int, ...]:
    kernel = irrep.character > irrep.dimension - 1e-9
    if group.is_abelian:  # what fixes one vector of an irrep then fixes all of them
        return tuple(kernel.nonzero().flatten().tolist())
    # The vectors fixed by H are a space of dimension mean_h chi(h): at least 1, or exactly 0.
    fixing = (c[0] for c in reversed(subgroup_classes(group)))
    return next(h for h in fixing if float(irrep.character[list(h)].mean()) > 0.5)


def _rho_set_neurons(
    irrep: Irrep, orbit: Float[Tensor, "vector dim"], generator: torch.Generator
) -> Neurons:
    shared = _generic_vector(irrep, generator)
    left = irrep.matrices @ shared @ orbit.T
    right = -torch.einsum("i,gij,bj->gb", shared, irrep.matrices, orbit)
    unembed = -torch.einsum("bi,gij,cj->gbc", orbit, irrep.matrices, orbit)
    size = len(orbit)
    return Neurons(left.repeat_interleave(size, 1), right.repeat(1, size), unembed.flatten(1))


def _rotation_neurons(irrep: Irrep, generator: torch.Generator) -> Neurons:
    angle = torch.atan2(irrep.matrices[:, 1, 0], irrep.matrices[:, 0, 0])[:, None]
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    phases = 2 * math.pi * (torch.arange(PHASES, dtype=torch.float64) + offset) / PHASES
    summand = (angle + phases).cos()
    return Neurons(summand, summand, (angle + 2 * phases).cos())


def _generic_vector(irrep: Irrep, generator: torch.Generator) -> Float[Tensor, " dim"]:
    """Of 64 random unit vectors the one that every element moves furthest: products kept apart."""
    vectors = torch.randn(64, irrep.dimension, generator=generator, dtype=torch.float64)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    moved = (torch.einsum("gij,vj->gvi", irrep.matrices, vectors) - vectors).norm(dim=-1)
    unmoved = irrep.matrices - torch.eye(irrep.dimension, dtype=torch.float64)
    faithful = unmoved.flatten(1).norm(dim=1) > 1e-9
    return vectors[moved[faithful].min(0).values.argmax()]


def _unit_norm(neurons: Neurons) -> Neurons:
    """Scale inputs together, and outputs, to norm sqrt(order): left and right keep proportion."""
    norm = len(neurons.left) ** 0.5
    squares = neurons.left.square().sum() + neurons.right.square().sum()
    scale, out = squares.div(2).sqrt() / norm, neurons.unembed.norm() / norm
    return Neurons(neurons.left / scale, neurons.right / scale, neurons.unembed / out)
