"""How do the numbers look beside their null? Small functions from an `Estimate` to a plotly figure.

Every picture draws the control into the same axes as the observed value, never beside it, and says
both in its hover text. Backgrounds are transparent and colours are mid-tones that read on white and
on black, so one figure serves a notebook and both themes of the report. Every label is escaped:
names and tokens come from checkpoints.

Labels are drawn as tick texts on numeric axes, because plotly merges equal categories and reads "1"
as a number.

Source of the palette: Okabe & Ito 2008, Color Universal Design, darkened until each colour reads on
white; series differ in dash and marker too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.results import Estimate

Figure: TypeAlias = Any
"""A `plotly.graph_objects.Figure`; plotly is imported where a figure is drawn, and not before."""

Colours = Literal["sequential", "diverging"]

OBSERVED = "#2b7fc9"
NULL = "rgba(128, 136, 148, 0.38)"
NULL_LINE = "rgba(128, 136, 148, 0.9)"
SERIES = (OBSERVED, "#d55e00", "#00936b", "#a862a0", "#b07d00", "#7a828e")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
INK = "#76808d"
GRID = "rgba(128, 136, 148, 0.22)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

SCALES: Mapping[Colours, list[list[Any]]] = {
    "sequential": [
        [0.0, "#00204d"],
        [0.25, "#35466b"],
        [0.5, "#7c7b78"],
        [0.75, "#bcaf6f"],
        [1.0, "#ffea46"],
    ],
    "diverging": [[0.0, "#1b6cb5"], [0.5, "#eceef1"], [1.0, "#d2600a"]],
}
"""Cividis (Nuñez et al. 2018), and a blue-orange scale whose middle the report darkens in its dark
theme."""

_MOST_TICKS = 32
_FOREIGN_TAG = re.compile(r"<(?!/?(?:b|i|br|sub|sup|extra)/?>)")


def escape(text: object) -> str:
    """Return `text` so that plotly shows it as it is: no tags, no entities, no invisible line
    breaks."""
    visible = str(text).replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return html.escape(visible, quote=False)


def without_foreign_tags(text: str) -> str:
    """Return plotly text in which every tag is escaped but `b`, `i`, `br`, `sub`, `sup` and
    `extra`."""
    return _FOREIGN_TAG.sub("&lt;", text)


def picture(estimate: Estimate, *, title: str) -> Figure | None:
    """Draw an estimate in the way its number of axes asks for: `strip`, `spectrum`, `heat_map`.

    Returns:
        None where there is no such way: three axes or more, no value, or a scalar without control.
    """
    axes = estimate.value.dim() if estimate.value.numel() else None
    if axes == 2:
        return heat_map(estimate, title=title)
    if axes == 1:
        return spectrum(estimate, title=title)
    return strip(estimate, title=title) if axes == 0 and estimate.control is not None else None


def heat_map(
    estimate: Estimate,
    *,
    title: str,
    axes: tuple[str, str] | None = None,
    hover: Mapping[str, Any] | None = None,
    colours: Colours = "sequential",
) -> Figure:
    """Draw an estimate with two axes as a grid; a dot marks each cell beyond the null's largest
    value.

    The dot's threshold is the 95th percentile, over control draws, of the largest cell of a draw
    (of the largest magnitude where `colours` is "diverging"), so it is corrected for looking at
    every cell.

    Args:
        axes: (rows, columns) by name; the estimate's own order by default.
        hover: further lines of the hover text, name -> one value per cell in the estimate's own
            order of axes.
        colours: "diverging" centres the scale at 0 and treats both signs alike.

    Raises:
        ResultError: the estimate does not have two axes, or `axes` or `hover` do not fit it.
    """
    import plotly.graph_objects as go

    rows, columns = _two_axes(estimate, axes)
    flip = (rows, columns) != estimate.axes
    value, texts = _cpu(estimate.value), _hover_texts(estimate, hover)
    value, texts = (value.T, _transposed(texts)) if flip else (value, texts)
    figure = go.Figure(
        go.Heatmap(
            z=value.numpy(),
            hovertext=texts,
            hovertemplate="%{hovertext}<extra></extra>",
            **_colour_axis(value, colours),
        )
    )
    _add_unit(figure, estimate.unit)
    beyond = _beyond_null(estimate, colours)
    if beyond is not None:
        mask, text = beyond
        _add_dots(figure, mask.T if flip else mask, text)
    _finish(
        figure, title, height=min(680, max(260, 24 * value.shape[0] + 150)), hovermode="closest"
    )
    figure.update_xaxes(**_ticks(estimate, columns), showgrid=False, zeroline=False)
    figure.update_yaxes(
        **_ticks(estimate, rows), showgrid=False, zeroline=False, autorange="reversed"
    )
    return figure


def spectrum(estimate: Estimate, *, title: str, hover: Mapping[str, Any] | None = None) -> Figure:
    """Draw an estimate with one axis as bars with 95 % intervals over the control's band.

    The wide grey band holds the middle 95 % of the control's draws of each bar; the dotted line is
    the value that 95 % of draws keep every bar below (drawn where there is more than one bar).

    Raises:
        ResultError: the estimate does not have exactly one axis, or `hover` does not fit it.
    """
    import plotly.graph_objects as go

    _need_axes(estimate, 1, "spectrum")
    value, at = _cpu(estimate.value), list(range(estimate.value.numel()))
    figure = go.Figure()
    if estimate.control is not None and at:
        low, high = _band(estimate.control)
        figure.add_bar(
            x=at, y=high - low, base=low, width=0.86, name=_null_name(estimate), hoverinfo="skip"
        )
        figure.update_traces(marker={"color": NULL, "line": {"width": 0}})
        if len(at) > 1:
            level = _cpu(estimate.control).flatten(1).amax(1).quantile(0.95).item()
            _add_level(figure, len(at), level, "95 % of draws keep every bar below")
    figure.add_bar(
        x=at,
        y=value.numpy(),
        width=0.5,
        name="observed, 95 % interval",
        marker={"color": OBSERVED, "line": {"width": 0}},
        error_y=_error_bars(estimate, visible=len(at) <= 4 * _MOST_TICKS),
        hovertext=_hover_texts(estimate, hover),
        hovertemplate="%{hovertext}<extra></extra>",
    )
    _finish(figure, title, height=360, barmode="overlay")
    figure.update_xaxes(**_ticks(estimate, estimate.axes[0]), showgrid=False)
    return figure.update_yaxes(title_text=escape(estimate.unit), rangemode="tozero")


def strip(
    observed: Estimate,
    control: Float[Tensor, " draw"] | None = None,
    *,
    title: str,
    control_name: str = "",
) -> Figure:
    """Draw one observed number with its interval over the histogram of its null.

    Args:
        observed: a scalar estimate.
        control: draws of the same statistic; those of `observed` by default.
        control_name: what the draws destroyed; needed with `control`.

    Raises:
        ResultError: `observed` is not a scalar, or there are no draws to compare it with.
    """
    import plotly.graph_objects as go

    _need_axes(observed, 0, "strip")
    draws = observed.control if control is None else control
    if draws is None or draws.numel() == 0:
        raise ResultError(
            "strip draws a number over its null, and this estimate has no control; give"
            " control=draws."
        )
    draws, value = _cpu(draws).flatten(), observed.value.item()
    name = escape(control_name or observed.control_name or "control")
    beyond = f"95 % of draws below {draws.quantile(0.95).item():.3g}"
    figure = go.Figure(
        go.Histogram(
            x=draws.numpy(),
            nbinsx=min(60, max(10, draws.numel() // 10)),
            name=f"control, {draws.numel()} draws, dotted: {beyond}",
            marker={"color": NULL, "line": {"width": 0}},
            hovertemplate=f"%{{y}} draws in %{{x}}<br>{name}<br>{beyond}<extra></extra>",
        )
    )
    figure.add_vline(
        x=draws.quantile(0.95).item(), line={"color": NULL_LINE, "width": 1.5, "dash": "dot"}
    )
    figure.add_vrect(
        x0=observed.low.item(),
        x1=observed.high.item(),
        fillcolor=OBSERVED,
        opacity=0.16,
        line_width=0,
    )
    figure.add_vline(x=value, line={"color": OBSERVED, "width": 2.5})
    figure.add_scatter(
        x=[value],
        y=[0],
        mode="markers",
        marker={"color": OBSERVED, "size": 11, "symbol": "diamond"},
        error_x={  # shapes do not widen an axis, error bars do
            "symmetric": False,
            "array": [observed.high.item() - value],
            "arrayminus": [value - observed.low.item()],
            "color": OBSERVED,
        },
        name="observed, 95 % interval",
        hovertext=[f"observed {escape(observed.text())} {escape(observed.unit)}<br>{beyond}"],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    _finish(figure, title, height=300, bargap=0.04)
    figure.update_xaxes(title_text=escape(observed.unit), zeroline=False)
    return figure.update_yaxes(title_text="draws", rangemode="tozero")


def curve(
    estimate: Estimate,
    x: Sequence[float | int] | Float[Tensor, " point"] | Int[Tensor, " point"] | None = None,
    *,
    title: str,
    x_title: str = "",
    log_x: bool = False,
) -> Figure:
    """Draw an estimate along its last axis as a line with its interval, over the ribbon of its
    null.

    With two axes, one line per position on the first. The grey ribbon holds the middle 95 % of the
    control's draws.

    Args:
        x: position of each point; 0, 1, 2, ... with the axis' labels by default.
        x_title: title of the x axis; the axis' name by default.

    Raises:
        ResultError: the estimate has no axis or more than two, or `x` does not have one position
            per point.
    """
    if estimate.value.dim() not in (1, 2):
        raise ResultError(
            f"curve draws one or two axes, and this estimate has {estimate.axes}; take a slice"
            " of it."
        )
    import plotly.graph_objects as go

    points = estimate.value.shape[-1]
    at = [float(v) for v in (range(points) if x is None else x)]
    if len(at) != points:
        raise ResultError(
            f"x has {len(at)} positions for {points} points along {estimate.axes[-1]!r}."
        )
    figure = go.Figure()
    lines = estimate.value.shape[0] if estimate.value.dim() == 2 else 1
    _add_null_ribbon(figure, estimate, at)
    for line in range(lines):
        _add_line(figure, estimate, at, line, alone=lines == 1)
    _finish(figure, title, height=380, hovermode="closest")
    axis = estimate.axes[-1]
    figure.update_xaxes(
        **(_ticks(estimate, axis) if x is None else {}), type="log" if log_x else "linear"
    )
    figure.update_xaxes(title_text=escape(x_title or axis))
    return figure.update_yaxes(title_text=escape(estimate.unit))


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
    """Draw a plain table of numbers, such as answers of a group or a confusion; small ones show
    their numbers.

    A matrix carries no control: draw an `Estimate` with `heat_map` wherever a claim rests on it.

    Raises:
        ResultError: the labels do not fit the values.
    """
    import plotly.graph_objects as go

    if (len(row_labels), len(col_labels)) != tuple(values.shape):
        raise ResultError(
            f"{len(row_labels)} row and {len(col_labels)} column labels for values of shape"
            f" {tuple(values.shape)}."
        )
    table = _cpu(values)
    texts = [
        [
            f"{escape(row_title or 'row')} {escape(row)}<br>{escape(col_title or 'column')}"
            f" {escape(column)}<br><b>{table[i, j].item():.3g}</b> {escape(unit)}"
            for j, column in enumerate(col_labels)
        ]
        for i, row in enumerate(row_labels)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=table.numpy(),
            hovertext=texts,
            hovertemplate="%{hovertext}<extra></extra>",
            texttemplate="%{z:.2~g}" if max(table.shape, default=0) <= 12 else None,
            **_colour_axis(table, colours),
        )
    )
    _add_unit(figure, unit)
    _finish(
        figure, title, height=min(680, max(260, 24 * table.shape[0] + 130)), hovermode="closest"
    )
    plain = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(**_tick_texts(col_labels), title_text=escape(col_title), **plain)
    return figure.update_yaxes(
        **_tick_texts(row_labels), title_text=escape(row_title), autorange="reversed", **plain
    )


def plane(
    points: Float[Tensor, "point 2"],
    labels: Sequence[str],
    *,
    title: str,
    order: Sequence[str] = (),
    axis_titles: tuple[str, str] = ("first coordinate", "second coordinate"),
    unit: str = "",
) -> Figure:
    """Draw points of a plane, one colour and marker per label, each label written at the mean of
    its points.

    A picture of a plane carries no control: the estimate it illustrates is drawn over its null
    elsewhere.

    Args:
        points: coordinates; both axes have the same scale, so that a circle looks like one.
        labels: one per point.
        order: labels in the order in which a thin line joins their means; none is joined by
            default.
        axis_titles: of the two coordinates.
        unit: of both.

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

    at, names = _cpu(points), list(dict.fromkeys([*order, *labels]))
    rows = {name: [i for i, label in enumerate(labels) if label == name] for name in names}
    means = {name: at[rows[name]].mean(0).tolist() for name in names}
    figure = go.Figure()
    if order:
        x, y = zip(*(means[name] for name in order), strict=True)
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": NULL_LINE, "width": 1}, hoverinfo="skip"
        )
    for i, name in enumerate(names):
        figure.add_scatter(
            x=at[rows[name], 0].numpy(),
            y=at[rows[name], 1].numpy(),
            mode="markers",
            marker={
                "color": SERIES[i % len(SERIES)],
                "symbol": MARKERS[i % len(MARKERS)],
                "size": 6,
                "opacity": 0.7,
            },
            hovertemplate=f"{escape(name)}<br>%{{x:.3g}}, %{{y:.3g}} {escape(unit)}<extra></extra>",
        )
    if len(names) <= _MOST_TICKS:
        for name, (x, y) in means.items():
            figure.add_annotation(
                x=x, y=y, text=escape(name), showarrow=False, yshift=12, font={"size": 12}
            )
    _finish(figure, title, height=460, hovermode="closest", showlegend=False)
    figure.update_xaxes(title_text=escape(axis_titles[0]), zeroline=False)
    return figure.update_yaxes(title_text=escape(axis_titles[1]), zeroline=False, scaleanchor="x")


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _need_axes(estimate: Estimate, wanted: int, name: str) -> None:
    if estimate.value.dim() != wanted:
        raise ResultError(
            f"{name} draws an estimate with {wanted} axes, and this one has {len(estimate.axes)}"
            f" {estimate.axes}; take a slice of it, or draw it with heat_map, spectrum, strip or"
            " curve."
        )


