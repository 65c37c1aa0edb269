"""What is asked of TransformerLens and transformers, and whether they did it.

Both rename arguments and take unknown ones in silence. So what came out is looked at: once loaded,
a few tokens get the logits that transformers gave them; a left-padded row gets those it has alone;
and a key-value cache holds each column that ran. CONTRIBUTING lists every argument with its guard.

A cache that nobody fills gives other tokens without a word, since each new token attends to itself
alone. transformers 5.24 calls the argument `cache` that was `past_key_values` before, and the
attention of a `TransformerBridge` of TransformerLens 3.9 and 4.3 looks for the old name. So its
attention is handed the cache under both names.

What would fool it: an architecture that goes wrong only behind more tokens than are compared, and a
cache that holds the columns that ran and is not attended to. The tests compare the tokens of twelve
families with those of transformers.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import CacheError, CheckpointError

_PACKAGES = ("transformer-lens", "transformers")

_ARGUMENTS = ("cache", "past_key_values")
"""What transformers calls the cache: from 5.24 on, and before."""


def installed() -> str:
    """Return the versions that decide what is taken and what is ignored, for a message."""
    both = (f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return " and ".join(both)


# --- logits --------------------------------------------------------------------------------------


def probe_tokens(hf_model: Any) -> Int[Tensor, "1 pos"]:
    """Return a few tokens to compare logits on, within vocabulary and context of the model."""
    config, device = hf_model.config, next(hf_model.parameters()).device
    length = min(4, getattr(config, "max_position_embeddings", None) or 4)
    return torch.arange(1, 1 + length, device=device)[None] % config.vocab_size


def check_logits(
    logits: Any, expected: Float[Tensor, "batch pos d_vocab"], *, raw: bool, name: str
) -> None:
    """Raise `CheckpointError` unless a wrapped model answers as transformers does.

    Args:
        logits: of the wrapped model.
        expected: of transformers' own, on the same tokens.
        raw: whether the weights are raw, so that the logits themselves must agree and not only the
            log-probabilities: where a request for raw weights is ignored, they do not.
        name: of the checkpoint, for the message.
    """
    if not isinstance(logits, Tensor) or logits.shape != expected.shape:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CheckpointError(
            f"{name} answers with {what} where logits {tuple(expected.shape)} are expected, under"
            f" {installed()}."
        )
    ours, theirs = logits.float(), expected.float()
    if not raw:
        ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    if not _agree(ours, theirs, expected.dtype):
        away = float((ours - theirs).abs().max())
        raise CheckpointError(
            f"{name} is {away:.2g} off the logits of transformers under {installed()}: its config"
            " or its weights are not read as they are meant. Install the versions of the other"
            " constraints file, or another wrapper."
        )


@torch.no_grad()
def heeds_mask(
    model: Any, probe: Int[Tensor, "1 pos"], logits: Float[Tensor, "1 pos d_vocab"]
) -> bool:
    """Return whether a row behind padding gets the `logits` that it has alone.

    A recurrent model, which reads its padding, does not; nor does one whose attention mask is lost.
    """
    padded = torch.cat([probe[:, :1], probe[:, :-1]], dim=1)
    mask = torch.ones_like(padded)
    mask[:, 0] = 0
    behind: Tensor = model(padded, return_type="logits", attention_mask=mask)
    return _agree(behind[:, 1:].float(), logits[:, :-1].float(), logits.dtype)


def _agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether two forward passes in `dtype` differ by no more than their rounding.

    Sums in another order leave about 1e-5 of the largest logit in float32, in any depth; a half
    precision keeps 8 or 11 bits of each of many layers.
    """
    tolerance = max(1e-4, 16 * torch.finfo(dtype).eps)
    allowed = tolerance * max(1.0, float(theirs.abs().max()))
    return float((ours - theirs).abs().max()) <= allowed


# --- caches --------------------------------------------------------------------------------------


def cached_columns(cache: Any) -> int:
    """Return how many columns `cache` holds, as its own wrapper counts them; None holds none.

    >>> cached_columns(None)
    0
    """
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):  # transformers', used by a Bridge
        return int(cache.get_seq_length())
    return int(cache[0].past_keys.shape[1])


def given_cache(options: Mapping[str, Any]) -> Any | None:
    """Return the cache among the keyword arguments of a forward pass, whatever it is called there.

    >>> given_cache({"attention_mask": None, "use_cache": True}) is None
    True
    """
    caches = (v for v in options.values() if hasattr(v, "get_seq_length") or hasattr(v, "entries"))
    return next(caches, None)


def check_cache(cache: Any, columns: int) -> None:
    """Raise `CacheError` unless every block's part of `cache` holds exactly `columns` columns.

    A cache that its owner has frozen is meant to stay as it is, and passes.
    """
    if getattr(cache, "frozen", False):
        return
    held = _columns_by_block(cache)
    wrong = [block for block, has in enumerate(held) if has != columns]
    if held and not wrong:
        return
    what = f"{held[wrong[0]]} in block {wrong[0]}" if wrong else "nothing"
    raise CacheError(
        f"the KV cache holds {what} where {columns} columns have run, so that the next tokens "
        f"would not see them: {installed()} do not hand it on. Run all columns again instead "
        "(use_cache=False), or install the versions of the constraints files."
    )


def cache_argument(hf_model: Any) -> str:
    """Return what the forward pass of a Hugging Face model calls its cache.

    Raises:
        CacheError: it takes none under a known name.
    """
    taken = inspect.signature(hf_model.forward).parameters
    for name in _ARGUMENTS:
        if name in taken:
            return name
    raise CacheError(
        f"{type(hf_model).__name__} takes no cache called {' or '.join(_ARGUMENTS)} under "
        f"{installed()}. Run all columns again instead (use_cache=False)."
    )


def hand_on_cache(bridge: Any) -> None:
    """Have the attention of a `TransformerBridge` handed the cache under each name it may look for.

    Only attention that computes keys and values itself needs it; what passes its arguments on to
    transformers reads the cache there. A second call changes nothing.
    """
    for module in bridge.modules():
        reads = hasattr(module, "_update_kv_cache")
        passes_on = type(module).forward.__qualname__ == "AttentionBridge.forward"
        if reads and not passes_on and _both_names not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_both_names, with_kwargs=True)


def _both_names(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    given = [options[name] for name in _ARGUMENTS if options.get(name) is not None]
    return args, options | dict.fromkeys(_ARGUMENTS, given[0]) if given else options


def _columns_by_block(cache: Any) -> list[int]:
    if cache is None:
        return []
    if hasattr(cache, "entries"):  # TransformerLens'
        return [int(entry.past_keys.shape[1]) for entry in cache.entries]
    # A layer that keeps a running state instead of keys and values counts no columns.
    return [int(getattr(layer, "get_seq_length", int)()) for layer in getattr(cache, "layers", [])]
