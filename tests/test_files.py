"""A file is whole or not there, and its name is safe."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechinterp_toolkit.files import safe_names, write_json


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}


@given(st.lists(st.text(max_size=100), max_size=8))
def test_folder_names_are_safe_and_no_two_are_alike(names: list[str]) -> None:
    folders = safe_names(names)
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_@][A-Za-z0-9._@-]*", folder) for folder in folders)


def test_folder_names_keep_what_a_reader_needs() -> None:
    assert safe_names(["toy/s5", "EleutherAI/pythia-70m@step3000", "toy-s5", "../../etc", ""]) == [
        "toy-s5",
        "EleutherAI-pythia-70m@step3000",
        "toy-s5-2",
        "etc",
        "unnamed",
    ]
