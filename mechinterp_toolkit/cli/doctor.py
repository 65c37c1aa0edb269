"""What works on this machine? One check per line for `mechinterp doctor`; nothing here may fail.

Each check is a function that returns what it saw or raises with the reason; a missing package is a
reason too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PACKAGES = (
    "mechinterp-toolkit",
    "transformer-lens",
    "torch",
    "transformers",
    "datasets",
    "plotly",
    "pandas",
    "scipy",
)

EXTRAS: Mapping[str, str] = {"sae": "sae_lens"}
"""Optional extra -> a module it installs."""

COMMANDS = "mechinterp_toolkit.commands"
"""Entry-point group of sub-commands from other packages."""

OFFLINE = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What was looked at."""

    ok: bool
    """Whether it works."""

    detail: str
    """What was seen, or why it does not work."""


def diagnose() -> list[Check]:
    """Return every check, in the order a reader wants them."""
    checks: dict[str, Callable[[], str]] = {
        "versions": _versions,
        "extras": _extras,
        "environment": _environment,
        "devices": _devices,
        "wrapper": _wrapper,
        "analyses": _analyses,
        "commands of other packages": _commands,
        "bundled checkpoints": _bundled,
        "pages": _pages,
    }
    return [_look(name, check) for name, check in checks.items()]


def _look(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except Exception as error:  # a doctor who dies of the disease helps nobody
        return Check(name, False, f"{type(error).__name__}: {error}")


def _versions() -> str:
    missing, installed = [], [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        raise ModuleNotFoundError(
            f"not installed: {', '.join(missing)} (there are {', '.join(installed)})"
        )
    return ", ".join(installed)


def _extras() -> str:
    seen = {extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()}
    return ", ".join(
        f"[{extra}] {'installed' if there else 'not installed'}" for extra, there in seen.items()
    )


def _environment() -> str:
    seen = [f"{name}={os.environ[name]}" for name in OFFLINE if name in os.environ]
    return ", ".join(seen) or "online; none of " + ", ".join(OFFLINE) + " is set"


def _devices() -> str:
    import torch

    seen = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        seen.append(f"cuda:{index} {torch.cuda.get_device_name(index)} ({memory:.0f} GiB)")
    if torch.backends.mps.is_available():
        seen.append("mps")
    return ", ".join(seen)


def _wrapper() -> str:
    from mechinterp_toolkit.model import has_hooked_transformer, hook_classes

    hook_classes()  # imports TransformerLens itself
    if has_hooked_transformer():
        return "HookedTransformer for GPT-2 and GPT-NeoX shapes, TransformerBridge for the rest"
    return "TransformerBridge"


def _analyses() -> str:
    from mechinterp_toolkit.registry import all_analyses

    registered, broken = all_analyses()
    if broken:
        raise ImportError("; ".join(f"{b.name} could not be imported: {b.reason}" for b in broken))
    others = sorted({entry.source for entry in registered.values()} - {"mechinterp_toolkit"})
    return f"{len(registered)} registered" + (f", some by {', '.join(others)}" if others else "")


def _commands() -> str:
    points = importlib.metadata.entry_points(group=COMMANDS)
    for point in points:
        point.load()
    return ", ".join(sorted(point.name for point in points)) or "none"


def _bundled() -> str:
    from mechinterp_toolkit.checkpoint import bundled_names
    from mechinterp_toolkit.model import load_model

    names = bundled_names()
    for name in names:
        load_model(name, device="cpu")
    return ", ".join(names) or "none"


def _pages() -> str:
    import pandas
    import plotly

    from mechinterp_toolkit.report.document import Document
    from mechinterp_toolkit.report.page import render_html

    render_html(Document("", (), {}), {})
    return f"drawn by plotly {plotly.__version__}, tables by pandas {pandas.__version__}"
