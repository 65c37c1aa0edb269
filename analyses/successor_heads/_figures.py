"""Pictures of what `successor_heads` found: scores and lift of all heads, and the one studied."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mechinterp_toolkit import plots
from mechinterp_toolkit.results import Estimate

if TYPE_CHECKING:
    from mechinterp_toolkit.analyses.successor_heads.finding import SuccessorHeads
    from mechinterp_toolkit.analyses.successor_heads.writes import HeadWrites

MOST_DRAWN = 31
"""Items of the largest class whose matrix is drawn."""


def figures(finding: SuccessorHeads) -> dict[str, Any]:
    """Return title -> figure of each number there is."""
    name, states = f"head {finding.score.place(*finding.studied)}", finding.states
    per_class = {name: finding.class_score[i] for i, name in enumerate(finding.classes)}
    what = f"What {name} does"
    shown = {
        "Succession score of every head": plots.heat_map(
            finding.score, title="Fraction of items mapped to their successor", hover=per_class
        ),
        f"{name.capitalize()} and its null": plots.strip(
            finding.effect, title="The observed number over its null"
        ),
    }
    if finding.lift is not None:
        title = "Direct attribution beyond shuffled prompts"
        shown["Lift in context"] = plots.heat_map(finding.lift, title=title, colours="diverging")
    shown |= _drawn(
        {
            "Attention to the item": (finding.attention, "Attention from the answer to the item"),
            "In running text, where it wins": (finding.text_winning, what),
            "In running text, where it lowers the loss": (finding.text_loss_reducing, what),
        }
    )
    if finding.written is not None:
        shown |= _written(finding.written, finding.studied, name)
    return shown | _drawn(
        {
            "Items recognised from place and class": (states.factoring, "Items recognised"),
            "Successors named from place and class": (states.factored_succession, "Items named"),
            "Exchanged residues that the head follows": (states.steering, "Exchanges followed"),
            "Residues of numbers": (states.residues, "Held-out accuracy of n mod T above 1/T"),
        }
    )


def _drawn(estimates: dict[str, tuple[Estimate | None, str]]) -> dict[str, Any]:
    """Name -> picture of each estimate there is, under its title."""
    return {
        name: plots.picture(estimate, title=title)
        for name, (estimate, title) in estimates.items()
        if estimate is not None
    }


def _written(written: HeadWrites, head: tuple[int, int], name: str) -> dict[str, Any]:
    axes: dict[str, Any] = {"row_title": "item shown", "col_title": "candidate", "unit": "logits"}
    shown: dict[str, Any] = {
        f"What {name} writes for {matrix.name}": plots.matrix(
            matrix.logits,
            matrix.items,
            matrix.items,
            title=f"Logits {name} writes within {matrix.name}",
            colours="diverging",
            **axes,
        )
        for matrix in written.matrices
        if len(matrix.items) <= MOST_DRAWN
    }
    across = f"Items that {name} maps to the next place of a class"
    shown |= _drawn({"Successors across classes": (written.cross_class, across)})
    if written.order_bias is not None:
        ends = ("value", "low", "high", "control")
        own = {end: getattr(written.order_bias, end)[..., head[0], head[1]] for end in ends}
        title = f"Mean logit {name} writes to later items, minus earlier ones"
        bias = replace(written.order_bias, **own, axes=("class",))
        shown["Later against earlier items"] = plots.curve(bias, title=title)
    if written.by_distance is not None:
        title = f"Centred logit {name} writes so many places after the item shown"
        shown["Logit by distance"] = plots.curve(written.by_distance, title=title)
    return shown
