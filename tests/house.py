"""How the house is built: who imports whom, in what order the rooms stand, what its code is like.

The sources are read as syntax trees and never imported, so any checkout can be measured:

    python tests/house.py              # this checkout
    python tests/house.py BEFORE .     # two of them, side by side

A room is a file of the core, a folder of the core, all of `hooks/`, or one analysis (a file or a
folder). `ROWS` says in which order the rooms stand; `tests/test_layout.py` holds the code to it.

Every import counts: at the top of a file, inside a function, and by name, which is a text that is
the dotted name of one of our modules. What only a type checker reads counts in the order and makes
no circle. That Python runs a package's `__init__` before its modules is not counted: every
`__init__` that hands on names would be a circle.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CORE = "mechinterp_toolkit"
FOLDERS = {CORE: CORE, "hooks": f"{CORE}.hooks", "analyses": f"{CORE}.analyses"}
"""Folder of the checkout -> the name it is imported under."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- the order ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Rooms that stand together: each may import those to its left, and all rows above."""

    rooms: str
    """Names of the rooms, without the package's; `x.*` is every room in `x`, each by itself."""

    only: str | None = None
    """All that it may import; None where that is everything above."""

    but: str = ""
    """What it may not import of that."""

    def holds(self, room: str) -> bool:
        """Whether `room` stands here, if it does not stand in a row above."""
        return any(
            room.startswith(name[:-1]) if name.endswith("*") else room == name
            for name in self.rooms.split()
        )


ROWS = (
    Row("errors files"),
    Row("nulls results stats"),
    Row("plots finding"),
    Row("tables"),
    Row("checkpoint guards model"),
    Row("sae"),
    Row("intervention"),
    Row("accumulate moments record"),
    Row("prompts"),
    Row("heads"),
    Row("registry storage"),
    Row("calibration"),
    Row("geometry", only="errors nulls results stats"),
    Row("groups", only="errors"),
    Row("toys"),
    Row("report"),
    Row("cli __main__"),
    Row("hooks", but="toys report cli __main__"),
    Row("analyses", only=""),
    Row("analyses._*", but="report cli __main__"),
    Row("analyses.*", but="report cli __main__"),
    Row("__init__"),
)
"""From the ground up: a room imports what stands above it here, and nothing below."""

NOT_COUNTED = {
    (
        "registry",
        "analyses",
    ): "the registry walks this folder when asked for an analysis: the one door to them",
}
"""(room, room) -> why an import from the first to the second is no arrow."""

BY_NAME = {
    "__init__": "hands on names of its own folder by a table, which is read",
    "toys": "hands on names of its own folder by a table, which is read",
    "registry": "imports what it finds in the folder of analyses and in plug-ins",
}
"""Module -> why it may import one whose name is no literal in the call."""


def row_of(room: str) -> int | None:
    """Return which row holds `room`, counted from the ground; None where none does."""
    return next((i for i, row in enumerate(ROWS) if row.holds(room)), None)


def may_import(room: str, other: str) -> bool:
    """Whether the order lets `room` import `other`; a room in no row imports nothing."""
    here, there = row_of(room), row_of(other)
    if here is None or there is None:
        return False
    row = ROWS[here]
    if other in row.but.split() or (row.only is not None and other not in row.only.split()):
        return False
    names = row.rooms.split()
    beside = {room, other} <= set(names) and names.index(other) < names.index(room)
    return there < here or (there == here and beside)


# --- the imports ----------------------------------------------------------------------------------

How = Literal["at import", "in a function", "for types", "by name"]


class Import(NamedTuple):
    """One name that a file imports."""

    name: str
    """Dotted name, e.g. "mechinterp_toolkit.hooks.erase"; a relative one begins with dots."""

    how: How
    """When it is read: with the file, in a function, by a type checker, or from a text."""

    line: int
    """Line in the file."""

    @property
    def at_import(self) -> bool:
        """Whether it runs when the file is imported."""
        return self.how == "at import"

    def within(self, *packages: str) -> bool:
        """Whether the name is one of `packages` or lies in one."""
        return any(self.name == p or self.name.startswith(p + ".") for p in packages)


