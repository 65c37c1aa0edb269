"""Text of a checkpoint cannot become markup, and plotly's own settings stay as they are."""

from __future__ import annotations

import html
import re

import torch
from hypothesis import given
from hypothesis import strategies as st

from mechinterp_toolkit import plots


def test_drawing_leaves_plotlys_own_templates_alone():
    import plotly.io

    before = (plotly.io.templates.default, set(plotly.io.templates))
    plots.matrix(torch.ones(1, 1), ["r"], ["c"], title="t")
    assert (plotly.io.templates.default, set(plotly.io.templates)) == before


@given(st.text())
def test_escaped_text_reads_as_it_was_apart_from_line_breaks(text):
    shown = html.unescape(
        plots.escape(text.replace("&", "and"))
    )  # an entity such as "&#0;" has no plain reading
    expected = (
        text.replace("&", "and").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    )
    assert shown == expected


@given(st.text(alphabet="<>/abirsupx &;\n"))
def test_only_tags_of_plotly_survive(text):
    kept = plots.without_foreign_tags(text)
    assert set(re.findall(r"<[^<>]*>?", kept)) <= {
        f"<{o}{tag}{c}>" for tag in TAGS for o in ("", "/") for c in ("", "/")
    }


TAGS = ("b", "i", "br", "sub", "sup", "extra")


def test_tags_that_figures_need_are_kept_and_all_others_shown_as_text():
    assert (
        plots.without_foreign_tags("<b>x</b><br>%{y}<extra></extra>")
        == "<b>x</b><br>%{y}<extra></extra>"
    )
    assert (
        plots.without_foreign_tags("<a href='x'>y</a><img src=x>")
        == "&lt;a href='x'>y&lt;/a>&lt;img src=x>"
    )
    assert plots.without_foreign_tags("<b onclick=x>") == "&lt;b onclick=x>"


def test_a_short_grid_keeps_room_for_long_labels_under_it():
    short = plots.matrix(torch.ones(2, 2), ["a", "b"], ["0", "1"], title="t").layout.height
    names = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
    long = plots.matrix(torch.ones(2, 2), ["a", "b"], names, title="t").layout.height
    assert long - short >= 80  # of 23 letters, each 7 pixels wide, slanting by 30 degrees
