"""The house stands as it is drawn: who may import whom, and where a test lies.

The order is in `tests/house.py`, which reads the sources. Every check here comes with a small
checkout that it has to refuse.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house import (
    ROOT,
    ROWS,
    WHOLE,
    House,
    Row,
    may_import,
    orphan_tests,
)

MOST_FLAT_FILES = 20
"""Files that lie flat in the core: few enough to be read as a list."""

NOT_OURS_TO_NAME = ("/" + "work/", "/" + "tmp/", "/" + "root/")
"""Paths of one machine, which mean nothing on another."""


# --- the order of the rooms -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "other"),
    [
        ("stats", "results"),
        ("model", "checkpoint"),
        ("heads", "prompts"),
        ("geometry", "stats"),
        ("toys", "groups"),
        ("cli", "report"),
        ("hooks", "groups"),
        ("analyses.helix", "toys"),
        ("analyses.helix", "hooks"),
        ("analyses.helix", "analyses._shared"),
        ("__init__", "analyses.helix"),
    ],
)
def test_a_room_may_import_what_stands_above_it(room: str, other: str) -> None:
    assert may_import(room, other)


@pytest.mark.parametrize(
    ("room", "other"),
    [
        ("errors", "results"),
        ("results", "stats"),
        ("checkpoint", "toys"),
        ("record", "hooks"),
        ("geometry", "model"),
        ("groups", "stats"),
        ("toys", "hooks"),
        ("toys", "analyses.helix"),
        ("report", "analyses.helix"),
        ("cli", "analyses._shared"),
        ("model", "__init__"),
        ("hooks", "toys"),
        ("hooks", "report"),
        ("hooks", "analyses.helix"),
        ("analyses", "hooks"),
        ("analyses._shared", "analyses.helix"),
        ("analyses.helix", "analyses.circles"),
        ("analyses.helix", "report"),
        ("analyses.helix", "cli"),
        ("nowhere", "errors"),
        ("cli", "nowhere"),
    ],
)
def test_a_room_may_import_nothing_else(room: str, other: str) -> None:
    assert not may_import(room, other)


# --- the house as it stands -----------------------------------------------------------------------


def too_many_flat_files(house: House) -> list[str]:
    return house.flat_core if len(house.flat_core) > MOST_FLAT_FILES else []


def empty_places(house: House) -> list[str]:
    """Return what the order names and no room is."""
    return [
        name
        for row in ROWS
        for name in row.rooms.split()
        if not any(Row(name).holds(room) for room in house.rooms)
    ]


def circles(house: House) -> list[str]:
    return house.ways_round


def orphans(house: House) -> list[str]:
    return orphan_tests(house.root)


@dataclass(frozen=True)
class Broken:
    """A small checkout that a check has to refuse."""

    check: Callable[[House], Sequence[str]]
    """What is wrong with a house, one line each."""

    files: dict[str, str]
    """Path -> text."""

    lines: list[str]
    """What the check says of it."""


NAMES = " ".join(row.rooms for row in ROWS).split()
BROKEN = {
    "a circle closed inside a function": Broken(
        circles,
        {
            "mechinterp_toolkit/a.py": "from mechinterp_toolkit.b import f",
            "mechinterp_toolkit/b.py": "def f():\n    import mechinterp_toolkit.a",
        },
        ["2 modules: a -> b -> a", "2 rooms: a -> b -> a"],
    ),
    "a circle closed by a module's name in full": Broken(
        circles,
        {
            "mechinterp_toolkit/model.py": "HOMES = {'Net': 'mechinterp_toolkit.toys.net'}",
            "mechinterp_toolkit/toys/net.py": "from mechinterp_toolkit import model",
        },
        ["2 modules: model -> toys.net -> model", "2 rooms: model -> toys -> model"],
    ),
    "a circle closed by a package's table of names": Broken(
        circles,
        {
            "mechinterp_toolkit/toys/__init__.py": "_HOME = {'train': 'training'}\n"
            "def __getattr__(name):\n    return importlib.import_module(_HOME[name])",
            "mechinterp_toolkit/toys/training.py": "from mechinterp_toolkit.toys import train",
        },
        ["2 modules: toys -> toys.training -> toys"],
    ),
    "a circle closed by `import_module`": Broken(
        circles,
        {
            "hooks/a.py": "import importlib\nimportlib.import_module('mechinterp_toolkit.hooks.b')",
            "hooks/b.py": "from mechinterp_toolkit.hooks import a",
        },
        ["2 modules: hooks.a -> hooks.b -> hooks.a"],
    ),
    "a circle of rooms through modules that are in none": Broken(
        circles,
        {
            "mechinterp_toolkit/toys/a.py": "import mechinterp_toolkit.groups.a",
            "mechinterp_toolkit/groups/a.py": "",
            "mechinterp_toolkit/groups/b.py": "import mechinterp_toolkit.toys.b",
            "mechinterp_toolkit/toys/b.py": "",
        },
        ["2 rooms: groups -> toys -> groups"],
    ),
    "an import from below": Broken(
        lambda house: house.against_the_order,
        {
            "mechinterp_toolkit/record.py": "def f():\n    from mechinterp_toolkit import hooks",
            "hooks/__init__.py": "",
        },
        ["mechinterp_toolkit/record.py:2 imports hooks (in a function)"],
    ),
    "an import from below that only a type checker reads": Broken(
        lambda house: house.against_the_order,
        {
            "mechinterp_toolkit/results.py": "if TYPE_CHECKING:\n"
            "    from mechinterp_toolkit.registry import Analysis",
            "mechinterp_toolkit/registry.py": "",
        },
        ["mechinterp_toolkit/results.py:2 imports registry (for types)"],
    ),
    "an analysis that imports another": Broken(
        lambda house: house.against_the_order,
        {
            "analyses/helix/finding.py": "from mechinterp_toolkit.analyses.helix.clock import f\n"
            "from mechinterp_toolkit.analyses.circles import fit",
            "analyses/helix/clock.py": "def f(): ...",
            "analyses/circles.py": "def fit(): ...",
        },
        ["analyses/helix/finding.py:2 imports analyses.circles (at import)"],
    ),
    "a module of no row": Broken(
        lambda house: house.in_no_row,
        {"mechinterp_toolkit/helpers.py": "", "mechinterp_toolkit/errors.py": ""},
        ["mechinterp_toolkit/helpers.py"],
    ),
    "a row without rooms": Broken(
        empty_places,
        {
            **{f"mechinterp_toolkit/{name}.py": "" for name in NAMES if not name.endswith("*")},
            "analyses/helix.py": "",
        },
        ["analyses._*"],
    ),
    "an import by a name that nothing reads": Broken(
        lambda house: house.unread,
        {
            "mechinterp_toolkit/plots.py": "from importlib import import_module\n"
            "import_module('json')\nimport_module('js' + 'on')\nmap(import_module, [])",
            "mechinterp_toolkit/toys/__init__.py": "importlib.import_module(HOME[name])",
        },
        ["mechinterp_toolkit/plots.py:3", "mechinterp_toolkit/plots.py:4"],
    ),
    "a flat core": Broken(
        too_many_flat_files,
        {f"mechinterp_toolkit/_{letter}.py": "" for letter in "abcdefghijklmnopqrstu"},
        [f"_{letter}" for letter in "abcdefghijklmnopqrstu"],
    ),
    "a file of the core that serves one analysis": Broken(
        lambda house: house.for_one_analysis,
        {
            "analyses/helix.py": "from mechinterp_toolkit import _clock, clock, record",
            "analyses/circles.py": "from mechinterp_toolkit import record",
            "mechinterp_toolkit/clock.py": "",
            "mechinterp_toolkit/_clock.py": "",
            "mechinterp_toolkit/record.py": "",
        },
        ["clock is for analyses.helix alone"],
    ),
    "tests without a source": Broken(
        orphans,
        {
            "mechinterp_toolkit/prompts/tokens.py": "",
            "mechinterp_toolkit/toys/__init__.py": "",
            "hooks/erase.py": "",
            "analyses/_concepts.py": "",
            "analyses/helix/__init__.py": "",
            "tests/prompts/test_tokens.py": "",
            "tests/hooks/test_erase.py": "",
            "tests/hooks/test_erase_peer.py": "",
            "tests/analyses/test_concepts.py": "",
            "tests/analyses/test_helix.py": "",
            "tests/test_readme.py": "",
            "tests/test_tokens.py": "",
            "tests/test_toys_addition.py": "",
            "tests/hooks/test_readme.py": "",
            "tests/analyses/helix/test_clock.py": "",
        },
        [
            "tests/analyses/helix/test_clock.py",
            "tests/hooks/test_readme.py",
            "tests/test_tokens.py",
            "tests/test_toys_addition.py",
        ],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_check_refuses_a_house_that_breaks_it(name: str, tmp_path: Path) -> None:
    for path, text in BROKEN[name].files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert BROKEN[name].check(House(tmp_path)) == BROKEN[name].lines


@pytest.fixture(scope="module")
def house() -> House:
    return House()


def test_nothing_imports_itself_by_way_of_others(house: House) -> None:
    assert circles(house) == []


def test_every_import_follows_the_order(house: House) -> None:
    assert house.against_the_order == []


def test_every_module_stands_in_a_row_of_the_order(house: House) -> None:
    assert house.in_no_row == []


def test_every_place_in_the_order_is_taken(house: House) -> None:
    assert empty_places(house) == []


def test_contributing_shows_the_same_rows() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## The layout")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    rows = [[n for n in row.rooms.split() if n[0] != "_" and "." not in n] for row in ROWS]
    assert [re.findall(r"`(\w+)/?`", cell) for cell in cells] == [row for row in rows if row]


def test_every_import_by_name_is_read(house: House) -> None:
    assert house.unread == []


def test_few_files_lie_flat_in_the_core(house: House) -> None:
    assert too_many_flat_files(house) == []


def test_no_file_of_the_core_serves_one_analysis_alone(house: House) -> None:
    assert house.for_one_analysis == []


def test_every_test_lies_where_its_source_is(house: House) -> None:
    assert orphans(house) == []
    assert [name for name in WHOLE if not list((ROOT / "tests").glob(f"{name}*"))] == []


MEASURED = f'''
"""Erase."""

def erase(model, one) -> dict[str, Any]:
    """Erase.

    >>> erase(1, 2)
    """
    for found in load_model(model):  # a comment that is too long: {"x" * 60}
        one += found
    return one

def keep(): ...
'''


def test_the_house_is_measured_as_a_script(tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/erase.py").write_text(MEASURED)
    command = [sys.executable, ROOT / "tests/house.py", tmp_path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = dict(line.split("  ", 1) for line in printed.split("\n\n")[0].splitlines())
    assert {label: value.strip() for label, value in table.items()} == {
        "modules": "1",
        "statements": "5",  # two functions, the loop, what is in it, and `return`
        "rooms, floors, arrows": "1, 1, 0",
        "circles of modules, of rooms": "0, 0",
        "imports against the order": "0",
        "modules in no row": "0",
        "flat core files": "0",
        "flat core files for one analysis": "0",
        "tests without a source": "0",
        "files over 500 lines": "0",
        "functions": "2",
        "lines of a function": "1 / 1 / 1 / 1 / 8",
        "functions over 60 lines": "0",
        "parameters": "0 / 0 / 0 / 0 / 2",
        "functions with over 8, but options": "0",
        "examples in hooks": "1 of 2",
        "examples in geometry": "0 of 0",
        "examples in groups": "0 of 0",
        "examples in analyses": "0 of 0",
        "comments per 1000 statements": "200",
        "lines over 100 columns, mechinterp_toolkit": "0.0 %",
        "lines over 100 columns, hooks": "7.7 %",  # one of 13
        "lines over 100 columns, analyses": "0.0 %",
        "lines over 100 columns, tests": "0.0 %",
        "line of an analysis' function": "-",
        "names that say nothing": "one 2, found 1, said 0",
        "dict[str, Any] in a signature": "1",
        "calls of load_model outside model.py": "1",
        "... in a function given a model": "1",
    }


# --- paths of one machine -------------------------------------------------------------------------


def test_no_file_names_a_path_of_one_machine() -> None:
    folders = ("mechinterp_toolkit", "hooks", "analyses", "tests", "recipes", "benchmarks", ".ci")
    every = [p for folder in folders for p in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.*"))
    readable = {
        *(".py", ".md", ".toml", ".txt", ".cff", ".json", ".ipynb"),
        *(".jinja", ".css", ".yml", ".yaml", ""),
    }
    not_ours = {"__pycache__", ".git"}  # `.git` is a file where a checkout is one of several
    files = [
        p
        for p in every
        if p.is_file() and p.suffix in readable and not not_ours.intersection(p.parts[-2:])
    ]
    named = [
        f"{path.relative_to(ROOT)} names {word}"
        for path in files
        for word in NOT_OURS_TO_NAME
        if word in path.read_text(errors="replace")
    ]
    assert named == []
