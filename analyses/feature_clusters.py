"""Do latents of a sparse autoencoder make up a feature of two dimensions that no single direction
can carry?

Decoder directions are grouped by cosine. What a group writes at the tokens where it is active is a
cloud of points, and its principal components give planes. *Represented*: in some plane the cloud is
flatter than the clouds of random directions as alike as these and firing as these do, and its two
coordinates depend on each other whichever way it is turned (separability S) beyond the same points
with one coordinate permuted, and it is not mostly one line (mixture M below one half). Both
searches, over groups and planes, are repeated by the null. *Used*: at a token of the group, the
plane's coordinates are set to those of another token; the logits go towards those of that token
more than under maps from tokens to coordinates that are permuted as a whole.

What would fool it: any few directions that point to one side look like a star of spokes, which is
neither separable nor a mixture (hence the flatness); a component along the mean of the points says
how strongly the group is active (planes with it are scored, as published, but not tested); a token
that is several pieces, or text unlike what the autoencoder saw, fills the planes with noise. A
plane is found without labels: that its order means anything is for `circular_features` to show.

Source: Engels, Michaud, Liao, Gurnee, Tegmark 2025, arXiv:2405.14860 (groups, S, M and their
ranking); flatness, its null and the causal check are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit import intervention
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry.clusters import (
    MOST_PLANES,
    ClusterMethod,
    active_rows,
    decoder_clusters,
    partial_reconstruction,
    plane_shares,
    shares_of,
)
from mechinterp_toolkit.geometry.irreducible import Irreducibility, irreducibility
from mechinterp_toolkit.intervention import Edit, applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import hash_tokens
from mechinterp_toolkit.prompts.corpora import Windows, text_windows
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.sae import SparseAutoencoder, load_sae
from mechinterp_toolkit.stats import (
    bootstrap,
    max_statistic_p,
    p_value,
    permutations,
    why_undecided,
)

Ranking = Literal["corrected", "published"]

# More than half of the points on one line is a mixture, whatever the rest does.
MOST_MIXTURE = 0.5

# A component with a larger cosine to the mean of the points says how strongly a group is active,
# not what it stands for.
_INTENSITY = 0.5

# A token counts as one of a group if the group is active at this share of its occurrences or more.
_MEMBER = 0.5
_MOST_ITEMS = 12
_FEWEST_ITEMS = 4  # with four items there are 24 maps; with three, 6, and no p-value of .05
_CONTEXTS = 8
_LENGTH = 16
_FEWEST_POINTS = 20  # below, S cannot be computed
_MOST_POINTS = 2000  # points per plane that S and M are computed from


@dataclass(frozen=True)
class Cluster:
    """One group of latents and its best plane."""

    latents: tuple[int, ...]
    """Its latents, in rising order."""

    items: tuple[str, ...]
    """Tokens at which it is active, most frequent first."""

    active: int
    """Tokens of the text at which it is active."""

    plane: int
    """Its plane, i for principal components i and i + 1, from 1: the first that is flat beyond the
    null, or else the flattest beside it."""

    flatness: float
    """Variance in the plane among what earlier components leave, in [0, 1]."""

    p_flat: float
    """p-value of the flatness, corrected for all groups and planes."""

    p_dependent: float
    """p-value of the dependence of the plane's coordinates on each other, at the angle where they
    depend least."""

    separability: float
    """S of the plane in bits, bias-corrected; 0 where some rotation makes the coordinates
    independent."""

    mixture: float
    """M of the plane: largest share of the points within .1 of a line, in standard deviations, in
    [0, 1]."""

    score: float
    """(1 - M) S averaged over the group's planes, those of rounding alone left out, as `ranking`
    says."""

    @property
    def name(self) -> str:
        """Its latents, as they are named in `locations`."""
        shown = ", ".join(map(str, self.latents[:12]))
        return f"latents {shown}" + (
            f" and {len(self.latents) - 12} more" * (len(self.latents) > 12)
        )

    @property
    def p(self) -> float:
        """The larger of its p-values: both have to be small."""
        return max(self.p_flat, self.p_dependent)

    @property
    def found(self) -> bool:
        """Whether it is a feature of two dimensions."""
        return self.p <= 0.05 and self.mixture < MOST_MIXTURE


@dataclass(frozen=True)
class FeatureClusters(Finding):
    """Result of `feature_clusters`."""

    autoencoder: str
    """Title of the autoencoder: of a folder its name. The path stays in the options of the run."""

    hook_point: str
    """Where it reads."""

    n_tokens: int
    """Tokens that were encoded."""

    n_groups: int
    """Groups of two latents or more."""

    clusters: tuple[Cluster, ...]
    """Groups with a plane: found ones first, then by p-value, score and first latent."""

    flatness: Estimate | None
    """Flatness of the first cluster's plane, in [0, 1]; the control draws random directions."""

    points: Float[Tensor, "point 2"]
    """The first cluster's plane, in units of the activations."""

    point_items: tuple[str, ...]
    """The token of each point."""

    moved: Estimate | None
    """How far towards another token's logits its coordinates take a token's logits, 1 being all the
    way; None if not run."""

    draws: int
    """Random dictionaries behind the p-values."""

    notes: tuple[str, ...]
    """What was left out."""

    @property
    def represented(self) -> Verdict:
        short = why_undecided(self.draws)
        if not self.clusters:
            reason = (
                f"None of the {self.n_groups} groups has latents enough that fire: there is no"
                " plane to judge."
            )
            return Verdict("not_applicable", reason)
        best = self.clusters[0]
        if short:
            return Verdict("undecided", short, p=best.p)
        said = (
            f"{best.name}: flatness {best.flatness:.2f}, S {best.separability:.2f} bits, M"
            f" {best.mixture:.2f}"
        )
        if best.found:
            return Verdict(
                "found", f"{said}: flatter than random directions and irreducible.", p=best.p
            )
        if best.p <= 0.05:
            return Verdict(
                "not_found", f"{said}: most of its points lie on one line, a mixture.", p=best.p
            )
        why = (
            "no flatter than random directions"
            if best.p_flat > 0.05
            else "its coordinates do not depend on each other"
        )
        return Verdict("not_found", f"{said}: {why}.", p=best.p)

    @property
    def used(self) -> Verdict:
        if not self.locations:
            return Verdict("not_applicable", "No plane was found, so there is none to edit.")
        if self.moved is None:
            return Verdict(
                "not_applicable", "The plane could not be edited: see what this run cannot say."
            )
        assert self.moved.control is not None
        p = float(p_value(self.moved.value, self.moved.control))
        said = (
            f"setting the plane takes the logits {self.moved.text()} of the way to the other"
            " token's"
        )
        if p <= 0.05:
            return Verdict(
                "found", f"{said}, more than permuted ({self.moved.control_text()}).", p=p
            )
        return Verdict(
            "not_found", f"{said}, no more than permuted ({self.moved.control_text()}).", p=p
        )

    @property
    def effect(self) -> Estimate | None:
        return self.moved if self.moved is not None else self.flatness

    @property
    def locations(self) -> tuple[str, ...]:
        return tuple(cluster.name for cluster in self.clusters if cluster.found)

    def answer(self) -> str:
        if not self.clusters or self.flatness is None:
            return f"No group of {self.autoencoder} has a plane: {self.represented.reason}"
        best, others = self.clusters[0], len(self.locations) - 1
        earlier = {1: "", 2: " that component 1 leaves"}.get(
            best.plane, f" that components 1 to {best.plane - 1} leave"
        )
        text = (
            f"{best.name} (at {', '.join(repr(item) for item in best.items[:7])}) are active at"
            f" {best.active} tokens. Of the variance of what they write there together{earlier}, a"
            f" share of {self.flatness.text()} lies in the plane of principal components"
            f" {best.plane} and {best.plane + 1} ({self.flatness.control_text()}). In this plane S"
            f" = {best.separability:.2f} bits and M = {best.mixture:.2f}."
        )
        if not self.locations:
            return f"No irreducible plane among {len(self.clusters)} groups. The best: {text}"
        return text + (f" Other groups that pass: {others}." if others else "")

    def causal_check(self) -> str:
        if self.moved is None:
            return "No plane was found, or it has too few tokens, so nothing was edited."
        best = self.clusters[0]
        return (
            f"At {self.hook_point}, at the last of {_LENGTH} tokens, the coordinates of each of"
            f" {self.moved.n} tokens in the plane of {best.name} were set to those of each other"
            f" one. The logits went {self.moved.text()} of the way to those of the other token in"
            f" its place; as a control {self.moved.control_text()}."
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            f"The groups come from {self.autoencoder}; what it does not encode cannot be found.",
            *self.notes,
        )

    def rows(self) -> list[dict[str, Any]]:
        table = [
            {
                "estimate": "cluster",
                "value": c.score,
                "cluster": c.name,
                "found": c.found,
                "active": c.active,
                "plane": c.plane,
                "flatness": c.flatness,
                "p_flat": c.p_flat,
                "p_dependent": c.p_dependent,
                "separability": c.separability,
                "mixture": c.mixture,
                "items": " ".join(c.items),
            }
            for c in self.clusters
        ]
        return [*super().rows(), *table]

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown: dict[str, Any] = {}
        if self.clusters and self.flatness is not None:
            best = self.clusters[0]
            shown[f"The plane of {best.name}"] = plots.plane(
                self.points, self.point_items, title=f"Components {best.plane} and {best.plane + 1}"
            )
            shown["Flatness and its null"] = plots.strip(
                self.flatness, title="Flatness over random directions"
            )
        if self.moved is not None:
            shown["Setting the plane"] = plots.strip(
                self.moved, title="Share of the way to the other token's logits"
            )
        return shown


