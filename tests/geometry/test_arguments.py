"""What users get who hand over something else than tensors of numbers, each row with its label: a
sentence, not torch's error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.sparse import csc_matrix

from mechinterp_toolkit import geometry
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.geometry.classes import read_classes, unit_means
from mechinterp_toolkit.geometry.clusters import decoder_clusters, plane_shares
from mechinterp_toolkit.geometry.factoring import factor
from mechinterp_toolkit.geometry.residue_features import residue_features
from mechinterp_toolkit.geometry.residue_scan import residue_scan
from mechinterp_toolkit.geometry.residue_steering import steer_residues

pytestmark = pytest.mark.usefixtures("as_a_user")


def rows(n: int, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


DAYS, SEEN = torch.arange(7).repeat(3), torch.arange(3).repeat_interleave(7)
PAIRS = torch.cartesian_prod(torch.arange(12), torch.arange(12)).T
CELLS = torch.cartesian_prod(torch.arange(4), torch.arange(3)).T

# Each call as it is made, with few draws: function -> (what has rows or numbers, everything else).
CALLS: dict[Callable[..., Any], tuple[dict[str, Any], dict[str, Any]]] = {
    geometry.fit_circle: (
        {"acts": rows(21), "labels": DAYS, "unit": SEEN},
        {"period": 7, "draws": 19},
    ),
    geometry.harmonics: (
        {"acts": rows(21), "labels": DAYS, "unit": SEEN},
        {"period": 7, "draws": 19},
    ),
    geometry.transfer: (
        {"acts": rows(21), "labels": DAYS, "unit": SEEN},
        {"period": 7, "draws": 19},
    ),
    geometry.closure_of: ({"means": rows(7)}, {}),
    geometry.fit_helix: (
        {"acts": rows(50), "numbers": torch.arange(50), "covariates": rows(50, 1)},
        {"draws": 19},
    ),
    geometry.period_scan: (
        {"acts": rows(50), "numbers": torch.arange(50), "covariates": rows(50, 1)},
        {"draws": 19},
    ),
    geometry.helix_basis: ({"numbers": torch.arange(50)}, {"periods": (5,)}),
    geometry.irreducibility: ({"points": rows(30, 2)}, {}),
    geometry.separability: ({"points": rows(30, 2)}, {}),
    geometry.mixture: ({"points": rows(30, 2)}, {}),
    geometry.fit_neurons: ({"preacts": rows(144), "a": PAIRS[0], "b": PAIRS[1]}, {"periods": (5,)}),
    read_classes: ({"acts": rows(20), "label": torch.arange(20) % 2}, {"draws": 19}),
    unit_means: (
        {"acts": rows(20), "unit": torch.arange(20) % 5, "label": torch.arange(20) % 5 % 2},
        {},
    ),
    factor: ({"acts": rows(12), "index": CELLS[0], "domain": CELLS[1]}, {"draws": 19}),
    residue_features: ({"acts": rows(20), "number": torch.arange(20)}, {"period": 2}),
    residue_scan: (
        {"acts": rows(30), "number": torch.arange(30)},
        {"draws": 19, "periods": (2, 3)},
    ),
    steer_residues: (
        {"items": rows(20), "number": torch.arange(20), "features": rows(2)},
        {"scale": 1.0, "draws": 3, "read": lambda states: states @ rows(20).T},
    ),
    decoder_clusters: ({"directions": rows(9)}, {}),
    plane_shares: (
        {"directions": rows(9), "groups": (torch.arange(5),)},
        {"codes": csc_matrix(rows(40, 9).abs().numpy()), "draws": 3, "seed": 0},
    ),
}

WHOLE = ("labels", "unit", "numbers", "number", "a", "b", "label", "index", "domain")
ARGUMENTS = [
    (function, name) for function, (given, _) in CALLS.items() for name in given if name != "groups"
]
LABELS = [(function, name) for function, name in ARGUMENTS if name in WHOLE]
FLOATS = [(function, name) for function, name in ARGUMENTS if name not in WHOLE]


def refused(words: str, function: Callable[..., Any], **changes: Any) -> None:
    given, options = CALLS[function]
    with pytest.raises(ToolkitError, match=words):
        function(**(given | options | changes))


def test_every_public_function_of_the_package_is_here_and_takes_what_it_is_given():
    known = {function for function in vars(geometry).values() if inspect.isfunction(function)}
    assert known - set(CALLS) == {geometry.closure_limit}  # takes one number
    for function, (given, options) in CALLS.items():
        function(**given, **options)


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_arrays_and_lists_are_refused_by_name_with_what_makes_tensors_of_them(function, name):
    tensor = CALLS[function][0][name]
    refused(
        rf"{name} is a numpy\.ndarray; expected a tensor.*torch\.as_tensor\({name}\)",
        function,
        **{name: tensor.numpy()},
    )
    refused(rf"{name} is a list; expected a tensor", function, **{name: tensor.tolist()})


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_other_axes_no_rows_and_complex_numbers_are_refused(function, name):
    tensor = CALLS[function][0][name]
    refused(rf"{name} has shape \(\)", function, **{name: torch.tensor(1.0)})
    refused(rf"{name} holds .* at least one row", function, **{name: tensor[:0]})
    refused(rf"{name} holds torch\.complex64", function, **{name: tensor.to(torch.complex64)})


@pytest.mark.parametrize(("function", "name"), LABELS)
def test_labels_that_are_not_whole_numbers_are_refused_and_whole_ones_with_a_point_are_taken(
    function, name
):
    given, options = CALLS[function]
    for bad in (0.5, torch.nan, torch.inf):
        broken = given[name].double().index_fill(0, torch.tensor([3]), bad)
        refused(f"{name} holds {bad:g}; expected whole numbers", function, **{name: broken})
    for kind in (torch.float32, torch.int32, torch.int16):
        function(**(given | options | {name: given[name].to(kind)}))


@pytest.mark.parametrize(("function", "name"), LABELS)
def test_labels_of_another_length_are_refused_with_both_lengths(function, name):
    given = CALLS[function][0]
    n = len(given[name])
    if len(given) > 1:
        refused(rf"{name} has {n + 10} rows for {n} rows of activations; give one each", function,
                **{name: torch.cat([given[name], given[name][:10]])})  # fmt: skip


@pytest.mark.parametrize(("function", "name"), FLOATS)
def test_numbers_that_are_not_finite_are_refused_with_their_rows(function, name):
    tensor = CALLS[function][0][name].clone()
    tensor[-1, 0] = torch.nan
    refused(rf"1 of {len(tensor)} rows of {name} are NaN or infinite", function, **{name: tensor})


def test_covariates_of_another_length_are_refused():
    refused("covariates has 40 rows for 50 rows", geometry.period_scan, covariates=rows(40, 1))


def test_features_and_rows_of_another_width_are_refused():
    refused(
        "features is 5 wide and items 6; take both from the same hook point",
        steer_residues,
        features=rows(2, 5),
    )
    fit = geometry.fit_circle(rows(21), DAYS, 7, draws=19)
    for read in (fit.angles, lambda acts: fit.between(acts, 0, 1)):
        with pytest.raises(ToolkitError, match="acts is 5 wide and the fit 6"):
            read(rows(2, 5))
        with pytest.raises(ToolkitError, match="acts is a list"):
            read([[0.0] * 6])


@pytest.mark.parametrize(
    "function",
    [
        geometry.harmonics,
        geometry.transfer,
        geometry.period_scan,
        geometry.irreducibility,
        plane_shares,
    ],
)
def test_no_draws_are_refused(function):
    refused("got draws=0; expected at least one", function, draws=0)


def test_words_that_are_not_known_are_refused_instead_of_passed_over():
    refused(
        r"got orders=\('naturel',\); expected a tuple of natural, harmonics, discrete_log",
        geometry.fit_circle,
        orders=("naturel",),
    )
    refused("got orders='harmonics'; expected a tuple", geometry.fit_circle, orders="harmonics")
    refused("got reader='rigde'; expected ridge or nearest_mean", read_classes, reader="rigde")
    refused("got method='grpah'; expected graph or spectral", decoder_clusters, method="grpah")
    refused(
        r"got periods \(5, 0\); expected numbers above zero", geometry.helix_basis, periods=(5, 0)
    )


def test_periods_of_fewer_than_five_classes_and_negative_labels_are_refused():
    with pytest.raises(ToolkitError, match="got period=4"):
        geometry.closure_limit(4)
    refused("got period=3", geometry.closure_of, means=rows(3))
    refused("label holds -1; expected classes from 0", unit_means, label=torch.arange(20) % 2 - 1)


def test_codes_and_groups_of_other_latents_are_refused():
    refused(
        "codes are a csc_matrix of 9 latents for 8 directions", plane_shares, directions=rows(8)
    )
    refused(
        "codes are a ndarray of 9 latents for 9 directions; expected a scipy.sparse",
        plane_shares,
        codes=rows(40, 9).numpy(),
    )
    refused(
        r"groups\[0\] names latents 5 to 9; expected 0 to 8",
        plane_shares,
        groups=(torch.arange(5, 10),),
    )
    refused(r"groups\[0\] is a list", plane_shares, groups=([0, 1, 2, 3],))
