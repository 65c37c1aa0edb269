"""What is drawn equals the estimate, with the null in the same picture."""

from __future__ import annotations

import html

import pytest
import torch

from mechinterp_toolkit import plots
from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.results import Estimate

HOSTILE = "<script>alert(1)</script>"


def estimate(value, axes=(), *, control=None, labels=None, half_width=0.1):
    value = torch.as_tensor(value, dtype=torch.float64)
    if control is not None:
        control = torch.as_tensor(control, dtype=torch.float64)
    return Estimate(
        value=value,
        low=value - half_width,
        high=value + half_width,
        n=12,
        unit="fraction in [0, 1]",
        method="bootstrap over items",
        control=control,
        control_name="" if control is None else "order shuffled",
        axes=axes,
        labels=labels or {},
    )


def constant_control(level, *shape, draws=40):
    return torch.full((draws, *shape), level, dtype=torch.float64)


GRID = [[0.4, 0.6, 0.1], [0.5, 0.9, -0.8]]


def test_heat_map_shows_the_values_and_dots_exactly_the_cells_above_the_control():
    figure = plots.heat_map(
        estimate(GRID, ("layer", "head"), control=constant_control(0.5, 2, 3)),
        title="scores of heads",
    )
    grid, dots = figure.data
    assert torch.equal(torch.tensor(grid.z), torch.tensor(GRID, dtype=torch.float64))
    assert list(zip(dots.y, dots.x, strict=True)) == [
        (0, 1),
        (1, 1),
    ]  # 0.5 itself is not beyond 0.5
    assert "0.5" in dots.name


def test_heat_map_threshold_is_the_null_of_the_largest_cell_not_of_each_cell():
    # One cell is large in one draw of 40, the other in two, never together: some cell is large in
    # three of 40, 7.5 %.
    control = torch.zeros(40, 1, 2)
    control[0, 0, 0] = control[1, 0, 1] = control[2, 0, 1] = 10.0
    level = control.flatten(1).amax(1).double().quantile(0.95).item()
    figure = plots.heat_map(
        estimate([[0.9 * level, 1.1 * level]], ("layer", "head"), control=control), title="t"
    )
    assert level > control.double().quantile(0.95, dim=0).max()
    assert list(figure.data[1].x) == [1]


def test_diverging_heat_map_is_centred_at_zero_and_dots_both_signs():
    figure = plots.heat_map(
        estimate(GRID, ("layer", "head"), control=constant_control(0.7, 2, 3)),
        title="t",
        colours="diverging",
    )
    grid, dots = figure.data
    assert (grid.zmin, grid.zmax) == (-0.9, 0.9)
    assert list(zip(dots.y, dots.x, strict=True)) == [(1, 1), (1, 2)]


def test_heat_map_says_when_no_cell_passes_its_control():
    figure = plots.heat_map(
        estimate(GRID, ("layer", "head"), control=constant_control(2.0, 2, 3)), title="t"
    )
    assert figure.data[1].name.startswith("no cell beyond the control")


def test_heat_map_without_control_draws_no_dots():
    assert len(plots.heat_map(estimate(GRID, ("layer", "head")), title="t").data) == 1


def test_heat_map_says_its_unit_where_a_long_one_is_not_cut_off():
    (annotation,) = plots.heat_map(estimate(GRID, ("layer", "head")), title="t").layout.annotations
    assert annotation.text == "fraction in [0, 1]"
    assert (annotation.xanchor, annotation.yanchor) == ("left", "bottom")


def test_the_axes_of_a_heat_map_bear_the_names_of_its_own():
    layout = plots.heat_map(estimate(GRID, ("layer", "head")), title="t").layout
    assert (layout.yaxis.title.text, layout.xaxis.title.text) == ("layer", "head")


def test_heat_map_hover_says_labels_value_interval_control_and_extra_lines():
    stored = estimate(
        [[0.25]],
        ("layer", "head"),
        control=constant_control(0.125, 1, 1),
        labels={"head": (f"h {HOSTILE}",)},
    )
    text = plots.heat_map(stored, title="t", hover={"copies": [[0.5]]}).data[0].hovertext[0][0]
    assert text.split("<br>") == [
        "layer 0",
        f"head h {html.escape(HOSTILE)}",
        "<b>0.25</b> [0.15, 0.35] fraction in [0, 1]",
        "control 0.125, 95 % below 0.125",
        "copies 0.5",
    ]


def test_hover_lines_of_another_shape_are_refused():
    with pytest.raises(
        ResultError, match=r"hover\['copies'\] has shape \(1, 2\); expected one entry per value"
    ):
        plots.heat_map(
            estimate([[0.25]], ("layer", "head")), title="t", hover={"copies": [[0.5, 0.6]]}
        )


def test_heat_map_refuses_an_estimate_without_two_axes():
    with pytest.raises(
        ResultError, match=r"heat_map draws an estimate with 2 axes, and this one has 1 \('head',\)"
    ):
        plots.heat_map(estimate([1.0], ("head",)), title="t")


