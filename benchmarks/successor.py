"""What does the successor scan cost beside a loop over heads, and beside the products it needs?

    python benchmarks/successor.py [--items 1000] [--classes 1] [--repeats 5]

A random model of GPT-2 small's shape (12 layers of 12 heads, d_model 768, vocabulary 50,257). The
loop makes W_V W_O [d_model d_model] of each head, as published code does, then what it writes for
each item, its logits of the class and their argmax; it leaves the LayerNorms out. The products are
LN(x) W_V and that result times the folded W_O W_U, into memory that is there; making the fold is a
third product of the size of the first, so the ratio is also given with it. Embeddings stand for the
tokens, so that no forward pass is in any of them. The parts take turns and the best of the repeats
counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mechinterp_toolkit.heads.ov_circuit import Convention, best_candidates
from mechinterp_toolkit.heads.weights import embedding, head_weights, unembedding
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import OrdinalClass
from mechinterp_toolkit.toys.gpt2 import random_gpt2

VOCABULARY = 50257


def classes_of(items: int, n_classes: int) -> dict[str, OrdinalClass]:
    """Return classes of random tokens, no token in two of them."""
    drawn = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))[:items]
    parts = enumerate(drawn.chunk(n_classes))
    return {f"class {i}": _class(f"class {i}", tokens) for i, tokens in parts}


def _class(name: str, tokens: Tensor) -> OrdinalClass:
    n = len(tokens)
    words = tuple(f"w{int(token)}" for token in tokens)
    return OrdinalClass(
        name, words, tokens, torch.arange(n), order=n, cyclic=True, variant="as is", dropped=()
    )


def loop(model: HookedModel, classes: dict[str, OrdinalClass]) -> None:
    """Read one head after another."""
    shown = embedding(model)[torch.cat([c.tokens for c in classes.values()])]
    unembed, sizes = unembedding(model).weight, [len(c) for c in classes.values()]
    for layer in range(model.cfg.n_layers):
        own = head_weights(model, layer)
        for value, output in zip(own.value, own.output, strict=True):
            written = shown @ (value @ output)
            for part, ordinal in zip(written.split(sizes), classes.values(), strict=True):
                (part @ unembed[:, ordinal.tokens]).argmax(-1)


class Products:
    """The bare matrix products of the scan, operands ready; with `fold` W_O W_U is among them."""

    def __init__(self, model: HookedModel, classes: dict[str, OrdinalClass]) -> None:
        tokens = torch.cat([c.tokens for c in classes.values()])
        self.shown = embedding(model)[tokens]
        layers = [head_weights(model, layer) for layer in range(model.cfg.n_layers)]
        # d_model by (head d_head), and (head d_head) by d_model, of each layer.
        self.value = [own.value.transpose(0, 1).flatten(1).contiguous() for own in layers]
        self.output = [own.output.flatten(0, 1) for own in layers]
        self.n_heads, self.sizes = model.cfg.n_heads, [len(c) for c in classes.values()]
        self.columns = unembedding(model).weight[:, tokens].contiguous()
        self.folded = [output @ self.columns for output in self.output]
        self.logits = [torch.empty(size, size) for size in self.sizes]

    def __call__(self, fold: bool) -> None:
        for value, output, ready in zip(self.value, self.output, self.folded, strict=True):
            z = (self.shown @ value).chunk(self.n_heads, dim=1)
            folded = (output @ self.columns if fold else ready).chunk(self.n_heads)
            for i in range(self.n_heads):
                own = z[i].split(self.sizes), folded[i].split(self.sizes, dim=1)
                for rows, columns, logits in zip(*own, self.logits, strict=True):
                    torch.mm(rows, columns, out=logits)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.no_grad()
def main(items: int, n_classes: int, repeats: int) -> None:
    """Print times and ratios."""
    model = load_model(random_gpt2(VOCABULARY, d_model=768, n_layers=12, n_heads=12, seed=0))
    classes = classes_of(items, n_classes)
    products, convention = Products(model, classes), Convention("embed")
    parts = {
        "scan": lambda: best_candidates(model, classes, convention),
        "loop": lambda: loop(model, classes),
        "two products": lambda: products(fold=False),
        "with the fold": lambda: products(fold=True),
    }
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(repeats + 1):  # the first round warms up, and is never the best
        for name, work in parts.items():
            best[name] = min(best[name], _seconds(work))
    threads, taken = torch.get_num_threads(), ", ".join(f"{n} {t:.3f}" for n, t in best.items())
    print(
        f"{items} items in {n_classes} classes, {threads} threads; best of {repeats}, in s: {taken}"
    )
    print(
        f"the loop takes {best['loop'] / best['scan']:.1f} times as long as the scan; the scan"
        f" takes {best['scan'] / best['two products']:.2f} times its two products,"
        f" {best['scan'] / best['with the fold']:.2f} times with the fold among them"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    main(args.items, args.classes, args.repeats)