def needs_tokens(model: HookedModel) -> str | None:
    """Return why text cannot be put to this model, or None."""
    if not model.is_transformer:
        return "it has no residual stream that an autoencoder could read"
    return None if model.tokenizer is not None else "it comes without a tokenizer"


def planted_circles(strength: float, seed: int) -> Planted:
    """Return a model with seven and twelve tokens around circles, its autoencoder, and the latents
    of both groups."""
    from mechinterp_toolkit.toys import planted_feature_clusters

    hf_model, tokenizer, sae, groups = planted_feature_clusters(strength, seed)
    names = tuple(f"latents {', '.join(map(str, group.tolist()))}" for group in groups)
    return Planted(load_model(hf_model, tokenizer=tokenizer), names, {"sae": sae})


def random_embeddings(seed: int) -> Planted:
    """Return a model of random weights with its autoencoder; its groups are what a spectral cut
    makes of them."""
    from mechinterp_toolkit.toys import random_dictionary

    hf_model, tokenizer, sae, _ = random_dictionary(seed)
    return Planted(
        load_model(hf_model, tokenizer=tokenizer),
        (),
        {"sae": sae, "method": "spectral", "clusters": 5},
    )


def structureless_groups(seed: int) -> Planted:
    """Return a model whose groups share a direction and nothing else."""
    return planted_circles(0.0, seed)


