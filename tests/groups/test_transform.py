"""The Fourier transform on groups: an isometry whose block energies no convention can change."""

from __future__ import annotations

import functools

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import (
    Group,
    blocks,
    characters,
    clausen,
    closure,
    cosets,
    cyclic,
    fourier,
    fourier_matrix,
    group_by_name,
    inverse_fourier,
    irrep,
    irrep_labels,
    irreps,
    isotypic_energy,
    isotypic_projector,
    symmetric,
)
from mechinterp_toolkit.groups.table import lexicographic_rank

NAMES = (
    "S3", "S4", "S5", "A4", "A5", "C1", "C7", "C12", "C113", "D4", "D5", "D12", "Q8", "S3xC2",
    "C3xC4", "Q8xC3",
)  # fmt: skip
FAST = ("S7", "S8")

# Sums of at most a few hundred terms of order 1 in float64 are right to about 1e-14; S_8 adds 40320
# of them.
EXACT = 1e-12


@functools.cache
def get(name: str) -> Group:
    return group_by_name(name)


def functions(group: Group, count: int = 3, seed: int = 0) -> Float[Tensor, "count order"]:
    return torch.randn(
        count, group.order, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def block(
    group: Group, coefficients: Float[Tensor, "*batch order"], label: str
) -> Float[Tensor, "*batch dim copies"]:
    place = blocks(group)[irrep_labels(group).index(label)]
    return coefficients[..., place.columns].unflatten(-1, (place.dimension, place.multiplicity))


@pytest.mark.parametrize("name", [*NAMES, "S6"])
def test_the_fourier_matrix_is_orthogonal(name: str) -> None:
    matrix = fourier_matrix(get(name))
    one = torch.eye(get(name).order, dtype=torch.float64)
    assert (matrix.T @ matrix - one).abs().max() < EXACT
    assert (matrix @ matrix.T - one).abs().max() < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_scaled_matrix_entries_in_the_order_of_blocks(name: str) -> None:
    group = get(name)
    for rho, place in zip(irreps(group), blocks(group), strict=True):
        i, j = rho.dimension - 1, rho.multiplicity - 1
        column = fourier_matrix(group)[:, place.start + i * place.multiplicity + j]
        scale = (rho.dimension / group.order) ** 0.5
        assert torch.allclose(column, scale * rho.matrices[:, i, j], atol=EXACT)


@pytest.mark.parametrize("name", [*NAMES, *FAST])
def test_inverse_undoes_fourier_and_norms_are_kept(name: str) -> None:
    group = get(name)
    f = functions(group)
    coefficients = fourier(group, f)
    assert (inverse_fourier(group, coefficients) - f).abs().max() < EXACT
    assert torch.allclose(coefficients.norm(dim=-1), f.norm(dim=-1), rtol=EXACT)
    assert torch.allclose(isotypic_energy(group, f).sum(-1), f.square().sum(-1), rtol=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_translation_multiplies_blocks_by_the_representation(name: str) -> None:
    group = get(name)
    f = functions(group)
    for h in group.generators:
        # f(hx), f(xh)
        moved = (f[:, group.table[h]], f[:, group.table[:, h]])
        left, right = (fourier(group, g) for g in moved)
        for rho in irreps(group):
            before, matrix = block(group, fourier(group, f), rho.label), rho.matrices[h]
            assert (block(group, left, rho.label) - matrix.T @ before).abs().max() < EXACT
            if rho.frobenius_schur == "real":  # of the other types only some columns are kept
                assert (block(group, right, rho.label) - before @ matrix.T).abs().max() < EXACT


@pytest.mark.parametrize("name", [*NAMES, "S6"])
def test_isotypic_energies_ignore_translation_inversion_and_conjugation(name: str) -> None:
    group = get(name)
    f = functions(group)
    energy = isotypic_energy(group, f)
    g = group.order - 1
    conjugation = group.conjugate(torch.arange(group.order), g)
    for moved in (group.table[g], group.table[:, g], group.inverses, conjugation):
        assert torch.allclose(isotypic_energy(group, f[:, moved]), energy, atol=EXACT)


@pytest.mark.parametrize("name", ["S4", "S5", "A5", "C12", "D12", "Q8", "Q8xC3"])
def test_isotypic_energies_ignore_the_numbering_of_the_elements(name: str) -> None:
    group = get(name)
    # New index -> old index.
    shuffle = torch.randperm(group.order, generator=torch.Generator().manual_seed(1))
    back = shuffle.argsort()
    # Its irreps are found without a closed form.
    other = Group.from_table(back[group.table[shuffle][:, shuffle]])
    f = functions(group)
    here, there = isotypic_energy(group, f), isotypic_energy(other, f[:, shuffle])
    for n in range(len(irreps(group))):
        twin = (characters(other)[:, back] - characters(group)[n]).abs().sum(1).argmin()
        assert torch.allclose(here[:, n], there[:, twin], atol=EXACT)


def test_the_outer_automorphism_of_s6_exchanges_the_energies_of_irreps() -> None:
    # S_6 acts on the six cosets of the exceptional S_5, a transitive subgroup of order 120.
    s6 = get("S6")
    cycle = s6.index("(1 2 3 4 5)")
    triples = [g for g, label in enumerate(s6.labels) if label.count("(") == 3]
    exceptional = next(h for h in (closure(s6, [cycle, g]) for g in triples) if len(h) == 120)
    rows = cosets(s6, exceptional, side="right")
    number = torch.empty(720, dtype=torch.long)
    number[rows] = torch.arange(6)[:, None]
    automorphism = lexicographic_rank(number[s6.table[:, rows[:, 0]]])
    assert torch.equal(automorphism[s6.table], s6.table[automorphism[:, None], automorphism])
    f = functions(s6)
    before, after = isotypic_energy(s6, f), isotypic_energy(s6, f[:, automorphism])
    swaps = {"(5,1)": "(2,2,2)", "(2,1,1,1,1)": "(3,3)", "(4,1,1)": "(3,1,1,1)"}
    swaps |= {v: k for k, v in swaps.items()}
    for n, label in enumerate(irrep_labels(s6)):
        image = irrep_labels(s6).index(swaps.get(label, label))
        assert torch.allclose(after[:, n], before[:, image], atol=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_isotypic_projectors_resolve_the_identity_and_give_the_energies(name: str) -> None:
    group = get(name)
    f = functions(group)
    total = torch.zeros(group.order, group.order, dtype=torch.float64)
    for n, place in enumerate(blocks(group)):
        if n > 8:  # the 57 blocks of C113 repeat themselves
            break
        projector = isotypic_projector(group, place.label)
        assert (projector @ projector - projector).abs().max() < EXACT
        assert (projector - projector.T).abs().max() < EXACT
        assert projector.trace().item() == pytest.approx(place.size, abs=EXACT)
        assert torch.allclose(
            (f @ projector).square().sum(-1), isotypic_energy(group, f)[:, n], atol=EXACT
        )
        total += projector
    if len(blocks(group)) <= 9:
        assert (total - torch.eye(group.order)).abs().max() < EXACT


def test_cyclic_energies_are_those_of_the_discrete_fourier_transform() -> None:
    for n in (7, 12, 113):
        group = cyclic(n)
        f = functions(group)
        power = torch.fft.fft(f).abs().square() / n
        folded = torch.stack(
            [power[:, k] + (power[:, -k] if 2 * k not in (0, n) else 0) for k in range(n // 2 + 1)],
            -1,
        )
        assert torch.allclose(isotypic_energy(group, f), folded, atol=EXACT)


@pytest.mark.parametrize(("generators", "shares"), [
    (("(1 2)", "(1 2 3 4)"), {"(4,1)": 1}),  # S4
    (("(1 2 3 4 5)", "(2 3 5 4)"), {"(2,2,1)": 1}),  # F20
    (("(1 2 3)", "(3 4 5)"), {"(1,1,1,1,1)": 1}),  # A5
    (("(1 2 3)", "(2 3 4)"), {"(4,1)": 4 / 9, "(2,1,1,1)": 4 / 9, "(1,1,1,1,1)": 1 / 9}),  # A4
    (("(1 2)", "(1 2 3)", "(4 5)"), {"(4,1)": 4 / 9, "(3,2)": 5 / 9}),  # S3 x S2
    # D5
    (("(1 2 3 4 5)", "(2 5)(3 4)"), {"(3,2)": 5 / 11, "(2,2,1)": 5 / 11, "(1,1,1,1,1)": 1 / 11}),
    (("(1 2 3 4)", "(1 3)"), {"(4,1)": 4 / 14, "(3,2)": 5 / 14, "(2,2,1)": 5 / 14}),  # D4
])  # fmt: skip
def test_centred_coset_indicators_of_s5_live_in_the_irreps_of_the_permutation_action(
    generators: tuple[str, ...], shares: dict[str, float]
) -> None:
    # Frobenius reciprocity: the share is d * (multiplicity in Ind_H 1) / (|G| / |H| - 1).
    s5 = get("S5")
    f = torch.zeros(120, dtype=torch.float64)
    f[list(closure(s5, [s5.index(g) for g in generators]))] = 1
    energy = isotypic_energy(s5, f - f.mean())
    found = dict(zip(irrep_labels(s5), (energy / energy.sum()).tolist(), strict=True))
    assert found == pytest.approx(dict.fromkeys(irrep_labels(s5), 0.0) | shares, abs=EXACT)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_fast_transform_gives_the_same_coefficients_as_the_dense_one(n: int) -> None:
    group = get(f"S{n}")
    f = functions(group)
    fast = clausen.forward(f, group.permutations)
    assert (fast - f @ fourier_matrix(group)).abs().max() < EXACT
    assert (clausen.backward(fast, group.permutations) - f).abs().max() < EXACT


def test_the_fast_transform_gives_the_same_when_the_batch_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = get("S5")
    f = functions(group, count=5)
    whole = clausen.forward(f, group.permutations)
    monkeypatch.setattr(clausen, "WORKING_NUMBERS", 2 * 120 * 5)
    # The products of smaller batches may be summed in another order.
    assert (clausen.forward(f, group.permutations) - whole).abs().max() < EXACT
    assert torch.equal(
        clausen.backward(whole, group.permutations),
        clausen.backward(whole.clone(), group.permutations),
    )


@pytest.mark.parametrize("name", FAST)
def test_the_fast_transform_of_a_point_is_the_scaled_identity(name: str) -> None:
    group = get(name)
    point = torch.zeros(group.order, dtype=torch.float64)
    point[group.identity] = 1
    coefficients = fourier(group, point)
    for place in blocks(group):
        expected = (place.dimension / group.order) ** 0.5 * torch.eye(
            place.dimension, dtype=torch.float64
        )
        assert (block(group, coefficients, place.label) - expected).abs().max() < EXACT


@pytest.mark.parametrize("name", FAST)
def test_known_functions_on_large_symmetric_groups_have_the_irreps_of_their_action(
    name: str,
) -> None:
    group = get(name)
    n = group.permutations.shape[1]
    image = (group.permutations[:, 0] == 2).double()  # 1 -> 3: a coset of S_{n-1}
    pair = (
        (group.permutations[:, 0] == 2) & (group.permutations[:, 1] == 0)
    ).double()  # a coset of S_{n-2}
    said = {
        0: {f"({n})", f"({n - 1},1)"},
        1: {f"({n})", f"({n - 1},1)", f"({n - 2},2)", f"({n - 2},1,1)"},
    }
    for row, energy in enumerate(isotypic_energy(group, torch.stack([image, pair]))):
        found = {
            label for label, value in zip(irrep_labels(group), energy, strict=True) if value > EXACT
        }
        assert found == said[row]
    later = torch.ones(n, n).triu(1).bool()
    inverted = group.permutations[:, :, None] > group.permutations[:, None, :]
    parity = 1 - 2 * ((inverted & later).sum((1, 2)) % 2)
    sign = isotypic_energy(group, parity.double())
    assert sign[-1].item() == pytest.approx(group.order, rel=EXACT)


def test_s7_coefficients_agree_with_its_irreps() -> None:
    group = get("S7")
    f = functions(group, count=2)
    rho = irrep(group, "(4,2,1)")
    expected = (rho.dimension / 5040) ** 0.5 * torch.einsum("bg,gij->bij", f, rho.matrices)
    assert (block(group, fourier(group, f), "(4,2,1)") - expected).abs().max() < EXACT


def test_any_number_of_leading_axes_and_float32_are_accepted_and_answered_in_float64() -> None:
    group = get("A4")
    f = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    assert fourier(group, f).dtype == torch.float64
    assert fourier(group, f).shape == (2, 5, 12)
    assert isotypic_energy(group, f).shape == (2, 5, 3)
    assert isotypic_energy(group, f[0, 0]).shape == (3,)
    # Sums of 12 float64 terms, whose order depends on the batch.
    together, alone = isotypic_energy(group, f)[1, 2], isotypic_energy(group, f[1, 2])
    assert torch.allclose(together, alone, rtol=EXACT)


def test_a_function_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(
        ToolkitError,
        match=r"a function on S4 has one entry per element \(24\); got shape \(2, 23\)",
    ):
        fourier(get("S4"), torch.zeros(2, 23))


def test_dense_matrices_of_large_groups_are_refused() -> None:
    with pytest.raises(
        ToolkitError,
        match=r"dense Fourier matrix of S7 \(5040 x 5040, 0\.2 GB\) is refused above 2000",
    ):
        fourier_matrix(get("S7"))
    with pytest.raises(
        ToolkitError, match="the projector is a dense 5040 x 5040 matrix, refused above 2000"
    ):
        isotypic_projector(get("S7"), "(6,1)")
    with pytest.raises(ToolkitError, match="dense Fourier matrix of C2500"):
        fourier(cyclic(2500), torch.zeros(2500))
    assert irrep_labels(symmetric(7))[1] == "(6,1)"