def _two_axes(estimate: Estimate, axes: tuple[str, str] | None) -> tuple[str, str]:
    _need_axes(estimate, 2, "heat_map")
    if axes is not None and sorted(axes) != sorted(estimate.axes):
        raise ResultError(
            f"axes={axes} are not the estimate's own {estimate.axes}; give (rows, columns) of"
            " these."
        )
    rows, columns = axes or estimate.axes
    return rows, columns


def _transposed(table: Any) -> list[list[str]]:
    return [list(column) for column in zip(*table, strict=True)]


def _hover_texts(estimate: Estimate, hover: Mapping[str, Any] | None) -> Any:
    """Return the hover text of each value, nested like the values: labels, value, interval,
    control, extra lines."""
    import numpy as np

    shape = tuple(estimate.value.shape)
    extra = {
        name: np.asarray(_plain(values), dtype=object) for name, values in (hover or {}).items()
    }
    for name, values in extra.items():
        if values.shape != shape:
            raise ResultError(
                f"hover[{name!r}] has shape {values.shape}; expected one entry per value, {shape}."
            )
    texts = np.empty(shape, dtype=object)
    for index, row in zip(np.ndindex(*shape), estimate.rows(""), strict=True):
        lines = [f"{escape(axis)} {escape(row[axis])}" for axis in estimate.axes]
        interval = f"[{row['low']:.3g}, {row['high']:.3g}]"
        lines.append(f"<b>{row['value']:.3g}</b> {interval} {escape(row['unit'])}")
        if "control_95" in row:
            lines.append(f"control {row['control_mean']:.3g}, 95 % below {row['control_95']:.3g}")
        lines += [f"{escape(name)} {escape(values[index])}" for name, values in extra.items()]
        texts[index] = "<br>".join(lines)
    return texts.tolist()


