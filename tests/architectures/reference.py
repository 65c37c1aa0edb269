"""What `transformers` alone says, read by hooks of PyTorch: no code of the toolkit.

Everything is float64 from the activations on, so that the reference adds no rounding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .table import Parts

Change = Callable[[Tensor], Tensor]


class Seen(NamedTuple):
    """What entered and left a module."""

    entered: Tensor
    left: Tensor


def blocks_of(model: Any, parts: Parts) -> Any:
    """The list of blocks."""
    return model.get_submodule(parts.blocks)


def watch(model: Any, ids: Tensor, modules: Mapping[Any, Any]) -> tuple[Tensor, dict[Any, Seen]]:
    """Return the logits, and what entered and left each of the named `modules`."""
    seen: dict[Any, Seen] = {}

    def keep(name: Any) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            seen[name] = Seen(entered.detach().clone(), left.detach().clone())

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            handle = module.register_forward_hook(keep(name), with_kwargs=True)
            stack.callback(handle.remove)
        logits = model(ids).logits
    return logits, seen


@contextmanager
def changed_input(module: Any, change: Change) -> Iterator[None]:
    """Let `change` edit what enters a module."""

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changed_output(module: Any, change: Change) -> Iterator[None]:
    """Let `change` edit what leaves a module."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def out_weight(block: Any, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The output projection of attention, [heads' outputs, d_model], and its bias or None."""
    module = block.get_submodule(parts.out)
    weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
    bias = getattr(module, "bias", None)
    return weight.detach().double(), None if bias is None else bias.detach().double()


class Held(NamedTuple):
    """A norm with its scale held as it was, as a linear map of what it is given."""

    gain: Tensor
    scale: Tensor
    centred: bool
    bias: Tensor

    def __call__(self, vector: Tensor) -> Tensor:
        if self.centred:
            vector = vector - vector.mean(-1, keepdim=True)
        return vector / self.scale * self.gain


def held_norm(module: Any, entered: Tensor, kind: str) -> Held:
    """The norm `module` on what `entered` it, written out by hand."""
    entered = entered.double()
    weight = getattr(module, "weight", None)
    gain = torch.ones(entered.shape[-1]).double() if weight is None else weight.detach().double()
    gain = 1 + gain if kind == "rms of 1 + w" else gain
    bias = getattr(module, "bias", None)
    bias = torch.zeros_like(gain) if bias is None else bias.detach().double()
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", 1e-5))
    centred = kind == "layer"
    middle = entered - entered.mean(-1, keepdim=True) if centred else entered
    return Held(gain, (middle.square().mean(-1, keepdim=True) + eps).sqrt(), centred, bias)


class Contributions(NamedTuple):
    """What each part adds to the logits of all tokens, at each position."""

    heads: Tensor  # batch pos layer head d_vocab
    mlps: Tensor  # batch pos layer d_vocab
    rest: Tensor  # batch pos d_vocab: embedding and biases
    logits: Tensor  # batch pos d_vocab


def contributions(model: Any, parts: Parts, ids: Tensor) -> Contributions:
    """The direct contribution of every part, from its weights and one forward pass."""
    blocks, config = blocks_of(model, parts), model.config
    modules = {"final": model.get_submodule(parts.final), "stream": blocks[0]}
    for i, block in enumerate(blocks):
        modules[i, "out"] = block.get_submodule(parts.out)
        modules[i, "mlp"] = block.get_submodule(parts.mlp)
        for where, name in zip(("attn", "mlp"), parts.behind or (), strict=False):
            modules[i, where, "behind"] = block.get_submodule(name)
    logits, seen = watch(model, ids, modules)
    final = held_norm(modules["final"], seen["final"].entered, parts.norm)
    unembed = model.lm_head.weight.detach().double().T
    times = getattr(config, "residual_multiplier", 1.0)
    divided = getattr(config, "logits_scaling", 1.0)

    def reaches(vector: Tensor) -> Tensor:
        return final(vector) @ unembed / divided

    heads, mlps, biases = [], [], 0.0
    for i, block in enumerate(blocks):
        behind = [
            held_norm(module, seen[i, where, "behind"].entered, parts.norm)
            if (module := modules.get((i, where, "behind"))) is not None
            else lambda vector: vector
            for where in ("attn", "mlp")
        ]
        weight, bias = out_weight(block, parts)
        z = seen[i, "out"].entered.double().unflatten(-1, (config.num_attention_heads, -1))
        weight = weight.unflatten(0, (config.num_attention_heads, -1))
        by_head = [behind[0](z[..., h, :] @ weight[h]) for h in range(len(weight))]
        heads.append(torch.stack([reaches(times * part) for part in by_head], -2))
        left = seen[i, "mlp"].left.double().reshape(*ids.shape, -1)  # OPT runs tokens in one row
        mlps.append(reaches(times * behind[1](left)))
        biases = biases + (0.0 if bias is None else reaches(times * behind[0](bias)))
    last = 0.0 if model.lm_head.bias is None else model.lm_head.bias.detach().double()
    biases = biases + (final.bias @ unembed + last) / divided
    rest = reaches(seen["stream"].entered.double()) + biases
    return Contributions(torch.stack(heads, 2), torch.stack(mlps, 2), rest, logits.double())
