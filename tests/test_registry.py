"""The register: one decorator, errors that name the nearest, options read from the signature."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from mechinterp_toolkit import registry
from mechinterp_toolkit.errors import NotApplicable, RegistryError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import analysis, docstring_section, get_analysis, parse_option
from mechinterp_toolkit.results import Estimate, Verdict


@dataclass(frozen=True)
class Count(Finding):
    n: int

    @property
    def represented(self) -> Verdict:
        return Verdict("undecided", "Counted only.")

    used = represented

    @property
    def effect(self) -> Estimate | None:
        return None

    locations = ()

    def answer(self) -> str:
        return str(self.n)

    def causal_check(self) -> str:
        return "None."


@pytest.fixture
def register(monkeypatch):
    registry.all_analyses()  # the built-ins are imported once, and must not land in the copy below
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    return analysis(
        question="How many weights?",
        paper="None",
        applies=lambda m: "it is too wide" if m.cfg.d_model > 32 else None,
    )


def count_weights(
    model: HookedModel,
    *,
    scale: float = 1.0,
    kind: Literal["all", "some"] = "all",
    layers: tuple[int, ...] = (),
    seed: int = 0,
) -> Count:
    assert not torch.is_grad_enabled()
    return Count(int(scale * sum(p.numel() for p in model.model.parameters())))


def test_a_registered_function_takes_specs_and_objects_and_fills_in_provenance(
    register, hf_folders
):
    run = register(count_weights)
    from_folder = run(str(hf_folders["gpt2"]), scale=2)
    assert from_folder.n > 0
    assert from_folder.provenance.run.analysis == "count_weights"
    assert from_folder.provenance.run.options == {
        "scale": 2,
        "kind": "all",
        "layers": (),
        "seed": 0,
    }
    assert (
        from_folder.provenance.run.command
        == f"mechinterp run count_weights {hf_folders['gpt2']} --set scale=2"
    )
    assert from_folder.provenance.fingerprint
    assert run.__name__ == "count_weights"


def test_options_and_result_come_from_the_signature(register):
    register(count_weights)
    entry = get_analysis("count_weights")
    assert list(entry.options) == ["scale", "kind", "layers", "seed"]
    assert entry.result is Count


def test_what_does_not_apply_is_refused_with_the_reason(register, wrapped):
    register(count_weights)
    strict = analysis(question="?", paper="None", applies=lambda m: "it has two layers")
    with pytest.raises(NotApplicable, match=r"count_weights cannot judge .*: it has two layers"):
        strict(count_weights)(wrapped)


def test_an_unknown_analysis_suggests_the_nearest():
    with pytest.raises(RegistryError, match="Did you mean 'group_fourier'"):
        get_analysis("group_furier")


def test_a_taken_name_is_refused(register):
    def group_fourier(model: HookedModel, *, seed: int = 0) -> Count:
        return Count(0)

    get_analysis("group_fourier")
    with pytest.raises(RegistryError, match="already registered by mechinterp_toolkit"):
        register(group_fourier)


def test_options_need_defaults_and_keywords(register):
    def bare(model: HookedModel, draws: int, *, seed: int) -> Count:
        return Count(0)

    with pytest.raises(
        RegistryError, match=r"options \['draws', 'seed'\] must be keyword-only and have defaults"
    ):
        register(bare)


def test_what_is_returned_must_be_annotated_as_a_finding(register):
    def bare(model: HookedModel, *, seed: int = 0):
        return Count(0)

    def number(model: HookedModel, *, seed: int = 0) -> int:
        return 0

    def unknown(model: HookedModel, *, seed: int = 0) -> "Nowhere":
        return Count(0)

    for function in (bare, number, unknown):
        with pytest.raises(RegistryError, match="annotate what it returns with its own subclass"):
            register(function)


def test_memory_is_left_open_where_the_system_has_no_module_for_it(monkeypatch):
    assert registry.peak_memory_mb() > 1
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: the import fails
    assert registry.peak_memory_mb() is None


def test_options_of_a_command_line_are_parsed_and_checked(register):
    register(count_weights)
    entry = get_analysis("count_weights")
    assert parse_option(entry, "scale", "2") == 2
    assert parse_option(entry, "kind", "some") == "some"
    assert parse_option(entry, "layers", "[1, 2]") == (1, 2)
    with pytest.raises(RegistryError, match=r"no option 'sede'. Did you mean 'seed'"):
        parse_option(entry, "sede", "1")
    with pytest.raises(RegistryError, match="one of all, some, not 'none'"):
        parse_option(entry, "kind", "none")
    with pytest.raises(RegistryError, match="of type int, not 'many'"):
        parse_option(entry, "seed", "many")


def test_a_section_of_a_docstring_is_one_line():
    """About nothing.

    What would fool it: a line
    that goes on.

    Source: none.
    """
    assert (
        docstring_section(test_a_section_of_a_docstring_is_one_line, "What would fool it:")
        == "a line that goes on."
    )
    assert docstring_section(test_a_section_of_a_docstring_is_one_line, "Missing:") == ""
