"""Which irreps of the group does a network that multiplies in it use?

Each neuron is three functions on the group: its left share l(a), its right share r(b) and its unembedding u(c). Their
energy is split over the isotypic blocks of the group's Fourier transform, which depends on no basis and no convention.
*Represented*: some non-trivial irrep holds more of the energy, averaged over the three, than in any irrep when the
elements are shuffled. *Used*: removing from the hidden layer what these irreps say about the product ab takes the answer
away, and removing what they say about a scrambled product of the same rank does not.

What would fool it: energy alone. Neurons that are random vectors of the right irreps have the same spectrum and multiply
nothing, so the accuracy of such networks stands beside the accuracy; a network that memorised its table may carry a weak
sign irrep; and a group given in another order of its elements than the network's is another group to it: give the
network's own Cayley table.

Source: Chughtai, Chan, Nanda 2023, A Toy Model of Universality, arXiv:2302.03025; restricted and excluded loss: Nanda et
al. 2023, arXiv:2301.05217; energies by projectors, so that they can be compared between papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.groups import Group, group_by_name
from mechinterp_toolkit.hooks.fourier import ProjectRows
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, Finding, Verdict
from mechinterp_toolkit.stats import bootstrap, max_statistic_p, p_value, too_few_draws

SITES = ("left", "right", "unembedding")
EDITS = ("none", "keep", "remove", "remove scrambled")

# A neuron whose left share is this much smaller than the largest is dead: its spectrum is that of rounding noise.
LIVE = 1e-2
# "Pure", as counted by Wu et al. 2024, arXiv:2410.07476: 95 % of a neuron's energy in one irrep.
PURE = 0.95


@dataclass(frozen=True)
class GroupFourier(Finding):
    """Result of `group_fourier`."""

    group: str
    """Name of the group."""

    energy: Estimate
    """Share of the energy of each site in each isotypic block, [site irrep], in [0, 1]; sites sum to one."""

    p: Float[Tensor, " irrep"]
    """Adjusted p-value of each irrep's share averaged over sites (maximum over irreps); 1 for the trivial one."""

    concentration: Estimate
    """Share of the energy, averaged over sites, in the key irreps (in the strongest, where none is key), in [0, 1]."""

    purity: Estimate
    """Fraction of live neurons with 95 % of their left and of their right energy in the same irrep, in [0, 1]."""

    accuracy: Estimate
    """Fraction of all pairs answered right, in [0, 1]; control: neurons replaced by random vectors of their irreps."""

    edited_accuracy: Estimate | None
    """Fraction of all pairs answered right under each edit of the hidden layer, [edit]."""

    edited_loss: Estimate | None
    """Cross-entropy over all pairs under each edit, [edit], in nats: "keep" is restricted, "remove" excluded loss."""

    logit_drop: Estimate | None
    """Fall of the right answer's centred logit when the product part is removed, in logits."""

    accuracy_drop: Estimate | None
    """Fall of the accuracy when the product part is removed, in [0, 1]."""

    @property
    def irreps(self) -> tuple[str, ...]:
        """Labels of all irreps, in the group's order."""
        return self.energy.labels["irrep"]

    @property
    def key_irreps(self) -> tuple[str, ...]:
        """Irreps above their null at the 5 % level, most energy first."""
        share = self.energy.value.mean(0)
        above = [i for i in share.argsort(descending=True).tolist() if self.p[i] <= 0.05]
        return tuple(self.irreps[i] for i in above)

    @property
    def represented(self) -> Verdict:
        p = float(self.p.min())
        assert self.energy.control is not None
        short = too_few_draws(len(self.energy.control), n_tests=1, procedure="max_statistic")
        if short:
            return Verdict("undecided", short, p=p)
        if not self.key_irreps:
            return Verdict("not_found", "No irrep holds more energy than with shuffled elements.", p=p)
        keys = ", ".join(self.key_irreps)
        return Verdict("found", f"The irreps {keys} hold more energy than with shuffled elements.", p=p)

    @property
    def used(self) -> Verdict:
        if self.logit_drop is None or self.accuracy_drop is None:
            return Verdict("not_applicable", "No key irrep was found, so there is nothing to remove.")
        p = max(_p(self.logit_drop), _p(self.accuracy_drop))
        moved = f"Removing the product part takes {self.accuracy_drop.text()} of the accuracy"
        if p <= 0.05:
            return Verdict("found", f"{moved}, more than removing a scrambled product of equal rank.", p=p)
        assert self.logit_drop.control is not None
        short = too_few_draws(len(self.logit_drop.control), n_tests=1, procedure="max_statistic")
        if short:
            return Verdict("undecided", short, p=p)
        return Verdict("not_found", f"{moved}, no more than removing a scrambled product of equal rank.", p=p)

    @property
    def effect(self) -> Estimate:
        return self.logit_drop or self.concentration

    @property
    def locations(self) -> tuple[str, ...]:
        return self.key_irreps

    def answer(self) -> str:
        if not self.represented.found:
            return (
                f"No irrep of {self.group} stands out: the strongest holds {self.concentration.text()} of the energy; "
                f"with shuffled elements {self.concentration.control_text()}. "
                f"The network answers {self.accuracy.value:.1%} of all products."
            )
        return (
            f"The network uses {len(self.key_irreps)} of {len(self.irreps) - 1} non-trivial irreps of {self.group}: "
            f"{', '.join(self.key_irreps)} hold {self.concentration.text()} of the energy of {self.concentration.n} "
            f"neurons (with shuffled elements {self.concentration.control_text()}), and {self.purity.text()} of the "
            f"live neurons lie in one irrep. It answers {self.accuracy.value:.1%} of all products; random vectors of "
            f"the same irreps answer {self.accuracy.control_text()}."
        )

    def causal_check(self) -> str:
        if self.logit_drop is None or self.edited_accuracy is None or self.edited_loss is None:
            return "Nothing was edited, because no irrep was found."
        accuracy, loss = (
            dict(zip(EDITS, e.value.tolist(), strict=True)) for e in (self.edited_accuracy, self.edited_loss)
        )
        return (
            f"At the hidden layer, on all pairs, the part of {', '.join(self.key_irreps)} that depends on ab alone was "
            f"removed: accuracy {accuracy['none']:.1%} to {accuracy['remove']:.1%}, loss {loss['none']:.2e} to "
            f"{loss['remove']:.3g} nats (excluded loss); kept alone: accuracy {accuracy['keep']:.1%}, loss "
            f"{loss['keep']:.2e} (restricted loss). The right answer's centred logit fell by {self.logit_drop.text()}; "
            f"with a scrambled product by {self.logit_drop.control_text()}, and accuracy was "
            f"{accuracy['remove scrambled']:.1%}."
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        said = ["Losses are over all pairs, those of training among them."]
        if self.accuracy.value < 0.99:
            said.append(
                f"The network answers only {self.accuracy.value:.1%} of all products, so it did not (fully) learn this "
                "group operation: irreps found are of what it did learn."
            )
        return tuple(said)

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown = {"Energy in each irrep": plots.heat_map(self.energy, title="Energy in each irrep")}
        if self.edited_accuracy is not None:
            shown["Accuracy under edits"] = plots.spectrum(self.edited_accuracy, title="Accuracy under edits")
        return shown


def needs_group_mlp(model: HookedModel) -> str | None:
    """Return why the model is no network with one hidden layer on group elements, or None."""
    if not all(hasattr(model.model, name) for name in ("left", "right", "unembed", "hook_hidden")):
        return "it has no left, right and unembedding matrices indexed by group elements"
    return None


def planted_irreps(strength: float, seed: int) -> Planted:
    """Return a network on S4 whose neurons realise two irreps at `strength`, and their labels."""
    from mechinterp_toolkit.groups import symmetric
    from mechinterp_toolkit.model import load_model
    from mechinterp_toolkit.toys import planted_group_mlp

    labels = ("(3,1)", "(1,1,1,1)")
    network = planted_group_mlp(symmetric(4), labels, strength=strength, seed=seed)
    return Planted(load_model(network), labels, {})


def random_network(seed: int) -> HookedModel:
    """Return a network for S5 with random weights."""
    from mechinterp_toolkit.model import load_model

    return load_model("toy/s5").random_twin(seed)


def scrambled_network(seed: int) -> HookedModel:
    """Return the trained S5 network with a, b and c relabelled at random, each on its own: no group to speak of."""
    from mechinterp_toolkit.model import load_model
    from mechinterp_toolkit.toys import relabelled_group_mlp

    return load_model(relabelled_group_mlp(load_model("toy/s5").model, seed=seed))


@analysis(
    question="Which irreps of the group does a network that multiplies in it use?",
    paper="Chughtai, Chan, Nanda 2023, arXiv:2302.03025",
    applies=needs_group_mlp,
    planted=planted_irreps,
    twins={"random weights": random_network, "scrambled": scrambled_network},
)
def group_fourier(
    model: HookedModel, *, group: str | None = None, draws: int = 999, edit_draws: int = 39, seed: int = 0
) -> GroupFourier:
    """Split the energy of a group network over irreps, and remove the key ones from what it says about the product.

    Args:
        model: a network with one hidden layer on pairs of group elements (`GroupMLP`).
        group: name of the group, e.g. "S5" or "C113"; None takes the one recorded with the network.
        draws: shuffles of the elements behind `p` and the controls of the energies.
        edit_draws: scrambled products behind the controls of the edits.
        seed: of all draws.

    Raises:
        NotApplicable: no group is known, or it has another order than the network.
    """
    known = _group(model, group)
    sites = _sites(model)
    labels = tuple(irrep.label for irrep in known.irreps)
    projectors = torch.stack([known.isotypic_projector(label) for label in labels])
    trivial = _trivial(projectors)
    neurons = _neuron_energy(known, sites)
    shuffled = _shuffled_shares(sites, projectors, draws, seed)
    energy = _energy(neurons, labels, shuffled, seed)
    p = _adjusted_p(energy.value.mean(0), shuffled.mean(1), trivial)
    keys = [i for i in range(len(labels)) if p[i] <= 0.05]
    concentration = _concentration(neurons, keys, trivial, shuffled, seed)
    purity = _purity(known, sites, trivial, min(draws, 99), seed)
    accuracy = _accuracy(model, known, sites, projectors[_main_irrep(neurons, trivial)], seed)
    edits = _edit_product(model, known, projectors[keys].sum(0), edit_draws, seed) if keys else _NO_EDITS
    return GroupFourier(known.name, energy, p, concentration, purity, accuracy, *edits)


class _Edited(NamedTuple):
    edited_accuracy: Estimate | None
    edited_loss: Estimate | None
    logit_drop: Estimate | None
    accuracy_drop: Estimate | None


_NO_EDITS = _Edited(None, None, None, None)


class _Answers(NamedTuple):
    """How each pair is answered, one number per pair."""

    logit: Tensor
    accuracy: Tensor
    loss: Tensor


def _group(model: HookedModel, name: str | None) -> Group:
    known = group_by_name(name) if name else model.model.group
    if known is None:
        raise NotApplicable("the network records no group; name it with group=, e.g. group='S5'.")
    if known.order != model.model.order:
        raise NotApplicable(
            f"{known.name} has {known.order} elements, but the network answers with {model.model.order}."
        )
    return known


def _sites(model: HookedModel) -> Float[Tensor, "site order neuron"]:
    net = model.model
    return torch.stack([net.left, net.right, net.unembed]).detach().cpu().double()


def _trivial(projectors: Float[Tensor, "irrep order order"]) -> int:
    """Position of the trivial irrep: the only block whose projector keeps constants."""
    return int(projectors.sum((1, 2)).argmax())


def _neuron_energy(group: Group, sites: Float[Tensor, "site order neuron"]) -> Float[Tensor, "neuron site irrep"]:
    return group.isotypic_energy(sites.transpose(1, 2)).transpose(0, 1)


def _main_irrep(neurons: Float[Tensor, "neuron site irrep"], trivial: int) -> Int[Tensor, " neuron"]:
    """The irrep that holds most of a neuron's left and right energy, constants aside."""
    return neurons[:, :2].sum(1).index_fill(1, torch.tensor([trivial]), -1.0).argmax(-1)


def _shares(
    values: Float[Tensor, "n site irrep"], weights: Float[Tensor, "draw n"]
) -> Float[Tensor, "draw site irrep"]:
    sums = torch.einsum("dn,nsr->dsr", weights, values)
    return sums / sums.sum(-1, keepdim=True)


def _shuffled_shares(
    sites: Float[Tensor, "site order neuron"], projectors: Float[Tensor, "irrep order order"], draws: int, seed: int
) -> Float[Tensor, "draw site irrep"]:
    """Energy shares with the elements of each site shuffled on their own, by way of the Gram matrix of the elements."""
    generator = torch.Generator().manual_seed(seed)
    gram = (sites @ sites.transpose(1, 2)).flatten(1)
    flat, n = projectors.flatten(1).T, sites.shape[1]
    rows = []
    for _ in range(draws):
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in SITES])
        moved = gram.gather(1, (orders[:, :, None] * n + orders[:, None, :]).flatten(1))
        rows.append(moved @ flat)
    energies = torch.stack(rows)
    return energies / energies.sum(-1, keepdim=True)