@analysis(
    question="Do latents of a sparse autoencoder make up a two-dimensional feature?",
    paper="Engels et al. 2025, arXiv:2405.14860",
    applies=needs_tokens,
    planted=planted_circles,
    twins={"random weights": random_embeddings, "structureless groups": structureless_groups},
)
def feature_clusters(
    model: HookedModel,
    *,
    sae: str | SparseAutoencoder | None = None,
    hook_point: str | None = None,
    text: str | None = None,
    prompts: int = 256,
    method: ClusterMethod = "graph",
    neighbours: int = 2,
    threshold: float = 0.5,
    clusters: int = 1000,
    ranking: Ranking = "corrected",
    draws: int = 999,
    seed: int = 0,
) -> FeatureClusters:
    """Group the latents of an autoencoder, judge the planes they write in, and edit the best.

    Args:
        model: a transformer with a tokenizer.
        sae: a `mechinterp_toolkit.sae.SparseAutoencoder` of your own tensors; a folder saved by
            sae-lens, "RELEASE/SAE_ID" of its catalogue, or an object of it.
        hook_point: where the autoencoder reads; what its own record says by default.
        text: a file, folder or name of a corpus; tokens drawn at random by default, which shows
            features of single tokens only.
        prompts: windows of 16 tokens that are encoded.
        method: how latents are grouped, "graph" (nearest neighbours) or "spectral".
        neighbours: nearest latents an edge of the graph may lead to.
        threshold: least cosine of an edge.
        clusters: parts of the spectral cut.
        ranking: how a group's planes are averaged into its score: all of them ("corrected"), or
            leaving out planes with M below .01 and counting one zero more ("published", which
            favours groups with many planes).
        draws: random dictionaries, permuted coordinates and permuted maps.
        seed: of everything drawn.

    Raises:
        NotApplicable: no autoencoder was given, or it does not fit the model.
    """
    dictionary = _loaded(sae)
    name = _where(model, dictionary, hook_point)
    windows = _windows(model, text, prompts, seed)
    encoded = _encode(model, dictionary, windows, name)
    dictionary = _firing(dictionary, encoded)
    groups = decoder_clusters(
        dictionary.w_dec,
        method=method,
        neighbours=neighbours,
        threshold=threshold,
        clusters=clusters,
        seed=seed,
    )
    tokenizer = model.require_tokenizer()
    judged = _judge(encoded, dictionary, groups, ranking, tokenizer, draws, seed)
    best = judged[0] if judged else None
    points, rows, basis = _plane(encoded, dictionary, best)
    moved, why = (
        (None, ())
        if not (best and best.cluster.found)
        else _moved(model, encoded, best, basis, name, draws, seed)
    )
    return FeatureClusters(
        autoencoder=dictionary.title,
        hook_point=name,
        n_tokens=len(encoded.token),
        n_groups=len(groups),
        clusters=tuple(one.cluster for one in judged),
        flatness=best and _flatness(encoded, dictionary, best, seed),
        points=points[:_MOST_POINTS].float(),
        point_items=tuple(
            tokenizer.decode([t]) for t in encoded.token[rows][:_MOST_POINTS].tolist()
        ),
        moved=moved,
        draws=draws,
        notes=(*_text_note(text), *why),
        prompts_hash=hash_tokens(windows.tokens),
    )


