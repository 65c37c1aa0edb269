"""Means by number, and the polynomials that are taken out of them."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.numbers import by_number, polynomials


def test_rows_of_a_number_are_averaged_and_numbers_rise():
    acts, numbers = torch.tensor([[1.0], [5.0], [3.0]]), torch.tensor([7, 2, 7])
    means = by_number(acts, numbers, torch.tensor([[0.0], [1.0], [4.0]]), fewest=2)
    assert means.numbers.tolist() == [2, 7]
    assert means.acts.tolist() == [[5], [2]]
    assert means.covariates.tolist() == [[1], [2]]
    assert means.longest == 3
    assert by_number(acts, numbers, fewest=2).covariates.shape == (2, 0)
    with pytest.raises(ToolkitError, match="got 2 different numbers; expected at least 3"):
        by_number(acts, numbers, fewest=3)


def test_polynomials_span_powers_on_uneven_numbers_too():
    numbers = torch.tensor([3, 4, 9, 11, 20, 21])
    axes, n = polynomials(numbers, 3), numbers.double() / 21
    powers = torch.stack([n**k for k in range(4)], 1)
    assert torch.allclose(axes.T @ axes, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(axes @ (axes.T @ powers), powers, atol=1e-12)
    assert polynomials(torch.tensor([5]), 3).shape == (1, 1)
