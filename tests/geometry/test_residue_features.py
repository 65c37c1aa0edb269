"""Directions of residues: planted ones are recovered, trends removed, their absence refused."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.residue_features import Autoencoder, residue_features

D = 32
NUMBERS = torch.arange(100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = normal(*shape, seed=seed)
    return rows / rows.norm(dim=1, keepdim=True)


ONES, TENS = unit(10, D, seed=3), unit(10, D, seed=4)


def digits(noise: float = 0.1, ones: torch.Tensor = ONES, seed: int = 0) -> torch.Tensor:
    """Numbers 0 to 99 as direction of the last digit + direction of the tens + noise of this
    norm."""
    return (
        ones[NUMBERS % 10] + TENS[NUMBERS // 10] + noise * normal(100, D, seed=seed) / math.sqrt(D)
    )


def cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    second = second - second.mean(0)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


@pytest.mark.parametrize(("method", "least"), [("mean", 0.95), ("probe", 0.8), ("sae", 0.75)])
def test_planted_residue_directions_are_recovered(method, least):
    found = residue_features(digits(0.3), NUMBERS, 10, method)
    assert found.features.shape == (10, D)
    assert torch.allclose(found.features.norm(dim=1), torch.ones(10, dtype=torch.float64))
    assert float(cosine(found.features, ONES).mean()) > least
    assert float(cosine(found.features, ONES.roll(1, 0)).mean()) < 0.1
    assert found.items.tolist() == [10] * 10


def test_latents_of_a_residue_are_shared_by_its_items_and_not_by_random_sets():
    found = residue_features(
        digits(0.3, 2 * ONES), NUMBERS, 10, "sae"
    )  # else half the items have the tens in front
    assert float(found.share.mean()) > 0.7
    assert float(found.shuffled.mean()) < 0.5 * float(found.share.mean())
    noise = residue_features(normal(100, D), NUMBERS, 10, "sae")
    assert float(noise.share.mean()) <= float(noise.shuffled.mean(1).max())


def test_the_same_seed_trains_the_same_autoencoder():
    first, again, other = (
        residue_features(
            digits(), NUMBERS, 10, "sae", seed, autoencoder=Autoencoder(steps=50), draws=2
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.features, again.features)
    assert not torch.allclose(first.features, other.features)


def test_a_trend_is_in_the_class_means_unless_removed():
    line = NUMBERS.double()[:, None] * unit(1, D, seed=8)
    along = unit(1, D, seed=8)[0]
    kept = residue_features(line + digits(), NUMBERS, 10).features
    removed = residue_features(line + digits(), NUMBERS, 10, detrend=True).features
    assert float(kept[9] @ along) > 0.9
    assert float((removed @ along).abs().max()) < 0.6
    assert float(cosine(removed, ONES).mean()) > float(cosine(kept, ONES).mean()) + 0.2


def test_residues_without_items_or_directions_are_refused():
    with pytest.raises(ToolkitError, match=r"no item has residue \[5, 6\] mod 7"):
        residue_features(normal(5, D), torch.arange(5), 7)
    with pytest.raises(ToolkitError, match="got period=1"):
        residue_features(normal(5, D), torch.arange(5), 1)
    with pytest.raises(ToolkitError, match=r"residues \[0, 1\] have no direction"):
        residue_features(torch.ones(6, D), torch.arange(6), 2)
    with pytest.raises(ToolkitError, match="latents=0"):
        Autoencoder(latents=0)
