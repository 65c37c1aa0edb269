"""Which irreps of the group does a network that multiplies in it use?

Each neuron is three functions on the group: its left share l(a), its right share r(b) and its
unembedding u(c). Their energy is split over the isotypic blocks of the group's Fourier transform,
which depends on no basis and no convention. *Represented*: some non-trivial irrep holds more of the
energy, averaged over the three, than in any irrep when the elements are shuffled. *Used*: removing
from the hidden layer what these irreps say about the product ab takes the answer away, and removing
what they say about a scrambled product of the same rank does not. Every neuron is then accounted
for (irrep, rank, cosets), and so are the answers (characters, interventions, pruning, three
explanations side by side).

What would fool it: energy alone. Neurons that are random vectors of the right irreps have the same
spectrum and multiply nothing, so the accuracy of such networks stands beside the accuracy; a
network that memorised its table may carry a weak sign irrep; and a group given in another order of
its elements than the network's is another group to it: give the network's own Cayley table, or
leave it out and let it be read from the network's answers.

Source: Chughtai, Chan, Nanda 2023, A Toy Model of Universality, arXiv:2302.03025; restricted and
excluded loss: Nanda et al. 2023, arXiv:2301.05217; energies by projectors, so that they can be
compared between papers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.group_fourier.account import (
    AnswerAccount,
    NeuronAccount,
    answer_account,
    neuron_account,
    scrambled_product,
)
from mechinterp_toolkit.analyses.group_fourier.answers import (
    Scores,
    quick_score,
    removed_product,
    score,
    training_pairs,
)
from mechinterp_toolkit.analyses.group_fourier.energies import (
    adjusted_p,
    concentration,
    energy_estimate,
    neuron_energy,
    purity,
    shuffled_shares,
)
from mechinterp_toolkit.analyses.group_fourier.explanations import RhoSet
from mechinterp_toolkit.analyses.group_fourier.network import (
    GroupNetwork,
    group_network,
    recover_group,
    why_no_group_network,
)
from mechinterp_toolkit.analyses.group_fourier.neurons import (
    NeuronTable,
    random_irrep_functions,
    trivial_irrep,
)
from mechinterp_toolkit.analyses.group_fourier.progress import (
    has_history,
    spectrum_figure,
    training_spectrum,
)
from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.groups import Group, group_by_name
from mechinterp_toolkit.hooks.fourier import ProjectRows
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import bootstrap, p_value, too_few_draws

EDITS = ("none", "keep", "remove", "remove scrambled")

# A fall of the accuracy that counts as use: a network that memorised loses a few pairs, which a
# test alone would call used.
SMALLEST_DROP = 0.05

# Read back by `load_result`, which knows the dataclasses of this module.
_STORED = (NeuronTable, NeuronAccount, AnswerAccount, RhoSet)


@dataclass(frozen=True)
class GroupFourier(Finding):
    """Result of `group_fourier`."""

    group: str
    """Name of the group."""

    energy: Estimate
    """Share of the energy of each site in each isotypic block, [site irrep], in [0, 1]; sites sum
    to one."""

    p: Float[Tensor, " irrep"]
    """Adjusted p-value of each irrep's share averaged over sites (maximum over irreps); 1 for the
    trivial one."""

    concentration: Estimate
    """Share of the energy, averaged over sites, in the key irreps (in the strongest, where none is
    key), in [0, 1]."""

    purity: Estimate
    """Fraction of live neurons with 95 % of their left and of their right energy in the same irrep,
    in [0, 1]."""

    accuracy: Estimate
    """Fraction of all pairs answered right, in [0, 1]; control: neurons replaced by random vectors
    of their irreps."""

    edited_accuracy: Estimate | None
    """Fraction of all pairs answered right under each edit of the hidden layer, [edit]."""

    edited_loss: Estimate | None
    """Cross-entropy over all pairs under each edit, [edit], in nats: "keep" is restricted, "remove"
    excluded loss."""

    logit_drop: Estimate | None
    """Fall of the right answer's centred logit when the product part is removed, in logits."""

    accuracy_drop: Estimate | None
    """Fall of the accuracy when the product part is removed, in [0, 1]."""

    training_loss: Estimate | None
    """Cross-entropy over the training pairs alone under each edit, [edit], in nats; None where they
    are not recorded."""

    training_spectrum: Estimate | None
    """Share of each irrep in the energy over the checkpoints of training, [step irrep]; None where
    none are kept."""

    neurons: NeuronAccount
    """Every live neuron, and its nulls."""

    answers: AnswerAccount | None
    """What the network says of the product; None where no irrep was found."""

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
    def estimates(self) -> dict[str, Estimate]:
        parts = {**vars(self), **vars(self.neurons), **(vars(self.answers) if self.answers else {})}
        return {name: value for name, value in parts.items() if isinstance(value, Estimate)}

    @property
    def represented(self) -> Verdict:
        p = float(self.p.min())
        assert self.energy.control is not None
        short = too_few_draws(len(self.energy.control), n_tests=1, procedure="max_statistic")
        if short:
            return Verdict("undecided", short, p=p)
        if not self.key_irreps:
            return Verdict(
                "not_found", "No irrep holds more energy than with shuffled elements.", p=p
            )
        several = len(self.key_irreps) > 1
        held = (
            f"irrep{'s' * several} {', '.join(self.key_irreps)} {'hold' if several else 'holds'}"
            " more energy"
        )
        assert self.concentration.control is not None
        if float(self.concentration.low) <= float(self.concentration.control.quantile(0.95)):
            said = f"The {held} than with shuffled elements, but the interval reaches the null."
            return Verdict("undecided", said, p=p)
        return Verdict("found", f"The {held} than with shuffled elements.", p=p)

    @property
    def used(self) -> Verdict:
        if self.logit_drop is None or self.accuracy_drop is None:
            return Verdict(
                "not_applicable", "No key irrep was found, so there is nothing to remove."
            )
        p = max(_p(self.logit_drop), _p(self.accuracy_drop))
        moved = f"Removing the product part takes {self.accuracy_drop.text()} of the accuracy"
        if p <= 0.05 and float(self.accuracy_drop.low) < SMALLEST_DROP:
            said = f"{moved}, less than the {SMALLEST_DROP} that count as use."
            return Verdict("not_found", said, p=p, smallest_effect=SMALLEST_DROP)
        if p <= 0.05:
            said = f"{moved}, more than removing a scrambled product of equal rank."
            return Verdict("found", said, p=p, smallest_effect=SMALLEST_DROP)
        assert self.logit_drop.control is not None
        short = too_few_draws(len(self.logit_drop.control), n_tests=1, procedure="max_statistic")
        if short:
            return Verdict("undecided", short, p=p)
        return Verdict(
            "not_found", f"{moved}, no more than removing a scrambled product of equal rank.", p=p
        )

    @property
    def effect(self) -> Estimate:
        return self.logit_drop or self.concentration

    @property
    def locations(self) -> tuple[str, ...]:
        return self.key_irreps if self.represented.found else ()

    def answer(self) -> str:
        if not self.represented.found:
            return (
                f"No irrep of {self.group} stands out: the strongest holds"
                f" {self.concentration.text()} of the energy; with shuffled elements"
                f" {self.concentration.control_text()}. The network answers"
                f" {self.accuracy.value:.1%} of all products."
            )
        return (
            f"The network uses {len(self.key_irreps)} of {len(self.irreps) - 1} non-trivial irreps"
            f" of {self.group}: {', '.join(self.key_irreps)} hold {self.concentration.text()} of"
            f" the energy of {self.concentration.n} neurons (with shuffled elements"
            f" {self.concentration.control_text()}), and {self.purity.text()} of the live neurons"
            f" lie in one irrep. It answers {self.accuracy.value:.1%} of all products; random"
            f" vectors of the same irreps answer {self.accuracy.control_text()}."
            f" {self._neurons_text()}"
        )

    def _neurons_text(self) -> str:
        """Rank and cosets of the live neurons, each beside random vectors of the same irreps."""
        about = self.neurons
        rank, cosets = (
            float(e.control.mean())
            for e in (about.rank_one, about.coset_constant)
            if e.control is not None
        )
        common = Counter(zip(*about.table.stabilisers, strict=True)).most_common(2)
        names = ", ".join(f"{left} and {right} ({n})" for (left, right), n in common)
        return (
            f"{about.rank_one.text()} of the live neurons are of rank one (random vectors of the"
            f" same irreps: {rank:.3g}) and {about.coset_constant.text()} constant on cosets"
            f" ({cosets:.3g}); most common left and right stabilisers: {names}."
        )

    def causal_check(self) -> str:
        if self.logit_drop is None or self.edited_accuracy is None or self.edited_loss is None:
            return "Nothing was edited, because no irrep was found."
        accuracy, loss = (
            dict(zip(EDITS, e.value.tolist(), strict=True))
            for e in (self.edited_accuracy, self.edited_loss)
        )
        return (
            f"At the hidden layer, on all pairs, the part of {', '.join(self.key_irreps)} that"
            f" depends on ab alone was removed: accuracy {accuracy['none']:.1%} to"
            f" {accuracy['remove']:.1%}, loss {loss['none']:.2e} to {loss['remove']:.3g} nats"
            f" (excluded loss); kept alone: accuracy {accuracy['keep']:.1%}, loss"
            f" {loss['keep']:.2e} (restricted loss). The right answer's centred logit fell by"
            f" {self.logit_drop.text()}; with a scrambled product by"
            f" {self.logit_drop.control_text()}, and accuracy was"
            f" {accuracy['remove scrambled']:.1%}."
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        said = []
        if self.training_loss is None:
            said.append(
                "Losses are over all pairs: the checkpoint does not record which it was trained on."
            )
        if self.answers is None:
            said.append("The answers were not taken apart, because no irrep stands out.")
        if self.accuracy.value < 0.99:
            said.append(
                f"The network answers only {self.accuracy.value:.1%} of all products, so it did not"
                " (fully) learn this group operation: irreps found are of what it did learn."
            )
        return tuple(said)

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots
        from mechinterp_toolkit.analyses.group_fourier import figures

        shown = {
            "Energy in each irrep": plots.heat_map(self.energy, title="Energy in each irrep"),
            "Neurons by irrep and coset": figures.neuron_histogram(self.neurons.table),
            "Stabilisers and irreps": figures.stabiliser_matrix(self.neurons.table),
        }
        if self.training_spectrum is not None:
            shown["Irreps over training"] = spectrum_figure(self.training_spectrum)
        if self.edited_accuracy is not None:
            shown["Accuracy under edits"] = plots.spectrum(
                self.edited_accuracy, title="Accuracy under edits"
            )
        if self.answers is not None:
            accuracy, pruning = self.answers.interventions_accuracy, self.answers.pruning
            shown["Interventions"] = plots.spectrum(
                accuracy, title="Accuracy under published interventions"
            )
            shown["Pruning"] = plots.curve(
                pruning, title="Accuracy while neurons are zeroed by participation ratio"
            )
        return shown


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
    """Return the trained S5 network with a, b and c relabelled at random, each on its own: no group
    to speak of."""
    from mechinterp_toolkit.model import load_model
    from mechinterp_toolkit.toys import relabelled_group_mlp

    return load_model(relabelled_group_mlp(load_model("toy/s5").model, seed=seed))


@analysis(
    question="Which irreps of the group does a network that multiplies in it use?",
    paper="Chughtai, Chan, Nanda 2023, arXiv:2302.03025",
    applies=why_no_group_network,
    planted=planted_irreps,
    twins={"random weights": random_network, "scrambled": scrambled_network},
)
def group_fourier(
    model: HookedModel,
    *,
    group: str | None = None,
    draws: int = 999,
    edit_draws: int = 39,
    account_draws: int = 19,
    seed: int = 0,
) -> GroupFourier:
    """Split the energy of a group network over irreps, and remove the key ones from what it says
    about the product.

    Args:
        model: a network with one hidden layer on pairs of group elements (`GroupMLP`), or a
            one-layer transformer without LayerNorm over `[a, b, =]`.
        group: name of the group, e.g. "S5" or "C113"; None takes the one recorded with the network,
            and where none is recorded the group whose Cayley table the network answers.
        draws: shuffles of the elements behind `p` and the controls of the energies.
        edit_draws: scrambled products behind the controls of the edits.
        account_draws: networks of random irrep vectors and scrambled products behind the controls
            of the account.
        seed: of all draws.

    Raises:
        NotApplicable: the group has another order than the network, or none is known and the
            answers are no group operation.
    """
    network = group_network(model)
    known = _group(network, group)
    functions, trivial = network.functions, trivial_irrep(known)
    neurons = neuron_energy(known, functions)
    shuffled = shuffled_shares(known, functions, draws, seed)
    energy = energy_estimate(known, neurons, shuffled, seed)
    p = adjusted_p(energy.value.mean(0), shuffled.mean(1), trivial)
    keys = [i for i in range(len(p)) if p[i] <= 0.05]
    about_neurons = neuron_account(network, known, draws=account_draws, seed=seed)
    return GroupFourier(
        known.name,
        energy,
        p,
        concentration(neurons, keys, trivial, shuffled, seed),
        purity(known, functions, trivial, min(draws, 99), seed),
        _accuracy(network, known, account_draws, seed),
        *(_edit_product(network, known, keys, edit_draws, seed) if keys else _NO_EDITS),
        _over_training(network, known, min(draws, 99), seed),
        about_neurons,
        (
            answer_account(
                network, known, about_neurons.table, keys, draws=account_draws, seed=seed
            )
            if keys
            else None
        ),
    )


class _Edited(NamedTuple):
    edited_accuracy: Estimate | None
    edited_loss: Estimate | None
    logit_drop: Estimate | None
    accuracy_drop: Estimate | None
    training_loss: Estimate | None


_NO_EDITS = _Edited(None, None, None, None, None)


def _group(network: GroupNetwork, name: str | None) -> Group:
    known = group_by_name(name) if name else getattr(network.model.model, "group", None)
    if known is None:
        try:
            return recover_group(network)
        except ToolkitError as error:
            raise NotApplicable(
                f"no group is named (group='S5') or recorded with the network, and {error}"
            ) from error
    if known.order != network.order:
        raise NotApplicable(
            f"{known.name} has {known.order} elements, but the network answers with"
            f" {network.order}."
        )
    return known


def _over_training(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate | None:
    """The spectrum over the checkpoints of the folder the network came from, where it is a final
    one with a history."""
    provenance = network.model.provenance
    if (
        "training" not in provenance.training
        or provenance.revision is not None
        or not has_history(provenance.checkpoint)
    ):
        return None
    return training_spectrum(provenance.checkpoint, group, draws=draws, seed=seed)


def _accuracy(network: GroupNetwork, group: Group, draws: int, seed: int) -> Estimate:
    """Accuracy, and that of networks whose neurons are random vectors of the irrep they had most
    energy in."""
    product, control = group.table.flatten(), []
    for draw in range(draws):
        same = random_irrep_functions(group, network.functions, seed=seed + draw)
        control.append(quick_score(network.through(same), product)[1])
    return bootstrap(
        _by_left(score(network.logits(), product).accuracy, group),
        unit_name="left elements",
        measured="fraction of pairs in [0, 1]",
        seed=seed,
        control=torch.tensor(control, dtype=torch.float64),
        control_name="neurons replaced by random vectors of their irreps",
    )


def _edit_product(
    network: GroupNetwork, group: Group, keys: list[int], draws: int, seed: int
) -> _Edited:
    """Keep or remove, at the hidden layer, what the key irreps say about ab, and about scrambled
    products."""
    product = group.table.flatten()
    projector = torch.stack([group.isotypic_projector(group.irrep_labels[i]) for i in keys]).sum(0)
    generator = torch.Generator().manual_seed(seed)
    scrambled = [scrambled_product(group, generator) for _ in range(draws)]

    def run(element: Int[Tensor, " pairs"], mode: Literal["keep", "remove"]) -> Scores:
        return score(
            network.logits({network.hidden_site: ProjectRows(element, projector, mode)}), product
        )

    shown = [
        score(network.logits(), product),
        run(product, "keep"),
        run(product, "remove"),
        run(scrambled[0], "remove"),
    ]
    base, removed = shown[0], shown[2]
    null = torch.tensor(
        [quick_score(removed_product(group, network, projector, s), product) for s in scrambled]
    )
    fall = torch.tensor([float(base.logit.mean()), float(base.accuracy.mean())]) - null
    trained = training_pairs(network)
    return _Edited(
        _by_edit(
            [_by_left(a.accuracy, group) for a in shown],
            "fraction of pairs in [0, 1]",
            "left elements",
            seed,
        ),
        _by_edit([_by_left(a.loss, group) for a in shown], "nats", "left elements", seed),
        _drop(_by_left(base.logit - removed.logit, group), fall[:, 0], "logits", seed),
        _drop(
            _by_left(base.accuracy - removed.accuracy, group),
            fall[:, 1],
            "fraction of pairs in [0, 1]",
            seed,
        ),
        (
            None
            if trained is None
            else _by_edit([a.loss[trained] for a in shown], "nats", "training pairs", seed)
        ),
    )


def _by_left(values: Float[Tensor, " pairs"], group: Group) -> Float[Tensor, " order"]:
    """Means over b: the left element is the unit that is resampled."""
    return values.reshape(group.order, group.order).mean(1)


def _by_edit(values: list[Tensor], measured: str, units: str, seed: int) -> Estimate:
    return bootstrap(
        torch.stack(values, 1),
        unit_name=units,
        measured=measured,
        seed=seed,
        axes=("edit",),
        labels={"edit": EDITS},
    )


def _drop(
    drop: Float[Tensor, " order"], control: Float[Tensor, " draw"], measured: str, seed: int
) -> Estimate:
    return bootstrap(
        drop,
        unit_name="left elements",
        measured=measured,
        seed=seed,
        control=control,
        control_name="product scrambled",
    )


def _p(estimate: Estimate) -> float:
    assert estimate.control is not None
    return float(p_value(estimate.value, estimate.control))