def imports_of(tree: ast.AST, how: How = "at import") -> Iterator[Import]:
    """Yield what a file imports: `from a import b` as "a.b", `import_module("a")` as "a"."""
    if isinstance(tree, ast.Import):
        yield from (Import(alias.name, how, tree.lineno) for alias in tree.names)
    if isinstance(tree, ast.ImportFrom):
        base = "." * tree.level + (tree.module or "")
        yield from (Import(f"{base}.{alias.name}", how, tree.lineno) for alias in tree.names)
    if isinstance(tree, ast.Call) and _is_importer(tree.func):
        yield from (Import(text, how, tree.lineno) for text in _texts(tree.args[:1]))
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        for child in tree.body:
            yield from imports_of(child, "for types")
        children: Iterable[ast.AST] = tree.orelse
    else:
        children = ast.iter_child_nodes(tree)
    inside = isinstance(tree, Function | ast.Lambda) and how == "at import"
    for child in children:
        yield from imports_of(child, "in a function" if inside else how)


def unread_imports(tree: ast.AST) -> list[int]:
    """Return the lines at which a module is imported whose name is no literal in the call."""
    literal = {
        call.func
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and any(_texts(call.args[:1]))
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.expr) and _is_importer(node) and node not in literal
    ]


def _is_importer(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("import_module", "__import__")


def _texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def texts_of(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield every text of a file that is no docstring and no key of a table."""
    left_out = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    left_out |= {key for n in ast.walk(tree) if isinstance(n, ast.Dict) for key in n.keys if key}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node


# --- a checkout -----------------------------------------------------------------------------------


class Arrow(NamedTuple):
    """One of our modules imports another."""

    module: str
    """The one that imports, without the package's name; "__init__" is the package itself."""

    other: str
    """The one that is imported."""

    how: How
    """When it is read."""

    place: str
    """File and line."""

    @property
    def rooms(self) -> tuple[str, str]:
        """The room that imports, and the one that is imported."""
        return room_of(self.module), room_of(self.other)


class House:
    """The sources of one checkout, as syntax trees."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.trees: dict[str, ast.Module] = {}
        self.paths: dict[str, Path] = {}
        for path in source_files(root):
            module = short(module_name(path, root))
            self.trees[module] = ast.parse(path.read_text())
            self.paths[module] = path.relative_to(root)

    @cached_property
    def arrows(self) -> list[Arrow]:
        """Every import of one of our modules by another, but those in `NOT_COUNTED`."""
        every = dict.fromkeys(a for module in self.trees for a in self._arrows_from(module))
        return [a for a in every if a.module != a.other and a.rooms not in NOT_COUNTED]

    def _arrows_from(self, module: str) -> Iterator[Arrow]:
        tree, path = self.trees[module], self.paths[module]
        imports = [i for i in imports_of(tree) if i.within(CORE)]
        seen = {(i.name, i.line) for i in imports}
        for i in [*imports, *(i for i in self._by_name(module) if (i.name, i.line) not in seen)]:
            yield Arrow(module, self._module_in(i.name), i.how, f"{path.as_posix()}:{i.line}")

    def _by_name(self, module: str) -> Iterator[Import]:
        """Yield our modules that a text names: in full, or in a package's `__init__` without it."""
        tree, package = self.trees[module], ""
        if self.paths[module].name == "__init__.py" and unread_imports(tree):
            package = CORE if module == "__init__" else f"{CORE}.{module}"
        names = {CORE if name == "__init__" else f"{CORE}.{name}" for name in self.trees} - {CORE}
        for text in texts_of(tree):
            for name in (text.value, f"{package}.{text.value}"):
                if name in names:
                    yield Import(str(name), "by name", text.lineno)

    def _module_in(self, name: str) -> str:
        """Return the module that importing `name` reads: it may be a name inside one."""
        while short(name) not in self.trees and "." in name:
            name = name.rpartition(".")[0]
        return short(name)

    @property
    def rooms(self) -> list[str]:
        """Every room of the checkout."""
        return sorted({room_of(module) for module in self.trees})

    @property
    def room_arrows(self) -> set[tuple[str, str]]:
        """Which room imports which."""
        return {a.rooms for a in self.arrows if a.rooms[0] != a.rooms[1]}

    @property
    def unread(self) -> list[str]:
        """The imports of a module whose name is not in the call, but for `BY_NAME`."""
        others = {m: tree for m, tree in self.trees.items() if m not in BY_NAME}
        return [f"{self.paths[m]}:{n}" for m, tree in others.items() for n in unread_imports(tree)]

    @property
    def in_no_row(self) -> list[str]:
        """The files of rooms that the order does not name."""
        lost = [module for module in self.trees if row_of(room_of(module)) is None]
        return sorted(self.paths[module].as_posix() for module in lost)

    @property
    def against_the_order(self) -> list[str]:
        """One line per import that the order does not allow."""
        return sorted(
            f"{a.place} imports {a.other} ({a.how})"
            for a in self.arrows
            if a.rooms[0] != a.rooms[1] and not may_import(*a.rooms)
        )

    @property
    def circles(self) -> list[list[str]]:
        """The sets of modules of which each imports, over others, every other."""
        return circles(self._at_run_time)

    @property
    def room_circles(self) -> list[list[str]]:
        """The same of rooms."""
        return circles(self._rooms_at_run_time)

    @property
    def ways_round(self) -> list[str]:
        """Of each circle how many are in it, and the shortest way round."""
        modules, rooms = self._at_run_time, self._rooms_at_run_time
        ways = [f"{len(c)} modules: {way_round(c, modules)}" for c in circles(modules)]
        return ways + [f"{len(c)} rooms: {way_round(c, rooms)}" for c in circles(rooms)]

    @cached_property
    def _at_run_time(self) -> set[tuple[str, str]]:
        return {(a.module, a.other) for a in self.arrows if a.how != "for types"}

    @cached_property
    def _rooms_at_run_time(self) -> set[tuple[str, str]]:
        rooms = {(room_of(a), room_of(b)) for a, b in self._at_run_time}
        return {(room, other) for room, other in rooms if room != other}

    @property
    def floors(self) -> int:
        """Length of the longest way down through the rooms, a circle being one of them."""
        whole = {room: circle[0] for circle in self.room_circles for room in circle}
        below = _below((whole.get(a, a), whole.get(b, b)) for a, b in self.room_arrows)

        def height(room: str) -> int:
            return 1 + max((height(b) for b in below.get(room, set()) - {room}), default=0)

        return max(height(whole.get(room, room)) for room in self.rooms)

    @property
    def flat_core(self) -> list[str]:
        """The files that lie flat in the core, without `__init__` and `__main__`."""
        flat = [m for m, path in self.paths.items() if path.parts[:-1] == (CORE,)]
        return [module for module in flat if not module.startswith("__")]

    @property
    def for_one_analysis(self) -> list[str]:
        """The flat core files without a leading `_` that one analysis imports and nothing else."""
        users: dict[str, set[str]] = {m: set() for m in self.flat_core if not m.startswith("_")}
        for a in self.arrows:
            users.get(a.other, set()).add(room_of(a.module))
        return [
            f"{module} is for {next(iter(rooms))} alone"
            for module, rooms in sorted(users.items())
            if len(rooms) == 1 and next(iter(rooms)).startswith("analyses.")
        ]


def source_files(root: Path = ROOT, suffix: str = ".py") -> list[Path]:
    """Return the files of the package folders, without those that Python writes by itself."""
    every = (p for folder in FOLDERS for p in sorted((root / folder).rglob("*")))
    return [
        p for p in every if p.is_file() and "__pycache__" not in p.parts and p.name.endswith(suffix)
    ]


def module_name(path: Path, root: Path = ROOT) -> str:
    """Return the name under which a file of the package folders is imported."""
    folder, *rest = path.relative_to(root).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])