class _Encoded(NamedTuple):
    codes: Any  # scipy.sparse.csc_matrix [token latent]
    token: Int[Tensor, " token"]
    text: Int[Tensor, " token"]


class _Judged(NamedTuple):
    cluster: Cluster
    group: Int[Tensor, " member"]
    null: Float[Tensor, " draw"]  # flatness of its best plane


def _loaded(sae: Any) -> SparseAutoencoder:
    if sae is None:
        raise NotApplicable(
            "feature_clusters reads a sparse autoencoder and none was given; set sae=FOLDER or"
            " RELEASE/SAE_ID, or give a mechinterp_toolkit.sae.SparseAutoencoder."
        )
    return load_sae(sae)


def _firing(dictionary: SparseAutoencoder, encoded: _Encoded) -> SparseAutoencoder:
    """The dictionary with latents that never fire set to zero: they join no group."""
    fires = torch.from_numpy(encoded.codes.getnnz(axis=0) > 0)
    return replace(dictionary, w_dec=dictionary.w_dec * fires[:, None])


def _where(model: HookedModel, dictionary: SparseAutoencoder, given: str | None) -> str:
    name = given or dictionary.hook_point
    if name is None:
        raise NotApplicable(
            f"the record of {dictionary.name} does not say where it reads; set hook_point."
        )
    intervention.hook_point(model, name)
    return name


def _windows(model: HookedModel, text: str | None, prompts: int, seed: int) -> Windows:
    """Windows of `_LENGTH` tokens, behind the beginning-of-sequence token where the model has
    one."""
    tokenizer, bos = model.require_tokenizer(), bool(model.provenance.prepend_bos)
    if text is not None:
        return text_windows(tokenizer, text, prompts, _LENGTH, prepend_bos=bos)
    ordinary = torch.arange(model.cfg.d_vocab)
    ordinary = ordinary[~torch.isin(ordinary, torch.tensor(tokenizer.all_special_ids))]
    generator = torch.Generator().manual_seed(seed)
    drawn = ordinary[torch.randint(len(ordinary), (prompts, _LENGTH), generator=generator)]
    first = torch.full((prompts, int(bos)), tokenizer.bos_token_id if bos else 0)
    return Windows(torch.cat([first, drawn], dim=1), torch.arange(prompts))


def _text_note(text: str | None) -> tuple[str, ...]:
    return (
        ()
        if text is not None
        else ("The tokens were drawn at random: features that need a context are not in them.",)
    )


def _encode(
    model: HookedModel, dictionary: SparseAutoencoder, windows: Windows, name: str
) -> _Encoded:
    """Values of every latent at every token but the first of a window, batch by batch into a sparse
    matrix."""
    from scipy.sparse import coo_matrix

    at, values, first = [], [], 0
    for batch in windows.tokens.split(32):
        codes = dictionary.encode(activations(model, batch, (name,))[name][:, 1:].flatten(0, 1))
        where = codes.nonzero().T
        values.append(codes[where[0], where[1]])
        at.append(where + torch.tensor([[first], [0]]))
        first += len(codes)
    row, column = torch.cat(at, dim=1).numpy()
    codes = coo_matrix(
        (torch.cat(values).double().numpy(), (row, column)), shape=(first, dictionary.d_sae)
    )
    tokens = windows.tokens[:, 1:]
    return _Encoded(
        codes.tocsc(), tokens.flatten(), windows.text.repeat_interleave(tokens.shape[1])
    )


