"""Fake analyses and checkpoints for the tests of reports, and pages read back.

What would fool it: a name that looks like markup, which the page must show as text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp_toolkit import plots, registry
from mechinterp_toolkit.errors import CheckpointError, NotApplicable
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.report.run import ReportSummary, run_report
from mechinterp_toolkit.report.settings import Loading, Settings
from mechinterp_toolkit.results import Estimate, Provenance, Verdict

# --- a fake analysis: heads of a model whose name decides what is in it --------------------------


@dataclass(frozen=True)
class Heads(Finding):
    """Scores of two heads."""

    score: Estimate
    best: Estimate
    found: bool
    text: str

    @property
    def represented(self) -> Verdict:
        return Verdict(
            "found" if self.found else "not_found",
            f"Head 0.1 stands out: {self.found}.",
            p=0.01,
            power=0.9,
        )

    @property
    def used(self) -> Verdict:
        return Verdict("undecided", "Too few prompts to tell.")

    @property
    def effect(self) -> Estimate:
        return self.best

    @property
    def locations(self) -> tuple[str, ...]:
        return (f"0.1{self.text}",) if self.found else ()

    @property
    def caveats(self) -> tuple[str, ...]:
        return (f"Dropped{self.text}.",)

    def answer(self) -> str:
        return f"The best head scores {self.best.text()}{self.text}."

    def causal_check(self) -> str:
        return f"Head 0.1 was silenced{self.text}."

    def figures(self) -> dict[str, Any]:
        if self.text == " undrawable":
            raise RuntimeError("no picture today")
        from plotly import graph_objects

        name = f"Scores{self.text}"
        null = plots.strip(self.best, title="The null of heads")
        null.add_trace(graph_objects.Scatter(x=[0], y=[0], name=f"unescaped{self.text}"))
        return {name: plots.heat_map(self.score, title=name), "Null": null}


def heads(
    model: HookedModel,
    *,
    draws: int = 20,
    seed: int = 0,
    words: tuple[str, ...] = ("a",),
    text: str = "",
) -> Heads:
    name = model.provenance.checkpoint
    if "broken" in name:
        raise RuntimeError(f"the tensors of {name} do not fit")
    generator = torch.Generator().manual_seed(seed)
    null = torch.rand((draws, 1, 2), generator=generator, dtype=torch.float64) / 2
    value = torch.tensor(
        [[0.25, 0.25 if "random" in name and "always" not in name else 0.75]], dtype=torch.float64
    )
    score = Estimate(
        value,
        value - 0.125,
        value + 0.125,
        12,
        "fraction",
        "bootstrap",
        null,
        "shuffled",
        ("layer", "head"),
        {"head": (f"h0{text}", "h1")},
    )
    best = Estimate(
        value.amax(),
        value.amax() - 0.125,
        value.amax() + 0.125,
        12,
        "fraction",
        "bootstrap",
        null.amax((1, 2)),
        "shuffled",
    )
    return Heads(
        score=score, best=best, found=bool(value.amax() > 0.5), text=text, prompts_hash="abcd"
    )


def needs_text(model: HookedModel) -> str | None:
    return "it has no tokenizer." if "silent" in model.provenance.checkpoint else None


def late(model: HookedModel, *, seed: int = 0) -> Heads:
    return heads(model, seed=seed)


def loaded(name: Any) -> HookedModel:
    """Return a fake checkpoint.

    "missing" cannot be loaded, "twinless" has no twin, that of "badtwin" breaks.
    """
    if "missing" in str(name):
        raise CheckpointError(f"there is no {name}")
    if isinstance(name, HookedModel):
        return name
    provenance = Provenance(
        checkpoint=name,
        revision=None,
        fingerprint="0123456789abcdef",
        wrapper="FakeTransformer",
        processing="none",
        prepend_bos=None,
        dtype="float32",
        device="cpu",
        versions={"torch": torch.__version__},
        training={"task": {"note": name}},
    )

    def twin(seed: int) -> HookedModel:
        if "twinless" in name:
            raise NotApplicable("it does not say how it was initialised")
        suffix = "random broken" if "badtwin" in name else "random"
        return HookedModel(
            None, None, replace(provenance, checkpoint=f"{name} ({suffix}, seed {seed})")
        )

    return HookedModel(None, None, provenance, twin)


def clock(model: HookedModel) -> Heads:
    return heads(model)


def interrupted(model: HookedModel) -> Heads:
    raise KeyboardInterrupt


class Fakes(Loading):
    """Loads the fake checkpoints by name."""

    def load(self, checkpoint: Any) -> HookedModel:
        return loaded(checkpoint)


@pytest.fixture
def fake() -> Callable[[str], HookedModel]:
    """Return a function that makes a fake checkpoint."""
    return loaded


@pytest.fixture
def only_fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Register the fake analyses, and them alone; what comes back registers one more by name."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_import_built_ins", lambda: ())
    monkeypatch.setattr(registry, "_import_entry_points", lambda: ())
    analysis(question="Which heads?", paper="Doe 2024, arXiv:2401.00001", applies=needs_text)(heads)
    analysis(question="How late?", paper="Doe 2020", cost="slow")(late)
    more = {"clock": clock, "interrupted": interrupted}
    return lambda name: analysis(question="Else?", paper="Doe 2021")(more[name])


@pytest.fixture
def reported(only_fakes: Any) -> Callable[..., ReportSummary]:
    """Return a function that reports on fakes: `reported(out, *names, **settings)`."""

    def report(out: Path, *names: Any, progress: Any = None, **settings: Any) -> ReportSummary:
        return run_report(
            list(names), out, Settings(**settings, loading=Fakes()), progress=progress
        )

    return report


# --- reading pages -------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.data: list[str] = []
        self.visible: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given))
        self._inside = tag
        if tag == "script":
            self._inside = "data" if given.get("type") == "application/json" else "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        {"script": self.scripts, "data": self.data}.get(self._inside, self.visible).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.visible).split())


@pytest.fixture
def read() -> Callable[[ReportSummary], Page]:
    """Return a function that reads the page of a report."""
    return lambda summary: Page(summary.html.read_text(encoding="utf-8"))
