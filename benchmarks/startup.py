"""How long does the command take before it does anything? Whole processes, several runs each, in
turn.

Goals: `mechinterp --help` within half a second and `mechinterp list` within two and a half of a
bare interpreter.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """Return the wall time of one run, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(runs: int = 7) -> None:
    """Print the median of each command and how much longer than a bare interpreter it takes."""
    mechinterp = shutil.which("mechinterp") or sys.exit("mechinterp is not installed here")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "mechinterp --help": [mechinterp, "--help"],
        "mechinterp list": [mechinterp, "list"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs + 1):  # the first round warms the disk cache and is dropped
        for name, command in commands.items():
            taken[name].append(seconds(command))
    base = statistics.median(taken["python -c pass"][1:])
    print(f"{'command':20} {'median s':>9} {'longer than pass by s':>22} {'ratio':>7}")
    for name, times in taken.items():
        median = statistics.median(times[1:])
        print(f"{name:20} {median:9.3f} {median - base:22.3f} {median / base:7.1f}")


if __name__ == "__main__":
    main()
