"""Pictures of plain numbers: each under its label, and labels that do not fit are refused."""

from __future__ import annotations

import html

import pytest
import torch

from mechinterp_toolkit import plots
from mechinterp_toolkit.errors import ResultError

HOSTILE = "<script>alert(1)</script>"


def test_matrix_shows_each_number_under_its_labels():
    figure = plots.matrix(torch.tensor([[0.1, 0.2]]), ["r"], ["a", HOSTILE], title="t", unit="nats")
    assert (
        figure.data[0].hovertext[0][1]
        == f"row r<br>column {html.escape(HOSTILE)}<br><b>0.2</b> nats"
    )
    with pytest.raises(
        ResultError, match=r"2 row and 1 column labels for values of shape \(1, 2\)"
    ):
        plots.matrix(torch.tensor([[0.1, 0.2]]), ["r", "s"], ["a"], title="t")


def test_a_plane_draws_every_label_at_its_mean_and_joins_them_in_order():
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0]])
    figure = plots.plane(points, ["<a>", "<a>", "b"], title="t", order=["b", "<a>"])
    assert [(n.text, n.x, n.y) for n in figure.layout.annotations] == [
        ("b", 4, 4),
        ("&lt;a&gt;", 1, 0),
    ]
    assert list(figure.data[0].x) == [4, 1]
    assert figure.layout.yaxis.scaleanchor == "x"


def test_labels_that_do_not_fit_the_points_of_a_plane_are_refused():
    with pytest.raises(ResultError, match="got 1 labels for 2 points"):
        plots.plane(torch.zeros(2, 2), ["a"], title="t")
    with pytest.raises(ResultError, match="no point has the label 'c'"):
        plots.plane(torch.zeros(2, 2), ["a", "b"], title="t", order=["c"])