def _energy(
    neurons: Float[Tensor, "neuron site irrep"], labels: tuple[str, ...], shuffled: Tensor, seed: int
) -> Estimate:
    return bootstrap(
        neurons,
        unit_name="neurons",
        measured="fraction of the site's energy in [0, 1]",
        seed=seed,
        statistic=_shares,
        axes=("site", "irrep"),
        labels={"site": SITES, "irrep": labels},
        control=shuffled,
        control_name="elements shuffled",
    )


def _adjusted_p(
    share: Float[Tensor, " irrep"], null: Float[Tensor, "draw irrep"], trivial: int
) -> Float[Tensor, " irrep"]:
    others = [i for i in range(len(share)) if i != trivial]
    p = torch.ones(len(share), dtype=torch.float64)
    p[others] = max_statistic_p(share[others], null[:, others], studentise=True)
    return p


def _concentration(
    neurons: Float[Tensor, "neuron site irrep"],
    keys: list[int],
    trivial: int,
    shuffled: Float[Tensor, "draw site irrep"],
    seed: int,
) -> Estimate:
    """Share of the chosen irreps; the control chooses as many, anew in every draw."""
    null = shuffled.mean(1)
    excess = (null - null.mean(0)) / null.std(0).clamp_min(torch.finfo(null.dtype).tiny)
    excess[:, trivial] = -torch.inf
    observed = neurons.sum(0).mean(0).index_fill(0, torch.tensor([trivial]), -1.0)
    chosen = keys or [int(observed.argmax())]
    picked = excess.topk(len(chosen), dim=1).indices

    def share(values: Float[Tensor, "n site irrep"], weights: Float[Tensor, "draw n"]) -> Float[Tensor, " draw"]:
        return _shares(values, weights)[:, :, chosen].sum(-1).mean(1)

    return bootstrap(
        neurons,
        unit_name="neurons",
        measured="fraction of the energy in [0, 1]",
        seed=seed,
        statistic=share,
        control=null.gather(1, picked).sum(1),
        control_name=f"elements shuffled, the {len(chosen)} irreps furthest above chosen anew",
    )


