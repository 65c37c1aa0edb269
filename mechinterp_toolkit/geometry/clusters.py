"""Which latents of a dictionary belong together, and is what they write together flatter than
chance?

Decoder directions with a high cosine are grouped, by their nearest neighbours or spectrally. What a
group writes at a token is its partial reconstruction, the sum of its latents' values times their
directions; PCA of these rows gives planes. The *share* of a plane is the variance in its two
components among what earlier components leave: 1 where everything that is left lies in the plane,
about 2 / (k - 1) for k directions that merely point to one side. The null keeps how the latents
fire and how alike their directions are on average, and draws where they deviate from their common
direction at random from the whole dictionary.

What would fool it: a group of three or fewer latents always lies in a plane or nearly so, and has
no share; components that hold nothing but rounding (behind the last of a circle, there is none)
divide rounding by rounding, so their planes have no share either; directions are grouped by cosine
alone, so a group is not a feature until its share and its shape say so.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860 (clusters, partial
reconstructions, planes); the share and its null are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.arguments import checked, some_draws, whole_numbers

ClusterMethod = Literal["graph", "spectral"]

MOST_PLANES = 4
"""Planes (1, 2), (2, 3), (3, 4) and (4, 5) are looked at, as published."""

_ROWS_AT_ONCE = 2048  # rows of the cosine matrix held together: 200 MB for 24,576 latents
_NULL_NUMBERS = 2**24  # random numbers drawn together: 64 MB


def decoder_clusters(
    directions: Float[Tensor, "latent d"],
    *,
    method: ClusterMethod = "graph",
    neighbours: int = 2,
    threshold: float = 0.5,
    clusters: int = 1000,
    seed: int = 0,
) -> tuple[Int[Tensor, " _"], ...]:
    """Return groups of two latents or more, each in rising order, ordered by their first latent.

    Directions are brought to norm one first (the published code relies on their having it); zero
    rows join no group.

    Args:
        directions: decoder rows.
        method: "graph" joins each latent to its `neighbours` nearest above `threshold` and takes
            connected parts, as published for Mistral-7B; "spectral" cuts the graph of angles into
            `clusters` parts, as for GPT-2, but from a seed.
        neighbours: nearest latents that an edge may lead to.
        threshold: least cosine of an edge.
        clusters: parts of the spectral method.
        seed: of the spectral method's k-means.

    Raises:
        ToolkitError: no tensor of finite numbers, fewer than two directions, an unknown method, or
            more spectral parts than directions allow.

    >>> decoder_clusters(torch.tensor([[1.0, 0.1], [0.0, 1.0], [2.0, 0.0]]))
    (tensor([0, 2]),)
    """
    directions = checked(directions, "directions", "latent d").detach().cpu()
    if method not in get_args(ClusterMethod):
        raise ToolkitError(
            f"got method={method!r}; expected {' or '.join(get_args(ClusterMethod))}."
        )
    norm = directions.norm(dim=1)
    alive = (norm > 0).nonzero().flatten()
    if len(alive) < 2:
        raise ToolkitError(
            f"got {len(alive)} directions that are not zero; expected two or more to group."
        )
    unit = (directions[alive] / norm[alive, None]).float()
    if method == "graph":
        part = _connected(unit, neighbours, threshold)
    else:
        part = _spectral(unit, clusters, seed)
    groups = [alive[part == i] for i in part.unique().tolist()]
    return tuple(sorted((g for g in groups if len(g) > 1), key=lambda g: int(g[0])))


def _connected(
    unit: Float[Tensor, "latent d"], neighbours: int, threshold: float
) -> Int[Tensor, " latent"]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n, edges = len(unit), []
    for start in range(0, n, _ROWS_AT_ONCE):
        cosine = unit[start : start + _ROWS_AT_ONCE] @ unit.T
        rows = torch.arange(len(cosine))
        cosine[rows, rows + start] = -1  # nobody is their own neighbour
        best = cosine.topk(min(neighbours, n - 1), dim=1)
        near = best.values > threshold
        edges.append(torch.stack([near.nonzero()[:, 0] + start, best.indices[near]]))
    source, target = torch.cat(edges, dim=1).numpy()
    graph = coo_matrix((torch.ones(len(source)).numpy(), (source, target)), shape=(n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def _spectral(unit: Float[Tensor, "latent d"], clusters: int, seed: int) -> Int[Tensor, " latent"]:
    """Normalised cut of 1 - angle / pi, as published; to itself a latent has a right angle."""
    from scipy.cluster.vq import kmeans2
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = len(unit)
    if not 1 < clusters < n:
        raise ToolkitError(
            f"got clusters={clusters} for {n} directions; expected between 2 and {n - 1}."
        )
    affinity = 1 - (unit @ unit.T).fill_diagonal_(0).clamp_(-1, 1).arccos_() / torch.pi
    scale = affinity.sum(1).rsqrt()

    def multiply(vector: Any) -> Any:
        scaled = scale * torch.from_numpy(vector).float().flatten()
        return (scale * (affinity @ scaled)).double().numpy()

    operator = LinearOperator((n, n), matvec=multiply, dtype=float)
    start = torch.ones(n, dtype=torch.float64).numpy()  # its own start would be random
    vectors = eigsh(operator, k=clusters, which="LA", v0=start)[1]
    rows = vectors * scale.double().numpy()[:, None]
    parts = kmeans2(rows, clusters, minit="++", seed=seed, missing="warn")[1]
    return torch.from_numpy(parts).long()


@dataclass(frozen=True)
class Shares:
    """How flat what each group writes is, plane by plane, and how flat it is under the null."""

    value: Float[Tensor, "group plane"]
    """Share of the plane, in [0, 1]; 0 where `measured` is not."""

    null: Float[Tensor, "draw group plane"]
    """The same with random deviations from the common direction."""

    measured: Bool[Tensor, "group plane"]
    """Whether the group has latents enough that the share can be less than one, and both components
    more than rounding."""


def plane_shares(
    codes: Any,
    directions: Float[Tensor, "latent d"],
    groups: tuple[Int[Tensor, " _"], ...],
    *,
    draws: int,
    seed: int = 0,
) -> Shares:
    """Measure every plane of every group, with its null.

    Args:
        codes: what each latent did at each token, a `scipy.sparse` matrix [token latent].
        directions: decoder rows.
        groups: from `decoder_clusters`.
        draws: of the null.
        seed: of the null.

    Raises:
        ToolkitError: directions are no tensor of finite numbers, codes or groups speak of other
            latents, or no draws.

    >>> from scipy.sparse import csc_matrix
    >>> angle = 2 * torch.pi * torch.arange(7) / 7
    >>> circle = torch.stack([angle.cos(), angle.sin(), torch.ones(7)], 1)  # to one side
    >>> shares = plane_shares(csc_matrix(torch.eye(7).numpy()), circle, (torch.arange(7),), draws=9)
    >>> shares.measured.tolist(), f"{shares.value[0, 0]:.2f}"
    ([[True, False, False, False]], '1.00')
    """
    directions = checked(directions, "directions", "latent d").detach().cpu()
    _check_latents(codes, groups, len(directions))
    value = torch.zeros(len(groups), MOST_PLANES, dtype=torch.float64)
    null = torch.zeros(some_draws(draws), len(groups), MOST_PLANES, dtype=torch.float64)
    measured = torch.zeros(len(groups), MOST_PLANES, dtype=torch.bool)
    root = _root(directions)
    generator = torch.Generator().manual_seed(seed)
    for i, group in enumerate(groups):
        values = active_rows(codes, group)[1]
        if len(values) < 2:
            continue
        firing = torch.cov(values.T, correction=0)
        components = real_components(values, directions[group])
        planes = min(MOST_PLANES, len(group) - 2, components - 1)
        if planes < 1:
            continue
        own = directions[group].double()
        value[i, :planes] = shares_of(firing, own @ own.T, planes)
        for at, gram in _null_grams(own, root, draws, generator):
            null[at, i, :planes] = shares_of(firing, gram, planes)
        measured[i, :planes] = True
    return Shares(value, null, measured)


def _check_latents(codes: Any, groups: tuple[Tensor, ...], latents: int) -> None:
    width = getattr(codes, "shape", (0, 0))[-1]
    if width != latents or not hasattr(codes, "tocsr"):
        raise ToolkitError(
            f"codes are a {type(codes).__name__} of {width} latents for {latents} directions;"
            " expected a scipy.sparse matrix [token latent] with one column per direction."
        )
    for i, group in enumerate(groups):
        members = whole_numbers(group, f"groups[{i}]")
        if int(members.min()) < 0 or int(members.max()) >= latents:
            raise ToolkitError(
                f"groups[{i}] names latents {int(members.min())} to {int(members.max())}; expected"
                f" 0 to {latents - 1}."
            )


def real_components(values: Float[Tensor, "row member"], own: Float[Tensor, "member d"]) -> int:
    """Return how many principal components of the rows `values @ own` are more than rounding.

    A direction is right to some rounding units of its dtype (10 are allowed: it comes out of a
    handful of operations), so that each row has an error of that share of its size; in float64 what
    the eigenvalues are computed to counts (100 units).

    Args:
        values: what each latent did at the tokens where one of them is active.
        own: their directions, in the dtype they are stored in.

    >>> real_components(torch.eye(3).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    1
    """
    gram = own.double() @ own.double().T
    size = (values.T @ values / len(values) * gram).sum()  # mean squared norm of a row
    share = max((10 * torch.finfo(own.dtype).eps) ** 2, 100 * torch.finfo(torch.float64).eps)
    return int((_variances(torch.cov(values.T, correction=0), gram) > share * size).sum())


def active_rows(
    codes: Any, group: Int[Tensor, " member"]
) -> tuple[Int[Tensor, " row"], Float[Tensor, "row member"]]:
    """Return the tokens at which a latent of the group is active, and its latents' values there.

    >>> from scipy.sparse import csc_matrix
    >>> rows, values = active_rows(csc_matrix([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([1]))
    >>> rows.tolist(), values.tolist()
    ([0], [[2.0]])
    """
    part = codes[:, group.numpy()].tocsr()
    rows = torch.from_numpy(part.getnnz(axis=1)).nonzero().flatten()
    return rows, torch.from_numpy(part[rows.numpy()].toarray()).double()


def partial_reconstruction(
    codes: Any, directions: Float[Tensor, "latent d"], group: Int[Tensor, " member"]
) -> tuple[Int[Tensor, " row"], Float[Tensor, "row d"]]:
    """Return the tokens at which a latent of the group is active, and what the group writes there.

    >>> from scipy.sparse import csc_matrix
    >>> directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> partial_reconstruction(csc_matrix([[4.0, 2.0]]), directions, torch.tensor([1]))[1].tolist()
    [[0.0, 2.0]]
    """
    rows, values = active_rows(codes, group)
    return rows, values @ directions[group].double()


def shares_of(
    firing: Float[Tensor, "member member"], gram: Float[Tensor, "*draw member member"], planes: int
) -> Float[Tensor, "*draw plane"]:
    """Return the share of planes (1, 2), (2, 3), ... in what earlier components leave.

    Args:
        firing: covariance of the values.
        gram: inner products of the directions.
        planes: how many.

    >>> shares_of(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), torch.eye(4), 2)  # 7/10, 5/6
    tensor([0.7000, 0.8333])
    """
    variance = _variances(firing, gram)
    left = variance.flip(-1).cumsum(-1).flip(-1)
    pairs = variance[..., :-1] + variance[..., 1:]
    return (pairs / left[..., :-1].clamp_min(torch.finfo(left.dtype).tiny))[..., :planes]


def _variances(
    firing: Float[Tensor, "member member"], gram: Float[Tensor, "*draw member member"]
) -> Float[Tensor, "*draw component"]:
    """Variances of the rows' principal components, largest first.

    They are the eigenvalues of F^1/2 G F^1/2.
    """
    size, vector = torch.linalg.eigh(firing)
    half = vector * size.clamp(min=0).sqrt() @ vector.T
    return torch.linalg.eigvalsh(half @ gram @ half).clamp(min=0).flip(-1)


def _root(directions: Float[Tensor, "latent d"]) -> Float[Tensor, "d d"]:
    """A root of the covariance of the dictionary's unit directions."""
    alive = directions[directions.norm(dim=1) > 0].double()
    unit = alive / alive.norm(dim=1, keepdim=True)
    size, vector = torch.linalg.eigh(torch.cov(unit.T, correction=0))
    return size.clamp(min=0).sqrt()[:, None] * vector.T


def _null_grams(
    own: Float[Tensor, "member d"],
    root: Float[Tensor, "d d"],
    draws: int,
    generator: torch.Generator,
) -> Iterator[tuple[slice, Float[Tensor, "draw member member"]]]:
    """Yield which draws, and Gram matrices of directions as far from the same mean."""
    mean = own.mean(0)
    distance = (own - mean).norm(dim=1, keepdim=True)
    step = max(1, _NULL_NUMBERS // own.numel())
    for start in range(0, draws, step):
        at = slice(start, min(start + step, draws))
        shape = (at.stop - start, *own.shape)
        random = torch.randn(shape, generator=generator, dtype=torch.float64) @ root
        random = random - random.mean(1, keepdim=True)
        drawn = mean + random * distance / random.norm(dim=2, keepdim=True).clamp_min(1e-300)
        yield at, drawn @ drawn.mT
