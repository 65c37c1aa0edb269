"""Pictures of what `successor_heads` found: scores and lift of all heads, and the one studied."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mechinterp_toolkit import plots

if TYPE_CHECKING:
    from mechinterp_toolkit.analyses.successor_heads.finding import SuccessorHeads
    from mechinterp_toolkit.analyses.successor_heads.states import ItemStates
    from mechinterp_toolkit.analyses.successor_heads.writes import HeadWrites

MOST_DRAWN = 31
"""Items of the largest class whose matrix is drawn."""


def figures(finding: SuccessorHeads) -> dict[str, Any]:
    """Return title -> figure of each number there is."""
    layer, head = finding.studied
    per_class = {name: finding.class_score[i] for i, name in enumerate(finding.classes)}
    shown = {
        "Succession score of every head": plots.heat_map(
            finding.score, title="Fraction of items mapped to their successor", hover=per_class
        ),
        f"Head {layer}.{head} and its null": plots.strip(
            finding.effect, title="The observed number over its null"
        ),
    }
    if finding.lift is not None:
        title = "Direct attribution beyond shuffled prompts"
        shown["Lift in context"] = plots.heat_map(finding.lift, title=title, colours="diverging")
    if finding.attention is not None:
        title = "Attention from the answer to the item"
        shown["Attention to the item"] = plots.heat_map(finding.attention, title=title)
    in_text = {"wins": finding.text_winning, "lowers the loss": finding.text_loss_reducing}
    for where, shares in in_text.items():
        if shares is not None:
            title = f"What head {layer}.{head} does"
            shown[f"In running text, where it {where}"] = plots.spectrum(shares, title=title)
    if finding.written is not None:
        shown |= _written(finding.written, layer, head)
    return shown | _states(finding.states)


def _written(written: HeadWrites, layer: int, head: int) -> dict[str, Any]:
    name = f"head {layer}.{head}"
    shown: dict[str, Any] = {}
    axes: dict[str, Any] = {"row_title": "item shown", "col_title": "candidate", "unit": "logits"}
    for matrix in written.matrices:
        if len(matrix.items) <= MOST_DRAWN:
            shown[f"What {name} writes for {matrix.name}"] = plots.matrix(
                matrix.logits,
                matrix.items,
                matrix.items,
                title=f"Logits {name} writes within {matrix.name}",
                colours="diverging",
                **axes,
            )
    if written.cross_class is not None:
        shown["Successors across classes"] = plots.heat_map(
            written.cross_class, title=f"Items that {name} maps to the next place of a class"
        )
    if written.order_bias is not None:
        ends = ("value", "low", "high", "control")
        own = {end: getattr(written.order_bias, end)[..., layer, head] for end in ends}
        title = f"Mean logit {name} writes to later items, minus earlier ones"
        bias = replace(written.order_bias, **own, axes=("class",))
        shown["Later against earlier items"] = plots.curve(bias, title=title)
    if written.by_distance is not None:
        shown["Logit by distance"] = plots.curve(
            written.by_distance,
            [int(label) for label in written.by_distance.labels["distance"]],
            title=f"Centred logit {name} writes",
            x_title="places after the item shown",
        )
    return shown


def _states(states: ItemStates) -> dict[str, Any]:
    over_null = {
        "Items recognised from place and class": states.factoring,
        "Successors named from place and class": states.factored_succession,
        "Exchanged residues that the head follows": states.steering,
    }
    shown = {t: plots.strip(share, title=t) for t, share in over_null.items() if share is not None}
    if states.residues is not None:
        shown["Residues of numbers"] = plots.curve(
            states.residues,
            [int(label) for label in states.residues.labels["period"]],
            title="Held-out accuracy of n mod T above 1/T",
            x_title="T",
        )
    return shown