def _pure(energy: Float[Tensor, "neuron site irrep"], trivial: int) -> Float[Tensor, " live"]:
    """Which live neurons have 95 % of their left and right energy, constants aside, in the same irrep."""
    energy = energy[:, :2].index_fill(2, torch.tensor([trivial]), 0.0)
    size = energy.sum(-1).amin(1)
    live = size > LIVE**2 * size.max()
    best = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    return (best.amin(1).amax(1) > PURE)[live].double()


def _purity(group: Group, sites: Tensor, trivial: int, draws: int, seed: int) -> Estimate:
    generator = torch.Generator().manual_seed(seed)
    control = []
    for _ in range(draws):
        order = torch.randperm(sites.shape[1], generator=generator)
        control.append(_pure(_neuron_energy(group, sites[:, order]), trivial).mean())
    return bootstrap(
        _pure(_neuron_energy(group, sites), trivial),
        unit_name="live neurons",
        measured="fraction of live neurons in [0, 1]",
        seed=seed,
        control=torch.stack(control),
        control_name="elements shuffled",
    )


def _pairs(group: Group) -> Int[Tensor, "pairs 2"]:
    return torch.cartesian_prod(torch.arange(group.order), torch.arange(group.order))


def _answers(logits: Float[Tensor, "pairs order"], product: Int[Tensor, " pairs"]) -> _Answers:
    """Losses in float64: in float32 the smallest are lost in the rounding of the logarithm."""
    logits = logits.detach().cpu().double()
    right = logits.gather(1, product[:, None])[:, 0]
    loss = -logits.log_softmax(1).gather(1, product[:, None])[:, 0]
    others = logits.scatter(1, product[:, None], -torch.inf).amax(1)
    return _Answers(right - logits.mean(1), (right > others).double(), loss)


