"""What findings about a concept share: counts of relabellings, names of units, numbers as they are
written."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.analyses._concepts import (
    about,
    about_control,
    even_relabellings,
    read_layers,
)
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import balanced_relabellings


@pytest.mark.parametrize("sizes", [(2, 5), (3, 3), (3, 4), (4, 4), (4, 3)])
def test_even_relabellings_are_as_many_as_are_drawn(sizes):
    label = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    drawn = {
        tuple(row) for row in balanced_relabellings(label, draws=1500, seed=0).tolist()
    }  # of 36 at most
    assert even_relabellings(sizes, directed=True) == len(drawn) + 1
    without_names = {min(row, tuple(1 - i for i in row)) for row in drawn}
    assert even_relabellings(sizes, directed=False) == len(without_names) + 1


def scalar(value: float, low: float, high: float) -> Estimate:
    numbers = (torch.tensor(number, dtype=torch.float64) for number in (value, low, high))
    control = torch.tensor([4e-5, 6e-5], dtype=torch.float64)
    return Estimate(*numbers, 9, "nats", "by hand", control=control, control_name="shuffled")


def test_numbers_are_written_as_finely_as_their_unit_deserves():
    assert about(scalar(3.17e-8, -1.69e-6, 1.66e-6), 1e-3) == "about 0"
    assert about(scalar(0.76497, 0.65852, -0.0002), 1e-3) == "0.765 [0.659, 0]"
    assert about_control(scalar(1.0, 1.0, 1.0), 1e-3) == "about 0 (shuffled)"
    assert about_control(scalar(1.0, 1.0, 1.0), 1e-5) == "5e-05, 95 % below 6e-05 (shuffled)"


def test_accuracies_by_layer_call_their_units_by_name():
    rows, label = (
        torch.randn(12, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(12) % 2,
    )
    named = {"reader": "ridge", "unit_name": "words", "draws": 20, "seed": 0}
    read = read_layers({"a": rows, "b": rows}, torch.arange(12), label, **named)
    assert read.control_name == "labels shuffled over words"
    assert "over words" in read.method
    assert read.labels == {"hook point": ("a", "b")}