def _plain(values: Any) -> Any:
    return values.detach().cpu().tolist() if isinstance(values, Tensor) else values


def _colour_axis(value: Float[Tensor, "row column"], colours: Colours) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "colorscale": SCALES[colours],
        "colorbar": {"thickness": 12, "outlinewidth": 0, "len": 0.9},
        "meta": {"colours": colours},  # by which the report finds the scale of its theme
    }
    if colours == "diverging" and value.numel():
        reach = max(value.abs().max().item(), 1e-12)  # a grid of zeros still needs a range
        shared |= {"zmin": -reach, "zmax": reach}
    return shared | {"xgap": 1, "ygap": 1} if max(value.shape, default=0) <= 48 else shared


def _add_unit(figure: Figure, unit: str) -> None:
    """Say what the colours measure above the grid; beside its colour bar a long unit would be cut
    off."""
    place = {
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 3,
    }
    figure.add_annotation(text=escape(unit), showarrow=False, font={"size": 12}, **place)
    figure.update_layout(title_pad_b=26)  # room for it below the title


def _beyond_null(estimate: Estimate, colours: Colours) -> tuple[Tensor, str] | None:
    """Return which cells lie beyond the 95th percentile of the null's largest cell, and that
    threshold in words."""
    if estimate.control is None or not estimate.control.numel():
        return None
    value, control = _cpu(estimate.value), _cpu(estimate.control).flatten(1)
    if colours == "diverging":
        value, control = value.abs(), control.abs()
    level = control.amax(1).quantile(0.95)
    return value > level, f"beyond the control, where 95 % of draws stay below {level.item():.3g}"