def _accuracy(
    model: HookedModel, group: Group, sites: Tensor, main: Float[Tensor, "neuron order order"], seed: int
) -> Estimate:
    """Accuracy, and that of networks whose neurons are random vectors of the irrep they had most energy in."""
    pairs = _pairs(group)
    product = group.table.flatten()
    answers = _answers(model.logits(pairs), product)
    generator = torch.Generator().manual_seed(seed)
    control = []
    for _ in range(20):
        random = torch.randn(sites.shape, generator=generator, dtype=torch.float64)
        same = torch.einsum("nxy,syn->sxn", main, random)
        same = same * sites.norm(dim=1, keepdim=True) / same.norm(dim=1, keepdim=True)
        control.append(_answers(_network_like(model, same).logits(pairs), product).accuracy.mean())
    return bootstrap(
        _by_left(answers.accuracy, group),
        unit_name="left elements",
        measured="fraction of pairs in [0, 1]",
        seed=seed,
        control=torch.stack(control),
        control_name="neurons replaced by random vectors of their irreps",
    )


def _network_like(model: HookedModel, sites: Float[Tensor, "site order neuron"]) -> HookedModel:
    """The same network with other left, right and unembedding functions."""
    from mechinterp_toolkit.model import load_model

    net = model.model
    left, right, unembed = sites.to(net.w_out.device, net.w_out.dtype)
    both = torch.eye(left.shape[1], device=left.device, dtype=left.dtype).repeat(2, 1)
    return load_model(type(net).from_weights(left, right, both, unembed.T, net.b_out, activation=net.activation))


