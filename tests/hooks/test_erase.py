"""Erasure: what the theorem says, on ordinary data and on the data where rounding or scale would
break it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp_toolkit.accumulate import Accumulator
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks import _leace_moments
from mechinterp_toolkit.hooks.erase import (
    FreeFormEraser,
    FreeFormFitter,
    LeaceEraser,
    LeaceFitter,
    OracleEraser,
    OracleFitter,
    optimal_linear_shrinkage,
    quality,
    random_eraser,
    shuffled_eraser,
)
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.record import activations, record

EXACT = 1e-10
"""Part of a covariance that may be left. Float64 leaves about 1e-15; half an erasure leaves 0.1 or
more."""


def classes(
    n: int = 3000, d: int = 24, k: int = 4, *, seed: int = 0, shares: list[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Correlated Gaussian rows [n d] around k class means, and the class of each row."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(k) if shares is None else torch.tensor(shares)
    z = torch.multinomial(weights, n, replacement=True, generator=generator)
    z[: len(weights)] = torch.arange(len(weights))  # each class has a row
    means = 2 * torch.randn(len(weights), d, generator=generator, dtype=torch.float64)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + means[z], z


def one_hot(z: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(z).double()


def cross(x: Tensor, z: Tensor) -> Tensor:
    x, z = x.double(), z.double()
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


def covariance(x: Tensor) -> Tensor:
    return cross(x, x)


def left_over(erased: Tensor, x: Tensor, z: Tensor) -> float:
    """Largest part of a column of z's correlations with x that is left, whatever the units of x and
    z."""
    varies = x.double().std(0) > 1e-12 * x.double().abs().mean(0)
    sd = x.double().std(0)[varies, None]
    after, before = (cross(rows[:, varies], z) / sd for rows in (erased, x))
    there = before.norm(dim=0) > 0
    return (after.norm(dim=0) / before.norm(dim=0))[there].max().item()


# --- worked by hand ------------------------------------------------------------------------------


# Mean 0, S = [[1, 1], [1, 2]], class means -(1, 1) and (1, 1): C ~ (1, 1), S^-1 C = (1, 0), C' S^-1
# C = 1.
HAND_X = torch.tensor([[-1.0, -2.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
HAND_Z = torch.tensor([0, 0, 1, 1])


def test_two_classes_in_two_dimensions_by_hand():
    eraser = LeaceEraser.fit(HAND_X, HAND_Z)
    assert torch.allclose(
        eraser.P, torch.tensor([[0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64), atol=1e-15
    )
    expected = torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(eraser(HAND_X), expected, atol=1e-15)


def test_the_orthogonal_variant_by_hand():
    eraser = LeaceEraser.fit(HAND_X, HAND_Z, method="orth")
    assert torch.allclose(
        eraser.P, torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64), atol=1e-15
    )


def test_the_report_by_hand():
    report = LeaceFitter.fit(HAND_X, HAND_Z).report
    # Variance 3 falls to 1. x' - x = -(x1, x1) has mean square 2. S^-1/2 C / sd(z) has length 1: z
    # is read off exactly.
    assert report.n == 4
    assert report.rank == 1
    assert report.variance_removed == pytest.approx(2 / 3, abs=1e-14)
    assert report.distance == pytest.approx(2, abs=1e-14)
    assert report.least_correlation == pytest.approx(1, abs=1e-14)
    assert report.cross_covariance_left < 1e-14
    assert report.absent == ()


def test_without_affine_only_the_slope_is_applied():
    eraser = LeaceEraser.fit(HAND_X + torch.tensor([1.0, 0.0]), HAND_Z, affine=False)
    assert eraser.bias is None
    x = torch.tensor([[2.0, 5.0]], dtype=torch.float64)
    assert torch.allclose(eraser(x), torch.tensor([[0.0, 3.0]], dtype=torch.float64), atol=1e-14)


# --- nothing linear is left, however awkward the numbers -----------------------------------------


def balanced() -> tuple[Tensor, Tensor]:
    return classes()


def rare_class() -> tuple[Tensor, Tensor]:
    return classes(40_000, shares=[0.5, 0.4999, 1e-4])


def scaled_concept(scale: float) -> tuple[Tensor, Tensor]:
    x, z = classes()
    return x, scale * one_hot(z)


def large_mean() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return x + 1e4 * x.std(0), z


def outlier_dimensions() -> tuple[Tensor, Tensor]:
    x, z = classes()
    x[:, :3] *= 1e4
    return x, z


def fewer_rows_than_dimensions() -> tuple[Tensor, Tensor]:
    return classes(n=20, d=24)


def constant_dimensions() -> tuple[Tensor, Tensor]:
    x, z = classes()
    x[:, 2], x[:, 5], x[:, 9] = 0.1, 0.0, 1e6 + 0.1  # 0.1 and its mean are not exact in binary
    return x, z


def repeated_dimensions() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return torch.cat([x, x[:, :7], 3 * x[:, :2]], 1), z


def normalised_rows() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return torch.nn.functional.layer_norm(x, x.shape[1:]), z  # rows sum to zero


def more_columns_than_dimensions() -> tuple[Tensor, Tensor]:
    x, _ = classes()
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(x.shape[1], x.shape[1] + 5, generator=generator, dtype=torch.float64)
    return x, x @ mixing + torch.randn(
        len(x), x.shape[1] + 5, generator=generator, dtype=torch.float64
    )


def repeated_columns() -> tuple[Tensor, Tensor]:
    x, z = classes()
    return x, torch.cat([one_hot(z), 1e-3 * one_hot(z)[:, 1:], one_hot(z)[:, :1] + 7], 1)


def unordered_rows() -> tuple[Tensor, Tensor]:
    x, z = classes(5000)
    return x[z.argsort()], z.sort().values  # a batch holds one class, more rows than one chunk


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "balanced": balanced,
    "class of one row in 10,000": rare_class,
    "z in units of a millionth": lambda: scaled_concept(1e-6),
    "z in millions": lambda: scaled_concept(1e6),
    "mean of 10,000 sd": large_mean,
    "three dimensions 10,000 times larger": outlier_dimensions,
    "fewer rows than dimensions": fewer_rows_than_dimensions,
    "constant dimensions": constant_dimensions,
    "repeated dimensions": repeated_dimensions,
    "rows that sum to zero": normalised_rows,
    "more columns of z than dimensions": more_columns_than_dimensions,
    "repeated columns of z": repeated_columns,
    "sorted by class": unordered_rows,
}


@pytest.mark.parametrize("method", ["leace", "orth"])
@pytest.mark.parametrize("case", CASES)
def test_no_covariance_with_the_concept_is_left(case, method):
    x, z = CASES[case]()
    columns = one_hot(z) if z.dim() == 1 else z
    fitter = LeaceFitter.fit(x, z, method=method)
    erased = fitter.eraser(x)
    assert cross(erased, columns).norm() < EXACT * cross(x, columns).norm()
    assert left_over(erased, x, columns) < EXACT
    assert fitter.report.cross_covariance_left < EXACT


@pytest.mark.parametrize("shrinkage", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_neither_shrinkage_nor_leaving_out_the_mean_weakens_the_guarantee(shrinkage, affine):
    x, z = classes(n=60, d=24)
    eraser = LeaceEraser.fit(x, z, shrinkage=shrinkage, affine=affine)
    assert left_over(eraser(x), x, one_hot(z)) < EXACT


def test_a_concept_along_a_direction_of_almost_no_variance_is_erased():
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(4000, 24, generator=generator, dtype=torch.float64), torch.arange(4000) % 3
    across = torch.nn.functional.normalize(
        torch.randn(24, generator=generator, dtype=torch.float64), dim=0
    )
    x = x - (x @ across)[:, None] * across + 1e-8 * (z[:, None] - 1) * across
    # The direction's share of variance is 1e-17, below what an eigenvalue can tell from zero. Rows
    # are known to 1e-16 of their size, which is 1e-8 of the concept's.
    assert left_over(LeaceEraser.fit(x, z)(x), x, one_hot(z)) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_activations_are_erased_to_their_rounding(dtype):
    for case in (
        "balanced",
        "class of one row in 10,000",
        "three dimensions 10,000 times larger",
        "repeated dimensions",
    ):
        x, z = CASES[case]()
        x = x.float()
        erased = LeaceEraser.fit(x, z, dtype=dtype)(x)
        assert erased.dtype == torch.float32
        assert left_over(erased, x, one_hot(z)) < 1e-5, (
            case
        )  # eps is 1.2e-7; a whole class or dimension would be 1


def test_float32_products_under_a_large_mean_are_as_good_as_float64():
    x, z = large_mean()
    x = x.float()
    exact = LeaceFitter.fit(x, z)
    quick = LeaceFitter.fit(x, z, dtype=torch.float32)
    assert quality(quick.eraser, exact).cross_covariance_left < 1e-5
    assert torch.allclose(
        quick.sigma_xx, exact.sigma_xx, atol=1e-5
    )  # variances are about 5, eps is 1.2e-7


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision_activations_are_erased_to_their_rounding(dtype, most):
    x, z = classes()
    x = x.to(dtype)
    eraser = LeaceEraser.fit(x, z)
    erased = eraser(x)
    assert erased.dtype == dtype
    # What is left is the rounding of the result, a part in 2^9 and 2^12 of each number, averaged
    # over rows.
    assert left_over(erased, x, one_hot(z)) < most
    assert left_over(eraser(x.double()), x, one_hot(z)) < EXACT


# --- what no linear predictor can find -----------------------------------------------------------


def softmax_loss(scores: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores, target.argmax(-1))


def squared_loss(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).square().sum(-1).mean()


def squared_hinge_loss(scores: Tensor, target: Tensor) -> Tensor:
    return (1 - (2 * target - 1) * scores).clamp(min=0).square().sum(-1).mean()


def hinge_loss(scores: Tensor, target: Tensor) -> Tensor:
    return (1 - (2 * target - 1) * scores).clamp(min=0).sum(-1).mean()


def best_constant(loss: Callable[[Tensor, Tensor], Tensor], share: Tensor) -> Tensor:
    """The constant scores of least loss, by derivation."""
    if loss is softmax_loss:
        return share.log()
    return (
        share if loss is squared_loss else 2 * share - 1
    )  # squared hinge: p (1 - s)^2 + (1 - p) (1 + s)^2


@pytest.mark.parametrize("loss", [softmax_loss, squared_loss, squared_hinge_loss])
def test_the_constant_predictor_is_optimal_because_its_gradient_vanishes(loss):
    x, z = classes(shares=[0.6, 0.3, 0.1])
    target = one_hot(z)
    constant = best_constant(loss, target.mean(0))

    def gradients(rows: Tensor) -> tuple[float, float]:
        weight = torch.zeros(x.shape[1], target.shape[1], dtype=torch.float64, requires_grad=True)
        bias = constant.clone().requires_grad_()
        loss(rows @ weight + bias, target).backward()
        return weight.grad.abs().max().item(), bias.grad.abs().max().item()

    (before, _), (after, of_bias) = gradients(x), gradients(LeaceEraser.fit(x, z)(x))
    assert of_bias < 1e-14  # the constant is the best one
    assert before > 0.1
    assert after < 1e-12  # sums of 3000 float64 numbers of size 1


def test_the_hinge_loss_has_a_zero_subgradient_at_the_constant_predictor():
    x, z = classes(shares=[0.45, 0.35, 0.2])
    target = one_hot(z)
    # Every class is rarer than one half, so the best constant score is -1: rows of the class are
    # inside the margin with slope -1, the others exactly on the kink, where any slope in [0, 1]
    # will do. One slope makes the bias optimal.
    slope = target.mean(0) / (1 - target.mean(0))
    assert (slope <= 1).all()
    signs = -target + (1 - target) * slope

    def subgradient(rows: Tensor) -> float:
        return (rows.T @ signs / len(rows)).abs().max().item()

    assert signs.mean(0).abs().max() < 1e-15
    assert subgradient(x) > 0.1
    assert subgradient(LeaceEraser.fit(x, z)(x)) < 1e-12


def least_squares_probe(x: Tensor, z: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit one-against-rest by least squares, and return the predicted class of rows."""
    mean, target = x.mean(0), one_hot(z)
    ridge = 1e-9 * covariance(x).diagonal().mean() * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(covariance(x) + ridge, cross(x, target))
    return lambda rows: ((rows - mean) @ weight + target.mean(0)).argmax(-1)


