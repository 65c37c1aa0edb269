"""The locks: constraints.txt and constraints-tl4.txt hold every package with its version.

    python .ci/lock.py                         writes both, with the newest versions that fit
    python .ci/lock.py check constraints.txt   compares the environment it runs in with one of them

One file holds for Python 3.11 to 3.13 and every system, so a line may say where it applies. torch
has no local version, so that its CPU and its CUDA builds both fit. What comes with a CUDA build is
left out, since torch itself asks for the versions that its build needs.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TORCH = "2.13.0"
"""One release: an index with a CPU build of it is then not passed over for a newer CUDA build."""

LOCKS = {
    "constraints.txt": (("sae", "dev"), "transformer-lens<4", "TransformerLens 3.9 and sae-lens"),
    "constraints-tl4.txt": (("dev",), "transformer-lens>=4", "TransformerLens 4, without sae-lens"),
}
"""File -> extras that are installed, the line of TransformerLens, and what to call it."""

OF_A_CUDA_BUILD = re.compile(r"nvidia-|cuda-|triton=")


def write() -> None:
    """Resolve both environments anew, for every system and Python at once."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        tools = Path(folder) / ("Scripts" if os.name == "nt" else "bin")
        subprocess.run([tools / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
        for name, (extras, line, what) in LOCKS.items():
            bounds, out = Path(folder) / "bounds.txt", Path(folder) / name
            bounds.write_text(f"torch=={TORCH}\n{line}\n")
            command = [
                tools / "uv",
                "pip",
                "compile",
                "--quiet",
                "--universal",
                "--python-version",
                "3.11",
            ]
            command += [
                "--no-annotate",
                "--no-header",
                "--constraint",
                bounds,
                "--output-file",
                out,
            ]
            command += [part for extra in extras for part in ("--extra", extra)]
            subprocess.run([*command, ROOT / "pyproject.toml"], check=True)
            pins = [pin for pin in out.read_text().splitlines() if not OF_A_CUDA_BUILD.match(pin)]
            heading = f"# Tested versions with {what}, written by `python .ci/lock.py`."
            (ROOT / name).write_text("\n".join([heading, *pins]) + "\n")


def differences(name: str) -> list[str]:
    """What is installed here and not in the lock, or in another version."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    locked = {
        pin.name: pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate()
    }
    wrong = []
    for package in importlib.metadata.distributions():
        found, version = canonicalize_name(package.name), package.version.partition("+")[0]
        if found in ("pip", "mechinterp-toolkit") or OF_A_CUDA_BUILD.match(f"{found}="):
            continue
        if found not in locked or not locked[found].contains(version, prereleases=True):
            wrong.append(f"{found} {version} is installed; {name} has {locked.get(found, 'none')}")
    return sorted(wrong)


if __name__ == "__main__":
    if sys.argv[1:] == []:
        write()
    elif sys.argv[1:2] == ["check"] and sys.argv[2:] in [[name] for name in LOCKS]:
        sys.exit("\n".join(differences(sys.argv[2])) or None)
    else:
        sys.exit(__doc__)