def _add_dots(figure: Figure, mask: Tensor, text: str) -> None:
    """Mark cells; without any, the legend still names the threshold that nothing passed."""
    where = mask.nonzero().tolist()
    figure.add_scatter(
        x=[column for _, column in where] or [None],
        y=[row for row, _ in where] or [None],
        mode="markers",
        marker={
            "symbol": "circle",
            "size": 7,
            "color": "#ffffff",
            "line": {"color": "#15181d", "width": 1.5},
        },
        name=escape(text if where else f"no cell {text}"),
        showlegend=True,
        hoverinfo="skip",
    )


def _band(control: Float[Tensor, "draw *axes"]) -> tuple[Any, Any]:
    """Return the 2.5th and 97.5th percentile of the draws at each position (numpy's: torch stops at
    16 M values)."""
    import numpy as np

    low, high = np.quantile(_cpu(control).numpy(), [0.025, 0.975], axis=0)
    return low, high


def _null_name(estimate: Estimate) -> str:
    return (
        f"control, middle 95 % of {estimate.control.shape[0]} draws"
        if estimate.control is not None
        else ""
    )


def _add_level(figure: Figure, bars: int, level: float, name: str) -> None:
    figure.add_scatter(
        x=[-0.5, bars - 0.5],
        y=[level, level],
        mode="lines",
        line={"color": NULL_LINE, "width": 1.5, "dash": "dot"},
        name=f"{name} {level:.3g}",
        hoverinfo="skip",
    )


