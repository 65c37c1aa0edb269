"""Pictures of a group network: its neurons' irreps and cosets, and its irreps over training."""

from __future__ import annotations

import dataclasses
from collections import Counter

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

    irreps, names, counts = _counted(table)
    bars = [(name, [counts[name, i] for i in irreps]) for name in names[:MOST_COLOURS]]
    if rest := names[MOST_COLOURS:]:
        heights = [sum(counts[name, i] for name in rest) for i in irreps]
        bars.append((f"{len(rest)} others", heights))
    figure, labels = go.Figure(), [plots.escape(table.irreps[i]) for i in irreps]
    for (name, heights), colour in zip(bars, plots.SERIES, strict=False):
        figure.add_bar(
            x=list(range(len(irreps))),
            y=heights,
            name=plots.escape(name),
            marker={"color": colour},
            hovertext=[f"{n} neurons in {at}" for n, at in zip(heights, labels, strict=True)],
            hovertemplate="%{hovertext}, %{fullData.name}<extra></extra>",
        )
    figure.update_layout(
        title="Live neurons by irrep, coloured by the subgroup they are constant on",
        template=plots.template(),
        barmode="stack",
    )
    figure.update_xaxes(tickvals=list(range(len(irreps))), ticktext=labels)
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
    irreps, names, counts = _counted(table)
    values = torch.tensor([[float(counts[name, i]) for i in irreps] for name in names])
    return plots.matrix(
        values,
        names,
        [table.irreps[i] for i in irreps],
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


def _counted(table: NeuronTable) -> tuple[list[int], list[str], Counter[tuple[str, int]]]:
    """Irreps that occur, left stabilisers from the most common on, and neurons that have both."""
    counts = Counter(zip(table.stabilisers[0], table.irrep.tolist(), strict=True))
    names = [name for name, _ in Counter(table.stabilisers[0]).most_common()]
    return sorted(set(table.irrep.tolist())), names, counts
