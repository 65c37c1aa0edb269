"""The page: safe with a hostile checkpoint, whole, offline, and in words."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mechinterp_toolkit.report import page
from mechinterp_toolkit.report.document import ControlAccount, EffectAccount
from mechinterp_toolkit.report.run import ReportSummary

HOSTILE = (
    "</script><script>alert('x')</script><img src=x"
    " onerror=alert(1)>|`**b**[l](javascript:alert(1))"
)


@pytest.fixture
def hostile(reported: Callable[..., ReportSummary], tmp_path: Path) -> ReportSummary:
    """A report in which everything that can come from a checkpoint tries to be markup."""
    return reported(
        tmp_path,
        f"model{HOSTILE}",
        f"silent{HOSTILE}",
        f"broken{HOSTILE}",
        options={"heads": {"text": HOSTILE}},
    )


def test_nothing_from_a_checkpoint_becomes_an_element(
    read: Callable[..., Any], hostile: ReportSummary
) -> None:
    shown = read(hostile)
    assert shown.all("img") == []
    assert len(shown.scripts) == 2  # the page's own and plotly.js
    assert not any("alert(" in script and "onerror" in script for script in shown.scripts)
    assert not any(name.startswith("on") for _, given in shown.elements for name in given)
    assert all(
        a["href"].startswith(("#", "results/", "https://arxiv.org/")) for a in shown.all("a")
    )
    assert f"Head 0.1 was silenced{HOSTILE}." in shown.text


def test_pictures_hold_hostile_labels_as_text(
    read: Callable[..., Any], hostile: ReportSummary
) -> None:
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
    read: Callable[..., Any], hostile: ReportSummary
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


def test_plotly_lies_in_the_page_once_and_nothing_is_fetched(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "one", "two", "three")
    shown = read(summary)
    assert summary.html.read_text(encoding="utf-8").count("plotly.js v") == 1
    assert not any("src" in given for _, given in shown.elements)
    assert shown.all("link") == []
    assert "showSendToCloud: false" in shown.scripts[0]


def test_a_page_without_pictures_does_not_carry_plotly(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    summary = reported(tmp_path, "silent")
    assert summary.html.stat().st_size < 100_000


def test_every_link_inside_the_page_leads_somewhere_and_no_two_places_share_a_name(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
    shown = read(reported(tmp_path, "one", "two", "broken", all_costs=True))
    ids = [given["id"] for _, given in shown.elements if "id" in given]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in shown.all("a") if a["href"].startswith("#")} <= set(ids)


def test_every_verdict_is_said_in_words_beside_its_colour(
    reported: Callable[..., ReportSummary], tmp_path: Path
) -> None:
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


def test_captions_are_not_repeated_inside_the_picture_but_other_titles_stay(
    reported: Callable[..., ReportSummary], read: Callable[..., Any], tmp_path: Path
) -> None:
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


def effect(value: float, unit: str = "logits") -> EffectAccount:
    percentiles = {"2.5": 0.0, "95": 0.4, "97.5": 0.5}
    control = ControlAccount("shuffled", 9, 0.25, percentiles, "0.25, 95 % below 0.4")
    return EffectAccount(value, 0.5, 1.0, 3, unit, "bootstrap", "0.75 [0.5, 1]", control)


def test_marks_place_estimate_interval_control_and_twin_on_one_line() -> None:
    marks = page._marks(effect(0.75), effect(0.25))
    assert marks == {
        "value": 72.5,
        "low": 50,
        "high": 95,
        "control_low": 5,
        "control_high": 50,
        "twin": 27.5,
    }
    assert page._marks(replace(effect(0.75), control=None), None) is None
    assert page._marks(None, effect(0.25)) is None


def test_a_twin_measured_in_another_unit_is_not_drawn_on_the_same_line() -> None:
    for unit, drawn in (("logits", True), ("fraction", False)):
        assert ("twin" in page._marks(effect(0.75), effect(0.25, unit))) is drawn


@given(st.text(alphabet="`a\n"))
def test_code_in_markdown_cannot_end_its_block(text: str) -> None:
    block = page._code_block(text)
    fence = re.match("`+", block)[0]
    assert fence not in text
    assert block.endswith(f"\n{fence}")
