"""Reports: what ran, what did not and why, on a page that a hostile checkpoint cannot take over.

What would fool it: a name that looks like markup, which the page must show as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pandas
import pytest
import torch
from hypothesis import given

from mechinterp_toolkit import plots, registry
from mechinterp_toolkit.errors import CheckpointError, NotApplicable, RegistryError, ResultError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.report import page
from mechinterp_toolkit.report import run as report_module
from mechinterp_toolkit.report.run import ReportSummary, render, run_report
from mechinterp_toolkit.results import Estimate, Provenance, Verdict

HOSTILE = (
    "</script><script>alert('x')</script><img src=x"
    " onerror=alert(1)>|`**b**[l](javascript:alert(1))"
)


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


def clock(model: HookedModel) -> Heads:
    return heads(model)


def late(model: HookedModel, *, seed: int = 0) -> Heads:
    return heads(model, seed=seed)


def interrupted(model: HookedModel) -> Heads:
    raise KeyboardInterrupt


def loaded(name: Any) -> HookedModel:
    """Return a fake checkpoint; "missing" cannot be loaded, "twinless" has no twin, "badtwin" one
    that breaks."""
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


@pytest.fixture(autouse=True)
def only_fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Heads]], Any]:
    """Register the fake analyses, and them alone, for one test; more can be registered with what
    comes back."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_import_built_ins", lambda: ())
    monkeypatch.setattr(registry, "_import_entry_points", lambda: ())
    analysis(question="Which heads?", paper="Doe 2024, arXiv:2401.00001", applies=needs_text)(heads)
    analysis(question="How late?", paper="Doe 2020", cost="slow")(late)
    return analysis(question="Else?", paper="Doe 2021")


def reported(out: Path, *names: str, **options: Any) -> ReportSummary:
    return run_report(list(names), out, load=loaded, **options)


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


def read(summary: ReportSummary) -> Page:
    return Page(summary.html.read_text(encoding="utf-8"))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "times"}
    return [without_times(v) for v in value] if isinstance(value, list) else value


# --- what a report holds -------------------------------------------------------------------------


def test_a_report_says_verdicts_places_effect_control_and_twin(tmp_path: Path) -> None:
    summary = reported(tmp_path, "model")
    (row,) = summary.rows()
    assert row["represented"] == "found"
    assert row["used"] == "undecided"
    assert row["locations"] == ["0.1"]
    assert (row["effect"], row["low"], row["high"]) == (0.75, 0.625, 0.875)
    assert 0 < row["control_95"] <= 0.5  # the fake null is uniform below 0.5
    assert row["twin_represented"] == "not_found"
    assert summary.failures == ()
    shown = read(summary).text
    for words in (
        "model",
        "fingerprint 0123456789abcdef",
        "FakeTransformer",
        "Which heads?",
        "The best head scores 0.75 [0.625, 0.875].",
        "Head 0.1 was silenced.",
        "A name that looks like markup, which the page must show as text.",
        "Dropped.",
        "p = 0.01 at level 0.05",
        "power 0.9",
        "draws=20",
        'words=["a"]',
        "mechinterp report model",
        "mechinterp run heads model",
    ):
        assert words in shown


def test_results_are_saved_with_one_table_per_estimate_and_linked(tmp_path: Path) -> None:
    summary = reported(tmp_path, "toy/model")
    folder = tmp_path / "results" / "toy-model" / "heads"
    assert {p.name for p in folder.iterdir()} == {
        "result.json",
        "tensors.safetensors",
        "score.csv",
        "best.csv",
    }
    table = pandas.read_csv(folder / "score.csv")
    assert table["value"].tolist() == [0.25, 0.75]
    assert table["head"].tolist() == ["h0", "h1"]
    links = [a["href"] for a in read(summary).all("a") if a["href"].startswith("results/")]
    assert len(links) == 4
    assert all((tmp_path / link).is_file() for link in links)


def test_an_analysis_that_fails_takes_nothing_else_down_and_says_why(
    tmp_path: Path, only_fakes: Callable[..., Any]
) -> None:
    only_fakes(clock)
    summary = reported(tmp_path, "broken model", "good model", analyses=["heads", "clock"])
    assert [row["status"] for row in summary.rows()] == ["failed", "failed", "ran", "ran"]
    assert (
        summary.failures[0]
        == "broken model, heads: RuntimeError: the tensors of broken model do not fit"
    )
    shown = read(summary).text
    assert "RuntimeError: the tensors of broken model do not fit" in shown
    assert "Traceback (most recent call last)" in shown