def _error_bars(estimate: Estimate, *, visible: bool) -> dict[str, Any]:
    value = _cpu(estimate.value)
    return {
        "type": "data",
        "symmetric": False,
        "array": (_cpu(estimate.high) - value).numpy(),
        "arrayminus": (value - _cpu(estimate.low)).numpy(),
        "thickness": 1.4,
        "width": 3,
        "color": INK,
        "visible": visible,
    }


def _add_line(
    figure: Figure, estimate: Estimate, at: list[float], line: int, *, alone: bool
) -> None:
    """Add one line over its interval."""
    whole = estimate.value.dim() == 1
    value, low, high = (
        _cpu(t if whole else t[line]).numpy() for t in (estimate.value, estimate.low, estimate.high)
    )
    colour, dash, marker = (cycle[line % len(cycle)] for cycle in (SERIES, DASHES, MARKERS))
    _add_ribbon(figure, at, low, high, _translucent(colour), showlegend=False)
    texts = _hover_texts(estimate, None)
    figure.add_scatter(
        x=at,
        y=value,
        mode="lines+markers" if len(at) <= 60 else "lines",
        line={"color": colour, "dash": dash, "width": 2.2},
        marker={"symbol": marker, "size": 7},
        name="observed, 95 % interval" if alone else escape(estimate.label(estimate.axes[0], line)),
        hovertext=texts if whole else texts[line],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _add_null_ribbon(figure: Figure, estimate: Estimate, at: list[float]) -> None:
    """Add the null once: several lines share the envelope of their bands, which says no less."""
    if estimate.control is None:
        return
    low, high = _band(estimate.control)
    if estimate.value.dim() == 2:
        low, high = low.min(0), high.max(0)
    _add_ribbon(figure, at, low, high, NULL, name=_null_name(estimate))


def _add_ribbon(
    figure: Figure, at: list[float], low: Any, high: Any, colour: str, **options: Any
) -> None:
    figure.add_scatter(
        x=[*at, *reversed(at)],
        y=[*high.tolist(), *reversed(low.tolist())],
        fill="toself",
        fillcolor=colour,
        mode="lines",
        line={"width": 0, "color": colour},
        hoverinfo="skip",
        **options,
    )


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.22)"


