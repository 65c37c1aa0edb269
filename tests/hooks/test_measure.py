"""A metric is one number per prompt, with edits in force, of any model; the doors of all hooks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.hooks.measure import logit_difference, measure
from mechinterp_toolkit.intervention import applied

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
METRIC = logit_difference(torch.full((4, 1), 5), torch.full((4, 1), 9))


def test_the_difference_of_mean_logits_at_the_place_of_the_answer():
    logits = torch.arange(24.0).reshape(2, 3, 4) ** 2
    right, wrong = torch.tensor([[3, 1], [0, 2]]), torch.tensor([[0], [3]])
    metric = logit_difference(right, wrong, position=torch.tensor([0, 2]))
    # Row 0 at 0: (9 + 1) / 2 - 0; row 1 at 2: (20^2 + 22^2) / 2 - 23^2.
    assert metric(logits).tolist() == [5, 442 - 529]


def test_what_is_measured_is_the_edited_model_and_nothing_is_left(wrapped, tokens):
    double = {"blocks.1.hook_resid_pre": lambda activation, hook: 2 * activation}
    before = measure(wrapped, tokens, METRIC)
    edited = measure(wrapped, tokens, METRIC, double)
    with torch.no_grad(), applied(wrapped, double):
        assert torch.equal(METRIC(wrapped.logits(tokens)), edited)
    assert (edited - before).abs().max() > 1e-3
    assert torch.equal(measure(wrapped, tokens, METRIC), before)
    assert edited.dtype == torch.float64


def test_a_spec_and_a_plain_model_are_measured_like_a_hooked_model(wrapped, tokens, hf_folders):
    expected = measure(wrapped, tokens, METRIC)
    assert torch.equal(measure(wrapped.model, tokens, METRIC), expected)
    if wrapped.provenance.checkpoint == str(hf_folders["gpt2"]):
        loaded = measure(hf_folders["gpt2"], tokens, METRIC)
        # One may be a HookedTransformer, the other a Bridge; float32 logits.
        assert torch.allclose(loaded, expected, atol=1e-4)


def test_a_metric_for_other_prompts_or_without_a_number_is_refused(wrapped, tokens):
    with pytest.raises(ToolkitError, match="answers of 4 prompts, but 3 were run"):
        measure(wrapped, tokens[:3], METRIC)
    with pytest.raises(ToolkitError, match="NaN or infinite for 2 of 4"):
        measure(wrapped, tokens, lambda logits: torch.tensor([torch.nan, torch.inf, 0.0, 0.0]))


def without_door(source: str) -> list[str]:
    """Public functions that take a model and are not decorated with `takes_model`."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return [
        function.name
        for function in functions
        if not function.name.startswith("_")
        and [arg.arg for arg in [*function.args.posonlyargs, *function.args.args][:1]] == ["model"]
        and "takes_model" not in [ast.unparse(mark) for mark in function.decorator_list]
    ]


def test_a_function_without_a_door_is_noticed():
    source = "def f(model): ...\n@takes_model\ndef g(model): ...\ndef h(model, /, **options): ..."
    assert without_door(source) == ["f", "h"]


@pytest.mark.parametrize("path", sorted(HOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_public_function_of_hooks_takes_any_model(path):
    assert without_door(path.read_text()) == []