def test_an_analysis_that_does_not_apply_is_folded_away_with_its_reason(tmp_path: Path) -> None:
    summary = reported(tmp_path, "silent model")
    assert summary.rows() == [
        {
            "checkpoint": "silent model",
            "analysis": "heads",
            "status": "not_applicable",
            "reason": "it has no tokenizer.",
        }
    ]
    assert summary.failures == ()
    shown = read(summary)
    assert "1 not applicable to this checkpoint" in shown.text
    assert "It has no tokenizer." in shown.text
    assert "section" in {tag for tag, _ in shown.elements}
    assert not any(given.get("class") == "finding" for given in shown.all("section"))


def test_a_finding_that_random_weights_repeat_is_called_out(tmp_path: Path) -> None:
    assert "Random weights show it too." in read(reported(tmp_path / "a", "always there")).text
    assert "Random weights show it too." not in read(reported(tmp_path / "b", "learned")).text


def test_a_checkpoint_without_twin_keeps_its_report_and_the_reason(tmp_path: Path) -> None:
    summary = reported(tmp_path, "twinless")
    assert summary.failures == ()
    assert summary.rows()[0]["twin_reason"] == "it does not say how it was initialised"
    assert "it does not say how it was initialised" in read(summary).text


def test_a_twin_that_fails_counts_as_a_failure(tmp_path: Path) -> None:
    (failure,) = reported(tmp_path, "badtwin").failures
    assert failure.startswith("badtwin, heads on the random-weight twin: RuntimeError")


def test_without_twin_nothing_is_run_on_random_weights(tmp_path: Path) -> None:
    summary = reported(tmp_path, "badtwin", twin=False)
    assert summary.failures == ()
    assert "mechinterp report badtwin --no-twin" in read(summary).text


def test_slow_analyses_wait_to_be_asked_for(tmp_path: Path) -> None:
    assert [row["analysis"] for row in reported(tmp_path, "m").rows()] == ["heads"]
    assert [row["analysis"] for row in reported(tmp_path, "m", all_costs=True).rows()] == [
        "heads",
        "late",
    ]
    assert [row["analysis"] for row in reported(tmp_path, "m", analyses=["late"]).rows()] == [
        "late"
    ]


def test_the_seed_reaches_every_analysis_with_a_seed_unless_an_option_says_otherwise(
    tmp_path: Path,
) -> None:
    summary = reported(tmp_path, "m", all_costs=True, seed=7, options={"late": {"seed": 3}})
    assert [
        entry["options"]["seed"] for entry in summary.document["checkpoints"][0]["entries"]
    ] == [7, 3]
    assert "--seed 7 --set late.seed=3" in summary.document["command"]


def test_the_command_of_a_section_names_revision_form_and_options_so_that_a_shell_runs_it_again(
    tmp_path: Path,
) -> None:
    model = loaded("org/model")
    model = replace(
        model,
        provenance=replace(
            model.provenance, revision="step3", processing="compatible", dtype="bfloat16"
        ),
    )
    summary = run_report([model], tmp_path, options={"heads": {"words": ("a", "b c")}}, twin=False)
    command = summary.document["checkpoints"][0]["entries"][0]["command"]
    assert shlex.split(command) == [
        *(
            "mechinterp",
            "run",
            "heads",
            "org/model@step3",
            "--processing",
            "compatible",
            "--dtype",
            "bfloat16",
        ),
        *("--set", 'words=["a", "b c"]'),
    ]


def test_options_reach_their_analysis(tmp_path: Path) -> None:
    summary = reported(tmp_path, "m", options={"heads": {"draws": 5}})
    assert summary.document["checkpoints"][0]["entries"][0]["effect"]["control"]["draws"] == 5


def test_misspelt_and_idle_options_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"heads has no option 'drws'\. Did you mean 'draws'"):
        reported(tmp_path, "missing", options={"heads": {"drws": 5}})
    with pytest.raises(RegistryError, match=r"no analysis is called 'heds'\. Did you mean 'heads'"):
        reported(tmp_path, "missing", options={"heds": {"draws": 5}})
    with pytest.raises(
        RegistryError, match="options were given for late, which this report does not run"
    ):
        reported(tmp_path, "missing", options={"late": {"seed": 5}})


def test_one_checkpoint_of_several_that_cannot_be_loaded_is_listed(tmp_path: Path) -> None:
    summary = reported(tmp_path, "missing", "model")
    assert summary.failures == ("missing: CheckpointError: there is no missing",)
    assert "Could not be loaded. CheckpointError: there is no missing" in read(summary).text
    assert [row["checkpoint"] for row in summary.rows()] == ["model"]


def test_a_report_on_nothing_but_missing_checkpoints_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no missing"):
        reported(tmp_path / "out", "missing", "also missing")
    assert not (tmp_path / "out").exists()


