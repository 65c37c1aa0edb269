"""Pictures of an `Estimate`: the observed value and its null in the same axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.plots.look import (
    DASHES,
    INK,
    MARKERS,
    MOST_TICKS,
    NULL,
    NULL_LINE,
    OBSERVED,
    SERIES,
    Colours,
    Figure,
    escape,
    finish,
    grid,
    on_cpu,
    ticks,
)
from mechinterp_toolkit.results import Estimate


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
    hover: Mapping[str, Any] | None = None,
    colours: Colours = "sequential",
) -> Figure:
    """Draw an estimate with two axes as a grid; a dot marks each cell beyond the null's largest.

    The dot's threshold is the 95th percentile, over control draws, of the largest cell of a draw
    (of the largest magnitude where `colours` is "diverging"), so it is corrected for looking at
    every cell.

    Args:
        hover: further lines of the hover text, name -> one value per cell.
        colours: "diverging" centres the scale at 0 and treats both signs alike.

    Raises:
        ResultError: the estimate does not have two axes, or `hover` does not fit it.
    """
    _need_axes(estimate, 2, "heat_map")
    value = on_cpu(estimate.value)
    rows, columns = (ticks(_labels(estimate, axis), axis) for axis in estimate.axes)
    texts = _hover_texts(estimate, hover)
    figure = grid(value, texts, rows, columns, title=title, unit=estimate.unit, colours=colours)
    if estimate.control is not None and estimate.control.numel():
        control = on_cpu(estimate.control).flatten(1)
        both_signs = colours == "diverging"
        level = (control.abs() if both_signs else control).amax(1).quantile(0.95).item()
        _add_dots(figure, (value.abs() if both_signs else value) > level, level)
    return figure


def spectrum(estimate: Estimate, *, title: str) -> Figure:
    """Draw an estimate with one axis as bars with 95 % intervals over the control's band.

    The wide grey band holds the middle 95 % of the control's draws of each bar; the dotted line is
    the value that 95 % of draws keep every bar below (drawn where there is more than one bar).

    Raises:
        ResultError: the estimate does not have exactly one axis.
    """
    import plotly.graph_objects as go

    _need_axes(estimate, 1, "spectrum")
    value, at = on_cpu(estimate.value), list(range(estimate.value.numel()))
    figure = go.Figure()
    if estimate.control is not None and at:
        low, high = _band(estimate.control)
        figure.add_bar(
            x=at, y=high - low, base=low, width=0.86, name=_null_name(estimate), hoverinfo="skip"
        )
        figure.update_traces(marker={"color": NULL, "line": {"width": 0}})
        if len(at) > 1:
            level = on_cpu(estimate.control).flatten(1).amax(1).quantile(0.95).item()
            _add_level(figure, len(at), level)
    figure.add_bar(
        x=at,
        y=value.numpy(),
        width=0.5,
        name="observed, 95 % interval",
        marker={"color": OBSERVED, "line": {"width": 0}},
        error_y=_error_bars(estimate)
        | {"thickness": 1.4, "width": 3, "color": INK, "visible": len(at) <= 4 * MOST_TICKS},
        hovertext=_hover_texts(estimate),
        hovertemplate="%{hovertext}<extra></extra>",
    )
    finish(figure, title, height=360, barmode="overlay")
    (axis,) = estimate.axes
    figure.update_xaxes(**ticks(_labels(estimate, axis), axis), showgrid=False)
    return figure.update_yaxes(title_text=escape(estimate.unit), rangemode="tozero")


def strip(observed: Estimate, *, title: str) -> Figure:
    """Draw one observed number with its interval over the histogram of its null.

    Raises:
        ResultError: `observed` is not a scalar, or there are no draws to compare it with.
    """
    import plotly.graph_objects as go

    _need_axes(observed, 0, "strip")
    if observed.control is None or observed.control.numel() == 0:
        raise ResultError("strip draws a number over its null, and this estimate has no control.")
    draws, value = on_cpu(observed.control), observed.value.item()
    level = draws.quantile(0.95).item()
    beyond = f"95 % of draws below {level:.3g}"
    figure = go.Figure(
        go.Histogram(
            x=draws.numpy(),
            nbinsx=min(60, max(10, draws.numel() // 10)),
            name=f"control, {draws.numel()} draws, dotted: {beyond}",
            marker={"color": NULL, "line": {"width": 0}},
            hovertemplate=(
                f"%{{y}} draws in %{{x}}<br>{escape(observed.control_name)}<br>{beyond}"
                "<extra></extra>"
            ),
        )
    )
    figure.add_vline(x=level, line={"color": NULL_LINE, "width": 1.5, "dash": "dot"})
    interval = {"x0": observed.low.item(), "x1": observed.high.item()}
    figure.add_vrect(**interval, fillcolor=OBSERVED, opacity=0.16, line_width=0)
    figure.add_vline(x=value, line={"color": OBSERVED, "width": 2.5})
    figure.add_scatter(
        x=[value],
        y=[0],
        mode="markers",
        marker={"color": OBSERVED, "size": 11, "symbol": "diamond"},
        error_x=_error_bars(observed) | {"color": OBSERVED},  # shapes do not widen an axis
        name="observed, 95 % interval",
        hovertext=[f"observed {escape(observed.text())} {escape(observed.unit)}<br>{beyond}"],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    finish(figure, title, height=300, bargap=0.04)
    figure.update_xaxes(title_text=escape(observed.unit), zeroline=False)
    return figure.update_yaxes(title_text="draws", rangemode="tozero")


def curve(
    estimate: Estimate,
    x: Sequence[float | int] | Float[Tensor, " point"] | Int[Tensor, " point"] | None = None,
    *,
    title: str,
    x_title: str = "",
) -> Figure:
    """Draw an estimate along its last axis as a line with its interval, over its null's ribbon.

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

    points, axis = estimate.value.shape[-1], estimate.axes[-1]
    at = [float(v) for v in (range(points) if x is None else x)]
    if len(at) != points:
        raise ResultError(f"x has {len(at)} positions for {points} points along {axis!r}.")
    figure = go.Figure()
    if estimate.control is not None:
        low, high = (end.reshape(-1, points) for end in _band(estimate.control))
        # several lines share the envelope of their bands, which says no less
        _add_ribbon(figure, at, low.min(0), high.max(0), NULL, name=_null_name(estimate))
    for line in range(estimate.value.numel() // points if points else 0):
        _add_line(figure, estimate, at, line)
    finish(figure, title, height=380, hovermode="closest")
    named = ticks(_labels(estimate, axis), axis) if x is None else {}
    figure.update_xaxes(**{**named, "title_text": escape(x_title or axis)})
    return figure.update_yaxes(title_text=escape(estimate.unit))


def _need_axes(estimate: Estimate, wanted: int, name: str) -> None:
    if estimate.value.dim() != wanted:
        raise ResultError(
            f"{name} draws an estimate with {wanted} axes, and this one has {len(estimate.axes)}"
            f" {estimate.axes}; take a slice of it, or draw it with heat_map, spectrum, strip or"
            " curve."
        )


def _labels(estimate: Estimate, axis: str) -> list[str]:
    size = estimate.value.shape[estimate.axes.index(axis)]
    return [estimate.label(axis, i) for i in range(size)]


def _hover_texts(estimate: Estimate, hover: Mapping[str, Any] | None = None) -> list[Any]:
    """Labels, value, interval, control and extra lines of each value, nested like the values."""
    shape = tuple(estimate.value.shape)
    extra = {
        name: np.asarray(values.tolist() if isinstance(values, Tensor) else values, dtype=object)
        for name, values in (hover or {}).items()
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
    nested: list[Any] = texts.tolist()
    return nested


def _add_dots(figure: Figure, mask: Bool[Tensor, "row column"], level: float) -> None:
    """Mark cells; without any, the legend still names the threshold that nothing passed."""
    where = mask.nonzero().tolist()
    beyond = f"beyond the control:<br>95 % of draws stay below {level:.3g}"
    figure.add_scatter(
        x=[column for _, column in where] or [None],
        y=[row for row, _ in where] or [None],
        mode="markers",
        marker={"size": 7, "color": "#ffffff", "line": {"color": "#15181d", "width": 1.5}},
        name=beyond if where else f"no cell {beyond}",
        showlegend=True,
        hoverinfo="skip",
    )


def _band(control: Float[Tensor, "draw *axes"]) -> tuple[np.ndarray, np.ndarray]:
    """The 2.5th and 97.5th percentile of the draws; by numpy, as torch stops at 16 M values."""
    low, high = np.quantile(on_cpu(control).numpy(), [0.025, 0.975], axis=0)
    return low, high


def _null_name(estimate: Estimate) -> str:
    assert estimate.control is not None
    return f"control, middle 95 % of {len(estimate.control)} draws"


def _add_level(figure: Figure, bars: int, level: float) -> None:
    figure.add_scatter(
        x=[-0.5, bars - 0.5],
        y=[level, level],
        mode="lines",
        line={"color": NULL_LINE, "width": 1.5, "dash": "dot"},
        name=f"95 % of draws keep every bar below {level:.3g}",
        hoverinfo="skip",
    )


def _error_bars(estimate: Estimate) -> dict[str, Any]:
    value, low, high = (
        on_cpu(t).reshape(-1) for t in (estimate.value, estimate.low, estimate.high)
    )
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - value).numpy(),
        "arrayminus": (value - low).numpy(),
    }


def _add_line(figure: Figure, estimate: Estimate, at: list[float], line: int) -> None:
    """Add one line over its interval."""
    several = estimate.value.dim() == 2
    value, low, high = (
        on_cpu(t[line] if several else t).numpy()
        for t in (estimate.value, estimate.low, estimate.high)
    )
    alone = not several or len(estimate.value) == 1
    colour, dash, marker = (cycle[line % len(cycle)] for cycle in (SERIES, DASHES, MARKERS))
    _add_ribbon(figure, at, low, high, _translucent(colour), showlegend=False)
    texts = _hover_texts(estimate)
    figure.add_scatter(
        x=at,
        y=value,
        mode="lines+markers" if len(at) <= 60 else "lines",
        line={"color": colour, "dash": dash, "width": 2.2},
        marker={"symbol": marker, "size": 7},
        name="observed, 95 % interval" if alone else escape(estimate.label(estimate.axes[0], line)),
        hovertext=texts[line] if several else texts,
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _add_ribbon(
    figure: Figure, at: list[float], low: np.ndarray, high: np.ndarray, colour: str, **options: Any
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