def short(name: str) -> str:
    """Return a module's name without the package's: "__init__" for the package itself."""
    return name.removeprefix(CORE).removeprefix(".") or "__init__"


def room_of(module: str) -> str:
    """Return the room of a module: its first word, and of an analysis the first two."""
    first, *rest = module.split(".")
    return ".".join([first, *rest[:1]]) if first == "analyses" else first


def _below(arrows: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    below: dict[str, set[str]] = {}
    for name, other in arrows:
        below.setdefault(name, set()).add(other)
    return below


def circles(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the sets of names that reach each other, each sorted; a name alone is no circle."""
    below = _below(arrows)
    reach: dict[str, set[str]] = {}
    for name in below:
        reach[name], ahead = set(), [name]
        while ahead:
            new = below.get(ahead.pop(), set()) - reach[name]
            reach[name] |= new
            ahead += new
    together = {
        frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in reach
    }
    return sorted(sorted(names) for names in together if len(names) > 1)


def way_round(circle: list[str], arrows: Iterable[tuple[str, str]]) -> str:
    """Return the shortest way from a name of a circle back to itself."""
    below = _below((a, b) for a, b in arrows if {a, b} <= set(circle))
    ways = [[name] for name in circle]
    while True:
        ways = [[*way, name] for way in ways for name in sorted(below[way[-1]])]
        if closed := [way for way in ways if way[0] == way[-1]]:
            return " -> ".join(closed[0])


# --- tests and their sources ----------------------------------------------------------------------

WHOLE = {
    "architectures": "every kind of transformer, against transformers alone",
    "test_constraints": "the locks of every package",
    "test_end_to_end": "checkpoint to report, through every room",
    "test_examples": "the examples in docstrings",
    "test_imports": "what importing any module must not do, and what it may bring along",
    "test_layout": "the order of the rooms",
    "test_plugin": "a package of somebody else, installed beside this one",
    "test_readme": "what the README shows",
    "test_recipes": "the notebooks",
    "test_settings": "what a test run is set to",
    "test_suite": "what every analysis must do",
    "test_wheel": "what is installed",
}
"""Test files and folders about the whole repository -> what they are about."""


def orphan_tests(root: Path = ROOT) -> list[str]:
    """Return the test files that lie where no source is: the tests' tree is that of the sources.

    `tests/x/test_y.py` is about `x/y.py`, `x/_y.py` or the folder `x/y/`; `test_y_peer.py` too, if
    `x/y.py` is a file.
    """
    tests = [p.relative_to(root / "tests") for p in (root / "tests").rglob("test_*.py")]
    return sorted(f"tests/{p.as_posix()}" for p in tests if not _has_source(root, p))


def _has_source(root: Path, test: Path) -> bool:
    if test.parts[0].removesuffix(".py") in WHOLE:
        return True
    top = root if test.parts[0] in FOLDERS else root / CORE
    folder, words = top / test.parent, test.stem.removeprefix("test_").strip("_").split("_")
    stems = ["_".join(words[:n]) for n in range(1, len(words) + 1)]
    files = [folder / f"{mark}{stem}.py" for stem in stems for mark in ("", "_")]
    return any(f.is_file() for f in files) or (folder / stems[-1] / "__init__.py").is_file()


# --- worked examples ------------------------------------------------------------------------------

EXAMPLES_IN = ("hooks", "geometry", "groups", "analyses")
"""Where every public function has a worked example."""


def public_functions(house: House, folder: str) -> dict[str, Function]:
    """Return `module.function` -> the function, of the public ones in a folder's public modules."""
    return {
        f"{module}.{node.name}": node
        for module, tree in house.trees.items()
        if module.split(".")[0] == folder and "._" not in module
        for node in tree.body
        if isinstance(node, Function) and not node.name.startswith("_")
    }


def without_example(house: House) -> list[str]:
    """Return the public functions whose docstring shows no worked example."""
    return [
        name
        for folder in EXAMPLES_IN
        for name, function in public_functions(house, folder).items()
        if ">>>" not in (ast.get_docstring(function) or "")
    ]


if __name__ == "__main__":
    from measures import main  # beside this file, which Python searches first

    main(sys.argv[1:])