def test_a_probe_falls_from_near_certainty_to_the_majority():
    x, z = classes(shares=[0.4, 0.3, 0.2, 0.1])
    erased = LeaceEraser.fit(x, z)(x)
    assert (least_squares_probe(x, z)(x) == z).double().mean() > 0.95
    assert (least_squares_probe(erased, z)(erased) == 0).all()


def tagged_words(folder: Path) -> tuple[list[str], Tensor]:
    """Words and part-of-speech numbers of the treebank."""
    lines = (folder / "ud_ewt" / "en_ewt-ud-dev.conllu").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in lines if line and not line.startswith("#")]
    cells = [row for row in cells if row[0].isdigit()]
    names = sorted({row[3] for row in cells})
    return [row[1] for row in cells], torch.tensor([names.index(row[3]) for row in cells])


def spelling(words: list[str], d: int = 128) -> Tensor:
    """Counts of a word's endings and beginnings, hashed to d columns."""
    import zlib

    x = torch.zeros(len(words), d, dtype=torch.float64)
    for row, word in enumerate(words):
        marked = f"^{word}$"
        for piece in {
            marked[:2],
            marked[:3],
            marked[:4],
            marked[-2:],
            marked[-3:],
            marked[-4:],
            marked.lower(),
        }:
            x[row, zlib.crc32(piece.encode()) % d] += 1
    return x


