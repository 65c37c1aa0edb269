"""What the LEACE theorem says: no linear predictor is left, and nothing moves the rows less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechinterp_toolkit.hooks.erase import (
    FreeFormEraser,
    LeaceEraser,
    LeaceFitter,
    OracleEraser,
    quality,
    random_eraser,
)
from tests.hooks.erasure import (
    EXACT,
    classes,
    covariance,
    cross,
    left_over,
    one_hot,
)

# --- what no linear predictor can find -----------------------------------------------------------


def softmax_loss(scores: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores, target.argmax(-1))


def squared_loss(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).square().sum(-1).mean()


def squared_hinge_loss(scores: Tensor, target: Tensor) -> Tensor:
    return (1 - (2 * target - 1) * scores).clamp(min=0).square().sum(-1).mean()


def best_constant(loss: Callable[[Tensor, Tensor], Tensor], share: Tensor) -> Tensor:
    """The constant scores of least loss, by derivation."""
    if loss is softmax_loss:
        return share.log()
    # Squared hinge: p (1 - s)^2 + (1 - p) (1 + s)^2.
    return share if loss is squared_loss else 2 * share - 1


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
    # Smaller in every direction.
    assert torch.linalg.eigvalsh(covariance(x) - covariance(eraser(x))).min() > -1e-12


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
    # Noise that is blind to the class means.
    other = centred @ (eraser.P + 0.1 * (noise - noise @ q @ q.T)).T
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
    left, right = (
        torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q
        for _ in range(2)
    )
    mixing = left * torch.linspace(1, 10, 24, dtype=torch.float64) @ right
    shift = torch.randn(24, generator=generator, dtype=torch.float64)
    erased = LeaceEraser.fit(x @ mixing.T + shift, z)(x @ mixing.T + shift)
    # Rounding grows with the condition number of the covariance, about 1e4: 2e-12 of rows of 50.
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
