"""Group-Fourier analysis: `python benchmarks/groups.py`, one thread, best of a few runs, ratios on
one machine.

- 256 columns on S_6 against one dense product of the same size, and against a loop over elements
  and irreps, as in published code;
- S_7 and S_8 transforms;
- stabilisers of 128 S_6 neurons against the search through all proper subgroups;
- the whole analysis of the bundled 128-neuron S_5 network.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from mechinterp_toolkit.groups import (
    Group,
    cosets,
    fourier,
    fourier_matrix,
    irreps,
    stabilisers,
    subgroups,
    symmetric,
)
from mechinterp_toolkit.registry import get_analysis


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest of a few timings, in seconds of processor time: others share the
    machine."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def loop_transform(group: Group, f: Tensor) -> list[Tensor]:
    """The transform as a sum over elements, irrep by irrep and element by element."""
    parts = []
    for irrep in irreps(group):
        total = torch.zeros(len(f), irrep.dimension, irrep.dimension, dtype=torch.float64)
        for g in range(group.order):
            total += f[:, g, None, None] * irrep.matrices[g]
        parts.append(total)
    return parts


def exhaustive(group: Group, f: Tensor, found: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The largest subgroup whose right cosets explain 98 % of each function, by the variance within
    all cosets of each."""
    centred = f - f.mean(1, keepdim=True)
    best: list[tuple[int, ...]] = [(group.identity,)] * len(f)
    for members in found:
        within = centred[:, cosets(group, members, side="left")].var(-1, correction=0).mean(1)
        passes = within < 0.02 * centred.square().mean(1)
        for neuron in passes.nonzero().flatten().tolist():
            if len(members) > len(best[neuron]):
                best[neuron] = members
    return best


def coset_functions(group: Group, found: list[tuple[int, ...]], count: int) -> Tensor:
    """Functions like neurons': constant on the cosets of a random subgroup of at least 24 elements,
    with 0.1 % of noise."""
    generator = torch.Generator().manual_seed(0)
    large = [members for members in found if len(members) >= 24]
    f = torch.empty(count, group.order, dtype=torch.float64)
    for row in f:
        members = large[int(torch.randint(len(large), (), generator=generator))]
        rows = cosets(group, members, side="left")
        row[rows] = torch.randn(len(rows), 1, dtype=torch.float64, generator=generator)
    return f + 0.001**0.5 * torch.randn(f.shape, dtype=torch.float64, generator=generator)


def transforms() -> None:
    """Print the transforms of S_6, S_7 and S_8."""
    group = symmetric(6)
    f = torch.randn(256, group.order, dtype=torch.float64)
    matrix = fourier_matrix(group)
    ours, dense = seconds(lambda: fourier(group, f)), seconds(lambda: f @ matrix)
    loop = seconds(lambda: loop_transform(group, f), repeats=1)
    print(
        f"S_6, 256 columns: {ours * 1e3:.1f} ms, {ours / dense:.2f} x a dense product,"
        f" {loop / ours:.0f} x faster than a loop"
    )
    for n, columns in ((7, 128), (8, 16)):
        g = symmetric(n)
        f = torch.randn(columns, g.order, dtype=torch.float64)
        fourier(g, f[:1])  # tables of the irreps' generators are made once
        print(
            f"S_{n}, {columns} columns: {seconds(lambda g=g, f=f: fourier(g, f), repeats=2):.2f} s"
        )


def find_stabilisers() -> None:
    """Print the stabilisers of 128 functions on S_6, lattice-free and exhaustive."""
    group = symmetric(6)
    start = time.process_time()
    found = [members for members in subgroups(group) if len(members) < group.order]
    listing = time.process_time() - start
    f = coset_functions(group, found, 128)
    stabilisers(group, f[:1], side="left")  # irreps and cyclic subgroups are made once
    ours = seconds(lambda: stabilisers(group, f, side="left"), repeats=3)
    start = time.process_time()
    expected = exhaustive(group, f, found)
    search = time.process_time() - start
    same = sum(
        a.members == b for a, b in zip(stabilisers(group, f, side="left"), expected, strict=True)
    )
    print(
        f"stabilisers of 128 functions on S_6: {ours:.2f} s; exhaustive search {search:.1f} s"
        f" ({search / ours:.0f} x) after listing {len(found)} subgroups in {listing:.1f} s; {same}"
        " of 128 the same"
    )


def analysis() -> None:
    """Print the time of the whole analysis of the bundled S_5 network."""
    from mechinterp_toolkit.model import load_model

    model, run = load_model("toy/s5"), get_analysis("group_fourier").function
    print(
        f"group_fourier on toy/s5: {seconds(lambda: run(model), repeats=2):.1f} s of processor"
        " time, one thread"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    transforms()
    find_stabilisers()
    analysis()
