"""Index and class of a table: planted factors are recovered, permuted labels give nothing."""

from __future__ import annotations

import pytest
import torch

from mechinterp_toolkit.calibration import calibration_limit
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.factoring import FACTORS, factor

D = 32
NUMBERS = torch.arange(100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = normal(*shape, seed=seed)
    return rows / rows.norm(dim=1, keepdim=True)


GRID = torch.cartesian_prod(torch.arange(8), torch.arange(4))


def table(noise: float, index_size: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Eight indices in four domains: mean, index, domain and noise."""
    u, v = normal(8, D, seed=seed), normal(4, D, seed=seed + 1)
    return 3 + index_size * u[GRID[:, 0]] + v[GRID[:, 1]] + noise * normal(32, D, seed=seed + 2)


def labels(keep: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    grid = GRID if keep is None else GRID[keep]
    return 10 + grid[:, 0], grid[:, 1]


def some_missing() -> torch.Tensor:
    """A third of the cells taken out."""
    return torch.randperm(32, generator=torch.Generator().manual_seed(1))[:22].sort().values


def test_a_planted_table_is_factored_and_missing_cells_are_predicted():
    keep = some_missing()
    whole = table(0.0)
    fit = factor(whole[keep], *labels(keep))
    missing = sorted(set(range(32)) - set(keep.tolist()))
    predicted = torch.stack([fit.predict(10 + int(GRID[k, 0]), int(GRID[k, 1])) for k in missing])
    assert torch.allclose(predicted, whole[missing])
    assert float(fit.r2[FACTORS.index("both")]) == pytest.approx(1)
    assert torch.allclose(fit.by_index.sum(0), torch.zeros(D, dtype=torch.float64), atol=1e-9)
    assert fit.index == tuple(range(10, 18))


def test_held_out_cells_are_recognised_and_permuted_ones_are_not():
    fit = factor(table(0.5), *labels())
    assert float(fit.held_out.value) > 0.9
    assert float(fit.held_out.control.mean()) < 0.15
    assert fit.represented.outcome == "found"
    assert len(fit.cells) == 32
    assert fit.left_out == 0


def test_the_closed_form_is_the_fit_without_the_cell():
    keep = some_missing()
    rows, (index, domain) = table(1.5)[keep], labels(keep)
    fit = factor(rows, index, domain, draws=39)
    for position, cell in enumerate(fit.cells.tolist()):
        rest = torch.arange(len(rows)) != cell
        predicted = factor(rows[rest], index[rest], domain[rest], draws=1).predict(
            int(index[cell]), int(domain[cell])
        )
        nearest = int((rows[fit.cells] - predicted).norm(dim=1).argmin())
        assert bool(fit.right[position]) == (nearest == position)


def test_r2_of_the_factors_is_their_share_of_the_variance():
    rows = table(0.3)
    r2 = factor(rows, *labels(), draws=1).r2
    by_index = rows.reshape(8, 4, D).mean(1)
    share = 4 * (by_index - by_index.mean(0)).square().sum() / (rows - rows.mean(0)).square().sum()
    assert float(r2[0]) == pytest.approx(float(share))
    assert float(r2[2]) == pytest.approx(
        float(r2[0] + r2[1])
    )  # a whole table: the factors are orthogonal
    assert float(r2[2]) < 1


def test_domains_without_an_index_are_not_found_as_often_as_chance():
    runs = [
        factor(table(1.0, 0.0, seed=10 * s), *labels(), seed=s, draws=99).represented.outcome
        for s in range(40)
    ]
    assert runs.count("found") <= calibration_limit(40)


def test_a_table_that_cannot_be_held_out_is_refused():
    once = torch.arange(5)
    with pytest.raises(ToolkitError, match="0 of 5 cells can be predicted from the others"):
        factor(normal(5, D), once, once)
    with pytest.raises(ToolkitError, match="0 of 3 cells"):  # a tree: every cell is the only link
        factor(normal(3, D), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    with pytest.raises(
        ToolkitError, match="1 cells come more than once, the first with index 7 and domain 2"
    ):
        factor(normal(3, D), torch.tensor([7, 7, 8]), torch.tensor([2, 2, 2]))
    with pytest.raises(ToolkitError, match="got index 99"):
        factor(table(0.1), *labels(), draws=1).predict(99, 0)


def test_a_cell_alone_in_its_index_is_left_out_and_counted():
    index, domain = (
        torch.cat([labels()[0], torch.tensor([50])]),
        torch.cat([labels()[1], torch.tensor([0])]),
    )
    fit = factor(torch.cat([table(0.2), normal(1, D)]), index, domain, draws=39)
    assert fit.left_out == 1
    assert 32 not in fit.cells.tolist()


def test_cells_that_are_all_alike_are_not_recognised():
    fit = factor(normal(4, D)[GRID[:, 1]], *labels(), draws=39)
    assert float(fit.held_out.value) == 0
    with pytest.raises(ToolkitError, match="all 32 activations are the same"):
        factor(torch.ones(32, D), *labels())


def test_too_few_permutations_decide_nothing():
    assert factor(table(0.1), *labels(), draws=9).represented.outcome == "undecided"
    with pytest.raises(ToolkitError, match="got draws=0"):
        factor(table(0.1), *labels(), draws=0)
