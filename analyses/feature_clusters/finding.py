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

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit import intervention
from mechinterp_toolkit.analyses._exchanges import at_positions, moved_share
from mechinterp_toolkit.analyses.feature_clusters.planes import (
    MOST_POINTS,
    Encoded,
    Ranking,
    judge_groups,
)
from mechinterp_toolkit.analyses.feature_clusters.result import FeatureClusters
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.geometry.clusters import ClusterMethod, active_rows, decoder_clusters
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import hash_tokens
from mechinterp_toolkit.prompts.concepts import reads_text
from mechinterp_toolkit.prompts.corpora import Windows, text_windows
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.sae import SparseAutoencoder, load_sae

FEWEST_ITEMS = 4  # with four items there are 24 maps; with three, 6, and no p-value of .05
CONTEXTS = 8
LENGTH = 16


def _planted_circles(strength: float, seed: int) -> Planted:
    """Return a model with seven and twelve tokens around circles, and its autoencoder."""
    from mechinterp_toolkit.toys import planted_feature_clusters

    hf_model, tokenizer, sae, groups = planted_feature_clusters(strength, seed)
    names = tuple(f"latents {', '.join(map(str, group.tolist()))}" for group in groups)
    return Planted(load_model(hf_model, tokenizer=tokenizer), names, {"sae": sae})


def _random_embeddings(seed: int) -> Planted:
    """Return a model of random weights; its autoencoder's groups are what a spectral cut makes."""
    from mechinterp_toolkit.toys import random_dictionary

    hf_model, tokenizer, sae, _ = random_dictionary(seed)
    return Planted(
        load_model(hf_model, tokenizer=tokenizer),
        (),
        {"sae": sae, "method": "spectral", "clusters": 5},
    )


def _structureless_groups(seed: int) -> Planted:
    """Return a model whose groups share a direction and nothing else."""
    return _planted_circles(0.0, seed)


