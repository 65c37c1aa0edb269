"""Per architecture: every analysis ends in a verdict or in a reason, and never in an exception."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

from mechinterp_toolkit.analyses.number_helix.clock import read_clock, why_no_clock
from mechinterp_toolkit.analyses.number_helix.tasks import addition_task, number_tokens
from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.heads.ov_circuit import Convention, OVReader
from mechinterp_toolkit.registry import all_analyses
from mechinterp_toolkit.sae import SparseAutoencoder

SMALL = {
    "draws": 9,
    "edit_draws": 9,
    "account_draws": 3,
    "templates": 2,
    "targets": 2,
    "steps": 2,
    "prompts": 8,
    "classes": ("days",),
}
"""Options under which an analysis takes about a tenth of a second, where it has them."""

NAMES = sorted(all_analyses()[0])


def autoencoder():
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(32, 12, generator=generator)
    point = "blocks.1.hook_resid_pre"
    return SparseAutoencoder(
        "random", "standard", encoder, torch.zeros(12), encoder.T.clone(), torch.zeros(32), point
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_analysis_ends_in_a_verdict_or_a_reason(case, name):
    entry = all_analyses()[0][name]
    options = {option: value for option, value in SMALL.items() if option in entry.options}
    if "sae" in entry.options:
        options |= {"sae": autoencoder(), "neighbours": 1}
    with contextlib.suppress(NotApplicable):  # its sentence is the reason
        finding = entry.function(case.model, **options)
        check(finding)


def check(finding):
    for verdict in (finding.represented, finding.used):
        assert verdict.outcome in ("found", "not_found", "undecided", "not_applicable")
        assert len(verdict.reason) > 40
    if finding.effect is not None:
        assert math.isfinite(float(finding.effect.value))


@pytest.mark.parametrize("representation", ["resid_post_0", "mlp_out_0", "embed"])
def test_what_heads_make_of_every_representation(case, representation):
    check_read(case.model, representation)


def test_what_heads_make_of_an_mlp_called_by_itself(case):
    check_read(case.model, "mlp_0_raw")


def check_read(model, representation):
    reader = OVReader(model, torch.tensor([5, 6]), Convention(representation))
    for layer in range(3):
        logits = reader.logits(reader.states(layer), layer, torch.tensor([7, 8, 9]))
        assert logits.shape == (len(logits), 2, 3)
        assert logits.isfinite().all()
        assert logits.abs().max() > 1e-3


@pytest.mark.parametrize("case", ["Granite", "Gemma2", "Mixtral", "Mamba"], indirect=True)
def test_an_addition_is_taken_apart_or_a_reason_given(case):
    reason = why_no_clock(case.model)
    if reason is not None:
        assert len(reason) > 20
        return
    task = addition_task(case.model, number_tokens(case.model), repeats=3)
    clock = read_clock(case.model, task, (2, 5), pairs=8, draws=2)
    assert clock.neuron_direct.isfinite().all()
    assert clock.heads.value.shape == (3, 4)