def test_part_of_speech_of_real_words_falls_to_the_majority_on_both_halves(shared_data):
    words, z = tagged_words(shared_data)
    words, z = words[:10_000], z[:10_000]
    x = spelling(words)
    half = len(x) // 2
    x, z, fresh, fresh_z = x[:half], z[:half], x[half:], z[half:]
    fitter = LeaceFitter.fit(x, z)
    probe, erased = least_squares_probe(x, z), fitter.eraser(x)
    blind = least_squares_probe(erased, z)
    assert fitter.eraser.rank == 16  # seventeen tags, the rarest of a few dozen words among them
    assert (probe(x) == z).double().mean() > 0.5
    assert (probe(fresh) == fresh_z).double().mean() > 0.5
    majority = z.bincount().argmax()
    assert (blind(erased) == majority).all()
    assert (blind(fitter.eraser(fresh)) == majority).all()


# --- the theorem's other statements --------------------------------------------------------------


def test_the_map_is_a_projection_that_keeps_the_mean_and_never_adds_variance():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    assert eraser.rank == 3
    assert torch.allclose(eraser.P @ eraser.P, eraser.P, atol=1e-12)
    assert torch.linalg.matrix_rank(torch.eye(24, dtype=torch.float64) - eraser.P).item() == 3
    assert torch.allclose(eraser(x).mean(0), x.mean(0), atol=1e-12)
    assert (
        torch.linalg.eigvalsh(covariance(x) - covariance(eraser(x))).min() > -1e-12
    )  # smaller in every direction


def test_erasing_twice_is_erasing_once_and_a_second_fit_finds_nothing():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    once = eraser(x)
    assert torch.allclose(eraser(once), once, atol=1e-12)
    assert LeaceFitter.fit(once, z).report.rank == 0


def test_the_distance_is_what_the_closed_form_says():
    x, z = classes()
    c = cross(x, one_hot(z))
    expected = (
        (c @ torch.linalg.pinv(c.T @ torch.linalg.inv(covariance(x)) @ c, rtol=1e-10) @ c.T)
        .trace()
        .item()
    )
    fitter = LeaceFitter.fit(x, z)
    assert (fitter.eraser(x) - x).square().sum(-1).mean().item() == pytest.approx(
        expected, rel=1e-10
    )
    assert fitter.report.distance == pytest.approx(expected, rel=1e-10)


def test_the_report_agrees_with_the_erased_rows():
    x, z = classes()
    for eraser in (
        LeaceEraser.fit(x, z),
        LeaceEraser.fit(x, z, method="orth"),
        random_eraser(24, 5).scaled(0.7),
    ):
        report, erased = quality(eraser, LeaceFitter.fit(x, z)), eraser(x)
        before, after = covariance(x).trace(), covariance(erased).trace()
        assert report.variance_removed == pytest.approx((1 - after / before).item(), abs=1e-10)
        assert report.distance == pytest.approx(covariance(erased - x).trace().item(), rel=1e-10)
        assert report.cross_covariance_left == pytest.approx(
            left_over(erased, x, one_hot(z)), abs=1e-10
        )


def test_canonical_correlations_are_those_of_an_independent_computation():
    x, z = classes()
    q, _ = torch.linalg.qr(x - x.mean(0))
    p, _ = torch.linalg.qr((one_hot(z) - one_hot(z).mean(0))[:, 1:])
    assert torch.allclose(
        LeaceFitter.fit(x, z).report.correlations, torch.linalg.svdvals(q.T @ p), atol=1e-10
    )


