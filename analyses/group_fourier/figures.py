"""Pictures of a group network: its neurons' irreps and cosets, and its irreps over training."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import torch

from mechinterp_toolkit import plots
from mechinterp_toolkit.analyses.group_fourier.neurons import NeuronTable
from mechinterp_toolkit.results import Estimate

MOST_COLOURS = 5  # stabilisers with a colour of their own; the rest share one


def neuron_histogram(table: NeuronTable) -> plots.Figure:
    """Return live neurons per irrep, coloured by the left stabiliser, as a plotly figure.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network
    >>> from mechinterp_toolkit.analyses.group_fourier.neurons import neuron_table
    >>> from mechinterp_toolkit.groups import group_by_name
    >>> table = neuron_table(group_by_name("A5"), group_network("toy/a5").functions)
    >>> [bar.name for bar in neuron_histogram(table).data]
    ['A4']
    """
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
    labels = [plots.escape(table.irreps[i]) for i in shown]
    figure.update_xaxes(tickvals=list(range(len(shown))), ticktext=labels)
    return figure.update_yaxes(title_text="neurons")


def stabiliser_matrix(table: NeuronTable) -> plots.Figure:
    """Return the number of live neurons per left stabiliser and irrep, as a plotly figure.

    >>> from mechinterp_toolkit.analyses.group_fourier.network import group_network
    >>> from mechinterp_toolkit.analyses.group_fourier.neurons import neuron_table
    >>> from mechinterp_toolkit.groups import group_by_name
    >>> table = neuron_table(group_by_name("A5"), group_network("toy/a5").functions)
    >>> stabiliser_matrix(table).data[0].z.tolist()  # one stabiliser, one irrep
    [[56.0]]
    """
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


def spectrum_over_training(spectrum: Estimate, *, most: int = 6) -> plots.Figure:
    """Return the irreps of the largest shares as lines over training, each over its null.

    Args:
        spectrum: shares [step irrep], steps as labels.
        most: how many irreps.

    >>> share = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    >>> labels = {"step": ("0", "100"), "irrep": ("(3)", "(2,1)", "(1,1,1)")}
    >>> spectrum = Estimate(
    ...     share, share, share, 9, "share", "by hand", share.expand(3, 2, 3), "shuffled",
    ...     ("step", "irrep"), labels
    ... )
    >>> figure = spectrum_over_training(spectrum, most=2)
    >>> [line.name for line in figure.data if line.name][1:]
    ['(2,1)', '(3)']
    """
    shown = spectrum.value.amax(0).argsort(descending=True)[:most]
    assert spectrum.control is not None
    lines = dataclasses.replace(
        spectrum,
        value=spectrum.value[:, shown].T,
        low=spectrum.low[:, shown].T,
        high=spectrum.high[:, shown].T,
        control=spectrum.control[:, :, shown].transpose(1, 2),
        axes=("irrep", "step"),
        labels={"irrep": tuple(spectrum.label("irrep", int(i)) for i in shown)},
    )
    steps = [float(name) for name in spectrum.labels["step"]]
    return plots.curve(lines, steps, title="Irreps over training", x_title="step")


def _add_bars(
    figure: plots.Figure,
    table: NeuronTable,
    shown: Sequence[int],
    heights: Sequence[int],
    name: str,
    colour: str,
) -> None:
    hover = [
        f"{height} neurons in {plots.escape(table.irreps[i])}, {plots.escape(name)}"
        for i, height in zip(shown, heights, strict=True)
    ]
    figure.add_bar(
        x=list(range(len(shown))),
        y=heights,
        name=plots.escape(name),
        marker={"color": colour},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
    )
