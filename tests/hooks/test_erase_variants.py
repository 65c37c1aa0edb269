"""The oracle and the free form erase what LEACE erases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.erase import (
    FreeFormEraser,
    FreeFormFitter,
    OracleEraser,
    OracleFitter,
)
from tests.hooks.erasure import (
    CASES,
    EXACT,
    classes,
    left_over,
    one_hot,
)

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

    fitter = FreeFormFitter(24, 2, score, f_dim=1)
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
