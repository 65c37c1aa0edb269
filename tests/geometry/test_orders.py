"""Candidate orders, and what each class' angle is worth when it is predicted from the others."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.geometry.orders import (
    arrangements,
    candidate_orders,
    held_out_r2,
    left_out,
    on_circle,
    search_orders,
)


def ring(period: int) -> torch.Tensor:
    return on_circle(2 * math.pi * torch.arange(period, dtype=torch.float64) / period)


def test_leaving_one_class_out_by_the_formula_is_leaving_it_out():
    generator = torch.Generator().manual_seed(1)
    means, target = torch.randn(7, 12, generator=generator, dtype=torch.float64), ring(7)
    centred = means - means.mean(0)
    penalty = 0.1 * centred.square().sum() / 7 * torch.eye(6, dtype=torch.float64)
    missed = []
    for out in range(7):
        kept = torch.arange(7) != out
        centre, middle = means[kept].mean(0), target[kept].mean(0)
        x, y = means[kept] - centre, target[kept] - middle
        weights = x.T @ torch.linalg.solve(x @ x.T + penalty, y)
        missed.append(target[out] - middle - (means[out] - centre) @ weights)
    # Two ways to the same float64 numbers: rounding only.
    assert torch.allclose(left_out(means, 0.1) @ target, torch.stack(missed), atol=1e-10)


def test_the_mean_of_the_others_scores_zero():
    far = torch.eye(7, dtype=torch.float64)  # no class says anything about another
    assert held_out_r2(left_out(far, 1e9), ring(7)).item() == pytest.approx(0, abs=1e-6)


def test_an_order_that_leaves_a_class_out_is_scored_without_it_wherever_it_is_put():
    orders = candidate_orders(7, ("discrete_log",))
    logarithm = orders[1]
    powers = [pow(3, k, 7) for k in range(6)]
    assert logarithm.kept.tolist() == [False] + [True] * 6
    means = torch.zeros(7, 3, dtype=torch.float64)
    means[0, 2] = 9.0  # class 0 lies anywhere
    means[powers, :2] = ring(6)
    turned = torch.arange(7)
    turned[powers] = torch.tensor(powers).roll(1)  # a rotation of the logarithm's circle
    swapped = torch.arange(7)
    swapped[[0, 1]] = torch.tensor([1, 0])
    observed, null = search_orders(means, orders[1:], torch.stack([turned, swapped]), 0.01)
    assert observed[0] > 0.99
    assert null[0] == pytest.approx(observed[0].item())
    assert null[1] < 0.9 * observed[0]  # class 0, far from the circle, stands on it


def test_permutations_that_always_score_alike_count_once():
    factor = {("natural",): 14, ("natural", "harmonics"): 42, ("harmonics", "discrete_log"): 12}
    for kinds, alike in factor.items():
        assert arrangements(7, candidate_orders(7, kinds)) == 5040 // alike
    assert [order.name for order in candidate_orders(12, ("harmonics",))] == ["natural", "step 5"]
    assert len(candidate_orders(12, ("discrete_log",))) == 1  # 12 is no prime