def _edit_product(model: HookedModel, group: Group, projector: Tensor, draws: int, seed: int) -> _Edited:
    """Keep or remove, at the hidden layer, what the key irreps say about ab, and about scrambled products."""
    pairs = _pairs(group)
    product = group.table.flatten()
    generator = torch.Generator().manual_seed(seed)

    def run(element: Tensor, mode: Any) -> _Answers:
        with applied(model, {"hook_hidden": ProjectRows(element, projector, mode)}):
            return _answers(model.logits(pairs), product)

    base = _answers(model.logits(pairs), product)
    kept, removed = run(product, "keep"), run(product, "remove")
    scrambled = [run(_scrambled_product(group, generator), "remove") for _ in range(draws)]
    shown = [base, kept, removed, scrambled[0]]
    return _Edited(
        _by_edit([_by_left(a.accuracy, group) for a in shown], "fraction of pairs in [0, 1]", seed),
        _by_edit([_by_left(a.loss, group) for a in shown], "nats", seed),
        _drop([_by_left(base.logit - a.logit, group) for a in (removed, *scrambled)], "logits", seed),
        _drop(
            [_by_left(base.accuracy - a.accuracy, group) for a in (removed, *scrambled)],
            "fraction of pairs in [0, 1]",
            seed,
        ),
    )


def _scrambled_product(group: Group, generator: torch.Generator) -> Int[Tensor, " pairs"]:
    """A product with a, b and ab renamed at random: as many pairs for each element, no relation to the group."""
    a, b, c = (torch.randperm(group.order, generator=generator) for _ in range(3))
    return c[group.table[a][:, b]].flatten()


def _by_left(values: Float[Tensor, " pairs"], group: Group) -> Float[Tensor, " order"]:
    """Means over b: the left element is the unit that is resampled."""
    return values.reshape(group.order, group.order).mean(1)


def _by_edit(values: list[Tensor], measured: str, seed: int) -> Estimate:
    return bootstrap(
        torch.stack(values, 1),
        unit_name="left elements",
        measured=measured,
        seed=seed,
        axes=("edit",),
        labels={"edit": EDITS},
    )


def _drop(drops: list[Tensor], measured: str, seed: int) -> Estimate:
    """The first is the drop itself, the others those of scrambled products."""
    return bootstrap(
        drops[0],
        unit_name="left elements",
        measured=measured,
        seed=seed,
        control=torch.stack([d.mean() for d in drops[1:]]),
        control_name="product scrambled",
    )


def _p(estimate: Estimate) -> float:
    assert estimate.control is not None
    return float(p_value(estimate.value, estimate.control))
