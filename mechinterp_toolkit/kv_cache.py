"""What a key-value cache holds, and whether attention is handed the one that the model was given.

A cache that nobody fills gives other tokens without a word: each new token attends to itself alone.
transformers 5.24 calls the argument `cache` that was `past_key_values` before, and the attention of
a `TransformerBridge` of TransformerLens 3.9 and 4.3 looks for the old name. So its attention is
handed the cache under both names, and what a cache holds is counted after each forward pass.

What would fool it: a cache that holds the columns that ran and is not attended to. The tests
compare the tokens of twelve families with those of transformers.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Any

from mechinterp_toolkit.errors import CacheError

_ARGUMENTS = ("cache", "past_key_values")
"""What transformers calls the cache: from 5.24 on, and before."""


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
        f"would not see them: transformer-lens {_version('transformer-lens')} and transformers "
        f"{_version('transformers')} do not hand it on. Run all columns again instead "
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
        f"{type(hf_model).__name__} of transformers {_version('transformers')} takes no cache "
        f"called {' or '.join(_ARGUMENTS)}. Run all columns again instead (use_cache=False)."
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


def _version(package: str) -> str:
    return importlib.metadata.version(package)