@pytest.mark.parametrize("seed", range(5))
def test_every_other_map_that_erases_moves_the_rows_further_in_every_metric(seed):
    x, z = classes(seed=seed)
    eraser = LeaceEraser.fit(x, z)
    generator = torch.Generator().manual_seed(seed)
    noise, metric = (
        torch.randn(24, 24, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    q = torch.linalg.qr(cross(x, one_hot(z))[:, 1:]).Q
    centred = x - x.mean(0)
    other = (
        centred @ (eraser.P + 0.1 * (noise - noise @ q @ q.T)).T
    )  # noise that is blind to the class means
    assert cross(other, one_hot(z)).abs().max() < 1e-12

    def distance(rows: Tensor) -> float:
        return ((rows - centred) @ metric).square().sum(-1).mean().item()

    assert distance(other) > distance(eraser(x) - x.mean(0))


def test_who_knows_more_moves_the_rows_less():
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(0, 3, (4000,), generator=generator)
    means = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    spread = torch.linspace(0.3, 2, 6, dtype=torch.float64)
    x = means[z] + spread * torch.randn(4000, 6, generator=generator, dtype=torch.float64)

    def posterior(rows: Tensor) -> Tensor:
        return (-((rows[:, None] - means) / spread).square().sum(-1) / 2).softmax(-1)

    oracle = OracleEraser.fit(x, z)(x, z)
    free = FreeFormEraser.fit(x, z, posterior)(x)
    leace, orth = LeaceEraser.fit(x, z)(x), LeaceEraser.fit(x, z, method="orth")(x)
    for erased in (oracle, free, leace, orth):
        assert left_over(erased, x, one_hot(z)) < EXACT
    distances = [
        (erased - x).square().sum(-1).mean().item() for erased in (oracle, free, leace, orth)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.9 * distances[2] < 0.9 * distances[3]


def test_erasure_commutes_with_every_invertible_affine_map_of_the_features():
    x, z = classes()
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    shift = torch.randn(24, generator=generator, dtype=torch.float64)
    erased = LeaceEraser.fit(x @ mixing.T + shift, z)(x @ mixing.T + shift)
    # Rounding grows with the condition number of the mixing, about 1e2 to 1e3 for a random 24 x 24
    # matrix.
    assert torch.allclose(erased, LeaceEraser.fit(x, z)(x) @ mixing.T + shift, atol=1e-9)


def test_how_the_concept_is_written_down_changes_nothing():
    x, z = classes()
    generator = torch.Generator().manual_seed(4)
    recoding = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    ways: list[Tensor] = [
        one_hot(z),
        one_hot(z)[:, 1:],
        one_hot(z) @ recoding,
        1e-5 * one_hot(z) + 3,
        (z + 1) % 4,
    ]
    ways += [one_hot(z).long(), one_hot(z).half(), z[:, None], z.to(torch.int8)]
    expected = LeaceEraser.fit(x, z).P
    for way in ways:
        assert torch.allclose(LeaceEraser.fit(x, way).P, expected, atol=1e-10)


def test_two_classes_are_one_column():
    x, z = classes(k=2)
    expected = LeaceEraser.fit(x, z).P
    for way in (z.double(), z == 1, z[:, None].double(), 2.0 * z - 1):
        assert torch.allclose(LeaceEraser.fit(x, way).P, expected, atol=1e-12)
    assert torch.allclose(LeaceFitter(24, 1).update(x, z).eraser.P, expected, atol=1e-12)


# --- streaming -----------------------------------------------------------------------------------


def same_statistics(one: LeaceFitter, other: LeaceFitter) -> None:
    """Equal but for the order of float64 sums over some thousand rows."""
    assert one.n == other.n
    for name in ("mean_x", "mean_z", "sigma_xx", "sigma_xz", "sigma_zz"):
        assert torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-11, atol=1e-12), (
            name
        )


def test_the_statistics_are_means_and_covariances():
    x, z = classes(5000)  # more than one chunk
    fitter = LeaceFitter.fit(x, z)
    assert fitter.n == 5000
    assert torch.allclose(fitter.mean_x, x.mean(0), atol=1e-12)
    assert torch.allclose(fitter.mean_z, one_hot(z).mean(0), atol=1e-12)
    assert torch.allclose(fitter.sigma_xx, covariance(x), atol=1e-12)
    assert torch.allclose(fitter.sigma_xz, cross(x, one_hot(z)), atol=1e-12)
    assert torch.allclose(fitter.sigma_zz, covariance(one_hot(z)), atol=1e-12)


def test_blocks_of_products_cover_every_pair_of_features(monkeypatch):
    monkeypatch.setattr(_leace_moments, "BLOCK", 5)  # does not divide 24
    x, z = classes()
    assert torch.allclose(LeaceFitter.fit(x, z).sigma_xx, covariance(x), atol=1e-12)
    assert torch.allclose(
        LeaceFitter.fit(x, z, dtype=torch.float32).sigma_xx, covariance(x), atol=1e-5
    )


@given(st.lists(st.integers(0, 300), max_size=6), st.booleans(), st.integers(0, 99))
@settings(max_examples=25)
def test_batches_may_be_cut_merged_and_permuted(cuts, real, seed):
    x, z = classes(300, d=7)
    labels = one_hot(z) * 3 + 100 if real else z
    order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
    whole, parts = LeaceFitter(7, 4).update(x, labels), []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 300], strict=True):
        parts.append(LeaceFitter(7, 4).update(x[order][start:stop], labels[order][start:stop]))
    middle = len(parts) // 2
    for part in parts[1:middle]:
        parts[0].merge(part)
    for part in parts[middle + 1 :]:
        parts[middle].merge(part)
    if middle:
        parts[0].merge(parts[middle])
    same_statistics(parts[0], whole)


def test_the_eraser_is_fitted_anew_after_an_update_or_a_merge_and_only_then():
    x, z = classes()
    fitter = LeaceFitter.fit(x[:1000], z[:1000])
    first = fitter.eraser
    assert fitter.eraser is first
    fitter.update(x[1000:2000], z[1000:2000])
    assert torch.allclose(fitter.eraser.P, LeaceEraser.fit(x[:2000], z[:2000]).P, atol=1e-11)
    fitter.merge(LeaceFitter(24, 4).update(x[2000:], z[2000:]))
    assert torch.allclose(fitter.eraser.P, LeaceEraser.fit(x, z).P, atol=1e-11)
    assert torch.allclose(
        first.bias, x[:1000].mean(0), atol=1e-12
    )  # an eraser handed out stays what it was


