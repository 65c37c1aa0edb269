"""Results on disk: `save_result` writes a folder, `load_result` gives the same finding back.

A folder holds `result.json` (schema version, provenance, verdicts, fields), `tensors.safetensors`
(the tensors by name) and one CSV for each table of `Finding.rows`.

What would fool it: a field that JSON changes in silence (a list, a NaN, a key that is a number).
Each is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.files import safe_names, write_json, write_text
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.registry import get_analysis
from mechinterp_toolkit.results import Row

SCHEMA_VERSION = 1
"""Of `result.json`."""


def save_result(finding: Finding, folder: str | Path) -> Path:
    """Write a finding into `folder` (made if needed) and return the folder.

    Raises:
        ResultError: a field holds something that would not come back the same.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    fields = {
        f.name: _encode(getattr(finding, f.name), f.name, tensors)
        for f in dataclasses.fields(finding)
    }
    run = finding.provenance.run if finding.provenance else None
    document = {
        "schema_version": SCHEMA_VERSION,
        "analysis": run.analysis if run else None,
        "finding": type(finding).__name__,
        "fields_version": finding.fields_version,
        "verdicts": {k: dataclasses.asdict(getattr(finding, k)) for k in ("represented", "used")},
        "fields": fields,
    }
    save_file(tensors, folder / "tensors.safetensors")
    _write_tables(finding, folder)
    write_json(folder / "result.json", document)
    return folder


def load_result(folder: str | Path) -> Finding:
    """Return the finding that `save_result` wrote into `folder`.

    Results of older versions are read as long as their fields mean the same.

    Raises:
        ResultError: the folder holds no result, one of a newer schema, or one whose fields have
            changed since.
        RegistryError: the analysis is not registered here.
    """
    from safetensors.torch import load_file

    path = Path(folder) / "result.json"
    if not path.is_file():
        raise ResultError(
            f"{folder} holds no result.json; expected a folder written by save_result or"
            " `mechinterp run`."
        )
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema {document.get('schema_version')}, this version reads"
            f" {SCHEMA_VERSION}; read it with the version of the toolkit that wrote it."
        )
    if document["analysis"] is None:
        raise ResultError(
            f"{path} names no analysis: it was saved outside a registered run and cannot be rebuilt"
            " by name."
        )
    cls = get_analysis(document["analysis"]).result
    try:
        written = document.get("fields_version", 1)
        if written != cls.fields_version:
            raise ResultError(
                f"its fields are those of version {written} of {cls.__name__}, and this is version"
                f" {cls.fields_version}."
            )
        tensors, known = load_file(path.with_name("tensors.safetensors")), _known_types(cls)
        return _built(cls, document["fields"], tensors, known)
    except ResultError as reason:
        raise ResultError(
            f"{path} cannot be read: {reason} Run it again (its fields name the command), or read"
            " it with the version of the toolkit that wrote it."
        ) from reason


def tables_of(folder: str | Path) -> list[str]:
    """Return the names of the CSV files of a saved result."""
    return sorted(table.name for table in Path(folder).glob("*.csv"))


def _write_tables(finding: Finding, folder: Path) -> None:
    import pandas

    tables: dict[str, list[Row]] = {}
    for row in finding.rows():
        tables.setdefault(str(row.get("estimate", "rows")), []).append(row)
    for name, rows in zip(safe_names(tables), tables.values(), strict=True):
        table = pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        write_text(folder / f"{name}.csv", table)


def _encode(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {
            f.name: _encode(getattr(value, f.name), f"{key}.{f.name}", tensors)
            for f in dataclasses.fields(value)
        }
        return {"type": type(value).__name__, "fields": parts}
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise ResultError(
                f"{key} is a mapping whose keys are not all strings; use strings so that it"
                " survives JSON."
            )
        return {"mapping": {k: _encode(v, f"{key}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, tuple):
        return [_encode(v, f"{key}.{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultError(
            f"{key} is {value}; what could not be measured is a reason, not a number."
        )
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ResultError(
        f"{key} is a {type(value).__name__}, which would not come back the same; use tensors,"
        " tuples or text."
    )


def _decode(value: Any, tensors: Mapping[str, Tensor], known: Mapping[str, type]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(part, tensors, known) for part in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "mapping" in value:
        return {key: _decode(part, tensors, known) for key, part in value["mapping"].items()}
    if value["type"] not in known:
        raise ResultError(
            f"it holds a {value['type']!r}, which neither the core nor the analysis defines."
        )
    return _built(known[value["type"]], value["fields"], tensors, known)


def _built(
    cls: type, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], known: Mapping[str, type]
) -> Any:
    declared = {f.name: f for f in dataclasses.fields(cls)}
    needed = {
        name
        for name, f in declared.items()
        if f.default is f.default_factory is dataclasses.MISSING
    }
    for what, names in (
        ("no longer has", fields.keys() - declared.keys()),
        ("now has", needed - fields.keys()),
    ):
        if names:
            raise ResultError(f"{cls.__name__} {what} {', '.join(sorted(names))}.")
    return cls(**{name: _decode(value, tensors, known) for name, value in fields.items()})


def _known_types(cls: type) -> dict[str, type]:
    """Every dataclass that a field of `cls` may hold, at any depth, by its name."""
    known: dict[str, type] = {}
    waiting = [cls]
    while waiting:
        for hint in typing.get_type_hints(waiting.pop()).values():
            for part in _dataclasses_in(hint):
                if part.__name__ not in known:
                    known[part.__name__] = part
                    waiting.append(part)
    return known


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for part in typing.get_args(hint):
        yield from _dataclasses_in(part)
