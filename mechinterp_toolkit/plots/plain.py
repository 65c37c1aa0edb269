"""Pictures of plain numbers, which carry no control: what a claim rests on is an `Estimate`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.plots.look import (
    MARKERS,
    MOST_TICKS,
    NULL_LINE,
    SERIES,
    Colours,
    Figure,
    escape,
    finish,
    grid,
    on_cpu,
    ticks,
)


def matrix(
    values: Float[Tensor, "row column"],
    row_labels: Sequence[str],
    col_labels: Sequence[str],
    *,
    title: str,
    row_title: str = "",
    col_title: str = "",
    unit: str = "",
    colours: Colours = "sequential",
) -> Figure:
    """Draw a table of numbers, such as a group's answers; small ones show their numbers.

    Raises:
        ResultError: the labels do not fit the values.
    """
    if (len(row_labels), len(col_labels)) != tuple(values.shape):
        raise ResultError(
            f"{len(row_labels)} row and {len(col_labels)} column labels for values of shape"
            f" {tuple(values.shape)}."
        )
    table, row_name, col_name = on_cpu(values), row_title or "row", col_title or "column"
    texts = [
        [
            f"{escape(row_name)} {escape(row)}<br>{escape(col_name)} {escape(column)}<br>"
            f"<b>{number:.3g}</b> {escape(unit)}"
            for column, number in zip(col_labels, numbers, strict=True)
        ]
        for row, numbers in zip(row_labels, table.tolist(), strict=True)
    ]
    return grid(
        table,
        texts,
        ticks(row_labels, row_title),
        ticks(col_labels, col_title),
        title=title,
        unit=unit,
        colours=colours,
        numbers=max(table.shape, default=0) <= 12,
    )


def plane(
    points: Float[Tensor, "point 2"],
    labels: Sequence[str],
    *,
    title: str,
    order: Sequence[str] = (),
) -> Figure:
    """Draw points of a plane, one colour and marker a label, each written at its points' mean.

    Args:
        points: coordinates; both axes have the same scale, so that a circle looks like one.
        labels: one per point.
        order: labels in the order in which a thin line joins their means; none is joined by
            default.

    Raises:
        ResultError: the labels do not fit the points, or `order` names one that no point has.
    """
    if len(labels) != len(points):
        raise ResultError(f"got {len(labels)} labels for {len(points)} points; give one each.")
    missing = [name for name in order if name not in labels]
    if missing:
        raise ResultError(
            f"no point has the label {missing[0]!r}; `order` names labels of the points."
        )
    import plotly.graph_objects as go

    at, names = on_cpu(points), list(dict.fromkeys([*order, *labels]))
    rows = {name: [i for i, label in enumerate(labels) if label == name] for name in names}
    means = {name: at[rows[name]].mean(0).tolist() for name in names}
    figure = go.Figure()
    if order:
        x, y = zip(*(means[name] for name in order), strict=True)
        line = {"color": NULL_LINE, "width": 1}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")
    for i, name in enumerate(names):
        look = {"color": SERIES[i % len(SERIES)], "symbol": MARKERS[i % len(MARKERS)]}
        figure.add_scatter(
            x=at[rows[name], 0].numpy(),
            y=at[rows[name], 1].numpy(),
            mode="markers",
            marker={**look, "size": 6, "opacity": 0.7},
            hovertemplate=f"{escape(name)}<br>%{{x:.3g}}, %{{y:.3g}}<extra></extra>",
        )
    if len(names) <= MOST_TICKS:
        for name, (x, y) in means.items():
            figure.add_annotation(
                x=x, y=y, text=escape(name), showarrow=False, yshift=12, font={"size": 12}
            )
    finish(figure, title, height=460, hovermode="closest", showlegend=False)
    figure.update_xaxes(title_text="first coordinate", zeroline=False)
    return figure.update_yaxes(title_text="second coordinate", zeroline=False, scaleanchor="x")