def test_masked_rows_do_not_count_whatever_they_hold():
    x, z = classes(40 * 9)
    x, z = x.reshape(40, 9, 24), z.reshape(40, 9)
    mask = torch.arange(9) < torch.randint(
        1, 10, (40, 1), generator=torch.Generator().manual_seed(0)
    )
    padded, labels = x.masked_fill(~mask[..., None], float("nan")), z.masked_fill(~mask, -100)
    expected = LeaceFitter(24, 4).update(x[mask], z[mask])
    same_statistics(LeaceFitter(24, 4).update(padded, labels, mask=mask), expected)
    same_statistics(LeaceFitter.fit(padded, labels, mask), expected)
    columns = one_hot(z).masked_fill(~mask[..., None], float("nan"))
    same_statistics(LeaceFitter(24, 4).update(padded, columns, mask=mask), expected)


def test_a_label_of_a_prompt_counts_for_all_its_positions():
    x, z = classes(40 * 9)
    x, z = x.reshape(40, 9, 24), z[:40]
    spread = z[:, None].expand(40, 9).reshape(-1)
    expected = LeaceFitter(24, 4).update(x.reshape(-1, 24), spread)
    same_statistics(LeaceFitter(24, 4).update(x, z), expected)
    same_statistics(LeaceFitter(24, 4).update(x, one_hot(z)), expected)
    mask = torch.ones(40, dtype=torch.bool)
    mask[7] = False
    kept = mask[:, None].expand(40, 9).reshape(-1)
    expected = LeaceFitter(24, 4).update(x.reshape(-1, 24)[kept], spread[kept])
    same_statistics(LeaceFitter(24, 4).update(x, z, mask=mask), expected)


def test_a_batch_that_raises_leaves_the_statistics_as_they_were():
    x, z = classes(9000)
    fitter, untouched = LeaceFitter.fit(x, z), LeaceFitter.fit(x, z)
    x[8000, 3] = float("inf")  # in the second chunk
    with pytest.raises(ToolkitError, match="NaN or infinity"):
        fitter.update(x, z)
    same_statistics(fitter, untouched)


def test_statistics_travel_between_processes_without_their_scratch_memory():
    x, z = classes()
    fitter = LeaceFitter.fit(x, z)
    sent = pickle.dumps(fitter)
    same_statistics(pickle.loads(sent), fitter)
    assert (
        len(sent) < 2 * 8 * (24 * 24 + 2 * 24 * 4) + 20_000
    )  # the batch alone would be 576,000 bytes
    assert torch.allclose(pickle.loads(sent).merge(fitter).eraser.P, fitter.eraser.P, atol=1e-11)


def test_a_merge_with_float32_statistics_is_judged_as_float32():
    x, z = repeated_dimensions()
    merged = LeaceFitter.fit(x, z).merge(LeaceFitter.fit(x, z, dtype=torch.float32))
    # Repeated dimensions are singular only to the rounding of float32; taken for regular they would
    # be noise over noise.
    assert merged.eraser.proj_right.abs().max() < 100
    assert left_over(merged.eraser(x), x, one_hot(z)) < 1e-5


# --- as an edit ----------------------------------------------------------------------------------


def test_the_eraser_gives_a_new_tensor_of_the_same_shape_and_dtype():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    activation = x[:60].reshape(4, 3, 5, 24).float()
    kept = activation.clone()
    erased = eraser(activation, hook=None)
    assert erased.shape == activation.shape
    assert erased.dtype == torch.float32
    assert torch.equal(activation, kept)
    assert torch.allclose(erased.reshape(60, 24).double(), eraser(x[:60]), atol=1e-5)


def test_erasing_by_blocks_in_place_and_with_gradients_is_the_same():
    x, z = classes(6000)
    eraser = LeaceEraser.fit(x, z)
    expected = x - (x - eraser.bias) @ eraser.proj_right.T @ eraser.proj_left.T
    assert torch.allclose(eraser(x), expected, atol=1e-12)
    assert torch.allclose(
        eraser(x.T.contiguous().T), expected, atol=1e-12
    )  # columns one after the other
    leaf = x.clone().requires_grad_()
    assert torch.allclose(eraser(leaf), expected, atol=1e-12)
    for dtype, most in (
        (torch.float64, 1e-12),
        (torch.bfloat16, 0.05),
    ):  # numbers up to 10, eps of bfloat16 is 1/128
        again = x.to(dtype)
        assert eraser.erase_(again) is again
        assert torch.allclose(again.double(), expected, atol=most)
    slope = LeaceEraser(eraser.proj_left, eraser.proj_right, None)
    assert torch.allclose(slope(x), x @ eraser.P.T, atol=1e-12)


def test_gradients_flow_through_the_projection():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    leaf = x[:5].clone().requires_grad_()
    direction = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (eraser(leaf) @ direction).sum().backward()
    assert torch.allclose(leaf.grad, (eraser.P.T @ direction).expand(5, 24), atol=1e-12)


def test_class_means_are_equal_at_the_hook_point_of_the_edited_model(wrapped):
    tokens = torch.randint(3, 60, (24, 7), generator=torch.Generator().manual_seed(2))
    name, labels = "blocks.1.hook_resid_pre", tokens % 3
    mask = torch.arange(7) < torch.randint(
        4, 8, (24, 1), generator=torch.Generator().manual_seed(3)
    )
    fitter = LeaceFitter(32, 3)
    assert isinstance(fitter, Accumulator)
    record(wrapped, tokens, {name: fitter}, mask=mask, labels=labels, batch_size=5)
    assert fitter.n == int(mask.sum())

    def class_means(edits: dict[str, Any]) -> Tensor:
        x = activations(wrapped, tokens, (name,), mask=mask, edits=edits)[name][mask]
        return torch.stack([x[labels[mask] == c].mean(0) for c in range(3)])

    before, after = class_means({}), class_means({name: fitter.eraser})
    assert (before - before.mean(0)).abs().max() > 0.01
    # Rounding of float32 sums of some hundred numbers of size 1.
    assert (after - after.mean(0)).abs().max() < 1e-5 * before.abs().max().clamp(min=1)
    with torch.no_grad():
        plain = wrapped.logits(tokens, mask)
        with applied(wrapped, {name: fitter.eraser}):
            edited = wrapped.logits(tokens, mask)
        assert torch.equal(wrapped.logits(tokens, mask), plain)
    assert (edited - plain)[mask].abs().max() > 1e-3


