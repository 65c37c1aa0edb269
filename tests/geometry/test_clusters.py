"""Groups of dictionary directions, and how flat what they write is."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse import csc_matrix

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.clusters import (
    active_rows,
    decoder_clusters,
    partial_reconstruction,
    plane_shares,
    real_components,
    shares_of,
)
from mechinterp_toolkit.nulls import max_statistic_p


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=-1, keepdim=True)


def group_of(shape: str, k: int, d: int, seed: int) -> torch.Tensor:
    """k directions with pairwise cosine about .6: around a circle, or anywhere."""
    frame = torch.linalg.qr(unit(d, 3, seed=seed))[0].T
    angle = 2 * torch.pi * torch.arange(k) / k
    around = torch.stack([angle.cos(), angle.sin()], 1).double() @ frame[1:]
    off = around if shape == "circle" else unit(k, d, seed=seed + 1)
    return 0.6**0.5 * frame[0] + 0.4**0.5 * off


def one_at_a_time(k: int, tokens: int, seed: int) -> csc_matrix:
    """Codes in which every token has one latent of k, at about 1."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.zeros(tokens, k, dtype=torch.float64)
    which = torch.randint(k, (tokens,), generator=generator)
    codes[torch.arange(tokens), which] = 1 + 0.1 * torch.randn(
        tokens, generator=generator, dtype=torch.float64
    )
    return csc_matrix(codes.numpy())


def dictionary(shape: str, seed: int = 0) -> torch.Tensor:
    """Seven directions that belong together, and 60 that do not."""
    return torch.cat([group_of(shape, 7, 128, seed), unit(60, 128, seed=seed + 2)])


def scaled(directions: torch.Tensor) -> torch.Tensor:
    return directions * (
        0.1 + 3 * torch.rand(len(directions), 1, generator=torch.Generator().manual_seed(3))
    )


def test_directions_that_point_to_one_side_are_one_group_whatever_their_norms():
    directions = scaled(dictionary("circle"))
    directions[30] = 0
    assert [g.tolist() for g in decoder_clusters(directions)] == [[0, 1, 2, 3, 4, 5, 6]]


def test_the_spectral_method_cuts_between_groups():
    directions = scaled(torch.cat([group_of("random", 7, 128, seed=10 * i) for i in range(5)]))
    groups = decoder_clusters(directions, method="spectral", clusters=5)
    assert [g.tolist() for g in groups] == [list(range(7 * i, 7 * i + 7)) for i in range(5)]


def test_the_same_seed_gives_the_same_spectral_groups():
    first, second = (
        decoder_clusters(dictionary("random"), method="spectral", clusters=9, seed=4)
        for _ in range(2)
    )
    assert [g.tolist() for g in first] == [g.tolist() for g in second]


def test_a_graph_that_is_too_strict_has_no_groups():
    assert decoder_clusters(dictionary("circle"), threshold=0.99) == ()


def test_shares_are_those_of_a_principal_component_analysis_of_the_rows():
    codes = csc_matrix(
        torch.rand(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    )
    directions, group = unit(6, 9), torch.arange(6)
    rows, points = partial_reconstruction(codes, directions, group)
    assert rows.tolist() == list(range(50))
    variance = torch.linalg.svdvals(points - points.mean(0)) ** 2
    expected = [(variance[i] + variance[i + 1]) / variance[i:].sum() for i in range(4)]
    firing = torch.cov(active_rows(codes, group)[1].T, correction=0)
    # Both are float64 sums of the same numbers.
    assert torch.allclose(
        shares_of(firing, directions @ directions.T, 4), torch.stack(expected), atol=1e-10
    )


def test_only_tokens_with_an_active_latent_are_in_the_reconstruction():
    codes = csc_matrix(
        torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 5.0], [1.0, 1.0, 0.0]]).double().numpy()
    )
    rows, points = partial_reconstruction(codes, torch.eye(3).double(), torch.tensor([0, 1]))
    assert rows.tolist() == [0, 2]
    assert points.tolist() == [[0, 2, 0], [1, 1, 0]]


def adjusted(shape: str, seed: int) -> float:
    """Smallest p-value of the planes of the first seven directions."""
    directions = dictionary(shape, seed)
    codes = one_at_a_time(67, 800, seed)
    shares = plane_shares(codes, directions, (torch.arange(7),), draws=99, seed=seed)
    return float(
        max_statistic_p(
            shares.value[shares.measured], shares.null[:, shares.measured], studentise=True
        ).min()
    )


def test_a_circle_is_flatter_than_its_null():
    assert adjusted("circle", 0) == 1 / 100


def test_directions_that_merely_point_to_one_side_are_not_flatter_than_their_null():
    rejected = sum(adjusted("random", 10 * seed) <= 0.05 for seed in range(40))
    assert rejected <= 6  # a right test exceeds this in 1.4 % of 40 trials


def test_small_groups_have_no_share():
    shares = plane_shares(
        one_at_a_time(67, 100, 0),
        dictionary("circle"),
        (torch.arange(2), torch.arange(3)),
        draws=9,
        seed=0,
    )
    assert shares.measured.tolist() == [[False] * 4, [True, False, False, False]]


def test_planes_of_rounding_have_no_share():
    """A circle whose directions all fire alike has two components, and one more where they fire
    unequally."""
    directions = dictionary("circle").float()
    for codes, dimensions in (
        (csc_matrix(torch.eye(67).double().numpy()), 2),
        (one_at_a_time(67, 800, 0), 3),
    ):
        assert real_components(active_rows(codes, torch.arange(7))[1], directions[:7]) == dimensions
        shares = plane_shares(codes, directions, (torch.arange(7),), draws=9, seed=0)
        assert shares.measured.tolist() == [[plane < dimensions - 1 for plane in range(4)]]
        assert (shares.value[~shares.measured] == 0).all()


def test_components_are_counted_by_the_dtype_their_directions_are_stored_in():
    directions = group_of("circle", 7, 128, 0) + 1e-5 * group_of("random", 7, 128, 5)
    values = torch.eye(7).double()
    assert real_components(values, directions) == 6  # all but the mean
    assert real_components(values, directions.float()) == 6
    assert real_components(values, directions.bfloat16()) == 2
    # What rounding to float32 adds to an exact circle is no component.
    assert real_components(values, group_of("circle", 7, 128, 0).float()) == 2


def test_latents_that_never_fire_have_no_share():
    shares = plane_shares(
        csc_matrix((10, 67)), dictionary("circle"), (torch.arange(7),), draws=9, seed=0
    )
    assert not shares.measured.any()


def test_what_cannot_be_grouped_is_refused():
    with pytest.raises(ToolkitError, match="got 1 directions that are not zero"):
        decoder_clusters(torch.eye(3)[:1])
    with pytest.raises(ToolkitError, match="clusters=3 for 3 directions; expected between 2 and 2"):
        decoder_clusters(torch.eye(3), method="spectral", clusters=3)
