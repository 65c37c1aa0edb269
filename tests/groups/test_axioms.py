"""Tables that are no group are refused, with the entries that show it."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import cyclic
from mechinterp_toolkit.groups.axioms import check_axioms

# A loop of order 5: a Latin square with identity 0 that is not associative (every group of order 5
# is cyclic, and here 1·1 = 0).
LOOP = torch.tensor(
    [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]
)


def test_an_entry_outside_the_group_is_named() -> None:
    table = cyclic(4).table.clone()
    table[1, 2] = 7
    with pytest.raises(ToolkitError, match=r"table\[1, 2\] = 7 is not an element; expected 0 to 3"):
        check_axioms(table)


def test_a_repeated_entry_is_named_by_row_and_positions() -> None:
    table = cyclic(4).table.clone()
    table[1, 2] = 1
    with pytest.raises(
        ToolkitError, match=r"not a Latin square: row 1 holds 1 at positions 0 and 2"
    ):
        check_axioms(table)
    rows_only = torch.arange(3).repeat(3, 1)
    with pytest.raises(
        ToolkitError, match=r"not a Latin square: column 0 holds 0 at positions 0 and 1"
    ):
        check_axioms(rows_only)


def test_a_table_without_identity_is_refused_with_the_nearest_element() -> None:
    a = torch.arange(5)
    subtraction = (a[:, None] - a) % 5  # 0 is a right identity only
    with pytest.raises(
        ToolkitError,
        match=r"no identity: the nearest element is 0, but table\[0, 1\] = 4, expected 1",
    ):
        check_axioms(subtraction)
    with pytest.raises(
        ToolkitError,
        match=r"no identity: the nearest element is 0, but table\[1, 0\] = 4, expected 1",
    ):
        check_axioms(subtraction.T.contiguous())


def test_a_loop_that_is_not_associative_is_refused_with_a_triple_that_fails() -> None:
    with pytest.raises(
        ToolkitError, match=r"not associative: \((\d)·(\d)\)·(\d) = \d but"
    ) as caught:
        check_axioms(LOOP)
    a, b, c = (
        int(digit)
        for digit in str(caught.value).split("(")[1].replace(")", "").split(" ")[0].split("·")
    )
    assert LOOP[LOOP[a, b], c] != LOOP[a, LOOP[b, c]]