def test_an_eraser_is_saved_and_loaded_bit_by_bit(tmp_path):
    x, z = classes()
    for affine in (True, False):
        eraser = LeaceEraser.fit(x, z, affine=affine).to(dtype=torch.float32)
        eraser.save(tmp_path / "eraser.safetensors")
        again = LeaceEraser.load(tmp_path / "eraser.safetensors")
        assert torch.equal(again.proj_left, eraser.proj_left)
        assert torch.equal(again.proj_right, eraser.proj_right)
        assert (again.bias is None) if eraser.bias is None else torch.equal(again.bias, eraser.bias)
        assert torch.equal(again(x.float()), eraser(x.float()))


def test_a_saved_eraser_holds_its_own_numbers_only(tmp_path):
    x, z = classes(d=24)
    LeaceEraser.fit(x, z).save(tmp_path / "eraser.safetensors")
    numbers = 8 * (2 * 3 * 24 + 24)  # a view of a larger tensor would bring all of it along
    assert numbers < (tmp_path / "eraser.safetensors").stat().st_size < numbers + 1000


def test_dtype_and_device_moves_keep_the_map():
    x, z = classes()
    eraser = LeaceEraser.fit(x, z)
    assert eraser.proj_left.dtype == torch.float64
    assert torch.equal(eraser.to("cpu").P, eraser.P)
    small = eraser.to(dtype=torch.float32)
    assert {part.dtype for part in (small.proj_left, small.proj_right, small.bias)} == {
        torch.float32
    }
    assert torch.allclose(small.P.double(), eraser.P, atol=1e-5)
    if torch.cuda.is_available():
        assert torch.allclose(eraser.to("cuda")(x.cuda()).cpu(), eraser(x), atol=1e-12)
        fitter = LeaceFitter.fit(x.cuda(), z.cuda())
        assert fitter.sigma_xx.is_cuda
        assert torch.allclose(fitter.eraser.P.cpu(), eraser.P, atol=1e-10)


# --- oracle and free form ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        "balanced",
        "class of one row in 10,000",
        "z in units of a millionth",
        "mean of 10,000 sd",
        "more columns of z than dimensions",
        "repeated columns of z",
    ],
)
def test_the_oracle_leaves_the_residual_of_least_squares(case):
    x, z = CASES[case]()
    columns = one_hot(z) if z.dim() == 1 else z
    erased = OracleEraser.fit(x, z)(x, z)
    assert left_over(erased, x, columns) < EXACT
    scaled = (columns - columns.mean(0)) / columns.std(0)
    fitted = scaled @ torch.linalg.lstsq(scaled, x - x.mean(0), driver="gelsd").solution
    assert torch.allclose(erased, x - fitted, atol=1e-8 * x.abs().max().item())


def test_oracle_statistics_merge_and_take_masks():
    x, z = classes()
    mask = torch.arange(len(x)) % 3 > 0
    whole = OracleFitter(24, 4).update(x, z, mask=mask).eraser
    merged = OracleFitter(24, 4).update(x[:1000], z[:1000], mask=mask[:1000])
    merged.merge(OracleFitter(24, 4).update(x[1000:], z[1000:], mask=mask[1000:]))
    assert torch.allclose(merged.eraser.coef, whole.coef, atol=1e-11)
    assert torch.allclose(whole(x[mask], z[mask]).mean(0), x[mask].mean(0), atol=1e-12)
    assert whole(x[:9].reshape(3, 3, 24).float(), z[:9].reshape(3, 3)).dtype == torch.float32


