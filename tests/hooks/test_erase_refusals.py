"""Labels, rows and settings that would be erased wrongly are refused, or erased right."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.hooks.erase import (
    LeaceEraser,
    LeaceFitter,
    OracleEraser,
    OracleFitter,
)
from tests.hooks.erasure import (
    EXACT,
    classes,
    left_over,
    one_hot,
    refused,
)

# --- refused, or right ---------------------------------------------------------------------------


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
    # One-hot rows of 40 prompts, or a class number at each of 4 positions.
    labels = one_hot(z[:40]).long()
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
    # The type checker of the tests would speak first.
    fit = getattr(LeaceFitter, "__wrapped__", LeaceFitter)
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
    """Behind a LayerNorm float32 features add up to zero but for rounding.

    To whiten that would magnify it a million times.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(3, (2000,), generator=generator)
    x = torch.randn(2000, 32, generator=generator) + torch.randn(3, 32, generator=generator)[z]
    x = torch.nn.functional.layer_norm(x, (32,))
    assert 0 < x.double().sum(1).std() < 1e-5
    eraser = LeaceEraser.fit(x, z)
    assert torch.linalg.matrix_norm(eraser.P, 2) < 10
    for rows in (x, x.double()):
        means = torch.stack([eraser(rows)[z == k].double().mean(0) for k in range(3)])
        # A few units of the last digit of float32.
        assert (means[:, None] - means[None]).abs().max() < 1e-6
