"""What `circular_features` answers with: its numbers, its verdicts, and what a reader sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry.circle import power
from mechinterp_toolkit.geometry.closure import CLOSURE, closure_text
from mechinterp_toolkit.nulls import why_undecided
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import judge_p

EDITS = (
    "set the circle",
    "keep only the circle",
    "remove the circle",
    "set two components",
    "set the whole stream",
)
"""What is done to the stream at the items, in this order."""

LEFT = 0.9
"""Share of the right answers that removing the circle leaves, from which on they are said not to
need it."""


@dataclass(frozen=True)
class ClassCircle:
    """One class of items."""

    name: str
    """Name of the class."""

    items: tuple[str, ...]
    """Its words, in order."""

    accuracy: float
    """Share of its prompts whose right answer has the highest logit of the class, in [0, 1]."""

    hook_point: str
    """Where its order is held best."""

    p: float
    """p-value of the order there, corrected for all layers and classes."""

    order: str
    """The candidate order that fits best."""

    closure_low: float
    """Lower end of the 95 % interval of closure; at -5 there is none to speak of, see `closure_of`.
    """

    closure_high: float
    """Upper end."""

    linear: float
    """Held-out R2 of the item's index on a line, at most 1."""

    transfer: Estimate
    """Mean cosine of the angles' error in a template the circle was not fitted to, in [-1, 1], 1
    being no error; control: items permuted. A token that all templates share is enough for it: no
    evidence of a circle."""

    points: Float[Tensor, "item 2"]
    """The items in the plane, in units of the activations."""

    moved: Estimate | None
    """Set the circle: rise of the new answer's logit over the old one's, in shares of what the
    whole stream does."""

    edits: Float[Tensor, " edit"]
    """Accuracy under each of `edits.EDITS`: of the new answer where something is set, of the old
    one where not. Empty where nothing was edited; `by_edit` reads it."""

    accuracies: Float[Tensor, " template"] | None = None
    """The same as `accuracy` by template; in the task "b from a" by b, from 1."""

    regression: Estimate | None = None
    """Held-out R2 that features of a and b gain at the last token, [feature group, hook point], in
    [0, 1]; of the task "b from a" alone; control: prompts permuted."""

    arrangements: int | None = None
    """Permutations of the items there are, those that always score alike counted once; None in
    results of older versions."""

    @property
    def is_ring(self) -> bool | None:
        """Whether the order closes; None where the interval of closure leaves it open."""
        if self.closure_low > CLOSURE:
            return True
        return False if self.closure_high < CLOSURE else None

    @property
    def p_used(self) -> float | None:
        """p-value of the edit against permuted points."""
        return None if self.moved is None else float(self.moved.p())

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / len(self.items)

    @property
    def by_edit(self) -> dict[str, float]:
        """Accuracy under each of `EDITS`."""
        return dict(zip(EDITS, self.edits.tolist(), strict=True))


