"""Mechanistic-interpretability findings as analyses that anyone can run on a checkpoint and
believe.

The public names below are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

# None of them is the name of a module: importing that would put the module in the name's place.
_HOME = {
    "Estimate": "results",
    "Finding": "finding",
    "HookedModel": "model",
    "Verdict": "results",
    "all_analyses": "registry",
    "analysis": "registry",
    "applied": "intervention",
    "get_analysis": "registry",
    "load_model": "model",
    "load_result": "storage",
    "save_result": "storage",
}
__all__ = sorted(_HOME)

# In a source checkout hooks/ and analyses/ lie beside this package, and Python may find the package
# by its folder before it finds the installed mapping.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "hooks" / "__init__.py").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
