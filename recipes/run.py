"""Run recipes and store what they print: `python recipes/run.py [NAME ...]`, all of them where none
is named.

Figures are shown by whoever runs a notebook and are not stored: they are large and change with
every version of plotly.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent

FIGURE = "application/vnd.plotly.v1+json"


@contextmanager
def kernel() -> Iterator[KernelManager]:
    """Start one kernel for any number of notebooks: most of the time of one alone goes into
    imports."""
    quiet = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    manager, client = start_new_kernel(env=os.environ | quiet)
    client.stop_channels()
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def execute(path: Path, manager: KernelManager) -> Any:
    """Return the notebook at `path` with the outputs of a run that starts without variables.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message has the cell and the
            traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    forget = nbformat.v4.new_code_cell("%reset -f")
    notebook.cells.insert(0, forget)
    NotebookClient(notebook, km=manager, timeout=600, store_widget_state=False).execute()
    notebook.cells.remove(forget)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                _bare(output) for output in cell.outputs if FIGURE not in output.get("data", {})
            ]
            cell.execution_count = None
            cell.metadata = {}
    return notebook


def _bare(output: Any) -> Any:
    if "execution_count" in output:
        output.execution_count = None
    return output


def printed(notebook: Any) -> list[str]:
    """Return what each code cell says: its streams and the text of its last expression."""
    return [
        "".join(_text(output) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def _text(output: Any) -> str:
    return str(output.text if output.output_type == "stream" else output.data["text/plain"])


def main(names: list[str]) -> None:
    """Run the named recipes, or all, and write them back."""
    with kernel() as manager:
        for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
            nbformat.write(execute(path, manager), path)
            print(path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    main(parser.parse_args().names)