@dataclass(frozen=True)
class CircularFeatures(Finding):
    """Result of `circular_features`."""

    circles: tuple[ClassCircle, ...]
    """One entry per class, smallest p-value first."""

    order: Estimate
    """Held-out R2 of the angle, [class, hook point], at most 1; control: items permuted, best
    candidate order."""

    closure: Estimate
    """Closure of the natural order, [class, hook point]; 1 for a regular ring, -5 where there is
    none to speak of."""

    explained: Estimate
    """Share of the variance between items at the position that answers, [class, hook point,
    harmonic], in [0, 1]: what the answer's position says of the item, block by block, as circles of
    the first three harmonics; control: items permuted."""

    notes: tuple[str, ...]
    """Items dropped, classes left out."""

    task: str = "next"
    """What was asked."""

    draws: int | None = None
    """Permutations behind the p-values, or all there are where these are fewer; None in results of
    older versions."""

    @property
    def found(self) -> tuple[ClassCircle, ...]:
        """Classes whose order is represented."""
        return tuple(circle for circle in self.circles if circle.p <= 0.05)

    @property
    def represented(self) -> Verdict:
        best = self.circles[0]
        chance = power(len(best.items), 0.3, searched=True)
        short = self._too_few_draws()
        if not self.found and short:
            return Verdict("undecided", short, p=best.p)
        if not self.found:
            reason = (
                f"{best.name} at {best.hook_point}: the order is no better held than permuted ones."
            )
            return Verdict("not_found", reason, p=best.p, power=chance)
        words = {
            True: "a ring",
            False: "in order, but open",
            None: "in order; whether it closes is undecided",
        }
        classes = (f"{c.name} are {words[c.is_ring]} ({c.hook_point})" for c in self.found)
        return Verdict("found", f"{'; '.join(classes)}.", p=best.p, power=chance)

    @property
    def ring(self) -> Verdict:
        """Whether a represented order also closes."""
        if self.represented.outcome == "undecided":
            return Verdict("undecided", "Whether there is an order that could close is undecided.")
        if not self.found:
            return Verdict("not_applicable", "No order was found, so there is none to close.")
        closed = [circle.name for circle in self.found if circle.is_ring]
        if closed:
            return Verdict("found", f"{', '.join(closed)} close to a ring.")
        if any(circle.is_ring is None for circle in self.found):
            reason = "Ordered, not shown closed: the interval of closure reaches one half."
            return Verdict("undecided", reason)
        return Verdict("not_found", "Ordered, and open: closure lies below one half.")

    @property
    def used(self) -> Verdict:
        moved = {c.name: c.moved for c in self.found if c.moved is not None}
        if not moved:
            reason = "No order was found, or the model cannot be asked, so nothing was edited."
            return Verdict("not_applicable", reason)
        shares = (
            f"setting the circle of {name} does {share.text()} of the whole stream"
            for name, share in moved.items()
        )
        p = min(1.0, min(float(share.p()) for share in moved.values()) * len(moved))
        return judge_p(p, "; ".join(shares), "permuted points")

    @property
    def effect(self) -> Estimate | None:
        return self.circles[0].moved or self._best_order()

    @property
    def estimates(self) -> dict[str, Estimate]:
        by_class = {
            f"{name} {circle.name}": getattr(circle, name)
            for name in ("moved", "regression", "transfer")
            for circle in self.circles
        }
        measured = {name: value for name, value in by_class.items() if value is not None}
        return super().estimates | measured

    @property
    def locations(self) -> tuple[str, ...]:
        return tuple(circle.name for circle in self.found)

    def answer(self) -> str:
        r2, best = self._best_order(), self.circles[0]
        text = (
            f"The angle of {best.name} is predicted from the other {len(best.items) - 1} with R2 ="
            f" {r2.text()} at {best.hook_point} ({best.order} order; {r2.control_text()}),"
            f" {closure_text(best.closure_low, best.closure_high)}. In a template left out of the"
            f" fit, the mean cosine of the angles' error is {best.transfer.text()}, 1 being no"
            f" error ({best.transfer.control_text()}): how far items stand in the same places in"
            " other prompts, for which the token they share is enough, circle or none."
        )
        if self.task == "b from a":
            text = " ".join([text, *(_regression_text(circle) for circle in self.circles)])
        verdict = self.represented
        if verdict.outcome == "not_found":
            known = (
                ""
                if verdict.power is None
                else f" A circle of share .3 would be found in {verdict.power:.2f} of cases."
            )
            text = f"No class is held in its order. {text}{known}"
        else:
            text = f"{verdict.reason} {text}"
        return text if self.task == "next" else f"{self._accuracy_text()} {text}"

    def causal_check(self) -> str:
        text = self._accuracy_text()
        for circle in self.found:
            if circle.moved is not None:
                right = {name: f"{accuracy:.2f}" for name, accuracy in circle.by_edit.items()}
                text += (
                    f" At {circle.hook_point}, setting the plane of {circle.name} to another item's"
                    f" point moves the answer {circle.moved.text()} of what the whole stream does"
                    f" ({circle.moved.control_text()}). The new answer is then right in"
                    f" {right['set the circle']}, with two principal components"
                    f" {right['set two components']}, with the whole stream"
                    f" {right['set the whole stream']}; the circle alone leaves"
                    f" {right['keep only the circle']} of the old answers, its removal"
                    f" {right['remove the circle']}."
                )
        return text

    @property
    def caveats(self) -> tuple[str, ...]:
        few = [c.name for c in self.found if len(c.items) < 9 and c.is_ring is None]
        note = f"{', '.join(few)}: with so few items, closure is often undecided."
        lines = (
            f"{circle.name}: a line explains {circle.linear:.2f} of the index as well."
            for circle in self.found
            if circle.linear > 0.5
        )
        lost = (
            f"{circle.name}: answers are hardly better than chance, so an edit has few right ones"
            " to move."
            for circle in self.circles
            if circle.accuracy < 2 * circle.chance
        )
        return (*([note] if few else []), *lines, *self._not_needed(), *lost, *self.notes)

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        shown: dict[str, Any] = {
            "Order by layer": plots.heat_map(self.order, title="Held-out R2 of the angle")
        }
        for circle in self.circles:
            name, items = circle.name, circle.items
            shown[f"{name} at {circle.hook_point}"] = plots.plane(
                circle.points, items, title=f"Means of {name}", order=(*items, items[0])
            )
            if circle.moved is not None:
                shown[f"Setting the circle of {name}"] = plots.strip(
                    circle.moved, title="Share of the whole stream's effect"
                )
            if circle.regression is not None:
                shown[f"What the last token holds of {name}"] = plots.curve(
                    circle.regression, title=f"What features of {name} add, group by group"
                )
        shown["Order and its null"] = plots.strip(
            self._best_order(), title="Held-out R2 over permuted items"
        )
        return shown

    def _best_order(self) -> Estimate:
        best = self.circles[0]
        place: dict[str, Any] = {"class": best.name, "hook point": best.hook_point}
        return replace(self.order.at(largest=True, **place), n=len(best.items))

    def _accuracy_text(self) -> str:
        asked = {circle.name: f"{circle.accuracy:.2f} of {circle.name}" for circle in self.circles}
        task = "what comes next" if self.task == "next" else "b from a"
        if self.task == "b from a":
            for circle in self.circles:
                by_b = () if circle.accuracies is None else circle.accuracies.tolist()
                asked[circle.name] += (
                    f" (chance {circle.chance:.2f}; for b = 1, 2, ...:"
                    f" {' '.join(f'{accuracy:.2f}' for accuracy in by_b)})"
                )
        return (
            f"Of prompts that ask for {task} the model answers {', '.join(asked.values())} right"
            " within the class."
        )

    def _not_needed(self) -> list[str]:
        """Of circles that move the answers when set, those whose removal leaves the answers."""
        said = []
        for circle in self.found:
            if circle.p_used is None or circle.p_used > 0.05:
                continue
            without, of_new = (circle.by_edit[f"{verb} the circle"] for verb in ("remove", "set"))
            if without >= LEFT * circle.accuracy:
                said.append(
                    f"{circle.name}: the circle moves the answers when it is set, but they do not"
                    f" need it: with it removed {without:.2f} of the old answers are right, and set"
                    f" to another item's point it makes the new answer right in {of_new:.2f}"
                    f" (chance {circle.chance:.2f})."
                )
        return said

    def _too_few_draws(self) -> str | None:
        """Why some class could not have passed its share of the level; None where all could."""
        for circle in self.circles:
            if self.draws is None or circle.arrangements is None:
                continue
            short = why_undecided(self.draws, circle.arrangements, n_tests=len(self.circles))
            if short:
                return f"{circle.name}: {short}"
        return None


def _regression_text(circle: ClassCircle) -> str:
    """What each group of features gains behind the last block."""
    if circle.regression is None:
        return ""
    groups, points = (circle.regression.labels[axis] for axis in circle.regression.axes)
    gained = [circle.regression.at(i, -1) for i in range(len(groups))]
    listed = ", ".join(f"{name} {gain.text()}" for name, gain in zip(groups, gained, strict=True))
    controls = [gain.control for gain in gained if gain.control is not None]
    most = max(float(control.double().quantile(0.95)) for control in controls)
    return (
        f"At the last token's {points[-1]}, R2 of {circle.name} grows by {listed}; with prompts"
        f" permuted by {most:.2g} at most (95 %)."
    )