def test_the_free_form_erases_with_any_predictor_that_sees_the_whole_concept():
    x, z = classes()
    weight = torch.randn(24, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for predictor in (
        lambda rows: (rows @ weight).tanh(),
        lambda rows: 1e-7 * (rows @ weight).exp() + 3,
    ):
        eraser = FreeFormEraser.fit(x, z, predictor)
        assert left_over(eraser(x), x, one_hot(z)) < EXACT
        assert torch.allclose(eraser(x).mean(0), x.mean(0), atol=1e-9)


def test_the_free_form_streams_and_takes_one_score_for_two_classes():
    x, z = classes(k=2)

    def score(rows: Tensor) -> Tensor:
        return (rows[:, :1] - rows[:, 1:2]).sigmoid()

    fitter = FreeFormFitter(score, 24, 2, f_dim=1)
    for start in range(0, len(x), 700):
        fitter.update(x[start : start + 700], z[start : start + 700])
    assert (
        left_over(fitter.eraser(x.reshape(30, 100, 24), hook=None).reshape(-1, 24), x, one_hot(z))
        < EXACT
    )


@pytest.mark.parametrize(("predictor", "words"), [
    (lambda rows: rows.new_ones(len(rows), 4), "says nothing about a part"),
    (lambda rows: rows[:, :1].expand(-1, 4), "says nothing about a part"),
    (lambda rows: rows[:, :3], "f_dim=4"),
])  # fmt: skip
def test_a_predictor_that_cannot_erase_is_refused(predictor, words):
    x, z = classes()
    with pytest.raises(ToolkitError, match=words):
        FreeFormEraser.fit(x, z, predictor)


# --- controls and shrinkage ----------------------------------------------------------------------


def test_a_random_eraser_projects_off_random_directions():
    eraser = random_eraser(24, 5, seed=1)
    assert eraser.rank == 5
    assert torch.allclose(eraser.P, eraser.P.T, atol=1e-14)
    assert torch.allclose(eraser.P @ eraser.P, eraser.P, atol=1e-14)
    assert torch.equal(random_eraser(24, 5, seed=1).P, eraser.P)
    assert not torch.allclose(random_eraser(24, 5, seed=2).P, eraser.P, atol=0.1)
    mean = torch.arange(24.0)
    assert torch.allclose(random_eraser(24, 5, mean=mean)(mean[None]), mean[None])
    with pytest.raises(ToolkitError, match=r"between 0 and 24 directions.*not 25"):
        random_eraser(24, 25)


@pytest.mark.parametrize("method", ["leace", "orth"])
def test_the_shuffled_control_has_the_rank_and_the_distance_of_the_eraser_and_leaves_the_concept(
    method,
):
    x, z = classes()
    fitter = LeaceFitter.fit(x, z, method=method)
    control = shuffled_eraser(fitter, seed=3)
    assert control.rank == fitter.eraser.rank == 3
    report = quality(control, fitter)
    assert report.distance == pytest.approx(fitter.report.distance, rel=1e-10)
    assert (
        report.cross_covariance_left > 0.3
    )  # 1 is all of it; a stretched control also mirrors what it removes
    assert torch.allclose(control(x).mean(0), x.mean(0), atol=1e-11)
    exact = shuffled_eraser(fitter, seed=3, matched=False)
    assert torch.allclose(exact.P @ exact.P, exact.P, atol=1e-11)


@pytest.mark.parametrize("method", ["leace", "orth"])
def test_the_shuffled_control_moves_rows_as_shuffled_labels_do(method):
    x, z = classes(800, d=10)
    fitter = LeaceFitter.fit(x, z, method=method)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.tensor(
        [
            LeaceFitter.fit(
                x, z[torch.randperm(800, generator=generator)], method=method
            ).report.distance
            for _ in range(150)
        ]
    )
    drawn = torch.tensor(
        [
            quality(shuffled_eraser(fitter, seed=s, matched=False), fitter).distance
            for s in range(150)
        ]
    )
    error = ((shuffled.var() + drawn.var()) / 150).sqrt()
    assert (
        shuffled.mean() - drawn.mean()
    ).abs() < 4 * error  # one chance in 10,000 for equal means
    assert 0.7 < shuffled.std() / drawn.std() < 1.4  # the ratio's standard error is 0.08


def test_shrinkage_by_hand():
    # tr = 4, p = 2, |S|^2 - tr^2 / p = 2, tr^2 / n = 16 / 32: three quarters of S.
    shrunk = optimal_linear_shrinkage(torch.diag(torch.tensor([3.0, 1.0])), 32)
    assert torch.allclose(shrunk, torch.diag(torch.tensor([2.75, 1.25])))


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 10**9])
def test_shrinkage_mixes_within_bounds_and_keeps_the_trace(n):
    x, _ = classes(40, d=24)
    sigma = covariance(x)
    shrunk = optimal_linear_shrinkage(torch.stack([sigma, 5 * sigma]), n)
    target = torch.eye(24, dtype=torch.float64) * sigma.trace() / 24
    weight = ((shrunk[0] - target).norm() / (sigma - target).norm()).item()
    assert 0 <= weight <= 1
    assert torch.allclose(shrunk[0], weight * sigma + (1 - weight) * target, atol=1e-12)
    assert torch.allclose(shrunk[1], 5 * shrunk[0], atol=1e-12)
    assert (weight > 0.999) == (n == 10**9)


def test_shrinking_what_is_isotropic_already_changes_nothing():
    for sigma in (2 * torch.eye(5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)):
        assert torch.equal(optimal_linear_shrinkage(sigma, 100), sigma)


def test_a_threshold_on_correlations_keeps_what_is_below():
    x, z = classes()
    correlations = LeaceFitter.fit(x, z).report.correlations
    between = (correlations[1] + correlations[2]).item() / 2
    report = LeaceFitter.fit(x, z, rank_tol=between).report
    assert report.rank == 2
    assert report.least_correlation == pytest.approx(correlations[1].item())
    assert report.cross_covariance_left > 0.01


# --- refused, or right ---------------------------------------------------------------------------


def refused(words: str, run: Callable[[], object]) -> None:
    with pytest.raises(ToolkitError, match=words):
        run()


def test_class_numbers_in_one_real_column_are_refused():
    x, z = classes()
    refused("one-hot.*numeric=True", lambda: LeaceEraser.fit(x, z.double()))
    refused("give integers", lambda: LeaceFitter(24, 1).update(x, z))
    refused("give integers", lambda: LeaceEraser.fit(x, z[:, None].float()))
    refused(
        "class numbers in floating point are not", lambda: LeaceFitter(24, 4).update(x, z.double())
    )


def test_class_numbers_in_one_real_column_are_refused_when_batches_show_them_bit_by_bit():
    x, z = classes()
    fitter = LeaceFitter(24, 1)
    for c in (0, 3):
        fitter.update(x[z == c], z[z == c].double())
    refused("0, 1, 3", lambda: fitter.update(x[z == 1], z[z == 1].double()))
    refused(
        "0, 2, 3", lambda: fitter.merge(LeaceFitter(24, 1).update(x[z == 2], z[z == 2].double()))
    )
    assert fitter.n == int(((z == 0) | (z == 3)).sum())


def test_a_quantity_in_one_column_is_erased():
    x, z = classes()
    for quantity in (z + 0.5 * x[:, 0], (2 * x[:, 0]).exp()):
        assert left_over(LeaceEraser.fit(x, quantity)(x), x, quantity[:, None]) < EXACT
    years = (1900 + 10 * x[:, 0]).round()
    assert left_over(LeaceEraser.fit(x, years, numeric=True)(x), x, years[:, None]) < EXACT
    assert (
        left_over(LeaceEraser.fit(x, years.long()[:, None].double() / 3)(x), x, years[:, None])
        < EXACT
    )


def test_the_refused_column_would_have_left_half_of_the_class_means():
    x, z = classes()
    erased = LeaceEraser.fit(x, z.double(), numeric=True)(x)
    assert left_over(erased, x, one_hot(z)) > 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(bad):
    x, z = classes()
    columns = one_hot(z)
    x[17, 3], columns[5, 1] = bad, bad
    refused(r"x holds NaN or infinity.*1 of 24 columns, first \[3\]", lambda: LeaceEraser.fit(x, z))
    refused(
        r"z holds NaN or infinity.*first \[1\]",
        lambda: LeaceEraser.fit(torch.ones_like(x), columns),
    )
    refused("z holds NaN or infinity", lambda: LeaceEraser.fit(torch.ones_like(x), columns[:, 1]))


