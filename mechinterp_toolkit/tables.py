"""`read_activations`, `read_labels`: activations saved by any other tool.

A file is a CSV (with a header line or without), Parquet, or safetensors with one tensor.

Source: this project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError

FORMATS = (".csv", ".parquet", ".safetensors")


def read_activations(path: str | Path) -> Float[Tensor, "n d"]:
    """Return a table of activations, one row per prompt.

    Args:
        path: a CSV (with a header line or without) or Parquet file of numbers, or a safetensors
            file with one tensor [n, d].

    Raises:
        ToolkitError: no such file or format, several tensors, a column that is not numbers, or a
            shape other than [n, d].
    """
    table = _tensor(Path(path))
    if table.dim() != 2 or not table.is_floating_point():
        raise ToolkitError(
            f"{path} holds {table.dtype} of shape {tuple(table.shape)}; expected numbers with a"
            " point, [n, d]."
        )
    return table


def read_labels(path: str | Path) -> Int[Tensor, " n"]:
    """Return one integer class per row, in the order of the activations, from a single column.

    Raises:
        ToolkitError: as in `read_activations`; or more than one column, or labels that are not
            whole numbers.
    """
    table = _tensor(Path(path))
    column = table[:, 0] if table.dim() == 2 and table.shape[1] == 1 else table
    if column.dim() != 1 or bool((column != column.round()).any()):
        raise ToolkitError(
            f"{path} holds {table.dtype} of shape {tuple(table.shape)}; expected one column of"
            " whole numbers, the classes."
        )
    return column.long()


def _tensor(path: Path) -> Tensor:
    if not path.is_file() or path.suffix not in FORMATS:
        raise ToolkitError(
            f"{path} is no file that ends in {', '.join(FORMATS)}; give one of these."
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
        if len(tensors) != 1:
            raise ToolkitError(
                f"{path} holds {len(tensors)} tensors ({', '.join(tensors)}); save the one that is"
                " meant alone."
            )
        return next(iter(tensors.values()))
    return _frame(path)


def _frame(path: Path) -> Tensor:
    import pandas

    frame: Any = pandas.read_parquet(path) if path.suffix == ".parquet" else _csv(path)
    is_numeric = pandas.api.types.is_numeric_dtype
    texts = [str(name) for name, kind in frame.dtypes.items() if not is_numeric(kind)]
    if texts:
        raise ToolkitError(
            f"column {texts[0]!r} of {path} is not all numbers; save activations alone, and labels"
            " as whole numbers (the place in a cycle, the number itself, the class)."
        )
    return torch.from_numpy(frame.to_numpy().copy())


def _csv(path: Path) -> Any:
    """Read a first line of numbers as data, unless it counts the columns: 0, 1, 2, ..."""
    import pandas

    first = pandas.read_csv(path, header=None, nrows=1)
    numbers = all(pandas.api.types.is_numeric_dtype(kind) for kind in first.dtypes)
    columns = first.shape[1]
    counted = numbers and columns > 1 and first.to_numpy()[0].tolist() == list(range(columns))
    return pandas.read_csv(path, header=None if numbers and not counted else 0)