def _judge(
    encoded: _Encoded,
    dictionary: SparseAutoencoder,
    groups: tuple[Int[Tensor, " _"], ...],
    ranking: Ranking,
    tokenizer: Any,
    draws: int,
    seed: int,
) -> list[_Judged]:
    """Every group with a plane: found ones first, then by p-value, score and first latent."""
    groups = tuple(
        group for group in groups if len(active_rows(encoded.codes, group)[0]) >= _FEWEST_POINTS
    )
    shares = plane_shares(encoded.codes, dictionary.w_dec, groups, draws=draws, seed=seed)
    clouds = [partial_reconstruction(encoded.codes, dictionary.w_dec, group)[1] for group in groups]
    tested = (
        shares.measured & ~torch.stack([_with_intensity(cloud) for cloud in clouds])
        if groups
        else shares.measured
    )
    if not tested.any():
        return []
    p, beyond = torch.ones_like(shares.value), torch.full_like(shares.value, -torch.inf)
    value, null = shares.value[tested], shares.null[:, tested]
    p[tested] = max_statistic_p(value, null, studentise=True)
    beyond[tested] = (value - null.mean(0)) / null.std(0)
    judged = []
    for i in tested.any(1).nonzero().flatten().tolist():
        # Behind a plane that passes, the next one holds its second component too and looks flat
        # because that one is large.
        passed = (p[i] <= 0.05).nonzero().flatten().tolist()
        plane = passed[0] if passed else int(beyond[i].argmax())
        n_planes = int(shares.measured[i].sum())
        shapes = _shapes(clouds[i], n_planes, plane, 199 if p[i, plane] <= 0.05 else 19, seed)
        cluster = Cluster(
            latents=tuple(groups[i].tolist()),
            items=tuple(
                tokenizer.decode([token]).strip() for token in _items(encoded, groups[i]).tolist()
            ),
            active=len(clouds[i]),
            plane=plane + 1,
            flatness=float(shares.value[i, plane]),
            p_flat=float(p[i, plane]),
            p_dependent=shapes[plane].p,
            separability=shapes[plane].separability,
            mixture=shapes[plane].mixture,
            score=_score(shapes, ranking),
        )
        judged.append(_Judged(cluster, groups[i], shares.null[:, i, plane]))
    # Groups come by their first latent, and `sorted` keeps that order; the rest of a score is the
    # order of its sums.
    return sorted(
        judged, key=lambda one: (not one.cluster.found, one.cluster.p, -round(one.cluster.score, 9))
    )


def _with_intensity(points: Float[Tensor, "row d"]) -> Bool[Tensor, " plane"]:
    """Which planes hold the component that says how strongly the group is active: the one along the
    mean of its points."""
    mean = points.mean(0)
    along = (_principal(points)[: MOST_PLANES + 1] @ mean).abs() / mean.norm().clamp_min(1e-300)
    is_intensity = torch.nn.functional.pad(along, (0, MOST_PLANES + 1 - len(along))) > _INTENSITY
    return is_intensity[:-1] | is_intensity[1:]


def _shapes(
    points: Float[Tensor, "row d"], n_planes: int, plane: int, draws: int, seed: int
) -> list[Irreducibility]:
    """Indices of the first planes (1, 2), (2, 3), ...; `plane` with more draws than the bias
    needs."""
    scores = (points - points.mean(0)) @ _principal(points)[: n_planes + 1].T
    scores = scores[:_MOST_POINTS]
    return [
        irreducibility(scores[:, k : k + 2], draws=draws if k == plane else 19, seed=seed)
        for k in range(n_planes)
    ]


def _principal(points: Float[Tensor, "row d"]) -> Float[Tensor, "component d"]:
    """Directions of the principal components, the largest entry of each positive."""
    directions = torch.linalg.svd(points - points.mean(0), full_matrices=False)[2]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def _score(shapes: Sequence[Irreducibility], ranking: Ranking) -> float:
    if ranking == "corrected":
        return sum(shape.score for shape in shapes) / len(shapes)
    kept = [shape.score for shape in shapes if shape.mixture >= 0.01]
    return sum(kept) / (len(kept) + 1)  # the published list starts with a zero


