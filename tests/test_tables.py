"""Activations saved by other tools come in as they are, or are refused with the reason."""

from __future__ import annotations

import pandas
import pytest
import torch
from safetensors.torch import save_file

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.tables import read_activations, read_labels

ROWS = torch.tensor([[1.5, 2.0], [3.0, -4.25], [0.0, 1.0]], dtype=torch.float64)


def test_every_format_gives_the_same_numbers(tmp_path):
    frame = pandas.DataFrame(ROWS.numpy(), columns=["x", "y"])
    frame.to_csv(tmp_path / "named.csv", index=False)
    frame.to_csv(tmp_path / "bare.csv", index=False, header=False)
    pandas.DataFrame(ROWS.numpy()).to_csv(
        tmp_path / "counted.csv", index=False
    )  # pandas names columns 0, 1, ...
    frame.to_parquet(tmp_path / "a.parquet")
    save_file({"acts": ROWS}, tmp_path / "a.safetensors")
    for name in ("named.csv", "bare.csv", "counted.csv", "a.parquet", "a.safetensors"):
        assert torch.equal(read_activations(tmp_path / name), ROWS), name


def test_labels_are_one_column_of_whole_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("day\n2\n0\n1\n")
    assert read_labels(tmp_path / "a.csv").tolist() == [2, 0, 1]
    (tmp_path / "b.csv").write_text("0.5\n1\n")
    with pytest.raises(ToolkitError, match="expected one column of whole numbers"):
        read_labels(tmp_path / "b.csv")


def test_what_is_no_table_of_numbers_is_refused(tmp_path):
    with pytest.raises(
        ToolkitError, match=r"is no file that ends in \.csv, \.parquet, \.safetensors"
    ):
        read_activations(tmp_path / "missing.csv")
    (tmp_path / "a.csv").write_text("word,x\nMonday,1.0\n")
    with pytest.raises(ToolkitError, match=r"column 'word' of .* is not all numbers"):
        read_activations(tmp_path / "a.csv")
    save_file({"a": ROWS, "b": ROWS.clone()}, tmp_path / "a.safetensors")
    with pytest.raises(ToolkitError, match=r"holds 2 tensors \(a, b\)"):
        read_activations(tmp_path / "a.safetensors")
    save_file({"a": ROWS.long()}, tmp_path / "b.safetensors")
    with pytest.raises(ToolkitError, match=r"holds torch\.int64 of shape \(3, 2\)"):
        read_activations(tmp_path / "b.safetensors")
