"""Weights are read in heads/weights.py and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SEAM = Path("mechinterp_toolkit/heads/weights.py")

OWN = {"analyses/group_fourier/network.py": "the matrices of a GroupMLP are called by their names"}
"""Files that read weights of the toolkit's own networks, whose names they know."""

NAMES = {f"{kind}_{part}" for kind in "Wb" for part in ("Q", "K", "V", "O", "U", "E", "in", "out")}
NORMS = {"ln1", "ln2", "ln1_post", "ln2_post", "ln_final"}


def weights_read(source: str) -> list[tuple[int, str]]:
    """Lines that take a weight or a norm from a model, or ask for one by name."""
    read = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in NAMES | NORMS:
            read.append((node.lineno, node.attr))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in NAMES | NORMS:
                read.append((node.lineno, name.value))
    return read


def sources() -> list[str]:
    folders = ("mechinterp_toolkit", "hooks", "analyses")
    paths = [path.relative_to(ROOT) for name in folders for path in (ROOT / name).rglob("*.py")]
    # Toys build networks of their own, and write their weights.
    return [str(path) for path in paths if path != SEAM and "toys" not in path.parts]


@pytest.mark.parametrize("path", sources())
def test_weights_of_a_model_are_read_in_one_place(path):
    read = weights_read((ROOT / path).read_text())
    assert not read or path in OWN, f"{path} reads {read}; heads/weights.py is the place"


def test_the_check_sees_every_way_of_asking():
    assert weights_read("x = model.model.W_V") == [(1, "W_V")]
    assert weights_read("x = net.blocks[0].ln1(y)") == [(1, "ln1")]
    assert weights_read("x = getattr(net, 'ln_final', None)") == [(1, "ln_final")]
    assert weights_read((ROOT / SEAM).read_text())