def test_the_same_seed_gives_the_same_account_apart_from_times(tmp_path: Path) -> None:
    first, second = (
        reported(tmp_path / name, "m", "silent", "broken", seed=1).out for name in "ab"
    )
    texts = [(out / "report.json").read_text(encoding="utf-8") for out in (first, second)]
    a, b = (json.dumps(without_times(json.loads(text)), sort_keys=True) for text in texts)
    assert a == b
    assert re.findall(r'"(?:date|seconds|peak_memory_mb)"', a) == []
    keys = re.findall(r'^ "(\w+)"', texts[0], flags=re.MULTILINE)
    assert keys == sorted(keys)


def test_an_interrupted_report_can_still_be_shown(
    tmp_path: Path, only_fakes: Callable[..., Any]
) -> None:
    only_fakes(interrupted)
    with pytest.raises(KeyboardInterrupt):
        reported(tmp_path, "silent")
    # A reason is in no result folder: it can only come from the account kept so far.
    assert [row["reason"] for row in render(tmp_path).rows()] == ["it has no tokenizer."]


def test_progress_counts_every_step_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    reported(tmp_path, "m", "silent", "missing", progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4, 6, 9]
    assert {total for _, total, _ in seen} == {
        9
    }  # per checkpoint: loading, the analysis, the analysis on its twin
    assert seen[2][2] == "m · heads · random weights"
    assert seen[-1][2] == "writing the page"


def test_models_can_be_given_as_they_are(tmp_path: Path) -> None:
    assert run_report([loaded("in memory")], tmp_path).rows()[0]["checkpoint"] == "in memory"


def test_the_estimate_of_time_counts_checkpoints_twins_and_costs() -> None:
    chosen = report_module.choose_analyses(None, all_costs=True)
    typical = report_module.TYPICAL_SECONDS
    assert report_module.estimate_seconds(3, chosen) == 6 * (typical["quick"] + typical["slow"])
    assert report_module.estimate_seconds(3, chosen, twin=False) == 3 * (
        typical["quick"] + typical["slow"]
    )


# --- showing saved results -----------------------------------------------------------------------


def test_saved_results_give_the_same_page_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = reported(tmp_path, "model", "broken", "silent")
    before = {
        name: (tmp_path / name).read_bytes() for name in ("report.html", "report.md", "report.json")
    }
    monkeypatch.setattr(registry, "load_model", None)
    again = render(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert again.rows() == summary.rows()


def test_results_without_an_account_can_be_shown(tmp_path: Path) -> None:
    summary = reported(tmp_path, "model")
    (tmp_path / "report.json").unlink()
    shown = render(tmp_path)
    assert shown.rows()[0]["represented"] == "found"
    assert "Which heads?" in read(shown).text
    assert (
        len(re.findall("result.json", summary.html.read_text(encoding="utf-8"))) == 2
    )  # link and its text


def test_an_empty_folder_and_a_newer_account_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"holds neither report\.json nor any result\.json"):
        render(tmp_path)
    (tmp_path / "report.json").write_text('{"schema_version": 99}')
    with pytest.raises(ResultError, match="has schema 99, this version reads 1"):
        render(tmp_path)


def test_a_picture_that_fails_leaves_the_section_standing(tmp_path: Path) -> None:
    summary = reported(tmp_path, "m", options={"heads": {"text": " undrawable"}})
    assert summary.failures == ("m, heads: RuntimeError: no picture today",)
    shown = read(summary).text
    assert "The pictures could not be drawn: RuntimeError: no picture today" in shown
    assert "Head 0.1 was silenced undrawable." in shown


# --- the page is safe, whole and offline ---------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> ReportSummary:
    """A report in which everything that can come from a checkpoint tries to be markup."""
    return reported(
        tmp_path,
        f"model{HOSTILE}",
        f"silent{HOSTILE}",
        f"broken{HOSTILE}",
        options={"heads": {"text": HOSTILE}},
    )


def test_nothing_from_a_checkpoint_becomes_an_element(hostile: ReportSummary) -> None:
    shown = read(hostile)
    assert shown.all("img") == []
    assert len(shown.scripts) == 2  # the page's own and plotly.js
    assert not any("alert(" in script and "onerror" in script for script in shown.scripts)
    assert not any(name.startswith("on") for _, given in shown.elements for name in given)
    assert all(
        a["href"].startswith(("#", "results/", "https://arxiv.org/")) for a in shown.all("a")
    )
    assert f"Head 0.1 was silenced{HOSTILE}." in shown.text


def test_pictures_hold_hostile_labels_as_text(hostile: ReportSummary) -> None:
    shown = read(hostile)
    assert len(shown.data) == 2
    for block in shown.data:
        figure = json.loads(block)
        assert "<" not in block
        assert set(re.findall(r"<[^>]*>", json.dumps(figure))) <= {
            "<br>",
            "<b>",
            "</b>",
            "<extra>",
            "</extra>",
        }
    assert all("alert" in block for block in shown.data)