def test_spectrum_bars_carry_their_intervals_over_the_middle_of_the_control():
    draws = torch.arange(41, dtype=torch.float64) / 40  # percentile p of 0, 1/40, ..., 1 is p / 100
    figure = plots.spectrum(
        estimate([0.5, 2.0], ("irrep",), control=torch.stack([draws, 2 * draws], dim=1)), title="t"
    )
    band, level, bars = figure.data
    assert list(band.base) == pytest.approx(
        [0.025, 0.05]
    )  # exact up to rounding of the quantile's interpolation
    assert [b + y for b, y in zip(band.base, band.y, strict=True)] == pytest.approx([0.975, 1.95])
    assert level.y == pytest.approx((1.9, 1.9))  # the larger bar decides the maximum of every draw
    assert list(bars.y) == [0.5, 2.0]
    assert list(bars.error_y.array) == pytest.approx([0.1, 0.1])


def test_equal_labels_and_numeric_labels_stay_separate_bars():
    figure = plots.spectrum(
        estimate([1.0, 2.0, 3.0], ("token",), labels={"token": ("a", "a", "7")}), title="t"
    )
    assert list(figure.data[0].x) == [0, 1, 2]
    assert list(figure.layout.xaxis.ticktext) == ["a", "a", "7"]


def test_long_axes_show_every_kth_label():
    names = tuple(f"n{i}" for i in range(100))
    figure = plots.spectrum(
        estimate(torch.arange(100.0), ("neuron",), labels={"neuron": names}), title="t"
    )
    assert list(figure.layout.xaxis.ticktext) == [names[i] for i in range(0, 100, 4)]


def test_strip_draws_the_observed_number_over_every_draw_of_its_null():
    draws = torch.linspace(0, 1, 101)
    figure = plots.strip(estimate(2.0, control=draws), title="t")
    histogram, point = figure.data
    assert torch.equal(torch.tensor(histogram.x), draws.double())
    assert list(point.x) == [2.0]
    assert "95 % of draws below 0.95" in histogram.name
    assert sorted(shape.x0 for shape in figure.layout.shapes) == pytest.approx([0.95, 1.9, 2.0])


def test_strip_refuses_a_number_without_control_and_a_tensor():
    with pytest.raises(ResultError, match="this estimate has no control"):
        plots.strip(estimate(2.0), title="t")
    with pytest.raises(ResultError, match="strip draws an estimate with 0 axes"):
        plots.strip(estimate([2.0], ("head",)), title="t")


def test_a_picture_is_what_the_number_of_axes_asks_for():
    def kinds(drawn):
        return [trace.type for trace in plots.picture(drawn, title="t").data]

    assert kinds(estimate(GRID, ("layer", "head"))) == ["heatmap"]
    assert kinds(estimate([1.0, 2.0], ("head",))) == ["bar"]
    assert kinds(estimate(1.0, control=torch.ones(3))) == ["histogram", "scatter"]
    for undrawable in (estimate(1.0), estimate([], ("head",)), estimate([[GRID]], tuple("abcd"))):
        assert plots.picture(undrawable, title="t") is None


def test_curve_draws_interval_and_null_as_ribbons_around_the_line():
    draws = torch.arange(41, dtype=torch.float64).unsqueeze(1) / 40
    figure = plots.curve(
        estimate([0.5, 1.5], ("step",), control=draws.expand(41, 2)),
        x=[10, 100],
        title="t",
    )
    null, interval, line = figure.data
    assert list(null.x) == [10, 100, 100, 10]
    assert list(null.y) == pytest.approx([0.975, 0.975, 0.025, 0.025])
    assert list(interval.y) == pytest.approx([0.6, 1.6, 1.4, 0.4])
    assert list(line.y) == [0.5, 1.5]


def test_curve_with_two_axes_draws_one_line_each_that_differ_in_more_than_colour():
    figure = plots.curve(
        estimate(GRID, ("head", "layer"), labels={"head": ("0.1", "0.2")}), title="t"
    )
    lines = [trace for trace in figure.data if trace.hovertext is not None]
    assert [line.name for line in lines] == ["0.1", "0.2"]
    assert (
        len({line.line.dash for line in lines}) == len({line.marker.symbol for line in lines}) == 2
    )
    assert list(lines[1].y) == GRID[1]


def test_curve_refuses_positions_that_do_not_fit():
    with pytest.raises(ResultError, match="x has 2 positions for 3 points along 'layer'"):
        plots.curve(estimate([1.0, 2.0, 3.0], ("layer",)), x=[0, 1], title="t")
    with pytest.raises(ResultError, match="curve draws one or two axes"):
        plots.curve(estimate(1.0), title="t")


@pytest.mark.parametrize("draw", [plots.heat_map, plots.spectrum, plots.curve])
def test_no_label_of_a_figure_can_become_markup(draw):
    shape, axes = ((1, 2), ("layer", HOSTILE)) if draw is plots.heat_map else ((2,), (HOSTILE,))
    stored = estimate(
        torch.ones(shape),
        axes,
        control=constant_control(0.5, *shape),
        labels={HOSTILE: (HOSTILE, "b")},
    )
    assert "<script" not in draw(stored, title=HOSTILE).to_json().replace("\\u003c", "<")


def test_backgrounds_are_transparent_so_that_a_page_decides():
    layout = plots.spectrum(estimate([1.0], ("head",)), title="t").layout
    assert (
        layout.template.layout.paper_bgcolor
        == layout.template.layout.plot_bgcolor
        == "rgba(0,0,0,0)"
    )
