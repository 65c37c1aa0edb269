"""The Clock of a planted adder: which head carries what, which MLP builds and which reads, what
neurons are waves of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechinterp_toolkit.analyses.number_helix.clock import (
    FITS,
    _pairs,
    _Run,
    classify_head,
    read_clock,
)
from mechinterp_toolkit.analyses.number_helix.tasks import addition_task, number_tokens
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.toys import planted_adder


@pytest.fixture(scope="module")
def planted():
    made = planted_adder()
    model = load_model(made.model, tokenizer=made.tokenizer)
    task = addition_task(model, number_tokens(model))
    with torch.no_grad():
        return made, read_clock(model, task, (2, 5, 10, 100))


def test_the_copying_heads_and_no_others_carry_operands(planted):
    made, clock = planted
    assert dict(clock.head_types) == {f"{layer}.{head}": "a, b" for layer, head in made.heads}
    assert clock.heads_direct.abs().max() < 0.1  # all of it goes through the MLPs
    largest = clock.heads.value.max()
    fitted = clock.heads_fitted[FITS.index("operands")]
    assert fitted[0, 0] == pytest.approx(float(clock.heads.value[0, 0]), abs=0.05 * float(largest))
    assert clock.heads_fitted[FITS.index("sum"), 0, 0] < 0.7 * clock.heads.value[0, 0]


def test_one_mlp_builds_the_sum_and_another_reads_it(planted):
    _, clock = planted
    assert clock.builders == (1,)
    assert clock.readers == (2,)
    built = clock.mlps_fitted[FITS.index("sum"), 1] / clock.mlps.value[1]
    assert built == pytest.approx(1, abs=0.05)  # what the MLP of block 1 writes is a helix of a + b
    assert clock.mlps_fitted[FITS.index("operands"), 1] < 0.5 * clock.mlps.value[1]


def test_what_lies_at_the_last_token_goes_from_operands_to_their_sum(planted):
    _, clock = planted
    operands, total, both = clock.fits.value
    assert operands[0] > 0.98
    assert total[0] < 0.2
    assert total[2] > total[0] + 0.2
    assert both.min() > 0.98
    assert (clock.fits.control.amax(0) < 0.2).all()
    assert clock.sum_periods[0] == "none"
    assert {"5", "10"} <= set(clock.sum_periods[1].split(", "))


def test_neurons_of_the_first_layers_are_waves_of_the_operands(planted):
    _, clock = planted
    assert clock.neuron_r2.min() > 0.9
    assert clock.neuron_families[2, 0] < 0.05 < clock.neuron_families[0, 0]


def test_neurons_that_bring_the_answer_are_those_of_the_reading_mlp(planted):
    _, clock = planted
    by_layer = clock.neuron_direct.sum(1)
    assert by_layer[:2].abs().max() < 0.05 * by_layer[2]
    assert by_layer[2] == pytest.approx(
        float(clock.mlps_direct[2]), rel=0.25
    )  # the final LayerNorm bends over this change
    few = clock.neurons_for(0.7)
    assert {layer for layer, _ in few} == {2}
    assert 0 < len(few) < len(clock.neurons_for(0.95)) < clock.neuron_direct.shape[1]
    assert (
        sum(float(clock.neuron_direct[layer, neuron]) for layer, neuron in few[:-1])
        < 0.7 * by_layer.sum()
    )


def test_a_neuron_has_the_effect_that_exchanging_it_alone_has():
    made = planted_adder()
    model = load_model(made.model, tokenizer=made.tokenizer)
    run = _Run(model, addition_task(model, number_tokens(model)), (2, 5, 10, 100), 16, 0)
    with torch.no_grad():
        direct = run.neurons()[2]
        clean, corrupt = run.task.prompts.select(run.clean), run.task.prompts.select(run.corrupt)
        name = "blocks.2.mlp.hook_post"
        value = activations(model, clean.tokens, (name,), position=clean.position)[name]
        rows = torch.arange(len(corrupt))

        def exchanged(neuron: int) -> float:
            def edit(activation, hook):
                changed = activation.clone()
                changed[rows, corrupt.position, neuron] = value[:, neuron]
                return changed

            return float((run.score({name: edit}) - run.base).mean())

        for neuron in [*direct.argsort(descending=True)[:3].tolist(), int(direct.argmin())]:
            assert exchanged(neuron) == pytest.approx(float(direct[neuron]), rel=0.1, abs=1e-3)


def test_neurons_that_lower_the_answer_bring_no_share_of_it(planted):
    _, clock = planted
    assert replace(clock, neuron_direct=-clock.neuron_direct).neurons_for(0.5) == ()
    by_hand = replace(clock, neuron_direct=torch.tensor([[3.0, -1.0], [2.0, 0.0], [0.0, 0.0]]))
    assert by_hand.neurons_for(0.75) == ((0, 0),)
    assert by_hand.neurons_for(1.0) == ((0, 0), (1, 0))


def test_pairs_share_one_operand_and_differ_in_the_answer():
    a, b = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
    clean, corrupt = _pairs(a, b, a + b, 20, 0)
    shared = (a[clean] == a[corrupt]).long() + (b[clean] == b[corrupt]).long()
    assert (shared == 1).all()
    assert 5 < (a[clean] == a[corrupt]).sum() < 15


def test_head_confidences_worked_by_hand():
    assert classify_head(total=2.0, direct=0.2, operands=1.8, sum_=0.2, both=2.0) == pytest.approx(
        (0.81, 0.01)
    )
    assert classify_head(total=2.0, direct=2.4, operands=0.0, sum_=3.0, both=2.0) == pytest.approx(
        (0.0, 1.0)
    )
