"""Which planes that groups of latents write in are flat, and which of them are irreducible?

Values of all latents at the tokens of a text come in, groups judged by their best plane go out: the
first that is flat beyond the null, since behind it the next one holds its second component too and
looks flat because that one is large; or else the flattest beside its null.

What would fool it: a component along the mean of the points says how strongly a group is active;
planes with it are scored, as published, but not tested.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860 (S, M and their ranking).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.feature_clusters.result import Cluster
from mechinterp_toolkit.geometry.clusters import (
    MOST_PLANES,
    Shares,
    active_rows,
    partial_reconstruction,
    plane_shares,
    shares_of,
)
from mechinterp_toolkit.geometry.irreducible import Irreducibility, irreducibility
from mechinterp_toolkit.nulls import max_statistic_p
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

Ranking = Literal["corrected", "published"]

# A component with a larger cosine to the mean of the points says how strongly a group is active,
# not what it stands for.
_INTENSITY = 0.5

# A token counts as one of a group if the group is active at this share of its occurrences or more.
_MEMBER = 0.5
_MOST_ITEMS = 12
_FEWEST_POINTS = 20  # below, S cannot be computed
MOST_POINTS = 2000  # points per plane that S and M are computed from


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the latents did at each token of a text."""

    codes: Any
    """Values, a `scipy.sparse.csc_matrix` [token latent]."""

    directions: Float[Tensor, "latent d"]
    """Decoder rows; those of latents that never fire are zero."""

    token: Int[Tensor, " token"]
    """Token ids."""

    text: Int[Tensor, " token"]
    """Which text each token is from."""

    def items(self, group: Int[Tensor, " member"]) -> Int[Tensor, " item"]:
        """Return tokens at most of whose occurrences the group is active, most frequent first."""
        rows, _ = active_rows(self.codes, group)
        size = int(self.token.max()) + 1
        active = torch.bincount(self.token[rows], minlength=size)
        often = active / torch.bincount(self.token, minlength=size).clamp_min(1) >= _MEMBER
        order = (active * often).argsort(descending=True, stable=True)
        return order[: min(_MOST_ITEMS, int((often & (active > 0)).sum()))]

    def written(self, group: Int[Tensor, " member"]) -> Float[Tensor, "row d"]:
        """Return what the group writes at its `active_rows`."""
        return partial_reconstruction(self.codes, self.directions, group)[1]


@dataclass(frozen=True, eq=False)
class Judged:
    """A group, and the null of the flatness of its best plane."""

    cluster: Cluster
    null: Float[Tensor, " draw"]

    @property
    def group(self) -> Int[Tensor, " member"]:
        """Its latents."""
        return torch.tensor(self.cluster.latents)

    def basis(self, encoded: Encoded) -> Float[Tensor, "2 d"]:
        """Return the orthonormal basis of its best plane."""
        first = self.cluster.plane - 1
        return _principal(encoded.written(self.group))[first : first + 2]

    def flatness(self, encoded: Encoded, seed: int) -> Estimate:
        """Return the flatness of its best plane, with its interval over texts."""
        rows, values = active_rows(encoded.codes, self.group)
        own = encoded.directions[self.group].double()
        gram, plane = own @ own.T, self.cluster.plane

        def flat(
            values: Float[Tensor, "n member"], weights: Float[Tensor, "draw n"]
        ) -> Float[Tensor, " draw"]:
            weights = weights / weights.sum(1, keepdim=True)
            mean = weights @ values
            second = torch.einsum("dn,ni,nj->dij", weights, values, values)
            covariances = second - mean[:, :, None] * mean[:, None, :]
            return torch.stack([shares_of(c, gram, plane)[plane - 1] for c in covariances])

        return bootstrap(
            values,
            unit=encoded.text[rows],
            unit_name="texts",
            measured="fraction in [0, 1]",
            seed=seed,
            statistic=flat,
            control=self.null,
            control_name="random directions",
        )


