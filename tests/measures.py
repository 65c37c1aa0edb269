"""What the code of a checkout is like, in numbers: for looking at, no limits.

`python tests/house.py` prints this table; `house.py` says how.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from house import (
    EXAMPLES_IN,
    FOLDERS,
    ROOT,
    Function,
    House,
    orphan_tests,
    public_functions,
    room_of,
    without_example,
)

LONGEST, WIDEST, BIGGEST, MOST = 60, 100, 500, 8
"""Lines of a function, columns, lines of a file, parameters: what is beyond them is counted."""

SAY_NOTHING = ("one", "found", "said")
"""Names that say nothing of what they name."""


def functions(tree: ast.AST) -> list[Function]:
    """Return every function and method of a file, those inside others too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Return how many lines a function takes, docstring included and decorators not."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> list[ast.arg]:
    """Return the parameters of a function."""
    a = function.args
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]


def statements(tree: ast.AST) -> int:
    """Return how many statements a file has; docstrings and texts beneath fields are none."""
    every = (node for node in ast.walk(tree) if isinstance(node, ast.stmt))
    return sum(not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in every)


def names_given(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a file assigns, loops over or takes as parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        if isinstance(node, ast.arg):
            yield node.arg


def comments(source: str) -> int:
    """Return how many comments a file has."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def loads(tree: ast.AST) -> list[int]:
    """Return the lines that call `load_model`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if ast.unparse(call.func).endswith("load_model")]


def loads_again(tree: ast.AST) -> list[int]:
    """Return those of them that stand in a function which was given a model."""
    given = [f for f in functions(tree) if any(p.arg == "model" for p in parameters(f))]
    return sorted({line for function in given for line in loads(function)})


def line_of_analysis(house: House) -> dict[str, int]:
    """Return analysis -> the line of its file at which the public function stands."""
    return {
        node.name: node.lineno
        for module, tree in house.trees.items()
        for node in tree.body
        if isinstance(node, Function) and room_of(module) == f"analyses.{node.name}"
    }


# --- the table ------------------------------------------------------------------------------------


def spread(numbers: list[int]) -> str:
    """Return the median, the 75th, 90th and 99th percentile and the greatest; "-" of none."""
    if not (ranked := sorted(numbers)):
        return "-"
    parts = [ranked[int(share * (len(ranked) - 1))] for share in (0.5, 0.75, 0.9, 0.99, 1)]
    return " / ".join(map(str, parts))


def _all_functions(house: House) -> list[Function]:
    return [f for tree in house.trees.values() for f in functions(tree)]


def _wide_lines(house: House, folder: str) -> str:
    files = (house.root / folder).rglob("*.py")
    lines = [line for path in files for line in path.read_text().splitlines()]
    return f"{100 * sum(len(line) > WIDEST for line in lines) / max(len(lines), 1):.1f} %"


def _examples(house: House, folder: str) -> str:
    every = public_functions(house, folder)
    lacking = [name for name in without_example(house) if name in every]
    return f"{len(every) - len(lacking)} of {len(every)}"


def _share_of_comments(house: House) -> str:
    count = sum(comments((house.root / path).read_text()) for path in house.paths.values())
    return f"{1000 * count / sum(map(statements, house.trees.values())):.0f}"


def _empty_names(house: House) -> str:
    count = Counter(name for tree in house.trees.values() for name in names_given(tree))
    return ", ".join(f"{name} {count[name]}" for name in SAY_NOTHING)


def _loads(house: House, lines: Callable[[ast.AST], list[int]] = loads) -> list[str]:
    others = {m: tree for m, tree in house.trees.items() if m != "model"}
    return [f"{house.paths[m]}:{line}" for m, tree in others.items() for line in lines(tree)]


def long_functions(house: House) -> list[str]:
    """Return the functions longer than wanted, with file and lines."""
    return [
        f"{house.paths[m]}:{f.lineno} {f.name}, {length(f)} lines"
        for m, tree in house.trees.items()
        for f in functions(tree)
        if length(f) > LONGEST
    ]


def many_parameters(house: House) -> list[str]:
    """Return the functions that take more than wanted; options of analyses and commands may."""
    return [
        f"{house.paths[m]}:{f.lineno} {f.name}, {len(parameters(f))} parameters"
        for m, tree in house.trees.items()
        for f in functions(tree)
        if len(parameters(f)) > MOST and room_of(m) not in ("cli", f"analyses.{f.name}")
    ]


