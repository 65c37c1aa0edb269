"""What `group_fourier` answers: its numbers, verdicts, sentences and pictures.

Conclusions are derived from the stored numbers, so that every threshold stays visible.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit import plots
from mechinterp_toolkit.analyses.group_fourier import figures
from mechinterp_toolkit.analyses.group_fourier.account import AnswerAccount, NeuronAccount
from mechinterp_toolkit.analyses.group_fourier.edits import EDITS
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.nulls import why_undecided
from mechinterp_toolkit.results import Estimate, Row, Verdict

SMALLEST_DROP = 0.05
"""A fall of the accuracy that counts as use: a network that memorised loses a few pairs, which a
test alone would call used."""


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
        """Every estimate of the finding and of its accounts, by field name."""
        parts = {**vars(self), **vars(self.neurons), **(vars(self.answers) if self.answers else {})}
        return {name: value for name, value in parts.items() if isinstance(value, Estimate)}

    def rows(self) -> list[Row]:
        """Return every estimate, and every live neuron under its participation ratio."""
        neurons = self.neurons.table.rows()
        return [*super().rows(), *({"estimate": "neuron", "value": n["ipr"]} | n for n in neurons)]

    @property
    def represented(self) -> Verdict:
        """Whether some irrep holds more energy than any does where the elements are shuffled."""
        assert self.energy.control is not None
        assert self.concentration.control is not None
        p, short = float(self.p.min()), why_undecided(len(self.energy.control))
        if short:
            return Verdict("undecided", short, p=p)
        if not self.key_irreps:
            reason = "No irrep holds more energy than with shuffled elements."
            return Verdict("not_found", reason, p=p)
        several = len(self.key_irreps) > 1
        held = (
            f"The irrep{'s' * several} {', '.join(self.key_irreps)}"
            f" {'hold' if several else 'holds'} more energy than with shuffled elements"
        )
        if float(self.concentration.low) <= float(self.concentration.control.quantile(0.95)):
            return Verdict("undecided", f"{held}, but the interval reaches the null.", p=p)
        return Verdict("found", f"{held}.", p=p)

    @property
    def used(self) -> Verdict:
        """Whether the answers depend on what the key irreps say about the product."""
        if self.logit_drop is None or self.accuracy_drop is None:
            reason = "No key irrep was found, so there is nothing to remove."
            return Verdict("not_applicable", reason)
        assert self.logit_drop.control is not None
        p = max(float(self.logit_drop.p()), float(self.accuracy_drop.p()))
        short = why_undecided(len(self.logit_drop.control))
        moved = f"Removing the product part takes {self.accuracy_drop.text()} of the accuracy"
        than = "than removing a scrambled product of equal rank"
        if p > 0.05:
            return Verdict(
                "undecided" if short else "not_found", short or f"{moved}, no more {than}.", p=p
            )
        if float(self.accuracy_drop.low) < SMALLEST_DROP:
            reason = f"{moved}, less than the {SMALLEST_DROP} that count as use."
            return Verdict("not_found", reason, p=p, smallest_effect=SMALLEST_DROP)
        return Verdict("found", f"{moved}, more {than}.", p=p, smallest_effect=SMALLEST_DROP)

    @property
    def effect(self) -> Estimate:
        """The fall of the right answer's logit, or the energy where nothing was edited."""
        return self.logit_drop or self.concentration

    @property
    def locations(self) -> tuple[str, ...]:
        """The key irreps, where they are found."""
        return self.key_irreps if self.represented.found else ()

    def answer(self) -> str:
        """Which irreps hold how much energy, and what the neurons in them are."""
        held = (
            f"{self.concentration.text()} of the energy of {self.concentration.n} neurons (with"
            f" shuffled elements {self.concentration.control_text()})"
        )
        if not self.represented.found:
            return (
                f"No irrep of {self.group} stands out: the strongest holds {held}. The network"
                f" answers {self.accuracy.value:.1%} of all products."
            )
        return (
            f"The network uses {len(self.key_irreps)} of {len(self.irreps) - 1} non-trivial irreps"
            f" of {self.group}: {', '.join(self.key_irreps)} hold {held}, and"
            f" {self.purity.text()} of the live neurons lie in one irrep. It answers"
            f" {self.accuracy.value:.1%} of all products; random vectors of the same irreps answer"
            f" {self.accuracy.control_text()}. {self.neurons.text()}"
        )

    def causal_check(self) -> str:
        """What keeping and removing the key irreps did, beside a scrambled product."""
        if self.logit_drop is None or self.edited_accuracy is None or self.edited_loss is None:
            return "Nothing was edited, because no irrep was found."
        accuracy, loss = (
            dict(zip(EDITS, estimate.value.tolist(), strict=True))
            for estimate in (self.edited_accuracy, self.edited_loss)
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
        """What is not known of the training pairs, the answers and the network's learning."""
        reasons = {
            "Losses are over all pairs: the checkpoint does not record which it was trained on.": (
                self.training_loss is None
            ),
            "The answers were not taken apart, because no irrep stands out.": self.answers is None,
            (
                f"The network answers only {self.accuracy.value:.1%} of all products, so it did not"
                " (fully) learn this group operation: irreps found are of what it did learn."
            ): float(self.accuracy.value) < 0.99,
        }
        return tuple(reason for reason, applies in reasons.items() if applies)

    def figures(self) -> dict[str, plots.Figure]:
        """Energies, neurons, training, edits, interventions and pruning, as far as there are."""
        answers, table = self.answers, self.neurons.table
        drawn = {
            "Energy in each irrep": plots.heat_map(self.energy, title="Energy in each irrep"),
            "Neurons by irrep and coset": figures.neuron_histogram(table),
            "Stabilisers and irreps": figures.stabiliser_matrix(table),
        }
        if self.training_spectrum is not None:
            drawn["Irreps over training"] = figures.spectrum_over_training(self.training_spectrum)
        if self.edited_accuracy is not None:
            title = "Accuracy under edits"
            drawn[title] = plots.spectrum(self.edited_accuracy, title=title)
        if answers is not None:
            title = "Accuracy under published interventions"
            drawn["Interventions"] = plots.spectrum(answers.interventions_accuracy, title=title)
            title = "Accuracy while neurons are zeroed by participation ratio"
            drawn["Pruning"] = plots.curve(answers.pruning, title=title)
        return drawn
