"""Running text from a dataset's name, a file or a folder, streamed and cut into windows of tokens.

Everything is read through `datasets`, one text at a time: nothing is downloaded whole or kept. A
CoNLL-U treebank gives the text of its sentences.

What would fool it: windows cut from one long document depend on each other, so each window says
which text it came from.

Source: Lhoest et al. 2021, Datasets, arXiv:2109.02846; the CoNLL-U format of Universal
Dependencies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp_toolkit.errors import ToolkitError, nearest

READERS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".conllu": "text",
}
"""File suffix -> builder of `datasets`."""

_TEXT_LINE = "# text = "


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of text of one length."""

    tokens: Int[Tensor, "window pos"]
    """Token ids, behind the beginning-of-sequence token where one was asked for."""

    text: Int[Tensor, "..."]
    """Which text each window [window] was cut from: what resampling has to keep together."""

    mask: Bool[Tensor, "..."] | None = None
    """True at real tokens [window pos]; None where all are."""

    def __post_init__(self) -> None:
        if len(self.text) != len(self.tokens):
            raise ToolkitError(
                f"text names {len(self.text)} texts for {len(self.tokens)} windows of tokens; give"
                " one for each."
            )


def texts(source: str | Path, *, column: str = "text", split: str = "train") -> Iterator[str]:
    """Yield the texts of a corpus in order, none of them empty.

    Args:
        source: a file (.txt with a text per line, .json, .jsonl, .csv, .parquet, .conllu), a folder
            of files of one kind, or a dataset's name, with its configuration after a colon
            ("wikitext:wikitext-2-raw-v1").
        column: where the text stands, in anything but .txt and .conllu.
        split: of a dataset that has splits.

    Raises:
        ToolkitError: nothing readable is there, or there is no such column.
    """
    for table, suffix in _tables(source, split):
        plain = READERS.get(suffix) == "text"
        rows = _column(table, "text" if plain else column, source)
        if suffix == ".conllu":
            rows = (row.removeprefix(_TEXT_LINE) for row in rows if row.startswith(_TEXT_LINE))
        yield from rows


def labelled_rows(
    source: str | Path, column: str = "text", label_column: str = "label"
) -> Iterator[tuple[str, Any]]:
    """Yield text and label of each row of a corpus, in order, rows without text left out.

    Args:
        source: a .json, .jsonl, .csv or .parquet file, a folder of files of one kind, or a
            dataset's name.
        column, label_column: where text and label stand.

    Raises:
        ToolkitError: nothing readable is there, or there is no such column.
    """
    for table, _ in _tables(source):
        for row in table:
            _check_column(row, label_column, source)
            for text in _column((row,), column, source):
                yield text, row[label_column]


def text_windows(
    tokenizer: Any,
    source: str | Path,
    windows: int,
    length: int,
    *,
    prepend_bos: bool,
) -> Windows:
    """Return the first `windows` pieces of `length` tokens; the rest of a text is not used.

    Args:
        tokenizer: of the model.
        source: as for `texts`.
        windows: how many.
        length: tokens per window, the beginning-of-sequence token not counted.
        prepend_bos: whether to put that token in front of each.

    Raises:
        ToolkitError: the corpus has fewer than two such windows, or as for `texts`.
    """
    pieces: list[list[int]] = []
    origin: list[int] = []
    for i, text in enumerate(texts(source)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        for start in range(0, len(ids) - length + 1, length):
            pieces.append(ids[start : start + length])
            origin.append(i)
        if len(pieces) >= windows:
            break
    if len(pieces) < 2:
        raise ToolkitError(
            f"{source} has {len(pieces)} pieces of {length} tokens; expected two or more: give"
            " longer texts."
        )
    tokens = torch.tensor(pieces[:windows])
    if prepend_bos:
        tokens = torch.cat([torch.full((len(tokens), 1), tokenizer.bos_token_id), tokens], dim=1)
    return Windows(tokens, torch.tensor(origin[:windows]))


def _tables(source: str | Path, split: str = "train") -> Iterator[tuple[Any, str]]:
    """Yield rows and file suffix of each file there is; of a dataset, rows and no suffix."""
    path = Path(source)
    if not path.exists():
        yield _named(str(source), split), ""
        return
    for file in _files(path):
        yield _load(READERS[file.suffix], data_files=str(file), split="train"), file.suffix


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in READERS:
            raise ToolkitError(
                f"{path} is not a text this reads; expected a file ending in {', '.join(READERS)}."
            )
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in READERS)
    if not files:
        raise ToolkitError(f"{path} holds no file ending in {', '.join(READERS)}.")
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise ToolkitError(
            f"{path} holds files of several kinds ({', '.join(kinds)}), a licence perhaps; name one"
            " file."
        )
    return files


def _named(name: str, split: str) -> Any:
    dataset, _, config = name.partition(":")
    try:
        return _load(dataset, name=config or None, split=split)
    except Exception as error:
        # datasets raises many kinds; each of them means that there is no text.
        raise ToolkitError(
            f"{name!r} is no file or folder here, and `datasets` could not load it:"
            f" {type(error).__name__}: {error}"
        ) from error


def _load(builder: str, **options: Any) -> Any:
    import datasets

    return datasets.load_dataset(builder, streaming=True, **options)


def _column(rows: Any, column: str, source: str | Path) -> Iterator[str]:
    for row in rows:
        _check_column(row, column, source)
        text = row[column]
        if isinstance(text, str) and text.strip():
            yield text


def _check_column(row: Any, column: str, source: str | Path) -> None:
    if column not in row:
        raise ToolkitError(
            f"{source} has no column {column!r}.{nearest(column, row)} It has"
            f" {', '.join(map(str, row))}; name one of them."
        )