def test_markdown_holds_hostile_text_as_text_in_tables_of_seven_columns(
    hostile: ReportSummary,
) -> None:
    text = (hostile.out / "report.md").read_text(encoding="utf-8")
    prose = re.sub(r"^(```+).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in prose
    assert "[l](" in prose
    assert re.search(r"(?<!\\)\[l\]\(", prose) is None  # every one is escaped
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}


def test_the_policy_lets_exactly_the_pages_own_scripts_run_and_nothing_load(
    hostile: ReportSummary,
) -> None:
    shown = read(hostile)
    (policy,) = (
        m["content"] for m in shown.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    assert allowed == {
        base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in shown.scripts
    }
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy


def test_plotly_lies_in_the_page_once_and_nothing_is_fetched(tmp_path: Path) -> None:
    summary = reported(tmp_path, "one", "two", "three")
    shown = read(summary)
    assert summary.html.read_text(encoding="utf-8").count("plotly.js v") == 1
    assert not any("src" in given for _, given in shown.elements)
    assert shown.all("link") == []
    assert "showSendToCloud: false" in shown.scripts[0]


def test_a_page_without_pictures_does_not_carry_plotly(tmp_path: Path) -> None:
    summary = reported(tmp_path, "silent")
    assert summary.html.stat().st_size < 100_000


def test_every_link_inside_the_page_leads_somewhere_and_no_two_places_share_a_name(
    tmp_path: Path,
) -> None:
    shown = read(reported(tmp_path, "one", "two", "broken", all_costs=True))
    ids = [given["id"] for _, given in shown.elements if "id" in given]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in shown.all("a") if a["href"].startswith("#")} <= set(ids)


def test_every_verdict_is_said_in_words_beside_its_colour(tmp_path: Path) -> None:
    text = reported(tmp_path, "model", "silent", "broken").html.read_text(encoding="utf-8")
    badges = re.findall(
        r'<span class="badge (\w+)"><span class="glyph" aria-hidden="true">.</span>([^<]+)</span>',
        text,
    )
    assert {outcome for outcome, _ in badges} == {
        "found",
        "not_found",
        "undecided",
        "not_applicable",
        "failed",
    }
    assert all(word == outcome.replace("_", " ") for outcome, word in badges)
    assert len(badges) == text.count('class="badge ')


def test_captions_are_not_repeated_inside_the_picture_but_other_titles_stay(tmp_path: Path) -> None:
    first, second = (
        json.loads(block)["layout"]["title"]["text"] for block in read(reported(tmp_path, "m")).data
    )
    assert first == ""
    assert second == "The null of heads"


def test_arxiv_numbers_and_addresses_become_links_and_the_rest_stays_text() -> None:
    text = str(page._with_references("Doe <b> 2024, arXiv:2401.00001; https://example.org/a?b=1."))
    assert (
        text == 'Doe &lt;b&gt; 2024, <a href="https://arxiv.org/abs/2401.00001" rel="noopener'
        ' noreferrer">arXiv:2401.00001</a>; <a href="https://example.org/a?b=1" rel="noopener'
        ' noreferrer">https://example.org/a?b=1</a>.'
    )


def test_places_in_the_stream_are_short_in_the_table_of_verdicts() -> None:
    assert page._place("blocks.12.hook_resid_pre") == "before block 12"
    assert page._place("blocks.0.hook_resid_post") == "blocks.0.hook_resid_post"
    assert page._place("(4,1)") == "(4,1)"


def test_marks_place_estimate_interval_control_and_twin_on_one_line() -> None:
    control = {"percentile_2.5": 0.0, "percentile_97.5": 0.5}
    marks = page._marks(
        {"value": 0.75, "low": 0.5, "high": 1.0, "control": control}, {"value": 0.25}
    )
    assert marks == {
        "value": 72.5,
        "low": 50,
        "high": 95,
        "control_low": 5,
        "control_high": 50,
        "twin": 27.5,
    }
    assert page._marks({"value": 0.75, "low": 0.5, "high": 1.0, "control": None}, None) is None


def test_a_twin_measured_in_another_unit_is_not_drawn_on_the_same_line() -> None:
    control = {"percentile_2.5": 0.0, "percentile_97.5": 0.5}
    effect = {"value": 0.75, "low": 0.5, "high": 1.0, "unit": "logits", "control": control}
    for unit, drawn in (("logits", True), ("fraction", False)):
        twin = {
            "status": "ran",
            "represented": {"outcome": "not_found"},
            "effect": effect | {"unit": unit},
        }
        assert (
            "twin" in page._seen({"status": "ran", "effect": effect, "twin": twin}, None)["marks"]
        ) is drawn


@given(st.text(alphabet="`a\n"))
def test_code_in_markdown_cannot_end_its_block(text: str) -> None:
    block = page._code_block(text)
    fence = re.match("`+", block)[0]
    assert fence not in text
    assert block.endswith(f"\n{fence}")
