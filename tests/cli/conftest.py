"""A fake analysis, checkpoint and toy, and the command run with them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp_toolkit import checkpoint, registry
from mechinterp_toolkit.cli import commands as cli
from mechinterp_toolkit.errors import CheckpointError, ToolkitError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.geometry import fit_circle
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.report import settings
from mechinterp_toolkit.results import Estimate, Provenance, Verdict


@dataclass(frozen=True)
class Level(Finding):
    """One number."""

    level: Estimate

    @property
    def represented(self) -> Verdict:
        return Verdict("not_found", "The level is no higher than that of shuffled weights.", p=0.5)

    @property
    def used(self) -> Verdict:
        return Verdict("undecided", "Nothing was edited.")

    @property
    def effect(self) -> Estimate:
        return self.level

    @property
    def locations(self) -> tuple[str, ...]:
        return ("0.1",)

    def answer(self) -> str:
        return f"The level is {self.level.text()}."

    def causal_check(self) -> str:
        return "Nothing was edited."


def level(model: HookedModel, *, draws: int = 10, seed: int = 0) -> Level:
    print("a library that prints")
    name = model.provenance.checkpoint
    if "crash" in name:
        raise RuntimeError("the tensors do not fit")
    if "stop" in name:
        raise ToolkitError("the answers are not one token")
    value = torch.tensor(0.5)
    return Level(
        Estimate(
            value, value - 0.25, value + 0.25, 3, "nats", "exact", torch.rand(draws), "shuffled"
        )
    )


def slow(model: HookedModel) -> Level:
    return level(model)


def load(name: Any, **options: Any) -> HookedModel:
    if isinstance(name, HookedModel):
        return name
    if "missing" in name:
        raise CheckpointError(f"there is no {name}")
    dtype = str(options.get("dtype", torch.float32)).removeprefix("torch.")
    provenance = Provenance(
        name,
        None,
        "0123",
        "Fake",
        options.get("processing", "none"),
        None,
        dtype,
        "cpu",
        {"torch": "2"},
    )
    twin = Provenance(
        f"{name} (random)", None, "4567", "Fake", "none", None, dtype, "cpu", {"torch": "2"}
    )
    return HookedModel(None, None, provenance, lambda seed: HookedModel(None, None, twin))


def round_(model: HookedModel) -> Level:
    return level(model)


@dataclass(frozen=True)
class Outcome:
    """What one call of the command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def mechinterp(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Return a function that runs the command in an empty folder, with the fakes above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_import_built_ins", lambda: ())
    monkeypatch.setattr(
        registry,
        "_import_entry_points",
        lambda: (registry.Broken("outdated", "RuntimeError: old"),),
    )

    def needs_tokenizer(model):
        return "no tokenizer." if "silent" in model.provenance.checkpoint else None

    analysis(question="How high?", paper="Doe 2024", applies=needs_tokenizer)(level)
    analysis(question="How slow?", paper="Doe 2025", cost="slow")(slow)
    monkeypatch.setattr(settings, "load_model", load)
    monkeypatch.setattr(checkpoint, "bundled_names", lambda: ("toy/a", "toy/b"))

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mechinterp", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def register_round() -> Callable[[], None]:
    """Return a function that registers an analysis with a core on plain tensors."""
    return lambda: analysis(question="How round?", paper="Doe 2026", core=fit_circle)(round_)