def test_one_class_one_row_and_no_row_are_refused():
    x, z = classes()
    refused("z is the same in all 3000 rows", lambda: LeaceEraser.fit(x, torch.zeros_like(z)))
    refused("z is the same", lambda: LeaceFitter(24, 4).update(x, torch.full_like(z, 2)).eraser)
    refused("z is the same", lambda: LeaceEraser.fit(x, torch.full((3000, 2), 0.1)))
    refused("z is the same", lambda: OracleEraser.fit(x, torch.zeros_like(z)))
    refused("at least two rows; 1 has", lambda: LeaceFitter(24, 4).update(x[:1], z[:1]).eraser)
    refused("no row has been seen", lambda: LeaceFitter(24, 4).eraser)
    refused(
        "no row has been seen",
        lambda: LeaceFitter(24, 4).update(x, z, torch.zeros(3000, dtype=torch.bool)).eraser,
    )


def test_a_class_without_rows_is_reported_and_the_others_are_erased():
    x, z = classes()
    report = LeaceFitter(24, 7).update(x, z).report
    assert report.absent == (4, 5, 6)
    assert report.rank == 3
    assert report.cross_covariance_left < EXACT


def test_activations_that_never_vary_or_are_too_small_are_refused():
    x, z = classes()
    refused("x is the same in all 3000 rows", lambda: LeaceEraser.fit(torch.full_like(x, 0.1), z))
    refused(
        "too small",
        lambda: LeaceEraser.fit(torch.cat([x, 1e-30 * x], 1).float(), z, dtype=torch.float32),
    )
    assert left_over(LeaceEraser.fit(1e-30 * x, z)(1e-30 * x), x, one_hot(z)) < 1e-30 * EXACT
    refused("too large", lambda: LeaceEraser.fit((1e25 * x).float(), z, dtype=torch.float32))


@pytest.mark.parametrize(("label", "words"), [
    (lambda z: z - 1, "class number -1.*Mask rows"),
    (lambda z: z + 1, "class number 4, but with z_dim=4 the last is 3"),
    (lambda z: z[:-1], r"\(2999,\).*does not label x with rows \(3000,\)"),
    (lambda z: one_hot(z)[:, :3], r"\(3000, 3\).*z_dim=4"),
    (lambda z: one_hot(z) + 0j, "complex128; a concept is real"),
    (lambda z: None, "needs labels"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_refused(label, words):
    x, z = classes()
    refused(words, lambda: LeaceFitter(24, 4).update(x, label(z)))


def test_labels_that_could_be_read_in_two_ways_are_refused():
    x, z = classes(40 * 4)
    labels = one_hot(
        z[:40]
    ).long()  # one-hot rows of 40 prompts, or a class number at each of 4 positions
    refused(
        "could be class numbers.*or one-hot",
        lambda: LeaceFitter(24, 4).update(x.reshape(40, 4, 24), labels),
    )


def test_class_numbers_with_gaps_are_refused_where_the_number_of_classes_is_read_off():
    x, z = classes()
    refused(
        "go up to 50256 for 3000 rows.*unique",
        lambda: LeaceEraser.fit(x, torch.where(z == 0, 50256, 0)),
    )
    refused("class number -100", lambda: LeaceEraser.fit(x, torch.where(z == 0, -100, z)))


def test_masks_and_widths_that_do_not_fit_are_refused():
    x, z = classes()
    refused(
        r"mask has shape \(2,\)",
        lambda: LeaceFitter(24, 4).update(x, z, torch.ones(2, dtype=torch.bool)),
    )
    refused("x has 24 features.*x_dim=23", lambda: LeaceFitter(23, 4).update(x, z))
    eraser = LeaceEraser.fit(x, z)
    refused("fitted on 24 features; the activation has 23", lambda: eraser(x[:, 1:]))
    refused("contiguous", lambda: eraser.erase_(x.T.contiguous().T))
    refused("without gradient", lambda: eraser.erase_(x.clone().requires_grad_()))


def test_settings_that_make_no_sense_are_refused():
    x, z = classes()
    refused(
        "float64 or float32, not torch.bfloat16", lambda: LeaceFitter(24, 4, dtype=torch.bfloat16)
    )
    refused("would leave a part", lambda: LeaceEraser.fit(x, z).to(dtype=torch.float16))
    refused("at least 1; got 0", lambda: LeaceFitter(0, 4))
    refused("z_dim 4 and 5 do not merge", lambda: LeaceFitter(24, 4).merge(LeaceFitter(24, 5)))
    refused("merges with its own kind", lambda: OracleFitter.fit(x, z).merge(LeaceFitter.fit(x, z)))


def test_an_unknown_method_is_refused():
    fit = getattr(
        LeaceFitter, "__wrapped__", LeaceFitter
    )  # the type checker of the tests would speak first
    with pytest.raises(Exception, match="orth"):
        fit(24, 4, method="qr")


def test_files_that_hold_no_eraser_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    refused("no eraser could be read", lambda: LeaceEraser.load(path))
    path.write_bytes(b"not safetensors")
    refused("no eraser could be read", lambda: LeaceEraser.load(path))
    save_file({"proj_left": torch.ones(3, 1)}, str(path))
    refused("no kind.*not a LeaceEraser", lambda: LeaceEraser.load(path))


def test_a_direction_that_is_only_rounding_is_left_alone():
    """Behind a LayerNorm float32 features add up to zero but for rounding; to whiten that would
    magnify it a million times."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(3, (2000,), generator=generator)
    x = torch.randn(2000, 32, generator=generator) + torch.randn(3, 32, generator=generator)[z]
    x = torch.nn.functional.layer_norm(x, (32,))
    assert 0 < x.double().sum(1).std() < 1e-5
    eraser = LeaceEraser.fit(x, z)
    assert torch.linalg.matrix_norm(eraser.P, 2) < 10
    for rows in (x, x.double()):
        means = torch.stack([eraser(rows)[z == k].double().mean(0) for k in range(3)])
        assert (
            means[:, None] - means[None]
        ).abs().max() < 1e-6  # a few units of the last digit of float32