def _plane(
    encoded: _Encoded, dictionary: SparseAutoencoder, best: _Judged | None
) -> tuple[Float[Tensor, "row 2"], Int[Tensor, " row"], Float[Tensor, "2 d"]]:
    """Points of the best plane, the tokens they belong to, and the plane's orthonormal basis; empty
    where there is none."""
    if best is None:
        empty = torch.zeros(0, 2, dtype=torch.float64)
        return (
            empty,
            torch.zeros(0, dtype=torch.long),
            torch.zeros(2, dictionary.w_dec.shape[1], dtype=torch.float64),
        )
    rows, points = partial_reconstruction(encoded.codes, dictionary.w_dec, best.group)
    basis = _principal(points)[best.cluster.plane - 1 : best.cluster.plane + 1]
    return (points - points.mean(0)) @ basis.T, rows, basis


def _flatness(
    encoded: _Encoded, dictionary: SparseAutoencoder, best: _Judged, seed: int
) -> Estimate:
    """Flatness of the best plane with its interval over texts."""
    rows, values = active_rows(encoded.codes, best.group)
    own = dictionary.w_dec[best.group].double()
    gram, plane = own @ own.T, best.cluster.plane

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
        control=best.null,
        control_name="random directions",
    )


def _items(encoded: _Encoded, group: Tensor) -> Int[Tensor, " item"]:
    """Tokens at most of whose occurrences the group is active, most frequent first."""
    rows, _ = active_rows(encoded.codes, group)
    size = int(encoded.token.max()) + 1
    active = torch.bincount(encoded.token[rows], minlength=size)
    often = active / torch.bincount(encoded.token, minlength=size).clamp_min(1) >= _MEMBER
    order = (active * often).argsort(descending=True, stable=True)
    return order[: min(_MOST_ITEMS, int((often & (active > 0)).sum()))]


def _moved(
    model: HookedModel,
    encoded: _Encoded,
    best: _Judged,
    basis: Float[Tensor, "2 d"],
    name: str,
    draws: int,
    seed: int,
) -> tuple[Estimate | None, tuple[str, ...]]:
    """Set the plane at one token to the coordinates of another: how far do the logits follow?"""
    items = _items(encoded, best.group)
    if len(items) < _FEWEST_ITEMS:
        reason = (
            f"The first group is active at {len(items)} tokens reliably; setting its plane takes"
            f" {_FEWEST_ITEMS}."
        )
        return None, (reason,)
    contexts = _windows(model, None, _CONTEXTS, seed + 1).tokens
    way = torch.stack([_ways(model, context, items, basis, name) for context in contexts]).mean(0)
    n = len(items)
    other = ~torch.eye(n, dtype=torch.bool)
    own = way.diagonal(dim1=1, dim2=2)  # from item i, coordinates of j, judged by the logits of j
    orders = permutations(n, draws=draws, seed=seed)
    index = torch.arange(n)
    null = torch.stack([way[:, order, index][other].mean() for order in orders.index])
    estimate = bootstrap(
        (own * other).sum(1) / (n - 1),
        unit_name="tokens",
        measured="share of the way",
        seed=seed,
        control=null,
        control_name="coordinates permuted among the tokens",
    )
    return estimate, ()


def _ways(
    model: HookedModel,
    context: Int[Tensor, " pos"],
    items: Int[Tensor, " item"],
    basis: Tensor,
    name: str,
) -> Float[Tensor, "item set judged"]:
    """From item i with the coordinates of item j: the share of the way to the logits of item k; 0
    for k = i."""
    n = len(items)
    tokens = context.repeat(n, 1)
    tokens[:, -1] = items
    plain = _last(model, tokens)
    coordinates = activations(model, tokens, (name,))[name][:, -1].double() @ basis.T
    rows = []
    for i in range(n):
        with applied(model, {name: _set_last(basis, coordinates)}):
            edited = _last(model, tokens[i].repeat(n, 1))
        towards = plain - plain[i]
        length = towards.square().sum(1)
        length[i] = torch.inf
        rows.append((edited - plain[i]) @ towards.T / length)
    return torch.stack(rows)


def _last(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
    """Logits behind the last token, centred."""
    logits = model.logits(tokens)[:, -1].detach().double().cpu()
    return logits - logits.mean(1, keepdim=True)


def _set_last(basis: Float[Tensor, "2 d"], wanted: Float[Tensor, "batch 2"]) -> Edit:
    def set_plane(
        activation: Float[Tensor, "batch pos d"], hook: Any
    ) -> Float[Tensor, "batch pos d"]:
        axes, target = basis.to(activation), wanted.to(activation)
        last = activation[:, -1]
        changed = last + (target - last @ axes.T) @ axes
        return torch.cat([activation[:, :-1], changed[:, None]], dim=1)

    return set_plane
