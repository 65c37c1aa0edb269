"""`generate(model, tokens, edits)`: continue prompts with edits in force, the same however it runs.

With a KV cache and without, in one left-padded batch and one by one, on either wrapper: an edit
that says where it acts (`Where`) gives the same tokens, up to rounding where two logits all but
tie. Sampling draws each row's noise from its own seed, so a row's tokens don't depend on the rows
beside it.

What would fool it: right-padded prompts, whose continuation would stand behind padding. They are
refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import CacheError, ToolkitError
from mechinterp_toolkit.intervention import Edits, applied
from mechinterp_toolkit.model import HookedModel, takes_model

Combine = Callable[[Float[Tensor, "rows d_vocab"]], Float[Tensor, "batch d_vocab"]]
"""Makes one row of logits for each row that is generated, of all the rows that run."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen and when a row is done."""

    max_new_tokens: int = 20
    """Tokens generated behind each prompt."""

    temperature: float = 0.0
    """0 takes the likeliest token; else tokens are drawn from softmax(logits / temperature)."""

    seed: int | None = None
    """Of the drawing; row r uses seed + r."""

    stop: tuple[int, ...] = ()
    """Token ids after which a row is done; it is filled up with the first of them."""

    use_cache: bool = True
    """Whether the past is kept in a KV cache instead of being run again.

    Where the installed versions lose what should be in the cache, it is run again all the same,
    with a warning."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise ToolkitError(
                f"got max_new_tokens={self.max_new_tokens} and temperature={self.temperature};"
                " expected at least one token and a temperature of 0 (greedy) or more."
            )
        if (self.temperature > 0) != (self.seed is not None):
            raise ToolkitError(
                f"temperature={self.temperature} and seed={self.seed} do not fit: drawing"
                " (temperature above 0) needs a seed, and taking the likeliest token has none."
            )

    @torch.no_grad()
    def run(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "rows pos"],
        mask: Bool[Tensor, "rows pos"] | None,
        edits: Edits,
        *,
        group: Int[Tensor, " rows"] | None = None,
        combine: Combine | None = None,
        copies: int = 1,
    ) -> Int[Tensor, "batch new"]:
        """Return what `generate` does, or what `combine` makes of several rows of logits.

        With `combine` the rows that run are `copies` blocks of the rows that are generated, and
        each block goes on with the same token. Errors are those of `generate`; `group` is handed to
        `applied`.
        """
        check_left_padded(tokens, mask)
        if mask is None:
            _check_no_padding(model, tokens)
        _check_context(model, tokens, self.max_new_tokens)
        tokens, prompt = tokens.to(model.device), tokens.shape[1]
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(model.device)
        place = (
            applied(model, edits, mask=mask, prompt_length=prompt, group=group)
            if edits
            else nullcontext()
        )
        runner = _Runner(model, self.use_cache)
        chooser = _Chooser(self, len(tokens) // copies, model.device)
        with place:
            for _ in range(self.max_new_tokens):
                logits = runner.last_logits(tokens, mask)
                new = chooser.next(logits if combine is None else combine(logits))
                again = new.repeat(copies)[:, None]
                tokens = torch.cat([tokens, again], 1)
                mask = torch.cat([mask, torch.ones_like(again, dtype=torch.bool)], 1)
                if chooser.all_done:
                    break
        return chooser.filled()


@takes_model
def generate(
    model: HookedModel,
    /,
    tokens: Int[Tensor, "batch pos"],
    edits: Edits | None = None,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    **decoding: Any,
) -> Int[Tensor, "batch new"]:
    """Return the tokens that follow each prompt, with `edits` in force throughout.

    Args:
        tokens: prompts, left-padded where they differ in length.
        edits: hook name -> edit, as for `applied`.
        mask: True at real tokens; needed where there is padding.
        **decoding: fields of `Decoding`: max_new_tokens, temperature, seed, stop, use_cache.

    Raises:
        ToolkitError: padding on the right, a continuation beyond the model's context, or options
            that do not fit.
        HookError: see `applied`; nothing is left on the model.

    >>> from mechinterp_toolkit import load_model
    >>> toy = load_model("toy/sentiment")
    >>> text = "<bos> The new game looks foolish, people say. I think it is"
    >>> tokens = toy.tokenizer.encode(text, return_tensors="pt")
    >>> toy.tokenizer.decode(generate(toy, tokens, max_new_tokens=1)[0]) in ("bad", "terrible")
    True
    """
    return Decoding(**decoding).run(model, tokens, mask, edits or {})


@dataclass
class _Runner:
    """Runs what the cache does not hold yet; everything, once a column was missing from it."""

    model: HookedModel
    use_cache: bool
    cache: Any = None
    ran: int = 0

    def last_logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if not self.use_cache:
            return self.model.logits(tokens, mask)[:, -1]
        try:
            new = tokens[:, self.ran :]
            logits, self.cache = self.model.logits_and_cache(new, mask, self.cache)
        except CacheError as error:
            # Levels of the stack: this, run (and no_grad), generate (and its door), the caller.
            warnings.warn(f"generating without a cache, which is slower: {error}", stacklevel=6)
            self.use_cache, self.cache = False, None
            return self.last_logits(tokens, mask)
        self.ran = tokens.shape[1]
        return logits[:, -1]


class _Chooser:
    """Chooses one token per row, and remembers which rows are done."""

    def __init__(self, decoding: Decoding, rows: int, device: torch.device) -> None:
        self._decoding = decoding
        self._done = torch.zeros(rows, dtype=torch.bool, device=device)
        self._stop = torch.tensor(decoding.stop, dtype=torch.long, device=device)
        self._new: list[Tensor] = []
        seeds = [] if decoding.seed is None else [decoding.seed + row for row in range(rows)]
        self._noise = [torch.Generator().manual_seed(seed) for seed in seeds]

    @property
    def all_done(self) -> bool:
        return bool(self._done.all())

    def next(self, logits: Tensor) -> Tensor:
        new = self._score(logits).argmax(-1)
        if len(self._stop):
            new = torch.where(self._done, self._stop[0], new)
            self._done = self._done | torch.isin(new, self._stop)
        self._new.append(new)
        return new

    def _score(self, logits: Tensor) -> Tensor:
        if not self._noise:
            return logits
        # The largest of logits plus Gumbel noise is a draw from the softmax (Gumbel 1954). Small
        # changes of the logits, as between a batch and a single row, rarely change which it is.
        uniform = torch.stack(
            [torch.rand(logits.shape[1], generator=g, dtype=torch.float64) for g in self._noise]
        )
        gumbel = -(-uniform.clamp_min(1e-300).log()).log()
        return logits.double() / self._decoding.temperature + gumbel.to(logits.device)

    def filled(self) -> Tensor:
        new = torch.stack(self._new, 1)
        missing = self._decoding.max_new_tokens - new.shape[1]
        if not missing:
            return new
        return torch.cat([new, self._stop[0].expand(len(new), missing)], 1)


def check_left_padded(
    tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "rows columns"] | None
) -> None:
    """Raise `ToolkitError` unless each row is padding first and then real tokens, one or more.

    >>> check_left_padded(torch.tensor([[0, 5]]), torch.tensor([[False, True]]))
    """
    if mask is None:
        return
    if mask.shape != tokens.shape:
        raise ToolkitError(
            f"mask has shape {tuple(mask.shape)} but tokens {tuple(tokens.shape)}; give one entry"
            " each."
        )
    if not mask[:, -1].all() or bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ToolkitError(
            "a prompt is padded on the right or has a hole; generated tokens would stand behind"
            " padding. Pad on the left."
        )


def _check_no_padding(model: HookedModel, tokens: Tensor) -> None:
    """Raise `ToolkitError` where a prompt begins or ends with a token that is for padding alone."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return
    padding, ends = tokenizer.pad_token_id, (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if padding in (None, *ends):
        return
    if bool((tokens[:, [0, -1]] == padding).any()):
        raise ToolkitError(
            f"a prompt begins or ends with the padding token {tokenizer.pad_token!r}, and no mask"
            " says what is real; pad on the left and give mask=."
        )


def _check_context(model: HookedModel, tokens: Tensor, new: int) -> None:
    columns, context = tokens.shape[1], model.cfg.n_ctx
    if context and columns + new - 1 > context:
        raise ToolkitError(
            f"the prompts take {columns} columns and {new} more tokens are asked for, but"
            f" {model.provenance.checkpoint} reads {context}; ask for at most"
            f" {max(context - columns + 1, 0)}."
        )
