"""What does fitting and applying an eraser cost, beside one product of the data with itself?

    python benchmarks/erase.py [--rows 100000] [--d 768 2048] [--repeats 3] [--threads 1]

For each width and dtype: fitting on batches of 4096 rows, finishing (statistics to eraser), and
transforming all rows in batches of 4096, in one piece, and in place, for this package and for
`concept-erasure` where it is installed, as ratios to `X.T @ X` in the same process and dtype. In
one piece, half of the time is the system's for the pages of the result. The parts take turns and
the best of the repeats counts. Time is CPU time of the process, so what else runs on the machine
counts little; with more than one thread it is the sum over threads.

Memory is the peak of the resident set over what it was before, in MiB (Linux). The row "products in
float64" is the default of `LeaceFitter` on float32 activations; the others take products in the
dtype of the data.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechinterp_toolkit.hooks.erase import LeaceFitter

BATCH = 4096
CLASSES = 20
PARTS = ("fit", "finish", "transform", "in one piece", "in place")
GOALS = (
    "goals: fit <= 1.2 (<= 1.0 at d = 2048), finish >= 5x and transform >= 4x faster than the peer"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--d", type=int, nargs="+", default=[768, 2048])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peer = importlib.util.find_spec("concept_erasure") is not None
    print(
        f"{args.rows} rows, batches of {BATCH}, {CLASSES} classes, {args.threads} threads; ratios"
        " to X.T @ X."
    )
    print(GOALS if peer else "concept-erasure is not installed: no comparison.")
    print(
        f"{'':36}{'fit':>7}{'finish':>8}{'transf.':>8}{'one piece':>10}{'in place':>9}"
        f"{'fit MiB':>9}{'transf. MiB':>12}"
    )
    for d in args.d:
        for name in args.dtype:
            _cell(args.rows, d, getattr(torch, name), args.repeats, peer)


def _cell(rows: int, d: int, dtype: torch.dtype, repeats: int, peer: bool) -> None:
    """Measure and print one width and dtype."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(0, CLASSES, (rows,), generator=generator)
    means = torch.randn(CLASSES, d, generator=generator, dtype=dtype)
    x = torch.randn(rows, d, generator=generator, dtype=dtype).add_(means[z])
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: LeaceFitter(d, CLASSES, dtype=dtype)}
    if dtype != torch.float64:
        sides["ours, products in float64"] = lambda: LeaceFitter(d, CLASSES)
    labels = dict.fromkeys(sides, z)
    if peer:
        from concept_erasure import LeaceFitter as Peer

        sides["concept-erasure"] = lambda: Peer(d, CLASSES, dtype=dtype)
        labels["concept-erasure"] = torch.nn.functional.one_hot(z, CLASSES).to(dtype)
    memory = {side: _memory(make, x, labels[side]) for side, make in sides.items()}
    best: dict[str, float] = {}
    for _ in range(repeats):
        _keep_best(best, "gemm", _seconds(lambda: x.T @ x)[0])
        for side, make in sides.items():
            _measure(best, side, make, x, labels[side])
    for side in sides:
        times = [best.get(f"{side} {part}", float("nan")) / best["gemm"] for part in PARTS]
        _print_row(f"d={d:5} {str(dtype)[6:]} {side}", times, memory[side])
    if peer:
        _print_speed_up(best)
    sys.stdout.flush()


def _print_row(title: str, times: list[float], memory: tuple[float, float]) -> None:
    parts = zip(times, (7, 8, 8, 10, 9), (2, 3, 3, 3, 3), strict=True)
    row = "".join(f"{time:{width}.{digits}f}" for time, width, digits in parts)
    print(f"{title:36}{row}{memory[0]:9.0f}{memory[1]:12.0f}")


def _measure(
    best: dict[str, float], side: str, make: Callable[[], Any], x: Tensor, z: Tensor
) -> None:
    seconds, fitter = _seconds(lambda: _fit(make, x, z))
    _keep_best(best, f"{side} fit", seconds)
    seconds, eraser = _seconds(lambda: fitter.eraser)
    _keep_best(best, f"{side} finish", seconds)
    seconds, _ = _seconds(lambda: [len(eraser(rows)) for rows in x.split(BATCH)])
    _keep_best(best, f"{side} transform", seconds)
    _keep_best(best, f"{side} in one piece", _seconds(lambda: eraser(x))[0])
    if hasattr(eraser, "erase_"):
        again = x.clone()
        _keep_best(best, f"{side} in place", _seconds(lambda: eraser.erase_(again))[0])


def _fit(make: Callable[[], Any], x: Tensor, z: Tensor) -> Any:
    fitter = make()
    for rows, labels in zip(x.split(BATCH), z.split(BATCH), strict=True):
        fitter.update(rows, labels)
    return fitter


def _print_speed_up(best: dict[str, float]) -> None:
    theirs = [best[f"concept-erasure {part}"] for part in (*PARTS[:4], "in one piece")]
    ratios = [their / best[f"ours {part}"] for their, part in zip(theirs, PARTS, strict=True)]
    print(
        f"{'   times faster than the peer':36}{ratios[0]:7.2f}{ratios[1]:8.1f}{ratios[2]:8.1f}"
        f"{ratios[3]:10.1f}{ratios[4]:9.1f}"
    )


def _keep_best(best: dict[str, float], name: str, seconds: float) -> None:
    best[name] = min(seconds, best.get(name, seconds))


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _memory(make: Callable[[], Any], x: Tensor, z: Tensor) -> tuple[float, float]:
    """Peak memory in MiB of fitting and of transforming; NaN where the system does not tell."""
    fit, fitter = _peak(lambda: _fit(make, x, z))
    eraser = fitter.eraser
    transform, _ = _peak(lambda: eraser(x))
    return fit, transform


def _peak(work: Callable[[], Any]) -> tuple[float, Any]:
    status = Path("/proc/self/status")
    try:
        # The peak starts anew from what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan"), work()

    def read(key: str) -> float:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024

    before = read("VmRSS")
    result = work()
    return read("VmHWM") - before, result


if __name__ == "__main__":
    main()
