"""Writing a file so that it is whole or not there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with the line ends it has, under another name first."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)


def write_json(path: Path, document: Any) -> None:
    """Write `document` as sorted, indented JSON; refuses NaN."""
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def safe_names(names: Iterable[str]) -> list[str]:
    """Return a safe file name for each of `names`, no two alike on any file system.

    >>> safe_names(["toy/s5", "Toy s5", "toy-s5"])
    ['toy-s5', 'Toy-s5-2', 'toy-s5-3']
    """
    safe: dict[str, str] = {}  # by its lower case: some file systems know no other
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9._@-]+", "-", name).strip("-.")[-80:] or "unnamed"
        number, candidate = 1, stem
        while candidate.lower() in safe:
            number += 1
            candidate = f"{stem}-{number}"
        safe[candidate.lower()] = candidate
    return list(safe.values())
