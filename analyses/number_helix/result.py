"""What `number_helix` answers with: its numbers, its verdicts, and what a reader gets to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.analyses.number_helix.clock import FITS, Clock
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry.helix import MODELS, Period, period_text
from mechinterp_toolkit.nulls import why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import judge_effect

EDITS = ("helix", "largest circle", "polynomial", "principal components", "whole stream")

SMALLEST_SHARE = 0.05
"""Share of the whole stream's effect below which setting the helix is of no interest."""

NEURON_SHARE = 0.8
"""Share of the neurons' direct effect for which the fewest are counted."""


@dataclass(frozen=True)
class NumberHelix(Finding):
    """Result of `number_helix`."""

    n_numbers: int
    """Numbers that are one token each."""

    periods: tuple[Period, ...]
    """Periods of the helix."""

    rank: int
    """Columns of the helix that are not zero or dependent, the constant left out."""

    found_periods: tuple[tuple[Period, ...], ...]
    """Hook point by hook point, the periods found, largest share first."""

    draws: int
    """Permutations behind the p-values."""

    layer_p: Float[Tensor, " hook_point"]
    """p-value of the best period at each hook point, corrected for all periods there, but not for
    hook points."""

    share: Float[Tensor, "hook_point period"]
    """Share of the variance left by the cubic at each period, in [0, 1]."""

    residues: Estimate
    """Accuracy of reading n mod T from numbers left out minus that for permuted numbers, [period],
    at the best hook point."""

    numbers: Int[Tensor, " number"]
    """The numbers."""

    points: Float[Tensor, "number 2"]
    """Their coordinates at the best hook point in the plane of `drawn_period`, in units of the
    activations."""

    drawn_period: float
    """The period whose plane is drawn: the found one of largest share, or else the one of largest
    share."""

    r2: Estimate
    """R2 of `MODELS` on held-out numbers at the best hook point, [model], at most 1; the last one
    is the control."""

    task: str
    """What was asked: "addition", "addition mod p", "succession", or "" where the model does none
    of them."""

    accuracy: Estimate | None
    """Share of the task's prompts with the right answer highest among all numbers; None where
    nothing could be asked."""

    moved: Estimate | None
    """Rise of the new number's answer, centred over the numbers exchanged, when the helix is set,
    in shares of what the whole stream does; control: points permuted among the numbers."""

    curve: Estimate | None
    """The same without control for each of `EDITS` and hook point, [edit, hook point]."""

    new_answers: Float[Tensor, "edit hook_point"] | None
    """Share of edits after which the new number's answer is highest among all numbers, in [0, 1].
    """

    clock: Clock | None
    """How the sum is computed; None where the model does not add, or `why_no_clock` tells why its
    parts cannot be told apart."""

    notes: tuple[str, ...]
    """Numbers left out, tasks that could not be asked."""

    @property
    def p(self) -> float:
        """p-value of the best hook point, corrected for all of them."""
        return min(1.0, float(self.layer_p.min()) * len(self.layer_p))

    @property
    def best(self) -> int:
        """Which hook point represents numbers best: smallest p-value, then the first."""
        return int(self.layer_p.argmin())

    @property
    def hook_points(self) -> tuple[str, ...]:
        """The stream in front of each block."""
        return tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(len(self.layer_p)))

    @property
    def represented(self) -> Verdict:
        layers, periods = len(self.layer_p), self.found_periods[self.best]
        if short := why_undecided(self.draws, alpha=0.05 / layers):
            return Verdict(
                "undecided", f"{layers} layers share the level of 0.05: {short}", p=self.p
            )
        if self.p > 0.05 or not periods:
            reason = "No period exceeds permuted numbers' with residues that can be read off."
            return Verdict("not_found", reason, p=self.p)
        listed, at = ", ".join(map(period_text, periods[:6])), self.hook_points[self.best]
        reason = f"Numbers have periods {listed} at {at}, with residues that can be read off."
        return Verdict("found", reason, p=self.p)

    @property
    def used(self) -> Verdict:
        if self.p > 0.05:
            return Verdict("not_applicable", "No period was found, so there is no helix to set.")
        if self.moved is None:
            return Verdict("not_applicable", f"Representation only: {self._cannot()}.")
        share = f"Setting the helix does {self.moved.text()} of what the whole stream does"
        return judge_effect(self.moved, share, "points permuted among the numbers", SMALLEST_SHARE)

    @property
    def effect(self) -> Estimate:
        return self.moved if self.moved is not None else self._best_residue

    @property
    def locations(self) -> tuple[str, ...]:
        """Hook points with a period, smallest p-value first."""
        order, bar = self.layer_p.argsort(stable=True).tolist(), 0.05 / len(self.layer_p)
        return tuple(self.hook_points[i] for i in order if float(self.layer_p[i]) <= bar)

    def answer(self) -> str:
        period = self.residues.label("period", int(self.residues.value.argmax()))
        r2 = "; ".join(f"{name} {self.r2.at(i).text()}" for i, name in enumerate(MODELS))
        return (
            f"{self.represented.reason} Of {self.n_numbers} numbers, n mod {period} of those left"
            f" out is read {self._best_residue.text()} above chance at"
            f" {self.hook_points[self.best]} ({self._best_residue.control_text()}). R2 on held-out"
            f" numbers (rank {self.rank}): {r2}."
        )

    def causal_check(self) -> str:
        if self.accuracy is None:
            return "No prompt about numbers could be put to the model, so nothing was edited."
        asked = (
            f"The model answers {self.accuracy.text()} of {self.task or 'these'} prompts right"
            " among all numbers."
        )
        if self.moved is None or self.curve is None or self.new_answers is None:
            return f"{asked} Nothing was edited: {self._cannot()}."
        at = self.best
        shares = "; ".join(f"{name} {self.curve.at(i, at).text()}" for i, name in enumerate(EDITS))
        right = "; ".join(f"{name} {self.new_answers[i, at]:.2f}" for i, name in enumerate(EDITS))
        return (
            f"{asked} At {self.hook_points[at]}, setting the number's helix to that of one it was"
            f" not fitted to moves the answer by {self.moved.text()} of what the whole stream does"
            f" ({self.moved.control_text()}). By what is set: {shares}. New answer highest of all:"
            f" {right}.{'' if self.clock is None else _clock_text(self.clock)}"
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        if self.r2.value[MODELS.index("helix")] >= self.r2.value[MODELS.index("polynomial")]:
            return self.notes
        better = "A polynomial of the same rank describes numbers better than the helix."
        return (better, *self.notes)

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        names, share = [str(n) for n in self.numbers.tolist()], "Share of the whole stream's effect"
        at = f"Numbers at {self.hook_points[self.best]}"
        shown = {
            "Residues that can be read off": plots.spectrum(
                self.residues, title="Accuracy of n mod T above chance"
            ),
            "Descriptions of held-out numbers": plots.spectrum(
                self.r2, title="R2 on held-out numbers"
            ),
            f"Numbers in the plane of period {period_text(self.drawn_period)}": plots.plane(
                self.points, names, title=at
            ),
        }
        if self.curve is not None:
            shown["Setting a number, by layer"] = plots.curve(
                self.curve, title=share, x_title="layer"
            )
        if self.moved is not None:
            shown["The helix over its null"] = plots.strip(self.moved, title=share)
        if self.clock is not None:
            shown["Heads at the last token"] = plots.heat_map(
                self.clock.heads,
                title="Total effect, logits",
                colours="diverging",
                hover={"direct": self.clock.heads_direct},
            )
            shown["Helices at the last token"] = plots.curve(
                self.clock.fits, title="R2 on held-out pairs"
            )
        return shown

    @property
    def _best_residue(self) -> Estimate:
        return self.residues.at(int(self.residues.value.argmax()), largest=True)

    def _cannot(self) -> str:
        if self.accuracy is None:
            return "no prompt about numbers could be put to the model"
        if not self.task:
            return f"the model answers only {self.accuracy.text()} of prompts about numbers"
        return "the whole stream at the number does not move the answer"


def _clock_text(clock: Clock) -> str:
    heads = "; ".join(f"{head} ({kind})" for head, kind in clock.head_types[:8]) or "none"
    built, read = (
        ", ".join(map(str, layers)) or "none" for layers in (clock.builders, clock.readers)
    )
    fits = "; ".join(
        f"{name} {float(r2.max()):.2f}" for name, r2 in zip(FITS, clock.fits.value, strict=True)
    )
    return (
        f" Clock: heads at the last token {heads}; MLPs that act through later layers {built},"
        f" directly {read}; best R2 there of helices of {fits}; periods of the unreduced sum"
        f" behind the last block: {clock.sum_periods[-1]}.{_neuron_text(clock)}"
    )


def _neuron_text(clock: Clock) -> str:
    fewest = clock.neurons_for(NEURON_SHARE)
    if not fewest:
        return " Neurons together do not raise the answer directly."
    layers = sorted({layer for layer, _ in fewest})
    return (
        f" {len(fewest)} of {clock.neuron_direct.numel()} neurons, in"
        f" block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}, bring {NEURON_SHARE:g} of"
        " the neurons' direct effect."
    )
