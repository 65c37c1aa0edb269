"""Regression with rows left out: closed forms against fits that never saw the row."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.regression import (
    FOLDS,
    by_number,
    class_means,
    folds,
    k_fold,
    left_out_errors,
    one_hot,
    polynomials,
    read_off,
    ridge_hat,
    ridge_weights,
    span,
    without,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROWS, TARGET = normal(12, 5), normal(12, 2, seed=1)


def test_the_hat_and_the_weights_are_one_regression():
    weights = ridge_weights(ROWS, TARGET, 0.3)
    fitted = (ROWS - ROWS.mean(0)) @ weights
    # The same numbers by two routes: rounding only.
    assert torch.allclose(ridge_hat(ROWS, 0.3) @ (TARGET - TARGET.mean(0)), fitted, atol=1e-12)
    together = ridge_hat(torch.stack([ROWS, 2 * ROWS]), 0.3)
    assert torch.allclose(together[0], together[1], atol=1e-12)  # the penalty has the rows' unit


def test_the_formula_is_a_fit_without_the_row_and_with_an_intercept():
    centred = ROWS - ROWS.mean(0)
    penalty = 0.3 * centred.square().sum() / 12 * torch.eye(5, dtype=torch.float64)
    errors = left_out_errors(ridge_hat(ROWS, 0.3) + 1 / 12) @ TARGET
    for out in range(12):
        others = torch.arange(12) != out
        x, y = ROWS[others] - ROWS[others].mean(0), TARGET[others] - TARGET[others].mean(0)
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        said = TARGET[others].mean(0) + (ROWS[out] - ROWS[others].mean(0)) @ weights
        assert torch.allclose(errors[out], TARGET[out] - said, atol=1e-10)


def test_rows_that_are_all_the_same_say_nothing():
    assert (ridge_hat(torch.ones(4, 3, dtype=torch.float64), 0.1) == 0).all()


def test_labels_are_read_off_where_rows_say_them_and_not_elsewhere():
    label = torch.arange(40) % 4
    planted = 3 * one_hot(label, 4) @ normal(4, 30, seed=2) + normal(40, 30, seed=3)
    assert read_off(left_out_errors(ridge_hat(planted, 0.1)), label, 4).double().mean() > 0.95
    noise = left_out_errors(ridge_hat(normal(40, 30, seed=3), 0.1))
    assert read_off(noise, label, 4).double().mean() < 0.5


def test_folds_are_as_even_as_can_be_and_predicted_from_the_others_alone():
    fold = folds(13, torch.Generator().manual_seed(0))
    assert sorted(fold.bincount().tolist()) == [2, 2, 3, 3, 3]
    design, rows = normal(13, 3, seed=4), normal(13, 2, seed=5)
    predicted = k_fold(design, fold)(rows)
    for k in range(FOLDS):
        others = fold != k
        weights = torch.linalg.lstsq(design[others], rows[others]).solution
        assert torch.allclose(predicted[~others], design[~others] @ weights, atol=1e-10)
        changed = rows.clone()
        changed[~others] += 1  # what a fold's rows are does not matter for their prediction
        assert torch.equal(k_fold(design, fold)(changed)[~others], predicted[~others])


def test_columns_that_depend_on_others_add_no_axis_and_are_removed_with_them():
    design = torch.cat([ROWS[:, :2], ROWS[:, :1] - 3 * ROWS[:, 1:2], 0 * ROWS[:, :1]], 1)
    axes = span(design)
    assert axes.shape == (12, 2)
    assert torch.allclose(axes.T @ axes, torch.eye(2, dtype=torch.float64), atol=1e-12)
    left = without(design + TARGET[:, :1], axes)
    assert torch.allclose(left, without(TARGET[:, :1], axes).expand(12, 4), atol=1e-12)
    assert torch.allclose(span(1e-20 * design) @ span(1e-20 * design).T, axes @ axes.T, atol=1e-9)


def test_class_means_weigh_rows_alike():
    acts = torch.tensor([[1.0], [3.0], [5.0]])
    assert class_means(acts, torch.tensor([0, 0, 1]), 2).tolist() == [[2], [5]]
    assert class_means(acts, torch.tensor([0, 0, 2]), 3)[1].isnan().all()


@pytest.mark.parametrize("kind", [torch.int16, torch.int64])
def test_one_hot_takes_whole_numbers_of_any_kind(kind):
    assert one_hot(torch.tensor([1, 0], dtype=kind), 2).tolist() == [[0, 1], [1, 0]]


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
