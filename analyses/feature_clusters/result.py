"""What `feature_clusters` answers with: its numbers, its verdicts, and what a reader sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.nulls import why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import judge_p

# More than half of the points on one line is a mixture, whatever the rest does.
MOST_MIXTURE = 0.5


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
        more = f" and {len(self.latents) - 12} more" if len(self.latents) > 12 else ""
        return f"latents {', '.join(map(str, self.latents[:12]))}{more}"

    @property
    def p(self) -> float:
        """The larger of its p-values: both have to be small."""
        return max(self.p_flat, self.p_dependent)

    @property
    def found(self) -> bool:
        """Whether it is a feature of two dimensions."""
        return self.p <= 0.05 and self.mixture < MOST_MIXTURE

    @property
    def rank(self) -> tuple[bool, float, float]:
        """What clusters are ordered by; the last digits of a score are the order of its sums."""
        return not self.found, self.p, -round(self.score, 9)


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
        if not self.clusters:
            reason = (
                f"None of the {self.n_groups} groups has latents enough that fire: there is no"
                " plane to judge."
            )
            return Verdict("not_applicable", reason)
        best = self.clusters[0]
        if short := why_undecided(self.draws):
            return Verdict("undecided", short, p=best.p)
        why = "no flatter than random directions"
        if best.found:
            why = "flatter than random directions and irreducible"
        elif best.p <= 0.05:
            why = "most of its points lie on one line, a mixture"
        elif best.p_flat <= 0.05:
            why = "its coordinates do not depend on each other"
        reason = (
            f"{best.name}: flatness {best.flatness:.2f}, S {best.separability:.2f} bits, M"
            f" {best.mixture:.2f}: {why}."
        )
        return Verdict("found" if best.found else "not_found", reason, p=best.p)

    @property
    def used(self) -> Verdict:
        if not self.locations:
            return Verdict("not_applicable", "No plane was found, so there is none to edit.")
        if self.moved is None:
            reason = "The plane could not be edited: see what this run cannot say."
            return Verdict("not_applicable", reason)
        measured = (
            f"setting the plane takes the logits {self.moved.text()} of the way to the other"
            " token's"
        )
        control = f"permuted ({self.moved.control_text()})"
        return judge_p(float(self.moved.p()), measured, control)

    @property
    def effect(self) -> Estimate | None:
        return self.moved or self.flatness

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
            f"{best.name} (at {', '.join(map(repr, best.items[:7]))}) are active at {best.active}"
            f" tokens. Of the variance of what they write there together{earlier}, a share of"
            f" {self.flatness.text()} lies in the plane of principal components {best.plane} and"
            f" {best.plane + 1} ({self.flatness.control_text()}). In this plane S ="
            f" {best.separability:.2f} bits and M = {best.mixture:.2f}."
        )
        if others < 0:
            return f"No irreducible plane among {len(self.clusters)} groups. The best: {text}"
        return text + (f" Other groups that pass: {others}." if others else "")

    def causal_check(self) -> str:
        if self.moved is None:
            return "No plane was found, or it has too few tokens, so nothing was edited."
        return (
            f"At {self.hook_point}, at the last of 16 tokens, the coordinates of each of"
            f" {self.moved.n} tokens in the plane of {self.clusters[0].name} were set to those of"
            f" each other one. The logits went {self.moved.text()} of the way to those of the other"
            f" token in its place; as a control {self.moved.control_text()}."
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            f"The groups come from {self.autoencoder}; what it does not encode cannot be found.",
            *self.notes,
        )

    def rows(self) -> list[dict[str, Any]]:
        numbers = ("flatness", "p_flat", "p_dependent", "separability", "mixture")
        table = [
            {"estimate": "cluster", "value": cluster.score, "cluster": cluster.name}
            | {
                column: getattr(cluster, column)
                for column in ("found", "active", "plane", *numbers)
            }
            | {"items": " ".join(cluster.items)}
            for cluster in self.clusters
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
