"""How is a report laid out? Its account and the figures become an HTML page and a Markdown file.

The page is one file that opens offline: styles, script and plotly.js lie inside it, plotly.js once.
A checkpoint's names, tokens and config are hostile until shown otherwise: jinja2 escapes every
value, plotly texts keep no foreign tag, data lie in JSON blocks without a "<", and a content
security policy lets only the page's own scripts run (by their hash) and nothing load from anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mechinterp_toolkit import plots
from mechinterp_toolkit.report.document import (
    Document,
    EffectAccount,
    EntryAccount,
    FindingAccount,
    Judgement,
    NotRun,
)

TEMPLATES = Path(__file__).parent / "templates"

_GLYPHS = {"found": "●", "not_found": "○", "undecided": "◐", "not_applicable": "–", "failed": "✕"}
_REFERENCE = re.compile(r"(arXiv:\d{4}\.\d{4,5}(?:v\d+)?|https://[^\s<>\"']+[^\s<>\"'.,;)])")
_json = functools.partial(json.dumps, ensure_ascii=False)
_MARKDOWN = re.compile(r"([\\`*_\[|~$]|^[#+-])")


@dataclass(frozen=True)
class Pictures:
    """The figures of one finding, or why there are none."""

    figures: Mapping[str, Any]
    """Title -> plotly figure."""

    reason: str = ""
    """Why they could not be drawn; empty where they could."""


def render_html(document: Document, pictures: Mapping[str, Pictures]) -> str:
    """Return the page.

    Args:
        document: the content of `report.json`.
        pictures: folder of a result -> its figures.
    """
    from plotly.offline import get_plotlyjs

    scripts = {"script": _own_lines((TEMPLATES / "report.js").read_text(encoding="utf-8"))}
    if any(drawn.figures for drawn in pictures.values()):
        scripts["plotly"] = _own_lines(get_plotlyjs())
    trusted = {name: Markup(text) for name, text in scripts.items()}
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    page = _environment("html").get_template("report.html.jinja")
    policy = _policy(scripts.values())
    return page.render(_view(document, pictures), style=style, policy=policy, **trusted)


def render_markdown(document: Document) -> str:
    """Return the same account as Markdown, without pictures."""
    return _environment("markdown").get_template("report.md.jinja").render(_view(document, {}))


@functools.cache
def _environment(language: Literal["html", "markdown"]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=language == "html",
        # in Markdown the escapes of HTML would stand there as text
        finalize=_escape_markdown if language == "markdown" else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": _breakable,
        "code": _code_block,
        "heading": lambda name: name.replace("_", " ").capitalize(),
        "number": lambda value: f"{value:.3g}",
        "option": lambda value: value if isinstance(value, str) else _json(value),
        "place": _place,
        "pretty": lambda value: _json(value, indent=1, sort_keys=True),
        "references": _with_references,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "word": lambda outcome: outcome.replace("_", " "),
    }
    environment.globals |= {"glyphs": _GLYPHS}
    return environment


def _view(document: Document, pictures: Mapping[str, Pictures]) -> dict[str, Any]:
    """Return the names the templates use.

    An entry is flat there, and has its anchor, figures and small interval marks added.
    """
    checkpoints = [
        {
            **vars(checkpoint),
            "id": f"checkpoint-{number}",
            "entries": [
                {"id": f"{entry.analysis}-{number}", **_flat(entry, pictures)}
                for entry in checkpoint.entries
            ],
        }
        for number, checkpoint in enumerate(document.checkpoints, 1)
    ]
    counts = _count([entry.result for _, entry in document.entries()])
    single = len(checkpoints) == 1
    return {"document": document, "checkpoints": checkpoints, "counts": counts, "single": single}


def _flat(entry: EntryAccount, pictures: Mapping[str, Pictures]) -> dict[str, Any]:
    result, twin = entry.result, entry.twin
    flat = {**vars(entry), **vars(result)}
    if isinstance(result, NotRun):
        return flat
    drawn = pictures.get(result.folder, Pictures({}))
    figures = [
        {"title": title, "data": _figure_json(figure, title), "height": figure.layout.height or 400}
        for title, figure in drawn.figures.items()
    ]
    beside = twin.effect if isinstance(twin, Judgement) else None
    return flat | {
        "pictures": figures,
        "picture_reason": drawn.reason,
        "marks": _marks(result.effect, beside),
        "alarm": isinstance(twin, Judgement) and twin.represented.found,
    }


def _count(results: Sequence[FindingAccount | NotRun]) -> dict[str, int]:
    """Count entries by status, and those that ran by the outcome of `represented`."""
    words = [r.status if isinstance(r, NotRun) else r.represented.outcome for r in results]
    return {word: words.count(word) for word in _GLYPHS if word in words}


def _marks(effect: EffectAccount | None, twin: EffectAccount | None) -> dict[str, float] | None:
    """Return where to draw estimate, interval, control and twin on a line from 0 to 100.

    None without a control; a twin in another unit has no place on the line.
    """
    if effect is None or effect.control is None:
        return None
    percentiles = effect.control.percentiles
    numbers = {"value": effect.value, "low": effect.low, "high": effect.high}
    numbers |= {"control_low": percentiles["2.5"], "control_high": percentiles["97.5"]}
    numbers |= {"twin": twin.value} if twin and twin.unit == effect.unit else {}
    least, most = min(numbers.values()), max(numbers.values())
    span = (most - least) or 1.0
    return {name: round(5 + 90 * (number - least) / span, 2) for name, number in numbers.items()}


def _figure_json(figure: Any, title: str) -> Markup:
    """Return a figure as JSON for a script block: our template, no foreign tag, no "<" at all."""
    figure.update_layout(
        template=plots.template(), paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)"
    )
    shown, *captions = map(
        plots.without_foreign_tags, (figure.layout.title.text or "", title, plots.escape(title))
    )
    if shown in ("", *captions):
        figure.update_layout(title_text="", margin_t=30)  # the caption above the picture says it
    plain = _without_foreign_tags(json.loads(figure.to_json()))
    text = json.dumps(plain, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _without_foreign_tags(value: Any) -> Any:
    if isinstance(value, str):
        return plots.without_foreign_tags(value)
    if isinstance(value, list):
        return [_without_foreign_tags(v) for v in value]
    if isinstance(value, dict):
        return {k: _without_foreign_tags(v) for k, v in value.items()}
    return value


def _own_lines(script: str) -> str:
    """Return a script with no way to end its block, and the line ends a browser hashes it with."""
    return script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _policy(scripts: Any) -> str:
    """Return a content security policy: these scripts by hash, own styles and images, no network.

    plotly.js compiles its WebGL shaders' argument lists with `Function`, hence 'unsafe-eval'; only
    scripts that are allowed to run at all can reach it.
    """
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _breakable(name: str) -> Markup:
    """Return escaped text that may break after the dots, underscores and slashes of a hook name."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._/])", name))


def _place(name: str) -> str:
    """Return a location for a narrow column: the stream in front of a block by its number."""
    return re.sub(r"\bblocks\.(\d+)\.hook_resid_pre\b", r"before block \1", name)


def _with_references(text: str) -> Markup:
    """Return escaped text in which arXiv numbers and https addresses are links."""
    parts, link = [], Markup('<a href="{}" rel="noopener noreferrer">{}</a>')
    for part in _REFERENCE.split(text):
        if _REFERENCE.fullmatch(part):
            address = part.replace("arXiv:", "https://arxiv.org/abs/", 1)
            parts.append(link.format(address, part))
        else:
            parts.append(escape(part))
    return Markup("").join(parts)


class _Safe(str):
    """Markdown that was made here and is not escaped again."""


def _escape_markdown(value: Any) -> str:
    """Return text that Markdown and the HTML it allows show as it is, on one line."""
    if isinstance(value, _Safe):
        return value
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def _code_block(text: str) -> _Safe:
    """Return a fenced block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Safe(f"{fence}text\n{text}\n{fence}")
