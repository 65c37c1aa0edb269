"""The few exceptions of the toolkit, and the sentence that names the nearest known word.

Each message says what was given, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ToolkitError(ValueError):
    """Base of every error the toolkit raises for a user's mistake or an unusable input."""


class CheckpointError(ToolkitError):
    """A checkpoint could not be read, or reading it would have given wrong weights."""


class HookError(ToolkitError):
    """An edit or a recording could not be placed, never fired, or broke an activation's shape."""


class CacheError(ToolkitError):
    """A key-value cache does not hold the columns that ran: the next tokens would not see them."""


class TokenisationError(ToolkitError):
    """A text does not become the tokens an analysis needs (no tokenizer, several tokens, ...)."""


class NotApplicable(ToolkitError):
    """An analysis cannot judge this model; the message is the reason shown in the report."""


class RegistryError(ToolkitError):
    """An analysis or an option was asked for by a name that is not registered."""


class ResultError(ToolkitError):
    """A result could not be built, written or read back faithfully."""


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return `" Did you mean 'x'?"` for the known names closest to `name`; `""` if none is close.

    >>> nearest("blocks.0.hook_resid_prre", ["blocks.0.hook_resid_pre", "hook_embed"])
    " Did you mean 'blocks.0.hook_resid_pre'?"
    """
    close = difflib.get_close_matches(name, list(known), n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
