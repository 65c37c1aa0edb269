"""What all figures share: colours, text that cannot become markup, axes, one template.

Backgrounds are transparent and colours are mid-tones that read on white and on black, so one figure
serves a notebook and both themes of the report. Every label is escaped: names and tokens come from
checkpoints. Labels are drawn as tick texts on numeric axes, because plotly merges equal categories
and reads "1" as a number.

Source of the palette: Okabe & Ito 2008, Color Universal Design, darkened until each colour reads on
white; series differ in dash and marker too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

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
CLEAR = "rgba(0,0,0,0)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Cividis (Nuñez et al. 2018), and a blue-orange scale whose middle the report darkens at night.
_CIVIDIS = ((0.0, "#00204d"), (0.25, "#35466b"), (0.5, "#7c7b78"), (0.75, "#bcaf6f"))
SCALES: Mapping[Colours, tuple[tuple[float, str], ...]] = {
    "sequential": (*_CIVIDIS, (1.0, "#ffea46")),
    "diverging": ((0.0, "#1b6cb5"), (0.5, "#eceef1"), (1.0, "#d2600a")),
}

MOST_TICKS = 32
"""Labels that fit along an axis; of more, every k-th is shown."""

_FOREIGN_TAG = re.compile(r"<(?!/?(?:b|i|br|sub|sup|extra)/?>)")


def escape(text: object) -> str:
    """Return `text` so that plotly shows it as it is: no tags, entities or hidden line breaks.

    >>> escape("<b>")
    '&lt;b&gt;'
    """
    visible = str(text).replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return html.escape(visible, quote=False)


def without_foreign_tags(text: str) -> str:
    """Return plotly text with every tag escaped but `b`, `i`, `br`, `sub`, `sup` and `extra`."""
    return _FOREIGN_TAG.sub("&lt;", text)


def on_cpu(tensor: Tensor) -> Tensor:
    """Return a copy in float64 that numpy can read."""
    return tensor.detach().double().cpu()


def colour_axis(value: Float[Tensor, "row column"], colours: Colours) -> dict[str, Any]:
    """Return the colour settings of a grid; thin gaps between cells where they are large enough."""
    shared: dict[str, Any] = {
        "colorscale": SCALES[colours],
        "colorbar": {"thickness": 12, "outlinewidth": 0, "len": 0.9},
        "meta": {"colours": colours},  # by which the report finds the scale of its theme
    }
    if colours == "diverging" and value.numel():
        reach = max(value.abs().max().item(), 1e-12)  # a grid of zeros still needs a range
        shared |= {"zmin": -reach, "zmax": reach}
    return shared | {"xgap": 1, "ygap": 1} if max(value.shape, default=0) <= 48 else shared


def grid(
    values: Float[Tensor, "row column"],
    texts: Sequence[Sequence[str]],
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
    *,
    title: str,
    unit: str,
    colours: Colours,
    numbers: bool = False,
) -> Figure:
    """Draw a table of numbers as a grid of cells.

    Args:
        texts: what the hover says of each cell.
        rows, columns: `ticks` of the two axes.
        unit: said above the grid; beside its colour bar a long one would be cut off.
        numbers: whether each cell shows its number.
    """
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Heatmap(
            z=values.numpy(),
            hovertext=texts,
            hovertemplate="%{hovertext}<extra></extra>",
            texttemplate="%{z:.2~g}" if numbers else None,
            **colour_axis(values, colours),
        )
    )
    corner = {"x": 0, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yshift": 3}
    figure.add_annotation(
        text=escape(unit), showarrow=False, font={"size": 12}, yanchor="bottom", **corner
    )
    height = grid_height(len(values), columns["ticktext"])
    finish(figure, title, height=height, hovermode="closest", title_pad_b=26)
    bare = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(**columns, **bare)
    return figure.update_yaxes(**rows, autorange="reversed", **bare)


def grid_height(rows: int, column_labels: Sequence[str]) -> int:
    """Return the height of a grid in pixels, with room for title, legend and slanting labels."""
    longest = max(map(len, column_labels), default=0)
    slanting = 4 * min(longest, 30) if longest > 8 else 0
    return min(680, 180 + slanting + max(24 * rows, 90))


def ticks(labels: Sequence[str], title: str) -> dict[str, Any]:
    """Return an axis' settings that show every label, or every k-th of too many to read."""
    step = -(-len(labels) // MOST_TICKS) or 1
    at = list(range(0, len(labels), step))
    texts = [escape(labels[i]) for i in at]
    return {"title_text": escape(title), "tickmode": "array", "tickvals": at, "ticktext": texts}


def finish(figure: Figure, title: str, *, height: int, **layout: Any) -> None:
    """Give a figure the look of all and its title."""
    figure.update_layout(template=template(), title_text=escape(title), height=height, **layout)


def template() -> Any:
    """Return the look shared by every figure; it is never registered with plotly."""
    import plotly.graph_objects as go

    axis: dict[str, Any] = dict.fromkeys(("gridcolor", "zerolinecolor", "linecolor"), GRID)
    axis |= {"automargin": True, "ticks": "", "title": {"font": {"size": 13}, "standoff": 8}}
    axis |= {"ticklabeloverflow": "allow"}  # or the last of long slanting labels would be hidden
    left = {"x": 0, "xanchor": "left", "yanchor": "bottom"}
    return go.layout.Template(
        layout={
            "colorway": list(SERIES),
            "xaxis": axis,
            "yaxis": axis,
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "font": {"color": INK, "size": 13, "family": FONT},
            # right above the picture: plotly's buttons are at the top
            "title": left
            | {"xref": "paper", "y": 1, "yref": "paper", "pad": {"b": 10}, "font": {"size": 15}},
            "margin": {"l": 56, "r": 16, "t": 72, "b": 48},
            # below the picture, away from the buttons plotly puts above it
            "legend": left | {"orientation": "h", "y": 0, "yref": "container"},
            "hoverlabel": {"align": "left"},
        }
    )