def long_files(house: House) -> list[str]:
    """Return the files longer than wanted, with their lines."""
    lines = {p: len((house.root / p).read_text().splitlines()) for p in house.paths.values()}
    return [f"{path}, {count} lines" for path, count in lines.items() if count > BIGGEST]


def shapeless(house: House) -> list[str]:
    """Return the functions that take or return a `dict[str, Any]`."""
    return [
        f"{house.paths[m]}:{f.lineno} {f.name}"
        for m, tree in house.trees.items()
        for f in functions(tree)
        if any("dict[str, Any]" in ast.unparse(a) for a in _annotations(f))
    ]


def _annotations(function: Function) -> Iterator[ast.expr]:
    every = [function.returns, *(p.annotation for p in parameters(function))]
    yield from (annotation for annotation in every if annotation is not None)


MEASURES: dict[str, Callable[[House], object]] = {
    "modules": lambda h: len(h.trees),
    "statements": lambda h: sum(map(statements, h.trees.values())),
    "rooms, floors, arrows": lambda h: f"{len(h.rooms)}, {h.floors}, {len(h.room_arrows)}",
    "circles of modules, of rooms": lambda h: f"{len(h.circles)}, {len(h.room_circles)}",
    "imports against the order": lambda h: len(h.against_the_order),
    "modules in no row": lambda h: len(h.in_no_row),
    "flat core files": lambda h: len(h.flat_core),
    "flat core files for one analysis": lambda h: len(h.for_one_analysis),
    "tests without a source": lambda h: len(orphan_tests(h.root)),
    f"files over {BIGGEST} lines": lambda h: len(long_files(h)),
    "functions": lambda h: len(_all_functions(h)),
    "lines of a function": lambda h: spread([length(f) for f in _all_functions(h)]),
    f"functions over {LONGEST} lines": lambda h: len(long_functions(h)),
    "parameters": lambda h: spread([len(parameters(f)) for f in _all_functions(h)]),
    f"functions with over {MOST}, but options": lambda h: len(many_parameters(h)),
    **{
        f"examples in {folder}": lambda h, folder=folder: _examples(h, folder)
        for folder in EXAMPLES_IN
    },
    "comments per 1000 statements": _share_of_comments,
    **{
        f"lines over {WIDEST} columns, {folder}": lambda h, folder=folder: _wide_lines(h, folder)
        for folder in (*FOLDERS, "tests")
    },
    "line of an analysis' function": lambda h: spread([*line_of_analysis(h).values()]),
    "names that say nothing": _empty_names,
    "dict[str, Any] in a signature": lambda h: len(shapeless(h)),
    "calls of load_model outside model.py": lambda h: len(_loads(h)),
    "... in a function given a model": lambda h: len(_loads(h, loads_again)),
}
"""Label -> what is measured. Of a spread: median, 75th, 90th and 99th percentile, greatest."""

LISTS: dict[str, Callable[[House], list[str]]] = {
    "circles, and the shortest way round each": lambda h: h.ways_round,
    "modules in circles": lambda h: [", ".join(names) for names in h.circles],
    "rooms in circles": lambda h: [", ".join(names) for names in h.room_circles],
    "imports against the order": lambda h: h.against_the_order,
    "imports by a name that is not read": lambda h: h.unread,
    "modules in no row": lambda h: h.in_no_row,
    "flat core files for one analysis": lambda h: h.for_one_analysis,
    "tests without a source": lambda h: orphan_tests(h.root),
    "long functions": long_functions,
    "many parameters": many_parameters,
    "long files": long_files,
    "where each analysis begins": lambda h: [
        f"{name}, line {line}" for name, line in line_of_analysis(h).items()
    ],
    "dict[str, Any]": shapeless,
    "load_model in a function given a model": lambda h: _loads(h, loads_again),
    "public functions without an example": without_example,
}
"""Heading -> what stands behind a number, printed where one checkout is measured."""


def main(roots: list[str]) -> None:
    """Print the table of one or more checkouts, and of a single one the lists behind it."""
    houses = [House(Path(root).resolve()) for root in roots or [ROOT]]
    for label, measure in MEASURES.items():
        print(f"{label:42}", *(f"{measure(house)!s:>26}" for house in houses))
    for heading, lines in LISTS.items() if len(houses) == 1 else ():
        if listed := lines(houses[0]):
            print(f"\n{heading} ({len(listed)}):", *listed, sep="\n  ")
