"""Pictures of the neurons of a group network: which irreps, coloured by coset; which stabilisers go
with which irreps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from mechinterp_toolkit import plots
from mechinterp_toolkit.analyses.group_fourier.neurons import NeuronTable

MOST_COLOURS = 5  # stabilisers with a colour of their own; the rest share one


def neuron_histogram(table: NeuronTable) -> Any:
    """Return a bar chart of live neurons per irrep, coloured by the left stabiliser, as a plotly
    figure."""
    import plotly.graph_objects as go

    counts = Counter(zip(table.irrep.tolist(), table.stabilisers[0], strict=True))
    shown = sorted(set(table.irrep.tolist()))
    names = [name for name, _ in Counter(table.stabilisers[0]).most_common()]
    figure = go.Figure()
    for n, name in enumerate(names[:MOST_COLOURS]):
        _add_bars(figure, table, shown, [counts[i, name] for i in shown], name, plots.SERIES[n])
    rest = names[MOST_COLOURS:]
    if rest:
        others = [sum(counts[i, name] for name in rest) for i in shown]
        _add_bars(figure, table, shown, others, f"{len(rest)} others", plots.SERIES[-1])
    figure.update_layout(
        title="Live neurons by irrep, coloured by the subgroup they are constant on",
        template=plots.template(),
        barmode="stack",
    )
    figure.update_xaxes(
        tickvals=list(range(len(shown))), ticktext=[plots.escape(table.irreps[i]) for i in shown]
    )
    return figure.update_yaxes(title_text="neurons")


def stabiliser_matrix(table: NeuronTable) -> Any:
    """Return the number of live neurons per left stabiliser and irrep, as a plotly figure."""
    shown = sorted(set(table.irrep.tolist()))
    names = [name for name, _ in Counter(table.stabilisers[0]).most_common()]
    counts = Counter(zip(table.stabilisers[0], table.irrep.tolist(), strict=True))
    values = torch.tensor([[float(counts[name, i]) for i in shown] for name in names])
    return plots.matrix(
        values,
        names,
        [table.irreps[i] for i in shown],
        title="Live neurons by left stabiliser and irrep",
        row_title="stabiliser",
        col_title="irrep",
        unit="neurons",
    )


def _add_bars(
    figure: Any, table: NeuronTable, shown: list[int], heights: list[int], name: str, colour: str
) -> None:
    figure.add_bar(
        x=list(range(len(shown))),
        y=heights,
        name=plots.escape(name),
        marker={"color": colour},
        hovertext=[
            f"{h} neurons in {plots.escape(table.irreps[i])}, {plots.escape(name)}"
            for i, h in zip(shown, heights, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