@analysis(
    question="Do latents of a sparse autoencoder make up a two-dimensional feature?",
    paper="Engels et al. 2025, arXiv:2405.14860",
    applies=reads_text,
    planted=_planted_circles,
    twins={"random weights": _random_embeddings, "structureless groups": _structureless_groups},
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

    >>> made = _planted_circles(1.0, 0)
    >>> finding = feature_clusters(made.model, draws=19, prompts=64, **made.options)
    >>> finding.locations[0], finding.clusters[0].items[:2]
    ('latents 2, 3, 4, 5, 6, 7, 8', ('Tuesday', 'Wednesday'))
    """
    if sae is None:
        raise NotApplicable(
            "feature_clusters reads a sparse autoencoder and none was given; set sae=FOLDER or"
            " RELEASE/SAE_ID, or give a mechinterp_toolkit.sae.SparseAutoencoder."
        )
    dictionary, tokenizer = load_sae(sae), model.require_tokenizer()
    name = _where(model, dictionary, hook_point)
    windows = _windows(model, text, prompts, seed)
    encoded = _encode(model, dictionary, windows, name)
    groups = decoder_clusters(
        encoded.directions,
        method=method,
        neighbours=neighbours,
        threshold=threshold,
        clusters=clusters,
        seed=seed,
    )
    judged = judge_groups(encoded, groups, ranking, tokenizer, draws=draws, seed=seed)
    rows, points = torch.zeros(0).long(), torch.zeros(0, 2)
    flatness = moved = None
    notes = (
        []
        if text
        else ["The tokens were drawn at random: features that need a context are not in them."]
    )
    if judged:
        best = judged[0]
        flatness, basis = best.flatness(encoded, seed), best.basis(encoded)
        rows, written = active_rows(encoded.codes, best.group)[0], encoded.written(best.group)
        points = (written - written.mean(0)) @ basis.T
        items = encoded.items(best.group)
        if best.cluster.found and len(items) < FEWEST_ITEMS:
            notes.append(
                f"The first group is active at {len(items)} tokens reliably; setting its plane"
                f" takes {FEWEST_ITEMS}."
            )
        elif best.cluster.found:
            moved = _moved(model, items, basis, name, draws, seed)
    return FeatureClusters(
        autoencoder=dictionary.title,
        hook_point=name,
        n_tokens=len(encoded.token),
        n_groups=len(groups),
        clusters=tuple(group.cluster for group in judged),
        flatness=flatness,
        points=points[:MOST_POINTS].float(),
        point_items=tuple(
            tokenizer.decode([t]) for t in encoded.token[rows][:MOST_POINTS].tolist()
        ),
        moved=moved,
        draws=draws,
        notes=tuple(notes),
        prompts_hash=hash_tokens(windows.tokens),
    )


def _where(model: HookedModel, dictionary: SparseAutoencoder, given: str | None) -> str:
    name = given or dictionary.hook_point
    if name is None:
        raise NotApplicable(
            f"the record of {dictionary.name} does not say where it reads; set hook_point."
        )
    intervention.hook_point(model, name)
    return name


def _windows(model: HookedModel, text: str | None, prompts: int, seed: int) -> Windows:
    """Windows of `LENGTH` tokens, behind the beginning of the sequence where the model has one."""
    tokenizer, bos = model.require_tokenizer(), bool(model.provenance.prepend_bos)
    if text is not None:
        return text_windows(tokenizer, text, prompts, LENGTH, prepend_bos=bos)
    ordinary = torch.arange(model.cfg.d_vocab)
    ordinary = ordinary[~torch.isin(ordinary, torch.tensor(tokenizer.all_special_ids))]
    generator = torch.Generator().manual_seed(seed)
    drawn = ordinary[torch.randint(len(ordinary), (prompts, LENGTH), generator=generator)]
    first = torch.full((prompts, int(bos)), tokenizer.bos_token_id if bos else 0)
    return Windows(torch.cat([first, drawn], dim=1), torch.arange(prompts))


def _encode(
    model: HookedModel, dictionary: SparseAutoencoder, windows: Windows, name: str
) -> Encoded:
    """Values of every latent at every token but the first of a window, batch by batch."""
    from scipy.sparse import coo_matrix

    at, values, first = [], [], 0
    for batch in windows.tokens.split(32):
        codes = dictionary.encode(activations(model, batch, (name,))[name][:, 1:].flatten(0, 1))
        where = codes.nonzero().T
        values.append(codes[where[0], where[1]])
        at.append(where + torch.tensor([[first], [0]]))
        first += len(codes)
    row, column = torch.cat(at, dim=1).numpy()
    every = torch.cat(values).double().numpy()
    codes = coo_matrix((every, (row, column)), shape=(first, dictionary.d_sae)).tocsc()
    fires = torch.from_numpy(codes.getnnz(axis=0) > 0)
    tokens = windows.tokens[:, 1:]
    text = windows.text.repeat_interleave(tokens.shape[1])
    return Encoded(codes, dictionary.w_dec * fires[:, None], tokens.flatten(), text)


def _moved(
    model: HookedModel,
    items: Int[Tensor, " item"],
    basis: Float[Tensor, "2 d"],
    name: str,
    draws: int,
    seed: int,
) -> Estimate:
    """Set the plane at one token to the coordinates of another: how far do the logits follow?"""
    contexts = _windows(model, None, CONTEXTS, seed + 1).tokens
    ways = [_ways(model, context, items, basis, name) for context in contexts]
    return moved_share(
        torch.stack(ways).mean(0),
        unit_name="tokens",
        measured="share of the way",
        control_name="coordinates permuted among the tokens",
        draws=draws,
        seed=seed,
    )


def _ways(
    model: HookedModel,
    context: Int[Tensor, " pos"],
    items: Int[Tensor, " item"],
    basis: Float[Tensor, "2 d"],
    name: str,
) -> Float[Tensor, "item set judged"]:
    """From item i with the coordinates of item k: the share of the way to the logits of item j; 0
    for j = i."""
    n, last = len(items), len(context) - 1
    tokens = context.repeat(n, 1)
    tokens[:, -1] = items
    plain = _last(model, tokens)
    coordinates = activations(model, tokens, (name,))[name][:, -1].double() @ basis.T
    edit = at_positions(
        torch.full((n,), last), lambda acts: acts + (coordinates - acts @ basis.T) @ basis
    )
    shares = []
    for i in range(n):
        with applied(model, {name: edit}):
            edited = _last(model, tokens[i].repeat(n, 1))
        towards = plain - plain[i]
        length = towards.square().sum(1)
        length[i] = torch.inf
        shares.append((edited - plain[i]) @ towards.T / length)
    return torch.stack(shares)


def _last(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
    """Logits behind the last token, centred."""
    logits = model.logits(tokens)[:, -1].detach().double().cpu()
    return logits - logits.mean(1, keepdim=True)