def judge_groups(
    encoded: Encoded,
    groups: Sequence[Int[Tensor, " _"]],
    ranking: Ranking,
    tokenizer: Any,
    *,
    draws: int,
    seed: int,
) -> list[Judged]:
    """Return every group with a plane: found ones first, then by p-value, score and first latent.

    Args:
        encoded: what the latents did.
        groups: from `decoder_clusters`.
        ranking: how scores of planes are averaged, see `feature_clusters`.
        tokenizer: reads the items.
        draws: random dictionaries behind the flatness.
        seed: of everything drawn.

    >>> encoded = Encoded(None, torch.ones(3, 2), torch.arange(4), torch.arange(4))
    >>> judge_groups(encoded, (), "corrected", None, draws=9, seed=0)
    []
    """
    fires = [len(active_rows(encoded.codes, group)[0]) >= _FEWEST_POINTS for group in groups]
    groups = tuple(group for group, often in zip(groups, fires, strict=True) if often)
    if not groups:
        return []
    shares = plane_shares(encoded.codes, encoded.directions, groups, draws=draws, seed=seed)
    clouds = [encoded.written(group) for group in groups]
    tested = shares.measured & ~torch.stack([_with_intensity(cloud) for cloud in clouds])
    if not tested.any():
        return []
    p, beyond = _against_null(shares, tested)
    judged = []
    for i in tested.any(1).nonzero().flatten().tolist():
        passed = (p[i] <= 0.05).nonzero().flatten().tolist()
        plane = passed[0] if passed else int(beyond[i].argmax())
        shapes = _shapes(clouds[i], int(shares.measured[i].sum()), plane, bool(passed), seed)
        cluster = Cluster(
            latents=tuple(groups[i].tolist()),
            items=tuple(
                tokenizer.decode([token]).strip() for token in encoded.items(groups[i]).tolist()
            ),
            active=len(clouds[i]),
            plane=plane + 1,
            flatness=float(shares.value[i, plane]),
            p_flat=float(p[i, plane]),
            p_dependent=shapes[plane].p,
            separability=shapes[plane].separability,
            mixture=shapes[plane].mixture,
            score=mean_score(shapes, ranking),
        )
        judged.append(Judged(cluster, shares.null[:, i, plane]))
    # Groups come by their first latent, and `sorted` keeps that order.
    return sorted(judged, key=lambda group: group.cluster.rank)


def _against_null(shares: Shares, tested: Tensor) -> tuple[Tensor, Tensor]:
    """p-value of each share, corrected for all, and its distance from its null in deviations."""
    p, beyond = torch.ones_like(shares.value), torch.full_like(shares.value, -torch.inf)
    value, null = shares.value[tested], shares.null[:, tested]
    p[tested] = max_statistic_p(value, null, studentise=True)
    beyond[tested] = (value - null.mean(0)) / null.std(0)
    return p, beyond


def _with_intensity(points: Float[Tensor, "row d"]) -> Bool[Tensor, " plane"]:
    """Which planes hold a component along the mean of the points."""
    mean = points.mean(0)
    along = (_principal(points)[: MOST_PLANES + 1] @ mean).abs() / mean.norm().clamp_min(1e-300)
    is_intensity = torch.nn.functional.pad(along, (0, MOST_PLANES + 1 - len(along))) > _INTENSITY
    return is_intensity[:-1] | is_intensity[1:]


def _shapes(
    points: Float[Tensor, "row d"], planes: int, plane: int, passed: bool, seed: int
) -> list[Irreducibility]:
    """Indices of planes (1, 2), (2, 3), ...; what passed gets more draws than the bias needs."""
    scores = (points - points.mean(0)) @ _principal(points)[: planes + 1].T
    draws = [199 if passed and k == plane else 19 for k in range(planes)]
    return [
        irreducibility(scores[:MOST_POINTS, k : k + 2], draws=n, seed=seed)
        for k, n in enumerate(draws)
    ]


def _principal(points: Float[Tensor, "row d"]) -> Float[Tensor, "component d"]:
    """Directions of the principal components, the largest entry of each positive."""
    directions = torch.linalg.svd(points - points.mean(0), full_matrices=False)[2]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def mean_score(shapes: Sequence[Irreducibility], ranking: Ranking) -> float:
    """Return the score of a group, from those of its planes.

    >>> flat = Irreducibility(2.0, 2.0, torch.zeros(1), 0.5, True, 100)
    >>> mean_score([flat], "corrected"), mean_score([flat], "published")
    (1.0, 0.5)
    """
    if ranking == "corrected":
        return sum(shape.score for shape in shapes) / len(shapes)
    kept = [shape.score for shape in shapes if shape.mixture >= 0.01]
    return sum(kept) / (len(kept) + 1)  # the published list starts with a zero
