"""What findings about a concept share: counts of relabellings, words read layer by layer."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit import load_model
from mechinterp_toolkit.analyses._concepts import even_relabellings, read_words
from mechinterp_toolkit.nulls import balanced_relabellings


@pytest.mark.parametrize("sizes", [(2, 5), (3, 3), (3, 4), (4, 4), (4, 3)])
def test_even_relabellings_are_as_many_as_are_drawn(sizes):
    label = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    drawn = {
        tuple(row) for row in balanced_relabellings(label, draws=1500, seed=0).tolist()
    }  # of 36 at most
    assert even_relabellings(sizes, directed=True) == len(drawn) + 1
    without_names = {min(row, tuple(1 - i for i in row)) for row in drawn}
    assert even_relabellings(sizes, directed=False) == len(without_names) + 1


def test_accuracies_by_layer_call_their_units_by_name():
    reading = read_words(load_model("toy/sentiment"), "sentiment", draws=20, seed=0)
    accuracy = reading.accuracy
    assert accuracy.control_name == "labels shuffled over words"
    assert "over words" in accuracy.method
    assert accuracy.labels == {"hook point": tuple(reading.streams)}
    assert len(reading.streams) == 2
    assert reading.half.sum() == len(reading.half) / 2