def _ticks(estimate: Estimate, axis: str) -> dict[str, Any]:
    size = estimate.value.shape[estimate.axes.index(axis)]
    return {
        "title_text": escape(axis),
        **_tick_texts([estimate.label(axis, i) for i in range(size)]),
    }


def _tick_texts(labels: Sequence[str]) -> dict[str, Any]:
    """Return tick settings that show every label, or every k-th where there are too many to
    read."""
    step = -(-len(labels) // _MOST_TICKS) or 1
    at = list(range(0, len(labels), step))
    return {"tickmode": "array", "tickvals": at, "ticktext": [escape(labels[i]) for i in at]}


def template() -> Any:
    """Return the look shared by every figure; it is given to each figure and never registered with
    plotly."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": GRID,
        "automargin": True,
        "ticks": "",
    }
    axis |= {"ticklabeloverflow": "allow"}  # or the last of long slanting labels would be hidden
    axis |= {"title": {"font": {"size": 13}, "standoff": 8}}
    return go.layout.Template(
        layout={
            "colorway": list(SERIES),
            "xaxis": axis,
            "yaxis": axis,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK, "size": 13, "family": FONT},
            # right above the picture: plotly's buttons are at the top
            "title": {
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "pad": {"b": 10},
                "font": {"size": 15},
            },
            "margin": {"l": 56, "r": 16, "t": 72, "b": 48},
            # below the picture, away from the buttons plotly puts above it
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yref": "container",
                "yanchor": "bottom",
            },
            "hoverlabel": {"align": "left"},
        }
    )


def _finish(figure: Figure, title: str, *, height: int, **layout: Any) -> None:
    figure.update_layout(template=template(), title_text=escape(title), height=height, **layout)
