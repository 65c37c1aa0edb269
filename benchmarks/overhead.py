"""What does the toolkit cost beside the forward passes it needs? On a folder shaped like GPT-2
small, random weights.

Goals: one edit through `applied` within 1.05 times the plain forward pass; a report within twice
the forward passes it needs, imports and loading aside.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.registry import all_analyses


def main(runs: int = 7) -> None:
    """Print both ratios."""
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_small(Path(folder), Path(sys.argv[1]) if len(sys.argv) > 1 else None)
        edit_against_forward(model, runs)
        analyses_against_forwards(model)


def gpt2_small(folder: Path, tokenizer: Path | None) -> HookedModel:
    """Return a random model of GPT-2 small's shape, saved and loaded again.

    Args:
        folder: where it is saved.
        tokenizer: folder with GPT-2's vocab.json and merges.txt; None takes
            ../shared/data/tokenizers/gpt2.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    tokenizer = tokenizer or Path(__file__).resolve().parents[2] / "shared/data/tokenizers/gpt2"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    GPT2TokenizerFast.from_pretrained(tokenizer).save_pretrained(folder)
    return load_model(folder)


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call, in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def edit_against_forward(model: HookedModel, runs: int) -> None:
    """Print the median of an edited pass over the median of a plain one, taken in turn."""
    tokens = torch.randint(0, 50000, (8, 64))
    name = "blocks.5.attn.hook_z"

    def plain() -> None:
        model.logits(tokens)

    def edited() -> None:
        with applied(model, {name: lambda activation, hook: activation * 0.5}):
            model.logits(tokens)

    with torch.no_grad():
        pairs = [(seconds(plain), seconds(edited)) for _ in range(runs + 1)][1:]
    ratio = statistics.median(e / p for p, e in pairs)
    print(f"one edit through applied / plain forward, median of {runs} pairs: {ratio:.3f}")


def analyses_against_forwards(model: HookedModel) -> None:
    """Print, for each analysis that applies, its time over the time of the forward passes it
    made."""
    for name, entry in all_analyses()[0].items():
        if entry.reason_not(model):
            continue
        spent = [0.0]
        forward = model.model.forward

        def counted(
            *args: object,
            spent: list[float] = spent,
            forward: Callable[..., object] = forward,
            **kw: object,
        ) -> object:
            start = time.perf_counter()
            try:
                return forward(*args, **kw)
            finally:
                spent[0] += time.perf_counter() - start

        model.model.forward = counted
        try:
            whole = seconds(lambda entry=entry: entry.function(model))
        finally:
            model.model.forward = forward
        print(f"{name} / its forward passes: {whole / spent[0]:.2f}")


if __name__ == "__main__":
    main()
